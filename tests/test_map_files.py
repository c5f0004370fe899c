"""Files of attention maps: exact, small, the same whoever makes them, and made again where they are damaged."""

import threading
from contextlib import closing

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import wegformer.map_files as map_files
import wegformer.networks.toy  # noqa: F401 (registers with timm)
from wegformer.attention import AttentionConfig, at_scales, attention_maps, batch_grids, join_views
from wegformer.classifier import patch_size, size_of_whole_patches
from wegformer.data import InputError, VOCDataset
from wegformer.map_files import (
    fixed_batches,
    in_background,
    _is_whole,
    read_attention,
    save_attention,
    write_attention_maps,
)

OPTIONS = [
    {},
    dict(join="max"),
    dict(flip=False),
    dict(blocks=(0, 1)),
    dict(blocks=(0, 1), join="max"),
    dict(method="cam"),
]


def small_config(**options):
    return AttentionConfig(**dict(long_side=32, scales=(0.5, 1.0), precision="no") | options)


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    size = dict(img_size=48, patch_size=8, embed_dim=24, depth=2, num_heads=3)
    return timm.create_model("vit_tiny_patch16_224", num_classes=9, dynamic_img_size=True, **size).eval()


@pytest.fixture(scope="module")
def cnn():
    torch.manual_seed(0)
    return timm.create_model("resnet18", num_classes=9).eval()


@pytest.fixture
def odd_voc(tmp_path):
    "Photographs of odd sizes, one without a class, ids with a folder; cameras a and b saw pictures of one size."
    root, sizes = (
        tmp_path / "voc",
        {"a/1": (24, 31), "one": (1, 1), "a/2": (24, 31), "wide": (3, 500), "none": (24, 31)},
    )
    sizes |= {"b/1": (24, 32), "b/2": (24, 31), "tall": (17, 5)}
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join("abcdefghi"))
    rng, table = np.random.default_rng(0), {}
    for k, (name, size) in enumerate(sizes.items()):
        path = root / "JPEGImages" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
        table[name] = np.zeros(9, np.float32)
        table[name][[] if name == "none" else [k % 9, (2 * k + 3) % 9]] = 1
    np.save(root / "cls_labels.npy", table)
    (root / "ImageSets/Segmentation/train.txt").write_text("one\n")
    voc = VOCDataset(root, "train", labels="npy")
    voc.ids = list(sizes)
    return voc


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (3, 500), (31, 57)], ids=str)
def test_a_file_gives_the_very_maps(vit, tmp_path, options, size):
    config, classes = small_config(**options), torch.tensor([1, 4, 9])
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    (grids,) = batch_grids(vit, [x[None] for x in at_scales(image, config, 8)], [classes], config)
    save_attention(tmp_path / "x.npz", grids, classes, size, config.join)
    maps, ids = read_attention(tmp_path / "x.npz")
    assert torch.equal(maps, attention_maps(vit, image, classes, config)) and torch.equal(ids, classes)
    assert maps.shape[-3:] == (3, *size) and maps.dtype == torch.float32 and ids.dtype == torch.int64
    assert 0 <= maps.min() and maps.max() <= 1


def test_adding_mirror_images_on_the_grid_is_adding_them_enlarged(vit):
    image, classes = torch.randint(0, 256, (3, 31, 57), dtype=torch.uint8), torch.tensor([2, 3])
    config = small_config(join="max")  # keeps the views apart
    (grids,) = batch_grids(vit, [x[None] for x in at_scales(image, config, 8)], [classes], config)
    assert {len(g) for g in grids} == {2}
    assert torch.allclose(
        join_views(grids, (31, 57), "sum"), attention_maps(vit, image, classes, small_config()), atol=1e-5
    )


@pytest.mark.parametrize("network", ["vit", "cnn"])
@pytest.mark.parametrize("options", [{}, dict(join="max", flip=False)], ids=str)
def test_batches_equal_photographs_one_by_one(request, odd_voc, tmp_path, network, options):
    model, config = request.getfixturevalue(network), small_config(method="cam", **options)
    assert max(map(len, fixed_batches(odd_voc, config, patch_size(model)))) > 1
    write_attention_maps(model, odd_voc, tmp_path / "out", config)
    for i, name in enumerate(odd_voc.ids):
        ids, images = odd_voc.class_ids(i), at_scales(odd_voc.image(i), config, patch_size(model))
        (alone,) = batch_grids(model, [x[None] for x in images], [ids], config)
        with np.load(tmp_path / "out" / f"{name}.npz") as data:
            for k, grid in enumerate(alone):
                assert np.allclose(data[f"scale{k}"], grid, rtol=1e-4, atol=1e-5)
        maps, classes = read_attention(tmp_path / "out" / f"{name}.npz")
        assert torch.equal(classes, ids) and maps.shape == (len(ids), *odd_voc.size(i))


def test_batches_are_of_one_size_within_the_limit_and_cover_all(odd_voc):
    config, whole = small_config(), list(range(len(odd_voc)))
    for tokens in (1, 100, 1 << 14):
        batches = fixed_batches(odd_voc, config, 8, tokens)
        assert sorted(sum(batches, [])) == whole
        for batch in batches:
            sizes = {
                tuple(map(tuple, (size_of_whole_patches(odd_voc.size(i), 32 * s, 8) for s in config.scales)))
                for i in batch
            }
            assert len(sizes) == 1 and batch == sorted(batch)
            cost = sum(2 * len(odd_voc.class_ids(i)) * h * w / 64 for i in batch for h, w in [max(sizes.copy().pop())])
            assert len(batch) == 1 or cost <= tokens or tokens >= len(batch) and cost == 0
    assert [len(odd_voc.class_ids(i)) > 0 for batch in batches for i in batch if odd_voc.ids[i] == "none"] == [False]


