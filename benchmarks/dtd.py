"""What heat maps cost, in forward passes: timm's forward, `dtd_maps`, the plain procedure, the authors' way; one run.

    python benchmarks/dtd.py --model deit_small_patch16_224 --size 224 --batch 8 --classes 1 2 3 --threads 2

Weights are random: time does not depend on them. Repetitions are interleaved, so that whatever else the machine does
falls on all of them alike. A row is the median with the 20% and 80% quantiles, and `forwards` the median of the ratios
to the forward pass of the whole batch in the same repetition. The plain procedure takes pairs one by one, so a few are
timed and scaled to all: `timed` says how many. It evaluates the rules as they are written; `as_released` is the same
procedure with the linear rule evaluated as the authors' released code does. `faster` is the median of the ratios of
their times to that of `dtd_maps` in the same repetition. `bound` is the arithmetic alone, in forward
passes: the multiplications that the method needs over those of the forward pass. Nothing is written without --out.
On a machine that others use too, `--clock cpu --threads 1` counts the processor's time instead of the wall's.
"""

import argparse
import csv
import json
import platform
import sys
import time
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import timm
import torch

from wegformer.stages import processor_name
from wegformer.rules import divide, dtd_maps_plain
from wegformer.relevance import dtd_maps

FIELDS = [
    "what",
    "classes",
    "pairs",
    "timed",
    "median_s",
    "q20_s",
    "q80_s",
    "forwards",
    "forwards_q20",
    "forwards_q80",
    "bound",
    "faster",
]


def parse(argv=None):
    p = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--model", default="deit_small_patch16_224", help="a timm VisionTransformer")
    p.add_argument("--size", type=int, nargs="+", default=[224], help="image size: one number, or height and width")
    p.add_argument("--batch", type=int, default=8, help="images in a batch")
    p.add_argument("--classes", type=int, nargs="+", default=[1, 2, 3], help="classes per image, one row each")
    p.add_argument("--start-block", type=int, help="first block that takes part, from 0; default: the last block alone")
    p.add_argument("--num-classes", type=int, default=20, help="classes of the head")
    p.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "autocast", "float64"],
        default="float32",
        help="autocast: float32 weights, bfloat16 blocks",
    )
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    p.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time (--device cpu)")
    p.add_argument("--repeat", type=int, default=15, help="interleaved repetitions")
    p.add_argument("--plain-pairs", type=int, default=1, help="pairs to time the plain procedure on; 0 leaves it out")
    p.add_argument("--out", type=Path, help="a .json or .csv file for the results")
    args = p.parse_args(argv)
    if len(args.size) > 2:
        p.error("--size takes one or two numbers")
    if min(args.batch, args.repeat, *args.classes) < 1:
        p.error("--batch, --classes and --repeat must be at least 1")
    if args.clock == "cpu" and args.device != "cpu":
        p.error("--clock cpu needs --device cpu")
    if args.out and args.out.suffix not in (".json", ".csv"):
        p.error("--out must end in .json or .csv")
    return args


def timed(f, device, clock):
    "Seconds that f takes, its work on the device included."
    now = time.process_time if clock == "cpu" else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = now()
    f()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return now() - start


def interleaved(runs, repeat, device, clock):
    "Seconds of each run, (repeat,) by name, after one unmeasured round; the order turns, so that none is always first."
    names, times = list(runs), {name: [] for name in runs}
    for f in runs.values():
        f()
    for r in range(repeat):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            times[name].append(timed(runs[name], device, clock))
    return {name: np.array(t) for name, t in times.items()}


def released_linear_rule(x, W, R, alpha=1):
    """`linear_rule` as Chefer et al.'s code evaluates it: raising and lowering inputs, weighted alpha and 1 - alpha.

    With their alpha of 1 the second half is computed and counts nothing.
    """
    # `linear_rule` twice would clamp twice, which their code does not
    x_pos, x_neg, W_pos, W_neg = x.clamp(min=0), x.clamp(max=0), W.clamp(min=0), W.clamp(max=0)

    def share(W_1, W_2):
        S = divide(R, x_pos @ W_1.mT + x_neg @ W_2.mT)
        return x_pos * (S @ W_1) + x_neg * (S @ W_2)

    return alpha * share(W_pos, W_neg) - (alpha - 1) * share(W_neg, W_pos)


def dtd_maps_released(*args):
    "Maps by the plain procedure, with the linear rule as released."
    with patch("wegformer.rules.linear_rule", released_linear_rule):
        return dtd_maps_plain(*args)


