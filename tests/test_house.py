"""The house is in order: each room knows only those before it, and every page can be read in one sitting."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = """errors storage pictures masks lists labels data options pools check networks.toy networks.resnet38
    toydrawings formulas toyvoc figures live.canvas live.figure processes shares training checkpoints groups
    classifier classifier_checks finished vit plain_model gradients vit_steps kernels.launch rules step_rules
    last_block attention_rule all_blocks step_walk relevance heatmaps affinity attention map_files
    map_measures explainable vit_families soft_erase label_inputs pseudo_labels label_graph crf refinement
    patch_features deeplab segmentation tiles
    evaluation config splits tables sources json_layouts layouts imports stages pretraining pipeline
    side_by_side experiment reproduce records report explain export live.samples live.labels live.maps
    live.rules live.predictions live.replay extras.saliency extras.distillation extras.initial_weights tools
    predictions exits chain_commands indicators verdict fit_page fit cli start""".split()
MODULES = {
    ".".join(p.relative_to(ROOT / "wegformer").with_suffix("").parts): p
    for p in sorted((ROOT / "wegformer").rglob("*.py"))
    if p.name not in ("__init__.py", "_modidx.py")
}
METHOD = sorted((ROOT / "nbs/method").glob("*.ipynb"))
BOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def imported(path):
    "The modules of the package that a module imports when it is imported itself, not later."
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("wegformer")):
            package = ("wegformer." + ".".join(path.relative_to(ROOT / "wegformer").parts)).split(".")[
                : -1 - node.level
            ]
            base = ".".join([*package, node.module or ""]) if node.level else node.module
            yield base.removeprefix("wegformer.").strip(".")
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("wegformer.") for a in node.names if a.name.startswith("wegformer."))


def cells(path):
    return json.loads(path.read_text())["cells"]


def exported(cell):
    return cell["cell_type"] == "code" and re.match(r"#\|\s*exports?\b", "".join(cell["source"])) is not None


@pytest.mark.parametrize("module", MODULES)
def test_each_room_knows_only_those_before_it(module):
    if module.startswith("kernels.") and module != "kernels.launch":
        known = {"data", "kernels.launch"} | {m for m in MODULES if m.startswith("kernels.")}  # lifted out as they are
    else:
        known = set(ROOMS[: ROOMS.index(module)])
    assert not (set(imported(MODULES[module])) & set(MODULES)) - known


@pytest.mark.parametrize("module", MODULES)
def test_no_module_is_long(module):
    assert len(MODULES[module].read_text().splitlines()) <= 400


@pytest.mark.parametrize("module", MODULES)
def test_a_users_path_is_looked_up_by_what_never_stops(module):
    """`Path` stops with a RuntimeError at a link to itself (`resolve`, before Python 3.13) and at a user whom nobody
    knows (`expanduser`, `home`); `os.path.realpath` and `os.path.expanduser` never do."""
    calls = re.findall(r".*(?:\.resolve\(|(?<!os\.path)\.expanduser\(|Path\.home\().*", MODULES[module].read_text())
    assert not [line for line in calls if "__file__" not in line]


@pytest.mark.parametrize("book", BOOKS, ids=lambda p: p.stem)
def test_exported_cells_are_short(book):
    sources = ["".join(c["source"]) for c in cells(book) if exported(c)]
    assert max((s.count("\n") for s in sources), default=0) <= 40  # the line of the directive apart


@pytest.mark.parametrize("book", BOOKS, ids=lambda p: p.stem)
def test_no_lambda_with_a_bound_default(book):
    for cell in cells(book):
        if cell["cell_type"] == "code" and not "".join(cell["source"]).startswith(("%", "!")):
            tree = ast.parse("".join(cell["source"]))
            assert not [n for n in ast.walk(tree) if isinstance(n, ast.Lambda) and n.args.defaults]


def test_the_method_is_ten_pages_or_so_of_at_most_sixty_cells():
    assert 8 <= len(METHOD) <= 13 and max(len(cells(p)) for p in METHOD) <= 60
    assert [int(p.stem[:2]) for p in METHOD] == list(range(len(METHOD)))


@pytest.mark.parametrize("book", [p for p in BOOKS if p.parent.name in ("method", "workshop")], ids=lambda p: p.stem)
def test_what_is_exported_is_shown(book):
    "Between two exported definitions, and after the last one, stands a cell that uses something."
    kinds = ["export" if exported(c) else "code" for c in cells(book) if c["cell_type"] == "code"]
    sources = ["".join(c["source"]) for c in cells(book) if c["cell_type"] == "code"]
    runs = [
        k
        for k, s in zip(kinds, sources)
        if not (k == "export" and not re.search(r"^(def|class|[A-Z_]+ *[:=])", s, re.M))
    ]
    silent = sum(a == b == "export" for a, b in zip(runs, [*runs[1:], "export"]))
    assert silent == 0


@pytest.mark.parametrize("book", BOOKS, ids=lambda p: p.stem)
def test_every_page_has_a_title_and_a_subtitle(book):
    first = "".join(cells(book)[0]["source"])
    assert re.match(r"# \S.*\n\n> \S", first)
