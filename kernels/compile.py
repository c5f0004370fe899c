"""Compile the kernels of wegformer.kernels for every target, without a GPU, and report what each needs.

Each module there that has a function `aot()` names the variants that real use compiles. Triton turns each of them into
PTX and, with its bundled ptxas, into a cubin; registers, stack and shared memory are read from the cubin (bundled
`cuobjdump -res-usage`; shared memory is dynamic and comes from Triton's metadata). Spilled registers live on the stack:
where the stack is not empty, ptxas is run on the PTX once more, verbosely, and its count of spilled bytes is reported.

    python kernels/compile.py [--targets 80 90] [--kernels NAME ...] [--budget BYTES] [--out FILE.csv]

Exits 1 if a variant does not compile, spills more than the budget, or needs more shared memory than a block of the
target can have.
"""

import argparse
import csv
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # interpreted kernels cannot be compiled; before triton is imported

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import wegformer.kernels

SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227}  # KiB a block can have, by compute capability
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
COLUMNS = [
    "module",
    "kernel",
    "variant",
    "target",
    "warps",
    "stages",
    "registers",
    "shared_bytes",
    "spill_store_bytes",
    "spill_load_bytes",
    "ptx_bytes",
    "cubin_bytes",
    "status",
    "triton",
]

LINE = (
    "{module:19} {kernel:18} {variant:34} {target:7} {warps:>5} {registers:>9} {shared:>10} {spills:>12} {ptx:>8} "
    "{cubin:>9}  {status}"
)
HEADS = {name: name for name in ("module", "kernel", "variant", "target", "warps", "registers", "status")}
HEADS |= dict(shared="shared KiB", spills="spill st/ld", ptx="PTX KiB", cubin="cubin KiB")


def variants(only: str | None = None) -> list[tuple[str, dict]]:
    "(module, variant) of every module of wegformer.kernels that has `aot`, or of one of them."
    found = []
    for name in sorted(info.name for info in pkgutil.iter_modules(wegformer.kernels.__path__)):
        if only in (None, name):
            module = importlib.import_module(f"wegformer.kernels.{name}")
            found += [(name, variant) for variant in (module.aot() if hasattr(module, "aot") else [])]
    return found


def jitted(kernel) -> triton.JITFunction:
    "What lies below autotune or heuristics."
    return kernel if isinstance(kernel, triton.JITFunction) else jitted(kernel.fn)


def compile_variant(variant: dict, capability: int):
    "Triton's compiled kernel. Pointers are aligned to 16 bytes, as torch allocates them, and integers under 'aligned'."
    kernel, signature = jitted(variant["kernel"]), variant["signature"]
    aligned = {x for x, kind in signature.items() if kind.startswith("*")} | set(variant.get("aligned", ()))
    attributes = {(i,): [["tt.divisibility", 16]] for i, x in enumerate(kernel.arg_names) if x in aligned}
    options = {x: variant[x] for x in ("num_warps", "num_stages") if x in variant}
    source = ASTSource(kernel, signature, variant["constexprs"], attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def spills(ptx: str, capability: int) -> tuple[int, int]:
    "Bytes of spill stores and loads, from the log of ptxas."
    new = TOOLS / "ptxas-blackwell"
    ptxas = new if capability >= 100 and new.exists() else TOOLS / "ptxas"
    arch = re.search(r"^\.target (\w+)", ptx, re.M)[1]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(ptx)
        log = subprocess.run(
            [ptxas, "-v", f"--gpu-name={arch}", "kernel.ptx", "-o", "kernel.cubin"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        ).stderr
    return tuple(sum(map(int, re.findall(rf"(\d+) bytes spill {kind}", log))) for kind in ("stores", "loads"))


def report(job: tuple[str, str, int], budget: int) -> dict:
    "One row of the table: (module, variant, target)."
    module, name, capability = job
    (variant,) = (v for m, v in variants(module) if v["name"] == name)
    row = dict.fromkeys(COLUMNS, "")
    row |= dict(
        module=module,
        kernel=jitted(variant["kernel"]).__name__,
        variant=variant["name"],
        target=f"sm_{capability}",
        warps=variant.get("num_warps", 4),
        stages=variant.get("num_stages", ""),
        triton=triton.__version__,
    )
    try:
        compiled = compile_variant(variant, capability)
        cubin, ptx = compiled.asm["cubin"], compiled.asm["ptx"]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "kernel.cubin"
            file.write_bytes(cubin)
            usage = subprocess.run(
                [TOOLS / "cuobjdump", "-res-usage", file], capture_output=True, text=True, check=True
            ).stdout
        count = {name: int(re.search(rf"\b{name}:(\d+)", usage)[1]) for name in ("REG", "STACK")}
        stores, loads = spills(ptx, capability) if count["STACK"] else (0, 0)
        shared = compiled.metadata.shared
        row |= dict(
            registers=count["REG"],
            shared_bytes=shared,
            spill_store_bytes=stores,
            spill_load_bytes=loads,
            ptx_bytes=len(ptx),
            cubin_bytes=len(cubin),
            status="ok",
        )
        if stores + loads > budget:
            row["status"] = f"spills more than {budget} bytes"
        elif shared > SHARED_LIMIT[capability] * 1024:
            row["status"] = f"more than {SHARED_LIMIT[capability]} KiB of shared memory"
    except Exception as error:  # one variant that fails must not hide the others
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        row["status"] = f"{type(error).__name__}: {lines[-1].strip()}"[:200]
    return row


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", type=int, nargs="+", default=list(SHARED_LIMIT), choices=list(SHARED_LIMIT))
    parser.add_argument("--kernels", nargs="+", help="modules of wegformer.kernels (default: all)")
    parser.add_argument("--budget", type=int, default=0, help="bytes of spill stores and loads that a variant may have")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "compile.csv")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args(arguments)
    found = variants()
    known = sorted({module for module, _ in found})
    for name in set(args.kernels or ()) - set(known):
        parser.error(f"--kernels: no module {name!r} with variants, expected some of {', '.join(known)}")
    jobs = [
        (module, variant["name"], target)
        for module, variant in found
        if module in (args.kernels or known)
        for target in args.targets
    ]
    if len(set(jobs)) < len(jobs):
        parser.error("two variants of one module have the same name")
    print(LINE.format(**HEADS), flush=True)
    rows = []
    with ProcessPoolExecutor(max(1, min(args.workers, len(jobs))), get_context("spawn")) as pool:
        for row in pool.map(report, jobs, [args.budget] * len(jobs)):
            kib = {
                name: f"{row[f'{name}_bytes'] / 1024:.1f}" if row[f"{name}_bytes"] != "" else ""
                for name in ("shared", "ptx", "cubin")
            }
            print(LINE.format(**row, **kib, spills="{spill_store_bytes}/{spill_load_bytes}".format(**row)), flush=True)
            rows.append(row)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with open(args.out, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    failed = [row for row in rows if row["status"] != "ok"]
    print(f"{len(rows)} variants and targets, {len(failed)} not ok; triton {triton.__version__}; written to {args.out}")
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
