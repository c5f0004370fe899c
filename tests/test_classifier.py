import timm
import pytest
import torch
from torch import nn

import wegformer.networks.toy
from wegformer.classifier import (
    ClassificationSet,
    ClassifierConfig,
    RandomLongSide,
    create_classifier,
    load_classifier,
    mean_average_precision,
    mean_std,
    normalize,
    check_blocks,
    check_crop,
    patch_size,
    predict_logits,
    resize_to_patches,
    train_classifier,
    train_transform,
)
from wegformer.data import InputError, VOCDataset
from wegformer.training import save_weights


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (333, 500), (1, 500), (97, 101)])
@pytest.mark.parametrize("patch", [8, 14, 16, 32])
def test_sides_are_rounded_up_to_patches(size, patch):
    for long_side in (250.0, 500.0, 750.0):
        h, w = resize_to_patches(torch.zeros(3, *size, dtype=torch.uint8), long_side, patch).shape[1:]
        for side, new in zip(size, (h, w)):
            exact = side * long_side / max(size)
            assert new % patch == 0 and exact - 1e-4 <= new < exact + patch


def test_long_side_is_random_within_range():
    images = [RandomLongSide(40, 50)(torch.zeros(3, 60, 90)) for _ in range(60)]
    sides = {max(i.shape) for i in images}
    assert min(sides) >= 40 and max(sides) <= 50 and len(sides) > 5
    assert all(abs(i.shape[1] / i.shape[2] - 60 / 90) < 0.02 for i in images)


def test_training_views(toy_root):
    net = timm.create_model("vit_toy_patch8_96")
    config = ClassifierConfig(crop_size=160, resize=(64, 96))
    data = ClassificationSet(VOCDataset(toy_root, "train"), train_transform(config, net))
    image, labels = data[0]
    assert image.shape == (3, 160, 160) and image.dtype == torch.float32 and labels.sum() >= 1
    # the crop is larger than any picture: one plain colour lies around it
    border = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], 1)
    assert len(border.round(decimals=3).unique(dim=1).T) == 1 or (border == border[:, :1]).all(0).float().mean() > 0.5


def test_normalize_uses_the_models_statistics():
    net = timm.create_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k", pretrained=False)
    assert mean_std(net) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert torch.allclose(normalize(torch.full((3, 2, 2), 255, dtype=torch.uint8), net), torch.ones(3, 2, 2))


@pytest.mark.parametrize(
    "name, words",
    [
        ("deit_base_patch16_223", "not known to timm .* deit_base_patch16_224"),
        ("vit_relpos_small_patch16_224", "does not take|its features are"),
        ("mixer_s32_224", "does not take|its features are"),
        ("vgg11", r"its features are \(1, 512, 3, 4\), its head reads 4096"),
        ("mobilenetv3_small_050", "its features are .* its head reads 1024"),
        ("resnetv2_50", "its head is of type Conv2d"),
        ("levit_128s", "its head is of type tuple"),
        ("halonet26t", "does not take a picture of 96x128"),
        ("convnext_atto", "more than an average"),
        ("poolformer_s12", "more than an average"),
    ],
)
def test_what_cannot_be_explained_is_refused(name, words):
    with pytest.raises(InputError, match=words):
        create_classifier(name, pretrained=False)


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_siglip_224", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224"]
)
def test_other_transformers_take_photographs_of_any_shape(name):
    net = create_classifier(name, 4, pretrained=False)
    patch = patch_size(net)
    assert patch == net.patch_embed.patch_size[0] > 1
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 5 * patch, 7 * patch)).shape == (1, 4)


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet_toy", "seresnet18", "regnetx_002", "mobilenetv2_050", "efficientnet_b0", "densenet121"]
)
@pytest.mark.parametrize("stride", [None, 16, 8])
def test_cnns(name, stride):
    "Any size, the stride that was asked for, and a map whose mean is the logit without its bias."
    if name == "densenet121" and stride:
        with pytest.raises(InputError, match=f"cannot be made with output_stride={stride}"):
            create_classifier(name, 3, pretrained=False, output_stride=stride)
        return
    torch.manual_seed(0)
    net = create_classifier(name, 3, pretrained=False, output_stride=stride)
    x, head = torch.randn(2, 3, 97, 130), net.get_classifier()
    with torch.no_grad():
        features = net.forward_features(x)
        for pixels, cells in zip((97, 130), features.shape[2:]):
            assert cells - pixels // (stride or 32) in (0, 1)
        maps = torch.einsum("bdhw,cd->bchw", features, head.weight)
        assert torch.allclose(maps.mean((2, 3)) + head.bias, net(x), atol=1e-4)
    assert patch_size(net) == 1 and not net.training


