import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from wegformer.data import InputError
from wegformer.config import Config, cnn_baseline, diff, flatten, override, preset, network_recipe
from wegformer.pipeline import chain
from wegformer.splits import open_split
from wegformer.stages import Stage, read_done, run
from wegformer.training import read_state

SMOKE = override(
    preset("smoke"),
    {
        "classifier.steps": 12,
        "classifier.crop_size": 48,
        "classifier.resize": (48, 64),
        "classifier.eval_long_side": 48,
        "attention.long_side": 48,
        "attention.flip": False,
        "segmenter.steps": 12,
        "segmenter.crop": 48,
    },
)


def quiet(line):
    "Nothing is logged."


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "The chain, uninterrupted."
    cache = tmp_path_factory.mktemp("cache")
    return cache, run(chain(SMOKE).evaluation, cache, quiet)


def test_done_tells_how_it_was_made(whole):
    _, folder = whole
    record = read_done(folder)
    assert (
        record["config"]["scales"] == list(SMOKE.segmenter.test_scales)
        and record["versions"]["torch"]
        and record["device"]
    )
    assert record["seconds"] > 0 and record["peak_gib"] > 0 and 0 <= record["metrics"]["miou"] <= 100
    assert not list(folder.parent.rglob("checkpoint.pt")) and not list(folder.parent.rglob("*.tmp"))


@pytest.mark.parametrize(
    "change, shared",
    [
        ({"labels.rule.fg_thr": 0.5}, ["classifier", "attention"]),
        ({"attention.scales": (0.5, 1.0)}, ["classifier"]),
        ({"seed": 1}, []),
        ({"segmenter.steps": 6}, ["classifier", "attention", "labels"]),
        ({"segmenter.test_flip": True}, ["classifier", "attention", "labels", "segmenter"]),
        ({"classifier.lr": 1e-3}, []),
        ({"data.limit_val": 4}, ["attention-config"]),
    ],
)
def test_a_change_remakes_what_depends_on_it_and_no_more(change, shared):
    names = ("classifier", "attention", "labels", "segmenter", "evaluation")
    changed, smoke = chain(override(SMOKE, change)), chain(SMOKE)
    same = [name for name in names if getattr(changed, name).key == getattr(smoke, name).key]
    assert same == [name for name in shared if name in names]


def test_replaced_saliency_maps_are_noticed(toy_copy):
    config = override(SMOKE, {"data.voc_root": str(toy_copy), "labels.saliency": "good"})
    before = chain(config).labels.key
    path = next((toy_copy / "saliency" / "good").iterdir())
    path.write_bytes(path.read_bytes() + b"\0")
    if path.stem in open_split(config.data, "train").ids:
        assert chain(config).labels.key != before
    for name in open_split(config.data, "train").ids:
        path = toy_copy / "saliency" / "good" / f"{name}.png"
        path.write_bytes(path.read_bytes() + b"\0")
    assert (
        chain(config).labels.key != before
        and chain(config).attention.key == chain(override(config, {"labels.saliency": None})).attention.key
    )


def test_the_folder_may_move(toy_copy, toy_root):
    assert (
        chain(override(SMOKE, {"data.voc_root": str(toy_copy)})).classifier.key
        == chain(override(SMOKE, {"data.voc_root": str(toy_root)})).classifier.key
    )


def _run_in_process(cache):
    code = (
        "import json, sys\nfrom wegformer.config import *\nfrom wegformer.pipeline import *\n"
        "from wegformer.stages import *\n"
        "config = override(preset('smoke'), json.loads(sys.argv[1]))\nrun(chain(config).evaluation, sys.argv[2])"
    )
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in diff(SMOKE, preset("smoke")).items()}
    return subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(values), str(cache)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TQDM_DISABLE": "1"},
        text=True,
    )


