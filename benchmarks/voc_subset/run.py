"""What the method reaches on real photographs: from image-level labels to masks, on a part of PASCAL VOC 2012.

    python benchmarks/voc_subset/run.py --voc VOC2012 --models MODELS --budget cpu --out runs/voc_subset

VOC2012 is a folder in VOC's layout, with saliency maps; MODELS holds tf_efficientnet_lite2_imagenet.safetensors (the teacher) and
vgg16_imagenet_features.safetensors (DeepLab's initial weights). Every step is skipped where its result lies in OUT, and goes on where it was killed:

    data      a VOC folder of links, whose lists leave out training photographs with painted-in boxes (painted.txt), and name a hold-out and a quarter of it
    distil    a ViT learns from the teacher, on the training photographs without the hold-out, without labels
    probe     what the teacher's own features know: a linear classifier on them, for comparison alone
    tune      the classifier on the rest of the training photographs, measured on the hold-out: where its recipe was chosen
    maps      which heat map points at the object: that classifier on a quarter of the hold-out
    ladder    classifier, maps, labels, networks: nbs/extras/ladder.ipynb, measured on val once
    sweep     the label rule's values on the hold-out's maps: nbs/extras/sensitivity.ipynb
    record    all results and small figures into a folder, without a path of this machine (only when asked for: --record FOLDER)

Val photographs enter neither distillation nor training nor a choice. The configuration of a budget is BUDGET.json beside this file.
"""
import argparse
import dataclasses
import json
import os
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
from wegformer.pipeline import Config, classifier_stage, device_name, override, preset, read_done, run, versions
from wegformer.pseudo_labels import pseudo_label, table2_rules
from wegformer.reproduce import format_table, reproduce
from wegformer.training import default_device

HERE = Path(__file__).parent
CLASSES = ["cat", "chair", "cow", "dog", "horse", "person", "sheep", "sofa"]  # those with 10 or more val photographs
TEACHER = "tf_efficientnet_lite2"
HOLDOUT = 200  # training photographs


def lay_out(voc: Path, out: Path) -> Path:
    "A VOC folder of links to `voc` with lists of its own: train (clean), fit and holdout (its two parts), val."
    painted = set((HERE / "painted.txt").read_text().split())
    train, val = [i for i in read_split(voc, "train_aug") if i not in painted], read_split(voc, "val")
    assert not set(train) & set(val), "a photograph is in train and in val"
    root = out / "VOC2012"
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True, exist_ok=True)
    for name in ("JPEGImages", "SegmentationClassAug", "saliency", "cls_labels.npy"):
        if not (root / name).exists():
            os.symlink((voc / name).resolve(), root / name)
    held = set(np.random.default_rng(0).permutation(train)[:HOLDOUT].tolist())
    fit, holdout = [i for i in train if i not in held], [i for i in train if i in held]
    for split, ids in dict(train=train, fit=fit, holdout=holdout, choice=holdout[::4], val=val).items():
        (lists / f"{split}.txt").write_text("\n".join(ids) + "\n")
    return root


def keep(path: Path, **result) -> dict:
    "Write a result with the versions and the device."
    result |= dict(versions=versions(), device=device_name())
    with atomic_write(path, "w") as handle:
        json.dump(result, handle, indent=1)
    return result


def record(out: Path, models: Path, target: Path) -> None:
    "Copy every result that is there, and its figures, made smaller."
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(out.glob("*.json")):
        (target / path.name).write_text(path.read_text().replace(str(models.resolve()), "MODELS").replace(str(out), "OUT").rstrip() + "\n")
    for path in sorted(out.glob("*_*.png")):
        picture = Image.open(path).convert("RGB")
        picture.thumbnail((1000, 1000))
        picture.quantize(128).save(target / path.name, optimize=True)


def named_ap(ap: torch.Tensor, names: tuple[str, ...]) -> dict:
    values = without_nan(dict(zip(names[1:], ap.tolist())))
    return dict(mAP=mean_over(values), mAP_eight=mean_over(values, CLASSES), AP=values)


