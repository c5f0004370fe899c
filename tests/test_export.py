"""The exported graph: whatever ViT it came from, it says what PyTorch says, and its file says what a reader needs."""

import dataclasses
import json

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wegformer.attention import min_max
from wegformer.classifier import create_classifier
from wegformer.cli import main
from wegformer.data import InputError
from wegformer.export import MapGraph, export_onnx
from wegformer.label_graph import label_graph
from wegformer.last_block import class_token_maps
from wegformer.pseudo_labels import LABEL_RULES, LabelRule, pseudo_label
from wegformer.relevance import dtd_maps, dtd_maps_plain
from wegformer.soft_erase import soft_erase
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
    told = export_onnx(model, tmp_path / "model.onnx")
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


RULES = [
    *LABEL_RULES.values(),
    LabelRule(renormalize=False),
    LabelRule(background="constant"),
    LabelRule(conflict_thr=None, epom_map="raw"),
    LabelRule(min_foreground=None, fg_thr=0.0),
    LabelRule(conflict_min=3, uncertain="off"),
    LabelRule(min_foreground=0.4, t_fg=0.9),
    LabelRule(uncertain_without_saliency=True, background_score=0.5, uncertain_thr=0.4),
]


@settings(max_examples=150, deadline=None)
@given(
    rule=st.sampled_from(RULES),
    seed=st.integers(0, 2**32 - 1),
    power=st.floats(0.2, 4),
    steps=st.sampled_from([0, 2, 8]),  # few different values: ties, plateaus
    empty=st.booleans(),
    seen=st.booleans(),
)
def test_the_label_as_a_graph_is_pseudo_label_on_every_pixel(rule, seed, power, steps, empty, seen):
    g = torch.Generator().manual_seed(seed)
    H, W = (int(n) for n in torch.randint(2, 30, (2,), generator=g))
    maps, saliency = torch.zeros(2, 6, H, W), (torch.rand(2, H, W, generator=g) * 256).to(torch.uint8)
    owned = [torch.rand(6, generator=g).argsort()[: 1 + int(torch.randint(4, (1,), generator=g))] for _ in range(2)]
    for k, classes in enumerate(owned):
        a = torch.rand(len(classes), H, W, generator=g) ** power
        maps[k, classes] = (a * steps).round() / steps if steps else a
        maps[k, classes[0]] *= not empty
    erased, labels = label_graph(maps, saliency if seen else None, rule)
    for k, classes in enumerate(owned):
        ids = classes.sort().values
        assert torch.equal(labels[k], pseudo_label(maps[k, ids], ids + 1, saliency[k] if seen else None, rule))
        if rule.erase_rate is not None:
            assert torch.equal(erased[k], soft_erase(maps[k], rule.erase_rate, rule.renormalize))


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("name", ["paper", "drs"])  # between them, every step
def test_the_file_gives_the_label_of_its_own_maps(name, seen, tmp_path):
    model, rule = create_classifier("vit_toy_patch8_96", 4), LabelRule.preset(name)
    path = export_onnx(model, tmp_path / "label.onnx", rule=rule, saliency=seen).path
    g = torch.Generator().manual_seed(5)
    images, saliency = (
        torch.randn(2, 3, 64, 96, generator=g),
        (torch.rand(2, 111, 75, generator=g) * 256).to(torch.uint8),
    )
    present = torch.tensor([[True, False, True, False], [False, False, False, True]])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = dict(image=images.numpy(), present=present.numpy()) | (dict(saliency=saliency.numpy()) if seen else {})
    assert {i.name for i in session.get_inputs()} == set(inputs)
    _, maps, attention, _, labels = map(torch.from_numpy, session.run(None, inputs))
    large = torch.nn.functional.interpolate(maps, (111, 75) if seen else (64, 96), mode="bilinear", align_corners=False)
    assert torch.allclose(attention, min_max(large) * present[..., None, None], atol=1e-5)
    for a, own, s, label in zip(attention, present, saliency if seen else (None, None), labels):
        assert torch.equal(label, pseudo_label(a[own], own.nonzero()[:, 0] + 1, s, rule))
    assert json.loads(session.get_modelmeta().custom_metadata_map["rule"]) == dataclasses.asdict(rule)


def test_labels_without_saliency_need_a_rule(tmp_path):
    model = create_classifier("vit_toy_patch8_96", 4)
    with pytest.raises(InputError, match="saliency is False, .*expected a rule"):
        export_onnx(model, tmp_path / "maps.onnx", saliency=False)
    assert not list(tmp_path.iterdir())


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
    with pytest.raises(InputError, match="disagrees with the model"):
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
