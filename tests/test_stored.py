"What a notebook shows was made by the code that stands beside it."

import json
import shutil
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import stored  # noqa: E402  (a script, not a package)

KERNEL = dict(display_name="python3", language="python", name="python3")


@pytest.mark.parametrize("path", stored.notebooks(), ids=lambda p: p.stem)
def test_stored_outputs_are_those_of_the_code(path):
    assert stored.stale(stored.read(path)) is None, f"run python docs/stored.py --run {path.relative_to(ROOT)}"


@pytest.fixture
def book(tmp_path):
    "A notebook of two cells that was executed."
    path = tmp_path / "book.ipynb"
    cells = [nbformat.v4.new_code_cell(s) for s in ("x = 1  # one\n", "#| export\nprint(x)")]
    cells[1].outputs = [nbformat.v4.new_output("stream", name="stdout", text="1\n")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=KERNEL)), path)
    stored.accept(path)
    return path


def changed(path, change):
    notebook = stored.read(path)
    change(notebook["cells"])
    return stored.stale(notebook)


def test_comments_and_empty_lines_make_no_other_output(book):
    assert changed(book, lambda cells: cells[0].update(source="\nx = 1\n\n# another remark")) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda cells: cells[0].update(source="x = 2  # one"),
        lambda cells: cells[0].update(source='x = "1  # one"'),  # this is no comment
        lambda cells: cells[1].update(source="if x:\n    print(x)"),
        lambda cells: cells.reverse(),
        lambda cells: cells.pop(0),
        lambda cells: cells.append(dict(cells[0], source="x")),
    ],
)
def test_other_code_makes_the_output_old(book, change):
    assert changed(book, change) == "the code has changed since the stored outputs were made"


def test_a_stored_error_is_found(book):
    error = dict(output_type="error", ename="E", evalue="e", traceback=[])
    assert changed(book, lambda cells: cells[1].update(outputs=[error])) == "a stored output is an error"


def test_who_stores_no_output_needs_no_fingerprint(book):
    notebook = stored.read(book)
    del notebook["metadata"]["executed"]
    assert stored.stale(notebook) == "nothing says which code made the stored outputs"
    notebook["cells"][1]["outputs"] = []
    assert stored.stale(notebook) is None


def test_running_brings_it_in_step(book):
    notebook = stored.read(book)
    notebook["cells"][0]["source"] = "x = 5"
    book.write_text(json.dumps(notebook))
    assert stored.stale(stored.read(book))
    stored.run(book)
    notebook = stored.read(book)
    assert stored.stale(notebook) is None
    assert "".join(notebook["cells"][1]["outputs"][0]["text"]) == "5\n"
    assert [cell["execution_count"] for cell in notebook["cells"]] == [None, None]  # clean, as nbdev-clean wants it


def test_an_error_leaves_the_notebook_as_it_was(book):
    notebook = stored.read(book)
    notebook["cells"][0]["source"] = "x = 1 / 0"
    book.write_text(json.dumps(notebook))
    before = book.read_text()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        stored.run(book)
    assert book.read_text() == before


def test_execution_counts_are_complete_and_in_order(book):
    notebook = stored.read(book)
    for counts, right in (([1, 2], True), ([2, 1], False), ([1, None], False), ([1, 3], False)):
        for cell, count in zip(notebook["cells"], counts):
            cell["execution_count"] = count
        assert stored.in_order(notebook) is right


def test_cleaning_keeps_the_fingerprint(book, tmp_path, monkeypatch):
    "With the project's own settings, as nbdev-clean reads them."
    from nbdev.clean import nbdev_clean

    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    nbdev_clean(str(book))
    assert stored.stale(stored.read(book)) is None
