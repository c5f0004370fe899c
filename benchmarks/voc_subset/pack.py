"""Pack what run.py needs into archives of a limited size, for a machine that only files can be sent to.

    python benchmarks/voc_subset/pack.py --voc VOC2012 --models MODELS --out packed --limit 64
    for a in packed/*.tar; do tar -xf $a -C DATA; done      # over there: DATA/VOC2012 and DATA/models

Each archive stands alone. JPEG and PNG are compressed already, so the archives are not.
"""

import argparse
import tarfile
from pathlib import Path

from wegformer.data import InputError, read_split

MODELS = ("tf_efficientnet_lite2_imagenet.safetensors", "vgg16_imagenet_features.safetensors")


def files(voc: Path, models: Path) -> list[tuple[Path, str]]:  # (file, its name in the archive)
    names = [n for split in ("train_aug", "val") for n in read_split(voc, split)]
    inside = [
        Path("cls_labels.npy"),
        *(Path("ImageSets/Segmentation") / f"{split}.txt" for split in ("train_aug", "val")),
    ]
    inside += [Path("JPEGImages") / f"{n}.jpg" for n in names] + [
        Path("SegmentationClassAug") / f"{n}.png" for n in names
    ]
    inside += sorted(p.relative_to(voc) for p in (voc / "saliency").rglob("*.png"))
    return [(models / name, f"models/{name}") for name in MODELS] + [(voc / path, f"VOC2012/{path}") for path in inside]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=float, default=64, help="MiB an archive")
    args = parser.parse_args()
    room = int(args.limit * 2**20) - 10_240  # a tar ends with a block of zeros
    archives, left = [[]], room
    for path, name in files(args.voc, args.models):
        size = 512 + (path.stat().st_size + 511) // 512 * 512  # a header, and whole blocks
        if size > room:
            raise InputError(f"File {path} takes {size / 2**20:.1f} MiB; expected at most --limit {args.limit:g}.")
        if size > left:
            archives, left = [*archives, []], room
        archives[-1].append((path, name))
        left -= size
    args.out.mkdir(parents=True, exist_ok=True)
    for k, content in enumerate(archives):
        target = args.out / f"voc_subset_{k}.tar"
        with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as archive:
            for path, name in content:
                archive.add(path.resolve(), name)
        print(f"{target}: {len(content)} files, {target.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
