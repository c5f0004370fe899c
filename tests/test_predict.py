"`wegformer predict`: tiles that leave no trace, folders, side files, resume, refusals, every kind of picture."

import dataclasses
import json
import os
import re
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from wegformer import predictions
from wegformer.cli import main
from wegformer.crf import CRFParams, dense_crf
from wegformer.data import PALETTE, InputError, read_classes, read_image, read_mask, write_mask
from wegformer.deeplab import Segmenter
from wegformer.predictions import Predictor, find_inputs, open_predictor, predict_photographs, write_overlay
from wegformer.segmentation import SegmenterConfig, create_segmenter, predict
from wegformer.tiles import GRID, Tiling, fade, tiled_label
from wegformer.training import save_weights

NAMES = ("background", "cat", "dog")
SMALL = dict(
    backbone="resnet_toy", pretrained=False, decoder_channels=16, test_scales=(1.0,), precision="no", crf=False
)


def write_network(path, seed=0, names=NAMES, **changes):
    torch.manual_seed(seed)
    config = SegmenterConfig(**SMALL | changes)
    header = dict(config=json.dumps(asdict(config)), classes=json.dumps(names))
    save_weights(create_segmenter(config, len(names)), path, **header)
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return write_network(tmp_path_factory.mktemp("network") / "model.safetensors")


def by_colour(image):
    "Three classes: how red, green and blue a pixel is."
    return image.float() / 255


@dataclasses.dataclass(frozen=True)
class ByColour(Predictor):
    def score(self, image):
        return by_colour(image)


def of_colours(tiling=Tiling()):  # noqa: B008 (frozen)
    return ByColour(None, NAMES, "by colour", (1.0,), False, False, "no", tiling)


def quarters(height=40, width=60):
    "Red at the left, green at the right, blue above."
    array = np.zeros((height, width, 3), dtype=np.uint8)
    array[:, : width // 2, 0] = array[:, width // 2 :, 1] = 200
    array[: height // 4] = (0, 0, 200)
    return Image.fromarray(array)


def photographs(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        quarters().save(path)
    return folder


def run(*words):
    return main(["predict", *map(str, words)])


# ---- tiles


@pytest.mark.parametrize("tiling", [Tiling(), Tiling(256, 64), Tiling(384, 128), Tiling(576, 192), Tiling(1024, 64)])
def test_tiles_lie_on_the_grid_and_cover_a_side(tiling):
    for length in [*range(1, 1800, 7), 4000, 6000]:
        spans = tiling.spans(length)
        assert spans[0][0] == 0 and spans[-1][1] == length
        for start, end in spans:
            assert start % GRID == 0 and (length - end) % GRID == 0 and 0 < end - start <= tiling.tile
        for (_, end), (start, _) in zip(spans, spans[1:]):
            assert tiling.overlap <= end - start == tiling.shared(length)
        assert all(a[1] <= c[0] for a, c in zip(spans, spans[2:]))  # three never share a pixel
        weight = torch.zeros(length)
        for start, end in spans:
            weight[start:end] += fade((start, end), length, tiling.shared(length))
        assert torch.allclose(weight, torch.ones(length), atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (256, 256), (257, 256), (1, 900), (300, 701), (641, 640)])
def test_where_pixels_are_judged_alone_tiles_leave_no_trace(size):
    torch.manual_seed(0)
    image, tiling, seen = torch.randint(0, 256, (3, *size), dtype=torch.uint8), Tiling(256, 64), []

    def score(tile):
        seen.append(tile.shape[-2:])
        return by_colour(tile)

    assert torch.equal(tiled_label(score, image, tiling), image.argmax(0).to(torch.uint8))
    assert len(seen) == len(tiling.spans(size[0])) * len(tiling.spans(size[1]))
    assert max(max(shape) for shape in seen) <= 256


class Near(nn.Module):
    "A backbone that sees less than 32 pixels far."

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Conv2d(c, 16, 3, 2, 1), nn.Tanh()) for c in (3, 16, 16)))

    def forward(self, images):
        return [self.layers(images)]


class Last(nn.Conv2d):
    def forward(self, features):
        return super().forward(features[-1])


@pytest.fixture(scope="module")
def near():
    torch.manual_seed(0)
    model = Segmenter(Near(), Last(16, 5, 1), 8).eval()
    nn.init.normal_(model.head.weight, std=3)
    return model


