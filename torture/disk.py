"""Full disks, folders that may not be written, and files as a power cut leaves them."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from wegformer.pipeline import Chain
from wegformer.stages import Stage

from .tools import Case, difference, leftovers, only, reference, refused, snapshot, start, toy, whole_run, work_folder

DAMAGES: dict[str, Callable[[bytes], bytes]] = {  # what a power cut makes of a file
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
}
STAGES: dict[str, Callable[[Chain], Stage]] = {
    "classifier": lambda c: c.classifier,
    "attention": lambda c: c.attention,
    "labels": lambda c: c.labels,
    "segmenter": lambda c: c.segmenter,
    "evaluation": lambda c: c.evaluation,
}
READ = {"classifier": "attention", "attention": "labels", "labels": "segmenter", "segmenter": "evaluation"}


def damage(path: Path, how: str) -> Path:
    path.write_bytes(DAMAGES[how](path.read_bytes()))
    return path


def folder_of(cache: Path, stage: str) -> Path:
    return next(cache.glob(f"{stage}-*"))


def results(folder: Path) -> list[Path]:
    "A file of each kind in a stage's folder, its record apart."
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "done.json")
    return list({(p.parent, p.suffix): p for p in files}.values())


def same(theme: str, kind: str, name: str, child, ours: dict, theirs: dict, folder: Path) -> Case:
    "The case of a disturbed run whose result has to be that of an undisturbed one."
    wrong = f"status {child.status}: {child.said}" if child.status else difference(ours, theirs)
    wrong = wrong or next((f"{p.name} is left" for p in leftovers(folder)), "")
    return Case(theme, kind, name, "the same result", wrong or "equal", not wrong)


def unfinished(sample: bool) -> Iterator[Case]:
    "A damaged file of an unfinished stage counts as absent."
    for stage, pick in STAGES.items():
        cache = reference().copy(work_folder() / "cut")
        folder = folder_of(cache, stage)
        record, kept = (folder / "done.json").read_bytes(), snapshot(folder)
        for path in results(folder):
            for how in list(DAMAGES)[: 1 if sample else None]:
                (folder / "done.json").unlink(missing_ok=True)
                damage(path, how)
                (folder / f".x.png.{os.uname().nodename}.4194305.tmp").touch()  # above the largest process number
                child = start(only(pick, cache)).wait()
                yield same("disk", "power cut, unfinished stage", f"{stage}: {path.name} {how}", child,
                           snapshot(folder), kept, folder)  # fmt: skip
                if child.status:
                    shutil.rmtree(folder)
                    shutil.copytree(folder_of(reference().cache, stage), folder)
        (folder / "done.json").write_bytes(record)


def finished(sample: bool) -> Iterator[Case]:
    "A damaged file of a finished stage is named, with the folder to delete."
    for stage, reader in READ.items():
        cache = reference().copy(work_folder() / "cut")
        folder = folder_of(cache, stage)
        shutil.rmtree(folder_of(cache, reader))
        for path in [p for p in results(folder) if p.suffix != ".json"] + [folder / "done.json"]:
            content = path.read_bytes()
            for how in list(DAMAGES)[: 1 if sample else None]:
                damage(path, how)
                child = start(only(STAGES[reader], cache)).wait()
                yield refused("disk", "power cut, finished stage", f"{stage}: {path.name} {how}", child,
                              path, f"delete {folder}")  # fmt: skip
                path.write_bytes(content)


def checkpoints(sample: bool) -> Iterator[Case]:
    "A training that was killed goes on from a damaged checkpoint as if there were none."
    for stage in ("classifier", "segmenter"):
        cache = reference().copy(work_folder() / "cut")
        folder, kept = folder_of(cache, stage), snapshot(folder_of(cache, stage))
        for how in list(DAMAGES)[: 1 if sample else None]:
            shutil.rmtree(folder)
            child = start(only(STAGES[stage], cache))
            there = child.until((folder / "checkpoint.pt").exists) and child.kill()
            if there and (folder / "checkpoint.pt").exists():
                damage(folder / "checkpoint.pt", how)
            child = start(only(STAGES[stage], cache)).wait()
            yield same("disk", "power cut, checkpoint", f"{stage}: {how}", child, snapshot(folder), kept, folder)


def memories(sample: bool) -> Iterator[Case]:
    "What the cache holds beside the stages: the memory of known files, locks."
    home, cache = work_folder() / "home", reference().copy(work_folder() / "cut")
    again = folder_of(cache, "labels")
    for how in DAMAGES:
        damage(home / "contents.sqlite", how)
        (again / "done.json").unlink(missing_ok=True)
        child = start(only(STAGES["labels"], cache)).wait()
        yield same("disk", "damaged memory or lock", f"contents.sqlite {how}", child, snapshot(cache),
                   reference().files, cache)  # fmt: skip
    for path in sorted((cache / "locks").glob("labels-*.lock")):
        path.write_bytes(b"\x00garbage")
        (again / "done.json").unlink(missing_ok=True)
        child = start(only(STAGES["labels"], cache)).wait()
        yield same("disk", "damaged memory or lock", "a lock with content", child, snapshot(cache),
                   reference().files, cache)  # fmt: skip
        path.unlink()
        path.mkdir()
        (again / "done.json").unlink()
        child = start(only(STAGES["labels"], cache)).wait()
        yield refused("disk", "damaged memory or lock", "a folder in a lock's place", child, cache)


def drawn(sample: bool) -> Iterator[Case]:
    "Damage to the drawn data, which lie in the cache, too."
    names = [p.name for p in sorted((toy() / "JPEGImages").iterdir())]
    places = [f"JPEGImages/{names[0]}", f"Annotations/{names[0][:-4]}.xml", "toyvoc.json", "classes.txt",
              "ImageSets/Segmentation/train.txt"]  # fmt: skip
    for place in places:
        path, cache = toy() / place, work_folder() / "drawn"
        content = path.read_bytes()
        for how in ("empty", "gone"):
            if (place, how) == ("classes.txt", "gone"):
                continue  # a folder without it has VOC's own classes
            shutil.rmtree(cache, ignore_errors=True)
            damage(path, how) if how == "empty" else path.unlink()
            child = start(only(STAGES["attention"], cache)).wait()
            name = path if place != "toyvoc.json" else toy()
            yield refused("disk", "damaged drawn data", f"{place} {how}", child, name)
            path.write_bytes(content)


# disks


def mounted(folder: Path, size: int) -> bool:
    "Whether a small disk could be mounted there."
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=777", "torture", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


def full(sample: bool) -> Iterator[Case]:
    "A disk that is full at one moment or another; and the same run when there is room again."
    disk, need = work_folder() / "disk", sum(p.stat().st_size for p in reference().cache.rglob("*"))
    for share in (0.3,) if sample else (0.01, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9):
        room = int(need * share)
        if mounted(disk, room):
            child = start(whole_run(disk / "cache")).wait()
            left = len(list(leftovers(disk)))
            subprocess.run(["mount", "-o", f"remount,size={16 * need}", str(disk)], check=True)
        else:
            disk = work_folder() / f"disk {share}"
            child = start(whole_run(disk / "cache"), file_size=room // 8).wait()
            left = len(list(leftovers(disk)))
        case = refused("disk", "full disk", f"room for {share:.0%} of a run", child, disk)
        yield case if not left else Case(*[*vars(case).values()][:4], f"{left} temporary files are left", False)
        child = start(whole_run(disk / "cache")).wait()
        yield same("disk", "full disk", f"room again after {share:.0%}", child, snapshot(disk / "cache"),
                   reference().files, disk)  # fmt: skip
        subprocess.run(["umount", str(disk)], capture_output=True)
        shutil.rmtree(disk, ignore_errors=True)


def forbidden(sample: bool) -> Iterator[Case]:
    "A cache that this user may read but not write, and one that is a file."
    cache = reference().copy(work_folder() / "others")
    root = os.getuid() == 0
    if not root:
        for path in [cache, *cache.rglob("*")]:
            path.chmod(path.stat().st_mode & ~0o222)
    home = str(work_folder() / "home of nobody")
    Path(home).mkdir(exist_ok=True)
    Path(home).chmod(0o777)
    child = start(only(STAGES["evaluation"], cache), nobody=root).wait()
    wrong = f"status {child.status}: {child.said}" if child.status else ""
    yield Case("disk", "no right to write", "a finished run of another user", "read", wrong or "read", not wrong)
    (folder_of(cache, "evaluation") / "done.json").unlink()
    child = start(only(STAGES["evaluation"], cache), nobody=root).wait()
    yield refused("disk", "no right to write", "an unfinished run of another user", child, cache)
    child = start(only(STAGES["classifier"], Path("/proc/cache"))).wait()
    yield refused("disk", "no right to write", "a folder that cannot be made", child, "/proc/cache")
    (file := work_folder() / "file").touch()
    child = start(only(STAGES["classifier"], file)).wait()
    yield refused("disk", "no right to write", "a file in the cache's place", child, file)
    child = start(only(STAGES["classifier"], work_folder() / "new"), WEGFORMER_CACHE=str(file)).wait()
    yield refused("disk", "no right to write", "a file in the data's place", child, file)
    if root:
        for path in [cache, *cache.rglob("*")]:
            path.chmod(0o777 if path.is_dir() else 0o666)
        child = start(
            only(STAGES["evaluation"], cache), nobody=True, WEGFORMER_CACHE=str(work_folder() / "home")
        ).wait()
        yield same("disk", "no right to write", "a cache that several users share", child, snapshot(cache),
                   reference().files, cache)  # fmt: skip


def disk(sample: bool) -> Iterator[Case]:
    for theme in (full, forbidden, unfinished, finished, checkpoints, memories, drawn):
        yield from theme(sample)