def _checkpoint_or_files(cache, stage):
    return lambda: (
        any(cache.glob(f"{stage}-*/checkpoint.pt"))
        if stage in ("classifier", "segmenter")
        else any(cache.glob(f"{stage}-*/*.[np]*"))
    )


@pytest.mark.parametrize("stage", ["classifier", "attention", "labels", "segmenter"])
def test_killed_in_a_stage_it_goes_on_and_ends_the_same(whole, tmp_path, stage):
    there = _checkpoint_or_files(tmp_path, stage)
    process = _run_in_process(tmp_path)
    deadline = time.time() + 240
    while not there() and process.poll() is None and time.time() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert there() and not list(tmp_path.glob("evaluation-*/done.json"))
    folder = run(chain(SMOKE).evaluation, tmp_path, quiet)
    cache, expected = whole
    assert read_done(folder)["metrics"] == read_done(expected)["metrics"]
    for name in ("classifier", "segmenter"):
        ours, theirs = (read_state(next(c.glob(f"{name}-*/model.safetensors"))) for c in (tmp_path, cache))
        assert all((ours[k] == theirs[k]).all() for k in theirs)


def test_two_processes_share_a_cache(whole, tmp_path):
    both = [_run_in_process(tmp_path) for _ in range(2)]
    outputs = [p.communicate()[0] for p in both]
    assert [p.returncode for p in both] == [0, 0], outputs
    lines = sum((o.splitlines() for o in outputs), [])
    for name in ("classifier", "attention", "labels", "segmenter", "evaluation"):
        assert (
            len([line for line in lines if re.match(rf"{name} +[0-9a-f]{{12}} ", line)]) == 1
        )  # made once, by one of them
    assert read_done(next(tmp_path.glob("evaluation-*")))["metrics"] == read_done(whole[1])["metrics"]


def test_a_second_round_learns_from_predictions_with_the_images_own_classes(whole):
    cache, _ = whole
    two = override(SMOKE, {"rounds": 2})
    folder = run(chain(two).evaluation, cache, quiet)
    relabel = next(cache.glob("relabel-*"))
    train = open_split(two.data, "train")
    from wegformer.data import read_mask

    for i in range(len(train)):
        assert set(read_mask(relabel / f"{train.ids[i]}.png").unique().tolist()) <= {0, *train.class_ids(i).tolist()}
    assert folder != whole[1]


@pytest.mark.parametrize("source, saliency", [("saliency", "good"), ("masks", None)])
def test_other_sources_of_labels_need_no_classifier(tmp_path, source, saliency):
    config = override(SMOKE, {"labels.source": source, "labels.saliency": saliency})
    folder = run(chain(config).labels, tmp_path, quiet)
    assert not list(tmp_path.glob("classifier-*"))
    quality = read_done(folder)["metrics"]["pseudo_label_miou"]
    assert quality == 100 if source == "masks" else 10 < quality < 100


def test_labels_are_not_measured_without_masks(toy_copy, whole, tmp_path):

    config = override(SMOKE, {"data.voc_root": str(toy_copy), "labels.source": "saliency", "labels.saliency": "good"})
    for name in open_split(config.data, "train").ids:
        (toy_copy / "SegmentationClass" / f"{name}.png").unlink()
    assert read_done(run(chain(config).labels, tmp_path, quiet))["metrics"] == {"pseudo_label_miou": None}


def test_every_setting_can_be_overridden():
    flat = flatten(Config())
    assert {
        "data.voc_root",
        "classifier.lr",
        "attention.start_block",
        "labels.rule.erase_rate",
        "segmenter.steps",
        "seed",
        "rounds",
    } <= set(flat)
    assert override(Config(), flat) == Config()
    for name in ("voc", "toy", "smoke"):
        assert dataclasses.is_dataclass(preset(name)) and diff(preset(name), preset(name)) == {}
    with pytest.raises(InputError, match="Preset 'big'"):
        preset("big")


