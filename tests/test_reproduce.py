import json

import nbformat
import pytest

from wegformer.cli import main
from wegformer.data import InputError
from wegformer.pipeline import override, preset
from wegformer.reproduce import Row, check_parameters, format_table, notebook_path, reproduce, run_row

TINY = {"classifier.steps": 1, "classifier.crop_size": 48, "classifier.resize": [48, 64], "classifier.eval_long_side": 48, "attention.long_side": 48,
        "attention.flip": False, "segmenter.steps": 1, "segmenter.crop": 48}


def test_table2_from_the_command_line(tmp_path, capsys):
    options = sum((["--" + k.replace("_", "-"), *map(str, v if isinstance(v, list) else [v])] for k, v in TINY.items() if not isinstance(v, bool)), [])
    status = main(["reproduce", "table2", "--preset", "smoke", "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--seeds", "0", "1",
                   *options, "--attention.no-flip"])
    assert status == 0
    table = json.loads((tmp_path / "out" / "table2.json").read_text())
    assert table["table"] == "table2" and table["preset"] == "smoke" and table["versions"]["torch"] and table["device"]
    assert [r["paper"] for r in table["rows"]] == [None, 59.5, 60.0, 70.2, 70.9, 68.9, 69.8, None]
    for row in table["rows"]:
        assert row["status"] == "ok" and row["error"] is None and row["seeds"] == [0, 1] and 0 <= row["miou"] <= 100 and row["std"] >= 0
        assert 0 <= row["pseudo_label_miou"] <= 100 and row["config"]["classifier.steps"] == 1
    assert table["rows"][-1]["pseudo_label_miou"] == 100
    notebook = nbformat.read(tmp_path / "out" / "table2.ipynb", as_version=4)
    assert any("image/png" in o.get("data", {}) for c in notebook.cells if c.cell_type == "code" for o in c.outputs)
    assert (tmp_path / "out" / "table2.html").stat().st_size > 100_000
    printed = capsys.readouterr().out
    assert "+ Sal (DRS) + EPOM*" in printed and "70.9" in printed
    assert len(list((tmp_path / "cache").glob("classifier-*"))) == 2  # one for each seed, shared by all rows


def test_a_failed_row_leaves_the_others(tmp_path, toy_copy):
    "One set of saliency maps is broken: its rows fail with the reason, the others stand, and the exit status says so."
    from wegformer.data import VOCDataset
    name = VOCDataset(toy_copy, "train").ids[0]
    (toy_copy / "saliency" / "worse" / f"{name}.png").write_bytes(b"broken")
    options = sum((["--" + k.replace("_", "-"), *map(str, v if isinstance(v, list) else [v])] for k, v in TINY.items() if not isinstance(v, bool)), [])
    status = main(["reproduce", "table2", "--preset", "smoke", "--voc-root", str(toy_copy), "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"),
                   *options, "--attention.no-flip"])
    rows = {r["name"]: r for r in json.loads((tmp_path / "out" / "table2.json").read_text())["rows"]}
    assert status == 1 and rows["+ Sal (DRS)"]["status"] == "ok"
    assert rows["+ Sal (NSROM)"]["status"] == "failed" and f"{name}.png" in rows["+ Sal (NSROM)"]["error"] and rows["+ Sal (NSROM)"]["miou"] is None


def test_a_notebook_without_the_tag_is_refused(tmp_path):
    notebook = nbformat.read(notebook_path("table2"), as_version=4)
    for cell in notebook.cells:
        cell.metadata.pop("tags", None)
    nbformat.write(notebook, tmp_path / "table2.ipynb")
    with pytest.raises(InputError, match="table2.ipynb has no cell tagged 'parameters'"):
        reproduce("table2", tmp_path / "out", {}, notebook=tmp_path / "table2.ipynb")
    assert not (tmp_path / "out").exists()


def test_unknown_parameters_are_refused(tmp_path):
    with pytest.raises(InputError, match="no parameter 'sedes'; expected one of: .*seeds"):
        reproduce("table2", tmp_path / "out", {"sedes": [0]})
    check_parameters(notebook_path("table2"), dict(preset="toy", voc_root=None, saliency=[], seeds=[0], rounds=1, config={}, out=".", cache=None, workers=0))
    (tmp_path / "cut.ipynb").write_text("{")
    with pytest.raises(InputError, match="cut.ipynb cannot be read"):
        check_parameters(tmp_path / "cut.ipynb", {})


def test_a_cell_that_fails_is_named_and_an_older_result_does_not_pass_for_it(tmp_path):
    cells = [nbformat.v4.new_code_cell("out = '.'", metadata=dict(tags=["parameters"])), nbformat.v4.new_code_cell("1 / 0")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name="python3", display_name="p", language="python"))), tmp_path / "n.ipynb")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "n.json").write_text("{}")
    with pytest.raises(RuntimeError, match="Notebook n failed in cell .*ZeroDivisionError"):
        reproduce("n", tmp_path / "out", {}, notebook=tmp_path / "n.ipynb")
    assert not (tmp_path / "out" / "n.json").exists() and (tmp_path / "out" / "n.html").exists()


def test_a_row_that_cannot_run_is_skipped():
    row = run_row(Row("none", None, 1.0, "there is no saliency set"))
    assert row["status"] == "skipped" and row["miou"] is None and "skipped: there is no saliency set" in format_table([row])


def test_a_misspelt_setting_fails_before_anything_runs(tmp_path):
    with pytest.raises(RuntimeError, match="clasifier.steps"):
        reproduce("table2", tmp_path / "out", dict(preset="smoke", cache=str(tmp_path / "cache"), config={"clasifier.steps": 1}))
    assert not (tmp_path / "cache").exists()
    assert override(preset("smoke"), {"classifier.steps": 1}).classifier.steps == 1
