"""How far float32 maps are from float64 ones: `dtd_maps` beside the plain procedure, on the same images and weights.

    python benchmarks/precision.py --model vit_toy_patch8_96 deit_small_patch16_224 --start 0 11 --out benchmarks/results/precision.json

The distance is |a - b| / |b| (L2) of an image's final map, b in float64; median, 90% quantile and worst over the images. Weights are random
(of the toy ViT: trained), images are noise: the hard case, since relevance divides by signed numbers near zero. The worst of a few images is
chance, so they are many; `nearer` is the share of them in which `dtd_maps` is nearer to float64 than the plain procedure.
Both float64 maps are also compared with each other: there, any distance would be a difference of method.
"""
import argparse
import json
import platform
from pathlib import Path

import numpy as np
import timm
import torch

import wegformer.toymodels  # registers the toy ViT with timm
from wegformer.pipeline import processor_name
from wegformer.relevance import dtd_maps, dtd_maps_plain


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
    print(f"{'model':<26}{'start':>6}{'method':>16}{'median':>12}{'90%':>9}{'worst':>9}{'nearer':>9}")
    for name in args.model:
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=name.startswith("vit_toy"), num_classes=20, img_size=args.size).eval()  # timm leaves out what is None
        images = torch.randn(args.images, 3, *model.patch_embed.img_size)
        pairs = torch.stack([torch.arange(args.images), torch.arange(args.images) % 20], 1)
        single = {(s, f.__name__): f(model, images, pairs, s) for s in args.start for f in (dtd_maps, dtd_maps_plain)}
        model, images = model.double(), images.double()
        for s in args.start:
            exact = {f.__name__: f(model, images, pairs, s) for f in (dtd_maps, dtd_maps_plain)}
            found = {f"{m}, float32": distance(single[s, m], exact[m]) for m in exact} | {"both, float64": distance(exact["dtd_maps"], exact["dtd_maps_plain"])}
            nearer = float((found["dtd_maps, float32"] < found["dtd_maps_plain, float32"]).mean())
            for what, d in found.items():
                row = dict(model=name, size="x".join(map(str, images.shape[-2:])), start_block=s, what=what, median=float(np.median(d)),
                           q90=float(np.quantile(d, 0.9)), worst=float(d.max()), nearer=nearer if what == "dtd_maps, float32" else None, images=len(d))
                rows.append(row)
                print(f"{name:<26}{s:>6} {what:<24}" + "".join(f"{row[k]:>9.1e}" for k in ("median", "q90", "worst"))
                      + (f"{nearer:>9.2f}" if row["nearer"] is not None else ""), flush=True)
    if args.out:
        setting = dict(device=processor_name(), threads=torch.get_num_threads(), torch=torch.__version__, timm=timm.__version__, python=platform.python_version())
        args.out.write_text(json.dumps(dict(setting=setting, rows=rows), indent=1))


if __name__ == "__main__":
    main()
