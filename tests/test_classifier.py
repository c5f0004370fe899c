import timm
import pytest
import torch
from torch import nn

import wegformer.toymodels
from wegformer.classifier import (ClassifierConfig, ClassificationSet, RandomLongSide, create_classifier, load_classifier, mean_average_precision, mean_std,
                                  normalize, resize_to_patches, train_classifier, train_transform)
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
    data = ClassificationSet(VOCDataset(toy_root, "train"), train_transform(ClassifierConfig(crop_size=160, resize=(64, 96)), net))
    image, labels = data[0]
    assert image.shape == (3, 160, 160) and image.dtype == torch.float32 and labels.sum() >= 1
    border = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], 1)  # larger than any picture: one plain colour around it
    assert len(border.round(decimals=3).unique(dim=1).T) == 1 or (border == border[:, :1]).all(0).float().mean() > 0.5


def test_normalize_uses_the_models_statistics():
    net = timm.create_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k", pretrained=False)
    assert mean_std(net) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert torch.allclose(normalize(torch.full((3, 2, 2), 255, dtype=torch.uint8), net), torch.ones(3, 2, 2))


@pytest.mark.parametrize("name, words", [
    ("deit_base_patch16_223", "not known to timm .* deit_base_patch16_224"),
    ("resnet18", "not a plain Vision Transformer"),
    ("vit_base_patch16_siglip_224", "no class token"),
    ("vit_relpos_small_patch16_224", "Vision Transformer|class token"),
])
def test_what_is_no_vit_is_refused(name, words):
    with pytest.raises(InputError, match=words):
        create_classifier(name, pretrained=False)


def test_offline_weights_come_with_advice(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("We couldn't connect")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", offline)
    monkeypatch.setattr("timm.models._builder.load_custom_pretrained", offline)
    with pytest.raises(InputError, match="deit_tiny_patch16_224.* weights=PATH"):
        create_classifier("deit_tiny_patch16_224.fb_in1k")


def test_local_weights_with_another_head(tmp_path):
    net = timm.create_model("vit_toy_patch8_96", num_classes=7)
    save_weights(net, tmp_path / "seven.safetensors")
    nine = create_classifier("vit_toy_patch8_96", 9, weights=tmp_path / "seven.safetensors")
    assert nine.head.weight.shape[0] == 9 and torch.equal(nine.blocks[3].mlp.fc1.weight, net.blocks[3].mlp.fc1.weight)
    seven = create_classifier("vit_toy_patch8_96", 7, weights=tmp_path / "seven.safetensors")
    assert torch.equal(seven.head.weight, net.head.weight)
    with pytest.raises(InputError, match="seven.safetensors belong to another model"):
        create_classifier("vit_tiny_patch16_224", 7, weights=tmp_path / "seven.safetensors")


def test_pretrained_toy_models_come_with_the_package():
    for name in ("vit_toy_patch8_96", "resnet_toy"):
        torch.manual_seed(0)
        ours, random = timm.create_model(name, pretrained=True), timm.create_model(name, pretrained=False)
        assert ours.num_classes == 10 and not torch.equal(next(ours.parameters()), next(random.parameters()))
        other = timm.create_model(name, pretrained=True, num_classes=3)
        assert torch.equal(list(other.parameters())[2], list(ours.parameters())[2])
    files = list(wegformer.toymodels.WEIGHTS.glob("*.safetensors"))
    assert len(files) == 2 and sum(p.stat().st_size for p in files) < 5e6


def test_map_against_a_count_by_hand():
    logits, labels = torch.tensor([[3.0], [2.0], [1.0], [0.0]]), torch.tensor([[1], [0], [1], [0]])
    assert mean_average_precision(logits, labels) == pytest.approx(100 * (1 / 1 + 2 / 3) / 2, abs=1e-3)


def test_training_leaves_a_file_that_stands_alone(tmp_path, toy_root):
    train, val = VOCDataset(toy_root, "train"), VOCDataset(toy_root, "val")
    config = ClassifierConfig(model="vit_toy_patch8_96", pretrained=False, steps=2, batch_size=4, crop_size=32, resize=(32, 48), eval_long_side=32,
                              precision="no")
    torch.manual_seed(0)
    net = create_classifier(config.model, train.num_classes, pretrained=False)
    history = train_classifier(net, config, train, tmp_path, val=val, device="cpu")
    loaded, recipe, classes = load_classifier(tmp_path / "model.safetensors")
    assert recipe == config and classes == train.classes and "mAP" in history[-1]
    x = torch.randn(2, 3, 32, 40)
    assert torch.equal(loaded(x), net(x))
    save_weights(nn.Linear(1, 1), tmp_path / "foreign.safetensors")
    with pytest.raises(InputError, match="foreign.safetensors are not of a classifier"):
        load_classifier(tmp_path / "foreign.safetensors")
