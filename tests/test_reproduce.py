import json

import nbformat
import pytest

from wegformer.cli import main
from wegformer.data import InputError
from wegformer.config import override, preset
from wegformer.experiment import HEAT_MAP, Experiment, Row, format_table, predict_split, run_row
from wegformer.reproduce import (
    NotebookFailed,
    check_parameters,
    notebook_names,
    notebook_parameters,
    notebook_path,
    reproduce,
)

TINY = {
    "classifier.steps": 1,
    "classifier.crop_size": 48,
    "classifier.resize": [48, 64],
    "classifier.eval_long_side": 48,
    "attention.long_side": 48,
    "attention.flip": False,
    "segmenter.steps": 1,
    "segmenter.crop": 48,
}


OPTIONS = [
    *sum(
        (
            ["--" + k.replace("_", "-"), *map(str, v if isinstance(v, list) else [v])]
            for k, v in TINY.items()
            if not isinstance(v, bool)
        ),
        [],
    ),
    "--attention.no-flip",
    "--pretrain.mask-steps",
    "1",
    "--pretrain.label-steps",
    "1",
]
NAMES = ["table2", "table1", "table3", "table4", "figure1", "figure3", "figure4", "figure5", "ladder", "sensitivity"]


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    "Every table and figure at the smallest size, from one command."
    folder = tmp_path_factory.mktemp("all")
    status = main(
        [
            "reproduce",
            "all",
            "--preset",
            "smoke",
            "--out",
            str(folder / "out"),
            "--cache",
            str(folder / "cache"),
            *OPTIONS,
            "--parameters",
            "sample=4",
            "scales=[[1.0], [0.5]]",
            "extras=True",
        ]
    )
    assert status == 0
    made = [p.parent.name for p in (folder / "cache").glob("*/done.json")]  # other tests add to the cache
    (folder / "made.json").write_text(json.dumps(made))
    return folder


def rows_of(folder, name):
    return json.loads((folder / "out" / f"{name}.json").read_text())["rows"]


def test_everything_from_one_command(everything):
    assert notebook_names() == NAMES
    for name in NAMES:
        table = json.loads((everything / "out" / f"{name}.json").read_text())
        assert table["table"] == name and table["title"] and table["preset"] == "smoke"
        assert {row["status"] for row in table["rows"]} <= {"ok", "quoted"}, [
            (r["name"], r["error"]) for r in table["rows"]
        ]
        figures = sorted((everything / "out").glob(f"{name}*.png"))
        assert figures and all(
            p.with_suffix(".pdf").read_bytes().startswith(b"%PDF") and p.read_bytes().startswith(b"\x89PNG")
            for p in figures
        )
    report = (everything / "out" / "report.html").read_text()
    assert all(f"EPOM*, {words}" in report for words in ("2 rounds", "literal erase")) and "WegFormer, VGG-16" in report


def test_rows_share_what_they_have_in_common(everything):
    folders = [name.rpartition("-")[0] for name in json.loads((everything / "made.json").read_text())]
    # one ViT and one CNN; maps of the ViT by five methods and two walks, and of the CNN;
    # weights: VGG by labels, VGG and ResNet by masks
    assert {name: folders.count(name) for name in ("classifier", "attention", "initial", "relabel")} == dict(
        classifier=2, attention=8, initial=3, relabel=1
    )
    stages = {
        name: {r["name"]: [s["folder"] for s in r["stages"][0]] for r in rows_of(everything, name) if r["stages"]}
        for name in NAMES
    }
    full = stages["table2"]["+ Sal (DRS) + EPOM*"]
    assert (
        full
        == stages["table1"]["WegFormer, ResNet-101"]
        == stages["table4"]["DeepLab-V3+"]
        == stages["figure3"]["WegFormer"]
    )
    assert (
        set(stages["table2"]["base"])
        < set(stages["table3"]["block 11"])
        == {folder for folder in stages["figure4"]["DTD"] if not folder.startswith("measures-")}
        > set(stages["ladder"]["DTD, base"])
    )
    assert (
        stages["ladder"]["+ Sal + EPOM*"] == full
        and stages["ladder"]["true masks"] == stages["table2"]["fully supervised (bound)"]
    )
    assert (
        stages["ladder"]["true masks"][:-1] == stages["ladder"]["true masks, CRF"][:-1]
        and stages["ladder"]["true masks"] != stages["ladder"]["true masks, CRF"]
    )


