"""The key of every stage of every row of every table, as it was when it was recorded: old caches stay valid.

A key that changes is a decision: raise it knowingly, and record it anew with `python tests/test_stage_keys.py`."""

import csv
import json
import os
import struct
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest

RECORDED = Path(__file__).with_name("stage_keys.csv")
NOTEBOOKS = sorted(
    p
    for folder in ("tables", "figures", "extras")
    for p in (Path(__file__).parents[1] / "nbs" / folder).glob("*.ipynb")
    if p.stem.startswith(("table", "figure", "ladder"))
)
FIXED = {
    "classifier.precision": "no",
    "attention.precision": "no",
    "segmenter.precision": "no",
}  # "auto" depends on the machine


def grey_png(rows):
    "A picture whose bytes are the same on every machine: nothing in it is compressed."

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows), 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def made_up_voc(root):
    "A small VOC folder, so that the keys are the same on every machine."
    ids = {"train": ["a1", "a2"], "val": ["b1"]}
    for i, name in enumerate(ids["train"] + ids["val"]):
        for folder, end in (
            ("JPEGImages", "jpg"),
            ("SegmentationClassAug", "png"),
            ("saliency/drs", "png"),
            ("saliency/nsrom", "png"),
        ):
            path = root / folder / f"{name}.{end}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(grey_png([[i + k for k in range(8)]] * 7 + [[0, 255] * 4]))
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for split, names in {"train": ids["train"], "train_aug": ids["train"], "val": ids["val"]}.items():
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")
    np.save(
        root / "cls_labels.npy", {n: np.eye(20, dtype=np.float32)[i] for i, n in enumerate(ids["train"] + ids["val"])}
    )
    (root / "w.bin").write_bytes(b"weights")
    return root


class Rows(Exception):
    "The rows that a notebook was about to run."


def rows_of(notebook, preset, root):
    "Run a table's notebook up to where its rows would be run."
    from wegformer.experiment import Experiment

    def stop(self, rows):
        raise Rows(rows)

    given = dict(
        preset=preset,
        voc_root=str(root),
        config=FIXED,
        coco_resnet=str(root / "w.bin"),
        coco_vgg=str(root / "w.bin"),
        rule={"fg_thr": 0.0},
        extras=True,
    )
    names, run = {}, Experiment.run
    Experiment.run = stop
    try:
        for cell in json.loads(notebook.read_text())["cells"]:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), names)
                if "parameters" in cell["metadata"].get("tags", []):
                    names.update({key: value for key, value in given.items() if key in names})
    except Rows as stopped:
        return stopped.args[0]
    finally:
        Experiment.run = run
    raise AssertionError(f"{notebook} runs no rows")


def keys_of(notebook, preset, root):
    "(row, stage, key) of every stage of every row that runs."
    from wegformer.experiment import _stages

    return [
        (row.name, stage.name, stage.key)
        for row in rows_of(notebook, preset, root)
        if row.config is not None
        for stage in {s.key: s for last in _stages(row, row.config, 0) for s in last.upstream()}.values()
    ]


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return made_up_voc(tmp_path_factory.mktemp("voc"))


@pytest.mark.parametrize("preset", ["smoke", "toy", "voc"])
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_keys_are_as_recorded(notebook, preset, voc):
    with RECORDED.open() as handle:
        recorded = {
            (r["row"], r["stage"], r["key"])
            for r in csv.DictReader(handle)
            if (r["notebook"], r["preset"]) == (notebook.stem, preset)
        }
    assert recorded and set(keys_of(notebook, preset, voc)) == recorded


if __name__ == "__main__":
    sys.stdout = open(os.devnull, "w")
    with tempfile.TemporaryDirectory() as folder, RECORDED.open("w", newline="") as handle:
        writer, root = csv.writer(handle, lineterminator="\n"), made_up_voc(Path(folder))
        writer.writerow(("preset", "notebook", "row", "stage", "key"))
        writer.writerows(
            (preset, path.stem, *key)
            for preset in ("smoke", "toy", "voc")
            for path in NOTEBOOKS
            for key in keys_of(path, preset, root)
        )
