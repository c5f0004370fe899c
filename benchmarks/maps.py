"""What files of heat maps cost beside the network itself, how large they are, and whether their labels are the same.

    OMP_NUM_THREADS=1 python benchmarks/maps.py --voc ../shared/voc/VOC2012 --out runs/maps.json

Two rows: photographs with DeiT-Small (random weights, long side 500), and pictures of the embedded data set with the
small trained network. A few pictures at a time, in turn: processor time of the whole process for `write_attention_maps`
(decoding, resizing, maps, writing), and for the bare forward passes: the same inputs, resized and normalised in memory
before the clock starts, the same batches, straight and mirrored, at every scale. `ratio` is the median of the pairs.

Labels of the rule `paper` with saliency are made from the files and from the same maps rounded to half precision, in
which they were kept before; `half` counts the pixels that differ. `apart` counts those that differ when each view is
enlarged before they are added, as was done before, for the first of the pictures (it takes the network once more).
"""

import argparse
import dataclasses
import json
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import timm
import torch
from torch.nn.functional import interpolate
from tqdm import tqdm

import wegformer.networks.toy  # noqa: F401 (registers with timm)
from wegformer.attention import AttentionConfig, at_scales, batch_grids, min_max
from wegformer.classifier import normalize, patch_size
from wegformer.data import VOCDataset
from wegformer.map_files import fixed_batches, read_attention, write_attention_maps
from wegformer.pseudo_labels import LABEL_RULES, pseudo_label
from wegformer.stages import processor_name
from wegformer.toyvoc import make_toy_voc
from wegformer.training import autocast, resolve_precision

RULE = LABEL_RULES["paper"]


def part(root: Path, ids: list[str], folder: Path) -> VOCDataset:
    "Some pictures of a folder as a data set of their own."
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    (folder / "ImageSets/Segmentation/part.txt").write_text("\n".join(ids))
    for found in root.iterdir():
        if found.name != "ImageSets":
            (folder / found.name).symlink_to(found.resolve())
    return VOCDataset(folder, "part")


def batches(
    voc: VOCDataset, config: AttentionConfig, patch: int
) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    "What the network is shown, batch by batch: images at each scale, classes of each image."
    return [
        (
            [torch.stack(x) for x in zip(*(at_scales(voc.image(i), config, patch) for i in batch))],
            [voc.class_ids(i) for i in batch],
        )
        for batch in fixed_batches(voc, config, patch)
    ]


def bare_seconds(model, inputs, config) -> float:
    "Processor time of the forward passes alone."
    ready = [[normalize(x, model) for x in images] for images, _ in inputs]
    ready = [[torch.cat([x, x.flip(-1)]) for x in images] for images in ready]
    start = time.process_time()
    with torch.inference_mode(), autocast("cpu", resolve_precision(config.precision)):
        for images in ready:
            for x in images:
                model(x)
    return time.process_time() - start


def written_seconds(model, voc, out, config) -> float:
    start = time.process_time()
    write_attention_maps(model, voc, out, config)
    return time.process_time() - start


def earlier_maps(grids, size) -> torch.Tensor:
    "The maps of views that are apart, as they were joined before."
    total = None
    for views in grids:
        maps = interpolate(views, size, mode="bilinear", align_corners=False).sum(0)
        total = maps if total is None else total + maps
    return min_max(total)


def changed_pixels(voc, out, saliency) -> dict[str, int]:
    "How many pixels get another label when the maps are rounded to half precision, as they were kept before."
    found = dict(pixels=0, half=0)
    for i, name in enumerate(voc.ids):
        maps, ids = read_attention(out / f"{name}.npz")
        label, rounded = (pseudo_label(m, ids, voc.saliency(i, saliency), RULE) for m in (maps, maps.half().float()))
        found["pixels"] += label.numel()
        found["half"] += int((label != rounded).sum())
    return found