def test_each_table_has_the_papers_rows(everything):
    paper = {name: [r["paper"] for r in rows_of(everything, name)] for name in NAMES}
    assert paper["table1"][:4] == [66.2, None, 70.5, 70.9] and len(paper["table1"]) == 4 + 23 + 22
    assert paper["table3"] == [58.2, 58.4, 58.2, 58.8, 59.0, 59.5] and paper["table4"] == [69.2, 69.3, 70.5]
    assert [r["name"] for r in rows_of(everything, "figure4")] == ["CAM", "Grad-CAM", "raw attention", "rollout", "DTD"]
    quoted = {r["name"]: r for r in rows_of(everything, "table1") if r["status"] == "quoted"}
    assert (
        quoted["NSROM, ResNet"]["paper"] == 68.3
        and quoted["NSROM, ResNet"]["note"] == "test 68.5"
        and quoted["DRS†, ResNet"]["miou"] is None
    )
    for name in ("table3", "figure4"):
        assert all(len(r["measures"][HEAT_MAP]) == 1 for r in rows_of(everything, name))


def test_a_second_run_repeats_the_numbers(everything, without_kernel, tmp_path):
    for name in ("table4", "figure5"):
        assert (
            main(
                [
                    "reproduce",
                    name,
                    "--preset",
                    "smoke",
                    "--out",
                    str(tmp_path),
                    "--cache",
                    str(everything / "cache"),
                    *OPTIONS,
                ]
            )
            == 0
        )
        assert json.loads((tmp_path / f"{name}.json").read_text())["rows"] == rows_of(everything, name)


def test_the_ladder_over_some_classes_alone(everything, without_kernel, tmp_path, capsys):
    args = [
        "reproduce",
        "ladder",
        "--preset",
        "smoke",
        "--out",
        str(tmp_path),
        "--cache",
        str(everything / "cache"),
        *OPTIONS,
        "--parameters",
    ]
    assert main([*args, 'classes=["bird","car"]', 'methods=["cam","dtd"]']) == 0
    rows = {r["name"]: r for r in rows_of(everything, "ladder")}
    for row in json.loads((tmp_path / "ladder.json").read_text())["rows"]:
        of_classes = ("measures", "over_trivial")
        assert {k: v for k, v in row.items() if k not in of_classes} == {
            k: v for k, v in rows[row["name"]].items() if k not in of_classes
        }
        assert ("over_trivial" in row) == (row["miou"] is not None and "first label" not in row["name"])
        ious = {
            "val": row["metrics"][0].get("evaluation", {}),
            "labels": row["metrics"][0]["labels"]["pseudo_label"],
            "maps": row["metrics"][0].get("heatmap", {}),
        }
        for what, score in ious.items():
            values = [
                score["iou"][name] for name in ("background", "bird", "car") if score and score["iou"][name] is not None
            ]
            assert row["measures"].get(f"{what}, 3 classes") == (
                [pytest.approx(sum(values) / len(values))] if values else None
            )
    full, trivial = rows["+ Sal + EPOM*"], rows["saliency + first label (trivial)"]
    assert full["over_trivial"]["miou"] == pytest.approx(full["miou"] - trivial["miou"])
    assert main([*args, 'classes=["bird","tiger"]']) == 2 and "Class 'tiger' is not known" in capsys.readouterr().err


def test_the_ladder_with_a_chosen_rule(everything, without_kernel, tmp_path, capsys):
    args = [
        "reproduce",
        "ladder",
        "--preset",
        "smoke",
        "--out",
        str(tmp_path),
        "--cache",
        str(everything / "cache"),
        *OPTIONS,
        "--parameters",
    ]
    assert main([*args, 'methods=["dtd"]', 'rule={"fg_thr": 0.0, "epom": False}']) == 0
    rows = {r["name"]: r for r in json.loads((tmp_path / "ladder.json").read_text())["rows"]}
    full, plain, crf = (
        rows[f"+ Sal + EPOM*{end}"] for end in ("", ", fg_thr = 0.0, epom = False", ", fg_thr = 0.0, epom = False, CRF")
    )
    changed = {key for key, value in full["config"].items() if plain["config"][key] != value}
    assert (
        changed == {"labels.rule.fg_thr", "labels.rule.epom"}
        and not plain["config"]["segmenter.crf"]
        and crf["config"]["segmenter.crf"]
    )
    ignored = [r["metrics"][0]["labels"]["pseudo_label"]["ignored"] for r in (full, plain)]
    assert (
        ignored[1] < ignored[0] and plain["miou"] is not None and crf["pseudo_label_miou"] == plain["pseudo_label_miou"]
    )
    names = ["+ Sal + EPOM*, epom = False", "saliency + first label (trivial)"]
    assert main([*args, 'rule={"epom": False}', f"only={names}"]) == 0
    assert [r["name"] for r in json.loads((tmp_path / "ladder.json").read_text())["rows"]] == names
    assert (
        main([*args, 'only=["CAM"]']) == 2
        and "Row 'CAM' is not known; expected some of: CAM, base;" in capsys.readouterr().err
    )
    assert main([*args, 'rule={"foreground": 0.0}']) == 2 and "labels.rule.foreground" in capsys.readouterr().err


