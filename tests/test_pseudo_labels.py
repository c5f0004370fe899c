"Label rules against a pixel-by-pixel reading of the reference, NSROM's own labels, switch by switch, over bad input."

import json
import os
import runpy
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from wegformer.data import InputError
from wegformer.pseudo_labels import (
    LabelRule,
    LabelStats,
    class_scores,
    conflict_mask,
    epom,
    epom_threshold,
    initial_label,
    label_with_stats,
    labels_with_stats,
    pseudo_label,
    pseudo_labels,
    summarize_stats,
    table2_rules,
    winner,
)
from wegformer.soft_erase import soft_erase

PRESETS = ("paper", "nsrom", "drs", "mec")


# ---- the reference, one pixel at a time ----


def brute_erase(attention, rate, renormalize):
    out = attention.copy()
    for c in range(len(out)):
        clip = attention[c].max() * attention.dtype.type(rate)
        for y, x in np.ndindex(out.shape[1:]):
            out[c, y, x] = min(attention[c, y, x], clip)
            if renormalize and clip > 0:
                out[c, y, x] /= clip
    return out


def brute_initial(A, classes, saliency, rule):
    "Steps 1-5. Scores in float32, A > 0.8 in A's own precision."
    f32, own = np.float32, A.dtype.type
    label = np.zeros(A.shape[1:], np.uint8)
    for y, x in np.ndindex(label.shape):
        if saliency is None or rule.background == "constant":
            background = f32(rule.background_score)
        elif rule.background == "binary":
            background = f32(0 if saliency[y, x] > rule.salient_thr else 1)
        else:
            background = f32(1) - f32(saliency[y, x]) / f32(255)
        scores = [f32(s) for s in (background, *A[:, y, x])]
        scores = [f32(0) if s < f32(rule.fg_thr) else s for s in scores]
        claims = 0
        if rule.conflict_thr is not None:
            bound = f32(rule.conflict_thr) * max(scores) if rule.conflict_relative else f32(rule.conflict_thr)
            claims = sum(bool(s > bound) for s in scores)
        best = max(range(len(scores)), key=lambda i: (scores[i], -i))
        label[y, x] = 255 if claims >= rule.conflict_min else 0 if best == 0 else classes[best - 1]
        if label[y, x] == 0:
            strong = any(a > own(rule.uncertain_thr) for a in A[:, y, x])
            if rule.uncertain == "level" and (saliency is not None or rule.uncertain_without_saliency):
                level = max(0 if saliency is None else int(saliency[y, x]), 255 * strong)
                if level >= rule.uncertain_level:
                    label[y, x] = 255
            if rule.uncertain == "salient" and saliency is not None and saliency[y, x] > rule.salient_thr:
                label[y, x] = 255
    return label


def brute_epom(label, A, classes, t_fg):
    "Equations 8-10 with NumPy's medians."
    out, thresholds = label.copy(), {}
    for c, a in zip(classes, A):
        if (label == c).any():
            thr = np.median(a[label == c])
        else:
            values = a[a > a.dtype.type(t_fg)]
            top = values[values > np.median(values)] if len(values) else values
            thr = np.median(top) if len(top) else 1
        thresholds[c] = float(thr)
        for y, x in np.ndindex(label.shape):
            if label[y, x] == 0 and a[y, x] > thr:
                out[y, x] = 255
    return out, thresholds


def brute_label(attention, classes, saliency, rule):
    A = attention if rule.erase_rate is None else brute_erase(attention, rule.erase_rate, rule.renormalize)
    label = brute_initial(A, classes, saliency, rule)
    if rule.epom:
        label, _ = brute_epom(label, attention if rule.epom_map == "raw" else A, classes, rule.t_fg)
    share = sum(v not in (0, 255) for v in label.flatten()) / label.size
    if rule.min_foreground is not None and share < rule.min_foreground:
        label[:] = 255
    return label


# ---- hypothesis ----

LEVELS = [0.0, 0.1, 0.2, 0.3, 0.4, 0.44, 0.45, 0.495, 0.55, 0.7, 0.8, 0.9, 0.95, 1.0]


@st.composite
def scenes(draw):
    "Maps with many ties on the rule's own thresholds, or of any values; up to three classes; with or without saliency."
    C, H, W = draw(st.integers(1, 3)), draw(st.integers(1, 7)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["levels", "bytes", "any", "zero"]))
    attention = {
        "levels": lambda: rng.choice(LEVELS[: draw(st.integers(2, len(LEVELS)))], (C, H, W)),
        "bytes": lambda: rng.integers(0, 256, (C, H, W)) / 255,
        "any": lambda: rng.random((C, H, W)) ** draw(st.sampled_from([1, 3])),
        "zero": lambda: np.zeros((C, H, W)),
    }[kind]().astype(draw(st.sampled_from([np.float32, np.float64])))
    classes = draw(st.permutations([1, 2, 12, 15, 20, 254]))[:C]
    saliency = draw(st.sampled_from([None, "bytes", "levels"]))
    if saliency:
        saliency = (
            rng.choice([0, 31, 32, 50, 51, 153, 178, 179, 255], (H, W))
            if saliency == "levels"
            else rng.integers(0, 256, (H, W))
        )
    return attention, classes, None if saliency is None else saliency.astype(np.uint8)


