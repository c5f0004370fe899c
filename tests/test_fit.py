"""From a folder and a table to masks: with less than VOC has, and what is said of the result. The networks are trained
for a step or two, so that what is looked at is the way, not where it leads."""

import csv
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from wegformer.cli import commands, main
from wegformer.config import preset
from wegformer.data import VOCDataset, read_mask
from wegformer.indicators import GRADES, INDICATORS, confusions, count_classes, focus, judge, lift, measured, overlap
from wegformer.pseudo_labels import LabelRule
from wegformer.splits import Part
from wegformer.stages import read_done
from wegformer.toydrawings import SETS
from wegformer.toyvoc import ToyConfig, draw_scene
from wegformer.verdict import conclude, means, read_holdout

OPTIONS = (
    "--preset smoke --classifier.steps 2 --classifier.crop-size 32 --classifier.resize 32 48 "
    "--classifier.eval-long-side 48 --attention.long-side 48 --attention.no-flip --segmenter.steps 1 "
    "--segmenter.batch-size 2 --segmenter.crop 33 --detector none"
).split()
SMALL = ToyConfig(long_side=64, short_side=(48, 64), objects=(0.6, 0.4), visible=8)


def photographs(folder, kinds, count=12, empty=(), sub=""):
    "Draws a folder of pictures with a table; the masks, which nobody has."
    rng, masks = np.random.default_rng(0), {}
    config = SMALL if len(kinds) > 1 else ToyConfig(long_side=64, short_side=(48, 64), objects=(1.0,), visible=8)
    (folder / sub).mkdir(parents=True)
    rows = [("file", "shows")]
    for k in range(count):
        drawing = draw_scene(rng, {name: SETS["main"][name] for name in kinds}, config)
        image, mask = drawing.image, drawing.mask
        if k in empty:
            image, mask = np.full_like(image, 128), np.zeros_like(mask)
        shown = ";".join(name for c, name in enumerate(kinds, 1) if (mask == c).any())
        name = f"{sub}{k:02}"
        Image.fromarray(image).save(folder / f"{name}.png")
        masks[name] = mask
        rows.append((f"{name}.png", shown))
    with open(folder.parent / "labels.csv", "w", newline="") as handle:
        csv.writer(handle).writerows(rows)
    return masks


def fit(tmp_path, *more):
    "Runs the command on tmp_path/photographs; its status."
    args = [tmp_path / "photographs", "--labels", tmp_path / "labels.csv", "--out", tmp_path / "run"]
    return main(["fit", *map(str, args), "--cache", str(tmp_path / "stages"), *OPTIONS, *map(str, more)])


def refused(tmp_path, capsys, *more):
    "The one sentence that the command ends with."
    assert fit(tmp_path, *more) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("wegformer: ") and "Traceback" not in error
    return error


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    "A run on two classes in sub-folders, two pictures of nothing, no masks, no val list, no saliency."
    folder = tmp_path_factory.mktemp("fit")
    photographs(folder / "photographs", ("cat", "dog"), empty=(3, 8), sub="shelf/")
    assert fit(folder) == 0
    return folder


def test_every_photograph_has_a_mask_of_its_own_classes_at_its_size(brought):
    run = brought / "run"
    for split in ("train", "val"):
        voc = VOCDataset(run / "data", split)
        for i, name in enumerate(voc.ids):
            mask = read_mask(run / "masks" / f"{name}.png", voc.size(i))
            assert set(mask.unique().tolist()) <= {0, *voc.class_ids(i).tolist()}
    assert len(list((run / "masks" / "shelf").glob("*.png"))) == 12


def test_the_holdout_is_drawn_once_and_recorded(brought):
    voc = VOCDataset(brought / "run" / "data", "val")
    said = json.loads((brought / "run" / "data" / "import.json").read_text())["said"]
    assert any(re.search(rf"val: {len(voc)} of 12 photographs held out \(holdout 0.2, seed 0\)", text) for text in said)


def test_a_second_run_makes_nothing_again(brought, capsys):
    before = {p: p.stat().st_mtime_ns for p in (brought / "stages").rglob("*") if p.is_file()}
    masks = {p: p.stat().st_mtime_ns for p in (brought / "run" / "masks").rglob("*.png")}
    assert fit(brought) == 0
    assert before == {p: p.stat().st_mtime_ns for p in (brought / "stages").rglob("*") if p.is_file()}
    assert masks == {p: p.stat().st_mtime_ns for p in masks}
    assert "Of 2 classes" in capsys.readouterr().out