@torch.inference_mode()
def probe(root: Path, weights: Path, out: Path) -> dict:
    "A logistic regression for each class on the teacher's pooled features of whole photographs, as it stands: the teacher's own mAP."
    if (out / "probe.json").is_file():
        return json.loads((out / "probe.json").read_text())
    start, device = time.perf_counter(), default_device()
    teacher = create_classifier(TEACHER, None, False, weights).to(device)
    train, val = (VOCDataset(root, split) for split in ("train", "val"))

    def features(voc: VOCDataset) -> np.ndarray:
        rows = []
        for i in tqdm(range(len(voc)), desc=f"features of {voc.split}"):
            x = normalize(F.resize(voc.image(i), [260, 260], antialias=True), teacher)[None].to(device)
            rows.append(teacher.forward_head(teacher.forward_features(x), pre_logits=True)[0].float().cpu())
        return torch.stack(rows).numpy()

    x, y, xv, yv = features(train), np.stack([train.labels(i) for i in range(len(train))]), features(val), torch.stack([val.labels(i) for i in range(len(val))])
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, xv = (x - mean) / std, (xv - mean) / std
    logits = np.full(yv.shape, -np.inf, dtype=np.float32)
    for c in range(y.shape[1]):
        if 0 < y[:, c].sum() < len(y):
            logits[:, c] = LogisticRegression(C=1e-3, max_iter=1000).fit(x, y[:, c]).decision_function(xv)
    return keep(out / "probe.json", what="linear probe on the teacher's features, val", **named_ap(average_precision(torch.from_numpy(logits), yv), val.classes),
                seconds=round(time.perf_counter() - start, 1))


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


