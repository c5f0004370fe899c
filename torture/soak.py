"""10,000 pictures through maps and labels: memory, open files and threads must not grow with their number."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import sleep

import numpy as np

from wegformer.classifier import ClassifierConfig, create_classifier
from wegformer.config import override, preset
from wegformer.pipeline import attention_stage, label_stage
from wegformer.splits import open_split
from wegformer.stages import Stage, run
from wegformer.training import save_weights

from .tools import Case, start, toy, work_folder

GROWTH = 32 << 20  # bytes that the second half of a phase may add to the memory


def many(count: int) -> Path:
    "A data folder in which the drawn pictures stand under many names each."
    root = work_folder() / "many"
    names = (toy() / "ImageSets/Segmentation/train.txt").read_text().split()
    folders = ["JPEGImages", "Annotations", *(f"saliency/{p.name}" for p in (toy() / "saliency").iterdir())]
    ids = [f"{i:06}" for i in range(count)]
    for folder in folders:
        (root / folder).mkdir(parents=True)
        ending = next((toy() / folder).iterdir()).suffix
        for i, name in enumerate(ids):
            os.link(toy() / folder / f"{names[i % len(names)]}{ending}", root / folder / f"{name}{ending}")
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(ids) + "\n")
    (root / "classes.txt").write_bytes((toy() / "classes.txt").read_bytes())
    return root


def _tiny(classes: tuple[str, ...]) -> Stage:
    "A classifier of random weights in the place of a trained one."

    def make(out: Path, needs: dict) -> None:
        recipe = ClassifierConfig(model="vit_toy_patch8_96", pretrained=False)
        model = create_classifier(recipe.model, len(classes) - 1, pretrained=False)
        fields = json.dumps({k: v for k, v in vars(recipe).items()})
        save_weights(model, out / "model.safetensors", config=fields, classes=json.dumps(classes))

    return Stage("classifier", dict(classes=len(classes)), make)


def _work(root: Path, cache: Path) -> None:
    config = override(preset("smoke"), {"data.voc_root": str(root), "data.train_split": "train"})
    config = replace(config, attention=replace(config.attention, long_side=64))
    train = open_split(config.data, "train")
    labels = label_stage(config, attention_stage(config, _tiny(train.classes), train), train)
    run(labels, cache)


def _sample(pid: int, cache: Path) -> tuple[str, int, int, int, int]:
    "Phase, files written, bytes of memory, open files, threads."
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    folders = {phase: next(cache.glob(f"{phase}-*"), None) for phase in ("labels", "attention")}
    phase = next((name for name, folder in folders.items() if folder), "start")
    done = len(os.listdir(folders[phase])) if phase != "start" else 0
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return phase, done, int(status["VmRSS"].split()[0]) << 10, files, int(status["Threads"])


def _fault(rows: list[tuple], column: int, limit: float) -> str:
    "What grew in the second half of a phase, by a line fitted through it; nothing if it stays within the limit."
    for phase in ("attention", "labels"):
        x, y = np.array([(r[1], r[column]) for r in rows if r[0] == phase], dtype=float).T
        half = x > x.max() / 2
        if half.sum() < 4:
            return f"{phase}: only {half.sum()} samples"
        growth = np.polyfit(x[half], y[half], 1)[0] * (x.max() / 2)
        if growth > limit:
            return f"{phase}: grows by {growth:.4g} over the second half"
    return ""


def draw(rows: list[tuple], path: Path) -> None:
    "Memory and open files over the pictures done, as a figure."
    from matplotlib.figure import Figure

    fig = Figure(figsize=(8, 3.2), layout="constrained")
    for ax, column, unit, label in zip(fig.subplots(1, 2), (2, 3), (2**20, 1), ("memory, MiB", "open files")):
        for phase in ("attention", "labels"):
            found = [(r[1], r[column] / unit) for r in rows if r[0] == phase]
            ax.plot(*zip(*found), label=phase)
        ax.set(xlabel="pictures done", ylabel=label, ylim=(0, None))
        ax.legend(frameon=False)
    fig.savefig(path, dpi=120)


def soak(sample: bool, figure: Path | None = None) -> Iterator[Case]:
    count, cache = 200 if sample else 10_000, work_folder() / "soaked"
    root, rows = many(count), []
    child = start(lambda: _work(root, cache))
    while not child.poll():
        try:
            rows.append(_sample(child.pid, cache))
        except (OSError, ValueError, KeyError):  # it has just ended
            continue
        sleep(0.02 if sample else 0.5)
    name, wrong = f"{count} pictures", f"status {child.status}: {child.said}" if child.status else ""
    for kind, column, limit in (("memory", 2, GROWTH), ("open files", 3, 2), ("threads", 4, 2)):
        fault = wrong or _fault(rows, column, limit)
        top = max((r[column] for r in rows), default=0)
        yield Case("soak", kind, name, "does not grow", fault or f"at most {top:,}", not fault)
    if figure and not wrong:
        draw(rows, figure)