def test_a_changed_rule_leaves_the_classifier_and_the_maps(brought, tmp_path):
    shutil.copytree(brought / "stages", tmp_path / "stages")
    for name in ("photographs", "labels.csv"):
        (tmp_path / name).symlink_to(brought / name)
    assert fit(tmp_path, "--labels.rule.fg-thr", 0.2) == 0
    count = {name: len(list((tmp_path / "stages").glob(f"{name}-*"))) for name in ("classifier", "attention", "labels")}
    # the photographs are found through a link: they are the same files, so the same stages
    assert count == dict(classifier=1, attention=1, labels=2)


def test_a_killed_run_goes_on(tmp_path, killed_at):
    import wegformer.segmentation

    photographs(tmp_path / "photographs", ("cat", "dog"))
    with killed_at(wegformer.segmentation, "write_mask", 3):
        fit(tmp_path)
    done = {p.parent.name for p in (tmp_path / "stages").glob("*/done.json")}
    half = list((tmp_path / "stages").glob("predictions-*/*.png")) + list((tmp_path / "stages").glob("masks-*/*.png"))
    stamps = {p: p.stat().st_mtime_ns for p in half}
    assert half and any(name.startswith("segmenter-") for name in done)
    assert not (tmp_path / "run" / "report.html").exists()
    assert fit(tmp_path) == 0
    assert stamps == {p: p.stat().st_mtime_ns for p in half} and (tmp_path / "run" / "report.html").is_file()


