"""Saliency maps for one's own photographs: sizes, resume, faults; U2-Net-p against finished maps of real ones."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from wegformer.data import InputError, read_image, read_saliency
from wegformer.extras.saliency import make_saliency, open_detector, saliency_map, saliency_models


def varint(n):
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def field(number, value):
    "One field of a protocol-buffer message."
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def write_onnx(path, axis=1, size=320):
    "A model of one node, the mean over an axis: over the colours (1) it gives the brightness."

    def port(number, name, shape):
        dims = b"".join(field(1, field(1, d)) for d in shape)
        return field(number, field(1, name) + field(2, field(1, field(1, 1) + field(2, dims))))

    shape = [1, 3, size, size]
    attribute = field(5, field(1, "axes") + field(8, axis) + field(20, 7))
    node = field(1, field(1, "image") + field(2, "saliency") + field(4, "ReduceMean") + attribute)
    result = shape[:axis] + [1] + shape[axis + 1 :]
    graph = node + field(2, "mean") + port(11, "image", shape) + port(12, "saliency", result)
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(2, 13)))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_onnx(tmp_path_factory.mktemp("model") / "brightness.onnx")


def corner(height, width):
    "A dark picture with a bright upper left quarter."
    array = np.full((height, width, 3), 20, dtype=np.uint8)
    array[: height // 2, : width // 2] = 230
    return Image.fromarray(array)


@pytest.mark.parametrize("size", [(40, 60), (61, 33), (320, 320), (500, 375), (8, 200), (1, 1), (2, 3)])
def test_map_lies_on_the_photograph(tmp_path, model, size):
    corner(*size).save(tmp_path / "one.png")
    (path,) = make_saliency([tmp_path / "one.png"], tmp_path / "out", model)
    picture = Image.open(path)
    assert path == tmp_path / "out" / "one.png" and picture.mode == "L" and picture.size == size[::-1]
    saliency = read_saliency(path, size).float()
    if min(size) >= 8:
        inside = saliency[: size[0] // 2 - 2, : size[1] // 2 - 2]
        assert inside.min() > 150 and saliency[size[0] // 2 + 2 :, size[1] // 2 + 2 :].max() < 50


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_modes(tmp_path, model, mode):
    deep = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30))
    picture = deep if mode == "I;16" else corner(20, 30).convert(mode)
    picture.save(tmp_path / ("one.tif" if mode in ("CMYK", "I;16") else "one.png"))
    (path,) = make_saliency([tmp_path], tmp_path / "out", model)
    assert read_saliency(path, (20, 30)).dtype == torch.uint8


@pytest.mark.parametrize("flag", range(1, 9))
def test_rotation_flag(tmp_path, model, flag):
    exif = Image.Exif()
    exif[0x0112] = flag
    corner(40, 60).save(tmp_path / "one.jpg", exif=exif, quality=95)
    (path,) = make_saliency([tmp_path / "one.jpg"], tmp_path / "out", model)
    image = read_image(tmp_path / "one.jpg").float().mean(0)
    saliency = read_saliency(path, tuple(image.shape))
    assert ((saliency > 128) == (image > 128)).float().mean() > 0.97


def test_resume_and_atomic(tmp_path, model, monkeypatch):
    for name in "abc":
        corner(20, 30).save(tmp_path / f"{name}.png")
    (tmp_path / "c.jpg").write_bytes(b"no picture")
    (tmp_path / "c.png").unlink()
    out = tmp_path / "out"
    with pytest.raises(InputError, match="c.jpg"):
        make_saliency([tmp_path], out, model)
    assert sorted(p.name for p in out.iterdir()) == ["a.png", "b.png"]
    before = (out / "a.png").stat().st_mtime_ns
    corner(20, 30).save(tmp_path / "c.jpg")
    assert make_saliency([tmp_path], out, model) == [out / "c.png"]
    assert (out / "a.png").stat().st_mtime_ns == before

    (out / "a.png").unlink()
    monkeypatch.setattr(Image.Image, "save", lambda self, handle, **options: handle.write(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_saliency([tmp_path], out, model)
    assert sorted(p.name for p in out.iterdir()) == ["b.png", "c.png"]


def test_a_damaged_map_is_named(tmp_path):
    corner(8, 8).save(tmp_path / "a.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"half")
    with pytest.raises(InputError, match="Saliency map .*a.png cannot be read"):
        make_saliency([tmp_path / "a.jpg"], tmp_path / "out")


def test_nothing_to_do_needs_no_detector(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rembg", None)
    corner(8, 8).save(tmp_path / "a.jpg")
    (tmp_path / "out").mkdir()
    corner(8, 8).convert("L").save(tmp_path / "out" / "a.png")
    assert make_saliency([tmp_path], tmp_path / "out") == []


@pytest.mark.parametrize("missing", ["rembg", "onnxruntime", "numba"])
def test_not_installed(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match=r"pip install 'wegformer\[saliency\]'"):
        open_detector("u2net")


def test_bad_photographs(tmp_path, model):
    corner(8, 8).save(tmp_path / "a.jpg")
    (tmp_path / "more").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        make_saliency([tmp_path / "more"], tmp_path / "out", model)
    with pytest.raises(InputError, match="b.jpg does not exist"):
        make_saliency([tmp_path / "a.jpg", tmp_path / "b.jpg"], tmp_path / "out", model)
    with pytest.raises(InputError, match="holds the photographs"):
        make_saliency([tmp_path], tmp_path / "more" / "..", model)
    corner(8, 8).save(tmp_path / "more" / "a.png")
    with pytest.raises(InputError, match="would both get the map a.png"):
        make_saliency([tmp_path, tmp_path / "more"], tmp_path / "out", model)
    assert not (tmp_path / "out").exists()
    assert len(make_saliency([tmp_path, tmp_path / "a.jpg"], tmp_path / "out", model)) == 1  # the same file is no clash


@pytest.mark.parametrize(
    "name, near",
    [
        ("u2nett", "u2net"),
        ("birefnet", "birefnet"),
        ("isnet", "isnet-"),
        ("", None),
        ("sam", None),
        ("withoutbg", None),
        ("u2net_custom", "u2net"),
    ],
)
def test_unknown_model(name, near):
    with pytest.raises(InputError, match="is not known") as error:
        open_detector(name)
    assert ("did you mean" in str(error.value)) == (near is not None)
    assert near is None or near in str(error.value).split("?")[0]


def test_bad_model_file(tmp_path):
    with pytest.raises(InputError, match="u2net.onnx does not exist"):
        open_detector(tmp_path / "u2net.onnx")
    for content in (b"", b"version https://git-lfs.github.com/spec/v1\n", b"<html>"):
        (tmp_path / "page.onnx").write_bytes(content)
        with pytest.raises(InputError, match="page.onnx"):
            open_detector(tmp_path / "page.onnx")
    with pytest.raises(InputError, match="does not work as a detector of the kind 'u2net'.*320"):
        open_detector(write_onnx(tmp_path / "u2net.onnx", size=224))


def test_a_file_of_another_size_is_shown_that_size(tmp_path):
    detector = open_detector(write_onnx(tmp_path / "other.onnx", size=224))
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[:, 5:15, 40:50] = 200
    assert saliency_map(detector, image).shape == (40, 60)


def test_file_keeps_the_habits_of_its_name(tmp_path):
    assert open_detector(write_onnx(tmp_path / "isnet-general-use.onnx", size=1024)).model_name == "isnet-general-use"
    with pytest.raises(InputError, match="isnet-general-use"):
        open_detector(write_onnx(tmp_path / "isnet-general-use.onnx", size=320))


def test_download_impossible(tmp_path, monkeypatch):
    monkeypatch.setenv("REMBG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))  # where older versions kept their files
    monkeypatch.delenv("U2NET_HOME", raising=False)
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="'u2netp' could not be downloaded.*u2netp.onnx and pass its path"):
        open_detector("u2netp")


def test_name_finds_a_downloaded_file(tmp_path, monkeypatch):
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    (tmp_path / "models" / "u2netp").mkdir(parents=True)
    target = tmp_path / "models" / "u2netp" / "u2netp.onnx"
    write_onnx(target)
    assert open_detector("u2netp").model_name == "u2netp"
    target.write_bytes(b"torn")
    with pytest.raises(InputError, match="'u2netp' cannot be read as an ONNX model"):
        open_detector("u2netp")


def test_models_run_here():
    names = saliency_models()
    assert {"u2net", "u2netp", "isnet-general-use"} <= set(names)
    assert not {"withoutbg", "atlascloud"} & set(names)  # paid services
    assert not {"sam", "u2net_custom"} & set(names)  # want more than a photograph


@pytest.mark.filterwarnings("always")
def test_one_value_everywhere(model):
    with pytest.warns(UserWarning, match="stands out"):
        saliency = saliency_map(open_detector(model), torch.full((3, 5, 7), 90, dtype=torch.uint8))
    assert saliency.shape == (5, 7) and saliency.dtype == torch.uint8 and not saliency.any()


def test_map_takes_any_memory_layout(model):
    detector, image = open_detector(model), torch.from_numpy(np.array(corner(40, 60)))
    strided = image.permute(2, 0, 1)
    assert torch.equal(saliency_map(detector, strided), saliency_map(detector, strided.contiguous()))


def test_real_photographs(shared, tmp_path):
    "U2-Net-p's maps lie on the photographs like those of the larger U2-Net (22 levels) that come with them."
    root, file = shared / "voc" / "VOC2012", shared / "models" / "u2netp.onnx"
    if not root.is_dir() or not file.is_file():
        pytest.skip("the real photographs or u2netp.onnx are not there")
    photographs = sorted((root / "JPEGImages").glob("*.jpg"))[5::400]
    overlap, difference = [], []
    for path, target in zip(photographs, make_saliency(photographs, tmp_path / "u2netp", file)):
        ours = read_saliency(target, tuple(read_image(path).shape[1:])).int()
        theirs = read_saliency(root / "saliency" / "u2net" / target.name, tuple(ours.shape)).int()
        a, b = ours > 128, theirs > 128
        overlap.append(float((a & b).sum() / (a | b).sum().clamp(min=1)))
        difference.append(float((ours - theirs).abs().float().mean()))
    assert np.median(overlap) > 0.8 and np.median(difference) < 15, (overlap, difference)