@pytest.mark.parametrize("count", [2, 3])
def test_parts_make_the_bytes_of_the_whole(vit, odd_voc, tmp_path, count):
    config = small_config()
    write_attention_maps(vit, odd_voc, tmp_path / "whole", config)
    for place in reversed(range(count)):
        write_attention_maps(vit, odd_voc, tmp_path / "parts", config, share=(place, count))
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert set(contents(tmp_path / "whole")) == {f"{name}.npz" for name in odd_voc.ids}


def test_damaged_files_are_made_again_with_their_batch_and_no_other(vit, odd_voc, tmp_path):
    out, config = tmp_path / "out", small_config()
    write_attention_maps(vit, odd_voc, out, config)
    before = contents(out)
    times = {name: (out / f"{name}.npz").stat().st_mtime_ns for name in odd_voc.ids}
    (out / "a/1.npz").write_bytes(b"")
    (out / "wide.npz").unlink()
    (out / "one.npz").write_bytes(before["one.npz"][:-50])
    write_attention_maps(vit, odd_voc, out, config)
    assert contents(out) == before
    hit = [
        batch for batch in fixed_batches(odd_voc, config, 8) if {"a/1", "wide", "one"} & {odd_voc.ids[i] for i in batch}
    ]
    untouched = {name for name in odd_voc.ids if (out / f"{name}.npz").stat().st_mtime_ns == times[name]}
    assert untouched == set(odd_voc.ids) - {odd_voc.ids[i] for batch in hit for i in batch} != set()


@pytest.mark.parametrize("n", [1, 2, 4])
def test_killed_in_between(vit, odd_voc, tmp_path, killed_at, n):
    config = small_config()
    write_attention_maps(vit, odd_voc, tmp_path / "whole", config)
    with killed_at(map_files, "save_attention", n):
        write_attention_maps(vit, odd_voc, tmp_path / "out", config)
    assert len(contents(tmp_path / "out")) < len(odd_voc) and threading.active_count() == threads_alive()
    write_attention_maps(vit, odd_voc, tmp_path / "out", config)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def threads_alive():
    return sum(not t.name.startswith("ThreadPoolExecutor") for t in threading.enumerate())


def test_an_error_of_a_thread_names_the_photograph(vit, odd_voc, tmp_path):
    path = odd_voc.root / "JPEGImages/b/1.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="b/1.jpg cannot be read"):
        write_attention_maps(vit, odd_voc, tmp_path / "out", small_config())
    assert threading.active_count() == threads_alive()


def test_an_error_of_writing_surfaces(vit, odd_voc, tmp_path):
    (tmp_path / "out/a/2.npz").mkdir(parents=True)  # a folder where a file is to be
    with pytest.raises(OSError, match="a/2.npz could not be written"):
        write_attention_maps(vit, odd_voc, tmp_path / "out", small_config())


def test_work_is_dropped_when_its_caller_stops():
    begun, go = [], threading.Event()

    def work(n):
        begun.append(n)
        go.wait()
        return n

    pieces = iter(range(100))
    with closing(in_background(work, pieces, ahead=2)) as results:
        go.set()
        assert next(results) == 0
    assert next(pieces) == 3 and set(begun) <= {0, 1, 2}


@pytest.mark.parametrize(
    "damage",
    [lambda b: b"", lambda b: b[:-30], lambda b: b[:100], lambda b: b"no archive", lambda b: b[:300] + b"?" + b[301:]],
)
def test_damaged_files_are_refused_in_a_sentence(tmp_path, damage):
    path = tmp_path / "x.npz"
    save_attention(path, [torch.rand(1, 2, 4, 5)], torch.tensor([1, 2]), (30, 40), "sum")
    assert _is_whole(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="x.npz cannot be read: ") as error:
        read_attention(path)
    assert "pickle" not in str(error.value) and not _is_whole(path)


@pytest.mark.parametrize(
    "arrays",
    [
        dict(
            attention=np.zeros((2, 30, 40), np.float16), classes=np.array([1, 2], np.uint8)
        ),  # as earlier versions wrote
        dict(scale0=np.zeros((1, 3, 4, 5), np.float32), classes=np.array([1, 2], np.uint8), size=(30, 40), join="sum"),
        dict(scale0=np.zeros((1, 2, 4, 5), np.float32), classes=np.array([1, 2], np.uint8), size=(30, 40), join="mean"),
    ],
)
def test_other_archives_are_refused(tmp_path, arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match="x.npz cannot be read"):
        read_attention(tmp_path / "x.npz")
    with pytest.raises(InputError, match="gone.npz do not exist"):
        read_attention(tmp_path / "gone.npz")


@pytest.mark.parametrize("classes, kilobytes", [(1, 13), (2, 24), (5, 56)])
def test_a_photograph_of_voc_takes_few_kilobytes(tmp_path, classes, kilobytes):
    grids = [torch.rand(1, classes, 12 * k, 16 * k) for k in (1, 2, 3)]
    save_attention(tmp_path / "x.npz", grids, torch.arange(classes) + 1, (375, 500), "sum")
    assert (tmp_path / "x.npz").stat().st_size < 1000 * kilobytes
