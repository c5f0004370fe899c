"""Time the kernels of wegformer.kernels against their floor, their PyTorch reference and its compiled form, in one run.

    python kernels/bench.py [head_mean cls_relevance relevance_attention erase_label] [--quick] [--out FOLDER]

The floor is what nobody can beat on the GPU at hand: the bytes that must be read and written over the bandwidth of a
large copy, or, where arithmetic decides, the operations over the rate of a large float32 matrix product, both measured
first. Before a size is timed, the kernel's result is checked against the reference; a wrong result ends in status 1.
Times are medians with the 20% and 80% quantiles, the cache emptied before each repetition. Each kernel gets a table on
the screen, a CSV and a picture in kernels/results.
"""

import argparse
import csv
import datetime
import importlib.util
import logging
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

QUANTILES = [0.5, 0.2, 0.8]
FIELDS = [
    "kernel",
    "size",
    "what",
    "median_ms",
    "q20_ms",
    "q80_ms",
    "share_of_floor",
    "times_reference",
    "error",
    "allowed",
    "bytes",
    "operations",
    "copy_gb_s",
    "matmul_tflop_s",
    "device",
    "capability",
    "torch",
    "triton",
    "cuda",
    "date",
]


@dataclass
class Case:
    "One size of one kernel; kernel and reference take the inputs."

    kernel: Callable
    reference: Callable
    inputs: tuple
    check: Callable  # from the kernel's result to its error and what is allowed
    bytes: int  # that must be read and written
    operations: int = 0  # float32 additions and multiplications of dot products; 0 where memory decides
    compile: bool = True  # whether to time the reference under torch.compile


def nbytes(*tensors):
    return sum(t.numel() * t.itemsize for t in tensors if t is not None)


def normal(device, *shape, dtype=torch.float32, seed=0):
    g = torch.Generator(device).manual_seed(seed)
    return torch.randn(*shape, generator=g, device=device).to(dtype)


def distance(result, expected):
    "Relative L2 distance; infinite where there is a NaN."
    error = float((result.double() - expected).norm() / expected.norm())
    return error if error == error else float("inf")


# ---- the kernels: each yields the names of its sizes and functions that build them; how is "full", "quick" or "dry"


def head_mean(device, how):
    "Eq. 4 of given maps: everything is read once, so the copy bandwidth is the floor."
    from wegformer.kernels.head_mean import head_mean as kernel

    full, half = torch.float32, torch.bfloat16
    sizes = [
        ("DeiT-S 224, 32 pairs", 32, 6, 197, full),
        ("DeiT-B 224, 32 pairs", 32, 12, 197, full),
        ("DeiT-B 384x512, 1 pair", 1, 12, 769, full),
        ("DeiT-B 384x512, 8 pairs", 8, 12, 769, full),
        ("DeiT-B 384x512, 24 pairs", 24, 12, 769, full),
        ("DeiT-B 384x512, 24 pairs, bf16", 24, 12, 769, half),
    ]
    dry = [("dry", 2, 3, 9, full), ("dry, bf16", 2, 3, 9, half)]
    sizes = {"full": sizes, "quick": sizes[3:4], "dry": dry}[how]

    def reference(G, R):  # `class_attention` for all pairs at once
        return torch.eye(R.shape[-1], dtype=R.dtype, device=R.device) + (G * R).clamp(min=0).mean(1)

    def build(P, h, N, dtype):
        G, R = (normal(device, P, h, N, N, dtype=dtype, seed=seed) for seed in (0, 1))

        def check(A):
            if not A.isfinite().all():
                return float("inf"), 1e-5
            exact = (reference(G[p : p + 1].double(), R[p : p + 1].double())[0] for p in range(P))
            return max(float((A[p] - one).abs().max()) for p, one in enumerate(exact)), 1e-5

        return Case(kernel, reference, (G, R), check, bytes=nbytes(G, R) + 4 * P * N * N)

    for size, *setting in sizes:
        yield size, partial(build, *setting)