def changed_by_order(model, voc, inputs, out, config, saliency) -> dict[str, int]:
    "How many pixels get another label, without that rounding, when views are enlarged before they are added."
    found = dict(pixels_apart=0, apart=0)
    apart = dataclasses.replace(config, join="max")  # keeps views apart
    for batch, (images, classes) in zip(fixed_batches(voc, config, patch_size(model)), inputs):
        for i, grids, ids in zip(batch, batch_grids(model, images, classes, apart), classes):
            maps, salient = read_attention(out / f"{voc.ids[i]}.npz")[0], voc.saliency(i, saliency)
            earlier = pseudo_label(earlier_maps(grids, voc.size(i)), ids, salient, RULE)
            found["pixels_apart"] += earlier.numel()
            found["apart"] += int((earlier != pseudo_label(maps, ids, salient, RULE)).sum())
    return found


def measure(name, model, voc, config, saliency, images, together, apart) -> Iterator[dict]:
    "One row, again after every few pictures: the last counts."
    bare, written, size, old_size, classes, counts = [], [], 0, 0, 0, Counter()
    ids = voc.ids[:images]
    for first in tqdm(range(0, len(ids), together), name):
        with tempfile.TemporaryDirectory() as folder:
            few, out = part(voc.root, ids[first : first + together], Path(folder) / "voc"), Path(folder) / "maps"
            inputs = batches(few, config, patch_size(model))
            if first // together % 2:
                bare.append(bare_seconds(model, inputs, config))
            written.append(written_seconds(model, few, out, config))
            if len(bare) < len(written):
                bare.append(bare_seconds(model, inputs, config))
            size += sum(p.stat().st_size for p in out.iterdir())
            old_size += sum(2 * len(few.class_ids(i)) * np.prod(few.size(i)) for i in range(len(few)))
            classes += sum(len(few.class_ids(i)) for i in range(len(few)))
            counts.update(changed_pixels(few, out, saliency))
            if first < apart:
                counts.update(changed_by_order(model, few, inputs, out, config, saliency))
        done, ratios = min(first + together, len(ids)), np.array(written) / np.array(bare)
        yield dict(
            data=name,
            images=done,
            classes=classes / done,
            ratio=float(np.median(ratios)),
            ratio_q20=float(np.quantile(ratios, 0.2)),
            ratio_q80=float(np.quantile(ratios, 0.8)),
            ratio_of_sums=sum(written) / sum(bare),
            bare_ms=1e3 * sum(bare) / done,
            kilobytes=size / done / 1e3,
            earlier_kilobytes=float(old_size) / done / 1e3,
            **counts,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc", type=Path, help="a VOC folder; without it the embedded data set alone")
    parser.add_argument("--split", default="train_aug")
    parser.add_argument("--saliency", default="u2net", help="the folder's saliency set")
    parser.add_argument("--model", default="deit_small_patch16_224", help="for the photographs, with random weights")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--together", type=int, default=10, help="pictures of a pair of times")
    parser.add_argument("--apart", type=int, default=40, help="pictures whose views are kept apart, too")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    toy = VOCDataset(make_toy_voc(which="initial", train=4, val=args.images, seed=1), "val")
    small = timm.create_model("vit_toy_patch8_96", pretrained=True, num_classes=toy.num_classes).eval()
    counts = args.images, args.together, args.apart
    measures = [measure("toy", small, toy, AttentionConfig(long_side=128), "good", *counts)]
    if args.voc:
        voc = VOCDataset(args.voc, args.split)
        torch.manual_seed(0)
        model = timm.create_model(args.model, num_classes=voc.num_classes, dynamic_img_size=True).eval()
        measures.append(measure("photographs", model, voc, AttentionConfig(), args.saliency, *counts))
    setting = dict(
        device=processor_name(),
        threads=torch.get_num_threads(),
        precision=resolve_precision("auto"),
        torch=torch.__version__,
        timm=timm.__version__,
        python=platform.python_version(),
    )
    rows = {}
    for row in chain(*measures):
        rows[row["data"]] = row
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(dict(setting=setting, rows=list(rows.values())), indent=1))
    for row in rows.values():
        print("\n".join(f"{k:<20}{v:.4g}" if isinstance(v, float) else f"{k:<20}{v}" for k, v in row.items()), "\n")


if __name__ == "__main__":
    main()
