"""`erase_label` against `pseudo_label` and NumPy.

There is no tolerance anywhere: labels are equal on every pixel, thresholds to the last bit."""

import os
import subprocess
import sys
from dataclasses import dataclass, field, fields, make_dataclass, replace
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from wegformer.data import InputError
from wegformer.kernels.erase_label import erase_label, label_and_thresholds
from wegformer.kernels.label_batch import _SWITCHES, least_pixels, plan_digits, unknown_switches
from wegformer.pseudo_labels import LabelRule, label_with_stats, table2_rules

ON_GPU = torch.cuda.is_available()
DTYPES = (torch.float32, torch.float64)
SHAPES = [(1, 7), (13, 9), (9, 1), (8, 12), (1, 1), (23, 31)]  # with 1, 2, 0, 3, 1 and 4 classes
LEVELS = [0.0, 0.1, 0.2, 0.3, 0.4, 0.44, 0.45, 0.495, 0.55, 0.7, 0.8, 0.9, 0.95, 1.0]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    "What the host allocates without setting it is full of rubbish: an element that no kernel writes would show."

    def rubbish(*size, **kwargs):
        x = torch.zeros(*size, **kwargs)
        return x.fill_(torch.nan if x.is_floating_point() else 77 if x.dtype == torch.uint8 else -(2**40))

    monkeypatch.setattr(torch, "empty", rubbish)


def smooth(C, shape, seed, dtype=torch.float32):
    "Maps in which regions form, in [0, 1], and saliency that has them all: nothing, doubt and everything."
    x = torch.nn.functional.interpolate(
        torch.rand(1, C + 1, 5, 6, dtype=dtype, generator=torch.Generator().manual_seed(seed)), shape, mode="bilinear"
    )[0]
    low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    x = (x - low) / (high - low + 1e-8)
    return x[:-1] ** (1 + seed % 3), (255 * (12 * (x[-1] - 0.5)).sigmoid()).to(torch.uint8) // (1 + 7 * (seed % 4 == 3))


def ragged(dtype, seed=0, images=4):
    "A batch of shapes; ids of every range; one image without a saliency map; ties in some."
    maps, classes, saliency = [], [], []
    for k, (C, shape) in enumerate(zip((1, 2, 0, 3, 1, 4)[:images], SHAPES)):
        a, s = smooth(C, shape, seed + k, dtype)
        if (k + seed) % 3 == 0:
            a = (a * 10).round() / 10
        maps.append(a), classes.append([254, 1, 20, 128][:C]), saliency.append(None if k == seed % 4 else s)
    return maps, classes, saliency


def near(xs, device):
    "Each tensor on the device."
    return [None if x is None else x.to(device) for x in xs]


def compare(maps, classes, saliency, rule, device, reference=None, **options):
    "Both, image by image."
    labels, thresholds = label_and_thresholds(near(maps, device), classes, near(saliency, device), rule, **options)
    assert len(labels) == len(thresholds) == len(maps)
    for k, (a, ids, s, label, found) in enumerate(zip(reference or maps, classes, saliency, labels, thresholds)):
        expected, stats = label_with_stats(a, ids, s, rule)
        assert label.dtype == torch.uint8 and label.device.type == device.type and label.shape == a.shape[1:]
        assert torch.equal(label.cpu(), expected), (k, rule)
        assert dict(zip(list(ids), found.tolist())) == stats.thresholds, (k, rule, stats.branches)
    return labels


# ---- every rule ----

