"""What the live page takes from the package: presets, colours, drawn samples, and the exported ViT.

python web/build.py           # src/rules.json and dist/; `make web` then checks and bundles the page
python web/build.py --rules   # src/rules.json alone: all that labels.ts needs
"""

import argparse
import dataclasses
import json
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from wegformer.classifier import create_classifier
from wegformer.config import preset
from wegformer.data import IGNORE, VOCDataset
from wegformer.export import export_onnx
from wegformer.figures import CLASS_COLOURS
from wegformer.pseudo_labels import LABEL_RULES
from wegformer.toyvoc import kinds_of, make_toy_voc

HERE = Path(__file__).resolve().parent
MODEL, SET = "vit_toy_patch8_96", "initial"  # the ViT whose weights the package ships, and the set that it knows
DRAWN, SHOWN = 40, 6  # pictures to choose from, and samples on the page


def write_rules(path: Path) -> None:
    "Every preset of the label rule, by name."
    rules = {name: dataclasses.asdict(rule) for name, rule in LABEL_RULES.items()}
    path.write_text(json.dumps(rules, indent=1) + "\n")


def varied(classes: list[set[int]], count: int) -> list[int]:
    "Indices of pictures that show many classes between them: the next has most that were seldom shown, the first wins."
    chosen, times = [], dict.fromkeys(set().union(*classes), 0)
    while len(chosen) < min(count, len(classes)):
        rest = [i for i in range(len(classes)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: sum(0.5 ** times[c] for c in classes[i])))
        for c in classes[chosen[-1]]:
            times[c] += 1
    return chosen


def write_samples(out: Path) -> list[dict]:
    "Pictures and saliency maps as PNG, which loses nothing; the page's list of them."
    voc = VOCDataset(make_toy_voc(which=SET, train=1, val=DRAWN), "val", labels="xml")
    saliency, samples = next(iter(voc.saliency_folders)), []
    for i in varied([set(voc.class_ids(i).tolist()) for i in range(len(voc))], SHOWN):
        name = voc.ids[i]
        Image.fromarray(np.asarray(voc.image(i)).transpose(1, 2, 0)).save(out / f"{name}.png")
        Image.fromarray(np.asarray(voc.saliency(i, saliency))).save(out / f"{name}_saliency.png")
        files = dict(image=f"samples/{name}.png", saliency=f"samples/{name}_saliency.png")
        samples.append(files | dict(classes=voc.class_ids(i).tolist()))
    return samples


def write_page(dist: Path) -> None:
    "The graph, the samples, and what else the page needs to know."
    (dist / "samples").mkdir(parents=True, exist_ok=True)
    print(export_onnx(create_classifier(MODEL, None), dist / "model.onnx", list(kinds_of(SET))))
    colormap = matplotlib.colormaps["inferno"](np.arange(256), bytes=True)[:, :3]  # as `figures.show_map` has it
    about = dict(
        long_side=preset("toy").attention.long_side,
        colours=CLASS_COLOURS.tolist(),
        ignore=IGNORE,
        colormap=colormap.tolist(),
        samples=write_samples(dist / "samples"),
    )
    (dist / "page.json").write_text(json.dumps(about))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rules", action="store_true", help="write src/rules.json alone")
    rules_only = parser.parse_args().rules
    write_rules(HERE / "src/rules.json")
    if not rules_only:
        write_page(HERE / "dist")


if __name__ == "__main__":
    main()
