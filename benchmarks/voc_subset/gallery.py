"""A picture of what the networks of the second climb make of val photographs, chosen by a rule and not by eye."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from wegformer.data import VOCDataset, read_mask
from wegformer.evaluation import confusion, mean_iou
from wegformer.figures import class_legend, show_grid, show_image, show_label

QUANTILES = (0.875, 0.625, 0.375, 0.125)  # of all photographs: the middles of the four quarters
LEFT_OUT = {"2007_007748"}  # bears its photographer's mark
HARD = {"a person": ("person",), "furniture": ("chair", "sofa", "diningtable")}  # of those that show it: the middle one


def picks(folder: Path, val: VOCDataset) -> list[tuple[str, int]]:  # what it is, index in val
    "By the mean IoU, over the classes in it, that the masks in `folder` reach on each photograph."
    scores = [
        (mean_iou(confusion([(read_mask(folder / f"{name}.png"), val.mask(i))], len(val.classes))), i)
        for i, name in enumerate(val.ids)
        if name not in LEFT_OUT
    ]
    order = [i for _, i in sorted(scores)]
    found = [(f"at {q:.3f} of the order", order[round(q * (len(order) - 1))]) for q in QUANTILES]
    for title, wanted in HARD.items():
        shown = [i for i in order if {val.classes[c] for c in val.class_ids(i)} & set(wanted)]
        found += [(f"the middle one with {title}", shown[len(shown) // 2])] if shown else []
    return found


def gallery(folders: Mapping[str, Path], judge: str, val: VOCDataset, out: Path) -> list[dict]:  # what is drawn
    "Photograph, truth and the masks of each folder, for the photographs that `judge`'s own masks put in order."
    rows, seen, chosen = [], {0, 255}, picks(folders[judge], val)
    for _, i in chosen:
        image, masks = val.image(i), [val.mask(i), *(read_mask(f / f"{val.ids[i]}.png") for f in folders.values())]
        rows.append([partial(show_image, image), *(partial(show_label, mask, image) for mask in masks)])
        seen |= set(torch.cat([torch.as_tensor(mask).flatten().long() for mask in masks]).unique().tolist())
    figure = show_grid(rows, ["photograph", "truth", *folders], size=1.5)
    class_legend(figure, seen, val.classes)
    figure.savefig(out, dpi=100, bbox_inches="tight")
    plt.close(figure)
    return [dict(why=why, photograph=val.ids[i]) for why, i in chosen]