BASE = LabelRule()
FIRST = replace(BASE, epom=False)  # for switches of steps 1 to 5 and 7: EPOM's many launches take the interpreter long
RULES = (
    {p: LabelRule.preset(p) for p in ("paper", "nsrom", "drs", "mec")}
    | {f"table2 {k}": v for k, v in list(table2_rules().items())[:3]}
    | {
        f"{name}={value}": replace(FIRST, **{name: value})
        for name, value in [
            ("erase_rate", 0.8),
            ("erase_rate", 1.0),
            ("background", "binary"),
            ("background", "constant"),
            ("background_score", 0.7),
            ("conflict_thr", None),
            ("conflict_thr", 0.5),
            ("conflict_relative", True),
            ("conflict_min", 3),
            ("conflict_min", 10**12),
            ("uncertain", "off"),
            ("uncertain", "salient"),
            ("uncertain_without_saliency", True),
            ("uncertain_thr", 0.5),
            ("uncertain_level", 255),
            ("min_foreground", None),
            ("min_foreground", 0.3),
        ]
    }
    | {
        f"{name}={value}": replace(BASE, **{name: value})
        for name, value in [
            ("erase_rate", None),
            ("renormalize", False),
            ("fg_thr", 0.0),
            ("fg_thr", 0.6),
            ("fg_thr", 1.0),
            ("t_fg", 0.0),
            ("t_fg", 1.0),
        ]
    }
    | {
        "raw": replace(BASE, epom_map="raw", uncertain="off"),
        "literal, raw": replace(BASE, renormalize=False, epom_map="raw"),
        "mined": replace(BASE, uncertain="off", erase_rate=None, min_foreground=None),
        "salient_thr": replace(FIRST, background="binary", uncertain="salient", salient_thr=120),
    }
)


@pytest.mark.parametrize("name", RULES)
def test_float32(name, device):
    compare(*ragged(torch.float32, len(name), 6 if name == "paper" else 4), RULES[name], device)


@pytest.mark.parametrize("name", ["paper", "nsrom", "drs", "mec", "raw", "mined"])
def test_float64(name, device):
    compare(*ragged(torch.float64, len(name)), RULES[name], device)


