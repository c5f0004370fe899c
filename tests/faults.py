"""Ways in which a folder can be wrong, or only look so: each damages a small sound folder and says what is answered.

`FAULTS` is read by test_faults.py, by `make torture` and by the table of docs/reliability.md."""

import io
import os
import pickle
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from wegformer.check import Report, check
from wegformer.data import CLASSES, IGNORE, PALETTE, InputError, VOCDataset, write_mask
from wegformer.evaluation import evaluate

SIZE = 40, 48  # height, width
TRAIN, VAL = [f"t{i}" for i in range(5)], [f"v{i}" for i in range(3)]
CAT, DOG = CLASSES.index("cat"), CLASSES.index("dog")


def sound_folder(root: Path) -> Path:
    "Eight small pictures in VOC's layout, a cat or a dog in each, and nothing wrong."
    for sub in ("JPEGImages", "ImageSets/Segmentation", "Annotations", "SegmentationClass", "saliency/good"):
        (root / sub).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k, name in enumerate([*TRAIN, *VAL]):
        label = (CAT, DOG)[k % 2]
        mask = np.zeros(SIZE, np.uint8)
        mask[8:30, 10:40], mask[7] = label, IGNORE
        noise = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(noise).resize(SIZE[::-1]).save(root / f"JPEGImages/{name}.jpg", quality=95)
        write_mask(root / f"SegmentationClass/{name}.png", torch.from_numpy(mask))
        Image.fromarray(((mask > 0) & (mask < IGNORE)).astype(np.uint8) * 255).save(root / f"saliency/good/{name}.png")
        annotate(root, name, CLASSES[label])
    write_list(root, "train", "\n".join(TRAIN))
    write_list(root, "val", "\n".join(VAL))
    return root


def annotate(root: Path, name: str, *classes: str) -> None:
    objects = "".join(f"<object><name>{c}</name></object>" for c in classes)
    (root / f"Annotations/{name}.xml").write_text(f"<annotation>{objects}</annotation>")


def write_list(root: Path, split: str, content: str | bytes) -> None:
    path = root / f"ImageSets/Segmentation/{split}.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)


@dataclass(frozen=True)
class Fault:
    "A way to be wrong. Answers: refused by the headers alone (quick), by decoding (deep), warned of, or read right."

    name: str
    area: str
    damage: Callable[[Path], Any]
    answer: str
    says: str = ""  # words of the sentence, or of the warning
    options: Mapping[str, Any] = field(default_factory=dict)  # of VOCDataset and check
    holds: Callable[[VOCDataset, VOCDataset], bool] | None = None  # of train and val, when it is read right


def run(root: Path, options: Mapping[str, Any]) -> tuple[VOCDataset, VOCDataset]:
    "Read all that a run reads, and measure; InputError as the run would end."
    train, val = (VOCDataset(root, split, **options) for split in ("train", "val"))
    for data in (train, val):
        for i in range(len(data)):
            data.image(i), data.labels(i)
            if data is val or data.mask_path(i).exists():
                data.mask(i)
            if data is train:
                for name in data.saliency_folders:
                    data.saliency(i, name)
    evaluate(val.mask_folder, val)
    return train, val


def judge(fault: Fault, root: Path) -> str:
    "Damage a sound folder and see how it is answered: what is wrong with the answer; an empty text where nothing is."
    fault.damage(root)
    quick, deep = (
        check(root, splits=("train", "val"), deep=deep, workers=0, **fault.options) for deep in (False, True)
    )
    try:
        sets, sentence = run(root, fault.options), ""
    except InputError as error:
        sentence = str(error)
    return (
        _judge_refusal(fault, root, quick, deep, sentence)
        if fault.answer in ("quick", "deep")
        else (
            _judge_reading(fault, quick, deep, sentence)
            or ("" if fault.holds is None or fault.holds(*sets) else "read wrong")
        )
    )


def _judge_refusal(fault: Fault, root: Path, quick: Report, deep: Report, sentence: str) -> str:
    "What is wrong where a fault should be refused."
    reports = [deep, quick] if fault.answer == "quick" else [deep]
    wrong = {
        f"the run says {sentence!r}": fault.says not in sentence or not sentence,
        f"the run says {sentence!r}, no plain sentence": not (sentence.isprintable() and sentence.endswith(".")),
        f"the run names no file: {sentence}": str(root) not in sentence and "/nowhere" not in sentence,
        "check finds it ready": any(report.ready or fault.says not in str(report) for report in reports),
        "check refuses it without decoding": fault.answer == "deep" and not quick.ready,
    }
    return next((text for text, holds in wrong.items() if holds), "")


def _judge_reading(fault: Fault, quick: Report, deep: Report, sentence: str) -> str:
    "What is wrong where a fault should be read, with a warning or without."
    if sentence or not (quick.ready and deep.ready):
        return f"refused: {sentence or deep}"
    warned = bool(deep.findings)
    return "" if warned == (fault.answer == "warned") and fault.says in str(deep) else f"check says: {deep}"


FAULTS: list[Fault] = []


def add(area: str, name: str, answer: str, says: str = "", options: Mapping[str, Any] | None = None, holds=None):
    "Take a function that damages a folder into the list."

    def take(damage):
        FAULTS.append(Fault(name, area, damage, answer, says, options or {}, holds))
        return damage

    return take


# ---- photographs: t0 is damaged


def original(root: Path, name: str = "t0") -> Image.Image:
    return Image.open(root / f"JPEGImages/{name}.jpg").convert("RGB")


