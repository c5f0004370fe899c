"Whatever is typed: one line that names the option, or the work is done; nothing that is read is written over."

import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import nbformat
import pytest
import torch
from matplotlib import pyplot as plt

from wegformer.attention import METHODS
from wegformer.cli import main
from wegformer.config import Config, flatten, override, preset
from wegformer.data import InputError, VOCDataset
from wegformer.evaluation import Evaluation, show_confusion
from wegformer.exits import ends_in_a_line
from wegformer.experiment import class_table, format_table
from wegformer.figures import class_legend, show_bars, show_grid
from wegformer.options import absolute_paths, refuse_overwrite, short_cause
from wegformer.report import write_report
from wegformer.reproduce import NotebookFailed, reproduce
from wegformer.training import read_state

BAD = """
evaluate --classifier.lr nan | classifier.lr is nan
evaluate --classifier.lr inf | classifier.lr is inf
evaluate --classifier.lr -1 | classifier.lr is -1.0; expected more than 0
evaluate --classifier.weight-decay -1 | classifier.weight_decay is -1.0
evaluate --classifier.steps -1 | classifier.steps is -1; expected at least 0
evaluate --classifier.batch-size 0 | classifier.batch_size is 0
evaluate --classifier.crop-size 3 | classifier.crop_size is 3; expected a multiple of 8, the patch of vit_toy_patch8_96
evaluate --classifier.crop-size 0 | classifier.crop_size is 0; expected at least 1
evaluate --preset voc --classifier.crop-size 225 | classifier.crop_size is 225; expected a multiple of 16
evaluate --classifier.resize 512 256 | classifier.resize is .512, 256.; expected the lower before the higher
evaluate --classifier.resize 0 256 | classifier.resize is
evaluate --classifier.flip 1.5 | classifier.flip is 1.5; expected from 0 to 1
evaluate --classifier.jitter -1 0 0 0 | classifier.jitter is
evaluate --classifier.jitter 0 0 0 0.9 | classifier.jitter is .* hue
evaluate --classifier.eval-long-side 0 | classifier.eval_long_side is 0
evaluate --classifier.eval-every 0 | classifier.eval_every is 0
evaluate --classifier.schedule cosin | classifier.schedule is 'cosin'; expected one of: constant, poly, cosine
evaluate --classifier.output-stride 0 | classifier.output_stride is 0
evaluate --classifier.model nosuch | 'nosuch' is not known to timm
evaluate --classifier.weights {tmp}/none.pth | none.pth do not exist
evaluate --classifier.weights {file} | a.txt cannot be read as tensors
evaluate --classifier.model '' | --classifier.model is empty
evaluate --attention.method lrp | attention.method is 'lrp'; expected one of: cam, grad_cam, attention, rollout, dtd
evaluate --attention.long-side 0 | attention.long_side is 0
evaluate --attention.start-block -1 | attention.start_block is -1
evaluate --attention.start-block 12 | attention explains from block 12; expected one of 0 to 11
evaluate --attention.blocks 3 12 | attention explains from block 12
evaluate --attention.blocks 3 3 | attention.blocks is .3, 3.; expected each only once
evaluate --attention.scales | attention.scales is
evaluate --attention.scales 0 | attention.scales is
evaluate --attention.scales nan | attention.scales is .nan
evaluate --labels.threshold 300 | labels.threshold is 300; expected from 0 to 255
evaluate --labels.block 3 | labels.block is 3; expected one of attention.blocks
evaluate --labels.mine-blocks 1 1 | labels.mine_blocks is
evaluate --labels.saliency nobody | 'nobody' is not known
evaluate --labels.rule.fg-thr 7 | labels.rule.fg_thr is 7.0
evaluate --labels.rule.erase-rate 0 | labels.rule.erase_rate is 0.0
evaluate --segmenter.lr nan | segmenter.lr is nan
evaluate --segmenter.crop 0 | segmenter.crop is 0
evaluate --segmenter.batch-size 1 | segmenter.batch_size is 1
evaluate --segmenter.momentum 2 | segmenter.momentum is 2.0
evaluate --segmenter.dropout 1 | segmenter.dropout is 1.0
evaluate --segmenter.output-stride 7 | segmenter.output_stride is 7
evaluate --segmenter.backbone nosuch | Backbone 'nosuch'
evaluate --segmenter.scale-range 2 1 | segmenter.scale_range is
evaluate --segmenter.test-scales | segmenter.test_scales is
evaluate --segmenter.atrous-rates 1 | segmenter.atrous_rates is
evaluate --segmenter.weights {file} | a.txt cannot be read as tensors
evaluate --pretrain.images 0 | pretrain.images is 0
evaluate --pretrain.mask-steps -1 | pretrain.mask_steps is -1
evaluate --rounds 0 | rounds is 0
evaluate --rounds 999 | rounds is 999
evaluate --seed -1 | seed is -1
evaluate --seed 99999999999999999999999 | seed is 9
evaluate --workers -1 | workers is -1
evaluate --workers 100000 | workers is 100000
evaluate --limit-train 0 | limit_train is 0
evaluate --limit-train -2 | limit_train is -2
evaluate --limit-val 0 | limit_val is 0
evaluate --toy-train 0 | toy_train is 0
evaluate --toy-seed -1 | toy_seed is -1
evaluate --voc-root {tmp}/nowhere | nowhere is not a VOC folder
evaluate --voc-root {file} | a.txt is not a VOC folder
evaluate --voc-root= | --voc-root is empty
evaluate --train-split nosuch | Split 'nosuch' not found
evaluate --label-source npy | labels='npy'
evaluate --saliency foo | saliency is 'foo'; expected NAME=FOLDER
evaluate --saliency foo={tmp}/nowhere | saliency names foo=.*nowhere
evaluate --saliency a={tmp} a={tmp}/b | saliency is .* names that differ
evaluate --cache /proc/x | cache is '/proc/x', which cannot be made
evaluate --cache {file} | cache is .*a.txt
evaluate --cache '' | --cache is empty
evaluate --export x.zip | export is 'x.zip'; expected a name that ends in one of: .tar.gz
evaluate --predictions {tmp}/nowhere | nowhere/.*png does not exist
predict | No images were named
predict {empty} | empty holds no photographs
predict {image} --tile 100 | tile is 100; expected at least 256
predict {image} --overlap 256 --tile 512 | overlap is 256; expected at most a third of the tile of 512
predict {tmp}/no.jpg | no.jpg does not exist
predict {file} | a.txt cannot be read as a picture
predict {image} {image} | would both be written to
predict {image} --out {images} | holds the photographs themselves
predict {image} --out {root}/SegmentationClass | SegmentationClass belongs to a data set
predict {image} --out {file} | a.txt is a file; expected a folder
predict {image} --segmenter {empty} | empty are a folder
explain | No image was named
explain {empty} | empty is a folder
explain {image} --out e.xyz | out is 'e.xyz'; expected a name that ends in one of: .png, .pdf
explain {image} --out {image} | is read
explain {image} --classes nosuch | unknown class 'nosuch'
explain {image} --saliency-map {tmp}/no.png | no.png does not exist
explain {image} --classifier {file} | a.txt cannot be read as tensors
reproduce table9 | 'table9'; expected one of
reproduce table3 --seeds | seeds is
reproduce table3 --seeds 0 0 | seeds is .0, 0.; expected each only once
reproduce table3 --seeds -1 | seeds is .-1
reproduce table3 --out {file} | a.txt is a file
reproduce table3 --out {tables} | would be written over .*table3.ipynb, which is read
reproduce table3 --cache /proc/x | cache is '/proc/x'
reproduce table3 --classifier.crop-size 60 | classifier.crop_size is 60
reproduce table3 --voc-root {tmp}/nowhere | nowhere is not a VOC folder
reproduce table3 --parameters seeds=[0.5] | 'seeds' .*0.5.*; expected list.int
reproduce table3 --parameters seeds=[] | seeds is
reproduce table3 --parameters seeds=[0,0] | seeds is
reproduce table3 --parameters seeds=[0,True] | seeds is
reproduce table3 --parameters seeds=5 | 'seeds' .* is 5
reproduce table3 --parameters 'blocks=[3,"a"]' | 'blocks'
reproduce table3 --parameters cache= | 'cache='
reproduce table3 --parameters =3 | '=3'
reproduce table3 --parameters preset=big | Preset 'big'
reproduce table3 --parameters workers=-1 | workers is -1
reproduce table3 --parameters 'saliency=["x"]' | saliency is 'x'
reproduce table3 --parameters out=/tmp | out=/tmp; expected the option --out
reproduce table3 --parameters 'config={{"a": 1}}' | 'a' is not known
reproduce table3 --parameters 'config={{"segmenter.lr": -1}}' | segmenter.lr is -1
reproduce table3 --parameters 'config={{"classifier.lr": "x"}}' | classifier.lr is 'x'
report | No run was named
report {tmp}/nowhere | nowhere is not a folder
report {empty} --out x.pdf | out is 'x.pdf'
toy --out {tmp}/t --train 0 | train=0
toy --out {tmp}/t --seed -1 | seed=-1
toy --out {file} | a.txt already holds something else
toy --out {empty}/.. | already holds something else
toy --out /proc/x | /proc/x
saliency | No images were named
saliency {empty} | empty holds no pictures
saliency {image} --out {images} | holds the photographs themselves
distil | No photographs were named
distil {empty} | empty holds no photographs
distil {empty} --lr nan | lr is nan
distil {empty} --crop-size 3 | crop_size is 3; expected a multiple of 16
distil {empty} --stages | stages is
distil {empty} --workers -1 | workers is -1
initial-weights --images 0 | images is 0
initial-weights --vit.steps 1 1 0 | vit.steps is .1, 1, 0.; expected the steps of three lessons
check --voc-root {root} --saliency x | saliency is 'x'
"""
TYRO = """
evaluate --classifier.stepz 3 | stepz
evaluate --classifier.steps x | classifier.steps
evaluate --classifier.precision fp8 | classifier.precision
evaluate --attention.join mean | attention.join
evaluate --segmenter.network x | segmenter.network
evaluate --preset big | preset
evaluate --classifier.resize 3 | classifier.resize
nosuch | nosuch
toy | --out
"""
SCRIPT = "<script>alert(1)</script>"
NAMES = ("background", "$\\bad{$", "_x", "x" * 300, "猫", "", "a\nb", "$x$", r"\$a\$", SCRIPT, "a|b")


