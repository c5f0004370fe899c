"""Files made by somebody who means harm: nothing in them runs, memory and time stay bounded, one line says no.

Another one is one more line in `FILES`: kind, name, how it is made in a folder, and the command that is to read it.
"""

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import numpy as np
import torch

from wegformer.reproduce import reproduce

from .disk import STAGES, folder_of
from .tools import Case, call, only, reference, refused, start, toy, work_folder, wrong_refusal

MEMORY = 1536 << 20  # bytes that a child may take beyond what the package takes
SECONDS = 45
MARKER = "executed"  # a file of this name in the folder means that hostile code has run


class Bomb:
    "Something that makes the marker when it is unpickled."

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder / MARKER),)


def pickled(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (path := folder / name).write_bytes(pickle.dumps(dict(state_dict=Bomb(folder))))
        return path

    return make


def torch_saved(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        torch.save(dict(model=Bomb(folder), signature="steps=6"), path := folder / name)
        return path

    return make


def safetensors(header: object, length: int | None = None) -> Callable[[Path], Path]:
    "A file with this header, or text, and a length that need not be its own."

    def make(folder: Path) -> Path:
        text = (header if isinstance(header, str) else json.dumps(header)).encode()
        content = struct.pack("<Q", len(text) if length is None else length) + text + bytes(64)
        (path := folder / "model.safetensors").write_bytes(content)
        return path

    return make


def tensor(*offsets: int, shape: tuple = (4,), dtype: str = "F32") -> dict:
    return dict(dtype=dtype, shape=list(shape), data_offsets=list(offsets))


def png(width: int, height: int, rows: int = 1) -> bytes:
    "A grey picture that claims a size."

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes((width + 1) * rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def written(name: str, content: bytes | str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return make


def looped(folder: Path) -> Path:
    (path := folder / "loop.jpg").symlink_to(path)
    return path


def voc(place: str, content: bytes | str | Callable[[Path], object]) -> Callable[[Path], Path]:
    "A copy of the drawn data with a hostile file in the place of one."

    def make(folder: Path) -> Path:
        root = Path(shutil.copytree(toy(), folder / "voc"))
        names = sorted(p.stem for p in (root / "JPEGImages").iterdir())
        path = root / place.format(first=names[0], last=names[-1])
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        if path.name == "cls_labels.npy":
            shutil.rmtree(root / "Annotations")
        return root

    return make


def pickled_labels(path: Path) -> None:
    table = np.empty((), dtype=object)
    table[()] = {"a": Bomb(path.parent.parent)}
    np.save(path, table, allow_pickle=True)


def zip_bomb(path: Path) -> None:
    "A run's maps of which one claims to be an array of 8 GiB; the rest is as it was, so that it is read."
    head, rest = io.BytesIO(), dict(np.load(path))
    np.lib.format.write_array_header_1_0(head, dict(descr="<f4", fortran_order=False, shape=(1 << 31,)))
    np.savez(path, **{name: array for name, array in rest.items() if name != "scale0"})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("scale0.npy", "w") as member:
        member.write(head.getvalue() + bytes(64 << 20))


def pickled_maps(path: Path) -> None:
    "The same with an array of Python's objects in the place of numbers."
    np.savez(path, **{**np.load(path), "scale0": np.array([Bomb(path.parent)])})


def hostile_maps() -> Iterator[Case]:
    "A finished stage in a cache that somebody else could write to."
    cache = reference().copy(work_folder() / "bombed")
    shutil.rmtree(folder_of(cache, "labels"))
    path = next(folder_of(cache, "attention").glob("*.npz"))
    content = path.read_bytes()
    for name, make in (("a zip bomb", zip_bomb), ("a pickle", pickled_maps)):
        make(path)
        child = start(only(STAGES["labels"], cache), memory=MEMORY).wait(SECONDS)
        case = _judged("hostile", "maps", name, child, cache)
        yield case if not case.ok else refused("hostile", "maps", name, child, path)
        path.write_bytes(content)


def notebook(folder: Path, *sources: str, tags: tuple = ("parameters",)) -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = list(tags)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path := folder / "table.ipynb")
    return path


def report(folder: Path) -> Path:
    "A run whose record wants to be a web page's code."
    evil = "<script>document.title='executed'</script><img src=x onerror=alert(1)>"
    row = dict(name=evil, note=evil, error=evil, status="failed", metrics=[], stages=[], config={evil: evil})
    table = dict(table="table2", title=evil, preset=evil, rows=[row], versions={evil: evil}, device=evil)
    (folder / "run").mkdir()
    (folder / "run" / "table2.json").write_text(json.dumps(table))
    return folder / "run"


def explain(path: Path) -> list:
    return ["explain", next((toy() / "JPEGImages").iterdir()), "--classifier", path, "--preset", "smoke"]


def predict(path: Path) -> list:
    return ["predict", next((toy() / "JPEGImages").iterdir()), "--segmenter", path, "--preset", "smoke"]


def train(path: Path) -> list:
    return ["train-classifier", "--preset", "smoke", "--classifier.weights", path, "--cache", path.parent / "cache"]


def picture(path: Path) -> list:
    return ["predict", "--preset", "smoke", "--cache", path.parent / "cache", "--", path]


def maps(root: Path) -> list:
    return ["train-classifier", "--preset", "smoke", "--voc-root", root, "--cache", root.parent / "cache"]


def masks(root: Path) -> list:
    return ["evaluate", "--preset", "smoke", "--voc-root", root, "--predictions", root / "SegmentationClass"]


def detector(path: Path) -> list:
    return ["saliency", toy() / "JPEGImages", "--model", path, "--out", path.parent / "maps"]


LAUGHS = "<!DOCTYPE a [<!ENTITY l0 'ha'>" + "".join(
    f"<!ENTITY l{i} '{f'&l{i - 1};' * 10}'>" for i in range(1, 10)
) + "]><annotation><object><name>&l9;</name></object></annotation>"  # fmt: skip
OUTSIDE = (
    "<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><annotation><object><name>&x;</name></object></annotation>"
)
DEEP = "[" * 100_000 + "]" * 100_000

FILES: list[tuple[str, str, Callable[[Path], Path], Callable[[Path], list]]] = [
    *(("pickles", f"pickle as {n}", pickled(n), train) for n in ("a.pt", "a.pth", "a.bin", "a.safetensors")),
    *(("pickles", f"torch.save as {n}", torch_saved(n), train) for n in ("a.pt", "a.pth", "a.bin")),
    ("pickles", "torch.save as a segmenter", torch_saved("a.pth"), predict),
    ("pickles", "labels in cls_labels.npy", voc("cls_labels.npy", pickled_labels), maps),
    ("safetensors", "a header of 2^62 bytes", safetensors({}, 1 << 62), explain),
    ("safetensors", "a header longer than the file", safetensors({}, 1000), explain),
    ("safetensors", "no header", safetensors("", 0), predict),
    ("safetensors", "a header that is no JSON", safetensors("{'a': 1"), explain),
    ("safetensors", "JSON 100,000 lists deep", safetensors(DEEP), explain),
    ("safetensors", "a tensor beyond the end", safetensors(dict(a=tensor(0, 16), b=tensor(16, 1 << 40))), explain),
    ("safetensors", "tensors that overlap", safetensors(dict(a=tensor(0, 16), b=tensor(8, 24))), explain),
    ("safetensors", "an end before its beginning", safetensors(dict(a=tensor(16, 0))), explain),
    ("safetensors", "a place below zero", safetensors(dict(a=tensor(-16, 0))), explain),
    ("safetensors", "a shape of 2^60", safetensors(dict(a=tensor(0, 16, shape=(1 << 60,)))), explain),
    ("safetensors", "an unknown type", safetensors(dict(a=tensor(0, 16, dtype="X9"))), predict),
    ("safetensors", "metadata that are code", safetensors(
        {"__metadata__": dict(config="__import__('os').mkdir('executed')", classes="[]"),
         "a": tensor(0, 64, shape=(16,))}
    ), explain),
    ("safetensors", "metadata of a huge model", safetensors(
        {"__metadata__": dict(config=json.dumps(dict(model="vit_giant_patch14_dinov2")), classes="[\"b\", \"c\"]"),
         "a": tensor(0, 64, shape=(16,))}
    ), explain),
    ("XML", "a billion laughs", voc("Annotations/{first}.xml", LAUGHS), maps),
    ("XML", "an external entity", voc("Annotations/{first}.xml", OUTSIDE), maps),
    ("XML", "100,000 elements deep", voc("Annotations/{first}.xml", "<a>" * 100_000), maps),
    ("XML", "UTF-16 without a mark", voc("Annotations/{first}.xml", "<a/>".encode("utf-16-le")), maps),
    ("pictures", "a PNG of 60,000 by 60,000", written("a.png", png(60_000, 60_000)), picture),
    ("pictures", "a PNG of 2^31 by 2^31", written("a.png", png(2**31 - 1, 2**31 - 1, 0)), picture),
    ("pictures", "a PNG of no height", written("a.png", png(10, 0)), picture),
    ("pictures", "a mask of 60,000 by 60,000", voc("SegmentationClass/{last}.png", png(60_000, 60_000)), masks),
    ("pictures", "a link to itself", looped, picture),
    ("pictures", "an endless device", lambda f: Path("/dev/zero"), picture),
    ("pictures", "a pipe that nobody fills", lambda f: os.mkfifo(f / "a.jpg") or f / "a.jpg", picture),
    ("pictures", "PostScript, which Pillow gives to Ghostscript", written("a.eps",
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(executed) (w) file closefile showpage\n"), picture),
    ("ONNX", "no model", written("a.onnx", b"\x00" * 100), detector),
    ("ONNX", "empty", written("a.onnx", b""), detector),
    ("ONNX", "a length of 2^63", written("a.onnx", b"\x3a" + b"\xff" * 9 + b"\x01"), detector),
    ("ONNX", "a pickle", pickled("a.onnx"), detector),
    *(("names", f"a file called {n!r}"[:60], written(n, b"no picture"), picture) for n in (
        "a\nb.jpg", "a\x1b[31mred.jpg", "$(mkdir executed).jpg", "a'\"`b.jpg", "-rf.jpg", "x" * 246 + ".jpg",
        "\u202egpj.a.jpg", "%s%n{0}.jpg", "\r\x1b[2Ka.jpg")),
    ("names", "an id that climbs out", voc("ImageSets/Segmentation/train.txt", "../../../etc/passwd\n"), maps),
    ("names", "an id of 5,000 letters", voc("ImageSets/Segmentation/train_aug.txt", "x" * 5000), lambda r: [
        *maps(r), "--train-split", "train_aug"]),
    ("names", "a split that climbs out", voc("a", ""), lambda r: [*maps(r), "--train-split", "../../../etc/passwd"]),
    ("names", "a class with escape codes", voc("classes.txt", "a\x1b[31m\nb\n"), maps),
    ("notebooks", "a name that climbs out", written("a.ipynb", "{}"), lambda p: ["reproduce", "../../a"]),
]  # fmt: skip

NOTEBOOKS: list[tuple[str, Callable[[Path], Path]]] = [
    ("no JSON", written("table.ipynb", "{")),
    ("JSON 100,000 lists deep", written("table.ipynb", DEEP)),
    ("cells that are no list", written("table.ipynb", '{"cells": 3, "metadata": {}, "nbformat": 4}')),
    ("of another format", written("table.ipynb", '{"cells": [], "metadata": {}, "nbformat": 99}')),
    ("no parameters", lambda f: notebook(f, "x = 1", tags=())),
    ("parameters that are code", lambda f: notebook(f, f"out: str = __import__('os').mkdir('{f}/{MARKER}')")),
    ("an annotation that is code", lambda f: notebook(f, f"out: __import__('os').mkdir('{f}/{MARKER}') = ''")),
    ("parameters that are no Python", lambda f: notebook(f, "out = = 3")),
]


def _notebook(path: Path) -> Callable[[], int]:
    def work() -> int:
        try:
            reproduce("table", path.parent / "out", {}, notebook=path)
        except (ValueError, OSError, RuntimeError) as error:
            print(f"wegformer: {error}")
            return 2
        return 0

    return work


def _judged(theme: str, kind: str, name: str, child, folder: Path) -> Case:
    case = refused(theme, kind, name, child)
    if list(folder.rglob(MARKER)) or Path(MARKER).exists():
        return Case(theme, kind, name, case.expected, "its code was executed", False)
    return case


def hostile(sample: bool) -> Iterator[Case]:
    "A case a file."
    for n, (kind, name, make, command) in enumerate(FILES[:: 3 if sample else 1]):
        (folder := work_folder() / f"hostile {n}").mkdir()
        path = make(folder)
        child = start(call(*command(path)), memory=MEMORY).wait(SECONDS)
        yield _judged("hostile", kind, name, child, folder)
        shutil.rmtree(folder)
    for n, (name, make) in enumerate(NOTEBOOKS):
        (folder := work_folder() / f"notebook {n}").mkdir()
        child = start(_notebook(make(folder)), memory=MEMORY).wait(SECONDS)
        yield _judged("hostile", "notebooks", name, child, folder)
    yield from hostile_maps()
    (folder := work_folder() / "report").mkdir()
    child = start(call("report", report(folder), "--out", folder / "report.html")).wait(SECONDS)
    page = (folder / "report.html").read_text() if child.status == 0 else ""
    live = any(tag in page for tag in ("<script>doc", "<img src=x"))
    wrong = wrong_refusal(child) if child.status else "its tags are live" if live else ""
    yield Case(
        "hostile", "notebooks", "a run's record with scripts", "escaped, or refused", wrong or "escaped", not wrong
    )
