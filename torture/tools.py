"""Children that are limited, killed and listened to; and folders that are compared hash by hash.

wegformer is imported once; each child is a fork, so that it starts in milliseconds. This process computes nothing.
"""

import codecs
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from wegformer.cli import main
from wegformer.config import override, preset
from wegformer.pipeline import Chain, chain
from wegformer.stages import Stage, run
from wegformer.toyvoc import make_toy_voc

codecs.lookup("utf-8-sig")  # Python loads it when it is first wanted, from a folder that `NOBODY` may not enter
NOBODY = 65534
PATIENCE = 300  # seconds until a child counts as hanging


@dataclass(frozen=True)
class Case:
    "Something that was tried, and how it was answered."

    theme: str
    kind: str  # what docs/reliability.md counts together
    name: str
    expected: str
    found: str
    ok: bool


@dataclass
class Child:
    "A forked process; what it prints goes into a file."

    pid: int
    output: Path
    started: float = field(default_factory=time.monotonic)
    status: int | None = None  # exit status; minus the signal that ended it
    peak: int = 0  # bytes of memory
    seconds: float = 0.0

    def poll(self) -> bool:
        "Whether it has ended."
        if self.status is None:
            pid, status, used = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.status, self.peak = os.waitstatus_to_exitcode(status), used.ru_maxrss << 10
                self.seconds = time.monotonic() - self.started
        return self.status is not None

    def wait(self, seconds: float = PATIENCE) -> "Child":
        "Let it end; one that takes longer is killed, and its status is None no more but -9."
        deadline = time.monotonic() + seconds
        while not self.poll() and time.monotonic() < deadline:
            time.sleep(0.01)
        if self.status is None:
            self.kill()
        return self

    def until(self, seen: Callable[[], object], seconds: float = PATIENCE) -> bool:
        "Let it go on until something is seen; False if it ends before, or takes too long."
        deadline = time.monotonic() + seconds
        while not seen():
            if self.poll() or time.monotonic() > deadline:
                return bool(seen())
            time.sleep(0.002)
        return True

    def kill(self, number: int = signal.SIGKILL) -> bool:
        "Send a signal and let it end; False where it had ended by itself."
        if self.poll():
            return False
        os.kill(self.pid, number)
        self.wait()
        return True

    def orphans(self, seconds: float = 15) -> list[int]:
        "Processes that it started and that outlive it by some seconds; they are ended here."
        deadline = time.monotonic() + seconds
        while (found := _of_session(self.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        return found

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def said(self) -> str:
        "The last line that it printed."
        return (self.text.strip().splitlines() or [""])[-1]


def _of_session(number: int) -> list[int]:
    "The living processes of a session, which the child of that number leads."
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(session) == number and state != "Z":
            found.append(int(path.parent.name))
    return found


def start(
    work: Callable[[], int | None],  # what the child does; what it returns is its exit status
    *,
    nobody: bool = False,  # as another user, who owns nothing
    memory: int | None = None,  # bytes that it may take beyond what it has
    file_size: int | None = None,  # bytes that a file may have
    **environment: str,
) -> Child:
    "Fork a child."
    handle, output = tempfile.mkstemp(prefix="torture-", suffix=".log")
    pid = os.fork()
    if pid:
        os.close(handle)
        return Child(pid, Path(output))
    status = 70  # of an exception that nothing caught
    try:
        os.setsid()  # so that what it starts can be found
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))
        os.environ.update(environment)
        if memory is not None:
            now = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10
            resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        if nobody:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        status = work() or 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def call(*args: object) -> Callable[[], int]:
    "The command `wegformer` with some arguments, as work for a child."
    return lambda: main([str(a) for a in args])