rules = st.builds(
    LabelRule,
    erase_rate=st.sampled_from([None, 0.55, 0.8, 1.0]),
    renormalize=st.booleans(),
    background=st.sampled_from(["saliency", "binary", "constant"]),
    background_score=st.sampled_from([0.0, 0.3, 0.4]),
    fg_thr=st.sampled_from([0.0, 0.2, 0.3, 0.45]),
    conflict_thr=st.sampled_from([None, 0.5, 0.9]),
    conflict_relative=st.booleans(),
    conflict_min=st.sampled_from([2, 3]),
    uncertain=st.sampled_from(["level", "salient", "off"]),
    uncertain_without_saliency=st.booleans(),
    uncertain_level=st.sampled_from([1, 32, 255]),
    epom=st.booleans(),
    epom_map=st.sampled_from(["erased", "raw"]),
    t_fg=st.sampled_from([0.0, 0.3, 0.5]),
    min_foreground=st.sampled_from([None, 0.01, 0.2]),
) | st.sampled_from([LabelRule.preset(p) for p in PRESETS])


def tensors(attention, classes, saliency):
    return torch.from_numpy(attention), torch.tensor(classes), None if saliency is None else torch.from_numpy(saliency)


@settings(max_examples=400, deadline=None)
@given(scenes(), rules)
def test_equals_brute_force(scene, rule):
    label, stats = label_with_stats(*tensors(*scene), rule)
    np.testing.assert_array_equal(label.numpy(), brute_label(*scene, rule))
    assert label.dtype == torch.uint8 and torch.equal(label, pseudo_label(*tensors(*scene), rule))
    assert stats.conflict + stats.uncertain + stats.epom + stats.whole == pytest.approx(stats.ignored)
    assert stats.ignored == pytest.approx((label == 255).float().mean().item())


@settings(max_examples=150, deadline=None)
@given(scenes(), st.sampled_from([0.0, 0.3, 0.5]), st.integers(0, 2**32 - 1))
def test_epom_on_any_label(scene, t_fg, seed):
    "Not only labels that steps 1-5 can make."
    attention, classes, _ = scene
    label = np.random.default_rng(seed).choice([0, 0, 255, *classes], attention.shape[1:]).astype(np.uint8)
    want, thresholds = brute_epom(label, attention, classes, t_fg)
    result = epom(torch.from_numpy(label), torch.from_numpy(attention), classes, t_fg)
    np.testing.assert_array_equal(result.numpy(), want)
    for c, a in zip(classes, torch.from_numpy(attention)):
        assert epom_threshold(torch.from_numpy(label), a, c, t_fg)[0] == thresholds[c]


@settings(max_examples=100, deadline=None)
@given(scenes(), rules)
def test_properties(scene, rule):
    "The order of classes matters in ties only; EPOM and step 7 only ever ignore more; only labelled classes appear."
    attention, classes, saliency = tensors(*scene)
    label = pseudo_label(attention, classes, saliency, rule)
    without = pseudo_label(attention, classes, saliency, replace(rule, epom=False, min_foreground=None))
    assert set(label.unique().tolist()) <= {0, 255, *classes.tolist()}
    assert ((label == without) | (label == 255)).all()
    turned = pseudo_label(attention.flip(0), classes.flip(0), saliency, replace(rule, epom=False, min_foreground=None))
    A = attention if rule.erase_rate is None else soft_erase(attention, rule.erase_rate, rule.renormalize)
    best = class_scores(A, saliency, rule).sort(0).values
    alone = best[-1] > best[-2]  # no tie at the top
    assert torch.equal(turned[alone], without[alone])


# ---- NSROM's own labels ----


def test_equals_nsroms_labels_on_every_pixel(shared):
    folder = shared / "golden" / "labels_shared"

    def read(name):
        return np.array(Image.open(folder / name))

    branches, whole, images = [], 0, 0
    for line in (folder / "train_cls.txt").read_text().splitlines():
        if not line.strip():
            continue
        name, *classes = line.split()
        a = np.stack([read(f"{name}_{c}_attention.png") for c in classes]).astype(np.float64)
        low, high = a.min((1, 2), keepdims=True), a.max((1, 2), keepdims=True)
        label, stats = label_with_stats(
            torch.from_numpy((a - low) / (high - low + 1e-8)),
            [int(c) + 1 for c in classes],
            torch.from_numpy(read(f"{name}_saliency.png")),
            LabelRule.preset("nsrom"),
        )
        assert (label.numpy() == read(f"{name}_label.png")).all(), name
        branches += stats.branches.values()
        whole += stats.whole > 0
        images += 1
    assert images == 13 and whole == 2 and "quartile" in branches  # what the reference says is in it


# ---- every switch matters ----


def scene(seed=0, shape=(24, 30), classes=(8, 12), sharpness=2.0):
    "Smooth random maps and saliency, so that regions form."
    g = torch.Generator().manual_seed(seed)
    maps = torch.nn.functional.interpolate(torch.rand(1, len(classes) + 1, 5, 6, generator=g), shape, mode="bicubic")[0]
    maps = (maps - maps.amin((1, 2), keepdim=True)) / (
        maps.amax((1, 2), keepdim=True) - maps.amin((1, 2), keepdim=True)
    )
    return maps[:-1] ** sharpness, torch.tensor(classes), (maps[-1] * 255).to(torch.uint8)


