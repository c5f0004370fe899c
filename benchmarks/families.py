"""Do each family's relevance rules find what a trained ViT looks at? python benchmarks/families.py

Each family that `vit_families` supports, small and trained from scratch on the embedded data set, all by the same
recipe. Then two things are measured on val, for each class of each picture:

conservation    how far the relevance of all tokens before the first block (and of a pool's own query) is from 1, the
                relevance that the class's score starts with; the largest error over 20 pictures
deletion        patches are taken away (set to the mean colour) in an order: most relevant first by the DTD map of the
                last attention (of a pool, where it has one), of all blocks and by Grad-CAM, and in random orders. The
                area under the class's probability is compared with that of the random orders, over the same pictures,
                with a 95% bootstrap interval over pictures; below 0: what the map marks is what the network needs.
                One training of each family: how much another would differ is not in the interval

Writes benchmarks/results/families.csv.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from records import RESULTS, write_csv
from torchvision.transforms.v2.functional import resize
from tqdm import tqdm

from wegformer.classifier import ClassifierConfig, average_precision, normalize, train_classifier
from wegformer.data import VOCDataset
from wegformer.heatmaps import METHODS
from wegformer.map_measures import area, probability_curve
from wegformer.stages import processor_name
from wegformer.step_rules import record_model, walk_down
from wegformer.toyvoc import make_toy_voc
from wegformer.vit_families import FAMILIES, Family, family_model
from wegformer.vit_steps import read_steps, steps_fault

SIDE, PATCH = 64, 8
SMALL = dict(img_size=SIDE, patch_size=PATCH, embed_dim=96, depth=4, num_heads=4)
RANDOM = 4  # orders by chance
ORDERS = {"last block": dict(start_block=None), "all blocks": dict(start_block=0)}


def small_model(family: Family, num_classes: int) -> torch.nn.Module:
    "The family's example, small, with random weights."
    heads = {name: SMALL["num_heads"] for name in family.tiny if name == "attn_pool_num_heads"}
    shared = dict(num_kv_heads=(4, 2, 2, 2)) if "num_kv_heads" in family.tiny else {}
    torch.manual_seed(0)
    return family_model(family, num_classes=num_classes, **(SMALL | heads | shared))


@torch.no_grad()
def conservation(model: torch.nn.Module, images: list[torch.Tensor], classes: list[list[int]]) -> float:
    "The largest distance from 1 of the relevance that arrives, in float64."
    errors, exact = [], model.double()
    steps = read_steps(exact)
    for image, present in zip(images, classes):
        records, head = record_model(exact, steps, normalize(image, exact).double())
        for c in present:
            seed = F.one_hot(torch.tensor(c - 1), head.logits.shape[-1]).double()
            _, R, latent = walk_down(steps, records, head, seed)
            errors.append(abs(float(R.sum() + latent) - 1))
    model.float()
    return float(np.max(errors))  # NaN, if one is


def ranked(grid: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    "The places of patches in the order of their values, the highest first and largest; equal ones are drawn."
    drawn = torch.randperm(grid.numel(), generator=generator)
    order, rank = drawn[grid.flatten()[drawn].argsort(descending=True, stable=True)], torch.empty(grid.numel())
    rank[order] = torch.arange(grid.numel(), 0, -1.0)
    return rank.view_as(grid)


def orders(model: torch.nn.Module, image: torch.Tensor, c: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    "Maps over the patches of one picture: what is taken away first is highest."
    x, pair, side = normalize(image, model)[None], torch.tensor([[0, c - 1]]), SIDE // PATCH
    found = {name: METHODS["dtd"].function(model, x, pair, **options)[0] for name, options in ORDERS.items()}
    found["Grad-CAM"] = METHODS["grad_cam"].function(model, x, pair)[0]
    found |= {f"random#{k}": torch.zeros(side, side) for k in range(RANDOM)}
    return {name: ranked(grid.detach(), generator) for name, grid in found.items()}


def deletion(model: torch.nn.Module, images: list[torch.Tensor], classes: list[list[int]]) -> dict[str, np.ndarray]:
    "For each order the area of each picture, the mean over its classes."
    generator, areas = torch.Generator().manual_seed(0), {}
    for image, present in zip(images, classes):
        of_picture: dict[str, list[float]] = {}
        for c in present:
            for name, grid in orders(model, image, c, generator).items():
                pixels = grid.repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)
                of_picture.setdefault(name.split("#")[0], []).append(
                    area(probability_curve(model, image, pixels, c, steps=16))
                )
        for name, found in of_picture.items():
            areas.setdefault(name, []).append(float(np.mean(found)))
    return {name: np.array(found) for name, found in areas.items()}


def interval(differences: np.ndarray) -> tuple[float, float, float]:
    "Mean and 95% bootstrap interval over pictures."
    rng = np.random.default_rng(0)
    means = differences[rng.integers(len(differences), size=(2000, len(differences)))].mean(1)
    return float(differences.mean()), *(float(q) for q in np.quantile(means, (0.025, 0.975)))


def measure(family: Family, train: VOCDataset, val: VOCDataset, steps: int) -> dict:
    "The family's row."
    model = small_model(family, train.num_classes)
    config = ClassifierConfig(model=family.example, pretrained=False, steps=steps, batch_size=16, lr=1e-3,
                              crop_size=SIDE, resize=(SIDE, SIDE + 32), eval_long_side=SIDE,
                              precision="no")  # fmt: skip
    with TemporaryDirectory() as out:
        train_classifier(model, config, train, Path(out))
    model.eval().requires_grad_(False)
    images = [resize(val.image(i), [SIDE, SIDE], antialias=True) for i in range(len(val))]
    classes = [val.class_ids(i).tolist() for i in range(len(val))]
    with torch.no_grad():
        scores = torch.stack([model(normalize(image, model)[None])[0] for image in images])
    precision = average_precision(scores, torch.stack([val.labels(i) for i in range(len(val))]))
    areas = deletion(model, images, classes)
    row = dict(family=family.name, example=family.example, rule=family.rule, steps=steps,
               mAP=round(precision.nanmean().item(), 1), pictures=len(images),
               conservation=f"{conservation(model, images[:20], classes):.1e}",
               random=round(100 * float(areas["random"].mean()), 2))  # fmt: skip
    for name in [k for k in areas if k != "random"]:
        mean, low, high = interval(100 * (areas[name] - areas["random"]))
        row |= {name: round(mean, 2), f"{name}, low": round(low, 2), f"{name}, high": round(high, 2)}
    return row | dict(device=processor_name(), torch=torch.__version__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--val", type=int, default=120, help="pictures")
    parser.add_argument("--only", nargs="*", help="examples in timm; nothing is written")
    args = parser.parse_args()
    root = make_toy_voc(train=1200, val=args.val)
    train, val = VOCDataset(root, "train"), VOCDataset(root, "val")
    known = [family for family in FAMILIES if family.rule and steps_fault(family_model(family)) is None]
    chosen, rows = [f for f in known if not args.only or f.example in args.only], []
    for family in tqdm(chosen, unit="family"):
        rows.append(measure(family, train, val, args.steps))
        tqdm.write(str(rows[-1]))
    if not args.only:
        write_csv(RESULTS / "families.csv", list(rows[0]), rows)


if __name__ == "__main__":
    main()
