"What benchmarks/voc_subset/climb.py measures labels by, against the package's own evaluation."

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from wegformer.config import preset
from wegformer.data import CLASSES, IGNORE, VOCDataset, write_mask
from wegformer.evaluation import confusion, iou
from wegformer.pseudo_labels import LabelRule

sys.path[:0] = [str(Path(__file__).parents[1] / "benchmarks"), str(Path(__file__).parents[1] / "benchmarks/voc_subset")]
import climb
from gallery import QUANTILES, gallery, picks


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([*range(len(CLASSES)), IGNORE], dtype=torch.uint8)
    return [[values[torch.randint(len(values), (30, 40), generator=generator)] for _ in range(5)] for _ in range(2)]


def test_pixels_are_counted_as_the_package_counts_them(pairs):
    labels, masks = pairs
    counts = sum(climb.counted(*pair, len(CLASSES)) for pair in zip(labels, masks))
    assert torch.equal(counts[:, :-1], confusion(zip(labels, masks), len(CLASSES)))
    strict = counts[:, :-1].clone()
    strict[:, 0] += counts[:, -1]
    assert torch.equal(strict, confusion(zip(labels, masks), len(CLASSES), 0))


def test_quality_is_over_the_background_and_eight_classes(pairs):
    labels, masks = pairs
    found, nine = climb.quality(labels, masks, CLASSES), [CLASSES.index(name) for name in climb.SOME]
    for key, ignored_as in (("miou", IGNORE), ("strict", 0)):
        expected = 100 * iou(confusion(zip(labels, masks), len(CLASSES), ignored_as))[nine].mean()
        assert found[key] == pytest.approx(float(expected))
    assert found["low"] < found["strict"] < found["high"] and found["photographs"] == 5
    assert found["ignored"] == pytest.approx(100 * sum(float((x == IGNORE).float().mean()) for x in labels) / 5)


@pytest.mark.parametrize("kind", climb.KINDS)
def test_each_kind_of_map_is_a_row_that_runs(kind):
    row = climb.rung(preset("smoke"), climb.KINDS[kind], LabelRule(), "good", 0.9, 5)
    assert (row.labels.quantile, row.labels.par) == (0.9, 5)
    place = climb.KINDS[kind].get("place")
    assert row.labels.block == (None if place is None else row.attention.blocks[place])
    assert dataclasses.asdict(row.classifier) == dataclasses.asdict(preset("smoke").classifier)


def test_the_gallery_is_chosen_by_a_rule(toy_root, tmp_path):
    "Masks that get worse from photograph to photograph: the middles of the quarters, best first, and nothing by eye."
    val = VOCDataset(toy_root, "val")
    for i, name in enumerate(val.ids):
        mask = val.mask(i)
        wrong = torch.rand(mask.shape, generator=torch.Generator().manual_seed(i)) < (i + 1) / (len(val) + 1)
        write_mask(tmp_path / "worse" / f"{name}.png", torch.where(wrong, 1 + val.class_ids(i)[0] % 9, mask).byte())
    chosen = picks(tmp_path / "worse", val)
    last = len(val) - 1
    assert [i for _, i in chosen[:4]] == [last - round(q * last) for q in QUANTILES]
    drawn = gallery({"worse": tmp_path / "worse"}, "worse", val, tmp_path / "gallery.png")
    assert [row["photograph"] for row in drawn] == [val.ids[i] for _, i in chosen]
    assert (tmp_path / "gallery.png").stat().st_size > 1000