SWITCHES = [  # a base rule, the field, another value, whether the scene has saliency
    ({}, "erase_rate", None, True),
    ({}, "erase_rate", 0.8, True),
    ({}, "renormalize", False, True),
    ({}, "background", "binary", True),
    ({}, "background", "constant", True),
    ({}, "background_score", 0.7, False),
    (dict(background="constant"), "background_score", 0.7, True),
    (dict(background="binary"), "salient_thr", 120, True),
    (dict(uncertain="salient"), "salient_thr", 120, True),
    ({}, "fg_thr", 0.6, True),
    ({}, "conflict_thr", None, True),
    ({}, "conflict_thr", 0.7, True),
    ({}, "conflict_relative", True, True),
    ({}, "conflict_min", 3, True),
    ({}, "uncertain", "off", True),
    ({}, "uncertain", "salient", True),
    (dict(background_score=0.9), "uncertain_without_saliency", True, False),
    (dict(background="constant", background_score=0.9, epom=False), "uncertain_thr", 0.95, True),
    ({}, "uncertain_level", 128, True),
    (dict(erase_rate=None), "epom", False, True),
    (dict(renormalize=False), "epom_map", "raw", True),
    ({}, "min_foreground", 1.0, True),
    ({}, "min_foreground", None, True),
]


@pytest.mark.parametrize("base, name, value, with_saliency", SWITCHES, ids=lambda v: str(v))
def test_switch_matters(base, name, value, with_saliency):
    before, after = LabelRule(**base), replace(LabelRule(**base), **{name: value})
    for seed in range(60):
        attention, classes, saliency = scene(seed, sharpness=2.0 if seed % 2 else 6.0)
        if seed % 3 == 2:
            saliency = saliency // 8  # dim: classes hardly get a pixel
        args = attention, classes, saliency if with_saliency else None
        if not torch.equal(pseudo_label(*args, before), pseudo_label(*args, after)):
            return
    raise AssertionError(f"{name}={value} changed nothing in 60 scenes")


def test_t_fg_matters():
    attention = torch.linspace(0, 1, 60).view(1, 6, 10)
    args = attention, [3], torch.zeros(6, 10, dtype=torch.uint8)
    rule = LabelRule(erase_rate=None, uncertain="off", min_foreground=None)
    assert not torch.equal(pseudo_label(*args, rule), pseudo_label(*args, replace(rule, t_fg=0.7)))


def test_every_field_is_covered():
    assert {f.name for f in fields(LabelRule)} == {s[1] for s in SWITCHES} | {"t_fg"}


def test_presets_differ_as_the_reference_says():
    paper, nsrom, drs, mec = (LabelRule.preset(p) for p in PRESETS)
    assert paper == LabelRule() and (
        paper.erase_rate,
        paper.renormalize,
        paper.fg_thr,
        paper.epom_map,
        paper.min_foreground,
    ) == (0.55, True, 0.3, "erased", 0.01)
    assert replace(paper, erase_rate=None, epom_map="raw", uncertain_without_saliency=True) == nsrom
    assert (drs.background, drs.fg_thr, drs.conflict_min, drs.uncertain, drs.epom, drs.min_foreground) == (
        "binary",
        0.2,
        3,
        "salient",
        False,
        None,
    )
    assert (mec.fg_thr, mec.conflict_relative, mec.conflict_min, mec.uncertain, mec.epom, mec.min_foreground) == (
        0.45,
        True,
        2,
        "level",
        False,
        0.01,
    )
    assert drs.erase_rate is mec.erase_rate is None


def test_table2_rows():
    rows = table2_rules()
    assert list(rows) == ["base", "+ soft erase", "+ Sal", "+ EPOM*"]
    attention, classes, saliency = scene(1)
    for name in ("base", "+ soft erase"):  # a saliency map at hand makes no difference
        assert torch.equal(
            pseudo_label(attention, classes, saliency, rows[name]), pseudo_label(attention, classes, None, rows[name])
        )
    assert replace(rows["base"], erase_rate=0.55) == rows["+ soft erase"]
    assert replace(rows["+ Sal"], epom=True) == rows["+ EPOM*"] == LabelRule.preset("paper")
    assert (rows["base"].background, rows["base"].background_score, rows["base"].uncertain, rows["base"].epom) == (
        "constant",
        0.4,
        "off",
        False,
    )


def test_paper_rule_skips_step_5_without_saliency_and_nsrom_does_not():
    attention = torch.zeros(2, 10, 10)
    attention[:, :3] = 0.85
    attention[0, 5:] = 0.5  # A > 0.8 but the background above it
    keep = replace(LabelRule(), background_score=0.88, erase_rate=None, epom=False, min_foreground=None)
    assert not (initial_label(attention, [1, 2], None, keep) == 255).any()
    assert (initial_label(attention, [1, 2], None, replace(keep, uncertain_without_saliency=True))[:3] == 255).all()


def test_rule_is_hashable_and_survives_a_dict():
    rule = LabelRule.preset("drs")
    assert LabelRule(**asdict(rule)) == rule and hash(rule) == hash(LabelRule.preset("drs"))


