"""The exported graph: whatever ViT it came from, it says what PyTorch says, and its file says what a reader needs."""

import json

import numpy as np
import pytest
import timm
import torch

from wegformer.classifier import create_classifier
from wegformer.cli import main
from wegformer.data import InputError
from wegformer.export import MapGraph, export_onnx
from wegformer.last_block import class_token_maps
from wegformer.relevance import dtd_maps, dtd_maps_plain
from wegformer.vit import random_vit

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

KINDS = {
    "plain": dict(),
    "any size": dict(dynamic_img_size=True),
    "registers, no class position": dict(reg_tokens=4, no_embed_class=True),
    "LayerScale, norms of query and key": dict(init_values=0.1, qk_norm=True),
    "RMSNorm, QuickGELU": dict(norm_layer=timm.layers.RmsNorm, act_layer=timm.layers.QuickGELU),
    "fc_norm": dict(fc_norm=True),
}


def every(images, classes):
    return torch.cartesian_prod(torch.arange(len(images)), torch.arange(classes))


def read(path, image):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(x) for x in session.run(None, {"image": image.numpy()})], session


@pytest.mark.parametrize("kind", KINDS)
def test_all_classes_at_once_are_those_of_the_plain_procedure(kind):
    model, images = random_vit(32, **KINDS[kind]), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        logits, maps = MapGraph(model)(images)
        assert torch.allclose(logits, model(images))
    assert torch.allclose(maps.flatten(0, 1), dtd_maps_plain(model, images, every(images, 5)), rtol=1e-9, atol=1e-15)


def test_a_distilled_model_explains_the_mean_of_both_heads():
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, num_classes=3, depth=2).double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        _, maps = MapGraph(model)(images)
    assert torch.allclose(maps.flatten(0, 1), dtd_maps_plain(model, images, every(images, 3)), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("kind", ["LayerScale, norms of query and key", "RMSNorm, QuickGELU"])
def test_the_file_says_what_pytorch_says_for_any_number_of_pictures(kind, tmp_path):
    model = random_vit(32, **KINDS[kind]).float()
    told = export_onnx(model, tmp_path / "model.onnx", tolerance=1e-2)  # random weights are far worse than trained ones
    assert told.path.stat().st_size == round(told.megabytes * 1e6)
    for count in (1, 3):
        images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
        (logits, maps), _ = read(told.path, images)
        expected = dtd_maps(model, images, every(images, 5))
        assert torch.allclose(logits, model(images).detach(), atol=1e-3)
        assert (maps.flatten(0, 1) - expected).norm() < 1e-2 * expected.norm()


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    model = create_classifier("vit_toy_patch8_96", 4)
    return model, export_onnx(model, tmp_path_factory.mktemp("export") / "toy.onnx", ["a", "b", "c", "d"]).path


@pytest.mark.parametrize("size", [(96, 96), (128, 80), (64, 200)])
def test_height_and_width_are_free_where_the_model_takes_any(toy, size):
    model, path = toy
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    (logits, maps), _ = read(path, images)
    expected = dtd_maps(model, images, every(images, 4))
    assert maps.shape == (2, 4, size[0] // 8, size[1] // 8) and logits.shape == (2, 4)
    assert torch.allclose(logits, model(images).detach(), atol=1e-4)
    assert (maps.flatten(0, 1) - expected).norm() < 1e-3 * expected.norm()


def test_the_metadata_are_enough_to_prepare_a_picture_and_to_name_what_is_found(toy):
    model, path = toy
    about = {k: v for k, v in read(path, torch.zeros(1, 3, 64, 64))[1].get_modelmeta().custom_metadata_map.items()}
    assert json.loads(about["classes"]) == ["a", "b", "c", "d"] and json.loads(about["patch"]) == [8, 8]
    assert np.allclose(json.loads(about["mean"]), model.pretrained_cfg["mean"])
    assert np.allclose(json.loads(about["std"]), model.pretrained_cfg["std"])


def test_the_callers_model_stays_as_it_is(toy):
    model, _ = toy
    assert all(p.requires_grad for p in model.parameters())


def test_a_fixed_size_is_refused_or_kept(tmp_path):
    model = random_vit(32).float()
    with pytest.raises(InputError, match="expected 32x32, found 64x64"):
        export_onnx(model, tmp_path / "x.onnx", size=(64, 64))
    with pytest.raises(InputError, match="classes has 2 names; expected 5"):
        export_onnx(model, tmp_path / "x.onnx", ["a", "b"])
    with pytest.raises(InputError, match="ResNet is not supported"):
        export_onnx(timm.create_model("resnet_toy"), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_disagrees_leaves_no_file(tmp_path, monkeypatch):
    def wrong(model, image):
        logits, maps = class_token_maps(model, image)
        return logits, 1.01 * maps

    monkeypatch.setattr("wegformer.export.class_token_maps", wrong)
    with pytest.raises(InputError, match="expected 0.001 at most"):
        export_onnx(random_vit(32).float(), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_it_wrote_or_why_not(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "vit_toy_patch8_96", "--out", "toy.onnx", "--size", "64", "64"]) == 0
    assert capsys.readouterr().out.startswith("toy.onnx: 6") and (tmp_path / "toy.onnx").is_file()
    for arguments, said in {
        "": "No model was named",
        "vit_toy_patch8_96 --out maps.pt": "expected a name that ends in .onnx",
        "resnet_toy": "ResNet is not supported",
        "vit_toy_patch9": "is not known to timm",
        "none.safetensors": "none.safetensors",
        "vit_toy_patch8_96 --size 60 64": "multiples of the patch size 8x8, found 60x64",
    }.items():
        assert main(["export", *arguments.split()]) == 2
        assert said in capsys.readouterr().err
