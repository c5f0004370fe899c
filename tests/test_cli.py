"Bad input, as a person meets it: one sentence that names the culprit, a non-zero exit, finished work kept."

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from wegformer.cli import main
from wegformer.data import VOCDataset

SMALL = [
    "--preset",
    "smoke",
    "--classifier.steps",
    "1",
    "--classifier.crop-size",
    "48",
    "--classifier.resize",
    "48",
    "64",
    "--classifier.eval-long-side",
    "48",
    "--attention.long-side",
    "48",
    "--attention.no-flip",
    "--segmenter.steps",
    "1",
    "--segmenter.crop",
    "48",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory, toy_root):
    "A cache in which the whole chain has run."
    folder = tmp_path_factory.mktemp("cache")
    assert main(["evaluate", *SMALL, "--cache", str(folder)]) == 0
    return folder


def complain(capsys, args, *words):
    "The one sentence that a command ends with."
    status = main([str(a) for a in args])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2 and error.startswith("wegformer: ") and "Traceback" not in error
    for word in words:
        assert re.search(word, error), (word, error)
    return error


def broken(kind, root):
    "Break one thing of a data set; what the message must name."
    data = VOCDataset(root, "train")
    name = data.ids[2]
    if kind == "truncated photograph":
        path = root / "JPEGImages" / f"{name}.jpg"
        path.write_bytes(path.read_bytes()[:-400])
    elif kind == "no photograph":
        path = root / "JPEGImages" / f"{name}.jpg"
        path.write_bytes(b"not a picture")
    elif kind == "missing saliency map":
        path = root / "saliency" / "good" / f"{name}.png"
        path.unlink()
    elif kind == "saliency map of another size":
        path = root / "saliency" / "good" / f"{name}.png"
        Image.new("L", (7, 5)).save(path)
    elif kind == "mask of another size":
        name = VOCDataset(root, "val").ids[0]
        path = root / "SegmentationClass" / f"{name}.png"
        Image.new("P", (7, 5)).save(path)
    elif kind == "id without labels":
        path = root / "Annotations" / f"{name}.xml"
        path.unlink()
    elif kind == "unknown class":
        path = root / "Annotations" / f"{name}.xml"
        path.write_text("<annotation><object><name>unicorn</name></object></annotation>")
    elif kind == "empty split":
        path = root / "ImageSets" / "Segmentation" / "train.txt"
        path.write_text("")
    return path.name


@pytest.mark.parametrize(
    "kind",
    [
        "truncated photograph",
        "no photograph",
        "missing saliency map",
        "saliency map of another size",
        "mask of another size",
        "id without labels",
        "unknown class",
        "empty split",
    ],
)
def test_broken_data(kind, toy_copy, tmp_path, capsys):
    name = broken(kind, toy_copy)
    complain(
        capsys,
        ["evaluate", *SMALL, "--voc-root", toy_copy, "--labels.saliency", "good", "--cache", tmp_path / "cache"],
        name,
    )
    assert not list(tmp_path.rglob("*.tmp"))


def test_finished_stages_are_kept_and_used_after_the_repair(toy_copy, tmp_path, capsys):
    args = ["evaluate", *SMALL, "--voc-root", toy_copy, "--labels.saliency", "good", "--cache", tmp_path / "cache"]
    path = toy_copy / "saliency" / "good" / f"{VOCDataset(toy_copy, 'train').ids[2]}.png"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])  # its header is sound, so a glance before the training finds nothing
    complain(capsys, args, path.name, "cannot be read")
    done = {p.parent.name: p.stat().st_mtime_ns for p in (tmp_path / "cache").glob("*/done.json")}
    assert {name.split("-")[0] for name in done} == {"classifier", "attention"}
    path.write_bytes(good)
    assert main([str(a) for a in args]) == 0
    assert all((tmp_path / "cache" / name / "done.json").stat().st_mtime_ns == stamp for name, stamp in done.items())


def test_full_disk(tmp_path, cache, capsys, monkeypatch):
    "Any write of the labels may fail: it is named, nothing half-written stays, the rest is kept, a rerun ends well."
    import wegformer.storage

    folder = Path(shutil.copytree(cache, tmp_path / "cache"))
    real = wegformer.storage.os.replace

    def full(source, target):
        if "labels-" in str(target) and len(list(Path(target).parent.glob("*.png"))) >= 3:
            raise OSError(28, "No space left on device")
        return real(source, target)

    args = ["pseudo-labels", *SMALL, "--labels.rule.fg-thr", "0.45", "--cache", folder]
    with monkeypatch.context() as patch:
        patch.setattr(wegformer.storage.os, "replace", full)
        complain(capsys, args, r"File .*\.png could not be written: No space left on device")
    half = [p for p in folder.glob("labels-*") if not (p / "done.json").exists()]
    assert len(half) == 1 and len(list(half[0].iterdir())) == 3 and not list(folder.rglob("*.tmp"))
    assert main([str(a) for a in args]) == 0 and (half[0] / "done.json").exists()


