"""One picture of val on its way through the whole method, drawn from the stages of a run: python benchmarks/walk.py --out docs/walk.png"""
import argparse
from pathlib import Path

import matplotlib.pyplot as plt

from wegformer.attention import attention_maps
from wegformer.classifier import load_classifier
from wegformer.figures import class_legend, show_grid, show_image, show_label, show_map
from wegformer.pipeline import chain
from wegformer.splits import open_split
from wegformer.config import preset
from wegformer.stages import run
from wegformer.pseudo_labels import LabelRule, initial_label, pseudo_label
from wegformer.segmentation import load_segmenter, predict
from wegformer.soft_erase import soft_erase


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="toy", help="'toy' or 'smoke'; stages that are missing are made")
    parser.add_argument("--cache", type=Path, help="folder of stages; default: ~/.cache/wegformer/stages")
    parser.add_argument("--image", type=int, help="index in val; default: the first with two classes")
    parser.add_argument("--out", type=Path, default=Path("docs/walk.png"))
    args = parser.parse_args(argv)

    config, rule = preset(args.preset), LabelRule()
    classifier, _, _ = load_classifier(run(chain(config).classifier, args.cache) / "model.safetensors")
    segmenter, _, _ = load_segmenter(run(chain(config).segmenter, args.cache) / "model.safetensors")
    val = open_split(config.data, "val")
    i = args.image if args.image is not None else next(i for i in range(len(val)) if len(val.class_ids(i)) == 2)
    image, classes, saliency = val.image(i), val.class_ids(i), val.saliency(i, next(iter(val.saliency_folders)))
    A = attention_maps(classifier, image, classes, config.attention)
    E = soft_erase(A, rule.erase_rate, rule.renormalize)
    scores = predict(segmenter, image, scales=config.segmenter.test_scales, flip=config.segmenter.test_flip)
    names = [val.classes[c] for c in classes]

    def label(mask):
        return lambda ax: show_label(mask, image, ax)

    columns = {
        f"picture:\n{', '.join(names)}": lambda ax: show_image(image, ax),
        f"DTD map\n{names[0]}": lambda ax: show_map(A[0], image, ax),
        f"soft erase\n{names[0]}": lambda ax: show_map(E[0], image, ax),
        "saliency": lambda ax: show_map(saliency / 255, None, ax),
        "initial\nlabel P": label(initial_label(E, classes, saliency, rule)),
        "pseudo label\n(EPOM)": label(pseudo_label(A, classes, saliency, rule)),
        "trained\nDeepLab": label(scores.argmax(0)),
        "true mask\n(to measure)": label(val.mask(i)),
    }
    more = [[None, lambda ax, k=k: show_map(A[k], image, ax, names[k]), lambda ax, k=k: show_map(E[k], image, ax, names[k]), *[None] * 5] for k in range(1, len(classes))]
    figure = show_grid([list(columns.values()), *more], list(columns), size=1.3)
    class_legend(figure, {0, 255, *classes.tolist()}, val.classes)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110, bbox_inches="tight")
    plt.close(figure)
    print(f"{args.out}: picture {val.ids[i]} of val")


if __name__ == "__main__":
    main()
