"""Photographs of VOC as a user brings them, a folder and a table: `wegformer fit` where the truth is known.

    python benchmarks/fit_photographs.py --voc VOC2012 --out runs/photographs

Writes OUT/photographs (links) and OUT/labels.csv: COUNT training photographs, drawn by a seed from those that show
nothing but dogs, cats, horses and persons, and OUT/masks (links) with their true masks, which are for afterwards:

    wegformer fit OUT/photographs --labels OUT/labels.csv --out OUT/run ...
    wegformer fit OUT/photographs --labels OUT/labels.csv --out OUT/run ... --masks OUT/masks   # the same, and measured
"""

import argparse
import csv
import os
from pathlib import Path

import numpy as np

from wegformer.data import VOCDataset

CLASSES = ("dog", "cat", "horse", "person")
PAINTED = Path(__file__).parent / "voc_subset" / "painted.txt"  # with a detector's boxes in them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    voc, painted = VOCDataset(args.voc, "train_aug", labels="npy"), set(PAINTED.read_text().split())
    shown = {name: [voc.classes[c] for c in voc.class_ids(i)] for i, name in enumerate(voc.ids) if name not in painted}
    known = [name for name, classes in shown.items() if classes and set(classes) <= set(CLASSES)]
    picked = sorted(np.random.default_rng(args.seed).permutation(known)[: args.count].tolist())
    for folder, source, ending in (("photographs", "JPEGImages", "jpg"), ("masks", "SegmentationClassAug", "png")):
        (args.out / folder).mkdir(parents=True)
        for name in picked:
            link = args.out / folder / f"{name}.{ending}"
            os.symlink((args.voc / source / f"{name}.{ending}").resolve(), link)
    with open(args.out / "labels.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([("file", "shows"), *((f"{name}.jpg", ", ".join(shown[name])) for name in picked)])
    counts = {c: sum(c in shown[name] for name in picked) for c in CLASSES}
    print(f"{len(picked)} of {len(known)} photographs: {counts}")


if __name__ == "__main__":
    main()
