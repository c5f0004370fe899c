"""How fast live figures follow their knobs: the median of a redraw, with its PNG file, on one core.

    python benchmarks/live.py               # benchmarks/results/live.csv

Every knob of every figure is moved to several of its values, as a hand would, one at a time. What is computed once
of a picture (logits, attention, maps) is computed before: a first round is not counted. Processor time is counted,
since another process on the machine would show in the other. `over_bound` is the median over the 200 ms that a live
figure may take.
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from records import RESULTS, write_csv

from wegformer.classifier import create_classifier
from wegformer.config import override, preset
from wegformer.data import InputError, VOCDataset
from wegformer.live.canvas import png
from wegformer.live.labels import epom_figure, erase_figure, threshold_figure, workbench
from wegformer.live.maps import (
    attention_figure,
    conservation_figure,
    method_figure,
    occlusion_figure,
    start_block_figure,
)
from wegformer.live.predictions import confusion_figure, crf_figure
from wegformer.live.replay import read_recording, record_training, replay_figure
from wegformer.live.rules import linear_rule_figure
from wegformer.live.samples import toy_album, voc_album
from wegformer.stages import processor_name
from wegformer.toyvoc import make_toy_voc

BOUND = 0.2  # seconds


def seconds(figure, move):
    "Processor time of one redraw; None where the knobs make no sense together."
    start = time.process_time()
    try:
        png(figure.drawn(**move).page)
    except InputError:
        return None
    return time.process_time() - start


def measure(figure, count):
    "One line of the record."
    moves = list(figure.moves(count))
    for move in moves:
        seconds(figure, move)
    took = [s for move in moves if (s := seconds(figure, move)) is not None]
    return {
        "figure": figure.name,
        "median_ms": round(1e3 * float(np.median(took)), 1),
        "q80_ms": round(1e3 * float(np.quantile(took, 0.8)), 1),
        "slowest_ms": round(1e3 * max(took), 1),
        "over_bound": round(float(np.median(took)) / BOUND, 3),
        "redraws": len(took),
        "device": processor_name(),
    }


def replay():
    "A training of a few steps: what it learns plays no part here."
    config = override(preset("toy"), {"classifier.steps": 8})
    root = make_toy_voc(train=16, val=6)
    train, val = VOCDataset(root, "train"), VOCDataset(root, "val")
    model = create_classifier(config.classifier.model, train.num_classes, pretrained=True)
    with TemporaryDirectory() as out:
        recording = read_recording(record_training(model, config.classifier, train, val, Path(out)))
        return replay_figure(voc_album(model, root, config.attention), recording)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=9, help="values of each slider")
    args = parser.parse_args()
    torch.set_num_threads(1)
    album, rows = toy_album(), []
    figures = [
        make(album)
        for make in (
            workbench,
            erase_figure,
            epom_figure,
            threshold_figure,
            method_figure,
            attention_figure,
            occlusion_figure,
            conservation_figure,
            start_block_figure,
            crf_figure,
            confusion_figure,
        )
    ]
    for figure in [*figures, linear_rule_figure(), replay()]:
        rows.append(measure(figure, args.count))
        print(rows[-1], flush=True)
    write_csv(RESULTS / "live.csv", list(rows[0]), rows)


if __name__ == "__main__":
    main()
