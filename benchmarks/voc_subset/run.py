"""What the method reaches on real photographs: from image-level labels to masks, on a part of PASCAL VOC 2012.

    python benchmarks/voc_subset/run.py --voc VOC2012 --models MODELS --budget cpu --out runs/voc_subset

VOC2012 is a folder in VOC's layout, with saliency maps; MODELS holds tf_efficientnet_lite2_imagenet.safetensors (the
teacher) and vgg16_imagenet_features.safetensors (DeepLab's initial weights). Every step is skipped where its result
lies in OUT, and goes on where it was killed:

    data      a VOC folder of links, whose lists leave out training photographs with painted-in boxes (painted.txt), and
              name a hold-out and a quarter of it
    distil    a ViT learns from the teacher, on the training photographs without the hold-out, without labels
    probe     what the teacher's features know, and the student's: a linear classifier on them, for comparison alone;
              the student's on the hold-out
    tune      the classifier on the rest of the training photographs, measured on the hold-out: where its recipe was
              chosen
    maps      which heat map points at the object: that classifier on a quarter of the hold-out
    ladder    classifier, maps, labels, networks: nbs/extras/ladder.ipynb, measured on val once
    seeds     with several --seeds: the full method with the chosen rule, and the trivial one, for each of them
    sweep     the label rule's values on the hold-out's maps: nbs/extras/sensitivity.ipynb
    record    all results and small figures into benchmarks/results/NAME, without a path of this machine (only when
              asked for: --record NAME)

Val photographs enter neither distillation nor training nor a choice. The configuration of a budget is BUDGET.json
beside this file.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from wegformer.attention import attention_maps
from wegformer.classifier import average_precision, create_classifier, load_classifier, normalize
from wegformer.data import IGNORE, VOCDataset, atomic_write, read_split, without_nan
from wegformer.evaluation import best_threshold, confusion, iou, mean_over
from wegformer.extras.distillation import DistilConfig, distil, find_photographs
from wegformer.config import Config, override, preset
from wegformer.stages import Stage, device_name, read_done, run, versions
from wegformer.pipeline import chain, trivial_label
from wegformer.pretraining import weights_fingerprint
from wegformer.pseudo_labels import pseudo_label, table2_rules
from wegformer.experiment import format_table
from wegformer.reproduce import reproduce
from wegformer.training import default_device

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import records

CLASSES = ["cat", "chair", "cow", "dog", "horse", "person", "sheep", "sofa"]  # those with 10 or more val photographs
HOLDOUT = 200  # training photographs


def lay_out(voc: Path, out: Path) -> Path:
    "A VOC folder of links with lists: train (clean), its parts fit and holdout, choice (of the hold-out), val."
    painted = set((HERE / "painted.txt").read_text().split())
    train, val = [i for i in read_split(voc, "train_aug") if i not in painted], read_split(voc, "val")
    assert not set(train) & set(val), "a photograph is in train and in val"
    root = out / "VOC2012"
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True, exist_ok=True)
    for name in ("JPEGImages", "SegmentationClassAug", "saliency", "cls_labels.npy"):
        if not (root / name).is_symlink() and not (root / name).exists():
            os.symlink((voc / name).resolve(), root / name)
    held = set(np.random.default_rng(0).permutation(train)[:HOLDOUT].tolist())
    fit, holdout = [i for i in train if i not in held], [i for i in train if i in held]
    for split, ids in dict(train=train, fit=fit, holdout=holdout, choice=holdout[::4], val=val).items():
        (lists / f"{split}.txt").write_text("\n".join(ids) + "\n")
    return root


def keep(path: Path, **result) -> dict:
    "Write a result."
    with atomic_write(path, "w") as handle:
        json.dump(result, handle, indent=1)
    return result


def record(out: Path, models: Path, name: str) -> None:
    "Keep every result that is there (benchmarks/records.py), and its figures, made smaller."

    def clean(text: str) -> str:
        return text.replace(str(models.resolve()), "MODELS").replace(str(out), "OUT")

    results = {path.stem: json.loads(clean(path.read_text())) for path in sorted(out.glob("*.json"))}
    keep_pictures(out, records.record(results, name))


def keep_pictures(out: Path, target: Path) -> None:
    "The figures of a run, made smaller."
    for path in sorted(out.glob("*_*.png")):
        picture = Image.open(path).convert("RGB")
        picture.thumbnail((1000, 1000))
        picture.quantize(128).save(target / path.name, optimize=True)


def probe_stage(root: Path, network: str, weights: Path, train_split: str, val_split: str, side: int) -> Stage:
    "What a network's pooled features of whole photographs know: a logistic regression for each class on them."
    train, val = (VOCDataset(root, split, labels="npy") for split in (train_split, val_split))

    @torch.inference_mode()
    def make(out: Path, needs: dict) -> dict:
        device = default_device()
        model = create_classifier(network, None, False, weights).to(device)

        def features(voc: VOCDataset) -> np.ndarray:
            rows = []
            for i in tqdm(range(len(voc)), desc=f"features of {voc.split}"):
                x = normalize(F.resize(voc.image(i), [side, side], antialias=True), model)[None].to(device)
                rows.append(model.forward_head(model.forward_features(x), pre_logits=True)[0].float().cpu())
            return torch.stack(rows).numpy()

        x, y, xv, yv = (
            features(train),
            np.stack([train.labels(i) for i in range(len(train))]),
            features(val),
            torch.stack([val.labels(i) for i in range(len(val))]),
        )
        mean, std = x.mean(0), x.std(0) + 1e-6
        x, xv = (x - mean) / std, (xv - mean) / std
        logits = np.full(yv.shape, -np.inf, dtype=np.float32)
        for c in range(y.shape[1]):
            if 0 < y[:, c].sum() < len(y):
                logits[:, c] = LogisticRegression(C=1e-3, max_iter=1000).fit(x, y[:, c]).decision_function(xv)
        AP = without_nan(dict(zip(val.classes[1:], average_precision(torch.from_numpy(logits), yv).tolist())))
        return dict(mAP=mean_over(AP), AP=AP)

    return Stage(
        "probe",
        dict(
            network=network,
            weights=weights_fingerprint(False, str(weights), network),
            train=train.ids,
            val=val.ids,
            side=side,
        ),
        make,
    )


MAPS = {
    "CAM": dict(method="cam"),
    "Grad-CAM": dict(method="grad_cam"),
    "rollout": dict(method="rollout"),
    "DTD, last block": dict(start_block=None),
    "DTD, second half of the blocks": dict(start_block=6),
    "DTD, all blocks": dict(start_block=0),
    "DTD, all blocks, scales 0.5, 1, 1.5": dict(start_block=0, scales=(0.5, 1.0, 1.5)),
    "DTD, all blocks, those scales of 320": dict(start_block=0, scales=(0.5, 1.0, 1.5), long_side=320),
}


def maps_stage(config: Config, chosen: dict, workers: int = 0) -> Stage:
    """Kinds of maps: area under the curve, mIoU of the bare maps at their best background, and mIoU of the
    labels made from them, also with `chosen` values of the rule."""
    voc, rule, threshold = (
        VOCDataset(config.data.voc_root, "choice", labels="npy"),
        table2_rules()["+ EPOM*"],
        config.labels.threshold,
    )
    rules = dict(labels=rule, chosen=dataclasses.replace(rule, **chosen))
    some, ids = ["background", *CLASSES], range(len(voc))

    def make(out: Path, needs: dict) -> dict:
        model = load_classifier(needs["classifier"] / "model.safetensors")[0].to(default_device())
        masks, classes, saliency = (
            [read(i) for i in ids]
            for read in (voc.mask, voc.class_ids, lambda i: voc.saliency(i, next(iter(voc.saliency_folders))))
        )

        def quality(labels: list[torch.Tensor]) -> dict:
            "mIoU over nine classes, ignored pixels left out or taken for background, and their share; percent."

            def over(ignored_as: int) -> float:
                of_class = 100 * iou(confusion(zip(labels, masks), len(voc.classes), ignored_as))
                return mean_over(dict(zip(voc.classes, of_class.tolist())), some)

            return dict(
                miou=over(IGNORE),
                strict=over(0),
                ignored=100 * sum(int((x == IGNORE).sum()) for x in labels) / sum(x.numel() for x in labels),
            )

        rows = [
            dict(
                name="salient pixels, first class",
                labels=quality([trivial_label(s, c, threshold) for s, c in zip(saliency, classes)]),
            )
        ]
        for name, change in MAPS.items():
            start, recipe = time.perf_counter(), dataclasses.replace(config.attention, **change)
            maps = [
                attention_maps(model, voc.image(i), classes[i], recipe).cpu() for i in tqdm(ids, desc=name, leave=False)
            ]
            seconds = (time.perf_counter() - start) / len(voc)
            areas = []
            for own, mask, present in zip(maps, masks, classes):
                known = mask != IGNORE
                areas += [
                    roc_auc_score((mask == c)[known].numpy(), m[known].numpy())
                    for m, c in zip(own, present)
                    if 0 < (mask[known] == c).float().mean() < 1
                ]
            labels = {
                key: quality([pseudo_label(m, c, s, rule) for m, c, s in zip(maps, classes, saliency)])
                for key, rule in rules.items()
            }
            rows.append(
                dict(
                    name=name,
                    auc=float(np.mean(areas)),
                    bare=mean_over(without_nan(best_threshold(maps, voc).iou), some),
                    **labels,
                    seconds=round(seconds, 2),
                )
            )
        return dict(photographs=len(voc), rows=rows)

    return Stage(
        "maps",
        dict(kinds=MAPS, attention=config.attention, rules=rules, threshold=threshold, images=voc.ids),
        make,
        dict(classifier=chain(config, workers).classifier),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--budget", default="cpu", help="BUDGET.json beside this file")
    parser.add_argument("--out", type=Path, default=Path("runs/voc_subset"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    parser.add_argument("--only", nargs="+", default=["distil", "probe", "tune", "maps", "ladder", "seeds", "sweep"])
    parser.add_argument("--record", metavar="NAME", help="keep the results in benchmarks/results/NAME")
    args = parser.parse_args()
    if default_device().type == "cpu":
        timm.layers.set_fused_attn(False)  # its backward pass is the slower one there
    budget, out = json.loads((HERE / f"{args.budget}.json").read_text()), args.out.resolve()
    root = lay_out(args.voc, out)
    cache, student = out / "stages", out / "distil" / "model.safetensors"
    teacher = (args.models / f"{budget['distil']['teacher']}_imagenet.safetensors").resolve()
    recipe = DistilConfig(teacher_weights=str(teacher), **budget["distil"])
    chain = {
        "data.train_split": "train",
        "data.label_source": "npy",
        "classifier.model": recipe.student,
        "classifier.weights": str(student),
        "classifier.pretrained": False,
        "segmenter.weights": str((args.models / "vgg16_imagenet_features.safetensors").resolve()),
        **budget["chain"],
    }
    config = override(preset("voc"), {"data.voc_root": str(root), **chain})
    tuned = override(config, {"data.train_split": "fit", "data.val_split": "holdout"})

    def measure(name: str, stage: Stage, **about) -> dict:
        "Make a stage unless it is there, and write its figures down with what they were made with."
        done = read_done(run(stage, cache))
        figures = about | done["metrics"]
        if "AP" in figures:
            figures["mAP_eight"] = mean_over(figures["AP"], CLASSES)
            print(f"{name}: mAP {figures['mAP']:.1f}, over the eight classes {figures['mAP_eight']:.1f}")
        return keep(out / f"{name}.json", **figures, **{key: done[key] for key in ("seconds", "versions", "device")})

    def measure_classifier(name: str, config: Config) -> None:
        measure(name, chain(config, args.workers).classifier, train=config.data.train_split, val=config.data.val_split)

    if "distil" in args.only:
        start, again = time.perf_counter(), (out / "distil.json").is_file()
        history = distil(
            recipe,
            find_photographs(root / "JPEGImages", root / "ImageSets" / "Segmentation" / "fit.txt"),
            out / "distil",
            workers=args.workers,
        )
        if not again:
            keep(
                out / "distil.json",
                config=budget["distil"],
                history=history,
                seconds_of_last_call=round(time.perf_counter() - start, 1),
                versions=versions(),
                device=device_name(),
            )
    if "probe" in args.only:
        measure("probe", probe_stage(root, recipe.teacher, teacher, "train", "val", 260), train="train", val="val")
        measure(
            "probe_student",
            probe_stage(root, recipe.student, student, "fit", "holdout", config.classifier.crop_size),
            train="fit",
            val="holdout",
        )
    if "tune" in args.only:
        measure_classifier("tune", tuned)
    if "maps" in args.only:
        for row in measure("maps", maps_stage(tuned, budget["rule"], args.workers))["rows"]:
            print(
                f"{row['name']:<40}"
                + (f"AUC {row['auc']:.3f}, bare {row['bare']:.1f}, " if "auc" in row else "")
                + "".join(
                    f"{key} {row[key]['miou']:.1f} (strict {row[key]['strict']:.1f}) "
                    for key in ("labels", "chosen")
                    if key in row
                )
            )
    if "ladder" in args.only:
        measure_classifier("classifier", override(config, {"seed": args.seeds[0]}))
    shared = dict(preset="voc", voc_root=str(root), config=chain, cache=str(cache), workers=args.workers)
    notebooks = {
        "ladder": (
            "ladder",
            dict(
                classes=CLASSES,
                methods=["cam", "grad_cam", "rollout", "dtd"],
                rule=budget["rule"],
                seeds=args.seeds[:1],
            ),
        ),
        "sweep": (
            "sensitivity",
            dict(
                only="holdout",
                sample=HOLDOUT // 2,
                scales=[[0.5], [1.0], [0.5, 1.0], [0.5, 1.0, 1.5]],
                seeds=args.seeds[:1],
            ),
        ),
    }
    for step, (name, own) in notebooks.items():
        if step in args.only:
            result = reproduce(name, out, shared | own)
            print(f"\n{name}, {result['device']}\n\n{format_table(result['rows'])}\n")
    if "seeds" in args.only and len(args.seeds) > 1:
        chosen = ", ".join(["+ Sal + EPOM*", *(f"{key} = {value}" for key, value in budget["rule"].items())])
        own = dict(
            classes=CLASSES,
            methods=["dtd"],
            rule=budget["rule"],
            only=[chosen, "saliency + first label (trivial)"],
            seeds=args.seeds,
        )
        result = reproduce("ladder", out / "seeds", shared | own)
        print(f"\n{format_table(result['rows'])}\n")
        (out / "seeds.json").write_text((out / "seeds" / "ladder.json").read_text())
    if args.record:
        record(out, args.models, args.record)


if __name__ == "__main__":
    main()