# ---- shapes, dtypes, wrappers ----


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (13, 37), (61, 47)])
@pytest.mark.parametrize("classes", [(1,), (20, 3), (5, 254, 7, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("preset", PRESETS)
def test_shapes(shape, classes, dtype, preset):
    g = torch.Generator().manual_seed(0)
    attention, saliency = (
        torch.rand(len(classes), *shape, generator=g, dtype=dtype),
        torch.randint(0, 256, shape, generator=g, dtype=torch.uint8),
    )
    rule = LabelRule.preset(preset)
    for s in (saliency, None):
        label = pseudo_label(attention, classes, s, rule)
        assert label.shape == shape and label.dtype == torch.uint8
    if shape[0] * shape[1] < 500:
        np.testing.assert_array_equal(
            pseudo_label(attention, classes, saliency, rule).numpy(),
            brute_label(attention.numpy(), classes, saliency.numpy(), rule),
        )


@pytest.mark.parametrize("preset", PRESETS)
def test_no_class(preset):
    label = pseudo_label(torch.empty(0, 6, 7), [], torch.zeros(6, 7, dtype=torch.uint8), LabelRule.preset(preset))
    assert label.unique().tolist() == ([0] if preset == "drs" else [255])  # step 7, where the preset has it


def test_inputs_are_left_alone_and_may_be_non_contiguous():
    attention, classes, saliency = scene(2)
    copies = attention.clone(), saliency.clone()
    label = pseudo_label(attention, classes, saliency)
    assert torch.equal(attention, copies[0]) and torch.equal(saliency, copies[1])
    strided = attention.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(pseudo_label(strided, classes, saliency.t().contiguous().t()), label)
    P = initial_label(attention, classes, saliency)
    copy = P.clone()
    epom(P, attention, classes)
    assert torch.equal(P, copy)


def test_subclasses_of_tensor_and_other_integers():
    from torchvision import tv_tensors

    attention, classes, saliency = scene(3)
    label = pseudo_label(attention, classes.tolist(), tv_tensors.Mask(saliency))
    assert type(label) is torch.Tensor
    assert torch.equal(label, pseudo_label(attention.requires_grad_(), classes.int(), saliency))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("preset", PRESETS)
def test_on_the_gpu(preset):
    for seed in range(20):
        attention, classes, saliency = scene(seed)
        label = pseudo_label(attention.cuda(), classes, saliency, LabelRule.preset(preset))
        assert label.device.type == "cuda" and torch.equal(
            label.cpu(), pseudo_label(attention, classes, saliency, LabelRule.preset(preset))
        )


# ---- dead cases and statistics ----


def test_raw_and_erased_agree_under_the_paper_rule_for_classes_that_own_pixels():
    checked = 0
    for seed in range(40):
        attention, classes, saliency = scene(seed, shape=(23, 31))
        attention = attention.double()
        (a, stats), b = (
            label_with_stats(attention, classes, saliency),
            pseudo_label(attention, classes, saliency, LabelRule(epom_map="raw")),
        )
        if set(stats.branches.values()) == {"median"}:
            assert (a != b).sum() <= 1  # one pixel may fall between, where the median is a mean across the clip
            checked += 1
    assert checked > 10


def test_branches():
    zero = torch.zeros(2, 4, dtype=torch.uint8)
    a = torch.tensor([0.1, 0.2, 0.31, 0.4, 0.5, 0.6, 0.7, 0.9]).view(2, 4)
    assert epom_threshold(zero, a, 5) == (
        pytest.approx(0.7),
        "quartile",
    )  # above 0.3: .31 .4 .5 .6 .7 .9, median .55, above it .6 .7 .9
    assert epom_threshold(zero, torch.full((2, 4), 0.6), 5) == (1.0, "plateau")
    assert epom_threshold(zero, torch.full((2, 4), 0.3), 5) == (1.0, "empty")
    label = zero.clone()
    label[0, :2] = 5
    assert epom_threshold(label, a, 5) == (pytest.approx(0.15), "median")


def test_minimum_foreground_is_exclusive():
    attention = torch.zeros(1, 10, 10)
    attention[0, 0, 0] = 1  # exactly 1%
    saliency = (attention[0] * 255).to(torch.uint8)
    assert (pseudo_label(attention, [4], saliency) == 4).sum() == 1
    assert (pseudo_label(attention, [4], saliency, LabelRule(min_foreground=0.0101)) == 255).all()


def test_summary():
    a = LabelStats(0.1, 0.2, 0.0, 0.0, 0.3, 0.5, {1: 0.4}, {1: "median"})
    b = LabelStats(0.0, 0.2, 0.1, 0.7, 1.0, 0.0, {1: 0.4, 2: 1.0}, {1: "quartile", 2: "empty"})
    c = LabelStats(0.0, 0.0, 0.0, 0.0, 0.0, 0.5)  # EPOM off
    assert a.epom_added_nothing and not b.epom_added_nothing and not c.epom_added_nothing
    s = summarize_stats([a, b, c])
    assert (
        s["images"] == 3
        and s["images_epom_added_nothing"] == 0.5
        and s["images_wholly_ignored"] == pytest.approx(1 / 3)
    )
    assert s["epom_share"] == pytest.approx(0.1 / 3) and s["classes_median"] == s["classes_quartile"] == s[
        "classes_empty"
    ] == pytest.approx(1 / 3)
    assert (
        summarize_stats([c])["images_epom_added_nothing"] is None and summarize_stats(iter([]))["ignored_share"] is None
    )


# ---- bad input ----

GOOD = dict(
    attention=torch.rand(2, 5, 6), classes=[8, 12], saliency=torch.zeros(5, 6, dtype=torch.uint8), rule=LabelRule()
)


@pytest.mark.parametrize(
    "bad, word",
    [
        (dict(attention=torch.rand(5, 6)), "attention"),
        (dict(attention=np.zeros((2, 5, 6))), "attention"),
        (dict(attention=torch.zeros(2, 0, 6)), "attention"),
        (dict(attention=torch.rand(2, 5, 6).half()), "float16"),
        (dict(attention=torch.ones(2, 5, 6, dtype=torch.uint8)), "uint8"),
        (dict(attention=torch.full((2, 5, 6), 1.001)), "1.001"),
        (dict(attention=torch.full((2, 5, 6), -0.5)), "-0.5"),
        (dict(attention=torch.full((2, 5, 6), float("nan"))), "nan"),
        (dict(classes=[8]), r"\(2,\)"),
        (dict(classes=[8, 8]), r"\[8, 8\]"),
        (dict(classes=[0, 8]), r"\[0, 8\]"),
        (dict(classes=[8, 255]), "255"),
        (dict(classes=[-1, 8]), "-1"),
        (dict(classes=[8.0, 9.0]), "8.0"),
        (dict(classes=torch.tensor([True, True])), "True"),
        (dict(classes=[[8, 12]]), "classes"),
        (dict(classes=["cat", "dog"]), "classes"),
        (dict(classes=None), "classes"),
        (dict(saliency=torch.zeros(5, 7, dtype=torch.uint8)), r"\(5, 7\)"),
        (dict(saliency=torch.zeros(1, 5, 6, dtype=torch.uint8)), "saliency"),
        (dict(saliency=torch.zeros(5, 6)), "float32"),
        (dict(saliency=np.zeros((5, 6), np.uint8)), "saliency"),
        (dict(rule="paper"), "rule"),
    ],
)
def test_bad_input(bad, word):
    with pytest.raises(InputError, match=word):
        pseudo_label(**{**GOOD, **bad})


@pytest.mark.parametrize(
    "label", [torch.zeros(5, 7, dtype=torch.uint8), torch.zeros(5, 6), np.zeros((5, 6), np.uint8), None]
)
def test_bad_label_for_epom(label):
    with pytest.raises(InputError, match="label"):
        epom(label, GOOD["attention"], GOOD["classes"])


@pytest.mark.parametrize(
    "field, value",
    [
        ("erase_rate", 0),
        ("erase_rate", 1.2),
        ("erase_rate", True),
        ("renormalize", 1),
        ("background", "sal"),
        ("background", None),
        ("background_score", 1.1),
        ("salient_thr", 256),
        ("salient_thr", 0.5),
        ("fg_thr", -0.1),
        ("fg_thr", float("nan")),
        ("fg_thr", "0.3"),
        ("conflict_thr", 2),
        ("conflict_relative", None),
        ("conflict_min", 1),
        ("conflict_min", 2.0),
        ("uncertain", True),
        ("uncertain_without_saliency", "no"),
        ("uncertain_thr", 255),
        ("uncertain_level", 0),
        ("uncertain_level", 300),
        ("epom", "on"),
        ("epom_map", "soft"),
        ("t_fg", -1),
        ("min_foreground", 1.5),
    ],
)
def test_bad_rule(field, value):
    with pytest.raises(InputError, match=f"LabelRule.{field}"):
        LabelRule(**{field: value})


def test_bad_preset():
    with pytest.raises(InputError, match="papre.*paper, nsrom, drs, mec"):
        LabelRule.preset("papre")


def test_scores_are_float32_whatever_the_maps_are():
    attention = torch.full((1, 1, 1), 0.3, dtype=torch.float64)  # 0.3 in float64 is below float32's 0.3
    assert class_scores(attention, None).dtype == torch.float32
    assert class_scores(attention, None, LabelRule(background_score=0.3)).tolist() == [
        [[pytest.approx(0.3)]],
        [[pytest.approx(0.3)]],
    ]


# ---- thresholds, counts, and any switch setting, against the same pixel-by-pixel reading


def counted(attention, classes, saliency, rule):
    "The label, the pixels that each step ignored, and eq. 9's thresholds with their branches."
    A = attention if rule.erase_rate is None else brute_erase(attention, rule.erase_rate, rule.renormalize)
    bare = brute_initial(A, classes, saliency, replace(rule, uncertain="off"))
    P = brute_initial(A, classes, saliency, rule)
    read, found = attention if rule.epom_map == "raw" else A, {}
    label, thresholds = brute_epom(P, read, classes, rule.t_fg) if rule.epom else (P, {})
    for c, a in zip(classes, read):
        strong = a[a > a.dtype.type(rule.t_fg)]
        branch = (
            "median"
            if (P == c).any()
            else "empty"
            if not strong.size
            else "quartile"
            if (strong > np.median(strong)).any()
            else "plateau"
        )
        if rule.epom:
            found[c] = branch
    ignored = [int((x == 255).sum()) for x in (bare, P, label)]
    kept, pixels = int(((label > 0) & (label < 255)).sum()), label.size
    whole = pixels - ignored[2] if rule.min_foreground is not None and kept / pixels < rule.min_foreground else 0
    if whole:
        label = np.full_like(label, 255)
    counts = dict(
        conflict=ignored[0],
        uncertain=ignored[1] - ignored[0],
        epom=ignored[2] - ignored[1],
        whole=whole,
        ignored=ignored[2] + whole,
        foreground=kept,
    )
    return label, counts, thresholds, found


shares = st.sampled_from(LEVELS) | st.floats(0, 1)
any_rule = st.builds(
    LabelRule,
    erase_rate=st.none() | st.floats(0.01, 1),
    renormalize=st.booleans(),
    background=st.sampled_from(["saliency", "binary", "constant"]),
    background_score=shares,
    salient_thr=st.integers(0, 255),
    fg_thr=shares,
    conflict_thr=st.none() | shares,
    conflict_relative=st.booleans(),
    conflict_min=st.integers(2, 5),
    uncertain=st.sampled_from(["level", "salient", "off"]),
    uncertain_without_saliency=st.booleans(),
    uncertain_thr=shares,
    uncertain_level=st.integers(1, 255),
    epom=st.booleans(),
    epom_map=st.sampled_from(["erased", "raw"]),
    t_fg=shares,
    min_foreground=st.none() | st.sampled_from([0.01, 0.1, 0.2, 0.25, 0.3]) | st.floats(0, 1),
)


@st.composite
def wider_scenes(draw):
    "No class to four; ties and plateaus on few values, or any value."
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    C, H, W = draw(st.integers(0, 4)), draw(st.integers(1, 7)), draw(st.integers(1, 7))
    few = st.sampled_from(draw(st.lists(st.sampled_from(LEVELS), min_size=1, max_size=5))).map(
        lambda v: float(dtype(v))
    )
    attention = draw(
        hnp.arrays(
            dtype, (C, H, W), elements=draw(st.sampled_from([few, st.floats(0, 1, width=np.dtype(dtype).itemsize * 8)]))
        )
    )
    classes = draw(st.lists(st.integers(1, 254), min_size=C, max_size=C, unique=True))
    grey = draw(st.sampled_from([st.sampled_from([0, 25, 26, 31, 32, 50, 51, 76, 178, 179, 255]), st.integers(0, 255)]))
    return attention, classes, draw(st.none() | hnp.arrays(np.uint8, (H, W), elements=grey))


@settings(max_examples=250, deadline=None)
@given(
    wider_scenes(),
    any_rule | st.sampled_from([LabelRule.preset(p) for p in PRESETS]) | st.sampled_from(list(table2_rules().values())),
)
def test_label_counts_and_thresholds(scene, rule):
    attention, classes, saliency = scene
    before = attention.copy(), None if saliency is None else saliency.copy()
    expected, counts, thresholds, branches = counted(*scene, rule)
    label, stats = label_with_stats(
        torch.from_numpy(attention), classes, None if saliency is None else torch.from_numpy(saliency), rule
    )
    np.testing.assert_array_equal(label.numpy(), expected)
    for name, count in counts.items():
        assert getattr(stats, name) == pytest.approx(count / label.numel(), abs=1e-12), name
    assert stats.thresholds == thresholds and stats.branches == branches  # to the last bit
    assert stats.conflict + stats.uncertain + stats.epom + stats.whole == pytest.approx(stats.ignored, abs=1e-12)
    assert (stats.ignored == 1) == bool((expected == 255).all()) and stats.epom_added_nothing == (
        bool(branches) and counts["epom"] == 0
    )
    np.testing.assert_array_equal(attention, before[0])
    if saliency is not None:
        np.testing.assert_array_equal(saliency, before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 999, 1000, 187_500])
def test_epom_medians_are_numpys(n, dtype):
    a = torch.rand(1, n, generator=torch.Generator().manual_seed(n), dtype=dtype)
    for values in (a, (a * 4).round() / 4, a.clamp(max=0.55)):
        assert epom_threshold(torch.ones(1, n, dtype=torch.uint8), values, 1)[0] == np.median(values.numpy())


def test_numpy_version_of_the_benchmark(shared):
    "The benchmark compares equals: its NumPy version labels the photographs alike, with every rule, in both dtypes."
    numpy_label = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "labels.py"))["numpy_label"]
    folder = shared / "golden" / "labels_shared"

    def read(name):
        return np.array(Image.open(folder / name))

    for k, line in enumerate((folder / "train_cls.txt").read_text().splitlines()[:6]):
        name, *classes = line.split()
        a = np.stack([read(f"{name}_{c}_attention.png") for c in classes]).astype((np.float32, np.float64)[k % 2]) / 255
        ids, saliency = np.array([int(c) + 1 for c in classes]), read(f"{name}_saliency.png")
        for rule in [LabelRule.preset(p) for p in PRESETS] + list(table2_rules().values()):
            for s in (saliency, None)[: 1 + (k == 0)]:
                assert (pseudo_label(*tensors(a, ids, s), rule).numpy() == numpy_label(a, ids, s, rule)).all(), (
                    name,
                    rule,
                )