def cls_relevance(device, how):
    "The last block's maps: nearly all bytes are V, a view of the keys and values."
    from wegformer.kernels.cls_relevance import cls_relevance as kernel
    from wegformer.last_block import value_products

    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    sizes = [("DeiT-S 224, 64 images x 1", 64, 6, 197, 1, bf16), ("DeiT-B 384x512, 1 image x 3", 1, 12, 769, 3, bf16)]
    sizes += [
        (f"DeiT-B 384x512, {B} images x {C}{'' if dtype == bf16 else ', ' + name}", B, 12, 769, C, dtype)
        for B, C, name, dtype in (
            (64, 1, "", bf16),
            (64, 2, "", bf16),
            (64, 8, "", bf16),
            (64, 2, "fp16", fp16),
            (64, 2, "fp32", fp32),
            (256, 2, "fp32", fp32),
            (512, 1, "", bf16),
            (512, 2, "", bf16),
            (512, 3, "", bf16),
        )
    ]
    dry = [("dry", 2, 2, 21, 2, bf16), ("dry, fp32", 2, 2, 21, 2, fp32)]
    sizes = {"full": sizes, "quick": sizes[3:4] + sizes[6:7], "dry": dry}[how]
    d = 16 if how == "dry" else 64

    def reference(V, M, S, G, image):  # the last lines of `last_block_maps`
        product = value_products(torch.stack([S, G], 1), V.to(S.dtype), image)
        return (M[image] * product[:, 0] / 2 * product[:, 1]).clamp(min=0).mean(1)

    def build(B, h, N, C, dtype):
        V = normal(device, B, N, 2, h, d, dtype=dtype).permute(2, 0, 3, 1, 4)[1]  # (B, h, N, d)
        M = normal(device, B, h, N, seed=1).softmax(-1)
        S, G = (normal(device, B * C, h, d, seed=seed) for seed in (2, 3))
        image = torch.arange(B * C, device=device) % B  # not sorted

        def check(A):
            if not A.isfinite().all():
                return float("inf"), 1e-5
            error = 0.0
            for b in range(min(B, 4)):  # float64 copies of all images would not fit
                mine, one = (image == b).nonzero()[:, 0], slice(b, b + 1)
                exact = reference(*(t.double() for t in (V[one], M[one], S[mine], G[mine])), image[mine] * 0)
                error = max(error, distance(A[mine], exact))
            return error, 1e-5

        return Case(kernel, reference, (V, M, S, G, image), check, bytes=nbytes(V, M, S, G, image) + 4 * B * C * N)

    for size, *setting in sizes:
        yield size, partial(build, *setting)


def relevance_attention(device, how):
    "One block on the way back: dot products in float32, so the rate of a float32 matrix product is the floor."
    from wegformer.kernels.relevance_attention import relevance_attention as kernel
    from wegformer.rules import divide

    sizes = [
        ("ViT-B 224, 8 images x 1", 8, 12, 197, 1),
        ("ViT-B 384x512, 1 image x 1", 1, 12, 769, 1),
        ("ViT-B 384x512, 1 image x 3", 1, 12, 769, 3),
        ("ViT-B 384x512, 8 images x 2", 8, 12, 769, 2),
        ("ViT-B/8 384x512, 1 image x 1", 1, 12, 3073, 1),
    ]
    sizes = {"full": sizes, "quick": sizes[1:2], "dry": [("dry", 2, 2, 21, 2)]}[how]
    d = 16 if how == "dry" else 64

    def reference(q, k, v, S, G, row, image, scale):
        q, k, v = q[image], k[image], v[image]
        product = q @ k.mT
        M = (scale * product).softmax(-1)
        R, GV = M * (S @ v.mT) / 2, G @ v.mT
        new_row = (row[:, None] @ (GV * R).clamp(min=0).mean(1))[:, 0] + row
        S2, P = divide(R, product), M * (GV - (GV * M).sum(-1, keepdim=True))
        return (
            new_row,
            (q * (S2 @ k) / 2, k * (S2.mT @ q) / 2, v * (M.mT @ S) / 2),
            (scale * (P @ k), scale * (P.mT @ q), M.mT @ G),
        )

    def parts(result):
        return [result[0], *result[1], *result[2]]

    def build(B, h, N, C):
        q, k, v = normal(device, B, N, 3, h, d).permute(2, 0, 3, 1, 4)
        S, G = (normal(device, B * C, h, N, d, seed=seed) for seed in (1, 2))
        row, image = normal(device, B * C, N, seed=3).abs(), torch.arange(B * C, device=device) % B

        def check(result):
            "Pair by pair. Both forms round, much where q.k is near 0: 5 times the other's error is allowed."
            worst = (0.0, 1.0)
            for p in range(min(B * C, 2)):
                one = *(t[p % B : p % B + 1] for t in (q, k, v)), *(t[p : p + 1] for t in (S, G, row))
                zero = image[:1] * 0
                plain = reference(*one, zero, d**-0.5)
                exact = reference(*(t.double() for t in one), zero, d**-0.5)
                for ours, theirs, true in zip(parts(result), parts(plain), parts(exact)):
                    found = distance(ours[p : p + 1], true), 5 * distance(theirs, true) + 2e-6
                    worst = max(worst, found, key=lambda x: x[0] / x[1])
            return worst

        dots = 12 * B * C + 2 * B  # of the size of q @ k.mT: see the notebook
        return Case(
            kernel,
            reference,
            (q, k, v, S, G, row, image, d**-0.5),
            check,
            bytes=nbytes(q, k, v, S, G, row) + 6 * C * nbytes(q) + 4 * B * C * N,
            operations=2 * dots * h * N * N * d,
        )

    for size, *setting in sizes:
        yield size, partial(build, *setting)


