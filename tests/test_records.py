"Records give back what was recorded, number by number."

import copy
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import records  # noqa: E402  (a script, not a package)

VERSIONS = dict(python="3.11.7", torch="2.14.1")


def score(miou):
    return dict(
        miou=miou,
        ignored=0.0,
        iou={"background": 90.5, "cat": None, "dog": miou},
        confusion=[[5, 0, 1], [0, 0, 0], [2, 0, 7]],
        images=24,
    )


def row(name, seeds=(0, 1), **more):
    "A row as wegformer.experiment.run_row writes it."
    metrics = [
        dict(
            heatmap=dict(miou=30.25, threshold=0.1),
            labels=dict(
                pseudo_label_miou=40.0 + s, pseudo_label=score(40.0 + s), rule=dict(epom_share=0.01, empty=None)
            ),
            evaluation=score(50.0 + 3 * s),
        )
        for s in seeds
    ]
    stages = [[dict(stage="labels", folder=f"labels-{s}", seconds=2.41, peak_gib=1.12)] for s in seeds]
    config = {
        "data.voc_root": None,
        "labels.rule.fg_thr": 0.3,
        "attention.scales": [0.5, 1.0],
        "seed": 0,
        "text": "true",
    }
    made = dict(name=name, seeds=list(seeds), paper=None, status="ok", error=None, note="", config=config)
    made |= dict(measures={"val, 2 classes": [1.5 + s for s in seeds]}, stages=stages, metrics=metrics)
    return made | records.summary(made) | more


def table(*rows):
    return dict(
        table="table2", title="A title", preset="toy", rows=list(rows), versions=VERSIONS, device="here, 2 threads"
    )


def kept(files, tmp_path, run="toy"):
    records.record(copy.deepcopy(files), run, tmp_path, day="2026-01-02", commit="abc")
    return records.load(run, tmp_path)


EMPTY = dict(measures={}, stages=[], metrics=[], miou=None, std=None, pseudo_label_miou=None)
ROWS = [
    row("base"),
    row('one, "quoted" name', seeds=(3,), paper=59.5, note="a note, with a comma"),
    row(
        "changed", config={**row("x")["config"], "labels.rule.fg_thr": 0.0, "text": "false", "attention.scales": [1.0]}
    ),
    row("other summary", pseudo_label_miou=12.5, over_trivial=dict(miou=1.5, low=0.5, high=2.5)),
    row("other's", seeds=(), status="quoted", config=None, paper=70.25, **EMPTY),
    row("no map", seeds=(0,), status="skipped", error="there is none", config=None, **EMPTY),
    row("broken", seeds=(0,), status="failed", error="ValueError: no\nsecond line", **EMPTY),
    row(
        "swept = 0.5", seeds=(0,), **EMPTY | dict(pseudo_label_miou=30.5, measures={"strict": [1.0]}, config={"a": 0.5})
    ),
    row(
        "swept = 0.5", seeds=(0,), **EMPTY | dict(pseudo_label_miou=31.5, measures={"strict": [2.0]}, config={"a": 0.5})
    ),
]


@pytest.mark.parametrize("own", ROWS, ids=lambda r: r["name"])
def test_a_row_reads_back_as_it_was(own, tmp_path):
    assert kept(dict(table2=table(row("base"), row("other"), own)), tmp_path)["table2"]["rows"][2] == own


def test_a_table_reads_back_with_the_order_of_rows_and_classes(tmp_path):
    whole = table(*ROWS)
    read = kept(dict(table2=whole), tmp_path)["table2"]
    assert read == dict(whole, date="2026-01-02", commit="abc")
    assert [r["name"] for r in read["rows"]] == [r["name"] for r in ROWS]
    assert list(read["rows"][0]["metrics"][0]["evaluation"]["iou"]) == ["background", "cat", "dog"]


def test_a_setting_is_written_once_and_then_where_it_differs(tmp_path):
    kept(dict(table2=table(*ROWS)), tmp_path)
    lines = records.read_csv(tmp_path / "toy/config.csv")
    assert [(x["row"], x["setting"], x["value"]) for x in lines if x["row"] == "changed"] == [
        ("changed", "labels.rule.fg_thr", "0.0"),
        ("changed", "attention.scales", "[1.0]"),
        ("changed", "text", '"false"'),
    ]
    assert sum(x["table"] == "" for x in lines) == 5


@pytest.mark.parametrize(
    "other",
    [
        dict(mAP=40.5, AP=dict(cat=None, dog=1.5), train="train", versions=VERSIONS),
        dict(history=[dict(step=60, loss=4.5), dict(step=100, agreement=7.0)], nothing={}, empty=[]),
        [dict(claim="a", seeds=[0, 1], gaps=[1.5, -2.5], paper=None)],
        dict(text="1", other="null", true=True, words='a, "b"\nc'),
    ],
)
def test_another_result_reads_back_as_it_was(other, tmp_path):
    assert kept(dict(shares=other), tmp_path)["shares"] == other


