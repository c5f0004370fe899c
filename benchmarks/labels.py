"""What a pseudo label costs on one core: `pseudo_label`, the same rule in plain NumPy, the floor; then the dense CRF.

    OMP_NUM_THREADS=1 python benchmarks/labels.py --out labels.csv

One float32 map per class at 375x500. Repetitions are interleaved, so that whatever else the machine does falls on all
of them alike; a row is the median with the 20% and 80% quantiles of the wall time, the median of the thread's own CPU
time (which other processes disturb less), and the median ratio to the NumPy version of the same repetition. The floor
is the attention and the saliency read once and the label written once, over the bandwidth of a large copy in the same
run.
Nothing is written unless --out is given.
"""

import argparse
import csv
import platform
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from wegformer.crf import dense_crf
from wegformer.pseudo_labels import LABEL_RULES, pseudo_label
from wegformer.stages import processor_name

FIELDS = ["what", "rule", "classes", "median_ms", "q20_ms", "q80_ms", "cpu_ms", "ratio_to_numpy", "floor_ms"]


def parse(argv=None):
    formatter = argparse.ArgumentDefaultsHelpFormatter
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=formatter)
    p.add_argument("--size", type=int, nargs=2, default=[375, 500], help="height and width")
    p.add_argument("--classes", type=int, nargs="+", default=[1, 2, 3, 4], help="classes per image, one row each")
    p.add_argument("--rules", nargs="+", choices=tuple(LABEL_RULES), default=tuple(LABEL_RULES))
    p.add_argument("--repeat", type=int, default=30, help="interleaved repetitions")
    p.add_argument("--crf-labels", type=int, nargs="*", default=[3, 21], help="labels of the dense CRF, one row each")
    p.add_argument("--crf-repeat", type=int, default=3, help="repetitions of the dense CRF")
    p.add_argument("--out", type=Path, help="a .csv file for the results")
    args = p.parse_args(argv)
    if min(*args.size, *args.classes, args.repeat, args.crf_repeat) < 1:
        p.error("sizes and counts must be at least 1")
    if max(args.classes) > 254:
        p.error("--classes takes at most 254")
    if args.out and args.out.suffix != ".csv":
        p.error("--out must end in .csv")
    return args


def numpy_label(attention, classes, saliency, rule):
    "The same rule as one writes it in vectorised NumPy."
    A = attention
    if rule.erase_rate is not None:
        clip = A.max((1, 2), keepdims=True) * A.dtype.type(rule.erase_rate)
        A = np.minimum(A, clip)
        if rule.renormalize:
            A = A / np.where(clip > 0, clip, 1)
    background = np.full(A.shape[1:], rule.background_score, np.float32)
    if saliency is not None and rule.background == "binary":
        background = 1 - (saliency > rule.salient_thr).astype(np.float32)
    elif saliency is not None and rule.background == "saliency":
        background = 1 - saliency.astype(np.float32) / 255
    scores = np.concatenate([background[None], A.astype(np.float32)])
    scores[scores < rule.fg_thr] = 0
    label = np.concatenate([[0], classes]).astype(np.uint8)[scores.argmax(0)]
    if rule.conflict_thr is not None:
        threshold = rule.conflict_thr * scores.max(0) if rule.conflict_relative else rule.conflict_thr
        label[(scores > threshold).sum(0) >= rule.conflict_min] = 255
    if rule.uncertain == "salient" and saliency is not None:
        label[(label == 0) & (saliency > rule.salient_thr)] = 255
    if rule.uncertain == "level" and (saliency is not None or rule.uncertain_without_saliency):
        seen = np.zeros(A.shape[1:], np.uint8) if saliency is None else saliency.copy()
        for a in A:
            seen[a > rule.uncertain_thr] = 255
        label[(label == 0) & (seen >= rule.uncertain_level)] = 255
    if rule.epom:
        P = label.copy()
        for c, a in zip(classes, attention if rule.epom_map == "raw" else A):
            own = a[P == c]
            if own.size:
                threshold = np.median(own)
            else:
                strong = a[a > rule.t_fg]
                top = strong[strong > np.median(strong)] if strong.size else strong
                threshold = np.median(top) if top.size else 1
            label[(P == 0) & (a > threshold)] = 255
    if rule.min_foreground is not None and ((label > 0) & (label < 255)).mean() < rule.min_foreground:
        label[:] = 255
    return label