@pytest.mark.parametrize("pixels", [3, 7, 10, 29, 100])
def test_least_foreground_counts_pixels(pixels):
    "An image that has exactly the least share is kept, however many of its other pixels are ignored."
    for kept in range(pixels + 1):
        for ignored in range(pixels - kept + 1):
            if pixels > 10 and (kept * 7 + ignored * 3) % 23:
                continue
            a, s = torch.zeros(1, 1, pixels, dtype=torch.float64), torch.zeros(1, pixels, dtype=torch.uint8)
            a[..., :kept], s[:, :kept] = 1, 255
            s[:, kept : kept + ignored] = 40  # the background, 1 - 40/255, wins there, and is in doubt
            label, stats = label_with_stats(a, [5], s, LabelRule(min_foreground=kept / pixels))
            assert (label == 5).sum() == kept and (label == 255).sum() == ignored and stats.whole == 0
            if kept < pixels:
                assert (pseudo_label(a, [5], s, LabelRule(min_foreground=(kept + 1) / pixels)) == 255).all()


def test_order_of_the_classes_in_epom():
    "Thresholds come from P, before EPOM has changed anything: no class sees what another one has mined."
    attention, classes, saliency = scene(3, classes=(8, 12, 15))
    P = initial_label(attention, classes, saliency, LabelRule(erase_rate=None, uncertain="off", conflict_thr=None))
    copy, mined = P.clone(), epom(P, attention, classes)
    for order in ([2, 1, 0], [1, 2, 0]):
        assert torch.equal(epom(P, attention[order], classes[order]), mined)
    assert (mined != P).any() and torch.equal(P, copy)


