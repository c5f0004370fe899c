"""Photographs of VOC as a user brings them, a folder and a table: `wegformer fit` where the truth is known.

    python benchmarks/fit_photographs.py --voc VOC2012 --models MODELS --out runs/photographs   # 13 min on two cores

Writes OUT/photographs (links) and OUT/labels.csv: COUNT training photographs, drawn by a seed from those that show
nothing but dogs, cats, horses and persons. OUT/masks (links) has their true masks and OUT/colours.csv what the numbers
in them stand for, both for afterwards. Then, by the command line, as a user would:

    OUT/blind      `fit` as it comes, from nothing but photographs and table; timed. Its label rule was chosen by
                   the masks of 200 photographs of the same source, of which some are among these (counted as `seen`)
    OUT/measured   the same from the cache, and measured with the masks
    OUT/paper      with --paper: the paper's own maps and rule instead, from the same classifier

MODELS is a folder with the weights that benchmarks/voc_subset/README.md tells how to get, and U2-Net as `u2netp.onnx`.
"""

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import records

from wegformer.cli import main as wegformer
from wegformer.data import IGNORE, VOCDataset, read_split
from wegformer.stages import device_name, versions

sys.path.insert(0, str(Path(__file__).parent / "voc_subset"))
import run as subset

CLASSES = ("dog", "cat", "horse", "person")
PAPER = """
    --attention.times None --attention.affinity 0 --labels.par 0 --labels.rule.erase-rate 0.55 --labels.rule.fg-thr 0.3
"""


def lay_out(
    voc_root: Path,  # what voc_subset/run.py lays out: its `train` has no photograph with a detector's boxes in it
    out: Path,
    count: int,
    seed: int,
) -> list[str]:  # ids
    "The folder, the table, and the masks beside them."
    voc = VOCDataset(voc_root, "train", labels="npy")
    shown = {name: [voc.classes[c] for c in voc.class_ids(i)] for i, name in enumerate(voc.ids)}
    known = [name for name, classes in shown.items() if classes and set(classes) <= set(CLASSES)]
    picked = sorted(np.random.default_rng(seed).permutation(known)[:count].tolist())
    for folder, source, ending in (("photographs", "JPEGImages", "jpg"), ("masks", "SegmentationClassAug", "png")):
        (out / folder).mkdir(parents=True, exist_ok=True)
        for link in (out / folder).iterdir():  # of another draw
            link.unlink()
        for name in picked:
            link = out / folder / f"{name}.{ending}"
            os.symlink((voc_root / source / link.name).resolve(), link)
    with open(out / "labels.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([("file", "shows"), *((f"{name}.jpg", ", ".join(shown[name])) for name in picked)])
    with open(out / "colours.csv", "w", newline="") as handle:
        numbers = {"background": 0, "ignore": IGNORE} | {name: voc.classes.index(name) for name in CLASSES}
        csv.writer(handle).writerows([("class", "index"), *numbers.items()])
    counts = {c: sum(c in shown[name] for name in picked) for c in CLASSES}
    print(f"{len(picked)} of {len(known)} photographs: {counts}")
    return picked


def fit(out: Path, models: Path, name: str, options: Sequence[str]) -> dict:
    "`wegformer fit` as a user calls it: what its verdict says."
    weights = {"classifier": "vit_small_patch14_focus", "segmenter": "tf_efficientnet_lite2_imagenet"}
    files = [f"--{part}.weights={models / file}.safetensors" for part, file in weights.items()]
    files += ["--classifier.model", "vit_small_patch14_dinov2", "--segmenter.backbone", "tf_efficientnet_lite2"]
    status = wegformer(["fit", str(out / "photographs"), "--labels", str(out / "labels.csv"), "--out", str(out / name),
                        "--cache", str(out / "stages"), "--detector", str(models / "u2netp.onnx"), *files,
                        *options])  # fmt: skip
    if status:
        raise SystemExit(status)
    verdict = json.loads((out / name / "verdict.json").read_text())
    classes = {
        one: dict(grade=grade, reasons=reasons) | verdict["evidence"]["classes"][one]
        for one, (grade, reasons) in verdict["classes"].items()
    }
    return dict(headline=verdict["headline"], classes=classes, truth=verdict.get("truth", {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--paper", action="store_true", help="also by the paper's own rule")
    parser.add_argument("--record", metavar="NAME", help="keep the results in benchmarks/results/NAME")
    args = parser.parse_args()
    out, models = args.out.resolve(), args.models.resolve()
    root = subset.lay_out(args.voc, out / "set")
    picked, chosen = lay_out(root, out, args.count, args.seed), set(read_split(root, "holdout"))
    truth = ["--masks", str(out / "masks"), "--colours", str(out / "colours.csv")]
    fresh, timed, start = not (out / "stages").exists(), out / "seconds.json", time.perf_counter()
    blind = fit(out, models, "blind", [])
    if fresh:  # what comes from the cache takes no time
        timed.write_text(json.dumps(round(time.perf_counter() - start, 1)))
    seen = len(chosen & set(picked))
    made = dict(photographs=len(picked), seen=seen, versions=versions(), device=device_name())
    results = {
        "blind": blind | made | dict(seconds=json.loads(timed.read_text()) if timed.exists() else None),
        "measured": fit(out, models, "measured", truth) | made,
    }
    if args.paper:
        results["paper"] = fit(out, models, "paper", [*truth, *PAPER.split()]) | made
    if args.record:
        records.record(results, args.record)


if __name__ == "__main__":
    main()