def test_the_sweep_also_counts_ignored_pixels_as_background(everything):
    rows = rows_of(everything, "sensitivity")
    measured = [(r["pseudo_label_miou"], r["measures"]["strict"][0], r["measures"]["ignored, %"][0]) for r in rows]
    assert any(ignored > 0 and miou != strict for miou, strict, ignored in measured)
    assert all(miou == strict for miou, strict, ignored in measured if ignored == 0)
    values = {r["name"]: r["measures"] for r in rows}
    assert (
        values["min_foreground = 0.0, with saliency"]["strict"]
        == values["min_foreground = None, with saliency"]["strict"]
    )


def test_a_row_that_fails_is_shown_and_the_others_stand(everything, without_kernel, tmp_path, capsys):
    status = main(
        [
            "reproduce",
            "table3",
            "--preset",
            "smoke",
            "--out",
            str(tmp_path),
            "--cache",
            str(everything / "cache"),
            *OPTIONS,
            "--parameters",
            "blocks=[12]",
        ]
    )
    rows = json.loads((tmp_path / "table3.json").read_text())["rows"]
    assert status == 1 and [r["status"] for r in rows] == ["failed", "ok"] and "0 to 11" in rows[0]["error"]
    assert "1 row(s) failed" in capsys.readouterr().out


