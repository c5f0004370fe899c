"""Keeps the outputs that notebooks store in step with their code.

    python docs/stored.py                        # names the notebooks whose code has changed since they were executed
    python docs/stored.py --run NOTEBOOK ...     # executes them, keeps their outputs, and writes down what was executed
    python docs/stored.py --accept NOTEBOOK ...  # the stored outputs are said to be those of the code as it stands

A notebook's metadata hold `executed`, a fingerprint of the code that made its outputs: all code cells in their order,
without comments and empty lines. Any other change of the code, a cell more, a cell less or in another place makes the
outputs old. Not seen is a change outside the notebook, in a module it imports or in a library: whoever changes what a
module computes runs the notebooks that show it. nbdev-clean removes execution counts, so that they are looked at when
the notebook is run: every code cell was executed, in order, and none raised an error.
"""

import argparse
import hashlib
import io
import json
import sys
import tokenize
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEY = "executed"  # of a notebook's metadata; pyproject.toml allows it


def bare(
    source: str,  # of a code cell
) -> str:
    "The code without comments and empty lines."
    lines = source.splitlines()
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, SyntaxError):  # a magic: compared as it stands
        tokens = []
    for token in tokens:
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return "\n".join(line.rstrip() for line in lines if line.strip())


def fingerprint(notebook: dict) -> str:
    "Of all code cells, in order."
    codes = [bare("".join(cell["source"])) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256(json.dumps([code for code in codes if code]).encode()).hexdigest()[:16]


def stale(notebook: dict) -> str | None:
    "What is wrong with the stored outputs; None: they are those of the code, or there are none."
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    if any(output["output_type"] == "error" for output in outputs):
        return "a stored output is an error"
    if outputs and KEY not in notebook["metadata"]:
        return "nothing says which code made the stored outputs"
    if outputs and notebook["metadata"][KEY] != fingerprint(notebook):
        return "the code has changed since the stored outputs were made"
    return None


def in_order(notebook: dict) -> bool:
    "Whether every code cell was executed, one after the other from the top."
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code" and "".join(c["source"]).strip()]
    return [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def accept(path: Path) -> None:
    "Write down that the stored outputs are those of the code as it stands."
    from fastcore.nbio import read_nb, write_nb

    notebook = read_nb(path)
    notebook.metadata[KEY] = fingerprint(read(path))
    write_nb(notebook, path)


def run(path: Path) -> None:
    "Execute a notebook in its own folder, and keep its outputs, cleaned."
    import nbformat
    from nbclient import NotebookClient
    from nbdev.clean import nbdev_clean

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    if not in_order(notebook):
        raise RuntimeError(f"{path}: not every cell was executed, one after the other")
    nbformat.write(notebook, path)
    nbdev_clean(str(path))
    accept(path)


def notebooks() -> list[Path]:
    "All of the repository."
    return sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def main(argv: Sequence[str] | None = None) -> int:
    "0 when everything is in step, else 1."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="+", type=Path, default=[], metavar="NOTEBOOK")
    parser.add_argument("--accept", nargs="+", type=Path, default=[], metavar="NOTEBOOK")
    given = parser.parse_args(argv)
    for path in given.run:
        run(path)
    for path in given.accept:
        accept(path)
    found = {path: said for path in notebooks() if (said := stale(read(path)))}
    for path, said in found.items():
        print(f"{path.relative_to(ROOT)}: {said}; run `python docs/stored.py --run {path.relative_to(ROOT)}`.")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
