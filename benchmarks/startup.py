"""How long the keys of a chain over many pictures take, the first time and ever after: python benchmarks/startup.py

Writes benchmarks/results/startup.csv. The pictures are of 8 by 8 pixels: what is measured is everything but the disk.
The first run hashes every file and looks at every header, once.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from records import RESULTS, write_csv

from wegformer.config import override, preset
from wegformer.data import write_mask
from wegformer.experiment import Row, _stages
from wegformer.stages import processor_name


def many_pictures(root, ids):
    "A VOC folder of `ids` pictures with labels, masks and saliency maps."
    names = [f"{i:012d}" for i in range(ids)]
    ramp = Image.fromarray(np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8))
    for folder, end in (("JPEGImages", "jpg"), ("SegmentationClassAug", "png"), ("saliency/drs", "png")):
        path = f"{root}/{folder}/{{}}.{end}".format
        (root / folder).mkdir(parents=True)
        ramp.save(path("one"))
        if folder == "SegmentationClassAug":
            write_mask(Path(path("one")), torch.arange(64).reshape(8, 8) % 21)
        content = Path(path("one")).read_bytes()
        for name in names:
            with open(path(name), "wb") as handle:
                handle.write(content)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for split, part in (("train_aug", names), ("val", names[: ids // 20])):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(part) + "\n")
    np.save(root / "cls_labels.npy", {name: np.eye(20, dtype=np.float32)[i % 20] for i, name in enumerate(names)})


def keys(root):
    "The keys of all stages of a row, as a run asks for them before anything is made."
    row = Row("all", override(preset("voc"), {"data.voc_root": str(root)}), heatmap=True)
    return [stage.key for last in _stages(row, row.config, 0) for stage in last.upstream()]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ids", type=int, default=100_000)
    ids, rows, first = parser.parse_args().ids, [], None
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WEGFORMER_CACHE"] = f"{folder}/cache"
        root = Path(folder) / "voc"
        many_pictures(root, ids)
        time.sleep(2.5)  # a file younger than two seconds is not remembered
        for run in ("first", "second", "third"):
            start, processor = time.perf_counter(), time.process_time()
            with contextlib.redirect_stderr(sys.stdout):
                found = keys(root)
            assert first in (None, found)
            first = found
            rows.append(
                {
                    "run": run,
                    "ids": ids,
                    "seconds": round(time.perf_counter() - start, 2),
                    "processor_seconds": round(time.process_time() - processor, 2),
                    "device": processor_name(),
                }
            )
            print(rows[-1])
    write_csv(RESULTS / "startup.csv", list(rows[0]), rows)


if __name__ == "__main__":
    main()
