"What maps are worth as explanations, beside two maintained libraries and by hand."

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wegformer.data import InputError
from wegformer.map_measures import MapScore, area, measure_table, places, probability_curve, summary


class Tiny(nn.Module):
    "Eight by eight grey pixels to two logits."

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 64, 2)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator) * 0.3
        self.pretrained_cfg = dict(mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(3, 8, 8))

    def forward(self, x):
        return self.head(torch.tanh(self.conv(x.mean(1, keepdim=True))).flatten(1))


@pytest.fixture(scope="module")
def small():
    generator = torch.Generator().manual_seed(4)
    images = torch.randint(0, 256, (5, 1, 8, 8), generator=generator).to(torch.uint8)
    maps = torch.rand(5, 1, 8, 8, generator=generator)
    objects = torch.rand(5, 1, 8, 8, generator=generator) > 0.6
    return Tiny().eval(), images.expand(-1, 3, -1, -1), maps, objects


# quantus 0.6.0 on the same five maps: PointingGame, RelevanceMassAccuracy, and PixelFlipping of the first one with
# features_in_step=8, perturb_baseline=0.0, return_auc_per_sample=False; abs=False, normalise=False, softmax=False
HITS = [False, False, False, True, False]
MASS = [0.375988, 0.439148, 0.388693, 0.514622, 0.467395]
FLIPPED = [0.682915, 0.71537, 0.739885, 0.770059, 0.720984, 0.747429, 0.636604, 0.579596]


def test_like_quantus(small):
    model, images, maps, objects = small
    for found, hit, mass in zip(
        (places(a, m[0].to(torch.uint8), torch.tensor([1]))[0] for a, m in zip(maps, objects)), HITS, MASS
    ):
        assert found.hit == hit and abs(found.inside - mass) < 1e-6
    curve = probability_curve(model, images[0], maps[0, 0], 1, steps=8)
    assert np.abs(curve[1:].numpy() - FLIPPED).max() < 2e-6


@pytest.mark.parametrize("share", [25, 50, 75])
def test_takes_the_pixels_away_that_grad_cam_takes(share, small):
    "pytorch-grad-cam's RemoveMostRelevantFirst, with an imputer that paints what it is told in the mean colour."
    from pytorch_grad_cam.metrics.perturbation_confidence import RemoveMostRelevantFirst

    model, images, maps, _ = small
    x = (images[1].float() / 255 - 0.5) / 0.5
    remove = RemoveMostRelevantFirst(100 - share, lambda image, kept: image * kept)
    theirs = model(remove(x, maps[1, 0])[None])[0].sigmoid()
    for c in (0, 1):
        ours = probability_curve(model, images[1], maps[1, 0], c + 1, steps=4)[share // 25]
        assert abs(ours - theirs[c]) < 1e-6


def test_an_insertion_ends_where_a_deletion_begins(small):
    model, images, maps, _ = small
    away, back = (probability_curve(model, images[2], maps[2, 0], 2, put_back) for put_back in (False, True))
    whole = model(((images[2].float() / 255 - 0.5) / 0.5)[None])[0, 1].sigmoid()
    empty = model(torch.zeros(1, 3, 8, 8))[0, 1].sigmoid()
    assert torch.allclose(torch.stack([away[0], back[-1], away[-1]]), torch.stack([whole, whole, empty]), atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3),
    st.integers(2, 9),
    st.integers(2, 9),
    st.integers(0, 2**31),
    st.sampled_from(["random", "constant", "zero"]),
)
def test_shares_by_loops(count, height, width, seed, kind):
    rng = np.random.default_rng(seed)
    maps = {"random": rng.random((count, height, width)), "constant": np.ones((count, height, width))}.get(
        kind, np.zeros((count, height, width))
    )
    mask, classes = rng.choice([0, 1, 2, 3, 255], (height, width)), np.arange(1, count + 1)
    found = places(torch.from_numpy(maps), torch.from_numpy(mask.astype(np.uint8)), torch.from_numpy(classes))
    counted = mask != 255
    for k, (c, place) in enumerate(zip(classes, found)):
        if not (mask == c).any():
            assert place is None
            continue
        total = maps[k][counted].sum()
        inside = maps[k][mask == c].sum() / total if total else 0
        assert place.inside == pytest.approx(inside) and place.object == pytest.approx(
            (mask == c).sum() / counted.sum()
        )
        best = max((maps[k][y, x], -y * width - x) for y, x in zip(*counted.nonzero()))
        y, x = divmod(-best[1], width)
        assert place.hit == (mask[y, x] == c and maps[k][counted].min() < maps[k][counted].max())
        others = maps[k][np.isin(mask, [d for d in classes if d != c])].sum() / total if total else 0
        assert place.other is None if count == 1 else place.other == pytest.approx(others)
        if count > 1 and kind == "random" and counted.sum() > 2:
            own = [np.corrcoef(maps[k][counted], maps[j][counted])[0, 1] for j in range(count) if j != k]
            assert place.alike == pytest.approx(np.mean(own))


def test_wrong_shapes():
    with pytest.raises(InputError, match=r"maps are \(1, 2, 3\); expected \(1, 3, 2\)"):
        places(torch.zeros(1, 2, 3), torch.zeros(3, 2), torch.tensor([1]))
    with pytest.raises(InputError, match=r"relevance is \(2, 3\); expected \(8, 8\)"):
        probability_curve(Tiny(), torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(2, 3), 1)


def score(image, **values):
    given = dict(class_id=1, hit=True, inside=0.5, object=0.2, other=None, alike=None, deletion=0.1, insertion=0.9)
    return MapScore(image, **{**given, **values})


def test_a_summary_counts_maps_and_draws_pictures():
    scores = [score("a", hit=True), score("b", hit=False, other=0.25, alike=0.5), score("b", inside=0.1, other=0.75)]
    found = summary(scores, repeats=200)
    assert found["pointing game"][0] == pytest.approx(200 / 3) and found["another's"][0] == pytest.approx(50)
    assert found["own object, of several"][0] == pytest.approx(30) and found["correlation"] == pytest.approx([0.5] * 3)
    # two pictures: a draw is a alone, b alone, or both
    assert found["pointing game"][1:] == pytest.approx([50, 100])
    assert summary(scores) == summary(scores)
    alone = summary([score("a")])
    assert "correlation" not in alone and "another's" not in alone and alone["deletion"] == pytest.approx([10] * 3)


def test_a_table_shows_intervals_of_one_seed_and_spread_of_several():
    one, two = summary([score("a")]), summary([score("a", insertion=0.7)])
    assert "| 90 [90, 90] |" in measure_table({"dtd": [one]})
    assert "| 80 ± 14 |" in measure_table({"dtd": [one, two]})
    header, _, line = measure_table({"dtd": [one]}).splitlines()
    assert header.count("|") == line.count("|") and "correlation" not in header


def test_area_is_that_of_numpy():
    curve = torch.rand(11, generator=torch.Generator().manual_seed(0))
    assert area(curve) == pytest.approx(np.trapezoid(curve.numpy(), dx=0.1), rel=1e-6)
    assert dataclasses.asdict(score("a"))["image"] == "a"
