"The dense CRF: what it must not change, against the library called by hand, many images, bad input."

import math
import signal
import subprocess
import sys
from itertools import count, islice

import numpy as np
import pytest
import torch

from wegformer.crf import CRFParams, dense_crf, dense_crf_many
from wegformer.data import InputError

densecrf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed")


def scene(C=3, H=37, W=50, seed=0):
    "A picture of C flat regions with noise, and probabilities that know them roughly."
    g = torch.Generator().manual_seed(seed)
    rough = torch.nn.functional.interpolate(torch.randn(1, C, 4, 5, generator=g), (H, W), mode="bicubic")[0]
    colours = torch.randint(30, 220, (C, 3), generator=g)
    image = colours[rough.argmax(0)].permute(2, 0, 1) + torch.randint(-8, 9, (3, H, W), generator=g)
    probabilities = (2 * rough + torch.randn(C, H, W, generator=g)).softmax(0)
    return image.clamp(0, 255).to(torch.uint8).contiguous(), probabilities


def by_hand(image, probabilities, params):
    "The library with every label, as its own examples call it."
    C, H, W = probabilities.shape
    field = densecrf.DenseCRF2D(W, H, C)
    field.setUnaryEnergy(-np.log(probabilities.numpy().clip(1e-5, 1)).reshape(C, -1))
    field.addPairwiseGaussian(sxy=params.gaussian_sxy, compat=params.gaussian_weight)
    field.addPairwiseBilateral(
        sxy=params.bilateral_sxy,
        srgb=params.bilateral_srgb,
        rgbim=image.permute(1, 2, 0).contiguous().numpy(),
        compat=params.bilateral_weight,
    )
    return torch.from_numpy(np.array(field.inference(params.iterations)).reshape(C, H, W))


@pytest.mark.parametrize("preset", ["deeplab", "psa"])
@pytest.mark.parametrize("C, H, W", [(2, 37, 50), (4, 20, 31), (21, 24, 16), (3, 1, 40), (3, 40, 1), (2, 1, 1)])
def test_against_the_library(preset, C, H, W):
    from dataclasses import replace

    params = replace(CRFParams.preset(preset), active=0)
    image, probabilities = scene(C, H, W)
    probabilities[-1] = 0  # a label that nobody wants takes part as well
    after = dense_crf(image, probabilities, params)
    assert after.dtype == torch.float32 and after.shape == (C, H, W)
    assert torch.equal(after, by_hand(image, probabilities, params))
    torch.testing.assert_close(after.sum(0), torch.ones(H, W), atol=1e-4, rtol=0)  # float32 sums of up to 21 terms


def test_it_follows_the_picture():
    image, probabilities = scene(seed=1)
    after = dense_crf(image, probabilities)
    assert (after.argmax(0) != probabilities.argmax(0)).any()
    after, before = ((p.argmax(0).diff(dim=1) != 0).float().mean() for p in (after, probabilities))  # steps along a row
    assert after < 0.5 * before


def test_zero_weights_keep_the_winner():
    image, probabilities = scene()
    for iterations in (0, 1, 10):
        after = dense_crf(image, probabilities, CRFParams(gaussian_weight=0, bilateral_weight=0, iterations=iterations))
        torch.testing.assert_close(after, probabilities, atol=1e-5, rtol=1e-4)  # exp(log p) in float32, with a fast exp
        sure = probabilities.topk(2, 0).values.diff(dim=0)[0].abs() > 1e-4
        assert torch.equal(after.argmax(0)[sure], probabilities.argmax(0)[sure])


