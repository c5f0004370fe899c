"""Several processes at once: on one cache, as shards, as ranks of one run of which one dies."""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .tools import Case, Child, call, difference, options, reference, snapshot, start, whole_run, work_folder

WAITING = "is being made by another process"
GRACE = 30  # seconds in which the other ranks must have ended


def _equal(name: str, children: list[Child], cache: Path, *further: tuple[bool, str]) -> Case:
    wrong = next((f"status {c.status}: {c.said}" for c in children if c.status), "")
    wrong = wrong or difference(snapshot(cache), reference().files)
    wrong = wrong or next((text for ok, text in further if not ok), "")
    return Case("races", "one cache", name, "the same results", wrong or "equal", not wrong)


def _shard(place: int, count: int, cache: Path) -> Callable[[], int]:
    "One job of an array: 0 when its part is done, too, and others are still to come (75)."
    command = call("evaluate", "--shard", f"{place + 1}/{count}", "--cache", cache, *options())

    def work() -> int:
        try:
            return command()
        except SystemExit as error:
            return 0 if error.code == 75 else error.code

    return work


def one_cache(sample: bool) -> Iterator[Case]:
    cache = work_folder() / "two"
    children = [start(whole_run(cache)) for _ in range(2)]
    for child in children:
        child.wait()
    waited = any(WAITING in child.text for child in children)
    yield _equal("two processes, the same run", children, cache, (waited, "neither says that it waits"))

    cache = work_folder() / "taken over"
    first = start(whole_run(cache))
    first.until(lambda: list(cache.glob("classifier-*")))
    second = start(whole_run(cache))
    second.until(lambda: WAITING in second.text)
    there = first.kill()
    yield _equal("one is killed, the waiting one takes over", [second.wait()], cache, (there, "nothing was killed"))

    cache, rounds = work_folder() / "shards", 0
    while not any(cache.glob("evaluation-*/done.json")) and rounds < 9:
        children, rounds = [start(_shard(i, 3, cache)) for i in range(3)], rounds + 1
        for child in children:
            child.wait()
    start(whole_run(cache)).wait()
    yield _equal(f"three shards, started {rounds} times", children, cache)


# ranks


def ranks(command: Callable[[], int], count: int = 2) -> list[Child]:
    "The processes that torchrun would start, without torchrun, which would end them all."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    setting = dict(WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_WORLD_SIZE=str(count))
    return [start(command, RANK=str(i), LOCAL_RANK=str(i), **setting) for i in range(count)]


def _appears(cache: Path, pattern: str) -> Callable[[], bool]:
    return lambda: any(cache.glob(pattern))


def a_rank_dies(sample: bool) -> Iterator[Case]:
    "In a stage that trains, and in one that is shared."
    cache = work_folder() / "ranks"
    command = call("evaluate", "--cache", cache, *options())
    for stage, victim, seen in (("classifier", 1, "classifier-*/checkpoint.pt"), ("attention", 0, "attention-*/*.npz"),
                                ("segmenter", 0, "segmenter-*/checkpoint.pt"))[: 2 if sample else 3]:  # fmt: skip
        children = ranks(command)
        there = children[victim].until(_appears(cache, seen)) and children[victim].kill()
        began, other = time.monotonic(), children[1 - victim].wait(GRACE + 30)
        took = time.monotonic() - began
        wrong = "" if there else "nothing was killed"
        wrong = wrong or (f"the other took {took:.0f} s" if took > GRACE else "")
        wrong = wrong or ("" if other.status else "the other ended well")
        wrong = wrong or ("traceback" if "Traceback" in other.text else "")
        yield Case("races", "a rank dies", f"rank {victim} in {stage}", f"the other ends in {GRACE} s, with an error",
                   wrong or f"{took:.1f} s: {other.said}", not wrong)  # fmt: skip
    children = [child.wait() for child in ranks(command)]
    wrong = next((f"status {c.status}: {c.said}" for c in children if c.status), "")
    yield Case("races", "a rank dies", "the same command again", "finished", wrong or "finished", not wrong)


def races(sample: bool) -> Iterator[Case]:
    for theme in (one_cache, a_rank_dies):
        yield from theme(sample)
