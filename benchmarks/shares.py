"""Why does the last block alone not suffice on the embedded data set? Two measurements beside Table 3.

    python benchmarks/shares.py --seeds 0 1 2 --out runs/seeds/shares.json

For each seed's classifier and every `--every`-th training picture: the share of relevance that takes the way through a
block's attention where the block adds it to what was there (the rest passes by, on the residual), median over (picture,
class) pairs; and, at the base rule's constant background of 0.40, the recall and precision of the maps of the last
block and of all blocks, over the pixels of all objects. Stages that are missing are made.
"""

import argparse
import json
from pathlib import Path

import torch
from tqdm import tqdm

import wegformer.all_blocks as all_blocks
from wegformer.relevance import dtd_maps
from wegformer.attention import attention_maps
from wegformer.classifier import load_classifier, normalize, patch_size, resize_to_patches
from wegformer.data import IGNORE
from wegformer.pipeline import chain
from wegformer.splits import open_split
from wegformer.stages import device_name, run, versions
from wegformer.config import override, preset


def attention_shares(
    model: torch.nn.Module,  # timm ViT
    images: torch.Tensor,  # (1, 3, H, W)
    pairs: torch.Tensor,  # (P, 2) int64
) -> torch.Tensor:  # (P, blocks)
    "Share of each block's relevance that goes into its attention, from the sums that the add rule makes."
    heard, original = [], all_blocks.shared_add_rule

    def listen(a, b, y, R):
        parts = original(a, b, y, R)
        sums = [part.sum((-2, -1)).abs() for part in parts]  # (1, C) each
        heard.append(sums[1] / (sums[0] + sums[1]))
        return parts

    all_blocks.shared_add_rule = listen
    try:
        dtd_maps(model, images, pairs, start_block=0)
    finally:
        all_blocks.shared_add_rule = original
    return torch.stack(heard[1::2][::-1], -1)[0]  # each block adds its MLP, then its attention; from the last down


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="toy")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--every", type=int, default=12, help="pictures")
    parser.add_argument("--cache", type=Path, help="folder of stages; default: ~/.cache/wegformer/stages")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = []
    for seed in args.seeds:
        config = override(preset(args.preset), {"seed": seed})
        model, _, _ = load_classifier(run(chain(config).classifier, args.cache) / "model.safetensors")
        train, last = open_split(config.data, "train"), len(model.blocks) - 1
        both = override(config, {"attention.blocks": (0, last)}).attention
        shares, hit, marked, true = [], torch.zeros(2), torch.zeros(2), 0
        for i in tqdm(range(0, len(train), args.every), f"seed {seed}"):
            ids = train.class_ids(i)
            x = normalize(resize_to_patches(train.image(i), config.attention.long_side, patch_size(model)), model)[None]
            shares += [attention_shares(model, x, torch.stack([torch.zeros_like(ids), ids - 1], 1))] if len(ids) else []
            on, mask = attention_maps(model, train.image(i), ids, both) > 0.40, train.mask(i)  # (2, C, H, W)
            on &= mask != IGNORE
            own = mask == ids[:, None, None]
            hit, marked, true = hit + (on & own).sum((1, 2, 3)), marked + on.sum((1, 2, 3)), true + int(own.sum())
        median = (100 * torch.cat(shares)).median(0).values.tolist()
        names = ("all blocks", "last block")
        row = dict(
            seed=seed,
            attention_share=median,
            pictures=len(range(0, len(train), args.every)),
            recall=dict(zip(names, (100 * hit / true).tolist())),
            precision=dict(zip(names, (100 * hit / marked).tolist())),
        )
        results.append(row)
        print(f"seed {seed}: into attention, blocks 0 to {last}, %: {' '.join(f'{v:.0f}' for v in median)}")
        for name in names:
            print(f"  {name} at 0.40: recall {row['recall'][name]:.1f}, precision {row['precision'][name]:.1f}")
    if args.out:
        record = dict(rows=results, preset=args.preset, versions=versions(), device=device_name())
        args.out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