def test_notebooks_say_what_can_be_set(capsys):
    for name in NAMES:
        parameters = notebook_parameters(notebook_path(name))
        assert {"preset", "voc_root", "saliency", "seeds", "config", "out", "cache", "workers"} <= set(parameters)
        assert all(p.kind and p.help for p in parameters.values()), name
        check_parameters(notebook_path(name), {p.name: p.default for p in parameters.values()})
    assert main(["reproduce", "table3", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "Which blocks" in printed or "which blocks" in printed
    assert "blocks: list[int]" in printed and "[0, 3, 5, 7, 9]" in printed and "seeds: list[int]" in printed


@pytest.mark.parametrize(
    "options, words",
    [
        (["--parameters", "blocks=7"], "'blocks' .* is 7; expected list"),
        (["--parameters", "block=[7]"], "no parameter 'block'"),
        (["--parameters", "blocks"], "expected NAME=VALUE"),
    ],
)
def test_wrong_parameters(options, words, tmp_path, capsys):
    assert main(["reproduce", "table3", "--preset", "smoke", "--out", str(tmp_path), *options]) == 2
    import re

    assert re.search(words, capsys.readouterr().err)


def test_unknown_names(tmp_path, capsys):
    assert main(["reproduce", "table9", "--out", str(tmp_path)]) == 2 and "table9" in capsys.readouterr().err
    assert (
        main(["reproduce", "all", "--out", str(tmp_path), "--parameters", "nothing=1"]) == 2
        and "'nothing'" in capsys.readouterr().err
    )
    assert main(["report", str(tmp_path)]) == 2 and main(["report"]) == 2 and main(["saliency"]) == 2


def test_predictions_for_the_test_server(everything, toy_copy, tmp_path):
    "A split without masks is predicted with a trained row's network."
    from wegformer.data import read_mask, read_split

    (toy_copy / "ImageSets" / "Segmentation" / "test.txt").write_text("\n".join(read_split(toy_copy, "val")[:3]))
    experiment = Experiment.open(
        "table1", "", "smoke", str(toy_copy), config=TINY, out=tmp_path, cache=everything / "cache"
    )
    row = next(r for r in rows_of(everything, "table1") if r["name"] == "WegFormer, ResNet-101")
    row["config"]["data.voc_root"] = str(toy_copy)
    folder = predict_split(experiment, row, "test", tmp_path / "test")
    assert sorted(p.stem for p in folder.iterdir()) == sorted(read_split(toy_copy, "test"))
    for name in read_split(toy_copy, "test"):
        theirs = experiment.folder(row, "evaluation") / "predictions" / f"{name}.png"
        assert (read_mask(folder / f"{name}.png") == read_mask(theirs)).all()


def test_table2_from_the_command_line(everything, tmp_path, capsys):
    status = main(
        [
            "reproduce",
            "table2",
            "--preset",
            "smoke",
            "--out",
            str(tmp_path / "out"),
            "--cache",
            str(everything / "cache"),
            "--seeds",
            "0",
            "1",
            *OPTIONS,
            "--parameters",
            "extras=False",
        ]
    )
    assert status == 0
    table = json.loads((tmp_path / "out" / "table2.json").read_text())
    assert table["table"] == "table2" and table["preset"] == "smoke" and table["versions"]["torch"] and table["device"]
    assert [r["paper"] for r in table["rows"]] == [None, 59.5, 60.0, 70.2, 70.9, 68.9, 69.8, None]
    for row in table["rows"]:
        assert (
            row["status"] == "ok"
            and row["error"] is None
            and row["seeds"] == [0, 1]
            and 0 <= row["miou"] <= 100
            and row["std"] >= 0
        )
        assert 0 <= row["pseudo_label_miou"] <= 100 and row["config"]["classifier.steps"] == 1
    assert table["rows"][-1]["pseudo_label_miou"] == 100
    notebook = nbformat.read(tmp_path / "out" / "table2.ipynb", as_version=4)
    assert any("image/png" in o.get("data", {}) for c in notebook.cells if c.cell_type == "code" for o in c.outputs)
    assert (tmp_path / "out" / "table2.html").stat().st_size > 100_000
    printed = capsys.readouterr().out
    assert "+ Sal (DRS) + EPOM*" in printed and "70.9" in printed
    stages = [s for row in table["rows"] for seed in row["stages"] for s in seed]
    assert (
        len({s["folder"] for s in stages if s["stage"] == "classifier"}) == 2
    )  # one for each seed, shared by all rows


def test_a_failed_row_leaves_the_others(everything, without_kernel, tmp_path, toy_copy):
    "One set of saliency maps is broken: its rows fail with the reason, the others stand, and the exit status says so."
    from wegformer.data import VOCDataset

    name = VOCDataset(toy_copy, "train").ids[0]
    (toy_copy / "saliency" / "worse" / f"{name}.png").write_bytes(b"broken")
    status = main(
        [
            "reproduce",
            "table2",
            "--preset",
            "smoke",
            "--voc-root",
            str(toy_copy),
            "--out",
            str(tmp_path / "out"),
            "--cache",
            str(everything / "cache"),
            *OPTIONS,
            "--parameters",
            "extras=False",
        ]
    )
    rows = {r["name"]: r for r in json.loads((tmp_path / "out" / "table2.json").read_text())["rows"]}
    assert status == 1 and rows["+ Sal (DRS)"]["status"] == "ok"
    assert (
        rows["+ Sal (NSROM)"]["status"] == "failed"
        and f"{name}.png" in rows["+ Sal (NSROM)"]["error"]
        and rows["+ Sal (NSROM)"]["miou"] is None
    )


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
    check_parameters(
        notebook_path("table2"),
        dict(preset="toy", voc_root=None, saliency=[], seeds=[0], rounds=1, config={}, out=".", cache=None, workers=0),
    )
    (tmp_path / "cut.ipynb").write_text("{")
    with pytest.raises(InputError, match="cut.ipynb cannot be read"):
        check_parameters(tmp_path / "cut.ipynb", {})


def test_a_cell_that_fails_is_named_and_a_finished_table_stays(tmp_path):
    cells = [
        nbformat.v4.new_code_cell("out = '.'", metadata=dict(tags=["parameters"])),
        nbformat.v4.new_code_cell("1 / 0"),
    ]
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=cells, metadata=dict(kernelspec=dict(name="python3", display_name="p", language="python"))
        ),
        tmp_path / "n.ipynb",
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "n.json").write_text("{}")
    with pytest.raises(NotebookFailed, match=r"n failed in cell 3: ZeroDivisionError: .* \(see n.failed.ipynb\)"):
        reproduce("n", tmp_path / "out", {}, notebook=tmp_path / "n.ipynb")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["n.failed.html", "n.failed.ipynb", "n.json"]
    assert (tmp_path / "out" / "n.json").read_text() == "{}"
    executed = nbformat.read(tmp_path / "out" / "n.failed.ipynb", as_version=4)
    failed = [c for c in executed.cells if c.cell_type == "code" and any(o.output_type == "error" for o in c.outputs)]
    assert [c.execution_count for c in failed] == [3]  # the number that a reader sees beside the cell


def test_a_row_that_cannot_run_is_skipped():
    row = run_row(Row("none", None, 1.0, "there is no saliency set"))
    assert (
        row["status"] == "skipped"
        and row["miou"] is None
        and "skipped: there is no saliency set" in format_table([row])
    )


def test_a_misspelt_setting_fails_before_anything_runs(without_kernel, tmp_path):
    with pytest.raises(RuntimeError, match="clasifier.steps"):
        reproduce(
            "table2",
            tmp_path / "out",
            dict(preset="smoke", cache=str(tmp_path / "cache"), config={"clasifier.steps": 1}),
        )
    assert not (tmp_path / "cache").exists()
    assert override(preset("smoke"), {"classifier.steps": 1}).classifier.steps == 1
