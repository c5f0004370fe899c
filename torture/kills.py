"""Runs are killed at random moments and started again until they are done; they must equal an undisturbed run."""

import random
import shutil
import signal
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

from .tools import VARIANTS, Case, difference, leftovers, reference, snapshot, start, whole_run, work_folder

SIGNALS = [signal.SIGKILL] * 6 + [signal.SIGTERM, signal.SIGINT]


def running(cache: Path) -> str:
    "The stage that was being made when a run was killed."
    folders = [p for p in cache.glob("*-*") if p.is_dir() and not (p / "done.json").exists()]
    names = sorted(folders, key=lambda p: p.stat().st_mtime)
    return names[-1].name.rpartition("-")[0] if names else "between stages"


def kills(count: int, seed: int = 0) -> Iterator[Case]:
    "A case a kill."
    rng, done = random.Random(seed), 0
    for n, variant in enumerate(cycle(VARIANTS)):
        whole, cache, hit = reference(variant), work_folder() / f"killed {n}", []
        while True:
            child = start(whole_run(cache, variant))
            if done + len(hit) < count:
                child.until(lambda: False, rng.uniform(0, whole.seconds / 2))  # so that a run meets several
                number = rng.choice(SIGNALS)
                if child.kill(number):
                    hit.append((running(cache), signal.Signals(number).name, child, child.orphans()))
                    continue
            child.wait()
            break
        wrong = f"status {child.status}: {child.said}" if child.status else difference(snapshot(cache), whole.files)
        wrong = wrong or next((f"{p.name} is left" for p in leftovers(cache)), "")
        for stage, name, killed, orphans in hit:
            fault = wrong or (f"{name} ended with a traceback" if "Traceback" in killed.text else "")
            fault = fault or (f"{len(orphans)} processes stayed behind" if orphans else "")
            yield Case(
                "kills",
                "random moment",
                f"{stage}: {variant}, {name}, run {n}",
                "the same results",
                fault or "equal",
                not fault,
            )
        done += len(hit)
        shutil.rmtree(cache)
        if done >= count:
            return