def test_the_page_stands_alone_and_shows_every_step(brought):
    page = (brought / "run" / "report.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', page) and "http" not in page
    for words in (
        "No mask was seen",
        "none, as asked for",
        "training photographs show none of",
        "Hold-out photographs",
    ):
        assert words in page, words
    for step in ("photograph", "map: cat", "label", "network, not told the words", "mask"):
        assert f"<figcaption>{step}</figcaption>" in page


def test_the_verdict_knows_what_was_not_seen(brought):
    verdict = json.loads((brought / "run" / "verdict.json").read_text())
    evidence = verdict["evidence"]
    assert evidence["saliency"] is None and evidence["train"] + evidence["holdout"] == 12 and verdict["truth"] == {}
    for name, values in evidence["classes"].items():
        assert "lift" not in values and "trivial" not in values  # there is no saliency to compare with
        assert 0 <= values["found"] <= 100 and values["photographs"] + values["without"] == evidence["train"]
        assert verdict["classes"][name][0] in range(len(GRADES))


def test_one_class(tmp_path, capsys):
    "On every photograph: there is nothing to tell it from, and the verdict says so."
    photographs(tmp_path / "photographs", ("cat",), count=8)
    assert fit(tmp_path) == 0
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    grade, reasons = verdict["classes"]["cat"]
    assert GRADES[grade] == "do not use" and any(text.startswith("without it is 0") for text in reasons)
    values = verdict["evidence"]["classes"]["cat"]
    assert "parted" not in values and values["learnt"] is None
    assert "Of 1 class, not to be used: 1 (cat)." in capsys.readouterr().out


def test_without_a_network_the_labels_are_the_result(tmp_path, capsys):
    photographs(tmp_path / "photographs", ("cat", "dog"))
    assert fit(tmp_path, "--no-segmenter") == 0
    assert len(list((tmp_path / "run" / "labels").glob("*.png"))) == 12 and not (tmp_path / "run" / "masks").exists()
    assert not list((tmp_path / "stages").glob("segmenter-*"))
    assert "network, not told" not in (tmp_path / "run" / "report.html").read_text()
    assert "Labels of 12 photographs" in capsys.readouterr().out


def test_saliency_and_a_few_masks(tmp_path):
    "Maps that are brought are used; masks measure, and change no label."
    masks = photographs(tmp_path / "photographs", ("cat", "dog"))
    for name, mask in masks.items():
        for folder, values in (("maps", 255 * (mask > 0)), ("truth", mask)):
            (tmp_path / folder).mkdir(exist_ok=True)
            if folder == "maps" or int(name) % 2 == 0:
                Image.fromarray(values.astype(np.uint8)).save(tmp_path / folder / f"{name}.png")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    maps = ("--saliency", f"mine={tmp_path / 'maps'}")
    assert fit(tmp_path, *maps) == 0
    keys = {p.name for p in (tmp_path / "stages").glob("labels-*")}
    assert fit(tmp_path, *maps, "--masks", tmp_path / "truth", "--classes", tmp_path / "classes.txt") == 0
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert verdict["truth"]["labels, training"]["images"] + verdict["truth"]["masks, hold-out"]["images"] == 6
    for t in verdict["truth"].values():
        assert t["low"] <= t["miou"] <= t["high"]
    assert keys == {p.name for p in (tmp_path / "stages").glob("labels-*")}
    assert verdict["evidence"]["saliency"] == "mine" and verdict["evidence"]["classes"]["cat"]["lift"] > 0
    truth = VOCDataset(tmp_path / "run" / "data", "train")
    have = [i for i in range(len(truth)) if truth.mask_path(i).is_file()]
    assert all((truth.mask(i).numpy() == masks[truth.ids[i]]).all() for i in have)


def test_a_detector_that_cannot_be_had(tmp_path, capsys, monkeypatch):
    "auto goes on without, and says what to do; one that is named is an error."
    import wegformer.fit
    from wegformer.data import InputError

    def gone(name):
        raise InputError(f"Saliency model {name!r} could not be downloaded.")

    monkeypatch.setattr(wegformer.fit, "open_detector", gone)
    photographs(tmp_path / "photographs", ("cat", "dog"))
    assert "'u2netp' could not be downloaded" in refused(tmp_path, capsys, "--detector", "u2netp")
    assert fit(tmp_path, "--detector", "auto", "--no-segmenter") == 0
    said = capsys.readouterr().out
    assert "labels are made without and are worse" in said and "--saliency NAME=FOLDER" in said
    assert "labels are made without and are worse" in (tmp_path / "run" / "report.html").read_text()


def test_maps_are_made_for_every_photograph(tmp_path, monkeypatch):
    import wegformer.fit

    made = []

    def draws(session, image):
        made.append(image.shape)
        salient = torch.zeros(image.shape[1:], dtype=torch.uint8)
        salient[10:30, 10:30] = 255
        return salient

    monkeypatch.setattr(wegformer.fit, "open_detector", lambda name: name)
    monkeypatch.setattr(wegformer.fit, "saliency_map", draws)
    photographs(tmp_path / "photographs", ("cat", "dog"), sub="a/")
    assert fit(tmp_path, "--detector", "auto", "--no-segmenter") == 0
    assert len(list((tmp_path / "run" / "saliency" / "u2net" / "a").glob("*.png"))) == len(made) == 12
    assert fit(tmp_path, "--detector", "auto", "--no-segmenter") == 0 and len(made) == 12  # all are there


def test_errors_in_one_sentence(tmp_path, capsys):
    photographs(tmp_path / "photographs", ("cat", "dog"), count=6)
    assert "lies in" in refused(tmp_path, capsys, "--out", tmp_path / "photographs" / "run")
    assert main(["fit"]) == 2 and "No source was named" in capsys.readouterr().err
    assert main(["fit", str(tmp_path)]) == 2 and "--out FOLDER" in capsys.readouterr().err
    assert main(["fit", str(tmp_path / "gone"), "--out", str(tmp_path / "run")]) == 2
    assert "gone does not exist" in capsys.readouterr().err
    assert "vit_hug" in refused(tmp_path, capsys, "--classifier.model", "vit_hug_patch16")
    assert not (tmp_path / "run").exists()
    with open(tmp_path / "labels.csv", "a") as handle:
        handle.write("99.png,cat\n")
    assert "99.png" in refused(tmp_path, capsys)


def test_a_broken_photograph_is_found_before_anything_is_trained(tmp_path, capsys):
    photographs(tmp_path / "photographs", ("cat", "dog"), count=6)
    path = tmp_path / "photographs" / "02.png"
    path.write_bytes(path.read_bytes()[:-200])
    assert "02.png" in refused(tmp_path, capsys) and not list((tmp_path / "stages").glob("classifier-*"))


def test_changed_words_make_another_folder(tmp_path):
    photographs(tmp_path / "photographs", ("cat", "dog"), count=6)
    assert fit(tmp_path, "--no-segmenter") == 0
    first = (tmp_path / "run" / "data").resolve()
    table = tmp_path / "labels.csv"
    table.write_text(table.read_text().replace("cat;dog", "dog").replace("dog", "hound"))
    assert fit(tmp_path, "--no-segmenter") == 0
    assert (tmp_path / "run" / "data").resolve() != first
    assert "hound" in json.loads((tmp_path / "run" / "verdict.json").read_text())["classes"]


# the figures


def test_counts_agree_with_counting():
    rng = torch.Generator().manual_seed(0)
    labels = (torch.rand(40, 4, generator=rng) < 0.4).float()
    for c, (name, found) in enumerate(count_classes(labels, list("abcd")).items()):
        own = [row for row in labels.bool().tolist() if row[c]]
        assert found.photographs == len(own) and found.alone == sum(sum(row) == 1 for row in own)
        other = "abcd".index(found.companion)
        assert found.parted == sum(not row[other] for row in own) and other != c, name


def test_confusions_agree_with_counting():
    rng = torch.Generator().manual_seed(1)
    labels, logits = (torch.rand(30, 3, generator=rng) < 0.5).float(), torch.randn(30, 3, generator=rng)
    found = confusions(logits, labels)
    for a in range(3):
        for b in range(3):
            rows = [x for x, y in zip(logits.tolist(), labels.tolist()) if y[a] and not y[b]]
            if rows:
                assert abs(found[a, b] - 100 * sum(x[b] > x[a] for x in rows) / len(rows)) < 1e-4
            else:
                assert found[a, b].isnan()


def test_figures_at_their_limits():
    empty = torch.zeros(6, 8)
    assert focus(empty) == 50 and lift(empty, torch.rand(6, 8) < 0.5) is None
    one = empty.clone()
    one[2, 3] = 1
    assert focus(one) == pytest.approx(100 / 48) and lift(one, one > 0) == pytest.approx(48)
    label = torch.full((6, 8), 255, dtype=torch.uint8)
    assert overlap(label, label, 1) is None  # nothing is decided


def test_a_grade_is_that_of_the_worst_figure():
    sound = dict(photographs=50, without=50, parted=20, learnt=90.0, focus=10.0, labelled=100.0, found=100.0)
    assert judge(sound) == (0, [])
    for name, one in INDICATORS.items():
        if one.sound is not None:
            bad = next(v for v in (-1000.0, 1000.0) if not one.sound.test(v))
            assert judge(sound | {name: bad})[0] == (2 if one.usable is not None else 1), name
    assert judge(dict.fromkeys(INDICATORS)) == (0, [])  # nothing is known, nothing is said


def test_a_class_that_never_comes_alone_is_named():
    values = dict(photographs=20, without=20, companion="screen", parted=0, holdout=9, learnt=95.0)
    evidence = dict(classes=dict(keyboard=values), saliency="mine", single=50.0)
    grade, reasons = conclude(evidence).classes["keyboard"]
    assert GRADES[grade] == "do not use" and len(reasons) == 1
    assert reasons[0].startswith("it never appears without screen")


def test_the_interval_holds_the_figure_and_narrows_with_photographs():
    rng = np.random.default_rng(0)
    right = rng.integers(20, 80, 64)
    matrices = torch.tensor([[[900, 0], [100 - int(r), int(r)]] for r in right])
    few, many = measured(matrices[:8], ["background", "cat"]), measured(matrices, ["background", "cat"])
    assert few.low < few.miou < few.high and many.high - many.low < few.high - few.low
    hit, miss = int(right.sum()), int((100 - right).sum())
    assert many.iou["cat"] == pytest.approx(100 * hit / (hit + miss))


def test_a_network_that_paints_everything_is_caught(toy_root, tmp_path):
    voc = VOCDataset(toy_root, "val")
    part = Part(voc, [i for i in range(len(voc)) if 1 not in voc.class_ids(i)][:3])
    for i, name in enumerate(part.ids):
        Image.fromarray(np.ones(part.size(i), np.uint8)).save(tmp_path / f"{name}.png")
    found = means(read_holdout(part, tmp_path))
    assert found[voc.classes[1]]["invented"] == 100 and found[voc.classes[2]].get("invented", 0) == 0


def test_the_stages_are_the_chains_own(brought):
    "Whoever goes on with the single commands finds what fit has made."
    key = next((brought / "stages").glob("classifier-*")).name
    args = ["train-classifier", "--voc-root", str((brought / "run" / "data").resolve()), "--train-split", "train"]
    assert main([*args, "--cache", str(brought / "stages"), *OPTIONS[: OPTIONS.index("--detector")]]) == 0
    assert [p.name for p in (brought / "stages").glob("classifier-*")] == [key]
    assert read_done(brought / "stages" / key)["metrics"]["mAP"] >= 0


def test_the_runs_folder_needs_no_cache(brought, tmp_path):
    "What lies in it names the classes, and labels other photographs by itself."
    run = brought / "run"
    assert (run / "masks" / "classes.txt").read_text().split() == ["cat", "dog"]
    photograph = next((brought / "photographs" / "shelf").glob("*.png"))
    network = run / "segmenter.safetensors"
    assert main(["predict", str(photograph), "--segmenter", str(network), "--out", str(tmp_path / "masks")]) == 0
    assert (tmp_path / "masks" / photograph.name).is_file()


def test_what_labels_alone_tell_is_said_before_anything_is_trained(tmp_path, capsys):
    photographs(tmp_path / "photographs", ("cat", "dog"))
    rows = (tmp_path / "labels.csv").read_text().splitlines()
    (tmp_path / "labels.csv").write_text("\n".join([rows[0], *(row.split(",")[0] + ",cat;dog" for row in rows[1:])]))
    assert fit(tmp_path, "--classifier.weights", tmp_path / "gone") == 2  # refused before the training
    assert fit(tmp_path) == 0
    said = capsys.readouterr().out
    bound = "cat: do not use, by the labels alone: it never appears without dog"
    assert bound in said and said.index(bound) < said.index("\nclassifier ")


def test_a_model_that_cannot_be_explained_is_refused_before_anything_is_made(tmp_path, capsys):
    photographs(tmp_path / "photographs", ("cat", "dog"))
    assert "resnet18" in refused(tmp_path, capsys, "--classifier.model", "resnet18")
    assert not (tmp_path / "run").exists()


def test_who_fits_has_photographs():
    "Without a preset the command takes a ViT that was trained on photographs; a rule by name replaces the preset's."
    usual, other = commands(["fit"])["fit"], commands(["fit", "--rule", "nsrom"])["fit"]
    assert usual.config() == replace(preset("photographs"), data=usual.config().data)
    assert "dinov2" in usual.classifier.model
    assert other.label.rule == LabelRule.preset("nsrom") and other.label.par == usual.label.par
    assert commands(["fit", "--preset", "toy"])["fit"].classifier == preset("toy").classifier


@pytest.mark.parametrize(
    "option, words",
    [
        (("--classifier.model", "deit_tiny_patch16_224.fb_in1k"), "The pretrained weights of 'deit_tiny"),
        (("--segmenter.backbone", "resnet18.a1_in1k"), "Pretrained weights of backbone 'resnet18"),
    ],
)
def test_weights_that_cannot_be_had_are_missed_before_anything_is_made(option, words, tmp_path, capsys, monkeypatch):
    "The photographs are looked at by then, saliency maps are not made, and nothing is trained."
    create = timm.create_model

    def offline(name, *args, pretrained=False, **kwargs):
        if pretrained and not name.startswith(("vit_toy", "resnet_toy")):
            raise OSError("no network")
        return create(name, *args, pretrained=pretrained, **kwargs)

    photographs(tmp_path / "photographs", ("cat", "dog"))
    monkeypatch.setattr(timm, "create_model", offline)
    assert words in refused(tmp_path, capsys, *option)
    assert (tmp_path / "run" / "data").exists() and not (tmp_path / "run" / "saliency").exists()
    assert not list((tmp_path / "stages").glob("*/done.json"))


def test_weights_that_a_stage_makes_are_not_missed(tmp_path):
    "The toy VGG's, which the package does not hold."
    photographs(tmp_path / "photographs", ("cat", "dog"))
    vgg = "--segmenter.network deeplabv2 --segmenter.backbone vgg_toy --segmenter.atrous-rates 2".split()
    assert fit(tmp_path, *vgg) == 0


def test_a_damaged_photograph_is_called_by_its_own_name(tmp_path, capsys):
    photographs(tmp_path / "photographs", ("cat", "dog"))
    (tmp_path / "photographs" / "03.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    assert f"{tmp_path}/photographs/03.png cannot be read" in refused(tmp_path, capsys)