@pytest.mark.parametrize(
    "values, words",
    [
        ({"segmenter.stepz": 3}, "segmenter.steps"),
        ({"classifier.steps": 1.5}, "classifier.steps is 1.5"),
        ({"attention.flip": 1}, "attention.flip is 1"),
        ({"labels.rule.t_fg": -1.0}, "t_fg"),
        ({"labels.saliency": "good", "labels.rule": 3}, "labels.rule"),
    ],
)
def test_wrong_overrides(values, words):
    with pytest.raises(InputError, match=words):
        override(preset("toy"), values)


def test_stages_are_named_by_all_that_went_in():
    a = Stage("a", {"x": 1}, quiet)
    assert (
        a.key == Stage("a", {"x": 1}, print).key != Stage("a", {"x": 2}, quiet).key != Stage("b", {"x": 1}, quiet).key
    )
    assert Stage("b", {}, quiet, {"a": a}).key != Stage("b", {}, quiet, {"a": Stage("a", {"x": 2}, quiet)}).key


BLOCKS = {"attention.blocks": (9, 11), "attention.precision": "no"}


def test_rows_pick_their_block_from_one_walk(whole):
    cache, _ = whole
    nine, eleven = (override(SMOKE, BLOCKS | {"labels.block": b}) for b in (9, 11))
    assert (
        chain(nine).attention.key == chain(eleven).attention.key and chain(nine).labels.key != chain(eleven).labels.key
    )
    assert chain(nine).heatmap.key != chain(eleven).heatmap.key
    scores = [
        read_done(run(chain(c).heatmap, cache, quiet))["metrics"]["miou"]
        for c in (nine, eleven, override(SMOKE, {"attention.precision": "no"}))
    ]
    assert (
        scores[0] != scores[1] and abs(scores[1] - scores[2]) < 0.05
    )  # the last block's map, from the walk and without it
    with pytest.raises(InputError, match="block 3; expected one of attention.blocks"):
        run(chain(override(SMOKE, BLOCKS | {"labels.block": 3})).labels, cache, quiet)


def test_mining_more_blocks_ignores_more(whole):
    cache, _ = whole
    epom, pom = (
        read_done(
            run(chain(override(SMOKE, BLOCKS | {"labels.block": 11, "labels.mine_blocks": mined})).labels, cache, quiet)
        )["metrics"]["rule"]
        for mined in ((), (9,))
    )
    assert pom["ignored_share"] >= epom["ignored_share"] and pom["epom_share"] > epom["epom_share"]


def test_maps_are_not_scored_without_masks(toy_copy, tmp_path):
    config = override(SMOKE, {"data.voc_root": str(toy_copy)})
    for name in open_split(config.data, "train").ids:
        (toy_copy / "SegmentationClass" / f"{name}.png").unlink()
    assert read_done(run(chain(config).heatmap, tmp_path, quiet))["metrics"] == dict(miou=None, threshold=None)


@pytest.mark.parametrize(
    "changes, names",
    [
        ({"pretrain.masks": True}, ["labels", "initial", "segmenter"]),
        (network_recipe("smoke", "largefov"), ["labels", "initial", "segmenter"]),
        (network_recipe("smoke", "largefov") | {"pretrain.masks": True}, ["labels", "initial", "initial", "segmenter"]),
        ({}, ["labels", "segmenter"]),
    ],
)
def test_initial_weights_are_made_where_they_are_missing(changes, names, tmp_path):
    config = override(SMOKE, {"labels.source": "masks", "pretrain.mask_steps": 2, "pretrain.label_steps": 2} | changes)
    stage = chain(config).segmenter
    assert [s.name for s in stage.upstream()] == names
    folder = run(stage, tmp_path, quiet)
    assert (folder / "model.safetensors").is_file() and read_done(folder)["metrics"]["loss"] > 0
    other = chain(override(config, {"seed": 1})).segmenter  # initial weights are the same for every seed
    assert [s.key for s in other.upstream() if s.name == "initial"] == [
        s.key for s in stage.upstream() if s.name == "initial"
    ]


