"""One picture of val on its way through the whole method, drawn from the stages of a run.

    python benchmarks/walk.py --quantile 0.875 --out docs/walk_best.png    # the middle of the best quarter
    python benchmarks/walk.py --quantile 0.125 --out docs/walk_worst.png   # the middle of the worst quarter

The picture is chosen by a rule, not by eye: the pictures of val with two classes are put in the order of the mean
intersection over union (mIoU) that the trained network reaches on each, and the one at the quantile is drawn.
"""

import argparse
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from PIL import Image

from wegformer.attention import attention_maps
from wegformer.classifier import load_classifier
from wegformer.config import preset
from wegformer.data import VOCDataset
from wegformer.evaluation import confusion, mean_iou
from wegformer.figures import class_legend, show_grid, show_image, show_label, show_map
from wegformer.pipeline import chain
from wegformer.pseudo_labels import LabelRule, initial_label, pseudo_label
from wegformer.segmentation import load_segmenter, predict
from wegformer.soft_erase import soft_erase
from wegformer.splits import open_split
from wegformer.stages import run


def in_order(
    val: VOCDataset,
    segmenter: torch.nn.Module,
    **options,  # of predict
) -> list[tuple[float, int]]:  # mIoU in percent, index
    "The pictures of two classes, from the worst predicted to the best."
    scores = []
    for i in range(len(val)):
        if len(val.class_ids(i)) == 2:
            mask = predict(segmenter, val.image(i), **options).argmax(0)
            scores.append((mean_iou(confusion([(mask, val.mask(i))], len(val.classes))), i))
    return sorted(scores)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="toy", help="'toy' or 'smoke'; stages that are missing are made")
    parser.add_argument("--cache", type=Path, help="folder of stages; default: ~/.cache/wegformer/stages")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--quantile", type=float, default=0.875, help="of the mIoU of val's pictures of two classes")
    chosen.add_argument("--image", type=int, help="index in val")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)

    config, rule = preset(args.preset), LabelRule()
    stages = chain(config)
    classifier, _, _ = load_classifier(run(stages.classifier, args.cache) / "model.safetensors")
    segmenter, _, _ = load_segmenter(run(stages.segmenter, args.cache) / "model.safetensors")
    val = open_split(config.data, "val")
    options = dict(scales=config.segmenter.test_scales, flip=config.segmenter.test_flip)
    order = in_order(val, segmenter, **options) if args.image is None else []
    place = round(args.quantile * (len(order) - 1))  # from 0, the worst
    i = order[place][1] if order else args.image

    image, classes, saliency = val.image(i), val.class_ids(i), val.saliency(i, next(iter(val.saliency_folders)))
    A = attention_maps(classifier, image, classes, config.attention)
    E = soft_erase(A, rule.erase_rate, rule.renormalize)
    names = [val.classes[c] for c in classes]
    masks = {
        "initial label P": initial_label(E, classes, saliency, rule),
        "pseudo label (EPOM)": pseudo_label(A, classes, saliency, rule),
        "trained DeepLab": predict(segmenter, image, **options).argmax(0),
        "true mask (to measure)": val.mask(i),
    }
    maps = [(f"DTD map, {name}", part) for name, part in zip(names, A)]
    maps += [(f"soft erase, {name}", part) for name, part in zip(names, E)]
    first = [partial(show_image, image, title=", ".join(names))]
    first += [partial(show_map, part, image, title=title) for title, part in maps]
    second = [partial(show_map, saliency / 255, None, title="saliency")]
    second += [partial(show_label, mask, image, title=title) for title, mask in masks.items()]
    figure = show_grid([first, second], size=1.7)
    seen = torch.cat([torch.as_tensor(mask).flatten().long() for mask in masks.values()]).unique().tolist()
    class_legend(figure, {0, 255, *seen}, val.classes)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=100, bbox_inches="tight")
    plt.close(figure)
    Image.open(args.out).convert("RGB").quantize(128).save(args.out, optimize=True)
    found = f", mIoU {order[place][0]:.1f}%, number {place + 1} of {len(order)} from the worst" if order else ""
    print(f"{args.out}: picture {val.ids[i]} of val (--image {i}){found}")


if __name__ == "__main__":
    main()