@pytest.mark.parametrize(
    "size, tiling, scales, flip",
    [
        ((333, 501), (384, 128), (1.0,), False),
        ((333, 501), (384, 128), (1.0,), True),  # the mirrored grid begins at the other end
        ((300, 700), (576, 192), (0.75, 1.5), True),
        ((420, 420), (384, 128), (1.25,), False),
    ],
)
def test_a_network_that_does_not_see_far_is_not_disturbed(near, size, tiling, scales, flip):
    "1e-4 of a probability: sums, and places between cells, are rounded in another way."
    torch.manual_seed(1)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    score = partial(predict, near, scales=scales, flip=flip)
    whole, label = score(image), tiled_label(score, image, Tiling(*tiling)).long()
    assert len(whole.argmax(0).unique()) > 2
    assert (whole.amax(0) - whole.gather(0, label[None])[0]).max() < 1e-4


def test_off_the_grid_it_would_be_disturbed(near, monkeypatch):
    "That the test above can fail: a tile that begins three pixels beside the grid."
    torch.manual_seed(1)
    image = torch.randint(0, 256, (3, 333, 501), dtype=torch.uint8)
    whole = predict(near, image)
    monkeypatch.setattr(Tiling, "spans", lambda self, n: [(0, n)] if n == 333 else [(0, 309), (131, 501)])
    monkeypatch.setattr(Tiling, "shared", lambda self, n: 178)
    label = tiled_label(partial(predict, near), image, Tiling(384, 128)).long()
    assert (whole.amax(0) - whole.gather(0, label[None])[0]).max() > 1e-2


def test_one_tile_is_the_whole_picture(network, toy_root):
    image = read_image(min((toy_root / "JPEGImages").iterdir()))
    predictor = open_predictor(network, Tiling())
    whole = predict(predictor.model, image, scales=predictor.scales, flip=predictor.flip)
    assert torch.equal(predictor.label(image), whole.argmax(0).to(torch.uint8))


def test_the_crf_works_on_tiles(tmp_path, monkeypatch):
    predictor = open_predictor(write_network(tmp_path / "m.safetensors", test_flip=False, crf=True), Tiling(256, 64))
    image, asked = torch.randint(0, 256, (3, 40, 300), dtype=torch.uint8), []
    monkeypatch.setattr(predictions, "dense_crf", lambda x, p, c: asked.append(x.shape[-2:]) or dense_crf(x, p, c))
    assert predictor.label(image).shape == (40, 300) and len(asked) == 2 and max(w for _, w in asked) <= 256
    small = image[..., :100]
    expected = dense_crf(small, predict(predictor.model, small), CRFParams()).argmax(0)
    assert torch.equal(predictor.label(small).long(), expected)
    assert not open_predictor(tmp_path / "m.safetensors", Tiling(), crf=False).crf