def lines(text):
    return [tuple(map(str.strip, line.rsplit(" | ", 1))) for line in text.strip().splitlines()]


@pytest.fixture
def places(toy_root, tmp_path):
    "What the placeholders of a line stand for."
    (tmp_path / "a.txt").write_text("nothing")
    (tmp_path / "empty").mkdir()
    images = toy_root / "JPEGImages"
    tables = Path(__file__).resolve().parents[1] / "nbs" / "tables"
    return dict(tmp=tmp_path, file=tmp_path / "a.txt", empty=tmp_path / "empty", root=toy_root, images=images,
                image=min(images.iterdir()), tables=tables)  # fmt: skip


def typed(line, places):
    "A command line as its words; what runs the chain does so at the smallest size, in a folder of its own."
    words = [word.format(**places) for word in shlex.split(line)]
    if words[0] in ("evaluate", "predict", "explain", "reproduce"):
        words += [] if "--preset" in words else ["--preset", "smoke"]
        words += [] if {"--cache", "--cache="} & set(words) else ["--cache", str(places["tmp"] / "cache")]
    if words[0] == "reproduce" and "--out" not in words:
        words += ["--out", str(places["tmp"] / "out")]
    return words


@pytest.mark.parametrize("line, said", lines(BAD), ids=lambda text: text[:60])
def test_one_line_that_names_the_option(line, said, places, capsys, monkeypatch):
    monkeypatch.chdir(places["tmp"])
    before = sorted(p for p in places["tmp"].rglob("*"))
    assert main(typed(line, places)) == 2
    error = capsys.readouterr().err
    told = [text for text in re.split(r"[\r\n]+", error) if "wegformer: " in text]
    assert len(told) == 1 and "Traceback" not in error and "\x1b" not in told[0]
    assert re.search(said, told[0]) and told[0].endswith(".")
    made = {p for p in places["tmp"].rglob("*") if p not in before}
    assert not [p for p in made if p.is_file() and "locks" not in p.parts]  # nothing was computed, nothing is left


