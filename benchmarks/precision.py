"""How far float32 maps are from float64 ones: `dtd_maps` beside the plain procedure, on the same images and weights.

    python benchmarks/precision.py --model deit_small_patch16_224 --images 16 --out benchmarks/results/precision.json

The distance is |a - b| / |b| (L2) of an image's final map, b in float64; median and worst over the images. Weights are random (of the toy
ViT: trained), images are noise: the hard case, since relevance divides by signed numbers near zero.
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
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--start", type=int, nargs="+", default=[0, 6, 11], help="first blocks")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    print(f"{'model':<26}{'start':>6}{'method':>16}{'median':>12}{'worst':>12}")
    for name in args.model:
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=name.startswith("vit_toy"), num_classes=20, img_size=args.size).eval()
        images = torch.randn(args.images, 3, args.size, args.size)
        pairs = torch.stack([torch.arange(args.images), torch.arange(args.images) % 20], 1)
        single = {(s, f.__name__): f(model, images, pairs, s) for s in args.start for f in (dtd_maps, dtd_maps_plain)}
        model, images = model.double(), images.double()
        for s in args.start:
            exact = {f.__name__: f(model, images, pairs, s) for f in (dtd_maps, dtd_maps_plain)}
            found = {f"{m}, float32": distance(single[s, m], exact[m]) for m in exact} | {"both, float64": distance(exact["dtd_maps"], exact["dtd_maps_plain"])}
            for what, d in found.items():
                rows.append(dict(model=name, start_block=s, what=what, median=float(np.median(d)), worst=float(d.max()), images=len(d)))
                print(f"{name:<26}{s:>6} {what:<24}{rows[-1]['median']:>10.1e}{rows[-1]['worst']:>12.1e}", flush=True)
    if args.out:
        setting = dict(size=args.size, device=processor_name(), threads=torch.get_num_threads(), torch=torch.__version__, timm=timm.__version__, python=platform.python_version())
        args.out.write_text(json.dumps(dict(setting=setting, rows=rows), indent=1))


if __name__ == "__main__":
    main()