@pytest.mark.parametrize("block", [16, 128])
@pytest.mark.parametrize("name", ["paper", "mec"])
def test_many_blocks_an_image(name, block, device):
    maps, classes, saliency = ragged(torch.float32)
    keep = slice(0, 2) if block == 16 else slice(1, 4)
    compare(maps[keep], classes[keep], saliency[keep], RULES[name], device, block=block)


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_any_rule_and_levels(data):
    "Few levels, on the rule's own thresholds: ties everywhere."
    shares = st.sampled_from(LEVELS)
    rule = data.draw(
        st.builds(
            LabelRule,
            erase_rate=st.sampled_from([None, 0.55, 0.8]),
            renormalize=st.booleans(),
            background=st.sampled_from(["saliency", "binary", "constant"]),
            background_score=shares,
            fg_thr=shares,
            conflict_thr=st.none() | shares,
            conflict_relative=st.booleans(),
            conflict_min=st.integers(2, 3),
            uncertain=st.sampled_from(["level", "salient", "off"]),
            uncertain_without_saliency=st.booleans(),
            uncertain_thr=shares,
            uncertain_level=st.sampled_from([1, 32, 255]),
            epom_map=st.sampled_from(["erased", "raw"]),
            t_fg=shares,
            min_foreground=st.sampled_from([None, 0.01, 0.2]),
        )
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    levels = rng.choice(LEVELS, data.draw(st.integers(1, 5)))
    maps = [torch.tensor(rng.choice(levels, (C, H, W)).astype(np.float32)) for C, H, W in ((1, 3, 7), (2, 5, 4))]
    saliency = [
        torch.tensor(rng.choice([0, 31, 32, 50, 51, 76, 178, 179, 255], a.shape[1:]).astype(np.uint8)) for a in maps
    ]
    compare(
        maps,
        [[3], [7, 2]],
        data.draw(st.sampled_from([saliency, [None, saliency[1]]])),
        rule,
        torch.device("cuda" if ON_GPU else "cpu"),
    )


# ---- min-max ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["paper", "nsrom", "raw"])
def test_minmax(name, dtype, device):
    maps, classes, saliency = ragged(dtype)
    maps = [a * torch.linspace(0.3, 900, max(len(a), 1), dtype=dtype)[: len(a), None, None] - 0.37 for a in maps]
    maps[3][1] = -2.5  # a constant map becomes 0
    maps[1] *= 1e-9  # here 1e-8 is not small
    low, high = zip(*[(a.amin((1, 2), keepdim=True), a.amax((1, 2), keepdim=True)) for a in maps])
    compare(
        maps,
        classes,
        saliency,
        RULES[name],
        device,
        [(a - lo) / (hi - lo + 1e-8) for a, lo, hi in zip(maps, low, high)],
        minmax=True,
    )


# ---- medians ----

OWN = LabelRule(
    erase_rate=None, fg_thr=0.0, conflict_thr=None, uncertain="off", min_foreground=None
)  # a class owns what is above 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_medians_are_numpys(dtype, device):
    rng, number = np.random.default_rng(0), {torch.float32: np.float32, torch.float64: np.float64}[dtype]
    one = number(0.7)
    up = np.nextafter(one, number(1))
    tiny = np.finfo(np.float32).smallest_subnormal  # scores are float32: less would be 0
    values = [
        [0.5],
        [0.2, 0.4],
        [one, up],
        [up, np.nextafter(up, number(1))],
        [one, one, up, up],
        [0.1, 1.0],
        [tiny, 1.0],
        [tiny, 2 * tiny],
        [0.3] * 6,
        [0.1, 0.2, 0.3],
        [0.5, np.nextafter(number(0.5), number(0))],
        rng.random(101),
        rng.random(200) ** 9,
        rng.choice([0.2, 0.4, 0.9], 64),
        np.minimum(rng.random(99), 0.4) + 1e-9,
    ]
    values = [np.asarray(v, number) for v in values]
    maps = [torch.from_numpy(rng.permutation(v))[None, None] for v in values]
    full = [torch.full(a.shape[1:], 255, dtype=torch.uint8) for a in maps]  # the background scores 0
    for rule in (OWN,) if dtype == torch.float64 else (OWN, replace(OWN, epom_map="raw")):
        _, thresholds = label_and_thresholds(near(maps, device), [[9]] * len(maps), near(full, device), rule)
        assert [t.item() for t in thresholds] == [np.median(v) for v in values]


@pytest.mark.parametrize("dtype", DTYPES)
def test_classes_without_a_pixel(dtype, device):
    "Eq. 9's second case: quartile, plateau, single pixel, nothing strong; two middle values whose mean rounds up."
    rng, number = np.random.default_rng(1), {torch.float32: np.float32, torch.float64: np.float64}[dtype]
    one = number(0.7)
    near_one = [one]
    for _ in range(4):
        near_one.append(np.nextafter(near_one[-1], number(1)))
    last = np.array(0x3F333400 - 1, np.uint32).view(
        np.float32
    )  # its last digit is full: the next float differs in the digit before
    values = [
        [0.1, 0.9],
        [0.6] * 6,
        [0.1] * 5 + [0.9],
        [0.3] * 6,
        [0.0],
        [1.0],
        np.linspace(0, 1, 101),
        rng.random(64),
        rng.random(63),
        near_one,
        near_one[:2],
        near_one[1:3],
        near_one[:2] * 2 + [0.9],
        [one, near_one[1], near_one[1], 0.9, one, 0.2],
        [last, np.nextafter(last, np.float32(1)), np.nextafter(last, np.float32(1)), last],
        [0.35, 0.4, 0.4, 0.4, 0.5, 0.6],
        np.round(rng.random(80), 1),
    ]
    maps = [torch.from_numpy(np.asarray(v, number))[None, None] for v in values]
    empty = [torch.zeros(a.shape[1:], dtype=torch.uint8) for a in maps]  # the background scores 1 and wins all ties
    compare(maps, [[5]] * len(maps), empty, replace(OWN, t_fg=0.3), device)
    if dtype == torch.float32:
        compare(maps, [[5]] * len(maps), empty, replace(OWN, t_fg=0.3, erase_rate=0.55), device)
        compare(maps, [[5]] * len(maps), empty, replace(OWN, t_fg=0.0), device)


def test_both_cases_in_one_image(device):
    a, s = smooth(3, (21, 17), 5)
    a[1] *= 0.29  # owns nothing
    labels = compare([a], [[4, 5, 6]], [s], replace(BASE, erase_rate=None, uncertain="off", t_fg=0.1), device)
    assert not (labels[0] == 5).any() and (labels[0] == 4).any()


# ---- layouts ----


def test_layouts(device):
    "Views of one buffer, of several, with channels left out, transposed, expanded, at odd addresses: all the same."
    a, s = smooth(3, (8, 12), 1)
    label = label_with_stats(a, [1, 2, 3], s, BASE)[0]
    flat = torch.empty(2 + 3 * 96 + 5 + 3 * 96)
    flat[2:290], flat[295:] = a.flatten(), a.flatten()
    flat = flat.to(device)
    wide, other = torch.zeros(3, 4, 8, 12), a.to(device)
    wide[:, 1] = a
    wide, turned = wide.to(device), a.transpose(1, 2).contiguous().transpose(1, 2).to(device)
    maps = [
        flat[2:290].view(3, 8, 12),
        flat[295:].view(3, 8, 12),
        wide[:, 1],
        turned,
        other.requires_grad_(),
        other.detach()[:1].expand(3, -1, -1),
    ]
    room = torch.zeros(8, 13, dtype=torch.uint8)
    room[:, 1:] = s
    salient = [
        s.to(device),
        room.to(device)[:, 1:],
        s.clone().to(device),
        s.t().contiguous().t().to(device),
        s.to(device),
        s.to(device),
    ]
    copies = [x.clone() for x in (*maps, *salient)]
    labels = erase_label(maps, [[1, 2, 3]] * 6, salient, BASE)
    for found in labels[:5]:
        assert torch.equal(found.cpu(), label)
    assert torch.equal(labels[5].cpu(), label_with_stats(a[:1].expand(3, -1, -1), [1, 2, 3], s, BASE)[0])
    assert all(torch.equal(x, y) for x, y in zip((*maps, *salient), copies))


def test_kinds_of_ids(device):
    from torchvision import tv_tensors

    a, s = smooth(2, (6, 7), 1)
    expected = label_with_stats(a, [9, 3], s, BASE)[0]
    for ids in (
        [9, 3],
        (9, 3),
        np.array([9, 3]),
        torch.tensor([9, 3]),
        torch.tensor([9, 3], dtype=torch.int32, device=device),
        [np.int64(9), torch.tensor(3)],
    ):
        assert torch.equal(erase_label([a.to(device)], [ids], [tv_tensors.Mask(s)], BASE)[0].cpu(), expected)
    with torch.inference_mode():
        assert torch.equal(erase_label([a.to(device)], [[9, 3]], [s], BASE)[0].cpu(), expected)


def test_nothing(device):
    assert erase_label([], [], [], BASE) == [] and label_and_thresholds([], [], None, BASE) == ([], [])
    for preset, value in (("paper", 255), ("drs", 0)):
        none = [torch.empty(0, 3, 5, device=device), torch.empty(0, 1, 1, device=device)]
        labels, thresholds = label_and_thresholds(none, [[], []], None, LabelRule.preset(preset))
        assert (
            [x.shape for x in labels] == [(3, 5), (1, 1)]
            and all((x == value).all() for x in labels)
            and all(len(t) == 0 for t in thresholds)
        )


def test_least_foreground():
    for pixels in (1, 3, 29, 100, 187_500):
        for share in (0.0, 0.01, 0.1, 1 / 3, 0.29, 1.0):
            n = least_pixels(share, pixels)
            assert n / pixels >= share and (n == 0 or (n - 1) / pixels < share)
    assert least_pixels(None, 10) == 0


def test_digits_reach_from_the_first_key_to_one():
    for number, integer in ((np.float32, np.int32), (np.float64, np.int64)):
        for rule in RULES.values():
            first, digits, bits = plan_digits(rule, number)
            assert number(1).view(integer) - first < 2 ** (digits * bits) and 8 <= bits <= 10 and first >= 0
    assert plan_digits(BASE, np.float32)[1:] == (3, 8) and plan_digits(BASE, np.float64)[1:] == (6, 9)


# ---- photographs ----

CHOSEN = (
    "2007_002597",
    "2007_002445",
    "2007_000799",
)  # eq. 9's second case, wholly ignored, two classes that own pixels


def photographs(shared, names=None):
    folder = shared / "golden" / "labels_shared"

    def read(name):
        return np.array(Image.open(folder / name))

    for line in (folder / "train_cls.txt").read_text().splitlines():
        if not line.strip() or names and line.split()[0] not in names:
            continue
        name, *classes = line.split()
        a = np.stack([read(f"{name}_{c}_attention.png") for c in classes])
        yield (
            torch.from_numpy(a),
            [int(c) + 1 for c in classes],
            torch.from_numpy(read(f"{name}_saliency.png")),
            torch.from_numpy(read(f"{name}_label.png")),
        )


def test_equals_nsroms_labels_on_every_pixel(shared, device):
    "On a CPU three photographs, on a GPU all thirteen."
    maps, classes, saliency, expected = zip(*photographs(shared, None if ON_GPU else CHOSEN))
    rule = LabelRule.preset("nsrom")
    labels = erase_label([a.double() for a in near(maps, device)], classes, near(saliency, device), rule, minmax=True)
    for label, want in zip(labels, expected):
        assert torch.equal(label.cpu(), want)
    assert sum(bool((want == 255).all()) for want in expected) == (2 if ON_GPU else 1)


def test_photographs_with_the_papers_rule(shared, device):
    maps, classes, saliency, _ = zip(*photographs(shared, None if ON_GPU else CHOSEN[:1]))
    maps = [a.float() for a in maps]
    reference = [
        (a - a.amin((1, 2), keepdim=True)) / (a.amax((1, 2), keepdim=True) - a.amin((1, 2), keepdim=True) + 1e-8)
        for a in maps
    ]
    compare(maps, classes, saliency, BASE, device, reference, minmax=True)


# ---- bad input ----

GOOD = dict(
    maps=[torch.rand(2, 5, 6), torch.rand(1, 3, 4)],
    classes=[[8, 12], [3]],
    saliency=[torch.zeros(5, 6, dtype=torch.uint8), None],
    rule=BASE,
)


@pytest.mark.parametrize(
    "bad, word",
    [
        (dict(maps=[GOOD["maps"][0]]), "entries"),
        (dict(classes=[[8, 12]]), "entries"),
        (dict(saliency=[None]), "entries"),
        (dict(maps=[torch.rand(5, 6), GOOD["maps"][1]]), r"maps\[0\] has shape"),
        (dict(maps=[GOOD["maps"][0], np.zeros((1, 3, 4))]), r"maps\[1\] has type ndarray"),
        (dict(maps=[GOOD["maps"][0], torch.zeros(1, 0, 4)]), r"maps\[1\] has shape"),
        (dict(maps=[x.half() for x in GOOD["maps"]]), "float16"),
        (dict(maps=[GOOD["maps"][0], GOOD["maps"][1].double()]), r"maps\[1\] is torch.float64"),
        (dict(maps=[GOOD["maps"][0], torch.full((1, 3, 4), 1.5)]), r"maps\[1\] .*1\.5"),
        (dict(maps=[torch.full((2, 5, 6), -0.5), GOOD["maps"][1]]), r"maps\[0\] .*-0\.5"),
        (dict(maps=[torch.full((2, 5, 6), torch.nan), GOOD["maps"][1]]), "nan"),
        (dict(maps=[torch.full((2, 5, 6), torch.nan), GOOD["maps"][1]], minmax=True), "nan.*finite"),
        (dict(maps=[torch.tensor([[[1.0, -torch.inf]]] * 2), GOOD["maps"][1]], saliency=None, minmax=True), "inf"),
        (dict(maps=[torch.tensor([[[-3e38, 3e38]]] * 2), GOOD["maps"][1]], saliency=None, minmax=True), "finite"),
        (dict(classes=[[8], [3]]), r"classes\[0\]"),
        (dict(classes=[[8, 8], [3]]), r"classes\[0\]"),
        (dict(classes=[[8, 12], [0]]), r"classes\[1\]"),
        (dict(classes=[[8, 255], [3]]), "255"),
        (dict(classes=[[8.0, 1.0], [3]]), r"classes\[0\]"),
        (dict(classes=[[True, 2], [3]]), r"classes\[0\]"),
        (dict(classes=[["cat", 2], [3]]), "cat"),
        (dict(classes=[None, [3]]), r"classes\[0\] is None"),
        (dict(classes=[torch.tensor([[1, 2]]), [3]]), r"classes\[0\]"),
        (dict(saliency=[torch.zeros(5, 7, dtype=torch.uint8), None]), r"saliency\[0\]"),
        (dict(saliency=[torch.zeros(5, 6), None]), r"saliency\[0\] is torch.float32"),
        (dict(saliency=[None, np.zeros((3, 4), np.uint8)]), r"saliency\[1\] is ndarray"),
        (dict(classes=None), "NoneType"),
        (dict(saliency=3), "int"),
        (dict(rule="paper"), "rule"),
        (dict(rule=None), "rule"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, below the interpreter
def test_bad_input(bad, word, device):
    arguments = {**GOOD, **bad}
    if all(isinstance(a, torch.Tensor) for a in arguments["maps"]):
        arguments["maps"] = [a.to(device) for a in arguments["maps"]]
    with pytest.raises(InputError, match=word):
        erase_label(**arguments)


def test_values_may_go_unchecked(device):
    labels = erase_label(
        [torch.full((1, 3, 4), v, device=device) for v in (1.5, torch.nan, -1.0)], [[3]] * 3, None, BASE, check=False
    )
    assert [x.shape for x in labels] == [(3, 4)] * 3


# ---- switches that the kernel does not know ----


@dataclass(frozen=True)
class WiderRule(LabelRule):
    "A rule with a step that the kernel has never heard of."

    margin: int = 0


@dataclass(frozen=True)
class OtherRule(LabelRule):
    "A rule with one more option of a switch."

    uncertain: Literal["level", "salient", "off", "bold"] = "level"


def test_the_kernel_knows_all_switches_of_today():
    assert set(_SWITCHES) == {f.name for f in fields(LabelRule)}
    hints = get_type_hints(LabelRule)
    for name, options in _SWITCHES.items():
        assert options == (get_args(hints[name]) if get_origin(hints[name]) is Literal else None)
    assert not any(unknown_switches(rule) for rule in RULES.values())


def test_an_unknown_switch_is_refused_by_name_and_harmless_at_its_default(device):
    a, s = smooth(2, (6, 7), 1)
    maps, salient = [a.to(device)], [s.to(device)]
    expected = label_with_stats(a, [9, 3], s, BASE)[0]
    for rule in (WiderRule(), OtherRule()):
        assert torch.equal(erase_label(maps, [[9, 3]], salient, rule)[0].cpu(), expected)
    for rule, name in ((WiderRule(margin=1), "margin is 1"), (OtherRule(uncertain="bold"), "uncertain is 'bold'")):
        for label in (erase_label, label_and_thresholds):
            with pytest.raises(InputError, match=f"^rule.{name}, a switch that the kernel does not know; expected .*"):
                label(maps, [[9, 3]], salient, rule)


def test_a_switch_without_a_default_is_unknown():
    wider = make_dataclass("Wider", [("margin", int, field(kw_only=True))], bases=(LabelRule,), frozen=True)
    assert list(unknown_switches(wider(margin=0))) == ["margin"]


# ---- compiled code ----


def test_compiled_code_rounds_as_it_should(tmp_path):
    "No fused multiply-add, approximate division or flushed denormal; compiled without a GPU, without the interpreter."
    script = """
import re, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from wegformer.kernels.erase_label import aot
alike = [f"{kernel}_float32_relative" for kernel in ("range", "digit", "mine")]  # little else than without "relative"
for v in aot():
    if v["name"].endswith("_raw") or v["name"] in alike:
        continue
    source, options = ASTSource(v["kernel"], v["signature"], v["constexprs"]), dict(num_warps=v["num_warps"])
    ptx = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options).asm["ptx"]
    found = re.findall(r"\\b(?:fma|mad)\\.[a-z.]*f(?:32|64)|div\\.(?:full|approx)\\S*|\\S*\\.ftz\\S*|rcp\\S*", ptx)
    assert not found, (v["name"], found)
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


# ---- on a GPU ----


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
def test_photograph_sizes_twice(dtype, device):
    "Many blocks, real sizes; a second run gives the same bits."
    maps, classes, saliency = [], [], []
    for k, shape in enumerate([(375, 500), (333, 499), (500, 353), (281, 500)] * 4):
        a, s = smooth(1 + k % 3, shape, k, dtype)
        maps.append(a), classes.append([20, 3, 9][: 1 + k % 3]), saliency.append(s)
    for name in ("paper", "nsrom", "mec", "raw"):
        labels = compare(maps, classes, saliency, RULES[name], device)
        again = erase_label([a.to(device) for a in maps], classes, [s.to(device) for s in saliency], RULES[name])
        assert all(torch.equal(x, y) for x, y in zip(labels, again))
