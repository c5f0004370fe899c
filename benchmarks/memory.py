"""Peak memory of maps from all blocks over the number of tokens: `dtd_maps` and the plain procedure, table and plot.

    python benchmarks/memory.py --model deit_small_patch16_224 --out runs/memory

Each point is a process of its own: one image, one class, float32. What is counted is the largest resident memory
above that before the call (on a GPU: the largest allocated). The record of the forward pass grows with the tokens; a
matrix of heads x tokens x tokens would grow with their square.
"""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from wegformer.stages import processor_name

SIZES = ["224x224", "320x320", "384x512", "512x512", "512x768", "768x768", "768x1024"]
POINT = """
import sys, torch, timm
from pathlib import Path
from wegformer.relevance import dtd_maps
from wegformer.rules import dtd_maps_plain
name, H, W, what, device = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
torch.manual_seed(0)
model = timm.create_model(name, num_classes=20, img_size=(H, W)).eval().to(device)
images, pairs = torch.randn(1, 3, H, W, device=device), torch.tensor([[0, 3]], device=device)
with torch.inference_mode(): model(images)  # whatever a first call sets up
def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024
cuda = device.startswith("cuda")
if cuda: torch.cuda.reset_peak_memory_stats()
else: Path("/proc/self/clear_refs").write_text("5")
before = torch.cuda.memory_allocated() / 2**20 if cuda else resident("VmRSS")
if what == "forward":
    with torch.inference_mode(): model(images)
else: dict(dtd_maps=dtd_maps, dtd_maps_plain=dtd_maps_plain)[what](model, images, pairs, 0)
print((torch.cuda.max_memory_allocated() / 2**20 if cuda else resident("VmHWM")) - before)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="height x width")
    parser.add_argument(
        "--limit",
        type=int,
        default=8000,
        help="MiB that the matrices of the plain procedure may take; larger ones are left out",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="without ending: OUT.json and OUT.png")
    args = parser.parse_args()
    import timm

    model = timm.create_model(args.model)
    patch, heads, depth = model.patch_embed.patch_size[0], model.blocks[0].attn.num_heads, len(model.blocks)
    rows = []
    print(f"{'size':<12}{'tokens':>8}{'forward':>10}{'dtd_maps':>10}{'plain':>10}   MiB above the model")
    for size in args.sizes:
        H, W = map(int, size.split("x"))
        N = (H // patch) * (W // patch) + model.num_prefix_tokens
        row = dict(size=size, tokens=N)
        for what in ("forward", "dtd_maps", "dtd_maps_plain"):
            if what == "dtd_maps_plain" and 4 * depth * heads * N * N * 4 / 2**20 > args.limit:
                continue
            done = subprocess.run(
                [sys.executable, "-c", POINT, args.model, str(H), str(W), what, args.device],
                capture_output=True,
                text=True,
                check=True,
            )
            row[what] = round(float(done.stdout), 1)
        rows.append(row)
        found = (row.get(k, float("nan")) for k in ("forward", "dtd_maps", "dtd_maps_plain"))
        print(f"{size:<12}{N:>8}" + "".join(f"{mib:>10.0f}" for mib in found), flush=True)
    slopes = {}
    for k in ("dtd_maps", "dtd_maps_plain"):
        points = [(r["tokens"], max(r[k], 0.1)) for r in rows if k in r]
        if len(points) > 1:
            slopes[k] = float(np.polyfit(*np.log(points).T, 1)[0])
    print("growth, as a power of the tokens: " + ", ".join(f"{k} {v:.2f}" for k, v in slopes.items()))
    if args.out:
        where = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else processor_name()
        setting = dict(model=args.model, device=where, torch=torch.__version__, python=platform.python_version())
        args.out.parent.mkdir(parents=True, exist_ok=True)
        record = dict(setting=setting, rows=rows, growth=slopes)
        args.out.with_suffix(".json").write_text(json.dumps(record, indent=1))
        fig, ax = plt.subplots(figsize=(3.6, 2.4), layout="constrained")
        for k, label, colour in (("dtd_maps_plain", "plain procedure", "#D55E00"), ("dtd_maps", "dtd_maps", "#0072B2")):
            points = [(r["tokens"], r[k] / 1024) for r in rows if k in r]
            if points:
                ax.plot(*zip(*points), ".-", color=colour, label=label)
        ax.set_xlabel("tokens", fontsize=8)
        ax.set_ylabel("peak memory, GiB", fontsize=8)
        ax.tick_params(labelsize=7)
        ax.set_ylim(bottom=0)
        ax.legend(fontsize=7, frameon=False)
        ax.spines[["top", "right"]].set_visible(False)
        fig.savefig(args.out.with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main()