def erase_label(device, how):
    "From maps to labels: the maps and the saliency read once, the label written once."
    from wegformer.kernels.erase_label import erase_label as kernel
    from wegformer.pseudo_labels import LabelRule, pseudo_label

    sizes = [
        (f"{B} image{'s' * (B > 1)} x {C}, {rule}", B, C, rule)
        for B, C, rule in (
            (1, 2, "paper"),
            (16, 2, "paper"),
            (64, 1, "paper"),
            (64, 2, "paper"),
            (64, 2, "nsrom"),
            (64, 2, "drs"),
            (64, 2, "mec"),
            (256, 2, "paper"),
        )
    ]
    dry = [("dry", 2, 2, "paper"), ("dry, mec", 2, 2, "mec")]
    sizes = {"full": sizes, "quick": sizes[1:2], "dry": dry}[how]
    H, W = (19, 23) if how == "dry" else (375, 500)

    def minmax(a):
        low, high = a.amin((1, 2), keepdim=True), a.amax((1, 2), keepdim=True)
        return (a - low) / (high - low + 1e-8)

    def reference(maps, ids, saliency, rule):
        return [pseudo_label(minmax(a), c, s, rule) for a, c, s in zip(maps, ids, saliency)]

    def build(B, C, name):
        maps, saliency = [], []
        for i in range(B):  # smooth blobs, so that regions form as in real maps; sizes differ a little
            shape = (H - i % 5, W - i % 7)
            x = torch.nn.functional.interpolate(normal(device, 1, C + 1, 6, 8, seed=i), shape, mode="bicubic")[0]
            maps.append(x[:-1].contiguous())
            saliency.append((255 * (6 * (x[-1] + 0.3 * x[0])).sigmoid()).to(torch.uint8))
        ids, rule = [list(range(1 + i % 5, 1 + i % 5 + C)) for i in range(B)], LabelRule.preset(name)

        def check(labels):
            exact = reference([a.cpu() for a in maps], ids, [s.cpu() for s in saliency], rule)
            return float(sum((ours.cpu() != theirs).sum() for ours, theirs in zip(labels, exact))), 0.0  # pixels

        return Case(
            partial(kernel, minmax=True),
            reference,
            (maps, ids, saliency, rule),
            check,
            bytes=sum((a.itemsize * len(a) + 2) * a[0].numel() for a in maps),
            compile=B <= 16,
        )  # a graph for every stretch between two waits, for every size: minutes

    for size, *setting in sizes:
        yield size, partial(build, *setting)


KERNELS = {f.__name__: f for f in (head_mean, cls_relevance, relevance_attention, erase_label)}