def compare_maps(root: Path, classifier: Path, config: Config, out: Path) -> dict:
    "Kinds of maps: area under the curve, mIoU of the bare maps at the background that suits them best, mIoU of the labels made from them."
    if (out / "maps.json").is_file():
        return json.loads((out / "maps.json").read_text())
    voc, model = VOCDataset(root, "choice", labels="npy"), load_classifier(classifier)[0].to(default_device())
    some, ids = ["background", *CLASSES], range(len(voc))
    masks, classes, saliency = ([read(i) for i in ids] for read in (voc.mask, voc.class_ids, lambda i: voc.saliency(i, next(iter(voc.saliency_folders)))))

    def quality(labels: list[torch.Tensor]) -> dict:
        "mIoU over nine classes of the pixels that are labelled, and the share of those that are not; percent."
        values = (100 * iou(confusion(zip(labels, masks), len(voc.classes)))).tolist()
        return dict(miou=mean_over(dict(zip(voc.classes, values)), some), ignored=100 * sum(int((x == IGNORE).sum()) for x in labels) / sum(x.numel() for x in labels))

    rows = [dict(name="salient pixels, first class", labels=quality([(s > config.labels.threshold) * int(c[0]) for s, c in zip(saliency, classes)]))]
    for name, change in MAPS.items():
        start, recipe = time.perf_counter(), dataclasses.replace(config.attention, **change)
        maps = [attention_maps(model, voc.image(i), classes[i], recipe).cpu() for i in tqdm(ids, desc=name, leave=False)]
        seconds = (time.perf_counter() - start) / len(voc)
        areas = []
        for own, mask, present in zip(maps, masks, classes):
            known = mask != IGNORE
            areas += [roc_auc_score((mask == c)[known].numpy(), m[known].numpy()) for m, c in zip(own, present) if 0 < (mask[known] == c).float().mean() < 1]
        labels = [pseudo_label(m, c, s, table2_rules()["+ EPOM*"]) for m, c, s in zip(maps, classes, saliency)]
        rows.append(dict(name=name, auc=float(np.mean(areas)), bare=mean_over(without_nan(best_threshold(maps, voc).iou), some), labels=quality(labels), seconds=round(seconds, 2)))
    return keep(out / "maps.json", what=f"{len(voc)} photographs of the hold-out, by a classifier that never saw them", rows=rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--budget", default="cpu", help="BUDGET.json beside this file")
    parser.add_argument("--out", type=Path, default=Path("runs/voc_subset"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    parser.add_argument("--only", nargs="+", default=["distil", "probe", "tune", "maps", "ladder", "sweep"])
    parser.add_argument("--record", type=Path, help="folder for the results that are to be kept")
    args = parser.parse_args()
    if default_device().type == "cpu":
        timm.layers.set_fused_attn(False)  # its backward pass is the slower one there
    budget, out = json.loads((HERE / f"{args.budget}.json").read_text()), args.out.resolve()
    root = lay_out(args.voc, out)
    cache, student = out / "stages", out / "distil" / "model.safetensors"
    recipe = DistilConfig(teacher=TEACHER, teacher_weights=str((args.models / f"{TEACHER}_imagenet.safetensors").resolve()), **budget["distil"])
    chain = {"data.train_split": "train", "data.label_source": "npy", "classifier.model": recipe.student, "classifier.weights": str(student), "classifier.pretrained": False,
             "segmenter.weights": str((args.models / "vgg16_imagenet_features.safetensors").resolve()), **budget["chain"]}

    config = override(preset("voc"), {"data.voc_root": str(root), **chain})

    def classify(name: str, config: Config) -> Path:
        "Train the classifier unless it is there, write down its average precision, and say where it is."
        folder = run(classifier_stage(config, args.workers), cache)
        metrics = read_done(folder)["metrics"]
        keep(out / f"{name}.json", train=config.data.train_split, val=config.data.val_split, **metrics, mAP_eight=mean_over(metrics["AP"], CLASSES))
        print(f"classifier on {config.data.val_split}: mAP {metrics['mAP']:.1f}, over the eight classes {mean_over(metrics['AP'], CLASSES):.1f}")
        return folder / "model.safetensors"

    if "distil" in args.only:
        start, again = time.perf_counter(), (out / "distil.json").is_file()
        history = distil(recipe, find_photographs(root / "JPEGImages", root / "ImageSets" / "Segmentation" / "fit.txt"), out / "distil", workers=args.workers)
        if not again:
            keep(out / "distil.json", config=budget["distil"], history=history, seconds_of_last_call=round(time.perf_counter() - start, 1))
    if "probe" in args.only:
        result = probe(root, args.models / f"{TEACHER}_imagenet.safetensors", out)
        print(f"the teacher's linear probe: mAP {result['mAP']:.1f}, over the eight classes {result['mAP_eight']:.1f}")
    if "tune" in args.only or "maps" in args.only:
        tuned = classify("tune", override(config, {"data.train_split": "fit", "data.val_split": "holdout"}))
    if "maps" in args.only:
        for row in compare_maps(root, tuned, config, out)["rows"]:
            print(f"{row['name']:<40}" + (f"AUC {row['auc']:.3f}, bare {row['bare']:.1f}, " if "auc" in row else "") + f"labels {row['labels']['miou']:.1f}")
    if "ladder" in args.only:
        classify("classifier", override(config, {"seed": args.seeds[0]}))
    shared = dict(preset="voc", voc_root=str(root), config=chain, cache=str(cache), workers=args.workers)
    notebooks = {"ladder": ("ladder", dict(classes=CLASSES, methods=["cam", "grad_cam", "rollout", "dtd"], seeds=args.seeds)),
                 "sweep": ("sensitivity", dict(only="holdout", sample=HOLDOUT // 2, scales=[[0.5], [1.0], [0.5, 1.0], [0.5, 1.0, 1.5]], seeds=args.seeds[:1]))}
    for step, (name, own) in notebooks.items():
        if step in args.only:
            result = reproduce(name, out, shared | own)
            print(f"\n{name}, {result['device']}\n\n{format_table(result['rows'])}\n")
    if args.record:
        record(out, args.models, args.record)


if __name__ == "__main__":
    main()
