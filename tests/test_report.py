import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from wegformer.data import InputError
from wegformer.records import Work, paper_order, read_captions, read_runs, run_names
from wegformer.report import write_report
from wegformer.reproduce import notebook_names

NAMES = sorted(notebook_names(), key=paper_order)

PNG = b"\x89PNG\r\n\x1a\n" + b"picture"
EVIL = "<script>alert('x')</script>"


def stage(name, key, seconds=10.0, peak=1.0):
    return dict(stage=name, folder=f"{name}-{key:012x}", seconds=seconds, peak_gib=peak)


def row(name, miou=None, paper=None, single=None, **more):
    "A row that worked, as run_row makes it."
    single = [miou] if single is None else single
    scores = [dict(labels={}, evaluation=dict(miou=m, iou={"background": 90.0, "cat": m, "dog": None})) for m in single]
    return (
        dict(
            name=name,
            miou=miou,
            std=1.0 if len(single) > 1 else None,
            seeds=list(range(len(single))),
            pseudo_label_miou=40.04,
            paper=paper,
            note="",
            status="ok",
            error=None,
            config={"labels.rule.epom": "EPOM" in name, "classifier.steps": 10, "seed": 0},
            measures={},
            stages=[],
            metrics=scores,
        )
        | more
    )


def write_run(folder, rows, name="table2", **more):
    folder.mkdir(parents=True, exist_ok=True)
    table = (
        dict(
            table=name,
            title="What each component adds",
            preset="toy",
            rows=rows,
            versions={"torch": "2.14.1"},
            device="a CPU, 2 threads",
        )
        | more
    )
    (folder / f"{name}.json").write_text(json.dumps(table))
    return folder


class Page(HTMLParser):
    "The page's tables as lists of rows of cell texts, its text without the style; it must nest properly."

    VOID = {"meta", "img", "br", "wbr", "path", "rect"}

    def __init__(self, path):
        super().__init__()
        self.source, self.open, self.tables, self.kinds, self.words = path.read_text(encoding="utf-8"), [], [], [], []
        self.feed(self.source)
        assert not self.open
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attributes):
        assert tag not in ("script", "link", "iframe")
        if tag == "table":
            self.kinds.append(dict(attributes).get("class"))
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
            if {"td", "th"} & set(self.open):
                self.tables[-1][-1][-1] = " ".join((self.tables[-1][-1][-1] + " " + data).split())

    def find(self, kind):
        return [table for table, k in zip(self.tables, self.kinds) if k is not None and kind in k.split()]


def report(tmp_path, *runs):
    return Page(write_report(runs, tmp_path / "out" / "report.html"))


def test_a_table_with_its_numbers(tmp_path):
    run = write_run(
        tmp_path / "run",
        [
            row("base", 50.0, 59.5),
            row("+ EPOM*", 55.04, 54.0, measures={"heat maps, train": [33.33]}, note="set 'good'"),
        ],
    )
    page = report(tmp_path, run)
    head, base, epom = page.find("rows")[0]
    assert head == [
        "row",
        "paper",
        "mIoU, val",
        "",
        "pseudo labels, train",
        "heat maps, train",
        "Δ paper",
        "Δ first",
        "status",
    ]
    assert base == ["base", "59.5", "50.0", "", "40.0", "", "−9.5", "", "ok"]
    assert epom == ["+ EPOM* set 'good'", "54.0", "55.0", "", "40.0", "33.3", "+1.0", "+5.0", "ok"]
    assert page.find("summary")[0][1] == [
        "Table 2: What each component adds",
        "run",
        "toy",
        "0",
        "a CPU, 2 threads",
        "2",
    ]
    assert (
        "for orientation only" in page.text
        and "2 rows: 2 ok." in page.text
        and "first row that worked, “base”" in page.text
    )
    classes, config, versions = page.find("matrix")
    assert classes == [
        ["", "base", "+ EPOM*"],
        ["background", "90.0", "90.0"],
        ["cat", "50.0", "55.0"],
        ["dog", "", ""],
    ]
    assert config == [["", "labels. rule. epom"], ["base", "false"], ["+ EPOM*", "true"]] and "steps 10" in page.text
    assert versions == [["", "run"], ["device", "a CPU, 2 threads"], ["torch", "2.14.1"]]


