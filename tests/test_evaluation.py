"Confusion, IoU, threshold sweep and the server's archive against brute force; files that do not fit."

import json
import tarfile

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torchvision import tv_tensors

from wegformer.data import IGNORE, PALETTE, InputError, read_mask, write_mask
from wegformer.evaluation import (
    Evaluation,
    best_threshold,
    compare,
    confusion,
    evaluate,
    export_voc_server,
    iou,
    mean_iou,
    show_confusion,
    show_predictions,
)

matplotlib.use("Agg")


class Masks:
    "A data set in memory."

    def __init__(self, masks, num_classes=3, classes=None):
        self.masks, self.num_classes, self.split = masks, num_classes, "val"
        self.classes = ("background", *(f"class{c}" for c in range(1, num_classes + 1)))
        self.ids, self.own = [f"id_{i}" for i in range(len(masks))], classes

    def __len__(self):
        return len(self.masks)

    def mask(self, i):
        return tv_tensors.Mask(torch.as_tensor(self.masks[i]))

    def size(self, i):
        return tuple(self.masks[i].shape)

    def image(self, i):
        return tv_tensors.Image(torch.zeros(3, *self.masks[i].shape, dtype=torch.uint8))

    def class_ids(self, i):
        return torch.tensor(self.own[i], dtype=torch.int64)


def brute_force_iou(pairs, num_classes, ignored_as=None):
    "Per class: intersection and union counted pixel set by pixel set over all images."
    result = []
    for c in range(num_classes):
        intersection = union = truth_pixels = 0
        for prediction, truth in pairs:
            valid = truth != IGNORE
            if ignored_as is None:
                valid = valid & (prediction != IGNORE)
            else:
                prediction = np.where(prediction == IGNORE, ignored_as, prediction)
            p, t = (prediction == c) & valid, (truth == c) & valid
            intersection, union, truth_pixels = (
                intersection + (p & t).sum(),
                union + (p | t).sum(),
                truth_pixels + t.sum(),
            )
        result.append(intersection / union if truth_pixels else np.nan)
    return np.array(result)


LABELS = st.sampled_from([0, 1, 2, 3, IGNORE])


@st.composite
def pairs(draw):
    shapes = draw(st.lists(hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), min_size=1, max_size=4))
    return [tuple(draw(hnp.arrays(np.uint8, shape, elements=LABELS)) for _ in range(2)) for shape in shapes]


@settings(max_examples=150, deadline=None)
@given(pairs())
def test_iou_equals_brute_force(pairs):
    for ignored_as in (None, 0):
        matrix = confusion(
            [tuple(map(torch.from_numpy, pair)) for pair in pairs], 4, IGNORE if ignored_as is None else ignored_as
        )
        expected = brute_force_iou(pairs, 4, ignored_as)
        np.testing.assert_allclose(iou(matrix).numpy(), expected)
        if np.isnan(expected).all():
            assert np.isnan(mean_iou(matrix))
        else:
            assert mean_iou(matrix) == pytest.approx(100 * np.nanmean(expected))


@settings(max_examples=60, deadline=None)
@given(pairs())
def test_confusion_is_additive(pairs):
    tensors = [tuple(map(torch.from_numpy, pair)) for pair in pairs]
    total = confusion(tensors, 4)
    assert total.dtype == torch.int64 and torch.equal(total, sum(confusion([pair], 4) for pair in tensors))
    assert total.sum() == sum(((p != IGNORE) & (t != IGNORE)).sum().item() for p, t in tensors)