def test_ties_go_to_the_lower_index():
    scores = torch.tensor([[0.0, 0.5, 0.4, 0.4], [0.0, 0.5, 0.5, 0.3], [0.0, 0.5, 0.5, 0.4]]).view(3, 2, 2)
    assert winner(scores, torch.tensor([254, 3])).tolist() == [[0, 0], [254, 0]]


def test_numbers_of_any_type_in_a_rule():
    odd = LabelRule(
        erase_rate=np.float32(0.5),
        fg_thr=np.float64(0.25),
        conflict_thr=np.float64(0.75),
        conflict_relative=True,
        uncertain_level=np.int64(40),
        t_fg=1,
    )
    plain = LabelRule(
        erase_rate=0.5, fg_thr=0.25, conflict_thr=0.75, conflict_relative=True, uncertain_level=40, t_fg=1.0
    )
    assert odd == plain and json.dumps(asdict(odd)) == json.dumps(asdict(plain))  # stored alike
    assert torch.equal(pseudo_label(*scene(1), odd), pseudo_label(*scene(1), plain))


def test_every_function_checks_its_input():
    for bad, name in (
        (dict(attention=GOOD["attention"] * 3), "attention"),
        (dict(classes=[8, 8]), "classes"),
        (dict(classes=[[1], [2, 3]]), "classes"),
        (dict(classes=[8, 10**30]), "classes"),
        (dict(classes=torch.tensor([1j, 2])), "classes"),
        (dict(classes=8), "classes"),
        (dict(attention=GOOD["attention"][:0]), "classes"),
        (dict(saliency=torch.zeros(5, 6).bool()), "saliency"),
        (dict(rule=None), "rule"),
        (dict(rule=LabelRule), "rule"),
    ):
        for f in (pseudo_label, label_with_stats, initial_label):
            with pytest.raises(InputError, match=f"^{name} (has|is) .*expected.*\\.$"):
                f(**{**GOOD, **bad})
    for t_fg in (float("nan"), -0.1, 1.1, None, "0.3", True):
        with pytest.raises(InputError, match="^t_fg is .*expected.*\\.$"):
            epom(GOOD["saliency"], GOOD["attention"], [8, 12], t_fg)