# ---- measuring


def timer(how):
    "A function that gives the median, 20% and 80% quantile of another's time in ms."
    if how == "dry":

        def dry(f):
            start = time.perf_counter()
            f()
            return [1000 * (time.perf_counter() - start)] * 3

        return dry
    from triton.testing import do_bench

    warmup, rep = (25, 100) if how == "quick" else (100, 500)  # ms
    return lambda f: do_bench(f, warmup=warmup, rep=rep, quantiles=QUANTILES)


def machine(device, measure, how):
    "Copy bandwidth in GB/s and the rate of a float32 matrix product in TFLOP/s."
    size, n = (2**20, 64) if how == "dry" else (min(2**30, torch.cuda.mem_get_info()[0] // 4), 8192)
    x, y = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    copy = 2 * size / measure(partial(y.copy_, x))[0] / 1e6
    del x, y
    a, b = (normal(device, n, n, seed=seed) for seed in (0, 1))
    return copy, 2 * n**3 / measure(partial(torch.matmul, a, b))[0] / 1e9


def measure_case(size, case, measure, copy, matmul, how):
    "Check, then time everything: rows for floor, kernel, reference and compiled, and a remark."
    error, allowed = case.check(case.kernel(*case.inputs))
    if not error <= allowed:
        return [], f"WRONG: error {error:.2g}, allowed {allowed:.2g}"
    floor, note = max(case.bytes / copy / 1e6, case.operations / matmul / 1e9), ""
    torch._dynamo.reset()
    compiled = torch.compile(case.reference, **({"backend": "eager"} if how == "dry" else {}))
    runs = dict(kernel=case.kernel, reference=case.reference) | (dict(compiled=compiled) if case.compile else {})
    times = dict(floor=[floor] * 3)
    for what, f in runs.items():
        try:
            f(*case.inputs)  # compiles
            times[what] = measure(partial(f, *case.inputs))
        except torch.cuda.OutOfMemoryError:
            note += f"{what}: out of memory. "
        except Exception as problem:
            if what != "compiled":
                raise
            note += f"{what}: {type(problem).__name__}. "
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    base = times["reference"][0] if "reference" in times else None
    return [
        dict(
            size=size,
            what=what,
            median_ms=t[0],
            q20_ms=t[1],
            q80_ms=t[2],
            share_of_floor=floor / t[0],
            times_reference=base / t[0] if base else "",
            error=error,
            allowed=allowed,
            bytes=case.bytes,
            operations=case.operations,
        )
        for what, t in times.items()
    ], note


def draw(name, rows, device, path):
    "Times of all sizes, the floor as a line."
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = list(dict.fromkeys(r["size"] for r in rows))
    fig, ax = plt.subplots(figsize=(7, 1.4 + 0.36 * len(sizes)), dpi=100, layout="constrained")
    for (what, color), shift in zip({"reference": "C0", "compiled": "C2", "kernel": "C3"}.items(), (-0.2, 0, 0.2)):
        mine = [r for r in rows if r["what"] == what]
        middle, low, high = ([r[key] for r in mine] for key in ("median_ms", "q20_ms", "q80_ms"))
        error = [[m - x for m, x in zip(middle, low)], [x - m for m, x in zip(middle, high)]]
        ax.errorbar(
            middle,
            [sizes.index(r["size"]) + shift for r in mine],
            xerr=error,
            fmt="o",
            ms=5,
            color=color,
            capsize=2,
            label=what,
        )
    for i, r in enumerate(r for r in rows if r["what"] == "floor"):
        ax.vlines(r["median_ms"], i - 0.4, i + 0.4, color="0.3", label=None if i else "floor")
    ax.set(xscale="log", yticks=range(len(sizes)), yticklabels=sizes, xlabel="ms", title=f"{name} on {device}")
    ax.set_ylim(len(sizes) - 0.4, -0.6)
    ax.grid(axis="x", alpha=0.3)
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    fig.savefig(path)
    plt.close(fig)


def show(name, rows, notes):
    "The table of one kernel."

    def number(x, width):
        return f"{x:>{width}.4g}" if isinstance(x, float) else f"{'-':>{width}}"

    heads = dict(floor=10, reference=12, compiled=12, kernel=12)
    print(
        f"\n{name:<38}"
        + "".join(f"{k:>{w}}" for k, w in heads.items())
        + f"{'20%':>10}{'80%':>10}{'of floor':>10}{'faster':>9}"
    )
    for size, note in notes.items():
        r = {row["what"]: row for row in rows if row["size"] == size}
        if r:
            k = r["kernel"]
            faster = f"{k['times_reference']:.1f}x" if k["times_reference"] else "-"
            print(
                f"{size:<38}"
                + "".join(number(r[w]["median_ms"] if w in r else None, n) for w, n in heads.items())
                + number(k["q20_ms"], 10)
                + number(k["q80_ms"], 10)
                + f"{k['share_of_floor']:>10.1%}{faster:>9}"
            )
        if note:
            print(f"{size:<38}  {note}")


def run(name, device, how, out, setting, measure):
    "Measure one kernel and write its files; True if all results were right."
    gpu = device.type == "cuda"
    if importlib.util.find_spec(f"wegformer.kernels.{name}") is None:
        print(f"\n{name}: skipped, there is no module wegformer.kernels.{name}.")
        return True
    rows, notes, copy, matmul = [], {}, setting["copy_gb_s"], setting["matmul_tflop_s"]
    for size, build in KERNELS[name](device, how):
        try:
            found, notes[size] = measure_case(size, build(), measure, copy, matmul, how)
            rows += found
        except torch.cuda.OutOfMemoryError:
            notes[size] = "skipped: out of memory"
        except Exception as problem:  # must not hide the other sizes
            notes[size] = f"WRONG: {type(problem).__name__}: {(str(problem).splitlines() or [''])[0]}"
        if gpu:
            torch.cuda.empty_cache()
    show(name, rows, notes)
    if rows:
        out.mkdir(parents=True, exist_ok=True)
        with open(out / f"{name}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(dict(kernel=name) | row | setting for row in rows)
        draw(name, rows, setting["device"], out / f"{name}.png")
    return not any(note.startswith("WRONG") for note in notes.values())


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernels", nargs="*", help=f"some of {', '.join(KERNELS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="one or two sizes each, fewer repetitions")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder of CSVs and pictures"
    )
    parser.add_argument("--dry", action="store_true", help=argparse.SUPPRESS)  # tiny sizes anywhere, to test all this
    args = parser.parse_args(arguments)
    for name in args.kernels:
        if name not in KERNELS:
            parser.error(f"no kernel {name!r}, expected some of {', '.join(KERNELS)}")
    if not torch.cuda.is_available():
        if not args.dry:
            print("bench.py needs an NVIDIA GPU that PyTorch can use, and finds none.", file=sys.stderr)
            return 2
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
    import triton

    how = "dry" if args.dry else "quick" if args.quick else "full"
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    out = Path(tempfile.mkdtemp()) if args.dry and args.out == parser.get_default("out") else args.out
    torch.backends.cuda.matmul.allow_tf32 = False
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # a compiled reference may have graph breaks
    warnings.filterwarnings("ignore", module="torch._dynamo")
    measure = timer(how)
    copy, matmul = machine(device, measure, how)
    name = torch.cuda.get_device_name() if gpu else platform.machine()
    capability = "{}.{}".format(*torch.cuda.get_device_capability()) if gpu else ""
    setting = dict(
        copy_gb_s=copy,
        matmul_tflop_s=matmul,
        device=name,
        capability=capability,
        torch=torch.__version__,
        triton=triton.__version__,
        cuda=torch.version.cuda or "",
        date=datetime.date.today().isoformat(),
    )
    print(
        f"{setting['device']}, torch {torch.__version__}, triton {triton.__version__}: copy {copy:.0f} GB/s, "
        f"float32 matrix product {matmul:.1f} TFLOP/s. Times in ms."
    )
    right = [run(name, device, how, out, setting, measure) for name in args.kernels or KERNELS]
    if not all(right):
        print("\nSome results are wrong.")
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
