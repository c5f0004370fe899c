"""Data folders with faults: those of a list, and as many as one likes by chance. None is silent, none a traceback.

The list is `FAULTS` in tests/faults.py: each is refused, warned of or read rightly, by `check` and by the run alike.
"""

import importlib.util
import random
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from wegformer.check import check
from wegformer.data import VOCDataset, write_mask

from .tools import Case, start, work_folder

LIST = Path(__file__).resolve().parents[1] / "tests" / "faults.py"
CLASSES = ("cat", "dog", "bird")


def valid(root: Path, pictures: int = 8, side: int = 24) -> Path:
    "A small folder in VOC's layout with nothing wrong in it."
    import torch

    rng, names = np.random.default_rng(0), [f"p{i}" for i in range(pictures)]
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "saliency/drs", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for i, name in enumerate(names):
        own = [i % 3, (i + 1) % 3][: 1 + i % 2]
        pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"JPEGImages/{name}.jpg")
        Image.fromarray(pixels[..., 0]).save(root / f"saliency/drs/{name}.png")
        mask = np.zeros((side, side), dtype=np.uint8)
        for k in own:
            mask[8 * k : 8 * k + 8] = k + 1
        write_mask(root / f"SegmentationClass/{name}.png", torch.from_numpy(mask))
        objects = "".join(f"<object><name>{CLASSES[k]}</name></object>" for k in own)
        (root / f"Annotations/{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    for split, part in (("train_aug", names[: pictures // 2]), ("val", names[pictures // 2 :])):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(part) + "\n")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


def read_all(root: Path) -> None:
    "All that a run reads of a data folder; saliency maps are read where labels are made, for training alone."
    train, val = VOCDataset(root, "train_aug"), VOCDataset(root, "val")
    for voc, sets in ((train, train.saliency_folders), (val, ())):
        for i in range(len(voc)):
            voc.image(i), voc.mask(i), voc.labels(i)
            for name in sets:
                voc.saliency(i, name)


def answer(root: Path) -> tuple[str, str]:
    'How a folder is answered: "read", "warned" or "refused" with the sentence, or what is wrong with the answer.'
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            read_all(root)
        except (ValueError, OSError) as error:
            text, kind = str(error), type(error).__name__
            if kind == "InputError" or isinstance(error, OSError):
                plain = not re.search(r"[\x00-\x1f\x7f]", text)
                return ("refused", text) if plain else ("not one plain line", repr(text))
            return f"{kind}", text
        except Exception as error:
            return type(error).__name__, str(error)
    return ("warned", str(told[0].message)) if told else ("read", "")


def checked(root: Path) -> bool:
    "Whether `check` finds nothing wrong in any file."
    return check(root, deep=True, workers=0).ready


def flip(content: bytes, rng: random.Random) -> bytes:
    "A file with some bits flipped, cut short, or with a piece doubled."
    if not content or rng.random() < 0.2:
        return content[: rng.randrange(len(content) + 1)]
    at = rng.randrange(len(content))
    if rng.random() < 0.2:
        return content[:at] + content[at // 2 :]
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 4, 64))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def fuzz(count: int, seed: int = 0) -> Iterator[Case]:
    "Files of a valid folder changed by chance."
    root, rng = valid(work_folder() / f"fuzz {seed}"), random.Random(seed)
    files = sorted(p for p in root.rglob("*") if p.is_file())
    for n in range(count):
        path = rng.choice(files)
        content = path.read_bytes()
        path.write_bytes(flip(content, rng))
        how, text = answer(root)
        ok = how in ("read", "warned", "refused")
        if how == "refused" and checked(root):
            ok, text = False, f"check finds nothing wrong, reading: {text}"
        yield Case("data", "changed by chance", f"{n}: {path.relative_to(root)}", "read, or refused in one line",
                   how if how == "read" else f"{how}: {text}", ok)  # fmt: skip
        path.write_bytes(content)
    shutil.rmtree(root)


def listed() -> Iterator[Case]:
    "The faults of the list."
    spec = importlib.util.spec_from_file_location("faults", LIST)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    for fault in module.FAULTS:
        root = module.sound_folder(work_folder() / "fault")
        wrong = module.judge(fault, root)
        yield Case("data", fault.area, fault.name, fault.answer, wrong or fault.answer, not wrong)
        shutil.rmtree(root.parent / "fault")


def data(sample: bool) -> Iterator[Case]:
    "In a child, which a fault may take down with it."
    cases = work_folder() / "cases.txt"

    def work() -> None:
        with open(cases, "w", buffering=1) as out:
            for case in [*listed(), *fuzz(60 if sample else 300)]:
                out.write(repr(case) + "\n")

    child = start(work).wait(600)
    found = [eval(line, {"Case": Case}) for line in cases.read_text().splitlines()]
    yield from found
    if child.status or not found:
        yield Case(
            "data", "changed by chance", f"after {len(found)}", "goes on", f"{child.status}: {child.said}", False
        )