def test_an_absent_crf_is_refused_before_the_first_photograph(network, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(InputError, match="pydensecrf2"):
        open_predictor(network, Tiling(), crf=True)


# ---- folders


def test_sub_folders_are_kept(tmp_path, network, capsys):
    names = "a.jpg", "cam1/7.PNG", "cam1/deep/8.webp", "cam2/7.bmp", ".hidden/9.jpg", "._x.jpg"
    root = photographs(tmp_path / "photos", *names)
    (root / "notes.txt").write_text("nothing")
    out = root / "masks"  # inside: left out when the folder is searched again
    for made in ("4 masks: ", r"4 masks (4 of them were there): "):
        assert run(root, "--segmenter", network, "--out", out) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"{made}{out}"
    masks = {"a", "cam1/7", "cam1/deep/8", "cam2/7"}
    expected = {f"{name}{end}.png" for name in masks for end in ("", "_overlay")} | {"classes.txt", "classes.json"}
    assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == expected
    assert {read_mask(out / f"{name}.png").shape for name in masks} == {(40, 60)}


def test_several_folders_get_folders_of_their_own(tmp_path):
    for folder in ("x", "y"):
        photographs(tmp_path / folder, "1.jpg")
    single = photographs(tmp_path, "z.jpg") / "z.jpg"
    found = find_inputs([tmp_path / "x", tmp_path / "y", single], tmp_path / "out")
    assert found == {"x/1": tmp_path / "x/1.jpg", "y/1": tmp_path / "y/1.jpg", "z": single}


def test_masks_never_lie_among_photographs(tmp_path):
    root = photographs(tmp_path / "photos", "cam1/7.jpg", "cam2/7.jpg")
    with pytest.raises(InputError, match="cam1 holds the photographs themselves"):
        find_inputs([root], root)
    with pytest.raises(InputError, match="cam1 lies among the photographs and holds 7.jpg"):
        find_inputs([root], root / "cam1")
    photographs(root, "cam1/7.png")
    with pytest.raises(InputError, match="7.jpg and cam1/7.png"):
        find_inputs([root], tmp_path / "out")
    photographs(tmp_path / "pair", "a.jpg", "a_overlay.jpg")
    with pytest.raises(InputError, match="would both be written to"):
        find_inputs([tmp_path / "pair"], tmp_path / "out")


def test_classes_are_named_beside_the_masks(tmp_path, network, capsys):
    root, out = photographs(tmp_path / "photos", "a.jpg"), tmp_path / "out"
    assert run(root, "--segmenter", network, "--out", out, "--no-overlay") == 0
    assert read_classes(out) == NAMES and not (out / "a_overlay.png").exists()
    table = json.loads((out / "classes.json").read_text())
    assert [(row["index"], row["name"]) for row in table] == list(enumerate(NAMES))
    palette = np.array(Image.open(out / "a.png").getpalette()).reshape(-1, 3)
    assert [row["colour"] for row in table] == ["#" + bytes(palette[k].tolist()).hex() for k in range(3)]
    assert (palette[:3] == PALETTE[:3]).all()
    other = write_network(tmp_path / "other.safetensors", names=("background", "cat", "bird"))
    assert run(photographs(tmp_path / "more", "b.jpg"), "--segmenter", other, "--out", out) == 2
    assert "classes.txt holds other classes" in capsys.readouterr().err and not (out / "b.png").exists()


# ---- resume


def test_a_killed_command_goes_on(tmp_path, network, killed_at):
    root, out = photographs(tmp_path / "photos", "a.jpg", "b.jpg", "c.jpg"), tmp_path / "out"
    predictor, found = open_predictor(network, Tiling()), find_inputs([root], out)
    with killed_at(predictions, "write_mask", 2):
        list(predict_photographs(predictor, found, out))
    assert sorted(p.name for p in out.glob("[abc].png")) == ["a.png"] and not list(out.rglob("*.tmp"))
    before = (out / "a.png").stat().st_mtime_ns
    assert [made.kept for made in predict_photographs(predictor, found, out)] == [True, False, False]
    assert (out / "a.png").stat().st_mtime_ns == before
    (out / "b_overlay.png").unlink()  # as if killed between the two
    assert [made.kept for made in predict_photographs(predictor, found, out)] == [True, False, True]
    data = (out / "c.png").read_bytes()
    (out / "c.png").write_bytes(data[: len(data) - 40])  # a note that fits, and half the pixels
    assert [made.kept for made in predict_photographs(predictor, found, out)] == [True, True, False]
    assert (out / "c.png").read_bytes() == data


@pytest.mark.parametrize(
    "change, said",
    [
        ("network", "was made by another network"),
        ("tile", r"was made with other settings \(tile 512, now 384\)"),
        ("photograph", "was made of another photograph"),
        ("foreign", "was not written by this command"),
        ("damaged", "was not written by this command"),
    ],
)
def test_what_others_made_is_not_taken_and_not_lost(tmp_path, network, capsys, change, said):
    root, out = photographs(tmp_path / "photos", "a.jpg", "b.jpg"), tmp_path / "out"
    words = [root, "--segmenter", network, "--out", out]
    assert run(*words) == 0
    if change == "network":
        words[2] = write_network(tmp_path / "other.safetensors", seed=1)
    elif change == "tile":
        words += ["--tile", "384"]
    elif change == "photograph":
        quarters(30, 30).save(root / "a.jpg")
    elif change == "foreign":
        write_mask(out / "a.png", torch.zeros(40, 60, dtype=torch.uint8))
    else:
        (out / "a.png").write_bytes(b"")
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert run(*words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(rf"a.png {said}; expected another folder, or --overwrite", error)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert run(*words, "--overwrite") == 0 and run(*words) == 0
    kept = (out / "b.png").read_bytes() == before[out / "b.png"]  # it carries a note
    assert kept == (change not in ("network", "tile"))


def test_shares_make_the_whole(tmp_path, network, capsys):
    root, out = photographs(tmp_path / "photos", "a.jpg", "b.jpg", "c.jpg"), tmp_path / "out"
    for shard, masks in (("1/2", {"a.png", "c.png"}), ("2/2", {"a.png", "b.png", "c.png"})):
        assert run(root, "--segmenter", network, "--out", out, "--no-overlay", "--shard", shard) == 0
        assert {path.name for path in out.glob("*.png")} == masks


# ---- photographs of every kind


def test_a_bad_photograph_does_not_stop_the_others(tmp_path, network, capsys):
    root = photographs(tmp_path / "photos", "a.png", "b.png", "c.png")
    (root / "b.png").write_bytes((root / "b.png").read_bytes()[:-60])
    Image.new("RGBA", (9, 9), (1, 2, 3, 100)).save(root / "glass.png")
    assert run(root, tmp_path / "gone.jpg", "--segmenter", network, "--out", tmp_path / "out") == 1
    shown = capsys.readouterr()
    told = [line for line in shown.err.splitlines() if line.startswith("wegformer: ")]
    assert len(told) == 3 and all(any(name in line for line in told) for name in ("b.png", "glass.png", "gone.jpg"))
    assert shown.out.splitlines()[-1].startswith("2 masks; 3 of 5 photographs failed")
    assert {path.name for path in (tmp_path / "out").glob("*.png") if "_" not in path.name} == {"a.png", "c.png"}


def test_nothing_readable_is_said_before_anything_is_made(tmp_path, network, capsys):
    (tmp_path / "a.jpg").write_bytes(b"no")
    (tmp_path / "b.jpg").write_bytes(b"")
    assert run(tmp_path / "a.jpg", tmp_path / "b.jpg", "--segmenter", network, "--out", tmp_path / "out") == 2
    assert "None of the 2 photographs can be read; the first: Image" in capsys.readouterr().err
    assert run(tmp_path / "b.jpg", "--segmenter", network, "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith(f"wegformer: Image {tmp_path / 'b.jpg'} is empty")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", range(1, 9))
def test_a_mask_is_turned_as_its_photograph(tmp_path, flag):
    exif = Image.Exif()
    exif[0x0112] = flag
    quarters().save(tmp_path / "a.png", exif=exif)
    list(predict_photographs(of_colours(), {"a": tmp_path / "a.png"}, tmp_path / "out"))
    image = read_image(tmp_path / "a.png")
    assert image.shape[1:] == ((60, 40) if flag >= 5 else (40, 60))
    assert torch.equal(read_mask(tmp_path / "out/a.png").as_subclass(torch.Tensor), image.argmax(0).to(torch.uint8))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
@pytest.mark.parametrize("size", [(40, 60), (1, 1)])
def test_grey_palette_alpha_and_a_single_pixel(tmp_path, network, mode, size):
    deep = Image.fromarray(np.full(size, 40000, dtype=np.uint16))
    picture = deep if mode == "I;16" else quarters(*size).convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I;16") else "a.png")
    picture.save(path)
    (made,) = predict_photographs(open_predictor(network, Tiling()), {"a": path}, tmp_path / "out")
    assert not made.error and read_mask(tmp_path / "out/a.png").shape == size
    assert Image.open(tmp_path / "out/a_overlay.png").size == size[::-1]


def test_the_overlay_of_a_large_photograph_is_smaller(tmp_path):
    label = torch.zeros(100, 4100, dtype=torch.uint8)
    label[:, 2050:] = 2
    write_overlay(tmp_path / "o.png", label, torch.zeros(3, 100, 4100, dtype=torch.uint8))
    shown = np.asarray(Image.open(tmp_path / "o.png"))
    assert shown.shape == (50, 2048, 3) and not shown[:, :1000].any() and shown[:, 1050:].any()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--tile", "700"], "tile is 700; expected a multiple of 64"),
        (["--tile", "192"], "tile is 192; expected at least 256"),
        (["--overlap", "32"], "overlap is 32; expected at least 64"),
        (["--overlap", "320"], "overlap is 320; expected at most a third of the tile of 512"),
    ],
)
def test_tiles_that_make_no_sense(tmp_path, network, capsys, words, said):
    root = photographs(tmp_path / "photos", "a.jpg")
    assert run(root, "--segmenter", network, "--out", tmp_path / "out", *words) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_full_disk_stops_the_command(tmp_path, network, monkeypatch, capsys):
    root = photographs(tmp_path / "photos", "a.jpg", "b.jpg")

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert run(root, "--segmenter", network, "--out", tmp_path / "out") == 2
    assert "No space left on device" in capsys.readouterr().err and not list(Path(tmp_path / "out").rglob("*.tmp"))


@pytest.mark.parametrize("command", [["predict"], ["saliency", "--out", "maps"], ["explain", "--out", "maps.png"]])
@pytest.mark.parametrize("name", ["loop.jpg", "~no-such-user/a.jpg"])
def test_a_path_that_leads_nowhere_is_refused_in_one_line(command, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("loop.jpg").symlink_to("loop.jpg")
    try:
        status = main([*command, name])
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr().err.strip()
    assert status in (1, 2) and len(said.splitlines()) == 1
    assert f"{name} does not exist" in said or f"{name} cannot be read" in said
