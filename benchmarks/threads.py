"""What a training step takes when another program keeps a core busy: python benchmarks/threads.py

Threads of one step wait for each other. By default they wait awake (OpenMP's active policy), which costs nothing on a
machine of one's own. Where a core is taken by something else, the others spin until that thread gets its turn. The
command `wegformer` lets them sleep (OMP_WAIT_POLICY=PASSIVE). Writes benchmarks/results/threads.csv.
"""

import argparse
import os
import subprocess
import sys
import time

BUSY = "while True: pass"


def seconds(steps: int) -> tuple[float, float]:
    "Wall and processor time of a step of the small ViT, batch 16 at 64 pixels."
    import timm
    import torch

    import wegformer.networks.toy  # noqa: F401 (registers with timm)

    torch.manual_seed(0)
    model = timm.create_model("vit_toy_patch8_96", num_classes=9)
    optimizer = torch.optim.AdamW(model.parameters())
    x, y = torch.randn(16, 3, 64, 64), torch.zeros(16, 9)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.multilabel_soft_margin_loss(model(x), y).backward()
        optimizer.step()

    for _ in range(5):
        step()
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    return (time.perf_counter() - wall) / steps, (time.process_time() - processor) / steps


def measure(threads: int, policy: str, steps: int) -> tuple[float, float]:
    "The same in a process of its own, since the policy is read when the library is loaded."
    environment = os.environ | dict(OMP_NUM_THREADS=str(threads), OMP_WAIT_POLICY=policy)
    command = [sys.executable, __file__, "--alone", str(steps)]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return tuple(map(float, said.split()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.alone:
        return print(*seconds(args.alone))
    import numpy as np
    from records import RESULTS, write_csv

    from wegformer.stages import processor_name

    cores, rows = len(os.sched_getaffinity(0)), []
    settings = [(1, "passive"), (cores, "active"), (cores, "passive")]
    for busy in (0, 1):
        others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
        try:
            found = [[measure(*setting, args.steps) for setting in settings] for _ in range(args.repeats)]  # in turn
        finally:
            for other in others:
                other.kill()
                other.wait()
        for (threads, policy), times in zip(settings, np.array(found).transpose(1, 0, 2)):
            wall, processor = 1e3 * np.median(times, 0)
            row = dict(busy_cores=busy, cores=cores, threads=threads, policy=policy, wall_ms=round(wall, 1),
                       processor_ms=round(processor, 1), worst_wall_ms=round(1e3 * times[:, 0].max(), 1),
                       device=processor_name())  # fmt: skip
            rows.append(row)
            print(row)
    write_csv(RESULTS / "threads.csv", list(rows[0]), rows)


if __name__ == "__main__":
    main()