@pytest.mark.parametrize("line, said", lines(TYRO), ids=lambda text: text[:60])
def test_what_the_parser_refuses(line, said, places, capsys):
    with pytest.raises(SystemExit) as stop:
        main(typed(line, places))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and "Traceback" not in error and "\x1b" not in error


def test_every_number_of_the_configuration_is_checked():
    "Not one field takes nan, a negative number, a bool for a number, or an empty text."
    for name, value in flatten(Config()).items():
        wrong = []
        if isinstance(value, bool):
            wrong = [1, "yes"]
        elif isinstance(value, int | float):
            wrong = [-1, True, float("nan"), float("inf"), "1"]
        elif isinstance(value, str):
            wrong = ["", 3]
        elif isinstance(value, tuple):
            wrong = [(float("nan"),) * max(len(value), 1), ("",), (True,)]
        for bad in wrong:
            with pytest.raises(InputError, match=re.escape(name.removeprefix("data."))):
                override(Config(), {name: bad})


def test_the_help_lists_what_can_be_chosen(capsys):
    with pytest.raises(SystemExit):
        main(["attention", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(name in text for name in METHODS) and "cosine" in text and "\x1b" not in text


def test_paths_mean_the_callers_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {"data.voc_root": "v", "data.saliency": ("drs=m",), "classifier.weights": "w.pth",
              "segmenter.weights": "s.pth"}  # fmt: skip
    moved = flatten(absolute_paths(override(preset("toy"), values)))
    assert {name: moved[name] for name in values} == {
        "data.voc_root": str(tmp_path / "v"), "data.saliency": (f"drs={tmp_path / 'm'}",),
        "classifier.weights": str(tmp_path / "w.pth"), "segmenter.weights": str(tmp_path / "s.pth")}  # fmt: skip
    assert absolute_paths(preset("toy")) == preset("toy")


def test_reproduce_passes_absolute_paths(tmp_path, monkeypatch):
    from wegformer.cli import Reproduce
    from wegformer.reproduce import notebook_path

    monkeypatch.chdir(tmp_path)
    for name in ("w.pth", "s.pth"):  # they are read before anything is made
        torch.save({"a": torch.zeros(1)}, name)
    config = override(preset("smoke"), {"classifier.weights": "w.pth"})
    command = Reproduce(config, "smoke", name="figure5", cache=Path("cache"))
    own = {"cnn_weights": "cnn.pth", "config": {"segmenter.weights": "s.pth"}}
    made = command._parameters(notebook_path("figure5"), own)
    assert made["cache"] == str(tmp_path / "cache") and made["cnn_weights"] == str(tmp_path / "cnn.pth")
    assert made["config"] == {"classifier.weights": str(tmp_path / "w.pth"),
                              "segmenter.weights": str(tmp_path / "s.pth")}  # fmt: skip


def test_outputs_are_told_apart(tmp_path):
    photograph = tmp_path / "a.png"
    photograph.write_bytes(b"x")
    os.link(photograph, tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to(photograph)
    for name in ("a.png", "b.png", "c.png", "../" + tmp_path.name + "/a.png"):
        with pytest.raises(InputError, match="which is read"):
            refuse_overwrite([(tmp_path / name, "x")], [photograph])
    with pytest.raises(InputError, match=r"1.jpg and .*1.jpg would both be written to"):
        main_args = [(tmp_path / "m.png", "a/1.jpg"), (tmp_path / "x" / ".." / "m.png", "b/1.jpg")]
        refuse_overwrite(main_args)
    refuse_overwrite([(tmp_path / "new.png", "x"), (tmp_path / "other.png", "y")], [photograph])


def test_two_photographs_of_one_name(places, capsys):
    for folder in "ab":
        (places["tmp"] / folder).mkdir()
        (places["tmp"] / folder / "1.jpg").write_bytes(places["image"].read_bytes())
    args = [str(places["tmp"] / folder / "1.jpg") for folder in "ab"]
    assert main(["predict", *args, "--preset", "smoke", "--out", str(places["tmp"] / "out")]) == 2
    assert re.search(r"a/1.jpg and .*b/1.jpg would both be written to", capsys.readouterr().err)
    assert not (places["tmp"] / "out").exists()


def test_a_report_does_not_replace_a_table(tmp_path):
    (tmp_path / "table2.json").write_text(json.dumps(dict(table="table2", rows=[dict(name="x", status="ok")])))
    (tmp_path / "table2.html").write_text("the executed notebook")
    with pytest.raises(InputError, match="table2.html would be written over"):
        write_report([tmp_path], tmp_path / "table2.html")
    write_report([tmp_path], tmp_path / "report.html")
    write_report([tmp_path], tmp_path / "report.html")  # an older report is replaced


class Loaded(HTMLParser):
    "What a page fetches or runs."

    def __init__(self, text):
        super().__init__()
        self.found = re.findall(r"@import[^;]*|url\(\s*['\"]?(?:https?:)?//[^)]*", text)
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.found += [f"on: {name}" for name in values if name.startswith("on")]
        if tag in ("script", "iframe", "object", "embed", "base"):
            self.found.append(tag)
        for name in ("src", "srcset", "data", "poster", *(["href"] if tag != "a" else [])):
            if (value := values.get(name)) and not value.startswith(("data:", "#")):
                self.found.append(f"{tag} {name}={value}")


HOSTILE = """
from IPython.display import HTML, Markdown, Javascript, display
from wegformer.experiment import class_table, format_table
name = "<script>alert(1)</script>"
row = dict(name='"><img src=x onerror=alert(1)> | a', miou=1.0, std=None, pseudo_label_miou=None, paper=None,
           status="failed", error="E: <script>alert(2)</script>\\nx | y", stages=[[dict(stage="evaluation")]])
display(HTML("<script src='https://e.org/x.js'></script><img src='https://e.org/x.png'><b onclick='a()'>kept</b>"))
display(Javascript("alert(3)"))
display(Markdown(name + " ![](https://e.org/x.png) <iframe src='https://e.org'></iframe> $x^2$"))
print(name, out, __import__("os").path.expanduser("~/x"))
display(Markdown(format_table([row], markdown=True)))
done = dict(row, status="ok", metrics=[dict(evaluation=dict(iou={name: 1.0}))])
display(Markdown(class_table([done])))
import json
with open(out + "/n.json", "w") as file:
    json.dump(dict(rows=[]), file)
"""


def notebook(path, *sources, head="out: str = '.'\ncache: str | None = None"):
    cells = [nbformat.v4.new_code_cell(head, metadata=dict(tags=["parameters"]))]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    kernel = dict(kernelspec=dict(name="python3", display_name="p", language="python"))
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def test_an_executed_notebook_tells_and_loads_nothing(tmp_path):
    book = notebook(tmp_path / "n.ipynb", HOSTILE)
    reproduce("n", tmp_path / "out", {"cache": str(tmp_path / "my cache")}, notebook=book)
    text, page = ((tmp_path / "out" / f"n.{kind}").read_text() for kind in ("ipynb", "html"))
    for place in (tmp_path, Path.home(), Path(__file__).resolve().parents[1]):
        assert str(place) not in text and str(place) not in page
    assert Loaded(page).found == [] and "kept" in page and "$x^2$" in page and "alert(1)" in page
    assert "~/x" in page and "my cache" in text
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["n.html", "n.ipynb", "n.json"]


def test_a_report_loads_nothing(tmp_path):
    row = dict(name=SCRIPT, status="failed", error='"><img src=x onerror=alert(1)>', note=SCRIPT,
               traceback=SCRIPT, config={"data.voc_root": SCRIPT})  # fmt: skip
    (tmp_path / "table2.json").write_text(json.dumps(dict(table="table2", title=SCRIPT, rows=[row])))
    page = write_report([tmp_path], tmp_path / "report.html").read_text()
    assert Loaded(page).found == [] and "&lt;script&gt;" in page


@pytest.mark.parametrize(
    "cells, said",
    [
        (["x = 1", "", "raise ValueError('\\x1b[31mred\\n\\tline. Advice.')"],
         r"failed in cell 4: ValueError: red line \(see n.failed.ipynb\)"),
        (["import os\nos._exit(1)"], "stopped in cell 3: its process ended"),
        (["import sys\nsys.exit(3)"], "failed in cell 3: SystemExit: 3"),
        (["x = 1"], "ended without writing n.json"),
    ],
    ids=["error", "death", "exit", "nothing"],
)  # fmt: skip
def test_how_a_notebook_fails(cells, said, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "n.json").write_text('{"finished": true}')
    with pytest.raises(NotebookFailed, match=said) as failed:
        reproduce("n", tmp_path / "out", {}, notebook=notebook(tmp_path / "n.ipynb", *cells))
    assert "\n" not in str(failed.value) and "\x1b" not in str(failed.value)
    kept = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert kept == ["n.failed.html", "n.failed.ipynb", "n.json"]
    assert json.loads((tmp_path / "out" / "n.json").read_text()) == {"finished": True}


def test_a_copied_table_says_its_name(tmp_path):
    book = notebook(tmp_path / "mine.ipynb", 'e = Experiment.open("table2", "A copy", "smoke")')
    with pytest.raises(InputError, match="mine.ipynb opens its Experiment as 'table2'; expected 'mine'"):
        reproduce("mine", tmp_path / "out", {}, notebook=book)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Glyph", "ignore:constrained_layout")
def test_no_name_breaks_a_figure():
    fig = show_grid([[None, None]], NAMES[1:3], NAMES[3:4])
    class_legend(fig, range(len(NAMES)), NAMES)
    assert len(fig.legends[0].get_texts()) == len(NAMES)
    count = len(NAMES)
    score = Evaluation(0.0, 0.0, 0.0, 0.0, dict(zip(NAMES, [0.0] * count)), torch.eye(count).tolist(), 1)
    figures = [fig, show_bars(NAMES, {NAMES[1]: [1.0] * count, NAMES[2]: [2.0] * count}, NAMES[1])]
    figures.append(show_confusion(score).figure)
    for fig in figures:
        for kind in ("png", "pdf", "svg"):
            fig.savefig(BytesIO(), format=kind)
    plt.close("all")


def test_names_in_tables_are_shown_letter_by_letter():
    row = dict(name="a|b\nc", miou=1.0, std=None, pseudo_label_miou=None, paper=None, status="ok", error=None)
    table = format_table([row], markdown=True).splitlines()
    assert len(table) == 3 and r"a\|b c" in table[2]
    done = dict(row, stages=[[dict(stage="evaluation")]], metrics=[dict(evaluation=dict(iou={"<b>": 2.0}))])
    assert "&lt;b&gt;" in class_table([done])


@pytest.mark.filterwarnings("ignore:Glyph")
def test_explain_writes_what_the_ending_says(toy_copy, tmp_path, capsys):
    names = (toy_copy / "classes.txt").read_text().split()
    (toy_copy / "classes.txt").write_text("\n".join(["$\\bad{$", *names[1:]]))
    for path in (toy_copy / "Annotations").iterdir():
        path.write_text(path.read_text().replace(f"<name>{names[0]}<", "<name>$\\bad{$<"))
    image = str(min((toy_copy / "JPEGImages").iterdir()))
    small = ["--preset", "smoke", "--classifier.steps", "1", "--attention.long-side", "48", "--voc-root", str(toy_copy)]
    for kind, magic in (("pdf", b"%PDF"), ("svg", b"<?xml"), ("PNG", b"\x89PNG")):
        out = tmp_path / f"e.{kind}"
        args = ["explain", image, *small, "--classes", "$\\bad{$", names[1], "--out", str(out)]
        assert main([*args, "--cache", str(tmp_path / "cache")]) == 0
        assert out.read_bytes().startswith(magic)


def test_a_loader_process_says_one_line(toy_copy, tmp_path, capfd):
    victim = toy_copy / "JPEGImages" / f"{VOCDataset(toy_copy, 'train').ids[3]}.jpg"
    victim.write_bytes(victim.read_bytes()[:300])
    args = ["train-classifier", "--preset", "smoke", "--workers", "1", "--voc-root", str(toy_copy)]
    assert main([*args, "--cache", str(tmp_path / "cache")]) == 2
    told = capfd.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("wegformer: ") or "wegformer: Image" in told
    assert victim.name in told and "Traceback" not in told


def test_checkpoints_are_refused_without_advice(tmp_path):
    class Code:
        def __reduce__(self):
            return os.system, ("echo this must not run",)

    torch.save({"model": Code()}, tmp_path / "code.pth")
    torch.save([1], tmp_path / "list.pth")
    torch.save({"a": 1}, tmp_path / "none.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "page.pth").write_bytes(b"<html>404</html>")
    for name, words in [("code", "it holds posix.system, which is no tensor"), ("list", "it holds a list"),
                        ("none", "it holds no tensors"), ("empty", "it is cut short"),
                        ("page", "it is no file of PyTorch's")]:  # fmt: skip
        with pytest.raises(InputError, match=words) as refused:
            read_state(tmp_path / f"{name}.pth")
        assert "weights_only" not in str(refused.value) and "http" not in str(refused.value)


def test_causes():
    assert short_cause("\x1b[31mIt is cut, e.g. here. Run `x` with `y=False`.\x1b[0m") == "It is cut, e.g. here"
    assert short_cause("one\n\n  two") == "one two" and short_cause(ValueError()) == "ValueError"
    assert short_cause(OSError(28, "No space left on device")) == "No space left on device"


def test_a_mistake_of_the_program_keeps_its_traceback(capsys, monkeypatch):
    def wrong():
        return {}["nothing"]

    assert ends_in_a_line(wrong) == os.EX_SOFTWARE
    (told,) = capsys.readouterr().err.strip().splitlines()
    path = Path(re.search(r"report (\S+\.txt)\.$", told)[1])
    assert "unexpected KeyError: 'nothing'" in told and 'return {}["nothing"]' in path.read_text()
    path.unlink()
    monkeypatch.setenv("WEGFORMER_DEBUG", "1")
    with pytest.raises(KeyError):
        ends_in_a_line(wrong)


# signals are heard even where pytest itself was started in the background or by nohup, which ignore some
HEARS = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "signal.signal(signal.SIGHUP, signal.SIG_DFL)"
)
COMMAND = [sys.executable, "-c", f"{HEARS}; from wegformer.cli import main; sys.exit(main())"]


def test_a_reader_that_leaves():
    line = f"{shlex.join([*COMMAND, 'reproduce', 'table3', '--help'])} | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.splitlines()[0].startswith("Table 3")
    assert done.stdout.splitlines()[-1] in ("0", "141")


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def stopped(args, begun, number, whole_group=False):
    "Send a signal once `begun()`: status, stderr, and the children that live on."
    process = subprocess.Popen([*COMMAND, *map(str, args)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True, start_new_session=True)  # fmt: skip
    while not begun() and process.poll() is None:
        time.sleep(0.1)
    children = [int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    (os.killpg if whole_group else os.kill)(process.pid, number)
    try:
        error = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    end = time.monotonic() + 15  # they notice within seconds that it is gone
    while (living := list(filter(lives, children))) and time.monotonic() < end:
        time.sleep(0.1)
    return process.returncode, error, living


@pytest.mark.parametrize("number, whole_group, workers", [
    (signal.SIGTERM, False, 1), (signal.SIGINT, True, 0), (signal.SIGHUP, False, 0)])  # fmt: skip
def test_a_signal_ends_training_in_a_line(number, whole_group, workers, tmp_path):
    args = ["train-classifier", "--preset", "smoke", "--classifier.steps", 90000, "--workers", workers]
    status, error, living = stopped(
        [*args, "--cache", tmp_path], lambda: list(tmp_path.glob("classifier-*")), number, whole_group
    )
    assert status == 128 + number and living == [] and "Traceback" not in error
    assert error.splitlines()[-1].endswith("ed; the same command goes on from here.")
    assert not list(tmp_path.rglob("*.tmp"))


def test_sigterm_ends_a_table_in_a_line(tmp_path):
    out, cache = tmp_path / "out", tmp_path / "cache"
    out.mkdir()
    (out / "table2.json").write_text("{}")  # of an earlier run
    args = ["reproduce", "table2", "--preset", "smoke", "--classifier.steps", 90000, "--cache", cache, "--out", out]
    status, error, living = stopped(args, lambda: list(cache.glob("classifier-*")), signal.SIGTERM)
    assert status == 143 and living == [] and "Traceback" not in error
    assert error.splitlines()[-1] == "wegformer: terminated; the same command goes on from here."
    assert [p.name for p in out.iterdir()] == ["table2.json"] and not list(cache.rglob("*.tmp"))


def test_dataclasses_refuse_in_python_too():
    with pytest.raises(InputError, match="classifier.lr is nan"):
        dataclasses.replace(preset("toy").classifier, lr=float("nan"))
