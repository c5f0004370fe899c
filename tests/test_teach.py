"""The chapters of the course: links, exercises, solutions that pass, and wrong answers that are told why."""

import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch

CHAPTERS = sorted((Path(__file__).resolve().parents[1] / "nbs/teach").glob("*.ipynb"))
SOLUTION = re.compile(r"<details><summary>Solution</summary>\n(.*?)```python\n(.*?)```\n</details>", re.S)


def cells(path):
    return json.loads(path.read_text())["cells"]


def text(path):
    return "\n\n".join("".join(c["source"]) for c in cells(path) if c["cell_type"] == "markdown")


@cache
def names_of(path):
    "What a chapter defines when its cells have run."
    names = {"__name__": "__main__"}
    for cell in cells(path):
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    return names


def said(path, source):
    "What the last line of a solution, its check, says."
    names = dict(names_of(path))
    *lines, check = source.strip().splitlines()
    exec("\n".join(lines), names)
    return eval(check, names)


SOLUTIONS = [(path, source) for path in CHAPTERS for _, source in SOLUTION.findall(text(path))]


@pytest.mark.parametrize("path, source", SOLUTIONS, ids=lambda v: v.stem if isinstance(v, Path) else v.split("\n")[-2])
def test_a_solution_passes_its_check(path, source):
    assert said(path, source) == "Right."


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_every_exercise_has_a_check_and_a_solution(path):
    exercises, checks = re.findall(r"^### (\d)\. ", text(path), re.M), []
    for cell in cells(path):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and "\ndef check_" in source:
            checks += re.findall(r"^def check_(\d)", source, re.M)
            printed = "".join("".join(o.get("data", {}).get("text/plain", [])) for o in cell["outputs"])
            assert printed == "'Not answered yet.'", "the page is stored with its exercises open"
    assert exercises == checks == [str(k) for k in range(1, len(checks) + 1)] and 3 <= len(checks) <= 5
    assert len(SOLUTION.findall(text(path))) == text(path).count("<details>") == len(checks)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_names_its_neighbours_at_both_ends(path):
    k = CHAPTERS.index(path)
    for word, i in (("Previous", k - 1), ("Next", k + 1)):
        links = re.findall(rf"{word}: \[[^]]*\]\(([^)]*)\)", text(path))
        expected = [CHAPTERS[i].name] * 2 if 0 <= i < len(CHAPTERS) else []
        assert links == expected


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_is_stored_with_pictures_and_no_dead_controls(path):
    kinds = {kind for c in cells(path) if c["cell_type"] == "code" for o in c["outputs"] for kind in o.get("data", {})}
    assert "image/png" in kinds and not any("widget" in kind for kind in kinds), "execute it with WEGFORMER_STATIC=1"
    assert path.stat().st_size < 1_000_000
    assert not any("#| export" in "".join(c["source"]) for c in cells(path))


def halves_swapped(saliency, classes, threshold):
    label = torch.where(saliency > threshold, classes[-1], 0).to(torch.uint8)
    right = label[:, label.shape[1] // 2 :]
    right[right > 0] = classes[0]
    return label


def without_negative_inputs(x, W, R):
    product = W.clamp(min=0) * x.clamp(min=0)
    total = product.sum(1, keepdim=True)
    return (product / total.where(total > 0, 1) * R[:, None]).sum(0)


def undefined_shares(x, W, R):
    product = (W * x).clamp(min=0)
    return (product / product.sum(1, keepdim=True) * R[:, None]).sum(0)


def no_residual(A):
    product = torch.eye(A.shape[-1])
    for a in A.mean(1):
        product = a @ product
    return product[0, 1:]


def wrong_order(A):
    product = torch.eye(A.shape[-1])
    for a in A.mean(1):
        product = product @ (a + torch.eye(len(a))) / 2
    return product[0, 1:]


WRONG = [  # chapter, check, answer, words of the refusal
    ("00_task", 1, 2 / 4, "recall"),
    ("00_task", 1, 2 / 3, "precision"),
    ("00_task", 1, 1.0, "Count the pixels"),
    ("00_task", 2, lambda b: b, "background's IoU alone"),
    ("00_task", 2, lambda b: 1.0, "What is the other?"),
    ("00_task", 3, halves_swapped, "Left of the middle"),
    ("00_task", 3, lambda s, c, t: torch.zeros(2, 2), "The label is (2, 2)"),
    ("00_task", 3, lambda s, c, t: torch.full_like(s, c[0]), "not salient must be 0"),
    ("00_task", 4, -1.0, "measure it on the others"),
    ("01_vit", 1, lambda h, w, p: (h // p) * (w // p), "class token is one more"),
    ("01_vit", 1, lambda h, w, p: 7, "14 x 14 patches"),
    ("01_vit", 2, lambda q, k: (q @ k.T).softmax(-1), "not divided by the root"),
    ("01_vit", 2, lambda q, k: (q @ k.T / 4).softmax(0), "Columns sum to 1"),
    ("01_vit", 2, lambda q, k: q, "It has shape (5, 16)"),
    ("01_vit", 3, 4, "factor of the tokens"),
    ("01_vit", 3, 16, "the class token does not double"),
    ("01_vit", 4, (1, 1), "No square begins at (1, 1)"),
    ("02_cam", 1, lambda f, w: f, "It has shape (4, 2, 3)"),
    ("02_cam", 1, lambda f, w: torch.einsum("dhw,cd->chw", f, w).clamp(min=0), "Negative values were cut"),
    ("02_cam", 1, lambda f, w: 2 * torch.einsum("dhw,cd->chw", f, w), "At each place"),
    ("02_cam", 2, 99.0, "what stands behind the sum"),
    ("02_cam", 3, no_residual, "residual connection is missing"),
    ("02_cam", 3, wrong_order, "wrong order"),
    ("02_cam", 4, {"attention"}, "One is missing"),
    ("02_cam", 4, {"attention", "rollout", "cam"}, "cam uses the class"),
    ("02_cam", 4, {"lime"}, "There is no method 'lime'"),
    ("03_deep_taylor", 1, undefined_shares, "0 is divided by 0"),
    ("03_deep_taylor", 1, without_negative_inputs, "A negative input times a negative weight"),
    ("03_deep_taylor", 1, lambda x, W, R: W.T @ R, "Some share is negative"),
    ("03_deep_taylor", 2, (4, 1), "relevance is conserved"),
    ("03_deep_taylor", 2, (3, 3), "Share the first unit's 3"),
    ("03_deep_taylor", 3, 11 / 3, "rescaled, the branches share"),
    ("03_deep_taylor", 3, 8 / 19, "That is branch b"),
    ("03_deep_taylor", 4, (1.0, 1.0), "still arrives"),
]


@pytest.mark.parametrize("chapter, check, answer, words", WRONG, ids=[f"{c}-{k}-{w[:20]}" for c, k, _, w in WRONG])
def test_a_wrong_answer_is_told_why(chapter, check, answer, words):
    names = names_of(next(p for p in CHAPTERS if p.stem == chapter))
    assert words in names[f"check_{check}"](answer)
    assert names[f"check_{check}"](None) == "Not answered yet."


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_every_check_refuses_something(path):
    assert {k for c, k, _, _ in WRONG if c == path.stem} == {
        int(k) for k in re.findall(r"^### (\d)\. ", text(path), re.M)
    }