def test_seeds_are_listed_with_mean_and_spread(tmp_path):
    three = row("base", 50.0, 59.5, single=[49.0, 50.0, 51.0], measures={"heat maps": [30.0, 32.0, 34.0]})
    cut = row(
        "+ EPOM*",
        None,
        60.0,
        single=[52.0],
        seeds=[0, 1, 2],
        status="failed",
        error="RuntimeError: out of memory",
        pseudo_label_miou=None,
    )
    page = report(tmp_path, write_run(tmp_path / "run", [three, cut]))
    head, base, epom, error = page.find("rows")[0]
    assert head[2:5] == ["mIoU, val", "", "seeds 0 · 1 · 2"]
    assert base[2:] == ["50.0 ± 1.0", "", "49.0 · 50.0 · 51.0", "40.0", "32.0 ± 2.0", "−9.5", "ok"]
    assert epom[2:] == ["", "", "52.0", "", "", "", "failed"] and error == [
        "RuntimeError: out of memory"
    ]  # what finished is shown, no mean is made of it
    assert page.find("matrix")[0][2] == ["cat", "50.0", "52.0"] and "seeds 0, 1, 2" in page.text


def test_failed_skipped_and_quoted_rows(tmp_path):
    rows = [
        dict(name="NSROM", status="quoted", miou=None, paper=68.3, note="ResNet-101", seeds=[]),
        row("base", 50.0, 59.5),
        dict(
            name="+ Sal",
            status="failed",
            paper=70.2,
            error="InputError: x.png does not exist.",
            traceback="Traceback: line 1",
        ),
        dict(name="+ Sal (NSROM)", status="skipped", paper=68.9, note="there is no set", error="there is no set"),
    ]
    page = report(tmp_path, write_run(tmp_path / "run", rows))
    head, quoted, base, failed, error, skipped, reason = page.find("rows")[0]
    assert quoted == ["NSROM ResNet-101", "68.3", "", "", "", "", "quoted"] and "as the paper prints them" in page.text
    assert failed[-1] == "failed" and error == ["InputError: x.png does not exist. traceback Traceback: line 1"]
    assert skipped[0] == "+ Sal (NSROM)" and skipped[-1] == "skipped" and reason == ["there is no set"]  # said once
    assert page.find("summary")[0][0][5:] == ["ok", "failed", "skipped", "quoted"] and page.find("summary")[0][1][
        5:
    ] == ["1", "1", "1", "1"]
    assert "4 rows: 1 ok, 1 failed, 1 skipped, 1 quoted." in page.text


def test_nothing_worked(tmp_path):
    page = report(tmp_path, write_run(tmp_path / "run", [dict(name="base", status="failed", error="no")], versions={}))
    assert page.find("rows")[0] == [["row", "status"], ["base", "failed"], ["no"]]
    report(tmp_path, write_run(tmp_path / "empty", []))