def test_other_weights_are_another_network(tmp_path):
    keys = [
        chain(
            override(
                SMOKE, network_recipe("smoke", "largefov") | {"labels.source": "masks", "segmenter.pretrained": False}
            )
        ).segmenter.key
    ]
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        keys.append(
            chain(
                override(
                    SMOKE,
                    network_recipe("smoke", "largefov")
                    | {"labels.source": "masks", "segmenter.weights": str(tmp_path / name)},
                )
            ).segmenter.key
        )
    assert len(set(keys)) == 3


def test_initial_weights_reach_the_network(tmp_path, monkeypatch):
    "Training starts from what the stage before it made."
    import wegformer.pipeline as pipeline
    import wegformer.pretraining as pretraining

    config, seen = override(SMOKE, {"labels.source": "masks", "pretrain.masks": True, "pretrain.mask_steps": 1}), []
    real = pipeline.train_segmenter
    for module in (pipeline, pretraining):
        monkeypatch.setattr(
            module,
            "train_segmenter",
            lambda recipe, *args, **kwargs: (seen.append(recipe.weights), real(recipe, *args, **kwargs))[1],
        )
    stage = chain(config).segmenter
    run(stage, tmp_path, quiet)
    assert seen == [None, str(stage.needs["initial"].folder(tmp_path) / "model.safetensors")]


def test_a_cnn_in_the_place_of_the_transformer(whole):
    cache, _ = whole
    cnn = override(SMOKE, cnn_baseline("smoke"))
    folder = run(chain(cnn).labels, cache, quiet)
    assert (
        read_done(folder)["metrics"]["pseudo_label_miou"] >= 0
        and chain(cnn).classifier.key != chain(SMOKE).classifier.key
    )
    assert (
        cnn_baseline("voc")["classifier.model"] == "resnet38"
        and cnn_baseline("voc", "resnet50")["classifier.model"] == "resnet50"
    )
    for network in ("deeplabv2", "deeplabv3", "deeplabv3plus", "largefov"):
        assert override(preset("voc"), network_recipe("voc", network)).segmenter.crop in (321, 513)


def test_memory_counts_from_the_stages_start(tmp_path):
    import torch
    from wegformer.stages import _peak_gib

    if sys.platform != "linux" or torch.cuda.is_available():
        pytest.skip("only Linux lets a process's peak be counted anew")
    big = torch.ones(1 << 28)  # 1 GiB, gone before the stage
    before = _peak_gib()
    del big
    folder = run(Stage("small", {}, lambda out, needs: None), tmp_path, quiet)
    assert read_done(folder)["peak_gib"] < before - 0.9


def test_a_row_says_what_it_lacks_before_anything_is_made(toy_copy, tmp_path):
    "A val mask is missing, or a file of weights: no stage is made for a row that cannot end."
    from wegformer.experiment import Row, run_row

    config = override(SMOKE, {"data.voc_root": str(toy_copy)})
    weights = override(config, {"segmenter.weights": str(tmp_path / "none.safetensors")})
    next((toy_copy / "SegmentationClass").glob("val*.png")).unlink()
    for broken, said in ((weights, "none.safetensors do not exist"), (config, "val")):
        row = run_row(Row("broken", broken), cache=tmp_path / "cache", log=quiet)
        assert row["status"] == "failed" and said in row["error"] and not list(tmp_path.glob("cache/*/done.json"))