def test_a_table_is_replaced_and_the_others_stay(tmp_path):
    kept(dict(table2=table(row("base")), table3=table(row("block 11")), shares=[1.5]), tmp_path)
    read = kept(dict(table2=table(row("base", seeds=(5,)))), tmp_path)
    assert read["table2"]["rows"][0]["seeds"] == [5]
    assert read["table3"]["rows"][0]["name"] == "block 11" and read["shares"] == [1.5]


def test_what_would_not_read_back_is_refused(tmp_path):
    broken = row("base")
    broken["metrics"][0]["evaluation"]["iou"] = {"dog": 1.0}  # not the classes of its confusion matrix
    with pytest.raises(ValueError):
        kept(dict(table2=table(broken)), tmp_path)
    lost = row("base")
    lost["metrics"][0]["labels"]["new"] = {"0": 1.5}
    lost["stages"] = lost["stages"][:1] + [[dict(lost["stages"][1][0], seconds="2")]]
    with pytest.raises(AssertionError, match="does not read back"):
        kept(dict(table2=table(lost)), tmp_path)


def test_a_benchmark_is_appended_with_its_setting(tmp_path):
    file = dict(
        setting=dict(model="a", start_block=None),
        rows=[dict(what="maps", seconds=1.5, parts=dict(x=2))],
        versions=VERSIONS,
    )
    for seconds in (1.5, 2.5):
        file["rows"][0]["seconds"] = seconds
        records.append(file, "dtd", tmp_path, day="2026-01-02", commit="abc")
    lines = records.load_rows("dtd", tmp_path)
    assert [line["seconds"] for line in lines] == [1.5, 2.5]
    assert lines[0] | dict(seconds=2.5) == lines[1]
    assert (lines[0]["start_block"], lines[0]["parts/x"], lines[0]["date"]) == (None, 2, "2026-01-02")
    assert records.read_versions(tmp_path, lines[0]["versions"]) == VERSIONS


def test_the_command_keeps_a_run_and_a_benchmark(tmp_path, capsys):
    run = tmp_path / "runs"
    run.mkdir()
    (run / "table2.json").write_text(json.dumps(table(row("base"))))
    (run / "shares.json").write_text("[1.5]")
    (tmp_path / "dtd.json").write_text(json.dumps(dict(rows=[dict(seconds=1.5)])))
    records.main([str(run), "--name", "mine", "--results", str(tmp_path)])
    records.main([str(tmp_path / "dtd.json"), "--name", "dtd", "--results", str(tmp_path)])
    assert records.load("mine", tmp_path)["table2"]["rows"] == [row("base")]
    assert records.load_rows("dtd", tmp_path)[0]["seconds"] == 1.5
    for wrong in (tmp_path / "nowhere", tmp_path / "mine"):
        with pytest.raises(SystemExit):
            records.main([str(wrong), "--name", "x", "--results", str(tmp_path)])
    assert "is neither a folder nor a file" in (said := capsys.readouterr().err) and "holds no .json file" in said


def test_an_unknown_run_is_named():
    with pytest.raises(FileNotFoundError, match="nothing holds no record; there are: .*toy"):
        records.load("nothing")


@pytest.mark.parametrize("run", sorted(p.name for p in records.RESULTS.iterdir() if p.is_dir()))
def test_what_is_kept_can_be_kept_again_without_a_change(run, tmp_path):
    held = copy.deepcopy(records.load(run))
    days = {
        name: (x.pop("date"), x.pop("commit"))
        for name, x in held.items()
        if isinstance(x, dict) and "rows" in x and "table" in x
    }
    for name, x in held.items():
        day, commit = days.get(name, ("", ""))
        records.record({name: x}, run, tmp_path, day, commit)
    for path in sorted((records.RESULTS / run).glob("*.csv")):
        assert (tmp_path / run / path.name).read_bytes() == path.read_bytes(), path.name


def test_what_stages_repeat_of_their_table_is_kept_once(tmp_path):
    "A run writes device and versions beside each stage, and which of them differ."
    made = table(row("base"))
    made["rows"][0]["stages"] = [[dict(s, device="here", versions=VERSIONS) for s in ss] for ss in row("")["stages"]]
    assert kept(dict(table2=dict(made, mixed=[])), tmp_path)["table2"]["rows"] == [row("base")]
    with pytest.raises(AssertionError, match="several machines"):
        kept(dict(table2=dict(made, mixed=["device"])), tmp_path)