def test_runs_stand_beside_each_other(tmp_path):
    one = write_run(tmp_path / "a" / "toy", [row("base", 50.0, 59.5), row("+ EPOM*", 55.0, 60.0)])
    two = write_run(
        tmp_path / "b" / "toy",
        [row("extra", 20.0), row("base", 52.0, 59.5, config={"labels.rule.epom": False, "classifier.steps": 20})],
        preset="voc",
    )
    write_run(two, [row("DTD", None)], name="figure4", title="")
    page = report(tmp_path, one, two)
    table, figure = page.find("rows")
    assert table[0] == ["", "a/toy", "b/toy"] and [line[0] for line in table[2:]] == ["base", "+ EPOM*", "extra"]
    assert table[2] == ["base", "59.5", "50.0", "", "40.0", "−9.5", "", "ok", "52.0", "", "40.0", "−7.5", "+32.0", "ok"]
    assert table[3] == ["+ EPOM*", "60.0", "55.0", "", "40.0", "−5.0", "+5.0", "ok", "", "", "", "", "", ""]
    assert table[4] == ["extra", "", "", "", "", "", "", "", "20.0", "", "40.0", "", "", "ok"]
    assert figure == [["row", "pseudo labels, train", "status"], ["DTD", "40.0", "ok"]]
    assert [line[:3] for line in page.find("summary")[0][1:]] == [
        ["Table 2: What each component adds", "a/toy", "toy"],
        ["Table 2: What each component adds", "b/toy", "voc"],
        ["Figure 4", "b/toy", "toy"],
    ]
    assert "What differs between the rows of a/toy" in page.text and "“base” or “extra”" in page.text


def test_what_differs_between_runs_and_what_all_share(tmp_path):
    config = {"labels.rule.epom": True, "classifier.steps": 10, "seed": 0, "rounds": 1}
    one = write_run(
        tmp_path / "one",
        [
            row("x", 1.0, config=config),
            row("y", 1.0, config=config | {"labels.rule.epom": False}),
            row("z", status="skipped", config=None),
        ],
    )
    two = write_run(tmp_path / "two", [row("x", 1.0, config=config | {"classifier.steps": 20, "new": [1, None]})])
    matrices = report(tmp_path, one, two).find("matrix")
    assert [["", "one", "two"], ["classifier.steps", "10", "20"], ["new", "–", "[1, null]"]] in matrices
    assert [["", "labels. rule. epom"], ["x", "true"], ["y", "false"]] in matrices
    assert not any(
        "rounds" in str(m) or "seed" in str(m) for m in matrices
    )  # shared by all; seeds are listed elsewhere


def test_paper_figures_that_differ_are_both_shown(tmp_path):
    page = report(
        tmp_path, write_run(tmp_path / "one", [row("x", 1.0, 59.5)]), write_run(tmp_path / "two", [row("x", 1.0, 60.0)])
    )
    assert page.find("rows")[0][2][1] == "59.5 / 60.0"


def test_rows_of_the_same_name_stay_apart(tmp_path):
    page = report(tmp_path, write_run(tmp_path / "run", [row("x", 1.0), row("x", 2.0)]))
    assert [line[:2] for line in page.find("rows")[0][1:]] == [["x", "1.0"], ["x", "2.0"]]


def test_shared_stages_are_counted_once(tmp_path):
    classifier, again = stage("classifier", 1, 100.0, 2.5), stage("classifier", 1, 110.0)
    rows = [row(name, 1.0, stages=[[classifier, stage("labels", k, 5.0)]]) for k, name in enumerate("abc")]
    run = write_run(tmp_path / "one", rows)
    write_run(run, [row("blocks", 1.0, stages=[[classifier, stage("labels", 9, 7.0)]])], name="table3")
    page = report(tmp_path, run)
    assert page.find("costs")[0][1:] == [
        ["classifier", "1", "100.0 s", "2.5"],
        ["labels", "3", "15.0 s", "1.0"],
        ["sum", "4", "115.0 s", "2.5"],
    ]
    assert page.find("costs")[1][1] == ["classifier-000000000001", "3", "100.0", "2.5"]
    assert [line[-1] for line in page.find("summary")[0][1:]] == ["115.0 s", "107.0 s"]
    assert (
        "The 5 stages behind them took 2.0 min (what rows or tables share is counted once), "
        "with a peak memory of 2.5 GiB." in page.text
    )  # 122 s
    two = write_run(tmp_path / "two", [row("a", 1.0, stages=[[again]])])  # made anew, elsewhere: that is other work
    assert "The 6 stages behind them took 3.9 min" in report(tmp_path, run, two).text