def bound(model, H, W, C, start):
    "The products that maps of C classes an image need, in those of the forward pass."
    block, depth = model.blocks[0], len(model.blocks)
    N = (H // model.patch_embed.patch_size[0]) * (W // model.patch_embed.patch_size[1]) + model.num_prefix_tokens
    layers = (block.attn.proj, block.mlp.fc1, block.mlp.fc2)
    qkv, others = N * block.attn.qkv.weight.numel(), N * sum(layer.weight.numel() for layer in layers)
    product = N * N * block.attn.head_dim * block.attn.num_heads  # one of attention's two
    forward = depth * (qkv + others + 2 * product) + N * model.patch_embed.proj.weight.numel()
    if start in (None, depth - 1):  # keys and values in the last block, then one token
        return (forward - qkv // 3 - others - 2 * product + C * 6 * (others // N)) / forward
    walked = depth - start  # the last block's MLP and projection have one token, the start block stops at its attention
    once = forward + walked * (qkv + others + product) - others - qkv
    each = 3 * (walked - 1) * (qkv + others) + (8 * (walked - 2) + 2) * product
    return (once + C * each) / forward


def measure(args):
    "One row for each method and number of classes."
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    device, (H, W) = torch.device(args.device), (args.size * 2)[:2]
    model = timm.create_model(args.model, pretrained=False, num_classes=args.num_classes, img_size=(H, W))
    dtype = torch.float32 if args.dtype == "autocast" else getattr(torch, args.dtype)
    model, images = model.eval().to(device, dtype), torch.randn(args.batch, 3, H, W).to(device, dtype)
    image, number = torch.arange(args.batch), torch.arange(args.num_classes)
    pairs = {C: torch.cartesian_prod(image, torch.arange(C) % args.num_classes).to(device) for C in args.classes}
    few = torch.cartesian_prod(image, number)[: args.plain_pairs].to(device)

    def forward():
        with torch.inference_mode():
            model(images)

    runs = {"forward": forward}
    runs |= {C: partial(dtd_maps, model, images, pairs[C], args.start_block) for C in args.classes}
    one_by_one = {"dtd_maps_plain": dtd_maps_plain, "as_released": dtd_maps_released} if len(few) else {}
    runs |= {name: partial(f, model, images, few, args.start_block) for name, f in one_by_one.items()}
    with torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "autocast"):
        times = interleaved(runs, args.repeat, device, args.clock)

    def row(what, C, timed, t, least=None, faster=None):
        ratio = t / times["forward"]
        numbers = [np.median(t), *np.quantile(t, [0.2, 0.8]), np.median(ratio), *np.quantile(ratio, [0.2, 0.8])]
        return dict(zip(FIELDS, [what, C, args.batch * C, timed, *map(float, numbers), least, faster]))

    rows = [row("forward", 0, 0, times["forward"])]
    rows += [
        row("dtd_maps", C, args.batch * C, times[C], bound(model, H, W, C, args.start_block)) for C in args.classes
    ]
    for name in one_by_one:
        scaled = {C: times[name] * args.batch * C / len(few) for C in args.classes}
        rows += [row(name, C, len(few), scaled[C], faster=float(np.median(scaled[C] / times[C]))) for C in args.classes]
    return rows


def main(argv=None):
    args = parse(argv)
    rows = measure(args)
    where = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else processor_name()
    setting = dict(
        model=args.model,
        size="x".join(map(str, (args.size * 2)[:2])),
        batch=args.batch,
        num_classes=args.num_classes,
        start_block=args.start_block,
        dtype=args.dtype,
        clock=args.clock,
        repeat=args.repeat,
        device=where,
        threads=args.threads,
        torch=torch.__version__,
        timm=timm.__version__,
        python=platform.python_version(),
    )
    print("\n".join(f"{k:<13}{v}" for k, v in setting.items()), "\n")
    print(
        f"{'':<15}{'classes':>8}{'pairs':>6}{'timed':>6} |{'seconds':>9}{'20%':>9}{'80%':>9} |"
        f"{'forwards':>9}{'20%':>8}{'80%':>8}{'bound':>8}{'faster':>8}"
    )
    for r in rows:
        counts = "".join(f"{r[k] or '':>{n}}" for k, n in (("classes", 8), ("pairs", 6), ("timed", 6)))
        seconds = "".join(f"{r[k]:>9.4f}" for k in ("median_s", "q20_s", "q80_s"))
        ratios = f"{r['forwards']:>9.3f}{r['forwards_q20']:>8.3f}{r['forwards_q80']:>8.3f}"
        ratios += "".join(f"{r[k]:>8.3f}" if r[k] else " " * 8 for k in ("bound", "faster"))
        print(f"{r['what']:<15}{counts} |{seconds} |{ratios}".rstrip())
    if any(r["timed"] < r["pairs"] for r in rows):
        print("\nRows with timed < pairs: measured on so many, scaled.")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        if args.out.suffix == ".json":
            args.out.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1))
        else:
            with args.out.open("w", newline="") as f:
                writer = csv.DictWriter(f, [*FIELDS, *setting])
                writer.writeheader()
                writer.writerows(r | setting for r in rows)
    return rows


if __name__ == "__main__":
    sys.exit(not main())
