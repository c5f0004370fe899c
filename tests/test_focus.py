"The encoder in the wheel's ONNX file becomes timm's: names, transposed products, joined queries, keys and values."

import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from onnx import helper, numpy_helper

from wegformer.data import InputError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks/voc_subset"))
import focus  # noqa: E402  (a script, not a package)


def small_dinov2():
    torch.manual_seed(0)
    net = timm.create_model(
        focus.MODEL,
        pretrained=False,
        num_classes=0,
        img_size=56,
        dynamic_img_size=True,
        embed_dim=24,
        num_heads=3,
        depth=2,
    )
    with torch.no_grad():
        for weight in net.parameters():  # else many are equal: zeros, ones
            weight.copy_(torch.randn_like(weight))
    return net


def as_the_file_has_it(weights):
    "A graph with timm's weights under the file's names; what it computes is left out."
    held, nodes = {}, []

    def product(node, weight):
        held[f"onnx::MatMul_{len(nodes)}"] = weight.T
        nodes.append(helper.make_node("MatMul", ["x", f"onnx::MatMul_{len(nodes)}"], ["y"], name=f"{node}/MatMul"))

    w = {name: a.numpy() for name, a in weights.items()}
    held["backbone.embeddings.cls_token"] = w["cls_token"]
    held["onnx::Concat_7"], held["onnx::Reshape_8"] = w["pos_embed"][:, :1], w["pos_embed"][:, 1:]
    for p in ("weight", "bias"):
        held[f"backbone.embeddings.patch_embeddings.projection.{p}"] = w[f"patch_embed.proj.{p}"]
        held[f"backbone.layernorm.{p}"] = w[f"norm.{p}"]
    for i in range(2):
        path, node, b = f"backbone.encoder.layer.{i}.", f"/backbone/encoder/layer.{i}", f"blocks.{i}."
        for k in (1, 2):
            held[f"{path}layer_scale{k}.lambda1"] = w[f"{b}ls{k}.gamma"]
            for p in ("weight", "bias"):
                held[f"{path}norm{k}.{p}"] = w[f"{b}norm{k}.{p}"]
        for n, part, bias in zip(
            ("query", "key", "value"), *(np.split(w[f"{b}attn.qkv.{p}"], 3) for p in ("weight", "bias"))
        ):
            product(f"{node}/attention/attention/{n}", part)
            held[f"{path}attention.attention.{n}.bias"] = bias
        for theirs, ours in (("attention/output/dense", "attn.proj"), ("mlp/fc1", "mlp.fc1"), ("mlp/fc2", "mlp.fc2")):
            product(f"{node}/{theirs}", w[f"{b}{ours}.weight"])
            held[f"{path}{theirs.replace('/', '.')}.bias"] = w[f"{b}{ours}.bias"]
    tensors = [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in held.items()]
    return helper.make_graph(nodes, "g", [], [], tensors)


def test_every_weight_arrives_where_timm_has_it():
    net = small_dinov2()
    found = focus.encoder_weights(as_the_file_has_it(net.state_dict()))
    expected = net.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_plain_grid_is_timms_where_nothing_is_resized():
    net, image = small_dinov2().eval(), torch.randn(1, 3, 56, 56)
    with torch.inference_mode():
        expected = net.forward_features(image)
    assert torch.allclose(focus.with_plain_grid(net, image), expected, atol=1e-4)


def test_another_wheel_is_refused(tmp_path):
    (tmp_path / "a.whl").write_bytes(b"another")
    with pytest.raises(InputError, match="a.whl has the SHA-256 .*expected 90a0b02e"):
        focus.convert(tmp_path / "a.whl", tmp_path / "out")
    assert not (tmp_path / "out").exists()