def test_confusion_of_nothing_is_zero():
    assert torch.equal(confusion([], 3), torch.zeros(3, 3, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_confusion_takes_any_integer(dtype):
    x = torch.tensor([[0, 1], [2, 255]]).to(dtype)
    assert torch.equal(confusion([(x, x)], 3), torch.eye(3, dtype=torch.long))


@pytest.mark.parametrize("where", ["prediction", "truth"])
def test_unknown_class_is_refused(where):
    good, bad = torch.zeros(2, 2, dtype=torch.uint8), torch.full((2, 2), 9, dtype=torch.uint8)
    with pytest.raises(InputError, match=f"{where} holds class 9; expected 0..3"):
        confusion([(bad, good) if where == "prediction" else (good, bad)], 4)


# ---- a folder


@settings(max_examples=25, deadline=None)
@given(pairs())
def test_evaluate_a_folder(tmp_path_factory, pairs):
    folder, data = tmp_path_factory.mktemp("p"), Masks([truth for _, truth in pairs])
    for name, (prediction, _) in zip(data.ids, pairs):
        write_mask(folder / f"{name}.png", torch.from_numpy(prediction))
    if not any(((truth > 0) & (truth != IGNORE)).any() for _, truth in pairs):
        with pytest.raises(InputError, match="No mask of split 'val' holds any class"):
            evaluate(folder, data)
        return
    result = evaluate(folder, data)
    np.testing.assert_allclose(list(result.iou.values()), 100 * brute_force_iou(pairs, 4))
    strict = brute_force_iou(pairs, 4, ignored_as=0)
    assert result.strict_miou == pytest.approx(
        100 * np.nanmean(strict) if not np.isnan(strict).all() else np.nan, nan_ok=True
    )
    valid = sum((t != IGNORE).sum() for _, t in pairs)
    skipped = sum(((t != IGNORE) & (p == IGNORE)).sum() for p, t in pairs)
    right = sum(((t != IGNORE) & (p == t)).sum() for p, t in pairs)
    assert result.ignored == pytest.approx(100 * skipped / valid if valid else np.nan, nan_ok=True)
    assert result.pixel_accuracy == pytest.approx(
        100 * right / (valid - skipped) if valid > skipped else np.nan, nan_ok=True
    )
    assert result.images == len(pairs) and list(result.iou) == list(data.classes)
    text = result.to_json()
    assert "NaN" not in text and json.loads(text) == result.to_dict()
    assert Evaluation.from_json(text).to_json() == text


@settings(max_examples=25, deadline=None)
@given(pairs(), st.integers(0, 3))
def test_compare_equals_a_bootstrap_by_hand(tmp_path_factory, pairs, seed):
    data, folders = Masks([truth for _, truth in pairs]), [tmp_path_factory.mktemp("p") for _ in range(2)]
    both = [[p for p, _ in pairs], [np.where(p == 1, 2, p) for p, _ in pairs]]
    for folder, predictions in zip(folders, both):
        for name, p in zip(data.ids, predictions):
            write_mask(folder / f"{name}.png", torch.from_numpy(p.astype(np.uint8)))

    def gap(picks):
        one, other = (100 * brute_force_iou([(side[i], pairs[i][1]) for i in picks], 4)[[0, 2]] for side in both)
        return np.nan if np.isnan(one).all() or np.isnan(other).all() else np.nanmean(one) - np.nanmean(other)

    n = len(pairs)
    gaps = [
        gap(np.repeat(np.arange(n), count))
        for count in np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), 40)
    ]
    found = compare(*folders, data, [data.classes[0], data.classes[2]], repeats=40, seed=seed)
    low, high = (np.nan, np.nan) if np.isnan(gaps).all() else np.nanquantile(gaps, [0.025, 0.975])
    np.testing.assert_allclose([found.miou, found.low, found.high], [gap(range(n)), low, high], atol=1e-9)
    with pytest.raises(InputError, match="Class 'tiger' is not known"):
        compare(*folders, data, ["tiger"])


def test_files_that_do_not_fit_are_named(tmp_path):
    data = Masks([np.zeros((4, 5), np.uint8), np.zeros((3, 3), np.uint8)])
    write_mask(tmp_path / "id_0.png", torch.zeros(4, 5, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"id_1.png does not exist \(1 of 2"):
        evaluate(tmp_path, data)
    write_mask(tmp_path / "id_1.png", torch.zeros(3, 4, dtype=torch.uint8))
    with pytest.raises(InputError, match="id_1.png is 3x4.*3x3"):
        evaluate(tmp_path, data)
    write_mask(tmp_path / "id_1.png", torch.full((3, 3), 77, dtype=torch.uint8))
    with pytest.raises(InputError, match="id_1.png.*77"):
        evaluate(tmp_path, data)
    (tmp_path / "id_1.png").write_bytes((tmp_path / "id_0.png").read_bytes()[:40])
    with pytest.raises(InputError, match="id_1.png"):
        evaluate(tmp_path, data)


# ---- raw maps


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_best_threshold_equals_brute_force(data):
    n = data.draw(st.integers(1, 3))
    truths, maps, own = [], [], []
    for _ in range(n):
        shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=5))
        classes = sorted(data.draw(st.sets(st.integers(1, 3), max_size=3)))
        truths.append(data.draw(hnp.arrays(np.uint8, shape, elements=LABELS)))
        values = st.one_of(
            st.floats(0, 1, width=32), st.sampled_from([0.0, 0.25, 0.5, 1.0])
        )  # also exactly on a threshold
        maps.append(torch.from_numpy(data.draw(hnp.arrays(np.float32, (len(classes), *shape), elements=values))))
        own.append(classes)
    thresholds = (0.0, 0.1, 0.25, 0.5, 0.9)
    sweep = best_threshold(iter(maps), Masks(truths, 3, own), thresholds)
    for threshold, miou in zip(thresholds, sweep.mious):
        predictions = []
        for m, classes in zip(maps, own):
            channels = torch.cat(
                [torch.full((1, *m.shape[1:]), threshold), m]
            )  # the constant background first: it wins ties
            predictions.append(torch.tensor([0, *classes])[channels.argmax(0)].numpy())
        expected = brute_force_iou(list(zip(predictions, truths)), 4)
        assert miou == pytest.approx(
            100 * np.nanmean(expected) if not np.isnan(expected).all() else np.nan, nan_ok=True
        )
    if not np.isnan(sweep.mious).all():
        assert sweep.miou == np.nanmax(sweep.mious) and sweep.threshold == thresholds[int(np.nanargmax(sweep.mious))]


