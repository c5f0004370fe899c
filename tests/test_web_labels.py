"The live page's labels are `pseudo_label`'s on every pixel, and so are the numbers beside them; asked of Node.js."

import importlib.util
import json
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import given, settings, strategies as st
from PIL import Image
from test_pseudo_labels import PRESETS, SWITCHES, rules, scene, scenes, tensors

from wegformer.pseudo_labels import LABEL_RULES, LabelRule, label_with_stats
from wegformer.soft_erase import soft_erase

WEB = Path(__file__).resolve().parents[1] / "web"


def build_script():
    spec = importlib.util.spec_from_file_location("web_build", WEB / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    "labels.ts as JavaScript, with the presets that the package has now."
    if not all(map(shutil.which, ("node", "npm"))):
        pytest.skip("Node.js with npm is not installed: apt-get install nodejs npm")
    with FileLock(WEB / ".npm.lock"):
        if not (WEB / "node_modules/.bin/esbuild").exists():
            subprocess.run(["npm", "ci"], cwd=WEB, check=True)
    folder = tmp_path_factory.mktemp("labels")
    shutil.copy(WEB / "src/labels.ts", folder)
    build_script().write_rules(folder / "rules.json")
    out = folder / "labels.mjs"
    command = [WEB / "node_modules/.bin/esbuild", folder / "labels.ts", "--bundle", "--format=esm", f"--outfile={out}"]
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def ask(compiled):
    "ask(attention, classes, saliency, rule): what the module says, from one process for all cases."
    script = Path(__file__).with_name("label_in_node.mjs")
    node = subprocess.Popen(["node", script, compiled], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(attention, classes, saliency, rule):
        case = dict(
            maps=attention.flatten(1).tolist(),
            double=attention.dtype == torch.float64,
            classes=torch.as_tensor(classes).tolist(),
            saliency=None if saliency is None else saliency.flatten().tolist(),
            rule=rule if isinstance(rule, str) else asdict(rule),
            pixels=attention.shape[1] * attention.shape[2],
        )
        node.stdin.write(json.dumps(case) + "\n")
        node.stdin.flush()
        return json.loads(node.stdout.readline())

    yield ask
    node.stdin.close()
    assert node.wait(30) == 0


def same(ask, attention, classes, saliency, rule):
    "Asserts that label, erased maps and numbers are the package's; returns the label."
    known = LABEL_RULES[rule] if isinstance(rule, str) else rule
    label, stats = label_with_stats(attention, classes, saliency, known)
    found, pixels = ask(attention, classes, saliency, rule), label.numel()
    np.testing.assert_array_equal(found["label"], label.flatten().numpy())
    if known.erase_rate is not None and len(attention):
        erased = soft_erase(attention, known.erase_rate, known.renormalize)
        assert torch.equal(torch.tensor(found["erased"], dtype=erased.dtype), erased.flatten(1))
    counts = [round(pixels * getattr(stats, name)) for name in ("conflict", "uncertain", "epom", "whole", "foreground")]
    assert [found[name] for name in ("conflict", "uncertain", "epom", "whole", "foreground")] == counts
    assert np.bincount(found["step"], minlength=8)[[3, 5, 6, 7]].tolist() == counts[:4]
    branches, values = ([t[k] for t in found["thresholds"]] for k in ("branch", "value"))
    assert branches == list(stats.branches.values()) and values == list(stats.thresholds.values())
    assert found["untouched"]
    return label


@settings(max_examples=400, deadline=None)
@given(scenes(), rules)
def test_any_scene_under_any_rule(ask, scene, rule):
    same(ask, *tensors(*scene), rule)


@settings(max_examples=150, deadline=None)
@given(
    preset=st.sampled_from(PRESETS),
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    sharpness=st.floats(0.3, 8),
    dim=st.sampled_from([1, 8]),
    single=st.booleans(),
)
def test_smooth_maps_under_every_preset_by_its_name(ask, preset, seed, shape, sharpness, dim, single):
    attention, classes, saliency = scene(seed, shape, (3, 250, 11), sharpness)
    same(ask, attention.float() if single else attention.double(), classes, saliency // dim, preset)


@pytest.mark.parametrize("base, name, value, with_saliency", SWITCHES, ids=lambda v: str(v))
def test_a_switch_turns_as_in_the_package(ask, base, name, value, with_saliency):
    before, turned = LabelRule(**base), 0
    for seed in range(60):
        attention, classes, saliency = scene(seed, sharpness=2.0 if seed % 2 else 6.0)
        saliency = (saliency // 8 if seed % 3 == 2 else saliency) if with_saliency else None
        labels = [same(ask, attention, classes, saliency, r) for r in (before, replace(before, **{name: value}))]
        turned += not torch.equal(*labels)
        if turned and seed >= 5:
            return
    raise AssertionError(f"{name}={value} changed nothing in 60 scenes")


def test_t_fg_turns_as_in_the_package(ask):
    attention = torch.linspace(0, 1, 60).view(1, 6, 10)
    rule = LabelRule(erase_rate=None, uncertain="off", min_foreground=None)
    labels = [
        same(ask, attention, [3], torch.zeros(6, 10, dtype=torch.uint8), replace(rule, t_fg=t)) for t in (0.3, 0.7)
    ]
    assert not torch.equal(*labels)


def test_values_beside_a_threshold_fall_as_in_single_precision(ask):
    "The float32 nearest to a threshold, the one above and the one below: double precision parts them elsewhere."
    for threshold in (0.1, 0.2, 0.3, 0.45, 0.55, 0.7, 0.8, 0.9):
        nearest = np.float32(threshold)
        values = [np.nextafter(nearest, np.float32(d)) for d in (0, 1)] + [nearest]
        attention = torch.tensor([[[*values, 0.9999, 1.0, 0.0]], [[0.95, 0.95, 0.95, 0.0, 0.0, 1.0]]])
        for rate in (None, threshold):
            for relative in (False, True):
                rule = LabelRule(erase_rate=rate, renormalize=relative, fg_thr=threshold, conflict_thr=threshold)
                rule = replace(rule, conflict_relative=relative, uncertain_thr=threshold, t_fg=threshold)
                same(ask, attention, [1, 2], torch.tensor([[0, 255, 128, 31, 32, 76]], dtype=torch.uint8), rule)
                same(ask, attention, [1, 2], None, replace(rule, uncertain_without_saliency=True))


@pytest.mark.parametrize("threshold", [0.45, 0.7, 0.9])
def test_ties_that_rounding_makes(ask, threshold):
    "A class as strong as the background, at every saliency; and one as strong as the share of another that it claims."
    saliency = torch.arange(256, dtype=torch.uint8)[None]
    strong = torch.rand(256, generator=torch.Generator().manual_seed(0))
    rule = LabelRule(erase_rate=None, uncertain="off", epom=False, min_foreground=None, fg_thr=0.0)
    same(ask, (1 - saliency / 255)[None], [3], saliency, replace(rule, conflict_thr=None))
    attention = torch.stack([strong, strong * threshold])[:, None]
    rule = replace(rule, background="constant", background_score=0.0, conflict_thr=threshold, conflict_relative=True)
    same(ask, attention, [3, 4], None, rule)


@pytest.mark.parametrize("preset", PRESETS)
def test_no_class_and_empty_maps(ask, preset):
    saliency = torch.arange(42, dtype=torch.uint8).view(6, 7)
    same(ask, torch.empty(0, 6, 7), [], saliency, preset)
    same(ask, torch.zeros(2, 6, 7), [4, 9], saliency, preset)
    same(ask, torch.zeros(2, 6, 7), [4, 9], None, preset)


def test_equals_nsroms_labels_on_every_pixel(ask, shared):
    folder, images = shared / "golden" / "labels_shared", 0

    def read(name):
        return np.array(Image.open(folder / name))

    for line in filter(str.strip, (folder / "train_cls.txt").read_text().splitlines()):
        name, *classes = line.split()
        a = np.stack([read(f"{name}_{c}_attention.png") for c in classes]).astype(np.float64)
        low, high = a.min((1, 2), keepdims=True), a.max((1, 2), keepdims=True)
        attention, saliency = torch.from_numpy((a - low) / (high - low + 1e-8)), read(f"{name}_saliency.png")
        label = same(ask, attention, [int(c) + 1 for c in classes], torch.from_numpy(saliency), "nsrom")
        assert (label.numpy() == read(f"{name}_label.png")).all(), name
        images += 1
    assert images == 13