@pytest.mark.parametrize(
    "name, stride, words",
    [
        ("resnet18", 12, "cannot be made with output_stride=12"),
        ("resnet18", 0, "cannot be made with output_stride=0"),
        ("efficientnet_b0", 12, "its output stride is 8, not 12"),
        ("vit_toy_patch8_96", 8, "it is a ViT, .* output_stride=8"),
    ],
)
def test_output_strides_that_there_are_not(name, stride, words):
    with pytest.raises(InputError, match=words):
        create_classifier(name, pretrained=False, output_stride=stride)


@pytest.mark.parametrize(
    "name, size",
    [
        ("vit_tiny_patch16_224", 16),
        ("deit_tiny_distilled_patch16_224", 16),
        ("vit_toy_patch8_96", 8),
        ("resnet_toy", 1),
    ],
)
def test_patch_size(name, size):
    assert patch_size(timm.create_model(name)) == size


def test_offline_weights_come_with_advice(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("We couldn't connect")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", offline)
    monkeypatch.setattr("timm.models._builder.load_custom_pretrained", offline)
    with pytest.raises(InputError, match="deit_tiny_patch16_224.* weights=PATH"):
        create_classifier("deit_tiny_patch16_224.fb_in1k")


@pytest.mark.parametrize("name", ["vit_toy_patch8_96", "resnet_toy", "deit_tiny_distilled_patch16_224", "regnetx_002"])
def test_local_weights_with_another_head(tmp_path, name):
    net = timm.create_model(name, num_classes=7)
    save_weights(net, tmp_path / "seven.safetensors")
    heads = [n for n, m in net.named_modules() if isinstance(m, nn.Linear) and m.out_features == 7]
    nine, seven = (create_classifier(name, n, weights=tmp_path / "seven.safetensors") for n in (9, 7))
    assert heads and all(nine.get_submodule(head).out_features == 9 for head in heads)
    for key, value in net.state_dict().items():
        assert torch.equal(seven.state_dict()[key], value)
        assert key.startswith(tuple(heads)) or torch.equal(nine.state_dict()[key], value)
    with pytest.raises(InputError, match="seven.safetensors belong to another model"):
        create_classifier("vit_tiny_patch16_224", 7, weights=tmp_path / "seven.safetensors")
    with pytest.raises(InputError, match="seven.safetensors belong to another model"):
        create_classifier("resnet18", 7, weights=tmp_path / "seven.safetensors")


def test_old_checkpoints_without_counts_of_batches(tmp_path):
    net = timm.create_model("resnet_toy", num_classes=7)
    torch.save({k: v for k, v in net.state_dict().items() if "num_batches" not in k}, tmp_path / "old.pth")
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(create_classifier("resnet_toy", 7, weights=tmp_path / "old.pth")(x), net.eval()(x))


@pytest.mark.parametrize("stride", [None, 16, 8])
def test_shipped_weights_at_every_output_stride(stride):
    net = create_classifier("resnet_toy", 10, output_stride=stride)
    shipped = timm.create_model("resnet_toy", pretrained=True)
    assert all(torch.equal(value, shipped.state_dict()[key]) for key, value in net.state_dict().items())
    nine = create_classifier("resnet_toy", 9, output_stride=stride)
    assert nine.fc.out_features == 9 and torch.equal(nine.layer4[0].conv1.weight, shipped.layer4[0].conv1.weight)


def test_pretrained_toy_models_come_with_the_package():
    for name in ("vit_toy_patch8_96", "resnet_toy"):
        torch.manual_seed(0)
        ours, random = timm.create_model(name, pretrained=True), timm.create_model(name, pretrained=False)
        assert ours.num_classes == 10 and not torch.equal(next(ours.parameters()), next(random.parameters()))
        other = timm.create_model(name, pretrained=True, num_classes=3)
        assert torch.equal(list(other.parameters())[2], list(ours.parameters())[2])
    files = list(wegformer.networks.toy.WEIGHTS.glob("*.safetensors"))
    assert len(files) == 2 and sum(p.stat().st_size for p in files) < 5e6


def test_map_against_a_count_by_hand():
    logits, labels = torch.tensor([[3.0], [2.0], [1.0], [0.0]]), torch.tensor([[1], [0], [1], [0]])
    assert mean_average_precision(logits, labels) == pytest.approx(100 * (1 / 1 + 2 / 3) / 2, abs=1e-3)


@pytest.mark.parametrize("name, stride", [("vit_toy_patch8_96", None), ("resnet_toy", None), ("resnet_toy", 8)])
def test_training_leaves_a_file_that_stands_alone(tmp_path, toy_root, name, stride):
    train, val = VOCDataset(toy_root, "train"), VOCDataset(toy_root, "val")
    config = ClassifierConfig(
        model=name,
        pretrained=False,
        output_stride=stride,
        steps=2,
        batch_size=4,
        crop_size=32,
        resize=(32, 48),
        eval_long_side=32,
        precision="no",
    )
    torch.manual_seed(0)
    net = create_classifier(config.model, train.num_classes, pretrained=False, output_stride=stride)
    history = train_classifier(net, config, train, tmp_path, val=val, device="cpu")
    loaded, recipe, classes = load_classifier(tmp_path / "model.safetensors")
    assert recipe == config and classes == train.classes and "mAP" in history[-1]
    x = torch.randn(2, 3, 32, 40)
    assert torch.equal(loaded(x), net(x)) and torch.equal(loaded.forward_features(x), net.forward_features(x))
    assert predict_logits(loaded, val, 45).shape == (len(val), val.num_classes)
    save_weights(nn.Linear(1, 1), tmp_path / "foreign.safetensors")
    with pytest.raises(InputError, match="foreign.safetensors are not of a classifier"):
        load_classifier(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize("name", ["vit_toy_patch8_96", "deit_tiny_distilled_patch16_224"])
def test_the_head_may_learn_faster(tmp_path, toy_root, name):
    config = ClassifierConfig(
        model=name, steps=1, batch_size=2, crop_size=32, resize=(32, 48), precision="no", lr=1e-12, head_lr=1e10
    )
    train = VOCDataset(toy_root, "train")
    net = create_classifier(name, train.num_classes, pretrained=False)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    train_classifier(net, config, train, tmp_path, device="cpu")
    moved = {key for key, value in net.state_dict().items() if (value - before[key]).abs().max() > 1e-4}
    heads = {key for key in before if key.startswith("head")}
    assert len(heads) == (4 if "distilled" in name else 2) and moved == heads


def test_a_toy_checkpoint_needs_no_import_of_its_user(tmp_path):
    import subprocess, sys

    path = tmp_path / "model.safetensors"
    make = (
        "import json, wegformer.networks.toy\n"
        "from dataclasses import asdict\n"
        "from wegformer.classifier import *\n"
        "from wegformer.training import save_weights\n"
        "config = json.dumps(asdict(ClassifierConfig(model='vit_toy_patch8_96')))\n"
        f"save_weights(create_classifier('vit_toy_patch8_96', 2), {str(path)!r}, config=config, "
        "classes=json.dumps(['background', 'a', 'b']))"
    )
    load = f"from wegformer.classifier import load_classifier; print(load_classifier({str(path)!r})[2])"
    subprocess.run([sys.executable, "-c", make], check=True)
    assert "'a', 'b'" in subprocess.run([sys.executable, "-c", load], check=True, capture_output=True, text=True).stdout


def test_a_stem_whose_windows_overlap_has_no_patch():
    "PVT's embedding has windows of 7 pixels, 4 apart: pictures need not be multiples of 7."
    with torch.device("meta"):
        assert patch_size(timm.create_model("pvt_v2_b0")) == 1
    check_crop("pvt_v2_b0", 256)


def test_an_attention_that_pools_counts_as_a_block():
    check_blocks("vit_base_patch16_siglip_224", (12, None))
    with pytest.raises(InputError, match="expected one of 0 to 12"):
        check_blocks("vit_base_patch16_siglip_224", (13,))
