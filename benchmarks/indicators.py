"""How far each indicator of `wegformer fit`, which sees no mask, goes with the IoU that a class really has.

    python benchmarks/indicators.py --out runs/indicators                                # drawn pictures, three seeds
    python benchmarks/indicators.py --out runs/indicators --voc ../shared/voc/VOC2012    # photographs, one line a class
    python benchmarks/indicators.py --out runs/indicators -- --classifier.steps 600      # options of `wegformer fit`

Runs `wegformer fit` once a seed on a folder in VOC's layout with masks, and reads `verdict.json`: the indicators of
each class, and three figures of it that masks tell: IoU of the labels on training photographs, of the network on val,
and of the masks on val. classes.csv has a row a class and seed. For each indicator and figure, summary.csv has the rank
correlation over the classes (Spearman), its mean over the seeds, and the least and the greatest of them. A correlation
near 1 (or -1, where less is better) says that the indicator sorts the classes as the truth does; over nine classes, one
seed's is beyond 0.67 by chance alone in one case of twenty.
"""

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torchmetrics.functional import spearman_corrcoef

from wegformer.cli import main as wegformer
from wegformer.indicators import INDICATORS
from wegformer.toyvoc import make_toy_voc

FIGURES = {
    "labels": "labels, training",
    "network": "network, hold-out, not told the labels",
    "masks": "masks, hold-out",
}  # column -> what `fit` calls it


def measure(seed: int, root: Path, out: Path, options: Sequence[str]) -> list[dict]:
    "Runs `wegformer fit`; a row for each class that the truth shows."
    status = wegformer(["fit", str(root), "--out", str(out), "--seed", str(seed), *options])
    if status:
        raise SystemExit(status)
    verdict, rows = json.loads((out / "verdict.json").read_text()), []
    for name, values in verdict["evidence"]["classes"].items():
        found = {column: verdict["truth"].get(title, {}).get("iou", {}).get(name) for column, title in FIGURES.items()}
        if any(value is not None for value in found.values()):
            rows.append(dict(seed=seed, name=name) | {key: values.get(key) for key in INDICATORS} | found)
    return rows


def correlation(rows: Sequence[Mapping], indicator: str, figure: str) -> float | None:
    "Spearman's over the classes; None for fewer than four, or where all are alike."
    pairs = [(row[indicator], row[figure]) for row in rows if None not in (row[indicator], row[figure])]
    if len(pairs) < 4 or len({a for a, _ in pairs}) < 2 or len({b for _, b in pairs}) < 2:
        return None
    a, b = torch.tensor(pairs, dtype=torch.double).T
    return float(spearman_corrcoef(a, b))


def summarize(rows: Sequence[Mapping]) -> list[dict]:
    "Each indicator against each figure, over the seeds."
    summary, seeds = [], sorted({row["seed"] for row in rows})
    for indicator in INDICATORS:
        for figure in FIGURES:
            of_seeds = [correlation([row for row in rows if row["seed"] == seed], indicator, figure) for seed in seeds]
            found = [value for value in of_seeds if value is not None]
            if found:
                mean, low, high = sum(found) / len(found), min(found), max(found)
                summary.append(
                    dict(indicator=indicator, figure=figure, seeds=len(found), mean=mean, low=low, high=high)
                )
    return summary


def write(path: Path, rows: Sequence[Mapping]) -> None:
    "Rows as CSV."
    with open(path, "w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--voc", type=Path, help="a folder in VOC's layout with masks; default: drawn pictures")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=300, help="drawn training pictures")
    parser.add_argument("--val", type=int, default=100, help="drawn val pictures")
    parser.add_argument("options", nargs="*", help="of `wegformer fit`, after --")
    args, rows = parser.parse_args(), []
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        root = args.voc or make_toy_voc(train=args.train, val=args.val, seed=seed)
        usual = ["--detector", "none", "--preset", "photographs" if args.voc else "toy"]
        rows += measure(seed, root, args.out / f"seed{seed}", [*usual, *args.options])
        write(args.out / "classes.csv", rows)
    summary = summarize(rows)
    if not summary:
        raise SystemExit("No indicator and figure vary over four classes or more; expected masks, and more classes.")
    write(args.out / "summary.csv", summary)
    for line in summary:
        spread = f"[{line['low']:+.2f}, {line['high']:+.2f}]"
        print(f"{line['indicator']:<12} {line['figure']:<8} {line['mean']:+.2f} {spread} over {line['seeds']} seed(s)")


if __name__ == "__main__":
    main()
