"""The puzzles of the kernel notebooks: open as stored, solutions that pass, and slips that are told why."""

import json
import linecache
import os
import re
from functools import cache
from pathlib import Path

import pytest

BOOKS = {p.stem: p for p in sorted((Path(__file__).resolve().parents[2] / "nbs/kernels").glob("*.ipynb"))}
SOLUTION = re.compile(
    r"<details><summary>Solution</summary>\n(.*?)```python\n(.*?)\n\n(check_\d)\((\w+)\)\n```\n</details>", re.S
)
UNANSWERED = "Not answered yet: nothing was "


def cells(book):
    return json.loads(BOOKS[book].read_text())["cells"]


def text(book):
    return "\n\n".join("".join(c["source"]) for c in cells(book) if c["cell_type"] == "markdown")


def puzzles(book):
    "The code cells that hold a check."
    return [
        c for c in cells(book) if c["cell_type"] == "code" and re.search(r"^def check_\d", "".join(c["source"]), re.M)
    ]


def run(source, name, names):
    "Execute a cell under a name that Triton, which reads its kernels' source, finds again."
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
    exec(compile(source, name, "exec"), names)


@cache
def names_of(book):
    "What a puzzle may use: the notebook's imports, its device, and the checks."
    names = {"__name__": "__main__"}
    run("import os\nimport torch\nimport triton\nimport triton.language as tl", f"<imports of {book}>", names)
    names["device"] = "cuda" if os.environ.get("TRITON_INTERPRET") != "1" else "cpu"
    for k, cell in enumerate(puzzles(book)):
        run("".join(cell["source"]), f"<puzzle {k + 1} of {book}>", names)
    return names


def said(book, source, check, kernel):
    "What a check says to a kernel's source."
    names = dict(names_of(book))
    run(source, f"<{kernel} {abs(hash(source))} of {book}>", names)
    return names[check](names[kernel])


SOLVED = {(book, check): (code, kernel) for book in BOOKS for _, code, check, kernel in SOLUTION.findall(text(book))}


@pytest.mark.parametrize("book, check", SOLVED)
def test_a_solution_passes_its_check(book, check):
    code, kernel = SOLVED[book, check]
    assert said(book, code, check, kernel) == "Right."


@pytest.mark.parametrize("book", BOOKS)
def test_every_puzzle_has_a_check_and_a_solution_and_is_stored_open(book):
    numbers = re.findall(r"^### (\d)\. ", text(book), re.M)
    assert numbers == [str(k + 1) for k in range(len(numbers))]
    assert [c for b, c in SOLVED if b == book] == [f"check_{k}" for k in numbers]
    assert len(puzzles(book)) == len(numbers) == text(book).count("<details>")
    for cell, number in zip(puzzles(book), numbers):
        kernel = SOLVED[book, f"check_{number}"][1]
        assert "".join(cell["source"]).endswith(f"\n\ncheck_{number}({kernel})")
        assert "".join(cell["outputs"][0]["data"]["text/plain"]).startswith(f"'{UNANSWERED}")
        assert names_of(book)[f"check_{number}"](names_of(book)[kernel]).startswith(UNANSWERED)


def test_there_are_puzzles():
    assert {b for b, _ in SOLVED} >= {"00_launch", "01_head_mean", "03a_digits"} and len(SOLVED) >= 5


SLIPS = [  # notebook, check, what is changed in its solution, into what, words of the refusal
    ("00_launch", 1, "x + y, mask=at < n", "x + y", "writes behind the sum"),
    ("00_launch", 1, "tl.program_id(0) * BLOCK + ", "", "Nothing was written to place 8"),
    ("00_launch", 1, "x + y,", "x * y,", "1 + 100 is not 100"),
    ("00_launch", 1, "mask=at < n)", "mask=at < 0)", UNANSWERED),
    ("00_launch", 2, ", mask=at < n, other=-float('inf')", "", "read what lies behind"),
    ("00_launch", 2, ", other=-float('inf')", ", other=0.0", "what should `other` be?"),
    ("00_launch", 2, "tl.program_id(0) * BLOCK + ", "", "Program 1 finds -1"),
    ("00_launch", 2, "largest_ptr + tl.program_id(0)", "largest_ptr + at", "each at its own place"),
    ("00_launch", 2, "largest_ptr + tl.program_id(0)", "largest_ptr", "each at its own place"),
    ("00_launch", 2, "tl.max(x)", "tl.min(x)", "which is not its largest"),
    ("01_head_mean", 1, "mask=at < columns, other=0.0", "mask=at < columns + 3, other=0.0", "behind the row"),
    ("01_head_mean", 1, "mask=at < columns, other=0.0", "mask=lane < columns, other=0.0", "behind the row"),
    ("01_head_mean", 1, "range(0, columns, BLOCK)", "range(0, BLOCK, BLOCK)", "first block alone"),
    ("01_head_mean", 1, "at * column_stride", "at", "one step along the row is column_stride"),
    ("01_head_mean", 1, "tl.float32", "tl.float16", "2048 + 1 is 2048"),
    ("01_head_mean", 1, "sum_ptr + row,", "sum_ptr,", "each at sum_ptr + row"),
    ("01_head_mean", 1, "row * row_stride + ", "", "Every program sums row 0"),
    ("03_relevance_attention", 1, " * tl.exp(highest - new)", "", "the old sum must shrink"),
    ("03_relevance_attention", 1, "other=-float('inf')", "other=0.0", "what should `other` be"),
    ("03_relevance_attention", 1, ", mask=at < n, other=-float('inf')", "", "behind the row"),
    ("03_relevance_attention", 1, "tl.maximum(highest, tl.max(x))", "0.0", "infinite in float32"),
    ("03_relevance_attention", 1, "highest, total = -float('inf')", "highest, total = 0.0", "begins below all"),
    ("03_relevance_attention", 1, "highest + tl.log", "tl.log", "with the maximum 100: expected"),
    ("03a_digits", 1, " & (key >> shift >> BITS == prefix)", "", "All numbers are counted"),
    ("03a_digits", 1, "(at < n) & ", "", "Lanes outside are counted"),
    ("03a_digits", 1, "tl.atomic_add", "tl.store", "Some counts are lost"),
    ("03a_digits", 1, "(key >> shift) & (", "key & (", "Expected the counts"),
    ("03a_digits", 2, ", mask=chosen", "", "lanes outside are counted"),
    ("03a_digits", 2, "(found << BITS) + here", "here", "each behind those before it"),
    ("03a_digits", 2, "<= rank", "< rank", "how many have a sum <= rank?"),
    ("03a_digits", 2, "rank -= ", "rank -= 0 * ", "the rank loses the numbers below"),
    ("03a_digits", 2, "chosen = chosen & (digit == here)", "chosen = chosen", "only those that have it go on"),
]


@pytest.mark.parametrize("book, check, right, slip, words", SLIPS, ids=[f"{b}-{c}-{w[:20]}" for b, c, _, _, w in SLIPS])
def test_a_slip_is_told_why(book, check, right, slip, words):
    code, kernel = SOLVED[book, f"check_{check}"]
    code = code.replace('"', "'")
    assert right in code
    assert words in said(book, code.replace(right, slip), f"check_{check}", kernel)


@pytest.mark.parametrize("book, check", SOLVED)
def test_every_check_refuses_something(book, check):
    assert any((b, f"check_{k}") == (book, check) for b, k, *_ in SLIPS)
