"""What the maps add to an exported classifier: python benchmarks/export.py

Writes benchmarks/results/export.csv. For each model, two graphs are made from the same random weights: logits alone, by
PyTorch's exporter, and logits with the maps of all classes, by `export_onnx`. onnxruntime runs both on one thread, in
turns, so that whatever else the machine does falls on both; `ratio` is the median of the ratios of neighbours.
"""

import argparse
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch
from records import RESULTS, write_csv

import wegformer.networks.toy  # noqa: F401 (registers with timm)
from wegformer.export import export_onnx
from wegformer.stages import processor_name

MODELS = {"vit_toy_patch8_96": 128, "deit_small_patch16_224": 224, "deit_base_patch16_224": 224}  # name -> pixels


def logits_alone(model, size):
    "The classifier as PyTorch exports it."
    file = io.BytesIO()
    image = torch.randn(1, 3, size, size)
    torch.onnx.export(model, (image,), file, input_names=["image"], output_names=["logits"], dynamo=True, verbose=False)
    return file.getvalue()


def session(file):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def seconds(graph, image):
    "Processor time of one run."
    start = time.process_time()
    graph.run(None, {"image": image})
    return time.process_time() - start


def measure(name, classes, repeats, folder):
    "One line of the record."
    torch.manual_seed(0)
    size = MODELS[name]
    model = timm.create_model(name, num_classes=classes, img_size=size).eval().requires_grad_(False)
    told = export_onnx(model, Path(folder, "maps.onnx"), size=(size, size))
    plain, both = session(logits_alone(model, size)), session(told.path)
    image = np.random.default_rng(0).standard_normal((1, 3, size, size), np.float32)
    pairs = np.array([[seconds(plain, image), seconds(both, image)] for _ in range(repeats + 2)])[2:]
    ratios = pairs[:, 1] / pairs[:, 0]
    return {
        "model": name,
        "size": size,
        "classes": classes,
        "logits_ms": round(float(1e3 * np.median(pairs[:, 0])), 1),
        "with_maps_ms": round(float(1e3 * np.median(pairs[:, 1])), 1),
        "ratio": round(float(np.median(ratios)), 3),
        "ratio_q20": round(float(np.quantile(ratios, 0.2)), 3),
        "ratio_q80": round(float(np.quantile(ratios, 0.8)), 3),
        "megabytes": round(told.megabytes, 1),
        "repeats": repeats,
        "onnxruntime": onnxruntime.__version__,
        "device": processor_name(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--classes", type=int, nargs="+", default=[20], help="of the head: each has a map")
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            for classes in args.classes:
                rows.append(measure(name, classes, args.repeats, folder))
                print(rows[-1], flush=True)
    write_csv(RESULTS / "export.csv", list(rows[0]), rows)


if __name__ == "__main__":
    main()
