"""Peak memory and time of `wegformer predict` on one large photograph, with a network of random weights.

    python benchmarks/predict.py --decoder 96                     # the toy ResNet, 6000 x 4000 pixels, 21 classes
    python benchmarks/predict.py --backbone resnet101 --record    # appended to benchmarks/results/predict.csv

The command runs in a process of its own, whose largest resident memory (VmHWM) is counted: interpreter, libraries,
network, decoded photograph, probabilities, mask and overlay. Linux alone tells it. A network's answers do not depend on
its weights as to memory, and hardly as to time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import records
import torch
from PIL import Image

from wegformer.segmentation import SegmenterConfig, create_segmenter
from wegformer.stages import processor_name
from wegformer.tiles import Tiling
from wegformer.training import save_weights

COMMAND = """
import json, sys, time
from pathlib import Path
from wegformer.cli import main
def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 2**20
before, start = resident("VmRSS"), time.perf_counter()
status = main(["predict", *sys.argv[1:]])
seconds, processor = time.perf_counter() - start, time.process_time()
print(json.dumps(dict(status=status, seconds=seconds, processor_seconds=processor, peak_gib=resident("VmHWM"),
                      before_gib=before)))
"""


def draw(path, width, height):
    "A photograph with something of every size in it."
    rng = np.random.default_rng(0)
    layers = [Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize((width, height)) for n in (6, 60)]
    Image.blend(*layers, 0.3).save(path, quality=90)


def write_network(path, args):
    "The file of a network that has learnt nothing."
    torch.manual_seed(0)
    config = SegmenterConfig(
        network=args.network,
        backbone=args.backbone,
        pretrained=False,
        decoder_channels=args.decoder,
        test_scales=tuple(args.scales),
        test_flip=args.flip,
        crf=args.crf,
        precision=args.precision,
    )
    names = ["background", *(f"class {k}" for k in range(1, args.classes))]
    header = dict(config=json.dumps(asdict(config)), classes=json.dumps(names))
    save_weights(create_segmenter(config, args.classes), path, **header)


def measure(args):
    "One line of the record."
    tile = ["--tile", str(args.tile), "--overlap", str(args.overlap)]
    with tempfile.TemporaryDirectory() as folder:
        photograph, network = Path(folder, "large.jpg"), Path(folder, "model.safetensors")
        draw(photograph, args.width, args.height)
        write_network(network, args)
        words = [str(photograph), "--segmenter", str(network), "--out", f"{folder}/masks", *tile]
        done = subprocess.run([sys.executable, "-c", COMMAND, *words], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        told = json.loads(done.stdout.splitlines()[-1])
        if told.pop("status"):
            sys.exit(done.stderr)
        assert Image.open(f"{folder}/masks/large.png").size == (args.width, args.height)
    setting = {k: v for k, v in vars(args).items() if k != "record"}
    return setting | {k: round(v, 2) for k, v in told.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="deeplabv3plus")
    parser.add_argument("--backbone", default="resnet_toy")
    parser.add_argument("--decoder", type=int, default=256, help="channels")
    parser.add_argument("--classes", type=int, default=21, help="with the background")
    parser.add_argument("--width", type=int, default=6000)
    parser.add_argument("--height", type=int, default=4000)
    parser.add_argument("--tile", type=int, default=Tiling.tile)
    parser.add_argument("--overlap", type=int, default=Tiling.overlap)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0])
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--crf", action="store_true")
    parser.add_argument("--precision", default="no", choices=["auto", "bf16", "no"])
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/predict.csv")
    args = parser.parse_args()
    row = measure(args)
    print(row)
    if args.record:
        about = dict(device=processor_name(), threads=torch.get_num_threads(), torch=torch.__version__)
        print(records.append(dict(rows=[row], setting=about), "predict"))


if __name__ == "__main__":
    main()
