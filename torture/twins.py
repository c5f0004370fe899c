"""Two whole runs that share nothing: equal hash by hash."""

from collections.abc import Iterator

from .tools import VARIANTS, Case, difference, reference, snapshot, start, whole_run, work_folder


def twins(sample: bool) -> Iterator[Case]:
    for variant in list(VARIANTS)[: 1 if sample else None]:
        folder = work_folder() / f"twin {variant}"
        child = start(whole_run(folder / "stages", variant), WEGFORMER_CACHE=str(folder / "home")).wait()
        theirs = reference(variant).files
        wrong = f"status {child.status}: {child.said}" if child.status else ""
        wrong = wrong or difference(snapshot(folder / "stages"), theirs)
        yield Case("twins", "two runs", variant, "equal files", wrong or f"{len(theirs)} files equal", not wrong)
