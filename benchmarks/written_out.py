"""Learning from a batch on a CPU, with layers as PyTorch has them and written out: python benchmarks/written_out.py

Two networks, each in float32 and in bf16: a small ViT, whose attention is written out, and DeepLab-V3+ on an
EfficientNet, whose depthwise convolutions are (`groups.written_out`). A forward and a backward pass, in pairs, one of
either kind, in turn; the ratio is the median over the pairs. Writes benchmarks/results/written_out.csv.
"""

import argparse
import contextlib
import time

import numpy as np
import timm
import torch
import torch.nn.functional as F
from records import RESULTS, write_csv

from wegformer.groups import written_out
from wegformer.segmentation import SegmenterConfig, create_segmenter
from wegformer.stages import processor_name

VIT, BACKBONE, CROP, DEVICE = "vit_small_patch14_dinov2", "tf_efficientnet_lite2", 168, torch.device("cpu")


def seconds(model: torch.nn.Module, images: torch.Tensor, precision: str, written: bool) -> float:
    "Wall time of a forward and a backward pass."
    start = time.perf_counter()
    with written_out(model, DEVICE, CROP) if written else contextlib.nullcontext():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            scores = model(images)
        F.softplus(scores.float()).mean().backward()
    model.zero_grad()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    args = parser.parse_args()
    torch.manual_seed(0)
    recipe = SegmenterConfig(backbone=BACKBONE, pretrained=False, atrous_rates=(2, 4, 6), decoder_channels=128)
    networks = {
        VIT: timm.create_model(VIT, num_classes=20, img_size=CROP),
        f"DeepLab-V3+, {BACKBONE}": create_segmenter(recipe, 21),
    }
    rows = []
    for name, model in networks.items():
        images = torch.randn(8, 3, CROP, CROP).contiguous(memory_format=torch.channels_last)
        for precision in ("float32", "bf16"):
            pairs = [
                [seconds(model.train(), images, precision, written) for written in (False, True)]
                for _ in range(args.pairs + 1)
            ]
            plain, written = np.array(pairs[1:]).T  # the first pair warms up
            rows.append(dict(
                network=name, precision=precision, crops=len(images), side=CROP,
                plain_s=round(float(np.median(plain)), 3), written_s=round(float(np.median(written)), 3),
                ratio=round(float(np.median(plain / written)), 2),
                threads=torch.get_num_threads(), torch=torch.__version__, device=processor_name(),
            ))  # fmt: skip
            print(rows[-1], flush=True)
    write_csv(RESULTS / "written_out.csv", list(rows[0]), rows)


if __name__ == "__main__":
    main()