def test_order_of_the_labels():
    image, probabilities = scene(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(
        dense_crf(image, probabilities[order]), dense_crf(image, probabilities)[order], atol=1e-4, rtol=0
    )  # sums in another order


def test_inactive_labels_are_left_out():
    image, probabilities = scene(3)
    low = torch.full((2, *probabilities.shape[1:]), 0.004)
    after = dense_crf(image, torch.cat([low[:1], probabilities, low[1:]]))
    assert torch.equal(after[1:4], dense_crf(image, probabilities)) and not after[0].any() and not after[4].any()
    low[0, 3, 4] = 0.01  # one pixel is enough: now the label takes part
    assert dense_crf(image, torch.cat([probabilities, low[:1]]))[3].any()


@pytest.mark.parametrize("C, winner", [(1, 0), (3, 1)])
def test_one_label(C, winner):
    image, _ = scene()
    probabilities = torch.zeros(C, *image.shape[1:])
    probabilities[winner] = 1
    assert torch.equal(dense_crf(image, probabilities), probabilities)


def test_the_best_label_of_every_pixel_takes_part():
    image, _ = scene()
    uniform = torch.full((4, *image.shape[1:]), 0.25)  # nobody reaches `active`, but somebody must
    torch.testing.assert_close(dense_crf(image, uniform, CRFParams(active=0.5)), uniform)


def test_height_width_channels_and_arrays():
    image, probabilities = scene()
    expected = dense_crf(image, probabilities)
    assert torch.equal(dense_crf(image.permute(1, 2, 0), probabilities), expected)
    assert torch.equal(dense_crf(image.numpy(), probabilities.numpy()), expected)
    square, p = scene(2, 3, 3)  # 3x3 pixels: channels first
    assert torch.equal(dense_crf(square, p), by_hand(square, p, CRFParams()))


def test_a_bad_job_fails_in_its_turn():
    good = scene(2, 8, 9)
    for workers in (0, 1):
        results = dense_crf_many([good, (good[0][0], good[1])], CRFParams(iterations=1), workers)
        assert next(results).shape == (2, 8, 9)
        with pytest.raises(InputError, match="^image has"):
            next(results)


def test_views_dtypes_and_inputs_untouched():
    image, probabilities = scene()
    expected, copies = dense_crf(image, probabilities), (image.clone(), probabilities.clone())
    strided = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not strided.is_contiguous()
    turned = probabilities.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    wide = torch.cat([probabilities, probabilities])[:3].requires_grad_()
    for i, p in ((strided, probabilities), (image, turned), (strided, wide), (image, probabilities.double())):
        assert torch.equal(dense_crf(i, p), expected)
    doubled = torch.nn.functional.interpolate(probabilities[None], scale_factor=2)[0]
    assert torch.equal(dense_crf(image, doubled[:, ::2, ::2]), expected)
    from torchvision import tv_tensors

    after = dense_crf(tv_tensors.Image(image), probabilities)
    assert torch.equal(after, expected) and type(after) is torch.Tensor
    assert torch.equal(image, copies[0]) and torch.equal(probabilities, copies[1])
    half = dense_crf(image, probabilities.half())
    torch.testing.assert_close(half, expected, atol=0.02, rtol=0)  # half's rounding of p, amplified by ten iterations


def test_zeros_and_ones_stay_finite():
    image, probabilities = scene(2)
    hard = torch.nn.functional.one_hot(probabilities.argmax(0), 2).permute(2, 0, 1).float()
    assert dense_crf(image, hard).isfinite().all()


def test_presets():
    assert CRFParams.preset("deeplab") == CRFParams() == CRFParams(10, 3, 1, 4, 67, 3)
    psa = CRFParams.preset("psa")
    assert (
        psa.iterations,
        psa.gaussian_weight,
        psa.gaussian_sxy,
        psa.bilateral_weight,
        psa.bilateral_sxy,
        psa.bilateral_srgb,
    ) == (10, 3, 3, 10, 80, 13)
    with pytest.raises(InputError, match="deeplab, psa"):
        CRFParams.preset("coco")


# ---- many


def test_workers_make_no_difference():
    jobs = [scene(2 + k % 3, 20 + k, 30, seed=k) for k in range(11)]
    params = CRFParams(iterations=4)
    one = list(dense_crf_many(iter(jobs), params))
    assert all(torch.equal(a, dense_crf(*job, params)) for a, job in zip(one, jobs, strict=True))
    two = list(dense_crf_many(iter(jobs), params, workers=2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    with pytest.raises(InputError, match="^image has"):
        list(dense_crf_many([jobs[0], (jobs[0][0][0], jobs[0][1])], params, workers=1))


def test_jobs_are_taken_as_needed():
    taken = count()
    jobs = ((next(taken), scene(2, 8, 9))[1] for _ in range(100))
    assert len(list(islice(dense_crf_many(jobs, CRFParams(iterations=1)), 3))) == 3 and next(taken) == 3
    assert list(dense_crf_many([])) == []


def test_workers_end_with_a_process_that_is_killed():
    "Not one stays behind to wait for ever: all of them hold the output's other end, which closes when they are gone."
    program = """
import itertools, os, signal, torch
from wegformer.crf import dense_crf_many
job = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.full((2, 8, 8), 0.5)
if __name__ == "__main__":
    next(dense_crf_many(itertools.repeat(job), workers=2))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=300)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("workers", [-1, 1.5, None, "2", True])
def test_bad_workers(workers):
    with pytest.raises(InputError, match="^workers is .*expected"):
        dense_crf_many([], workers=workers)  # at the call, not at the first result


# ---- bad input

IMAGE, EVEN = torch.zeros(3, 4, 5, dtype=torch.uint8), torch.full((2, 4, 5), 0.5)


@pytest.mark.parametrize(
    "name, image, probabilities",
    [
        ("image", IMAGE[0], EVEN),
        ("image", IMAGE[:2], EVEN),
        ("image", IMAGE.permute(2, 1, 0), EVEN),
        ("image", IMAGE.float(), EVEN),
        ("image", IMAGE[None], EVEN),
        ("image", None, EVEN),
        ("probabilities", IMAGE, EVEN[0]),
        ("image", IMAGE, EVEN[:, 1:]),
        ("probabilities", IMAGE, EVEN[None]),
        ("probabilities", IMAGE, EVEN[:0]),
        ("probabilities", IMAGE, EVEN * 3),
        ("probabilities", IMAGE, EVEN - 1),
        ("probabilities", IMAGE, EVEN * math.nan),
        ("probabilities", IMAGE, EVEN + math.inf),
        ("probabilities", IMAGE, EVEN.long()),
        ("probabilities", IMAGE, None),
        ("probabilities", IMAGE[:, :0], EVEN[:, :0]),
    ],
    ids=lambda v: None,
)
def test_bad_input(name, image, probabilities):
    with pytest.raises(InputError, match=f"^{name} .*expected.*\\.$"):
        dense_crf(image, probabilities)


BAD = [
    (n, v)
    for n in ("gaussian_weight", "gaussian_sxy", "bilateral_weight", "bilateral_sxy", "bilateral_srgb")
    for v in (-1, math.nan, math.inf, "3", None)
]
BAD += [
    ("gaussian_sxy", 0),
    ("bilateral_sxy", 0),
    ("bilateral_srgb", 0),
    ("iterations", -1),
    ("iterations", 2.5),
    ("iterations", None),
    ("active", -0.1),
    ("active", 1.5),
    ("active", 1),
    ("active", math.nan),
]


@pytest.mark.parametrize("name, value", BAD, ids=str)
def test_bad_params(name, value):
    with pytest.raises(InputError, match=f"^CRFParams\\.{name} is .*expected.*\\.$"):
        CRFParams(**{name: value})


def test_missing_library(monkeypatch):
    import sys

    for name in ("pydensecrf", "pydensecrf.densecrf"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match="pydensecrf2"):
        dense_crf(*scene(2, 8, 8))
