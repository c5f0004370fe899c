"""What a step of each stage asks of a GPU: peak memory and arithmetic, computed from shapes alone, or measured.

    python benchmarks/budget.py --out runs/budget.json        # computed, on any machine
    python benchmarks/budget.py --measure --out kernels/results/budget.json # on a GPU: a few real steps
    python benchmarks/budget.py --recipe benchmarks/voc_subset/gpu.json     # of a recipe of benchmarks/voc_subset

Computed: the step runs with tensors that have a shape but no content; what is alive is counted tensor by tensor, as
are the multiplications. An allocator rounds up and keeps what it once had, and a convolution may take workspace, so a
card needs somewhat more. Batch sizes and resolutions are those of the preset `voc`, and of `DistilConfig`.
"""

import argparse
import dataclasses
import json
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple
from collections.abc import Callable

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode

from wegformer.classifier import ClassifierConfig, create_classifier
from wegformer.deeplab import MultiScale
from wegformer.extras.distillation import DistilConfig, Distillation, Lesson
from wegformer.stages import device_name, versions
from wegformer.config import override, preset
from wegformer.segmentation import RECIPES, SegmenterConfig, _batch_loss, create_segmenter, parameter_groups
from wegformer.training import autocast

CARDS = {"RTX 3060": 10.2, "H200": 300.0}  # TFLOP/s: 40% and 30% of the dense bf16 peak (25.6 and 989)


class Step(NamedTuple):
    what: str
    steps: int  # of the whole stage
    net: nn.Module  # what is trained
    optimizer: Callable[[], torch.optim.Optimizer]  # of the parameters that `net` has by then
    inputs: list[torch.Tensor]
    loss: Callable[..., torch.Tensor]  # of the inputs


def classifier(c: ClassifierConfig) -> Step:
    net = create_classifier(c.model, 20, pretrained=False).train()
    images, labels = torch.zeros(c.batch_size, 3, c.crop_size, c.crop_size), torch.zeros(c.batch_size, 20)
    return Step(
        f"classifier: {c.model.partition('.')[0]}, {c.batch_size} crops of {c.crop_size}",
        c.steps,
        net,
        lambda: torch.optim.AdamW(net.parameters()),
        [images, labels],
        lambda x, y: nn.functional.multilabel_soft_margin_loss(net(x).float(), y),
    )


def segmenter(name: str, c: SegmenterConfig) -> Step:
    config = dataclasses.replace(c, pretrained=False, weights=None, frozen_bn=False)
    own = create_segmenter(config, 21)
    multi = len(config.loss_scales) > 1
    net = (MultiScale(own, config.loss_scales) if multi else own).train()
    images, masks = (
        torch.zeros(config.batch_size, 3, config.crop, config.crop),
        torch.zeros(config.batch_size, config.crop, config.crop, dtype=torch.int64),
    )
    scales = f" at {len(config.loss_scales)} scales" if multi else ""
    return Step(
        f"{name}: {config.backbone.partition('.')[0]}, {config.batch_size} crops of {config.crop}{scales}",
        config.steps,
        net,
        lambda: torch.optim.SGD(parameter_groups(own, config), momentum=config.momentum),
        [images, masks],
        lambda x, y: _batch_loss(own, multi)(net, [x, y]),
    )


def distillation(c: DistilConfig) -> Step:
    teacher = create_classifier(c.teacher, None, False, output_stride=c.teacher_stride).to(
        memory_format=torch.channels_last
    )
    lesson = Lesson(
        Distillation(
            create_classifier(c.student, teacher.num_classes, False),
            teacher,
            c.stages,
            c.decisions,
            depths=c.depths,
            features=c.features,
        ),
        ema=c.ema,
    ).train()
    both = lesson.distillation
    # the tracker's hooks refuse frozen weights; the teacher runs without gradients all the same
    teacher.requires_grad_(True)
    return Step(
        f"distillation: {c.student.partition('.')[0]} of {c.teacher.partition('.')[0]}, "
        f"{c.batch_size} crops of {c.crop_size}",
        c.steps,
        lesson,
        lambda: torch.optim.AdamW([*both.student.parameters(), *both.predict.parameters()]),
        [torch.zeros(c.batch_size, 3, c.crop_size, c.crop_size)],
        lambda x: both(*lesson.both(x))[1],
    )  # without mixup and the running mean, whose branches depend on content