def test_an_older_file(tmp_path):
    "No title, no measures, no notes; stages as names of folders."
    old = {
        key: value for key, value in row("base", 50.0, 59.5).items() if key not in ("measures", "note", "std", "seeds")
    }
    old["stages"] = [["labels-0123456789ab", "segmenter-b179ccd7bafd"]]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "table2.json").write_text(json.dumps(dict(table="table2", rows=[old])))
    page = report(tmp_path, tmp_path / "run")
    assert page.find("summary")[0][1] == ["Table 2", "run", "", "", "", "1"] and "took" not in page.text
    assert page.find("costs")[1][1:] == [["labels-0123456789ab", "1", "", ""], ["segmenter-b179ccd7bafd", "1", "", ""]]
    new = write_run(tmp_path / "new", [row("base", 1.0, stages=[[stage("labels", 1)]])])
    assert (
        "The 3 stages behind them took 10.0 s as far as it was recorded" in report(tmp_path, tmp_path / "run", new).text
    )


def test_everything_is_escaped(tmp_path):
    evil = row(
        EVIL,
        50.0,
        note=EVIL,
        error=EVIL,
        status=EVIL,
        traceback=EVIL,
        measures={EVIL: [1.0]},
        config={EVIL: EVIL, "a." + EVIL: EVIL},
        stages=[[dict(stage=EVIL, folder=EVIL, seconds=1.0, peak_gib=1.0)]],
    )
    evil["metrics"][0]["evaluation"]["iou"][EVIL] = 1.0
    run = write_run(
        tmp_path / "<b>", [evil, row('">', 1.0)], title=EVIL, preset=EVIL, device=EVIL, versions={EVIL: EVIL}
    )
    (run / 'table2_<b>".png').write_bytes(PNG)
    page = report(tmp_path, run)  # Page refuses a script and wrong nesting
    assert page.text.count(EVIL) >= 15 and "<b>" not in page.source


def test_pictures_lie_in_the_page_with_their_captions(tmp_path):
    run = write_run(tmp_path / "run", [row("base", 50.0)])
    for name in ("table2_labels.png", "table2.png", "table2_more_maps.png", "table3_labels.png", "table2_labels.pdf"):
        (run / name).write_bytes(PNG)
    cells = [
        ("code", 'experiment.save(label_gallery(experiment, results), "labels");'),
        ("markdown", ["*Labels that each row\n", "made.*\n", "\nMore."]),
        ("code", "experiment.save(fig);"),
        ("markdown", "No caption."),
        ("code", "%broken"),
        ("markdown", "*not a figure's*"),
    ]
    notebook = dict(cells=[dict(cell_type=kind, source=source) for kind, source in cells[:4]])
    (run / "table2.ipynb").write_text(json.dumps(notebook))
    page = report(tmp_path, run)
    assert re.findall(r"<figcaption>(.*?)</figcaption>", page.source) == [
        "Table 2",
        "Labels that each row made.",
        "Table 2: more maps",
    ]
    assert page.source.count('src="data:image/png;base64,iVBORw0KGgpwaWN0dXJl"') == 3 and not re.search(
        r"(src|href)=\"(?!data:|#)", page.source
    )
    for broken in (
        "{",
        "[]",
        json.dumps(dict(cells=[dict(cell_type=k, source=s) for k, s in cells])),
    ):  # a notebook only adds: a broken one takes nothing away
        (run / "table2.ipynb").write_text(broken)
        assert read_captions(run / "table2.ipynb") == {}
        report(tmp_path, run)
    (run / "table2_bad.png").write_bytes(b"GIF89a")
    with pytest.raises(InputError, match="table2_bad.png is not a PNG"):
        report(tmp_path, run)