def scene(classes, height, width, seed=0):
    "Attention maps of blurred objects with texture, ids, and a saliency map that knows the objects roughly."
    g = torch.Generator().manual_seed(seed)
    yy, xx = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    places = 0.2 + 0.6 * torch.rand(classes, 2, 1, 1, generator=g)
    bumps = torch.exp(-(((yy - places[:, 0]) / 0.18) ** 2) / 2 - ((xx - places[:, 1]) / 0.15) ** 2 / 2)
    texture = torch.rand(1, classes, 24, 32, generator=g)
    maps = bumps + 0.4 * torch.nn.functional.interpolate(texture, (height, width), mode="bilinear")[0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    saliency = (255 * torch.sigmoid(24 * (bumps.amax(0) - 0.4))).to(torch.uint8)
    return (maps - low) / (high - low), torch.arange(classes) + 1, saliency


def interleaved(runs, repeat):
    "Wall and CPU seconds of each run, (repeat, 2) by name, after one unmeasured round; the order turns."
    names, times = list(runs), {name: [] for name in runs}
    for f in runs.values():
        f()
    for r in range(repeat):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            wall, cpu = time.perf_counter(), time.thread_time()
            runs[name]()
            times[name].append((time.perf_counter() - wall, time.thread_time() - cpu))
    return {name: np.array(t) for name, t in times.items()}


def row(what, rule, classes, times, reference=None, floor=None):
    wall, cpu = 1e3 * times[:, 0], 1e3 * np.median(times[:, 1])
    ratio = None if reference is None else float(np.median(times[:, 1] / reference[:, 1]))
    numbers = map(float, (np.median(wall), *np.quantile(wall, [0.2, 0.8]), cpu))
    return dict(zip(FIELDS, [what, rule, classes, *numbers, ratio, floor]))


def copy_bandwidth(size=2**26, repeat=9):
    "Bytes a second, read and written, of the median copy."
    a, b = torch.ones(size, dtype=torch.uint8), torch.empty(size, dtype=torch.uint8)
    return 2 * size / np.median(interleaved({"copy": lambda: b.copy_(a)}, repeat)["copy"][:, 0])


def label_rows(args, bandwidth):
    "The label rules, in PyTorch and in NumPy."
    (H, W), rows = args.size, []
    for C in args.classes:
        given, runs = scene(C, H, W), {}
        arrays = [t.numpy() for t in given]
        for name in args.rules:
            rule = LABEL_RULES[name]
            assert (pseudo_label(*given, rule).numpy() == numpy_label(*arrays, rule)).all(), name
            runs["pseudo_label", name] = partial(pseudo_label, *given, rule)
            runs["numpy", name] = partial(numpy_label, *arrays, rule)
        times, floor = interleaved(runs, args.repeat), 1e3 * (4 * C + 2) * H * W / bandwidth
        for name in args.rules:
            for what in ("pseudo_label", "numpy"):
                rows.append(row(what, name, C, times[what, name], times["numpy", name], floor))
    return rows


def crf_rows(args):
    "The dense CRF on as many labels."
    rows = []
    for C in args.crf_labels:
        attention, _, saliency = scene(C, *args.size)
        image = torch.stack([saliency, (255 * attention[0]).byte(), 255 - saliency])
        probabilities = (8 * attention).softmax(0)
        assert (probabilities.amax((1, 2)) >= 0.01).all()  # so all labels take part
        times = interleaved({"crf": partial(dense_crf, image, probabilities)}, args.crf_repeat)
        rows.append(row("dense_crf", "", C, times["crf"]))
    return rows


def show(setting, rows):
    "The table on the screen."
    print("\n".join(f"{k:<11}{v}" for k, v in setting.items()), "\n")
    head = f"{'':<14}{'rule':<7}{'classes':>7} |{'ms':>9}{'20%':>9}{'80%':>9} |{'CPU ms':>9}{'/ NumPy':>9}{'floor':>8}"
    print(head)
    for r in rows:
        last = "" if r["floor_ms"] is None else f"{r['ratio_to_numpy']:>9.2f}{r['floor_ms']:>8.2f}"
        times = "".join(f"{r[k]:>9.2f}" for k in ("median_ms", "q20_ms", "q80_ms"))
        print(f"{r['what']:<14}{r['rule']:<7}{r['classes']:>7} |{times} |{r['cpu_ms']:>9.2f}{last}")
    print(
        "\n/ NumPy: CPU time over that of the NumPy version in the same repetition; floor: bytes over copy bandwidth."
    )
    print("dense_crf: classes are labels.")


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(1)
    bandwidth = copy_bandwidth()
    rows = label_rows(args, bandwidth) + crf_rows(args)
    setting = dict(
        size="x".join(map(str, args.size)),
        dtype="float32",
        threads=1,
        repeat=args.repeat,
        crf_repeat=args.crf_repeat,
        copy_GBps=round(bandwidth / 1e9, 2),
        machine=processor_name(),
        torch=torch.__version__,
        numpy=np.__version__,
        python=platform.python_version(),
    )
    show(setting, rows)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("w", newline="") as f:
            writer = csv.DictWriter(f, [*FIELDS, *setting])
            writer.writeheader()
            writer.writerows(r | setting for r in rows)
    return rows


if __name__ == "__main__":
    sys.exit(not main())
