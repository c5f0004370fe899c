"""Try it all, print how each kind of fault was answered, and end with 1 where one was answered wrongly.

python -m torture                    # 20 kills, everything once: some 20 minutes on two cores
python -m torture --sample           # a part of it, in some 5 minutes
python -m torture --only disk races
python -m torture --kills 100 --record   # what docs/reliability.md tells
"""

import argparse
import os
import shutil
import sys
import time
from collections import Counter
from datetime import timedelta
from functools import partial
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"  # in the children; our own bar says otherwise
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads do not survive a fork
import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from wegformer.stages import device_name, versions  # noqa: E402

from .data_faults import data  # noqa: E402
from .disk import disk  # noqa: E402
from .hostile import hostile  # noqa: E402
from .kills import kills  # noqa: E402
from .races import races  # noqa: E402
from .soak import soak  # noqa: E402
from .tools import Case, work_folder  # noqa: E402
from .twins import twins  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
THEMES = dict(data=data, hostile=hostile, disk=disk, races=races, twins=twins, soak=soak)


def summary(cases: list[Case]) -> list[dict]:
    "A row for each kind: how many were tried and how many were answered as they should."
    tried, good = Counter((c.theme, c.kind) for c in cases), Counter((c.theme, c.kind) for c in cases if c.ok)
    return [dict(theme=t, kind=k, tried=n, good=good[t, k]) for (t, k), n in tried.items()]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", action="store_true", help="a part of it")
    parser.add_argument("--kills", type=int, help="how many; default: 20, in a sample 4")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--only", nargs="+", choices=["kills", *THEMES], help="themes; default: all")
    parser.add_argument("--record", action="store_true", help="keep the counts in benchmarks/results")
    parser.add_argument("--verbose", action="store_true", help="print every case")
    return parser.parse_args()


def main() -> int:
    args, began, cases = parse(), time.monotonic(), []
    torch.set_num_threads(1)
    count = args.kills or (4 if args.sample else 20)
    curve = ROOT / "docs/soak.png" if args.record else None
    themes = dict(kills=lambda sample: kills(count, args.seed)) | THEMES | dict(soak=partial(soak, figure=curve))
    bar = tqdm(disable=False, file=sys.stderr, bar_format="{n} cases, {elapsed} {postfix}")
    try:
        for name in args.only or themes:
            for case in themes[name](args.sample):
                cases.append(case)
                bar.set_postfix_str(f"{name}: {case.kind}")
                bar.update()
                if args.verbose or not case.ok:
                    bar.write(f"{'ok   ' if case.ok else 'WRONG'}  {case.theme}, {case.kind}: {case.name}\n"
                              f"       expected: {case.expected}; found: {case.found}")  # fmt: skip
    finally:
        bar.close()
        shutil.rmtree(work_folder(), ignore_errors=True)
    rows = summary(cases)
    for row in rows:
        print(f"{row['theme']:<8} {row['kind']:<52} {row['good']:>4} of {row['tried']:>4}")
    wrong = sum(not case.ok for case in cases)
    print(f"{len(cases)} cases, {wrong} answered wrongly, {timedelta(seconds=round(time.monotonic() - began))}")
    if args.record:
        sys.path.insert(0, str(ROOT / "benchmarks"))
        import records

        held = dict(rows=rows, device=device_name(), versions=versions(), minutes=(time.monotonic() - began) / 60)
        print(records.append(held, "torture"))
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
