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
    patch_size,
    predict_logits,
    resize_to_patches,
    train_classifier,
    train_transform,
)
from wegformer.classifier_checks import check_blocks, check_crop, check_recipe
from wegformer.data import InputError, VOCDataset
from wegformer.groups import frozen, learning_groups
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


def test_frozen_blocks_stay_and_the_rest_learns_by_layers(tmp_path, toy_root):
    "One step of Adam moves each weight by its group's rate, whatever the gradient: so the rates can be read off."
    net, voc = (
        timm.create_model("vit_toy_patch8_96", num_classes=9, dynamic_img_size=True),
        VOCDataset(toy_root, "train"),
    )
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    recipe = ClassifierConfig(
        "vit_toy_patch8_96", steps=1, batch_size=4, lr=1e-4, head_lr=10.0, layer_decay=0.5, frozen_blocks=6,
        crop_size=96, crop_area=(0.3, 1.0), weight_decay=0.0, precision="no",
    )  # fmt: skip
    train_classifier(net, recipe, voc, tmp_path, device=torch.device("cpu"))
    moved = {name: (p - before[name]).abs().max().item() for name, p in net.named_parameters()}
    still = {name for name, by in moved.items() if by == 0}
    first = {"cls_token", "pos_embed", *(n for n in moved if n.startswith("patch_embed"))}
    assert still == first | {n for n in moved if n.startswith(tuple(f"blocks.{k}." for k in range(6)))}
    assert moved["head.weight"] == pytest.approx(1e-3, rel=0.01)
    for k in range(6, 12):
        assert moved[f"blocks.{k}.mlp.fc2.weight"] == pytest.approx(1e-4 * 0.5 ** (11 - k), rel=0.01)
    assert all(p.requires_grad for p in net.parameters())
    assert load_classifier(tmp_path / "model.safetensors")[1].crop_area == (0.3, 1.0)


@pytest.mark.parametrize(
    "name", ["vit_toy_patch8_96", "eva02_tiny_patch14_224", "resnet_toy", "deit_tiny_distilled_patch16_224"]
)
def test_every_weight_is_in_one_group(name):
    net = create_classifier(name, 5, pretrained=False)
    head = net.get_classifier()
    plain, decayed = (learning_groups(net, net, 1e-3, 2.0, decay) for decay in (1.0, 0.9))
    for groups in (plain, decayed):
        ids = [id(p) for group in groups for p in group["params"]]
        assert sorted(ids) == sorted(id(p) for p in net.parameters())
        assert groups[-1]["lr"] == 2e-3 and any(
            p is (head[0] if isinstance(head, tuple) else head).weight for p in groups[-1]["params"]
        )
    rates = [group["lr"] for group in decayed[:-1]]
    assert len(plain) == 2 and len(rates) > 3 and rates == sorted(rates) and rates[-1] == pytest.approx(1e-3)
    if hasattr(net, "blocks"):
        rate = {id(p): group["lr"] for group in decayed for p in group["params"]}
        for k in range(len(net.blocks)):
            expected = 1e-3 * 0.9 ** (len(net.blocks) - 1 - k)
            assert all(rate[id(p)] == pytest.approx(expected) for p in net.blocks[k].parameters())


def test_only_what_learns_is_frozen_and_thawed():
    net = create_classifier("eva02_tiny_patch14_224", 5, pretrained=False)
    net.blocks[0].norm1.weight.requires_grad_(False)
    with frozen(net, len(net.blocks)):
        learn = {name for name, p in net.named_parameters() if p.requires_grad}
        assert {name.split(".")[0] for name in learn} == {"fc_norm", "head"}
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["blocks.0.norm1.weight"]
    with pytest.raises(InputError, match="at most 0, the blocks of EfficientNet"):
        frozen(timm.create_model("efficientnet_b0"), 3).__enter__()


def test_crops_by_area_fill_the_window(toy_root):
    net = timm.create_model("vit_toy_patch8_96")
    config = ClassifierConfig(crop_size=160, crop_area=(0.5, 0.5), jitter=(0.0, 0.0, 0.0, 0.0))
    image, _ = ClassificationSet(VOCDataset(toy_root, "train"), train_transform(config, net))[0]
    assert image.shape == (3, 160, 160) and image[:, 0].unique(dim=1).shape[1] > 20  # no band of one colour around it


def test_recipes_that_do_not_fit_a_model():
    for fields, words in [
        (dict(crop_size=100), "crop_size is 100; expected a multiple of 8"),
        (dict(crop_size=96, frozen_blocks=13), "frozen_blocks is 13; expected at most 12, the blocks of vit_toy"),
    ]:
        with pytest.raises(InputError, match=words):
            check_recipe(ClassifierConfig("vit_toy_patch8_96", **fields))
    for name, fields, words in [
        ("resnet_toy", dict(frozen_blocks=1), "at most 0, the blocks of resnet_toy"),
        ("vit_base_patch16_siglip_224", dict(frozen_blocks=13), "at most 12"),  # its pool is no block to freeze
        ("resnet38", dict(layer_decay=0.8), "layer_decay is 0.8; expected 1, since resnet38"),
    ]:
        with pytest.raises(InputError, match=words):
            check_recipe(ClassifierConfig(name, **fields))
    for fields, words in [
        (dict(layer_decay=1.1), "layer_decay is 1.1"),
        (dict(crop_area=(0.9, 0.5)), "crop_area"),
        (dict(crop_area=(0.0, 0.5)), "crop_area"),
        (dict(frozen_blocks=-1), "frozen_blocks is -1"),
    ]:
        with pytest.raises(InputError, match=words):
            ClassifierConfig(**fields)


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