def test_best_threshold_refuses_what_does_not_fit():
    data = Masks([np.zeros((4, 5), np.uint8)] * 2, 3, [[1], [1, 2]])
    fits = [torch.zeros(1, 4, 5), torch.zeros(2, 4, 5)]
    for maps, message in ((fits[:1], "hold 1 images"), (fits * 2, "hold more images"), (fits[::-1], "id_0 are")):
        with pytest.raises(InputError, match=message):
            best_threshold(maps, data)
    for thresholds in ((), (0.5, 0.5), (0.5, 0.1)):
        with pytest.raises(InputError, match="ascending"):
            best_threshold(fits, data, thresholds)


# ---- pictures


def test_pictures_are_drawn(tmp_path):
    data = Masks(
        [np.random.default_rng(i).choice([0, 1, 2, IGNORE], (20, 30 - 5 * i)).astype(np.uint8) for i in range(3)]
    )
    for i, name in enumerate(data.ids):
        write_mask(tmp_path / f"{name}.png", data.mask(i).flip(0))
    figure = show_predictions(data, tmp_path, (0, 2))
    assert len(figure.axes) == 8 and {t.get_text() for t in figure.legends[0].texts} >= {
        "background",
        "class1",
        "ignored",
        "wrong",
    }
    errors = figure.axes[3].images[0].get_array()
    assert errors.shape == (20, 30, 3)
    ax = show_confusion(evaluate(tmp_path, data))
    assert [t.get_text() for t in ax.get_xticklabels()] == list(data.classes)
    matplotlib.pyplot.close("all")


# ---- the server


@pytest.fixture
def predictions(tmp_path):
    data = Masks([np.full((4, 5 + i), i, np.uint8) for i in range(3)], 20)
    for i, name in enumerate(data.ids):
        write_mask(tmp_path / "p" / f"{name}.png", data.mask(i))
    return tmp_path / "p", data


@pytest.mark.parametrize("competition", ["comp5", "comp6"])
def test_archive_layout(predictions, tmp_path, competition):
    folder, data = predictions
    out = export_voc_server(folder, tmp_path / "out" / "results.tar.gz", dataset=data, competition=competition)
    with tarfile.open(out, "r:gz") as archive:
        assert archive.getnames() == [
            f"results/VOC2012/Segmentation/{competition}_test_cls/id_{i}.png" for i in range(3)
        ]
        for i, member in enumerate(archive.getmembers()):
            picture = Image.open(archive.extractfile(member))
            assert picture.mode == "P" and picture.size == (5 + i, 4) and (np.array(picture) == i).all()
            assert picture.getpalette()[:63] == PALETTE[:21].flatten().tolist()
    again = export_voc_server(folder, tmp_path / "again.tar.gz")  # without a data set: whatever is there
    with tarfile.open(again) as archive:
        assert len(archive.getnames()) == 3


def test_archive_refuses_what_the_server_would(predictions, tmp_path):
    folder, data = predictions
    out = tmp_path / "r.tar.gz"
    with pytest.raises(InputError, match="competition is 'comp7'"):
        export_voc_server(folder, out, competition="comp7")
    with pytest.raises(InputError, match="tar.gz"):
        export_voc_server(folder, tmp_path / "r.zip")
    with pytest.raises(InputError, match="holds no predictions"):
        export_voc_server(tmp_path / "nowhere", out)
    for bad, message in (
        (torch.full((4, 6), 21), "holds the value 21"),
        (torch.full((4, 6), IGNORE), "holds the value 255"),
        (torch.zeros(6, 4), "id_1.png is 6x4"),
    ):
        write_mask(folder / "id_1.png", bad.to(torch.uint8))
        with pytest.raises(InputError, match=message):
            export_voc_server(folder, out, dataset=data)
    (folder / "id_1.png").unlink()
    with pytest.raises(InputError, match="id_1.png does not exist"):
        export_voc_server(folder, out, dataset=data)
    assert not out.exists() and not list(tmp_path.glob(".r.tar.gz*"))  # nothing half-written stays


def test_toy_truth_scores_100(tmp_path):
    "The whole way through files: VOCDataset, palette PNGs, evaluate."
    from wegformer.data import VOCDataset
    from wegformer.toyvoc import make_toy_voc

    data = VOCDataset(make_toy_voc(tmp_path / "toy", train=4, val=6), "val")
    for i, name in enumerate(data.ids):
        write_mask(tmp_path / "p" / f"{name}.png", data.mask(i))  # 255 in truth and prediction alike
    result = evaluate(tmp_path / "p", data)
    assert result.miou == 100 and result.ignored == 0
    assert read_mask(tmp_path / "p" / f"{data.ids[0]}.png").shape == data.mask(0).shape
