"""Runs are killed at random moments and started again until they are done; they must equal an undisturbed run."""

import json
import random
import shutil
import signal
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

from .tools import (
    OFTEN_DIFFERENT,
    VARIANTS,
    Case,
    call,
    difference,
    leftovers,
    options,
    reference,
    snapshot,
    start,
    toy,
    whole_run,
    work_folder,
)

SIGNALS = [signal.SIGKILL] * 6 + [signal.SIGTERM, signal.SIGINT]


def running(cache: Path) -> str:
    "The stage that was being made when a run was killed."
    folders = [p for p in cache.glob("*-*") if p.is_dir() and not (p / "done.json").exists()]
    names = sorted(folders, key=lambda p: p.stat().st_mtime)
    return names[-1].name.rpartition("-")[0] if names else "between stages"


def _reproduce(folder: Path):
    "The command for a table, with all of its rows, in a folder of its own."
    own = ["--cache", folder / "stages", "--out", folder / "out", "--parameters", "extras=True"]
    return call("reproduce", "table2", *own, *options())


def _table(folder: Path) -> dict[str, str]:
    "What a table says, and the files that it rests on, to be compared."
    rows = json.loads((folder / "out/table2.json").read_text())["rows"]
    for stage in (stage for row in rows for seed in row["stages"] for stage in seed):
        for name in OFTEN_DIFFERENT:
            stage.pop(name, None)
    return {f"row {row['name']}": json.dumps(row, sort_keys=True) for row in rows} | snapshot(folder / "stages")


def table_kills(count: int, rng: random.Random) -> Iterator[Case]:
    "The same of a whole table: the process that is killed has a notebook's kernel below it."
    whole, folder, hit, orphans = work_folder() / "table", work_folder() / "killed table", [], []
    toy()
    child = start(_reproduce(whole)).wait(600)
    if child.status:
        yield Case("kills", "of a table", "undisturbed", "finished", f"status {child.status}: {child.said}", False)
        return
    while len(hit) < count:
        killed = start(_reproduce(folder))
        killed.until(lambda: False, rng.uniform(2, child.seconds / 2))
        number = rng.choice(SIGNALS)
        if not killed.kill(number):
            break
        hit.append(f"{running(folder / 'stages')}: {signal.Signals(number).name}")
        orphans.append(killed.orphans())
    again = start(_reproduce(folder)).wait(600)
    wrong = f"status {again.status}: {again.said}" if again.status else difference(_table(folder), _table(whole))
    wrong = wrong or next((f"{p.name} is left" for p in leftovers(folder)), "")
    for name, left in zip(hit, orphans):
        fault = wrong or (f"{len(left)} processes stayed behind" if left else "")
        yield Case("kills", "of a table", name, "the same table and results", fault or "equal", not fault)


def kills(count: int, seed: int = 0) -> Iterator[Case]:
    "A case a kill; of twenty, one is that of a table."
    rng, done = random.Random(seed), count // 20
    if done:
        yield from table_kills(done, rng)
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