def replace(root: Path, picture: Image.Image, kind: str = "PNG", **options) -> None:
    "Put another picture in the place of photograph t0, under its old name."
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    (root / "JPEGImages/t0.jpg").write_bytes(buffer.getvalue())


def photograph(name, make, answer, says="", kind="PNG", holds=None, options=None, **save):
    add("photograph", name, answer, says, options, holds)(
        lambda root: replace(root, make(original(root)), kind, **save)
    )


def grey(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("L"))


def deep_grey(picture: Image.Image) -> Image.Image:
    return Image.fromarray(grey(picture).astype(np.uint16) * 257)


def same(picture: Image.Image) -> Image.Image:
    return picture


def with_alpha(mode: str, alpha: int) -> Callable[[Image.Image], Image.Image]:
    def make(picture):
        picture = picture.convert(mode[:-1])
        picture.putalpha(alpha)
        return picture

    return make


def first_is_grey(train, val):
    "Photograph t0 is still the grey of a picture of the sound folder: its channels are equal and have contrast."
    image = train.image(0)
    return bool((image[0] == image[1]).all()) and int(image.max()) - int(image.min()) > 100


def has_contrast(train, val):
    image = train.image(0)
    return tuple(image.shape) == (3, *SIZE) and int(image.max()) - int(image.min()) > 100


photograph("16-bit grey", deep_grey, "right", holds=first_is_grey)
photograph("8 bits in 16", lambda p: Image.fromarray(grey(p).astype(np.uint16)), "deep", "holds 16 bits a pixel")
photograph(
    "12 bits in 16", lambda p: Image.fromarray(grey(p).astype(np.uint16) * 16), "warned", "16 bits are nearly black"
)
photograph("1-bit", lambda p: p.convert("1"), "right", holds=first_is_grey)
photograph("grey", lambda p: p.convert("L"), "right", kind="JPEG", holds=first_is_grey)
photograph("palette", lambda p: p.quantize(64), "right", holds=has_contrast)
photograph("palette with a transparent colour", lambda p: p.quantize(8), "deep", "has transparent", transparency=0)
photograph("opaque alpha", with_alpha("RGBA", 255), "right", holds=has_contrast)
photograph("transparent alpha", with_alpha("RGBA", 90), "deep", "has transparent pixels")
photograph("grey with opaque alpha", with_alpha("LA", 255), "right", holds=first_is_grey)
photograph("grey with transparent alpha", with_alpha("LA", 90), "deep", "has transparent pixels")
photograph("transparent grey value", lambda p: p.convert("1").convert("L"), "deep", "transparent", transparency=0)
photograph("CMYK JPEG with Adobe's mark", lambda p: p.convert("CMYK"), "right", kind="JPEG", holds=has_contrast)
photograph("CMYK TIFF", lambda p: p.convert("CMYK"), "right", kind="TIFF", holds=has_contrast)
photograph("YCbCr TIFF", lambda p: p.convert("YCbCr"), "right", kind="TIFF", holds=has_contrast)
photograph("LAB TIFF", lambda p: Image.new("LAB", p.size), "quick", "has mode LAB", kind="TIFF")
photograph("floating point", lambda p: p.convert("F"), "quick", "has mode F", kind="TIFF")
photograph("32-bit integers", lambda p: Image.fromarray(np.full(SIZE, 10**6, np.int32)), "deep", "values", kind="TIFF")
photograph("BMP by another name", same, "right", kind="BMP", holds=has_contrast)
photograph("PNG by another name", same, "right", holds=has_contrast)
photograph("WebP by another name", same, "right", kind="WEBP", holds=has_contrast)
photograph("TIFF by another name", same, "right", kind="TIFF", compression="tiff_lzw", holds=has_contrast)
photograph("JPEG 2000 by another name", same, "right", kind="JPEG2000", holds=has_contrast)
photograph("progressive JPEG", same, "right", kind="JPEG", progressive=True, holds=has_contrast)
photograph("colour profile", same, "right", kind="JPEG", icc_profile=b"\0" * 200, holds=has_contrast)
photograph(
    "animated GIF",
    same,
    "quick",
    "several pictures",
    kind="GIF",
    save_all=True,
    append_images=[Image.new("L", (48, 40))],
)
photograph("animated PNG", same, "quick", "several pictures", save_all=True, append_images=[Image.new("RGB", (48, 40))])
photograph(
    "animated WebP", same, "quick", "several", kind="WEBP", save_all=True, append_images=[Image.new("RGB", (48, 40))]
)
photograph(
    "TIFF of two pages", same, "quick", "several", kind="TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))]
)
photograph(
    "JPEG of two pictures (MPO)",
    same,
    "right",
    kind="MPO",
    save_all=True,
    append_images=[Image.new("RGB", (48, 40))],
    holds=has_contrast,
)
photograph("eight pixels wide", lambda p: p.resize((8, 8)), "quick", "expected its image's")


@add("photograph", "16 bits a colour", "right", holds=has_contrast)
def _(root):
    raw = np.asarray(original(root)).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in raw)
    (root / "JPEGImages/t0.jpg").write_bytes(png(SIZE[1], SIZE[0], 16, 2, zlib.compress(rows)))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, pixels: bytes, *more: bytes, interlace: int = 0) -> bytes:
    "A PNG by hand; `more` are chunks behind the pixels."
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", pixels), *more, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@add("photograph", "interlaced PNG", "right", holds=first_is_grey)
def _(root):
    whole, rows = grey(original(root)), b""
    for y, x, dy, dx in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        rows += b"".join(b"\0" + row.tobytes() for row in whole[y::dy, x::dx])
    (root / "JPEGImages/t0.jpg").write_bytes(png(SIZE[1], SIZE[0], 8, 0, zlib.compress(rows), interlace=1))


