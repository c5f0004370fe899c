import itertools
import os
import shutil
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

os.environ.setdefault("TQDM_DISABLE", "1")
if not torch.cuda.is_available():  # kernels are interpreted; Triton must know before it is imported
    os.environ["TRITON_INTERPRET"] = "1"


LONGEST = "reproduce change_one_thing processes export options pipeline side_by_side teach".split()


def pytest_collection_modifyitems(items):
    "The files that take longest come first, so that no worker is left with one of them at the end."
    order = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))  # stable: the rest stays as it is


@pytest.fixture(scope="session")
def shared():
    "Reference vectors and real photographs beside the checkout; tests that need them are skipped without."
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the reference folder ../shared is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def toy_root():
    "The embedded data set at the size of the preset smoke: read only."
    from wegformer.toyvoc import make_toy_voc

    return make_toy_voc(train=24, val=8)


@pytest.fixture
def killed_at(monkeypatch):
    "killed_at(owner, name, n): a block that the n-th call of owner.name stops; it fails if that call never comes."

    class Killed(BaseException):  # as Ctrl-C: nothing may catch it
        pass

    @contextmanager
    def killed_at(owner, name, n):
        original, calls = getattr(owner, name), itertools.count(1)

        def call_or_die(*args, **kwargs):
            if next(calls) == n:
                raise Killed
            return original(*args, **kwargs)

        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(owner, name, call_or_die)
            yield

    return killed_at


@pytest.fixture
def toy_copy(toy_root, tmp_path):
    "A copy of it that a test may break."
    return Path(shutil.copytree(toy_root, tmp_path / "voc"))


@pytest.fixture
def without_kernel(monkeypatch):
    "Notebooks run in this process, whose imports are there: the same cells, in a sixth of the time."
    import papermill
    from matplotlib import pyplot as plt
    from nbformat.v4 import new_output

    class Here(papermill.engines.Engine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **kwargs):
            names = {"__name__": "__main__"}
            for index, cell in enumerate(nb_man.nb.cells):
                nb_man.cell_start(cell, index)
                try:
                    exec(cell.source if cell.cell_type == "code" else "", names)
                except Exception as error:
                    cell.outputs = [new_output("error", ename=type(error).__name__, evalue=str(error), traceback=[])]
                    nb_man.cell_exception(cell, index, exception=error)
                    break
                finally:
                    plt.close("all")
                nb_man.cell_complete(cell, index)

    papermill.engines.papermill_engines.register("here", Here)
    monkeypatch.setattr(papermill, "execute_notebook", partial(papermill.execute_notebook, engine_name="here"))
