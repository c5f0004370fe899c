"""The chapters of the course: links, exercises, solutions that pass, and wrong answers that are told why."""

import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch

from wegformer.evaluation import iou
from wegformer.pseudo_labels import LabelRule

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


def loss_at(log_p, label, divide):
    known = label != 255
    own = log_p.gather(0, label.long().where(known, 0)[None])[0]
    return -(own * known).sum() / divide(known)


def without_key(history, key):
    return max(history, key=lambda row: row[key])["step"]


def last_of_equals(history, key):
    return max(reversed([row for row in history if key in row]), key=lambda row: row[key])["step"]


def spoilt(matrix, c):
    matrix[c, c] = matrix[c, 0] = -1
    return matrix[c].argmax()


def each_by_itself(ours, theirs, picks):
    ends = torch.tensor([0.025, 0.975])
    return (ours[picks].mean(1) - theirs[picks.flip(0)].mean(1)).quantile(ends)


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
    ("04_maps_compared", 1, lambda A, m, c: bool(m.flatten()[A.argmax()] == c), "Leave such pixels out"),
    ("04_maps_compared", 1, lambda A, m, c: True, "Find the place"),
    ("04_maps_compared", 1, lambda A, m, c: not bool((m[A == 0.9] == 0).any()), "For class 5"),
    ("04_maps_compared", 2, 2, "the whole picture"),
    ("04_maps_compared", 2, 3 / 7, "divides each by its area"),
    ("04_maps_compared", 2, 1.0, "Divide each share"),
    ("04_maps_compared", 3, lambda A: A - 1, "Expected ten values"),
    ("04_maps_compared", 3, lambda A: 1 - A, "The order has changed"),
    ("04_maps_compared", 3, lambda A: A, "At 0.5 its IoU is 0.83"),
    ("04_maps_compared", 4, 1.0, "on both objects"),
    ("04_maps_compared", 4, 0.25, "asked twice"),
    ("05_soft_erase", 1, lambda A, r: torch.minimum(A, A.amax() * r) / (A.amax() * r), "The second map is wrong"),
    ("05_soft_erase", 1, lambda A, r: torch.minimum(A, A.amax((1, 2), True) * r), "literal form"),
    ("05_soft_erase", 1, lambda A, r: A[0], "It has shape (1, 3)"),
    ("05_soft_erase", 1, lambda A, r: A, "The smaller of the map and its cut"),
    ("05_soft_erase", 2, 0.55, "a higher S_r is still safe"),
    ("05_soft_erase", 2, 0.9, "the first can"),
    ("05_soft_erase", 3, lambda rate, score: score, "literal form"),
    ("05_soft_erase", 3, lambda rate, score: score / rate, "The wrong way round"),
    ("05_soft_erase", 4, (0.9, 0), "It does not win before"),
    ("05_soft_erase", 4, (0.5, 200), "It lies below the cut"),
    ("05_soft_erase", 4, (0.9, 200), "It still wins"),
    ("05_soft_erase", 4, (90, 200), "Expected attention"),
    ("06_saliency", 1, lambda s: 1 - s, "needs a floating-point number"),
    ("06_saliency", 1, lambda s: s / 255, "That is the saliency"),
    ("06_saliency", 1, lambda s: (1 - s) / 1, "has wrapped around"),
    ("06_saliency", 1, lambda s: (s < 100).float(), "One minus a 255th"),
    ("06_saliency", 2, 141, "0.55 of 255"),
    ("06_saliency", 2, 114, "the background still scores 0.553"),
    ("06_saliency", 3, 0.8, "That is the erased map"),
    ("06_saliency", 3, 0.55, "more than is needed"),
    ("06_saliency", 4, 0.0, "the tie goes to the background"),
    ("06_saliency", 4, 0.5, "What does it take"),
    ("07_label_rule", 1, (3, 3, 255, 255, 255, 0), "Pixel 1 is not 3"),
    ("07_label_rule", 1, (3, 5, 0, 255, 255, 0), "Pixel 2 is not 0. Both classes are below"),
    ("07_label_rule", 1, (3, 5, 255, 3, 255, 0), "Two channels"),
    ("07_label_rule", 1, (3, 5, 255), "expected six"),
    ("07_label_rule", 2, lambda P, A, c: A > A[P == c].median(), "Only background"),
    ("07_label_rule", 2, lambda P, A, c: (P == 0) & (A > A[P == c].mean()), "0.6 is mined"),
    ("07_label_rule", 2, lambda P, A, c: (P == 0) & (A >= A[P == c].median()), "strict"),
    ("07_label_rule", 2, lambda P, A, c: P.masked_fill(A > 0.7, 255), "expected (2, 5), torch.bool"),
    ("07_label_rule", 3, lambda own: own.mean(), "EPOM lives"),
    ("07_label_rule", 3, lambda own: own.double().quantile(0.5), "there the median is 0.55"),
    ("07_label_rule", 3, lambda own: own.min(), "dead at a higher S_r"),
    ("07_label_rule", 4, LabelRule(), "Step 3"),
    ("07_label_rule", 4, LabelRule(conflict_thr=None, uncertain="off"), "EPOM is still on"),
    ("08_miou", 1, 0.75, "sum the pixels first"),
    ("08_miou", 1, 0.45, "All that was found"),
    ("08_miou", 2, lambda m: torch.stack([iou(x).nanmean() for x in m]).mean(), "sum the matrices first"),
    ("08_miou", 2, lambda m: iou(m.sum(0)).nan_to_num(0).mean(), "still counts, as 0"),
    ("08_miou", 2, lambda m: iou(m.sum(0)).mean(), "not a number"),
    ("08_miou", 3, 1.0, "ignored pixels out"),
    ("08_miou", 3, 0.5, "That is the object's IoU"),
    ("08_miou", 3, 0.75, "20 pixels too many"),
    ("08_miou", 4, lambda s: s.amax(1).mean(), "chooses its own"),
    ("08_miou", 4, lambda s: s.mean(0).max(), "each of them included"),
    ("09_self_training", 1, lambda p, y: loss_at(p, y, lambda known: known.numel()), "divided by all pixels"),
    ("09_self_training", 1, lambda p, y: loss_at(p, y, lambda known: 1), "That is the sum"),
    ("09_self_training", 1, lambda p, y: -loss_at(p, y, lambda known: known.sum()), "The sign is wrong"),
    ("09_self_training", 1, lambda p, y: loss_at(p, y, lambda known: known.sum()), "it gives nan; expected 0"),
    ("09_self_training", 1, lambda p, y: -p[y.long(), 0, [0, 1, 2]].mean(), "255 is no class"),
    ("09_self_training", 1, lambda p, y: -p.max(), "at each pixel's own class"),
    ("09_self_training", 2, 0.3, "So often is one label wrong"),
    ("09_self_training", 2, 0.3**5, "three are enough"),
    ("09_self_training", 2, 10 * 0.3**3 * 0.7**2, "four and five must be added"),
    ("09_self_training", 2, 1 - 0.16308, "how often it is right"),
    ("09_self_training", 3, lambda a, b: 0.5, "Expected two numbers"),
    ("09_self_training", 3, lambda a, b: (62.5, 12.5), "in percent"),
    ("09_self_training", 3, lambda a, b: (-30.0, 10.0), "That is a difference"),
    ("09_self_training", 3, lambda a, b: (0.625, 0.25), "the distance between the seeds"),
    ("09_self_training", 3, lambda a, b: (sum(a) / sum(b), 0.125), "Each seed has its own bound"),
    ("09_self_training", 4, without_key, "which not every row has"),
    ("09_self_training", 4, lambda h, k: h[-1]["step"], "That is the last step"),
    ("09_self_training", 4, last_of_equals, "reached earlier"),
    ("09_self_training", 4, lambda h, k: 0, "take the step of the highest value"),
    ("10_photographs", 1, lambda m, c: (m[c, c] / m[:, c].sum(), m[c, c] / m[c].sum(), 0), "are swapped"),
    ("10_photographs", 1, lambda m, c: (0.6, 0.8, m[c, c] / (m[c].sum() + m[:, c].sum())), "counts the hits once"),
    ("10_photographs", 1, lambda m, c: (0.6, 0.8), "It gives 2 numbers"),
    ("10_photographs", 1, lambda m, c: (0.6, 0.1, 60 / 115), "The precision is wrong"),
    ("10_photographs", 2, spoilt, "It has changed the matrix"),
    ("10_photographs", 2, lambda m, c: m[c].argmax(), "That is the background"),
    ("10_photographs", 2, lambda m, c: c, "That is the class itself"),
    ("10_photographs", 2, lambda m, c: 2, "That reads a column"),
    ("10_photographs", 2, lambda m, c: 3, "The largest of the row"),
    ("10_photographs", 3, lambda y: y[y.sum(1) == 1].sum(0) / y.sum(0), "0 is divided by 0"),
    ("10_photographs", 3, lambda y: y[y.sum(1) == 1].sum(0) / len(y), "a share of all pictures"),
    ("10_photographs", 3, lambda y: 0.5, "It has shape ()"),
    ("10_photographs", 3, lambda y: y.float().mean(0), "whose row has a sum of 1"),
    ("10_photographs", 4, lambda a, b, i: (a - b)[i].mean(1).quantile(torch.tensor([0.975, 0.025])), "comes first"),
    ("10_photographs", 4, lambda a, b, i: (a - b).quantile(torch.tensor([0.025, 0.975])), "of a single photograph"),
    ("10_photographs", 4, each_by_itself, "draw the same photographs for both"),
    ("10_photographs", 4, lambda a, b, i: (0.0, 0.1), "the quantiles of these means"),
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
