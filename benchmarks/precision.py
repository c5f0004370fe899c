"""How far float32 maps are from float64 ones: `dtd_maps` beside the plain procedure, on the same images and weights.

    python benchmarks/precision.py --model vit_toy_patch8_96 --images 1024 --out runs/precision_toy.json
    python benchmarks/precision.py --images 192 --start 0 11 --out runs/precision_deit_small.json

The distance is |a - b| / |b| (L2) of an image's final map, b in float64; median, 90% and 99% quantiles and worst over
the images. Weights are random (of the toy ViT: trained), images are noise: the hard case, since relevance divides by
signed numbers near zero. The worst of a few images is chance, so they are many; `nearer` is the share of them in which
`dtd_maps` is nearer to float64 than the plain procedure. Both float64 maps are also compared with each other: there,
any distance would be a difference of method.
"""

import argparse
import copy
import json
import platform
from collections import defaultdict
from pathlib import Path

import numpy as np
import timm
import torch

import wegformer.networks.toy  # noqa: F401 (registers with timm)
from wegformer.stages import processor_name
from wegformer.relevance import dtd_maps
from wegformer.rules import dtd_maps_plain

BATCH = 64  # images at a time


def distance(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:  # (P, h, w) each -> (P,)
    return ((a.double() - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["deit_small_patch16_224"])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, help="default: the model's own")
    parser.add_argument("--start", type=int, nargs="+", default=[0, 6, 11], help="first blocks")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    print(f"{'model':<26}{'start':>6} {'method':<24}{'median':>9}{'90%':>9}{'99%':>9}{'worst':>9}{'nearer':>9}")
    for name in args.model:
        torch.manual_seed(0)
        model = timm.create_model(
            name, pretrained=name.startswith("vit_toy"), num_classes=20, img_size=args.size
        ).eval()  # timm leaves out what is None
        double, methods = copy.deepcopy(model).double(), (dtd_maps, dtd_maps_plain)
        found = {s: defaultdict(list) for s in args.start}  # of each batch
        for first in range(0, args.images, BATCH):
            images = torch.randn(min(BATCH, args.images - first), 3, *model.patch_embed.img_size)
            pairs = torch.stack([torch.arange(len(images)), torch.arange(len(images)) % 20], 1)
            for s in args.start:
                single = {f.__name__: f(model, images, pairs, s) for f in methods}
                exact = {f.__name__: f(double, images.double(), pairs, s) for f in methods}
                for method in exact:
                    found[s][f"{method}, float32"].append(distance(single[method], exact[method]))
                found[s]["both, float64"].append(distance(exact["dtd_maps"], exact["dtd_maps_plain"]))
        for s in args.start:
            distances = {what: np.concatenate(d) for what, d in found[s].items()}
            nearer = float((distances["dtd_maps, float32"] < distances["dtd_maps_plain, float32"]).mean())
            for what, d in distances.items():
                median, q90, q99 = np.quantile(d, (0.5, 0.9, 0.99)).tolist()
                row = dict(
                    model=name,
                    size="x".join(map(str, model.patch_embed.img_size)),
                    start_block=s,
                    what=what,
                    median=median,
                    q90=q90,
                    q99=q99,
                    worst=float(d.max()),
                    nearer=nearer if what == "dtd_maps, float32" else None,
                    images=len(d),
                )
                rows.append(row)
                distances_found = "".join(f"{row[k]:>9.1e}" for k in ("median", "q90", "q99", "worst"))
                print(
                    f"{name:<26}{s:>6} {what:<24}"
                    + distances_found
                    + (f"{nearer:>9.2f}" if row["nearer"] is not None else ""),
                    flush=True,
                )
    if args.out:
        setting = dict(
            device=processor_name(),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            timm=timm.__version__,
            python=platform.python_version(),
        )
        args.out.write_text(json.dumps(dict(setting=setting, rows=rows), indent=1))


if __name__ == "__main__":
    main()