def test_checkpoint_of_another_model(cache, tmp_path, capsys, toy_root):
    image = next((toy_root / "JPEGImages").iterdir())
    classifier, segmenter = (next(cache.glob(f"{n}-*/model.safetensors")) for n in ("classifier", "segmenter"))
    complain(capsys, ["predict", image, "--segmenter", classifier, *SMALL, "--out", tmp_path], "model.safetensors")
    complain(
        capsys, ["explain", image, "--classifier", segmenter, *SMALL, "--out", tmp_path / "x.png"], "model.safetensors"
    )
    complain(
        capsys,
        ["train-classifier", *SMALL, "--classifier.weights", segmenter, "--cache", tmp_path],
        "model.safetensors belong to another model",
    )
    complain(capsys, ["predict", image, "--segmenter", tmp_path / "gone.safetensors", *SMALL], "gone.safetensors")
    assert not list(tmp_path.glob("*.png"))


def test_wrong_options(cache, tmp_path, capsys):
    complain(capsys, ["evaluate", *SMALL, "--voc-root", tmp_path / "nowhere"], "nowhere is not a VOC folder")
    complain(
        capsys, ["pseudo-labels", *SMALL, "--labels.saliency", "nobody", "--cache", cache], "Saliency set 'nobody'"
    )
    complain(
        capsys,
        ["train-classifier", *SMALL, "--classifier.model", "vit_hug_patch16", "--cache", tmp_path],
        "vit_hug_patch16",
    )
    complain(
        capsys, ["reproduce", "table9", "--preset", "smoke", "--out", tmp_path], "'table9'; expected one of: table2"
    )
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--preset", "smoke", "--classifier.stepz", "3"])
    assert stop.value.code != 0 and "stepz" in capsys.readouterr().err


def test_predict_and_explain(cache, tmp_path, capsys, toy_root):
    images = sorted((toy_root / "JPEGImages").iterdir())[:2]
    assert main(["predict", *map(str, images), *SMALL, "--cache", str(cache), "--out", str(tmp_path)]) == 0
    for path in images:
        assert (
            Image.open(tmp_path / f"{path.stem}.png").size
            == Image.open(path).size
            == Image.open(tmp_path / f"{path.stem}_overlay.png").size
        )
    classes = VOCDataset(toy_root, "train").classes
    assert (
        main(
            [
                "explain",
                str(images[0]),
                *SMALL,
                "--cache",
                str(cache),
                "--out",
                str(tmp_path / "e.png"),
                "--classes",
                classes[1],
                classes[2],
            ]
        )
        == 0
    )
    assert f"{classes[1]}, {classes[2]}" in capsys.readouterr().out and Image.open(tmp_path / "e.png").size[0] > 300
    complain(
        capsys, ["explain", images[0], *SMALL, "--cache", cache, "--classes", "unicorn"], "unknown class 'unicorn'"
    )
    (tmp_path / "bad.jpg").write_bytes(b"no")
    both = [images[0], tmp_path / "bad.jpg", *SMALL, "--cache", cache, "--out", tmp_path / "more"]
    assert main(["predict", *map(str, both)]) == 1 and "bad.jpg cannot be read" in capsys.readouterr().err
    assert (tmp_path / "more" / f"{images[0].stem}.png").is_file()
    complain(capsys, ["predict", tmp_path / "bad.jpg", *SMALL, "--cache", cache], "bad.jpg cannot be read")


def test_every_command_ends_with_a_summary(cache, capsys, toy_root):
    for command, words in [
        ("train-classifier", "mAP on val"),
        ("attention", "attention maps of 24 images"),
        ("pseudo-labels", "pseudo labels mIoU"),
        ("train-segmenter", "loss"),
        ("evaluate", "mIoU"),
    ]:
        assert main([command, *SMALL, "--cache", str(cache)]) == 0
        assert words in capsys.readouterr().out.strip().splitlines()[-1]


def test_evaluate_a_folder_and_export(cache, tmp_path, capsys):
    predictions = next(cache.glob("evaluation-*/predictions"))
    assert (
        main(["evaluate", *SMALL, "--predictions", str(predictions), "--export", str(tmp_path / "server.tar.gz")]) == 0
    )
    assert (tmp_path / "server.tar.gz").stat().st_size > 0
    moved = Path(shutil.copytree(predictions, tmp_path / "p"))
    victim = next(moved.iterdir())
    victim.unlink()
    complain(capsys, ["evaluate", *SMALL, "--predictions", moved], victim.name)


def test_check_tells_what_is_missing(toy_copy, capsys):
    assert main(["check", "--voc-root", str(toy_copy)]) == 0
    assert "ready to run" in capsys.readouterr().out
    shutil.rmtree(toy_copy / "saliency")  # a folder of one's own does without
    assert main(["check", "--voc-root", str(toy_copy)]) == 0
    assert "so labels are made without" in capsys.readouterr().out
    (toy_copy / "classes.txt").unlink()  # VOC does not
    assert main(["check", "--voc-root", str(toy_copy)]) == 1
    assert "NSROM" in capsys.readouterr().out


def test_help_reads_well(capsys):
    for args in ([], ["train-classifier"], ["reproduce"]):
        with pytest.raises(SystemExit) as stop:
            main([*args, "--help"])
        assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--segmenter.steps" in text and "--voc-root" in text and "--rule" in text
    with pytest.raises(SystemExit):
        main(["evaluate", "--preset", "voc", "--help"])
    assert "deit_base_patch16_224" in capsys.readouterr().out  # the help shows the preset's own defaults