def _damaged(root, fault):
    "One fault that a glance finds, and what is said of it."
    from PIL import Image

    from wegformer.data import write_mask

    train, val = (open_split(override(SMOKE, {"data.voc_root": str(root)}).data, which) for which in ("train", "val"))
    if fault == "val photograph":
        (root / "JPEGImages" / f"{val.ids[-1]}.jpg").write_bytes(b"no picture")
        return f"{val.ids[-1]}.jpg cannot be read"
    if fault == "val mask":
        write_mask(root / "SegmentationClass" / f"{val.ids[-1]}.png", torch.zeros(3, 3))
        return f"{val.ids[-1]}.png"
    if fault == "train saliency":
        Image.new("L", (3, 3)).save(root / "saliency/good" / f"{train.ids[-1]}.png")
        return f"{train.ids[-1]}.png"
    if fault == "masks of 0 and 255":
        for name in val.ids:
            write_mask(root / "SegmentationClass" / f"{name}.png", 255 * (val.mask(val.ids.index(name)) > 0))
        return "holds any class"
    (root / "Annotations" / f"{train.ids[-1]}.xml").write_text("<annotation><object/></annotation>")
    return f"{train.ids[-1]}.xml has an object without a name"


@pytest.mark.parametrize(
    "fault", ["val photograph", "val mask", "train saliency", "masks of 0 and 255", "train annotation"]
)
def test_a_glance_at_the_data_comes_before_the_training(fault, toy_copy, tmp_path):
    said = _damaged(toy_copy, fault)
    config = override(SMOKE, {"data.voc_root": str(toy_copy)})
    with pytest.raises(InputError, match=re.escape(said)):
        run(chain(config).evaluation, tmp_path / "cache", quiet)
    assert not list((tmp_path / "cache").glob("classifier-*"))


def test_labels_that_ignore_everything_stop_before_the_network(tmp_path):
    from wegformer.data import write_mask
    from wegformer.pipeline import segmenter_stage

    train = open_split(SMOKE.data, "train")

    def nothing(out, needs):
        for i, name in enumerate(train.ids):
            write_mask(out / f"{name}.png", torch.full(train.size(i), 255))

    with pytest.raises(InputError, match="No mask .* holds any class.* It belongs to a finished stage"):
        run(segmenter_stage(SMOKE, Stage("labels", {}, nothing)), tmp_path, quiet)
    assert not list(tmp_path.glob("segmenter-*/checkpoint.pt"))


def test_the_maps_of_a_block_that_is_not_kept_are_refused_at_once():
    with pytest.raises(InputError, match="block 3; expected one of attention.blocks"):
        chain(override(SMOKE, {"attention.blocks": (9, 11), "labels.mine_blocks": (3,)}))


def test_photographs_in_folders_and_of_other_endings_go_through_the_chain(whole, toy_copy, tmp_path):
    "cam1/ID.png in the place of ID.jpg: the same pixels, so the same pseudo labels and predictions."
    from PIL import Image

    names = {}
    for k, path in enumerate(sorted((toy_copy / "JPEGImages").glob("*.jpg"))):
        names[path.stem] = f"cam{k % 2 + 1}/{path.stem}"
        target = toy_copy / "JPEGImages" / f"{names[path.stem]}.png"
        target.parent.mkdir(exist_ok=True)
        Image.open(path).save(target)
        path.unlink()
    for folder in ("Annotations", "SegmentationClass", *(f"saliency/{p.name}" for p in toy_copy.glob("saliency/*"))):
        for path in sorted((toy_copy / folder).iterdir()):
            target = toy_copy / folder / f"{names[path.stem]}{path.suffix}"
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
    for path in (toy_copy / "ImageSets/Segmentation").glob("*.txt"):
        path.write_text("\n".join(names[name] for name in path.read_text().split()) + "\n")
    folder = run(chain(override(SMOKE, {"data.voc_root": str(toy_copy)})).evaluation, tmp_path, quiet)
    assert read_done(folder)["metrics"] == read_done(whole[1])["metrics"]
    before = chain(SMOKE).labels.folder(whole[0])
    for path in before.glob("*.png"):
        after = next(tmp_path.glob("labels-*")) / f"{names[path.stem]}.png"
        assert after.read_bytes() == path.read_bytes()