def stages(recipe: Path | None) -> dict[str, Callable[[], Step]]:
    "What is looked at: the defaults and the paper's presets, or what a recipe sets in their place."
    if recipe is None:
        networks = {name: SegmenterConfig.preset(name) for name in RECIPES}
        learnt, chain = DistilConfig(), preset("voc")
    else:
        own = json.loads(recipe.read_text())
        learnt = DistilConfig(**own["distil"])
        chain = override(preset("voc"), {"classifier.model": learnt.student, **own["chain"]})
        networks = {"segmenter": chain.segmenter}
    return {
        "distillation": partial(distillation, learnt),
        "classifier": partial(classifier, chain.classifier),
        **{name: partial(segmenter, name, c) for name, c in networks.items()},
    }


def train_once(step: Step, optimizer: torch.optim.Optimizer, inputs: list[torch.Tensor]) -> None:
    with autocast(inputs[0].device, "bf16"):
        loss = step.loss(*inputs)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def without_content(module: nn.Module, mode: FakeTensorMode) -> None:
    "Give the module parameters and buffers that have shapes alone."
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = nn.Parameter(mode.from_tensor(p.detach()), requires_grad=p.requires_grad)
        for name, b in part._buffers.items():
            if b is not None:
                part._buffers[name] = mode.from_tensor(b)


def computed(step: Step) -> dict:
    "Peak memory of the second step (the optimiser has its state by then), and the arithmetic of one."
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    without_content(step.net, mode)
    with mode:
        optimizer, inputs = step.optimizer(), [mode.from_tensor(t) for t in step.inputs]
        train_once(step, optimizer, inputs)
        tracker = MemTracker()
        tracker.track_external(step.net, optimizer, *inputs)
        with tracker:
            train_once(step, optimizer, inputs)
        counter = FlopCounterMode(display=False)
        with counter:
            train_once(step, optimizer, inputs)
    peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    parts = {str(getattr(kind, "value", kind)): size / 2**30 for kind, size in peak.items()}
    return dict(
        peak_gib=parts.pop("Total"),
        parts_gib={k: round(v, 3) for k, v in parts.items() if v},
        tflop_per_step=counter.get_total_flops() / 1e12,
    )


def measured(step: Step, repeats: int = 10) -> dict:
    step.net.to("cuda")
    optimizer, inputs = step.optimizer(), [t.to("cuda") for t in step.inputs]
    for _ in range(3):
        train_once(step, optimizer, inputs)
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        train_once(step, optimizer, inputs)
    torch.cuda.synchronize()
    return dict(
        peak_gib=torch.cuda.max_memory_allocated() / 2**30,
        reserved_gib=torch.cuda.max_memory_reserved() / 2**30,
        seconds_per_step=(time.perf_counter() - start) / repeats,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipe", type=Path, help="JSON with the values of `distil` and `chain`; default: the preset `voc`"
    )
    parser.add_argument("--stages", nargs="+", help="some of them alone")
    parser.add_argument("--measure", action="store_true", help="run real steps on the GPU")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows, known = [], stages(args.recipe)
    if unknown := set(args.stages or ()) - known.keys():
        parser.error(f"argument --stages: invalid choice: {min(unknown)!r} (choose from {', '.join(known)})")
    for name in args.stages or known:
        step = known[name]()
        row = dict(stage=name, what=step.what, steps=step.steps, **(measured(step) if args.measure else computed(step)))
        rows.append(row)
        if args.measure:
            print(
                f"{row['what']:<64} {row['peak_gib']:6.2f} GiB (reserved {row['reserved_gib']:.2f})  "
                f"{1e3 * row['seconds_per_step']:7.1f} ms a step"
                f"  {row['seconds_per_step'] * row['steps'] / 60:7.1f} min in all",
                flush=True,
            )
        else:
            row["pflop"] = row["tflop_per_step"] * row["steps"] / 1e3
            row["minutes"] = {card: row["pflop"] * 1e3 / speed / 60 for card, speed in CARDS.items()}
            print(
                f"{row['what']:<64} {row['peak_gib']:6.2f} GiB  {row['tflop_per_step']:6.2f} TFLOP a step  "
                f"{row['pflop']:6.1f} PFLOP in all: "
                + ", ".join(f"{m:.0f} min on {card}" for card, m in row["minutes"].items()),
                flush=True,
            )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(
            json.dumps(
                dict(
                    rows=rows,
                    measured=args.measure,
                    assumed_tflops=None if args.measure else CARDS,
                    versions=versions(),
                    device=device_name(),
                ),
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