def test_names_of_runs(tmp_path):
    assert run_names(["x/a", "x/b"]) == ["a", "b"] and run_names(["x/a/t", "y/a/t", "y/b/t"]) == [
        "x/a/t",
        "y/a/t",
        "y/b/t",
    ]
    assert run_names([tmp_path / "a" / ".." / "b"]) == ["b"] and run_names(["x/toy", "x"])[0] == "toy"
    with pytest.raises(InputError, match="is named twice"):
        run_names([tmp_path / "a", tmp_path / "b" / ".." / "a"])


ROWS = [
    '"miou": "high"',
    '"miou": [1]',
    '"measures": {"m": 3}',
    '"measures": [1]',
    '"stages": [[{"stage": "labels"}]]',
    '"stages": [3]',
    '"metrics": [3]',
    '"metrics": [{"evaluation": {"miou": "x"}}]',
    '"config": [1]',
    '"seeds": 3',
    '"note": 3',
    '"error": {}, "traceback": 5',
]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "\udcff",
        "[]",
        "null",
        "3",
        "{}",
        '{"rows": 3}',
        '{"rows": [3]}',
        '{"rows": [{"name": "x"}]}',
        '{"rows": [{"status": "ok"}]}',
        '{"rows": [], "versions": [1]}',
        '{"rows": [], "title": 3}',
        *('{"rows": [{"name": "x", "status": "ok", ' + part + "}]}" for part in ROWS),
    ],
)
def test_malformed_files_are_named(tmp_path, content):
    run = write_run(tmp_path / "run", [])
    (run / "table2.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(
        InputError, match=r"run.table2\.json (cannot be read as JSON|is not as wegformer reproduce writes it)"
    ):
        write_report([run], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_wrong_runs(tmp_path):
    with pytest.raises(InputError, match="No runs were named"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(InputError, match="nowhere is not a folder; expected one with some of table1.json"):
        write_report([tmp_path / "nowhere"], tmp_path / "report.html")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "other.json").write_text("{}")
    with pytest.raises(InputError, match="empty holds none of table1.json, .*sensitivity.json"):
        write_report([write_run(tmp_path / "run", []), tmp_path / "empty"], tmp_path / "report.html")
    with pytest.raises(InputError, match="report.html is a folder; expected a file to write"):
        (tmp_path / "report.html").mkdir()
        write_report([tmp_path / "run"], tmp_path / "report.html")


def test_sections_follow_the_paper_and_long_tables_are_folded(tmp_path):
    run = tmp_path / "run"
    for name in reversed(NAMES):
        write_run(
            run, [row(f"{name} {k}", 1.0) for k in range(61 if name == "sensitivity" else 2)], name=name, title=""
        )
    page = report(tmp_path, run)
    assert (
        re.findall(r'<section id="(.*?)">', page.source) == list(NAMES)
        and page.source.count("<summary>61 rows</summary>") == 1
    )
    assert list(read_runs([run])) == list(NAMES)
    assert write_report([run], run / "report.html").read_text() == write_report([run], run / "again.html").read_text()


def test_work_is_the_same_when_all_of_it_is():
    assert Work("labels", "labels-1", 2.0) == Work("labels", "labels-1", 2.0) != Work("labels", "labels-1", 3.0)


def test_an_installed_package_has_its_templates(tmp_path):
    "The package as a wheel would hold it, without a checkout around it, writes the same page."
    root = Path(__file__).parents[1]
    for name in ("setup.py", "settings.ini", "pyproject.toml", "README.md"):
        shutil.copy(root / name, tmp_path)
    shutil.copytree(root / "wegformer", tmp_path / "wegformer", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", "installed"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    shutil.rmtree(tmp_path / "wegformer")
    run = write_run(tmp_path / "run", [row("base", 50.0)])
    code = "import sys, wegformer.report as r; print(r.__file__); r.write_report([sys.argv[1]], sys.argv[2])"
    call = [sys.executable, "-c", code, str(run), str(tmp_path / "there.html")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(call, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.startswith(str(tmp_path / "installed"))
    assert (tmp_path / "there.html").read_text() == write_report([run], tmp_path / "here.html").read_text()
