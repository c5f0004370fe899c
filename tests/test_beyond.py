"""What goes beyond the paper (`attention.times`, `attention.affinity`, `labels.quantile`, `labels.par`, a calibrated
saliency detector): against plain references, off by default, and kept apart in the cache."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from wegformer.affinity import along_patches, patch_affinity
from wegformer.attention import AttentionConfig, needed_methods, view_grids
from wegformer.classifier import normalize
from wegformer.config import LabelConfig, cnn_baseline, override, preset
from wegformer.data import InputError, read_mask
from wegformer.explainable import check_explainable
from wegformer.extras.saliency import calibrated, make_saliency, platt
from wegformer.heatmaps import METHODS
from wegformer.map_files import read_attention
from wegformer.pipeline import chain
from wegformer.pseudo_labels import pseudo_label
from wegformer.refinement import DISTANCES, cut_peaks, pixel_adaptive, pixel_affinity, refined
from wegformer.splits import open_split
from wegformer.stages import run
from wegformer.vit import random_vit


def test_affinity_is_what_timm_s_attentions_compute():
    model, images = random_vit(dynamic_img_size=True), torch.randn(2, 3, 64, 80, dtype=torch.float64)
    seen = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, given, made: seen.append(made))
    with torch.no_grad():
        model(images)
    mean = torch.stack(seen).mean((0, 2))[:, 1:, 1:]  # blocks and heads; patches alone
    for block in model.blocks:
        block.attn.attn_drop._forward_hooks.clear()
    assert torch.allclose(patch_affinity(model, images), mean / mean.sum(-1, keepdim=True), atol=1e-12)


@pytest.mark.parametrize("times", [1, 3])
def test_maps_are_carried_by_a_matrix_product_for_each_image(times):
    generator = torch.Generator().manual_seed(0)
    affinity = torch.rand(3, 12, 12, generator=generator, dtype=torch.float64).softmax(-1)
    maps, image = torch.rand(2, 4, 3, 4, generator=generator, dtype=torch.float64), torch.tensor([2, 0, 0, 1])
    found = along_patches(affinity, maps, image, times)
    for s in range(2):
        for p, i in enumerate(image):
            expected = torch.linalg.matrix_power(affinity[i], times) @ maps[s, p].flatten()
            assert torch.allclose(found[s, p].flatten(), expected, atol=1e-12)


def plain_par(image, maps, steps):
    "PAR pixel by pixel, as its equations read."
    around = [(k * a, k * b) for k in DISTANCES for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b]
    image, maps = image.double().numpy(), maps.double().numpy().copy()
    (_, H, W), far = maps.shape, np.array([math.hypot(a, b) for a, b in around])
    place = np.exp(-((far / (0.3 * far.std(ddof=1))) ** 2))
    weights = np.zeros((H, W, len(around)))
    for y in range(H):
        for x in range(W):
            near = [image[:, np.clip(y + a, 0, H - 1), np.clip(x + b, 0, W - 1)] for a, b in around]
            near = np.array(near)  # (48, 3)
            apart = ((near - image[:, y, x]) / (0.3 * near.std(0, ddof=1) + 1e-8)) ** 2
            e = -apart.mean(1)
            e = np.exp(e - e.max())
            weights[y, x] = (e / e.sum() + 0.01 * place / place.sum()) / 1.01
    for _ in range(steps):
        new = np.zeros_like(maps)
        for y in range(H):
            for x in range(W):
                for w, (a, b) in zip(weights[y, x], around):
                    new[:, y, x] += w * maps[:, np.clip(y + a, 0, H - 1), np.clip(x + b, 0, W - 1)]
        maps = new
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return torch.from_numpy((maps - low) / (high - low + 1e-8))


def test_par_is_its_equations_pixel_by_pixel():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 9, 11), generator=generator, dtype=torch.uint8)
    maps = torch.rand(2, 9, 11, generator=generator)
    found = pixel_adaptive(image, maps, 3)
    assert torch.allclose(found.double(), plain_par(image, maps, 3), atol=1e-4)


def test_par_takes_pictures_of_any_size_and_of_one_colour():
    for size in ((1, 1), (2, 3), (37, 50)):
        image, maps = torch.full((3, *size), 7, dtype=torch.uint8), torch.rand(2, *size)
        assert pixel_adaptive(image, maps, 2).isfinite().all()
        assert pixel_adaptive(image, maps, 2, long_side=8).shape == maps.shape
        assert pixel_affinity(image).isfinite().all()
    assert pixel_adaptive(image, maps[:0], 2).shape == (0, 37, 50)
    with pytest.raises(InputError, match=r"maps has the size \(37, 50\); expected \(37, 49\)"):
        pixel_adaptive(image[..., :49], maps, 2)


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.98])
def test_peaks_are_cut_at_the_quantile(quantile):
    maps = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0)).square()
    found = cut_peaks(maps, quantile)
    for m, f in zip(maps, found):
        top = np.quantile(m.numpy(), quantile, method="nearest")
        assert np.allclose(f.numpy(), np.minimum(m.numpy(), top) / top, atol=1e-6)


SWITCHES = [  # a value, the stage that it belongs to
    ({"attention.times": "cam"}, "attention"),
    ({"attention.affinity": 1}, "attention"),
    ({"labels.quantile": 0.98}, "labels"),
    ({"labels.par": 10}, "labels"),
]


@pytest.mark.parametrize("change, stage", SWITCHES)
def test_a_switch_that_is_on_makes_its_own_stage_anew_and_none_before_it(change, stage):
    off, on = (chain(override(preset("smoke"), c)) for c in ({}, change))
    before = {"attention": ["classifier"], "labels": ["classifier", "attention"]}[stage]
    assert all(getattr(off, name).key == getattr(on, name).key for name in before)
    after = {"attention": ["attention", "labels", "evaluation"], "labels": ["labels", "evaluation"]}[stage]
    assert all(getattr(off, name).key != getattr(on, name).key for name in after)
    back = override(
        override(preset("smoke"), change),
        {
            name: None if name.endswith("times") else 0 if isinstance(value, int) else 1.0
            for name, value in change.items()
        },
    )
    assert chain(back).evaluation.key == off.evaluation.key


def test_the_chain_labels_what_was_refined(tmp_path):
    config = override(
        preset("smoke"),
        {
            "labels.quantile": 0.9,
            "labels.par": 3,
            "data.toy_train": 6,
            "classifier.steps": 2,
            "attention.times": "cam",
            "attention.affinity": 1,
        },
    )
    stages, train = chain(config), open_split(config.data, "train")
    folder = run(stages.labels, tmp_path)
    maps = stages.attention.folder(tmp_path)
    saliency, changed = next(iter(train.saliency_folders)), 0
    for i, name in enumerate(train.ids):
        own, classes = read_attention(maps / f"{name}.npz")
        ready = refined(own, train.image(i), 0.9, 3)
        expected = pseudo_label(ready, classes, train.saliency(i, saliency), config.labels.rule)
        assert torch.equal(read_mask(folder / f"{name}.png"), expected)
        changed += int((expected != pseudo_label(own, classes, train.saliency(i, saliency), config.labels.rule)).sum())
    assert changed


def test_explain_takes_them_too():
    from wegformer.explain import explain_figure

    model, image = random_vit(dynamic_img_size=True).float(), torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8)
    config, names = override(preset("smoke"), {"attention.long_side": 80}), ("background", *"abcde")

    def label(**changes):
        labels = replace(config.labels, **changes)
        figure, _ = explain_figure(model, image, names, replace(config, labels=labels), ("a", "b"))
        return [np.asarray(artist.get_array()) for artist in figure.axes[3].images]

    assert any(not np.array_equal(a, b) for a, b in zip(label(), label(quantile=0.5)))
    assert any(not np.array_equal(a, b) for a, b in zip(label(), label(par=5)))


def test_times_is_the_geometric_mean_of_the_two_methods():
    model = random_vit(dynamic_img_size=True).float()
    images, pairs = torch.randint(0, 256, (2, 3, 64, 80), dtype=torch.uint8), torch.tensor([[0, 1], [1, 3], [1, 0]])
    config = AttentionConfig(flip=False, precision="no")
    both = view_grids(model, images, pairs, replace(config, times="cam"))[0]
    x = normalize(images, model)
    one, two = METHODS["dtd"].function(model, x, pairs), METHODS["cam"].function(model, x, pairs).clamp(min=0)
    one, two = (m / m.amax((1, 2), keepdim=True) for m in (one, two))
    assert torch.allclose(both, (one * two).sqrt(), atol=1e-5)


def test_several_first_blocks_are_carried_as_one_is():
    model, images = random_vit(dynamic_img_size=True).float(), torch.randint(0, 256, (1, 3, 64, 80), dtype=torch.uint8)
    config, pairs = AttentionConfig(precision="no", affinity=2, times="cam"), torch.tensor([[0, 0], [0, 3]])
    many = view_grids(model, images, pairs, replace(config, blocks=(0, 1)))  # before they are stretched
    for k, block in enumerate((0, 1)):
        one = view_grids(model, images, pairs, replace(config, start_block=block))
        assert torch.allclose(many[:, k], one, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(affinity=1), "attention.affinity is 1, which cannot explain classifier.model 'resnet_toy'"),
        (dict(times="rollout"), "attention.times is 'rollout', which cannot explain classifier.model 'resnet_toy'"),
    ],
)
def test_a_cnn_is_refused_by_the_name_of_the_switch(change, said):
    with pytest.raises(InputError) as error:
        check_explainable("resnet_toy", AttentionConfig(method="cam", **change))
    assert said in str(error.value)
    assert set(needed_methods(AttentionConfig(**change))) > {"dtd"}


@pytest.mark.parametrize("bad", [dict(quantile=0.0), dict(quantile=1.5), dict(par=-1), dict(par=2.5)])
def test_bad_values_are_refused_by_name(bad):
    with pytest.raises(InputError, match=f"labels.{next(iter(bad))} is"):
        LabelConfig(**bad)


def test_platt_finds_what_the_values_mean():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(50_000, generator=generator)
    truth = torch.rand(50_000, generator=generator) < (2.5 * logits + 0.7).sigmoid()
    slope, offset = platt((255 * logits.sigmoid()).round().to(torch.uint8), truth)
    assert abs(slope - 2.5) < 0.1 and abs(offset - 0.7) < 0.05
    values = torch.arange(256, dtype=torch.uint8)
    bent = calibrated(values[None], slope, offset)[0].int()
    assert (bent.diff() >= 0).all() and torch.equal(calibrated(values[None]), values[None])
    half = int((bent - 128).abs().argmin()) / 255
    assert abs(half - 1 / (1 + math.exp(offset / slope))) < 0.02


def test_maps_of_two_calibrations_do_not_mix(tmp_path):
    from test_saliency import write_onnx

    model = write_onnx(tmp_path / "colour.onnx")
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)).save(tmp_path / "a.png")
    for calibration in ((1.0, 0.0), (2.0, 0.5)):
        out = tmp_path / str(calibration[0])
        assert len(make_saliency([tmp_path / "a.png"], out, model, calibration)) == 1
        assert make_saliency([tmp_path / "a.png"], out, model, calibration) == []
        with pytest.raises(InputError, match=f"a.png has the calibration {calibration[0]} .*; expected 3.0 0.0"):
            make_saliency([tmp_path / "a.png"], out, model, (3.0, 0.0))


def test_what_is_not_clamped_stays_below_zero():
    model, images = random_vit(dynamic_img_size=True).float(), torch.randint(0, 256, (1, 3, 64, 80), dtype=torch.uint8)
    maps = view_grids(model, images, torch.tensor([[0, 2]]), AttentionConfig(clamp=False, precision="no"))
    assert maps.min() < 0


def test_dtd_s_options_count_where_it_is_the_second_method():
    model, images = random_vit(dynamic_img_size=True).float(), torch.randint(0, 256, (1, 3, 64, 80), dtype=torch.uint8)
    config, pairs = AttentionConfig(method="cam", times="dtd", precision="no"), torch.tensor([[0, 2]])
    first = view_grids(model, images, pairs, config)
    assert not torch.allclose(first, view_grids(model, images, pairs, replace(config, start_block=0)))
    assert not torch.allclose(first, view_grids(model, images, pairs, replace(config, gradient=False)))


def test_a_cnn_row_takes_neither():
    config = override(preset("smoke"), {"attention.times": "rollout", "attention.affinity": 1})
    chain(override(config, cnn_baseline("smoke")))


def test_a_calibration_that_is_none_is_refused(tmp_path):
    for wrong in ((0.0, 1.0), (-1.0, 0.0), (math.nan, 0.0), (1.0, math.inf)):
        with pytest.raises(InputError, match="expected a slope above 0 and an offset"):
            make_saliency([], tmp_path, calibration=wrong)