@add("photograph", "CMYK JPEG without Adobe's mark", "quick", "without Adobe's mark")
def _(root):
    replace(root, original(root).convert("CMYK"), "JPEG")
    content = (root / "JPEGImages/t0.jpg").read_bytes()
    start = content.index(b"\xff\xee")
    (length,) = struct.unpack(">H", content[start + 2 : start + 4])
    (root / "JPEGImages/t0.jpg").write_bytes(content[:start] + content[start + 2 + length :])


FOREIGN = {
    "HEIC by another name": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is HEIC"),
    "a web page": (b"<!DOCTYPE html><html><title>404</title></html>", "begins like a web page"),
    "an SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "begins like a web page"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "a PDF": (b"%PDF-1.7\n", "is a PDF"),
    "a Photoshop file": (b"8BPS\0\1" + bytes(20), "is a Photoshop file"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read"),
    "nothing at all": (b"", "is empty"),
    "random bytes": (bytes(range(1, 200)), "cannot be read"),
    "half a header": (b"\xff\xd8\xff\xe0\0\x10JF", "cannot be read"),
    "a picture of no width": (png(0, 9, 8, 0, b""), "cannot be read"),
    "a decompression bomb": (png(60000, 60000, 8, 0, zlib.compress(bytes(100))), "cannot be read"),
}
for name, (content, says) in FOREIGN.items():
    for area, path in (("photograph", "JPEGImages/t0.jpg"), ("mask", "SegmentationClass/v2.png")):
        add(area, name, "quick", says)(lambda root, path=path, content=content: (root / path).write_bytes(content))
    add("saliency", name, "quick", says)(
        lambda root, content=content: (root / "saliency/good/t2.png").write_bytes(content)
    )


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def scramble(path: Path) -> None:
    "Change a few bytes of a PNG's pixels."
    content = bytearray(path.read_bytes())
    place = content.index(b"IDAT") + 12
    content[place : place + 8] = b"\x55" * 8
    path.write_bytes(content)


@add("photograph", "truncated JPEG", "deep", "truncated")
def _(root):
    replace(root, Image.effect_noise(SIZE[::-1], 80).convert("RGB"), "JPEG")
    cut(root / "JPEGImages/t0.jpg", 0.7)


@add("photograph", "truncated PNG", "deep", "cannot be read")
def _(root):
    replace(root, Image.effect_noise(SIZE[::-1], 80))
    cut(root / "JPEGImages/t0.jpg", 0.6)


@add("photograph", "damaged pixels", "deep", "cannot be read")
def _(root):
    replace(root, Image.effect_noise(SIZE[::-1], 80))
    scramble(root / "JPEGImages/t0.jpg")


PLACES = {"photograph": "JPEGImages/t0.jpg", "mask": "SegmentationClass/v2.png", "saliency": "saliency/good/t2.png"}


def turn_into(make: Callable[[Path], Any]) -> Callable[[Path, str], None]:
    def damage(root: Path, place: str) -> None:
        (root / place).unlink()
        make(root / place)

    return damage


INSTEAD = {
    "missing": (lambda path: None, "does not exist"),
    "a folder in its place": (Path.mkdir, "folder or a device"),
    "a named pipe in its place": (os.mkfifo, "folder or a device"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "does not exist"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "cannot be read"),
}
for name, (make, says) in INSTEAD.items():
    for area, place in PLACES.items():
        add(area, name, "quick", says)(lambda root, make=make, place=place: turn_into(make)(root, place))


def rename(root: Path, new: str) -> None:
    (root / "JPEGImages" / new).parent.mkdir(exist_ok=True, parents=True)
    (root / "JPEGImages/t0.jpg").rename(root / "JPEGImages" / new)


for new in ("t0.JPG", "t0.jpeg", "t0.png", "t0.webp", "t0.TIFF"):
    add("photograph", f"named {new}", "right", holds=has_contrast)(lambda root, new=new: rename(root, new))
add("photograph", "named t0.gif", "quick", "does not exist")(lambda root: rename(root, "t0.gif"))
add("photograph", "two files of one id", "quick", "is there as")(
    lambda root: original(root).save(root / "JPEGImages/t0.png")
)


# ---- EXIF


def turned(root: Path, flag: int, kind: str = "JPEG", mask: bool = False) -> None:
    "Photograph t0 with a rotation flag; with `mask`, its mask and map are those of the turned picture."
    picture = original(root)
    exif = picture.getexif()
    exif[0x0112] = flag
    replace(root, picture, kind, exif=exif)
    if mask:
        for path in (root / "SegmentationClass/t0.png", root / "saliency/good/t0.png"):
            upright = Image.open(path).transpose(Image.Transpose.ROTATE_270)
            upright.save(path)


for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
    add("EXIF", f"turned by 90 degrees with a mask of the stored pixels, {kind}", "quick", "expected its image's")(
        lambda root, kind=kind: turned(root, 6, kind)
    )
    add("EXIF", f"left as stored, {kind}", "right", options={"orientation": False}, holds=has_contrast)(
        lambda root, kind=kind: turned(root, 6, kind)
    )
    add("EXIF", f"turned by 90 degrees, and its mask, {kind}", "warned", "turned by their EXIF flag")(
        lambda root, kind=kind: turned(root, 6, kind, mask=True)
    )
for flag in (2, 3, 4):
    add("EXIF", f"flag {flag}, which keeps the size", "warned", "turned by their EXIF flag")(
        lambda root, flag=flag: turned(root, flag)
    )
for flag in (0, 9):
    add("EXIF", f"flag {flag}, which means nothing", "right", holds=has_contrast)(
        lambda root, flag=flag: turned(root, flag)
    )
photograph("EXIF that cannot be read", same, "warned", "EXIF of photographs", kind="JPEG", exif=b"Exif\0\0nonsense")


@add("EXIF", "behind the pixels of a PNG", "quick", "expected its image's")
def _(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    rows = b"".join(b"\0" + row.tobytes() for row in grey(original(root)))
    late = chunk(b"eXIf", exif.tobytes()[6:])
    (root / "JPEGImages/t0.jpg").write_bytes(png(SIZE[1], SIZE[0], 8, 0, zlib.compress(rows), late))


# ---- masks: v2 is damaged


def numbers(root: Path, name: str = "v2") -> np.ndarray:
    return np.array(Image.open(root / f"SegmentationClass/{name}.png"))


def mask(name, make, answer, says="", kind="PNG", holds=None, **save):
    def damage(root):
        made = make(numbers(root))
        made = made if isinstance(made, Image.Image) else Image.fromarray(made)
        made.save(root / "SegmentationClass/v2.png", kind, **save)

    add("mask", name, answer, says, None, holds)(damage)


def coloured(array: np.ndarray, palette: np.ndarray) -> Image.Image:
    picture = Image.fromarray(array)
    picture.putpalette(palette.flatten().tolist())
    return picture


def first_mask_is_dog(train, val):
    return val.mask(2).unique().tolist() in ([0, DOG, IGNORE], [0, DOG])


def renumbered(array: np.ndarray, order: list[int]) -> Image.Image:
    "The same picture by a tool that keeps the colours in use, in another order."
    table = np.zeros(256, np.uint8)
    table[order] = range(len(order))
    return coloured(table[array], PALETTE[order])


def grey_4_bits(array):
    return np.where(array == IGNORE, 0, array)


mask("grey", lambda a: a, "right", holds=first_mask_is_dog)
mask("grey of 4 bits", grey_4_bits, "right", bits=4, holds=first_mask_is_dog)
mask("palette of 4 bits", lambda a: coloured(grey_4_bits(a), PALETTE[:16]), "right", bits=4, holds=first_mask_is_dog)
mask("grey palette", lambda a: coloured(a, np.arange(256).repeat(3)), "right", holds=first_mask_is_dog)
mask("palette of one's own", lambda a: coloured(a, PALETTE // 2 + 3), "right", holds=first_mask_is_dog)
mask("GIF, whose writer renumbers", lambda a: coloured(a, PALETTE), "deep", "a tool has renumbered", kind="GIF")
mask("16 bits that fit in 8", lambda a: a.astype(np.uint16), "right", holds=first_mask_is_dog)
mask("16 bits that do not", lambda a: a.astype(np.uint16) + 300, "deep", "expected class indices")
mask("VOC's colours in RGB", lambda a: PALETTE[a], "quick", "has mode RGB")
mask("RGBA", lambda a: Image.fromarray(PALETTE[a]).convert("RGBA"), "quick", "has mode RGBA")
mask("grey with alpha", lambda a: Image.fromarray(a).convert("LA"), "quick", "has mode LA")
mask("1-bit", lambda a: Image.fromarray(a > 0), "quick", "has mode 1")
mask("floating point", lambda a: a.astype(np.float32), "quick", "has mode F", kind="TIFF")
mask("32-bit integers, negative", lambda a: a.astype(np.int32) - 9, "deep", "class indices", kind="TIFF")
mask("JPEG by another name", lambda a: a, "quick", "stored as JPEG", kind="JPEG")
mask("TIFF compressed as JPEG", lambda a: a, "quick", "changes or spreads", kind="TIFF", compression="jpeg")
mask("TIFF that stores white as 0", lambda a: a, "quick", "white as 0", kind="TIFF", tiffinfo={262: 0})
mask("PGM", lambda a: a, "quick", "stored as PPM", kind="PPM")
mask("another size", lambda a: a[:, 1:], "quick", "expected its image's")
mask("turned", lambda a: a.T.copy(), "quick", "expected its image's")
mask("an index that is no class", lambda a: np.where(a == DOG, 33, a), "deep", "holds the unknown class")
mask("renumbered by a tool", lambda a: renumbered(a, [0, DOG, IGNORE]), "deep", "a tool has renumbered")
mask("renumbered, the background last", lambda a: renumbered(a, [DOG, IGNORE, 0]), "deep", "a tool has renumbered")
mask("every pixel ignored", lambda a: np.full_like(a, IGNORE), "warned", "ignore every pixel")
mask("all background", np.zeros_like, "warned", "other classes than the labels")
mask("another class than the label", lambda a: np.where(a == DOG, CAT, a), "warned", "other classes than the labels")
mask(
    "two pages",
    lambda a: coloured(a, PALETTE),
    "quick",
    "several",
    kind="TIFF",
    save_all=True,
    append_images=[Image.new("L", (9, 9))],
)


@add("mask", "renumbered in classes of one's own", "warned", "other classes than the labels")
def _(root):
    (root / "classes.txt").write_text("\n".join(CLASSES[1:]).replace("sheep", "lamb"))
    renumbered(numbers(root), [0, DOG, IGNORE]).save(root / "SegmentationClass/v2.png")


@add("mask", "noise, truncated", "deep", "cannot be read")
def _(root):
    path = root / "SegmentationClass/v2.png"
    rng = np.random.default_rng(0)
    coloured(rng.integers(0, 21, SIZE, dtype=np.uint8), PALETTE).save(path)
    cut(path, 0.8)


@add("mask", "damaged pixels", "deep", "cannot be read")
def _(root):
    scramble(root / "SegmentationClass/v2.png")


def all_masks(root: Path, make: Callable[[np.ndarray], np.ndarray], names=(*TRAIN, *VAL)) -> None:
    for name in names:
        path = root / f"SegmentationClass/{name}.png"
        Image.fromarray(make(np.array(Image.open(path)))).save(path)


@add("mask", "0 and 255 for one class", "quick", "holds any class")
def _(root):
    (root / "classes.txt").write_text("animal\n")
    for name in (*TRAIN, *VAL):
        annotate(root, name, "animal")
    all_masks(root, lambda a: ((a > 0) * 255).astype(np.uint8))


@add("mask", "0 and 1 for one class", "right", holds=lambda train, val: val.mask(0).unique().tolist() == [0, 1])
def _(root):
    (root / "classes.txt").write_text("animal\n")
    for name in (*TRAIN, *VAL):
        annotate(root, name, "animal")
    all_masks(root, lambda a: ((a > 0) * 1).astype(np.uint8))


add("mask", "a whole split ignored", "quick", "holds any class")(
    lambda root: all_masks(root, lambda a: np.full_like(a, IGNORE), VAL)
)
add("mask", "a whole split of background", "quick", "holds any class")(lambda root: all_masks(root, np.zeros_like, VAL))
add("mask", "missing in train", "right")(lambda root: (root / "SegmentationClass/t1.png").unlink())
add("mask", "no folder of masks", "quick", "does not exist")(
    lambda root: (root / "SegmentationClass").rename(root / "elsewhere")
)


# ---- saliency maps: t2 is damaged


def salient(root: Path, name: str = "t2") -> np.ndarray:
    return np.array(Image.open(root / f"saliency/good/{name}.png"))


def saliency(name, make, answer, says="", kind="PNG", holds=None, **save):
    def damage(root):
        made = make(salient(root))
        made = made if isinstance(made, Image.Image) else Image.fromarray(made)
        made.save(root / "saliency/good/t2.png", kind, **save)

    add("saliency", name, answer, says, None, holds)(damage)


def first_map_is_whole(train, val):
    return train.saliency(2, "good").unique().tolist() == [0, 255]


saliency("16-bit grey", lambda a: a.astype(np.uint16) * 257, "right", holds=first_map_is_whole)
saliency("1-bit", lambda a: Image.fromarray(a > 0), "right", holds=first_map_is_whole)
saliency(
    "palette of two greys",
    lambda a: coloured((a > 0).astype(np.uint8), np.array([0, 255]).repeat(3)),
    "right",
    holds=first_map_is_whole,
)
saliency("palette in colours", lambda a: coloured((a > 0).astype(np.uint8), PALETTE), "deep", "is in colour")
saliency("RGB of grey", lambda a: Image.fromarray(a).convert("RGB"), "right", holds=first_map_is_whole)
saliency("heat map in colours", lambda a: np.stack([a, 0 * a, 255 - a], -1), "deep", "is in colour")
saliency("opaque alpha", lambda a: Image.fromarray(a).convert("RGBA"), "right", holds=first_map_is_whole)
saliency("a cut-out", lambda a: np.stack([a, a, a, a], -1), "deep", "has transparent pixels")
saliency("floating point in 0..1", lambda a: a.astype(np.float32) / 255, "right", kind="TIFF", holds=first_map_is_whole)
saliency("floating point in 0..255", lambda a: a.astype(np.float32), "deep", "floating-point values", kind="TIFF")
saliency("NaN", lambda a: np.where(a > 0, np.float32(np.nan), 0), "deep", "floating-point values", kind="TIFF")
saliency("8 bits in 16", lambda a: a.astype(np.uint16), "deep", "holds 16 bits a pixel")
saliency("CMYK", lambda a: Image.fromarray(a).convert("CMYK"), "quick", "has mode CMYK", kind="TIFF")
saliency("another size", lambda a: a[1:], "quick", "expected its image's")
saliency("JPEG by another name", lambda a: a, "right", kind="JPEG")
saliency("all black", np.zeros_like, "right")
saliency(
    "animated",
    Image.fromarray,
    "quick",
    "several",
    kind="GIF",
    save_all=True,
    append_images=[Image.new("L", (48, 40), 9)],
)


def all_maps(root: Path, make: Callable[[np.ndarray], np.ndarray]) -> None:
    for name in TRAIN:
        Image.fromarray(make(salient(root, name))).save(root / f"saliency/good/{name}.png")


add("saliency", "a set of 0 and 1", "quick", "no value above 1")(lambda root: all_maps(root, lambda a: a // 255))
add("saliency", "a set of nothing", "quick", "no value above 1")(lambda root: all_maps(root, np.zeros_like))
add("saliency", "a set of percents", "warned", "value of 128 or more")(
    lambda root: all_maps(root, lambda a: (a > 0).astype(np.uint8) * 100)
)
add("saliency", "a set of palette indices", "deep", "is in colour")(
    lambda root: [coloured(salient(root, n) // 255, PALETTE).save(root / f"saliency/good/{n}.png") for n in ["t3"]]
)
add("saliency", "damaged pixels", "deep", "cannot be read")(lambda root: scramble(root / "saliency/good/t2.png"))
add("saliency", "a folder that is not there", "quick", "does not exist", {"saliency": {"drs": Path("/nowhere")}})(
    lambda root: None
)


# ---- labels from XML: t0 is damaged


def xml(name, content, answer, says="", holds=None):
    content = content.encode() if isinstance(content, str) else content
    add("annotation", name, answer, says, None, holds)(lambda root: (root / "Annotations/t0.xml").write_bytes(content))


def first_label_is_cat(train, val):
    return train.class_ids(0).tolist() == [CAT]


INNER = "<object><name>cat</name></object>"
LAUGHS = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghij", "bcdefghijk"))
xml("empty", "", "quick", "not readable XML")
xml("cut short", "<annotation><object>", "quick", "not readable XML")
xml("binary", bytes(range(256)), "quick", "not readable XML")
xml("JSON", '{"objects": ["cat"]}', "quick", "not readable XML")
xml("an SVG", f"<svg>{INNER}</svg>", "quick", "is a document <svg>")
xml("a web page", f"<html><body>{INNER}</body></html>", "quick", "is a document <html>")
xml("a web page with a document type", "<!DOCTYPE html><html></html>", "quick", "declares the document type")
xml("another namespace", f'<annotation xmlns="urn:x">{INNER}</annotation>', "quick", "is a document")
xml("billion laughs", f'<!DOCTYPE x [<!ENTITY a "cat">{LAUGHS}]><annotation>&k;</annotation>', "quick", "document type")
xml(
    "an entity of one's own",
    f'<!DOCTYPE x [<!ENTITY c "cat">]><annotation>{INNER}</annotation>',
    "quick",
    "document type",
)
xml(
    "an entity of a file",
    '<!DOCTYPE x [<!ENTITY p SYSTEM "file:///etc/passwd">]><annotation>&p;</annotation>',
    "quick",
    "document type",
)
xml("an entity of the network", '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd"><annotation/>', "quick", "document type")
xml("an unknown entity", "<annotation>&nbsp;</annotation>", "quick", "not readable XML")
xml(
    "a hundred thousand levels",
    f"<annotation>{INNER}{'<a>' * 10**5}{'</a>' * 10**5}</annotation>",
    "right",
    holds=first_label_is_cat,
)
xml("eleven megabytes", f"<annotation>{INNER}<!--{'x' * 11_000_000}--></annotation>", "quick", "expected at most")
xml("an unknown class", "<annotation><object><name>unicorn</name></object></annotation>", "quick", "unknown class")
xml("a class in capitals", "<annotation><object><name>Cat</name></object></annotation>", "quick", "unknown class")
xml("an object without a name", "<annotation><object/></annotation>", "quick", "without a name")
xml("an object of an empty name", "<annotation><object><name/></object></annotation>", "quick", "without a name")
xml(
    "spaces around a name",
    "<annotation><object><name> cat\n</name></object></annotation>",
    "right",
    holds=first_label_is_cat,
)
xml(
    "a part with a name",
    "<annotation><object><name>cat</name><part><name>head</name></part></object></annotation>",
    "right",
    holds=first_label_is_cat,
)
xml(
    "an unknown encoding",
    f'<?xml version="1.0" encoding="klingon"?><annotation>{INNER}</annotation>',
    "quick",
    "not readable XML",
)
xml(
    "a wrong encoding",
    '<?xml version="1.0" encoding="utf-8"?><annotation>\xe9</annotation>'.encode("latin-1"),
    "quick",
    "not readable XML",
)
xml(
    "UTF-16",
    f'<?xml version="1.0" encoding="utf-16"?><annotation>{INNER}</annotation>'.encode("utf-16"),
    "right",
    holds=first_label_is_cat,
)
xml(
    "a byte-order mark",
    b"\xef\xbb\xbf" + f"<annotation>{INNER}</annotation>".encode(),
    "right",
    holds=first_label_is_cat,
)
xml("no objects in one photograph", "<annotation/>", "warned", "other classes than the labels")
add("annotation", "missing", "quick", "does not exist")(lambda root: (root / "Annotations/t0.xml").unlink())
add("annotation", "a folder in its place", "quick", "cannot be read")(
    lambda root: turn_into(Path.mkdir)(root, "Annotations/t0.xml")
)
add("annotation", "no objects at all", "quick", "has a label")(lambda root: [annotate(root, name) for name in TRAIN])
add("annotation", "no annotations and no dictionary", "quick", "has no image-level labels")(
    lambda root: (root / "Annotations").rename(root / "elsewhere")
)


# ---- labels from cls_labels.npy


def vector(*classes: int) -> np.ndarray:
    return np.isin(np.arange(1, 21), classes).astype(np.float32)


def table() -> dict[str, Any]:
    return {name: vector((CAT, DOG)[k % 2]) for k, name in enumerate([*TRAIN, *VAL])}


def npy(name, make, answer, says="", holds=None):
    "A label file: what np.save writes of an object, or bytes as they are."

    def damage(root):
        content, path = make(table()), root / "cls_labels.npy"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, np.ndarray) and content.dtype != object:
            np.save(path, content)
        else:
            np.save(path, np.array(content, dtype=object), allow_pickle=True)

    add("cls_labels.npy", name, answer, says, {"labels": "npy"}, holds)(damage)


def changed(value) -> Callable[[dict], dict]:
    return lambda t: t | {"t0": value}


def archive(t: dict) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as z:
        z.writestr("a.npy", b"")
    return buffer.getvalue()


def saved(content) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(content, dtype=object), allow_pickle=True)
    return buffer.getvalue()


HOSTILE = Path(tempfile.gettempdir()) / f"wegformer-hostile-{os.getpid()}"  # what a label file tries to make


class Hostile:
    def __reduce__(self):
        return os.system, (f"touch '{HOSTILE}'",)


npy("as it should be", lambda t: t, "right", holds=first_label_is_cat)
npy("integers", lambda t: {k: v.astype(int) for k, v in t.items()}, "right", holds=first_label_is_cat)
npy("truth values", lambda t: {k: v.astype(bool) for k, v in t.items()}, "right", holds=first_label_is_cat)
npy("lists of numbers", lambda t: {k: v.tolist() for k, v in t.items()}, "right", holds=first_label_is_cat)
npy("more images than the split", lambda t: t | {"other": vector(3)}, "right", holds=first_label_is_cat)
npy("-1 where a class is absent", changed(2 * vector(CAT) - 1), "quick", "the value -1")
npy("NaN", changed(vector(CAT) * np.nan), "quick", "the value nan")
npy("infinity", changed(np.where(vector(CAT) > 0, np.inf, 0)), "quick", "the value inf")
npy("counts of objects", changed(vector(CAT) * 3), "quick", "the value")
npy("probabilities", changed(vector(CAT) * 0.7), "quick", "the value")
npy("complex numbers", changed(vector(CAT).astype(complex)), "quick", "of kind complex")
npy("an array of objects", changed(vector(CAT).astype(object)), "quick", "of kind object")
npy("texts", changed(vector(CAT).astype(str)), "quick", "of kind")
npy("a class number", changed(CAT), "quick", "of shape")
npy("nothing", changed(None), "quick", "of kind object")
npy("one class too few", lambda t: {k: v[1:] for k, v in t.items()}, "quick", "of shape")
npy("one class too many", lambda t: {k: np.append(v, 0) for k, v in t.items()}, "quick", "of shape")
npy("a matrix for an image", changed(vector(CAT)[None]), "quick", "of shape")
npy("lists of several lengths", changed([[1], [1, 0]]), "quick", "of kind object")
npy("keys with an ending", lambda t: {f"{k}.jpg": v for k, v in t.items()}, "quick", "a file name with its ending")
npy("keys that are numbers", lambda t: dict(enumerate(t.values())), "quick", "of kind int")
npy("keys that are bytes", lambda t: {k.encode(): v for k, v in t.items()}, "quick", "of kind bytes")
npy("a list", lambda t: list(t.values()), "quick", "it holds a")
npy("pairs", lambda t: saved(list(t.items())), "quick", "it holds a")
npy("an array of numbers", lambda t: np.stack(list(t.values())), "quick", "it is an array")
npy("an .npz archive", archive, "quick", "an .npz archive")
npy("a plain pickle", lambda t: pickle.dumps(t), "quick", "not a pickled dictionary")
npy("a pickle that runs a command", changed(Hostile()), "quick", "which is not a NumPy array")
npy("text", lambda t: b"t0 cat\n", "quick", "not a pickled dictionary")
npy("empty", lambda t: b"", "quick", "not a pickled dictionary")
npy("cut short", lambda t: saved(t)[:-40], "quick", "not a pickled dictionary")
npy("an empty dictionary", lambda t: {}, "quick", "has no labels for id")
npy("an image that is not in it", lambda t: {k: v for k, v in t.items() if k != "t0"}, "quick", "has no labels for id")
npy("no label at all", lambda t: {k: v * 0 for k, v in t.items()}, "quick", "has a label")
add("cls_labels.npy", "missing", "quick", "has no image-level labels", {"labels": "npy"})(lambda root: None)


# ---- lists of ids


def listing(name, content, answer, says="", holds=None, split="train"):
    add("list", name, answer, says, None, holds)(lambda root: write_list(root, split, content))


def ids_are(*ids):
    return lambda train, val: train.ids == list(ids)


PLAIN = "\n".join(TRAIN)
PAIRS = "".join(f"/JPEGImages/{name}.jpg /SegmentationClass/{name}.png\n" for name in TRAIN)
listing("Windows lines", PLAIN.replace("\n", "\r\n"), "right", holds=ids_are(*TRAIN))
listing("old Macintosh lines", PLAIN.replace("\n", "\r"), "right", holds=ids_are(*TRAIN))
listing("spaces and empty lines", PLAIN.replace("\n", " \t\n\n  "), "right", holds=ids_are(*TRAIN))
listing("UTF-8 with a byte-order mark", PLAIN.encode("utf-8-sig"), "right", holds=ids_are(*TRAIN))
listing("UTF-16 with a byte-order mark", PLAIN.encode("utf-16"), "right", holds=ids_are(*TRAIN))
listing("file names", "\n".join(f"{name}.jpg" for name in TRAIN), "right", holds=ids_are(*TRAIN))
listing("pairs of paths", PAIRS, "right", holds=ids_are(*TRAIN))
listing("whole paths", "\n".join(f"/data/JPEGImages/{name}.jpg" for name in TRAIN), "right", holds=ids_are(*TRAIN))
listing("UTF-16 without a byte-order mark", PLAIN.encode("utf-16-le"), "quick", "zero bytes")
listing("UTF-32", PLAIN.encode("utf-32"), "quick", "zero bytes")
listing("Latin-1", "t0\nt\xe9\n".encode("latin-1"), "quick", "is not UTF-8")
listing("binary", bytes(range(256)), "quick", "is not UTF-8")
listing("empty", "", "quick", "is empty")
listing("empty lines alone", "\n \n\t\n", "quick", "is empty")
listing("an id twice", PLAIN + "\nt0\n", "quick", "expected every image once")
listing("an id twice, once as a file", PLAIN + "\nt0.jpg\n", "quick", "expected every image once")
listing(
    "VOC's list of one class",
    "\n".join(f"{name} {v}" for name, v in zip(TRAIN, (-1, 1, 0, -1, 1))),
    "quick",
    "ImageSets/Main",
)
listing("class numbers behind the ids", "\n".join(f"{name} 3 5" for name in TRAIN), "quick", "does not exist")
listing("out of the folder", PLAIN + "\n../secret\n", "quick", "expected an id")
listing("out of the folder, inside", PLAIN + "\ncam1/../../secret\n", "quick", "expected an id")
listing("an absolute path", PLAIN + "\n/etc/passwd\n", "quick", "expected an id")
listing("a backslash", PLAIN + "\ncam1\\0001\n", "quick", "expected an id")
listing("an escape code", PLAIN + "\n\x1b[31mred\n", "quick", "expected an id")
listing("a name of a thousand letters", PLAIN + "\n" + "x" * 1000, "quick", "at most")
listing("a pair of two names", PAIRS + "/JPEGImages/t0.jpg /SegmentationClass/t1.png", "quick", "of one name")
listing("a comment", "# my pictures\n" + PLAIN, "quick", "does not exist")
listing("an image that is nowhere", PLAIN + "\nnowhere", "quick", "does not exist")
listing("a photograph of val in train", PLAIN + "\nv0\n", "warned", "are trained on, too")
add("list", "missing", "quick", "not found")(lambda root: (root / "ImageSets/Segmentation/train.txt").unlink())
add("list", "a folder in its place", "quick", "not found")(
    lambda root: turn_into(Path.mkdir)(root, "ImageSets/Segmentation/train.txt")
)


def renamed(names: Mapping[str, str]) -> Callable[[Path], None]:
    "Other names for images of train, with all that belongs to them."

    def damage(root):
        for old, new in names.items():
            for sub, ending in (
                ("JPEGImages", "jpg"),
                ("Annotations", "xml"),
                ("SegmentationClass", "png"),
                ("saliency/good", "png"),
            ):
                target = root / sub / f"{new}.{ending}"
                target.parent.mkdir(exist_ok=True, parents=True)
                (root / sub / f"{old}.{ending}").rename(target)
        write_list(root, "train", "\n".join(names.get(name, name) for name in TRAIN))

    return damage


for name, new in {
    "dots in the names": ("scan.001", "scan.002"),
    "spaces in the names": ("my photo 1", "my photo 2"),
    "folders in the names": ("cam1/0001", "cam2/0001"),
    "deep folders": ("a/b/c/1", "a/b/d/1"),
    "umlauts": ("Küche 1", "厨房"),
    "names that look like numbers": ("1", "-1"),
    "names that begin with a dot": (".a", ".b"),
}.items():
    add("list", name, "right", holds=ids_are(*new, "t2", "t3", "t4"))(renamed(dict(zip(("t0", "t1"), new))))
add("list", "names that differ in capitals alone", "warned", "differ in capitals")(renamed({"t0": "Cat", "t1": "cat"}))


@add("list", "an accent composed in the list, not on the disk", "quick", "does not exist")
def _(root):
    renamed({"t0": "cafe\u0301"})(root)
    write_list(root, "train", "caf\u00e9\n" + "\n".join(TRAIN[1:]))


# ---- lists of classes


def class_list(name, content, answer, says="", holds=None):
    content = content if isinstance(content, bytes) else content.encode()
    add("classes.txt", name, answer, says, None, holds)(lambda root: (root / "classes.txt").write_bytes(content))


NAMES = "\n".join(CLASSES[1:])
class_list("VOC's own", NAMES, "right", holds=first_label_is_cat)
class_list("labelme's first lines", "__ignore__\n_background_\n" + NAMES, "right", holds=first_label_is_cat)
class_list(
    "Windows lines and a byte-order mark",
    NAMES.replace("\n", "\r\n").encode("utf-8-sig"),
    "right",
    holds=first_label_is_cat,
)
class_list("the background", "background\n" + NAMES, "quick", "without background")
class_list("labelme's lines at the end", NAMES + "\n_background_\n", "quick", "without background")
class_list("a class twice", NAMES + "\ncat\n", "quick", "again")
class_list("empty", "\n", "quick", "holds 0 names")
class_list("255 classes", "\n".join(f"c{i}" for i in range(255)), "quick", "class names")
class_list("Latin-1", NAMES.encode() + b"\ncaf\xe9\n", "quick", "is not UTF-8")
class_list("an escape code", NAMES + "\n\x1b[31m\n", "quick", "class names")
class_list("fewer than the masks hold", "cat\ndog\n", "quick", "unknown class")


# ---- the folder


add("folder", "no JPEGImages", "quick", "no JPEGImages")(lambda root: (root / "JPEGImages").rename(root / "images"))
add("folder", "no lists", "quick", "not found")(lambda root: (root / "ImageSets").rename(root / "lists"))
add("folder", "labels asked for that are not there", "quick", "has no image-level labels", {"labels": "npy"})(
    lambda root: None
)
add("folder", "nothing in it", "quick", "no JPEGImages")(
    lambda root: [p.rename(root.parent / f"_{p.name}") for p in root.iterdir()]
)
