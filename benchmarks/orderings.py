"""Which of the paper's orderings hold on the embedded data set, over several seeds?

    python benchmarks/orderings.py --out runs/seeds --seeds 0 1 2     # runs what is missing, then judges
    python benchmarks/orderings.py --out runs/seeds --judge           # judges the results that are there

The runs take hours on two cores; one that was killed goes on. An ordering holds when it does in every seed, fails when
it does in none, and is open in between. The judgement is written to OUT/orderings.json.
"""

import argparse
import json
import statistics
from pathlib import Path

from wegformer.cli import main as wegformer

# the paper's claim; notebook; the row that should be above; the one below; the paper's difference in mIoU
CLAIMS = [
    ("soft erase adds", "table2", "+ soft erase", "base", 0.5),
    ("saliency adds (better maps)", "table2", "+ Sal (DRS)", "+ soft erase", 10.2),
    ("saliency adds (worse maps)", "table2", "+ Sal (NSROM)", "+ soft erase", 8.9),
    ("better saliency, better result", "table2", "+ Sal (DRS)", "+ Sal (NSROM)", 1.3),
    ("EPOM adds (better maps)", "table2", "+ Sal (DRS) + EPOM*", "+ Sal (DRS)", 0.7),
    ("EPOM adds (worse maps)", "table2", "+ Sal (NSROM) + EPOM*", "+ Sal (NSROM)", 0.9),
    ("the method beats the trivial one", "table2", "+ Sal (DRS) + EPOM*", "saliency + first label (trivial)", None),
    (
        "one round is enough: a second adds nothing",
        "table2",
        "+ Sal (DRS) + EPOM*",
        "+ Sal (DRS) + EPOM*, 2 rounds",
        None,
    ),
    ("no least score (step 2) beats one of 0.3", "ladder", "+ Sal + EPOM*, fg_thr = 0.0", "+ Sal + EPOM*", None),
    ("EPOM loses nothing to POM", "table2", "+ Sal (DRS) + EPOM*", "+ Sal (DRS) + POM", None),
    *(
        (f"the last block suffices: above blocks {b}-11", "table3", "block 11", f"blocks {b}-11", d)
        for b, d in ((0, 1.3), (3, 1.1), (5, 1.3), (7, 0.7), (9, 0.5))
    ),
    ("V3+ over V2", "table4", "DeepLab-V3+", "DeepLab-V2", 1.3),
    ("V3+ over V3", "table4", "DeepLab-V3+", "DeepLab-V3", 1.2),
    ("DTD beats CAM", "figure4", "DTD", "CAM", 24.3),
    ("DTD beats rollout", "figure4", "DTD", "rollout", 22.6),
]
PARAMETERS = {
    "table2": ["extras=True"],
    "ladder": ['methods=["dtd"]', 'rule={"fg_thr": 0.0}'],
}  # of a notebook, where the defaults would not do
MAPS = [
    ("DTD beats CAM, bare maps", "figure4", "DTD", "CAM", 24.3),
    ("DTD beats rollout, bare maps", "figure4", "DTD", "rollout", 22.6),
]  # the paper does not say what it measured


def per_seed(out: Path, table: str, stage: str) -> dict[str, dict[int, float]]:
    "mIoU of each finished row, by seed: of its network on val, or of its bare maps on train at their best background."
    rows = json.loads((out / f"{table}.json").read_text())["rows"]
    return {r["name"]: {s: m[stage]["miou"] for s, m in zip(r["seeds"], r["metrics"]) if stage in m} for r in rows}


def judge(out: Path) -> list[dict]:
    results = []
    for stage, (claim, table, above, below, paper) in [("evaluation", c) for c in CLAIMS] + [
        ("heatmap", c) for c in MAPS
    ]:
        rows = per_seed(out, table, stage) if (out / f"{table}.json").is_file() else {}
        seeds = sorted(rows.get(above, {}).keys() & rows.get(below, {}).keys())
        gaps = [rows[above][s] - rows[below][s] for s in seeds]
        verdict = "not run" if not gaps else "held" if min(gaps) > 0 else "not held" if max(gaps) <= 0 else "open"
        results.append(
            dict(
                claim=claim,
                table=table,
                measured="network, val" if stage == "evaluation" else "bare maps, train",
                above=above,
                below=below,
                seeds=seeds,
                gaps=gaps,
                mean=statistics.mean(gaps) if gaps else None,
                std=statistics.stdev(gaps) if len(gaps) > 1 else None,
                paper=paper,
                verdict=verdict,
            )
        )
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--preset", default="toy")
    parser.add_argument("--judge", action="store_true", help="run nothing")
    args = parser.parse_args()
    status = 0
    for table in () if args.judge else dict.fromkeys(table for _, table, *_ in CLAIMS):
        status |= wegformer(
            [
                "reproduce",
                table,
                "--preset",
                args.preset,
                "--seeds",
                *map(str, args.seeds),
                "--out",
                str(args.out),
                *(["--parameters", *PARAMETERS[table]] if table in PARAMETERS else []),
            ]
        )
    results = judge(args.out)
    (args.out / "orderings.json").write_text(json.dumps(results, indent=1))
    for r in results:
        gap = "" if r["mean"] is None else f"{r['mean']:+6.1f}" + ("" if r["std"] is None else f" ± {r['std']:.1f}")
        paper = "" if r["paper"] is None else f"paper +{r['paper']}"
        print(f"{r['verdict']:<9} {r['claim']:<48} {gap:<14} {paper}")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