@pytest.mark.parametrize("name", ["", None, 3, ["paper"]], ids=repr)
def test_presets_that_are_no_names(name):
    with pytest.raises(InputError, match="expected one of paper, nsrom, drs, mec"):
        LabelRule.preset(name)


def test_more_claims_wanted_than_channels_can_make():
    for n, expected in ((255, True), (256, False), (10**6, False)):  # 254 classes and the background
        mask = conflict_mask(torch.ones(255, 2, 3), LabelRule(conflict_min=n))
        assert mask.dtype == torch.bool and (mask == expected).all()


# ---- a batch


def ragged(dtype=torch.float32):
    "Three images of different sizes with 3, 0 and 1 classes; the last one without a saliency map."
    images = [
        scene(1, (12, 15), (8, 12, 3)),
        (torch.empty(0, 4, 5), torch.empty(0, dtype=torch.int64), torch.zeros(4, 5, dtype=torch.uint8)),
        scene(2, (7, 9), (200,)),
    ]
    return (
        [a.to(dtype) for a, _, _ in images],
        [ids.tolist() for _, ids, _ in images],
        [images[0][2], images[1][2], None],
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_a_batch_equals_its_images(preset):
    maps, classes, saliency = ragged()
    rule = LabelRule.preset(preset)
    for s in (saliency, None, tuple(saliency)):
        labels = pseudo_labels(maps, classes, s, rule)
        assert len(labels) == 3
        for a, ids, one, label in zip(maps, classes, s or [None] * 3, labels):
            assert torch.equal(label, pseudo_label(a, ids, one, rule))
    assert pseudo_labels([], [], [], rule) == pseudo_labels([], [], None, rule) == []
    mixed = pseudo_labels([maps[0], maps[2].double()], [classes[0], classes[2]], None, rule)
    assert torch.equal(mixed[1], pseudo_label(maps[2].double(), classes[2], None, rule))


def test_a_batch_names_the_image_that_is_wrong():
    maps, classes, saliency = ragged()
    for bad, message in (
        (dict(maps=[*maps[:2], maps[2] * 3]), r"^maps\[2\] has values.*expected 0 to 1\.$"),
        (dict(classes=[classes[0], [3], classes[2]]), r"^classes\[1\] .*expected.*\.$"),
        (dict(saliency=[saliency[1], None, None]), r"^saliency\[0\] .*expected.*\.$"),
        (dict(maps=maps[:2]), "^maps, classes and saliency have 2, 3 and 3 entries"),
        (dict(classes=3), "are list, int, list; expected sequences"),
        (dict(maps=None, saliency=None), "NoneType"),
        (dict(rule="paper"), "^rule is"),
    ):
        with pytest.raises(InputError, match=message):
            pseudo_labels(**{**dict(maps=maps, classes=classes, saliency=saliency, rule=LabelRule()), **bad})


def same(found, expected):
    "Labels on every pixel, stats to the last bit."
    assert len(found) == len(expected)
    for (label, stats), (wanted, wanted_stats) in zip(found, expected):
        assert torch.equal(label.cpu(), wanted) and stats == wanted_stats
        assert list(stats.branches) == list(wanted_stats.branches)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_batch_with_stats_equals_its_images(preset):
    maps, classes, saliency = ragged()
    rule = LabelRule.preset(preset)
    for s in (saliency, None, tuple(saliency)):
        expected = [label_with_stats(*args, rule) for args in zip(maps, classes, s or [None] * 3)]
        same(labels_with_stats(maps, classes, s, rule), expected)
        same(labels_with_stats(maps, classes, s, rule, mined=[(), (), ()]), expected)
    assert labels_with_stats([], [], [], rule) == labels_with_stats([], [], None, rule, mined=[]) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("preset", PRESETS)
def test_a_batch_with_stats_on_the_gpu(preset):
    maps, classes, saliency = ragged()
    rule = LabelRule.preset(preset)
    expected = [label_with_stats(*args, rule) for args in zip(maps, classes, saliency)]
    same(labels_with_stats([a.cuda() for a in maps], classes, saliency, rule), expected)


def test_a_batch_mines_the_maps_of_other_blocks():
    maps, classes, saliency = ragged()
    others = [[maps[0].flip(-1)], [], [maps[2].flip(-1), maps[2].flip(-2)]]
    expected = [label_with_stats(*args, LabelRule(), more) for *args, more in zip(maps, classes, saliency, others)]
    same(labels_with_stats(maps, classes, saliency, mined=others), expected)
    with pytest.raises(InputError, match="mined has 2 entries; expected 3"):
        labels_with_stats(maps, classes, saliency, mined=others[1:])
    with pytest.raises(InputError, match=r"^attention\[0\] has values"):
        labels_with_stats([maps[0] * 3, *maps[1:]], classes, saliency, mined=others)


KERNELS = """
import torch
from test_pseudo_labels import ragged, PRESETS
import wegformer.kernels.erase_label as kernels
from wegformer.data import refusal
from wegformer.pseudo_labels import LabelRule, label_with_stats, labels_with_stats, pseudo_label, pseudo_labels
calls, launch = [], kernels.erase_label
def counted(*args): calls.append(args); return launch(*args)
kernels.erase_label = counted
for preset, dtype in (("paper", torch.float32), ("drs", torch.float64)):
    maps, classes, saliency = ragged(dtype)
    expected = [label_with_stats(*args, LabelRule.preset(preset))[0] for args in zip(maps, classes, saliency)]
    assert all(map(torch.equal, pseudo_labels(maps, classes, saliency, LabelRule.preset(preset)), expected))
    assert torch.equal(pseudo_label(maps[0], classes[0], saliency[0], LabelRule.preset(preset)), expected[0])
assert len(calls) == 4
print(refusal(pseudo_label, maps[0] * 2, classes[0], None))
print(refusal(pseudo_labels, maps, [[1, 2, 3], [], [0]], None))
"""

STATS = """
from dataclasses import dataclass, replace
import torch
from test_pseudo_labels import PRESETS, ragged, same
import wegformer.kernels.erase_label as kernels
from wegformer.data import refusal
from wegformer.pseudo_labels import LabelRule, label_with_stats, labels_with_stats, pseudo_label, pseudo_labels

calls, launch = [], kernels.label_and_thresholds

def counted(maps, classes, saliency, rule, **options):
    calls.append(rule)
    return launch(maps, classes, saliency, rule, **options)

kernels.label_and_thresholds = counted

@dataclass(frozen=True)
class WiderRule(LabelRule):
    margin: int = 0

def check(maps, classes, saliency, rule, launches):
    calls.clear()
    expected = [label_with_stats(*args, rule) for args in zip(maps, classes, saliency)]
    same(labels_with_stats(maps, classes, saliency, rule), expected)
    assert len(calls) == launches, (rule, len(calls))

# every branch of eq. 9, images wholly ignored, classes that own nothing, no class at all
maps, classes, saliency = ragged()
levels = [[0.9] * 6, [0.1] * 5 + [0.9], [0.2] * 6, [0.4, 0.5, 0.6, 0.7, 1.0, 1.0], [0.5, 1, 1, 0.5, 1, 1]]
maps, classes = [*maps, torch.tensor(levels).view(5, 2, 3)], [*classes, [1, 2, 3, 4, 5]]
saliency = [*saliency, torch.zeros(2, 3, dtype=torch.uint8)]
for name in PRESETS:
    check(maps, classes, saliency, LabelRule.preset(name), 3)
plain = LabelRule(erase_rate=None, uncertain="off", min_foreground=None)
check(maps, classes, saliency, plain, 3)
branches = {b for _, stats in labels_with_stats(maps, classes, saliency, plain) for b in stats.branches.values()}
assert branches == {"median", "quartile", "plateau", "empty"}, branches
check(maps, classes, saliency, replace(plain, epom_map="raw", erase_rate=0.55), 3)
check(maps, classes, saliency, WiderRule(fg_thr=0.2), 3)
check([a.double() for a in maps], classes, saliency, LabelRule.preset("nsrom"), 3)
# what the kernel does not know goes image by image, everywhere
check(maps, classes, saliency, WiderRule(margin=3), 0)
check([maps[0], maps[2].double()], [classes[0], classes[2]], [None, None], LabelRule(), 0)
pseudo_label(maps[0], classes[0], None, WiderRule(margin=3))
pseudo_labels(maps, classes, None, WiderRule(margin=3))
labels_with_stats(maps, classes, saliency, LabelRule(), [[a] for a in maps])
assert calls == []
for bad in ([[1, 2, 3], [], [0], [1, 2, 3, 4, 5]], [[1, 2]] * 4):
    print(refusal(labels_with_stats, maps, bad, None))
"""


def interpreted(script):
    "In a process of its own: whether kernels are interpreted is settled when Triton is imported."
    pytest.importorskip("triton")
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "WEGFORMER_KERNELS": "1", "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_batch_by_the_kernel():
    said = interpreted(KERNELS)
    assert said.startswith("attention has values from 0 to 2") and "classes[2] is [0]" in said


def test_a_batch_with_stats_by_the_kernel():
    said = interpreted(STATS).splitlines()
    assert said == [
        "classes[2] is [0]; expected different integers from 1 to 254.",
        "classes[0] has shape (2,); expected (3,), one id for each attention map.",
    ]