def wrong_refusal(child: Child, *names: object) -> str:
    "What is wrong with how a bad input was refused: nothing, if it is one clear line with all of the names."
    lines = [line for line in child.text.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if child.status is not None and child.status < 0:
        return f"ended by signal {-child.status}: {last}"
    if "Traceback (most recent call last)" in child.text:
        return f"traceback: {last}"
    if child.status != 2 or not last.startswith("wegformer: "):
        return f"status {child.status}: {last or 'nothing said'}"
    if sum(line.startswith("wegformer: ") for line in lines) > 1 or re.search(r"[\x00-\x08\x0b-\x1f\x7f]", last):
        return f"not one plain line: {last!r}"
    missing = [str(name) for name in names if str(name) not in last]
    return f"does not name {missing[0]}: {last}" if missing else ""


def refused(theme: str, kind: str, name: str, child: Child, *names: object) -> Case:
    "The case of an input that has to be refused in one line."
    wrong = wrong_refusal(child, *names)
    return Case(theme, kind, name, "refused in one line", wrong or child.said.removeprefix("wegformer: "), not wrong)


# runs


VARIANTS: dict[str, dict] = {  # that have all stages between them: what each changes in the preset smoke
    "plain": {},
    "rounds 2, workers 2": {"rounds": 2},
    "CRF": {"segmenter.crf": True},
    "initial stage": {"pretrain.masks": True},
}
SMALL = {"data.toy_train": 12, "data.toy_val": 4}


def stages(variant: str = "plain") -> Chain:
    workers = 2 if "workers" in variant else 0
    return chain(override(preset("smoke"), SMALL | VARIANTS[variant]), workers)


def options(variant: str = "plain") -> list[str]:
    "The same on the command line."
    named = [(f"--{k.removeprefix('data.').replace('_', '-')}", v) for k, v in (SMALL | VARIANTS[variant]).items()]
    own = [part for k, v in named for part in ([k] if v is True else [k, str(v)])]
    return ["--preset", "smoke", *own, *(["--workers", "2"] if "workers" in variant else [])]


def whole_run(cache: Path, variant: str = "plain") -> Callable[[], int]:
    "`wegformer evaluate`, and the stage aside that measures the maps."

    def work() -> int:
        status = main(["evaluate", "--cache", str(cache), *options(variant)])
        return status or only(lambda found: found.heatmap, cache, variant)()

    return work


def only(stage: Callable[[Chain], Stage], cache: Path, variant: str = "plain") -> Callable[[], int]:
    "One stage of a run and what it needs, with errors as the command tells them."

    def work() -> int:
        try:
            run(stage(stages(variant)), cache)
        except (ValueError, OSError, RuntimeError) as error:
            print(f"wegformer: {error}", file=sys.stderr)
            return 2
        return 0

    return work


OFTEN_DIFFERENT = ("seconds", "peak_gib", "device", "processes")  # what done.json says beside the result


def snapshot(folder: Path) -> dict[str, str]:
    "A hash of each file of a cache, by its place; what may differ between equal runs apart."
    found = {}
    for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
        if {"locks", "shards"} & set(path.relative_to(folder).parts):
            continue
        content = path.read_bytes()
        if path.name == "done.json":
            record = {k: v for k, v in json.loads(content).items() if k not in OFTEN_DIFFERENT}
            content = json.dumps(record, sort_keys=True).encode()
        found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def difference(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    "The first difference of two snapshots in words; nothing where they are equal."
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            what = "is missing" if name not in ours else "is too much" if name not in theirs else "differs"
            return f"{name} {what}"
    return ""


@dataclass(frozen=True)
class Reference:
    "A run that nothing disturbed."

    cache: Path
    files: dict[str, str]
    seconds: float

    def copy(self, to: Path) -> Path:
        "Its stages in another folder, which a test may damage."
        shutil.rmtree(to, ignore_errors=True)
        return Path(shutil.copytree(self.cache, to))


@cache
def work_folder() -> Path:
    "A folder for everything, which any user may enter; the drawn data lie in its folder home."
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    folder.chmod(0o755)
    os.environ["WEGFORMER_CACHE"] = str(folder / "home")
    return folder


@cache
def toy() -> Path:
    "The drawn data that all runs share."
    root = work_folder() / "home"
    child = start(lambda: print(make_toy_voc(train=12, val=4))).wait()
    return root / child.said


@cache
def reference(variant: str = "plain") -> Reference:
    "The undisturbed run of a variant; made once."
    cache = work_folder() / f"reference {variant}"
    toy()
    child = start(whole_run(cache, variant)).wait()
    if child.status:
        raise RuntimeError(f"the undisturbed run {variant!r} failed: {child.text}")
    return Reference(cache, snapshot(cache), child.seconds)


def leftovers(folder: Path) -> Iterator[Path]:
    "Temporary files, which a finished run must not leave."
    return Path(folder).rglob(".*.tmp")
