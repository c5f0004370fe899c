"Networks, recipe, training and prediction: shapes, parameter groups, resume, faults."

import dataclasses

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import tyro
from huggingface_hub import constants as hub
from torchvision import tv_tensors

from wegformer.data import IGNORE, InputError, read_mask, write_mask
from wegformer.deeplab import ASPP, CornerUpsample, DilatedVGG, LargeFOV, MultiScale, create_backbone, sample_mask
from wegformer.config import check_fit, override, preset
from wegformer.patch_features import on_patches
from wegformer.segmentation import (
    NETWORKS,
    RECIPES,
    Network,
    RandomScale,
    SegmentationPairs,
    SegmenterConfig,
    create_segmenter,
    load_segmenter,
    multi_scale_terms,
    parameter_groups,
    predict,
    predict_dataset,
    segmentation_loss,
    train_segmenter,
)
from wegformer.training import save_weights

SMALL = dict(pretrained=False, frozen_bn=False, decoder_channels=16)
PAIRS = [
    (network, backbone)
    for network in ("deeplabv3plus", "deeplabv3", "deeplabv2")
    for backbone in ("resnet_toy", "vgg11")
]


def small(network="deeplabv3plus", backbone="resnet_toy", **changes):
    name = "largefov" if network == "deeplabv2" and backbone.startswith("vgg") else network
    if name not in RECIPES:
        name, changes = "deeplabv3plus", dict(network=network) | changes
    recipe = dict(crop=33, batch_size=2, steps=4, precision="no", test_scales=(1.0,), test_flip=False, crf=False)
    return SegmenterConfig.preset(name, **SMALL | dict(backbone=backbone) | recipe | changes)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Shapes:
    "Bright squares on a dark ground: class 1 is red, class 2 is blue. Sizes differ from image to image."

    def __init__(self, n=6, size=(40, 52)):
        self.n, self.size, self.num_classes, self.classes = n, size, 2, ("background", "red", "blue")
        self.ids = [f"id_{i}" for i in range(n)]

    def __len__(self):
        return self.n

    def _draw(self, i):
        h, w = self.size[0] + i, self.size[1] - 2 * i
        image, mask = torch.full((3, h, w), 30, dtype=torch.uint8), torch.zeros(h, w, dtype=torch.uint8)
        for c, (y, x) in ((1, (4 + i, 5)), (2, (20, 24 + i))):
            image[2 * (c - 1), y : y + 14, x : x + 14], mask[y : y + 14, x : x + 14] = 220, c
        mask[:2] = IGNORE
        return image, mask

    def image(self, i):
        return tv_tensors.Image(self._draw(i)[0])

    def mask(self, i):
        return tv_tensors.Mask(self._draw(i)[1])


# ---- networks


@pytest.mark.parametrize("network,backbone", PAIRS)
@pytest.mark.parametrize("size", [(32, 32), (33, 65), (47, 61), (1, 1), (5, 70)])
def test_logits_have_the_input_size(network, backbone, size):
    model = create_segmenter(small(network, backbone), 5).eval()
    with torch.no_grad():
        logits = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 5, *size) and logits.dtype == torch.float32 and logits.isfinite().all()


@pytest.mark.parametrize("network,backbone", PAIRS)
def test_every_trainable_parameter_gets_a_gradient(network, backbone):
    model = create_segmenter(small(network, backbone, dropout=0.0), 4)
    model(torch.randn(2, 3, 65, 65)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("backbone", ["resnet_toy", "vgg11", "vgg11_bn"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_backbone_strides(backbone, output_stride):
    net = create_backbone(backbone, output_stride, pretrained=False).eval()
    with torch.no_grad():
        maps = net(torch.randn(1, 3, 65, 97))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, 64 // s + 1, 96 // s + 1) for c, s in zip(net.channels, [min(s, output_stride) for s in (2, 4, 8, 16, 32)])
    ]


def test_vgg_keeps_strides_or_dilates():
    for output_stride, dilations in ((8, [1] * 10 + [2] * 3), (16, [1] * 13)):
        net = create_backbone("vgg16", output_stride, pretrained=False)
        convolutions = [m for m in net.features if isinstance(m, torch.nn.Conv2d)]
        assert isinstance(net, DilatedVGG) and [m.dilation[0] for m in convolutions] == dilations
        assert all(m.padding == m.dilation for m in convolutions)


@pytest.mark.parametrize("network,backbone", [("deeplabv3plus", "resnet_toy"), ("deeplabv2", "vgg11")])
def test_shifting_the_image_by_a_stride_shifts_the_logits(network, backbone):
    "Cell i lies on pixel i * stride: a shift by the stride changes nothing but the place, away from the borders."
    torch.manual_seed(0)  # a random network may see a little of the border from the middle
    config = small(network, backbone, atrous_rates=(1,) if network == "deeplabv2" else (1, 1, 1), output_stride=8)
    model = create_segmenter(config, 3).double().eval()
    if network != "deeplabv2":  # the pooling branch sees the whole image: silence it
        torch.nn.init.zeros_(model.head.decoder.aspp[0].convs[4][1].weight)
    big = torch.randn(1, 3, 225, 225, dtype=torch.float64)
    with torch.no_grad():
        a, b = model.coarse(big[..., :217, :217]), model.coarse(big[..., 8:225, 8:225])
    step = 2 if network != "deeplabv2" else 1  # V3+'s grid has stride 4
    middle = slice(a.shape[-1] // 2 - 1, a.shape[-1] // 2 + 2)
    shifted = slice(middle.start + step, middle.stop + step)
    moved, stayed = ((a[..., cells, cells] - b[..., middle, middle]).abs().max() for cells in (shifted, middle))
    assert moved < 0.1 * stayed  # what is left comes from the borders


def test_corner_upsample_keeps_cells_where_they_lie():
    x = torch.randn(2, 3, 5, 4)
    for factor in (2, 4):
        up = CornerUpsample(factor)(x)
        assert up.shape == (2, 3, 4 * factor + 1, 3 * factor + 1)
        assert torch.allclose(up[..., ::factor, ::factor], x, atol=1e-6)


def test_aspp_is_the_sum_of_its_branches():
    head = ASPP(6, 4, (1, 2, 3))
    x = torch.randn(1, 6, 9, 9)
    by_hand = sum(
        torch.nn.functional.conv2d(x, c.weight, c.bias, padding=r, dilation=r)
        for c, r in zip(head.classifier, (1, 2, 3))
    )
    assert torch.allclose(head([x]), by_hand, atol=1e-6)
    assert LargeFOV(6, 4, width=8)([x]).shape == (1, 4, 9, 9)


def test_frozen_batch_norm_stays(tmp_path):
    config = small()
    save_weights(create_segmenter(config, 3), tmp_path / "whole.safetensors")
    model = create_segmenter(
        dataclasses.replace(config, frozen_bn=True, weights=str(tmp_path / "whole.safetensors")), 3
    ).train()
    norms = [m for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert (
        norms and not any(m.training for m in norms) and not any(p.requires_grad for m in norms for p in m.parameters())
    )
    before = [m.running_mean.clone() for m in norms]
    model(torch.randn(2, 3, 33, 33))
    assert all(torch.equal(a, m.running_mean) for a, m in zip(before, norms))
    assert any(m.training for m in model.head.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_normalisation_is_the_backbones():
    model = create_segmenter(small(backbone="tf_efficientnet_lite0"), 3)
    assert torch.allclose(
        model.normalize(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)), torch.ones(1, 3, 2, 2)
    )  # mean .5, std .5
    model = create_segmenter(small(), 3)
    x = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    expected = (x / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )
    assert torch.allclose(model.normalize(x), expected, atol=1e-5)


# ---- weights


def test_local_backbone_weights_in_half_precision(tmp_path):
    source = create_backbone("vgg11", 16, pretrained=False)
    state = {k: v.half() for k, v in source.state_dict().items()} | {"head.fc.weight": torch.zeros(1000, 4096).half()}
    safetensors.torch.save_file(state, tmp_path / "vgg.safetensors")
    model = create_segmenter(small("deeplabv2", "vgg11", weights=str(tmp_path / "vgg.safetensors")), 3)
    assert torch.equal(model.backbone.features[0].weight, source.features[0].weight.half().float())
    assert model.backbone.features[0].weight.dtype == torch.float32


def test_real_vgg16_weights(shared):
    path = shared / "models" / "vgg16_imagenet_features.safetensors"
    model = create_segmenter(small("deeplabv2", "vgg16", weights=str(path)), 21)
    assert torch.equal(model.backbone.features[28].bias, safetensors.torch.load_file(path)["features.28.bias"].float())
    with pytest.raises(InputError, match="resnet_toy.*has no 'conv1.0.weight'"):
        create_segmenter(small(weights=str(path)), 21)


@pytest.mark.parametrize(
    "break_it,message",
    [
        (
            lambda s: s | {"features.0.weight": torch.zeros(64, 3, 5, 5)},
            r"features.0.weight.*\(64, 3, 5, 5\).*expected \(64, 3, 3, 3\)",
        ),
        (lambda s: {k: v for k, v in s.items() if k != "features.3.bias"}, "has no 'features.3.bias'"),
        (lambda s: s | {"what.is.this": torch.zeros(1)}, "what.is.this"),
    ],
)
def test_weights_of_another_backbone_are_refused(tmp_path, break_it, message):
    state = create_backbone("vgg11", 16, pretrained=False).state_dict()
    safetensors.torch.save_file(break_it(state), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=message):
        create_backbone("vgg11", 16, weights=tmp_path / "other.safetensors")


def test_missing_and_damaged_weights(tmp_path):
    (tmp_path / "damaged.safetensors").write_bytes(b"not tensors")
    for name in ("absent.safetensors", "damaged.safetensors"):
        with pytest.raises(InputError, match=name):
            create_segmenter(small(weights=str(tmp_path / name)), 3)


def test_whole_network_as_start(tmp_path):
    trained = create_segmenter(small(), 7)
    save_weights(trained, tmp_path / "whole.safetensors")
    config = small(weights=str(tmp_path / "whole.safetensors"))
    same, other = create_segmenter(config, 7), create_segmenter(config, 3)
    assert all(torch.equal(a, b) for a, b in zip(trained.state_dict().values(), same.state_dict().values()))
    assert other.head.classifier.weight.shape[0] == 3  # a new classifier; all else as trained
    assert torch.equal(other.head.decoder.block1[0].weight, trained.head.decoder.block1[0].weight)
    with pytest.raises(InputError, match="whole.safetensors"):
        create_segmenter(dataclasses.replace(config, network="deeplabv3"), 7)


def test_offline_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="resnet10t.*offline.*weights="):
        create_backbone("resnet10t", 16, pretrained=True)


@pytest.mark.parametrize(
    "name,message",
    [
        ("resnet_102", "not known to timm.*resnet10"),
        ("beit_base_patch16_224", "output stride"),
        ("convnext_atto", "strides"),
        ("resnet10t.nope", "nope"),
    ],
)
def test_unfit_backbones(name, message):
    with pytest.raises(InputError, match=message):
        create_backbone(name, 16, pretrained=False)


# ---- config


@pytest.mark.parametrize(
    "field,value",
    [
        ("network", "unet"),
        ("output_stride", 4),
        ("atrous_rates", (6, 12)),
        ("atrous_rates", (0, 1, 2)),
        ("dropout", 1.0),
        ("crop", 0),
        ("batch_size", 1),
        ("steps", 0),
        ("scale_range", (1.5, 0.5)),
        ("scale_range", (0.0, 1.0)),
        ("lr", -1.0),
        ("loss_scales", ()),
        ("loss_scales", (0.5, 1.0)),
        ("test_scales", ()),
        ("test_scales", (0.0,)),
        ("weight_decay", -1e-4),
        ("precision", "fp8"),
    ],
)
def test_bad_settings_name_the_field(field, value):
    with pytest.raises(InputError, match=rf"SegmenterConfig\.{field} is .*expected"):
        SegmenterConfig(**{field: value})


def test_frozen_bn_needs_statistics():
    with pytest.raises(InputError, match="frozen_bn"):
        SegmenterConfig(pretrained=False, frozen_bn=True)


def test_presets():
    assert SegmenterConfig.preset("deeplabv3plus") == SegmenterConfig()
    v2 = SegmenterConfig.preset("deeplabv2")
    assert (v2.crop, v2.batch_size, v2.lr, v2.loss_scales, v2.frozen_bn) == (321, 10, 2.5e-4, (1.0, 0.75, 0.5), True)
    assert SegmenterConfig.preset("largefov").backbone.startswith("vgg16")
    with pytest.raises(InputError, match="deeplabv9"):
        SegmenterConfig.preset("deeplabv9")
    with pytest.raises(InputError, match="learning_rate"):
        SegmenterConfig.preset("deeplabv2", learning_rate=1)


def test_the_registry_is_what_a_config_and_the_command_line_admit(tmp_path, monkeypatch):
    "A network that is registered can be configured, chosen, trained, stored and loaded, all by its name."

    def head(config, channels, num_classes):
        head = torch.nn.Sequential()
        head.classifier = torch.nn.Conv2d(channels[-1], num_classes, 1)
        head.forward = lambda features: head.classifier(features[-1])
        return head

    known = ["deeplabv3plus", "deeplabv3", "deeplabv2", "linear", "linear2"]
    assert list(NETWORKS) == known and set(RECIPES) == {*known, "largefov"}
    with pytest.raises(InputError, match=", ".join(known)):
        SegmenterConfig(network="new")
    with pytest.raises(SystemExit):
        tyro.cli(SegmenterConfig, args=["--network", "new"])
    monkeypatch.setitem(NETWORKS, "new", Network("New", head, dilations=2))
    assert tyro.cli(SegmenterConfig, args=["--network", "new", "--atrous-rates", "1", "2"]).network == "new"
    with pytest.raises(InputError, match="atrous_rates.*2 positive dilations for new"):
        SegmenterConfig(network="new")
    config = small(network="new", atrous_rates=(1, 2), batch_size=1)
    model, _ = train_segmenter(config, Shapes(), tmp_path)
    again, loaded, _ = load_segmenter(tmp_path / "model.safetensors")
    image = Shapes().image(0)
    assert loaded == config and torch.equal(predict(model, image), predict(again, image))


# ---- recipe


def test_parameter_groups_of_v2():
    config = small("deeplabv2")
    model = create_segmenter(config, 3)
    backbone, weights, biases = parameter_groups(model, config)
    assert [g["lr"] for g in (backbone, weights, biases)] == pytest.approx([2.5e-4, 2.5e-3, 5e-3])
    assert [g["weight_decay"] for g in (backbone, weights, biases)] == [5e-4, 5e-4, 0.0]
    assert {id(p) for p in weights["params"]} == {id(c.weight) for c in model.head.classifier}
    assert {id(p) for p in biases["params"]} == {id(c.bias) for c in model.head.classifier}


@pytest.mark.parametrize("network,backbone", PAIRS)
def test_parameter_groups_hold_everything_once(network, backbone):
    config = small(network, backbone)
    model = create_segmenter(config, 3)
    grouped = [id(p) for group in parameter_groups(model, config) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_v3plus_backbone_learns_a_tenth():
    config = small()
    backbone, weights, biases = parameter_groups(create_segmenter(config, 3), config)
    assert [g["lr"] for g in (backbone, weights, biases)] == pytest.approx([1e-3, 1e-2, 1e-2])
    assert all(g["weight_decay"] == 5e-4 for g in (backbone, weights, biases))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_that_is_ignored_as_a_whole(dtype):
    logits = torch.randn(2, 3, 5, 7, dtype=dtype, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((2, 5, 7), IGNORE, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0 and logits.grad.isfinite().all() and (logits.grad == 0).all()


@pytest.mark.parametrize("network", ["deeplabv3plus", "deeplabv2"])
def test_training_survives_ignored_images(network, tmp_path):
    class Ignored(Shapes):
        def mask(self, i):
            return tv_tensors.Mask(torch.full_like(super().mask(i), IGNORE))

    model, history = train_segmenter(small(network), Ignored(), tmp_path)
    assert history[-1]["loss"] == 0 and all(p.isfinite().all() for p in model.parameters())


def test_multi_scale_loss_is_four_losses():
    model = create_segmenter(small("deeplabv2"), 3).eval()
    images, masks = torch.randn(2, 3, 49, 65), torch.randint(0, 3, (2, 49, 65), dtype=torch.uint8)
    logits = MultiScale(model, (1.0, 0.75, 0.5))(images)
    assert len(logits) == 4 and logits[0].shape[2:] == logits[3].shape[2:] == (7, 9)
    by_hand = sum(segmentation_loss(x, sample_mask(masks, x.shape[-2:])) for x in logits)
    assert torch.allclose(sum(total / count for total, count in multi_scale_terms(logits, masks)), by_hand)
    resized = [torch.nn.functional.interpolate(x, size=(7, 9), mode="bilinear", align_corners=True) for x in logits[:3]]
    assert torch.equal(logits[3], torch.stack(resized).amax(0))


@pytest.mark.parametrize("size,cells", [((33, 65), (5, 9)), ((1, 1), (1, 1)), ((9, 17), (1, 3))])
def test_sample_mask_reads_where_cells_lie(size, cells):
    masks = torch.arange(size[0] * size[1]).view(1, *size)
    rows = [round(i * (size[0] - 1) / max(cells[0] - 1, 1)) for i in range(cells[0])]
    columns = [round(i * (size[1] - 1) / max(cells[1] - 1, 1)) for i in range(cells[1])]
    assert torch.equal(sample_mask(masks, cells), masks[:, rows][:, :, columns])


# ---- data


@pytest.mark.parametrize("crop", [17, 40, 96])
@pytest.mark.parametrize("scale_range", [(0.5, 0.5), (0.5, 1.5), (2.0, 2.0)])
def test_pairs_have_the_crop_size_and_known_values(crop, scale_range):
    pairs = SegmentationPairs(Shapes(), small(crop=crop, scale_range=scale_range), (0.2, 0.4, 0.6))
    for i in range(len(pairs)):
        image, mask = pairs[i]
        assert type(image) is type(mask) is torch.Tensor and image.dtype == mask.dtype == torch.uint8
        assert image.shape == (3, crop, crop) and mask.shape == (crop, crop)
        assert set(mask.unique().tolist()) <= {0, 1, 2, IGNORE}
    if crop == 96 and scale_range == (0.5, 0.5):  # what runs over the edge
        assert (image[:, mask == IGNORE].float().mean(1) - torch.tensor([51.0, 102.0, 153.0])).abs().max() < 8


def test_random_scale_keeps_image_and_mask_together():
    torch.manual_seed(0)
    sizes = set()
    for _ in range(20):
        image, mask = RandomScale(0.5, 1.5)(
            tv_tensors.Image(torch.zeros(3, 40, 60, dtype=torch.uint8)), tv_tensors.Mask(torch.zeros(40, 60))
        )
        assert image.shape[1:] == mask.shape and 20 <= mask.shape[0] <= 60
        sizes.add(tuple(mask.shape))
    assert len(sizes) > 5


class Tiles:
    "A picture of 20-pixel tiles; its red channel is 20 times its mask."

    def __len__(self):
        return 1

    def mask(self, i):
        rows, columns = torch.arange(60)[:, None] // 20, torch.arange(80) // 20
        return tv_tensors.Mask((rows * 3 + columns).to(torch.uint8))

    def image(self, i):
        return tv_tensors.Image(self.mask(i).expand(3, -1, -1) * 20)


def test_image_and_mask_move_alike_to_the_pixel():
    "Away from the tiles' borders, where the image is interpolated, the red channel is still the mask."
    tiles = SegmentationPairs(Tiles(), small(scale_range=(0.8, 2.0), crop=64))
    for _ in range(10):
        image, mask = tiles[0]
        area, red, mask = mask[None].float(), image[0, 2:-2, 2:-2], mask[2:-2, 2:-2]
        inside = (torch.nn.functional.max_pool2d(area, 5, 1) == -torch.nn.functional.max_pool2d(-area, 5, 1))[0] & (
            mask != IGNORE
        )
        assert inside.sum() > 500 and torch.equal(red[inside], mask[inside] * 20)


# ---- training


def test_a_few_pictures_are_learned_by_heart(tmp_path):
    "A small network, from random weights, without augmentation."
    from wegformer.data import VOCDataset
    from wegformer.toyvoc import make_toy_voc

    data = VOCDataset(make_toy_voc(train=24, val=8), "train")
    data.ids = data.ids[:4]
    config = small(
        decoder_channels=64,
        atrous_rates=(1, 2, 4),
        dropout=0.0,
        crop=129,
        lr=0.1,
        backbone_lr=1.0,
        batch_size=4,
        steps=120,
        scale_range=(1.0, 1.0),
        hflip=False,
    )
    _, history = train_segmenter(config, data, tmp_path)
    assert history[-1]["loss"] < history[0]["loss"] / 4


@pytest.mark.parametrize(
    "network,backbone",
    [
        ("deeplabv3plus", "resnet_toy"),
        ("deeplabv2", "resnet_toy"),
        ("deeplabv2", "vgg11"),
        ("linear", "vit_toy_patch8_96"),
        ("linear2", "vit_toy_patch8_96"),
        ("linear2", "resnet_toy"),
    ],
)
def test_training_and_reloading(network, backbone, tmp_path):
    data = Shapes()
    model, history = train_segmenter(small(network, backbone), data, tmp_path)
    assert not model.training and np.isfinite(history[-1]["loss"])
    again, config, classes = load_segmenter(tmp_path / "model.safetensors")
    assert config == small(network, backbone) and classes == data.classes
    image = data.image(0)
    assert torch.equal(predict(model, image), predict(again, image))


@pytest.mark.parametrize("patch", [8, 14])
def test_the_cells_of_a_vit_lie_on_the_stride(patch):
    "A ramp is read at pixel i * stride, downwards and across, in an image that is not square."
    ramp = torch.arange(6 * 16 + 1.0)
    for image, axis in ((ramp.expand(1, 3, 33, -1), 3), (ramp[:, None].expand(1, 3, -1, 33), 2)):
        seen = on_patches(image, 16, patch)
        assert seen.shape[axis] == 7 * patch and seen.shape[5 - axis] == 3 * patch
        line = seen[0, 0, 0] if axis == 3 else seen[0, 0, :, 0]
        assert torch.allclose(line.view(7, patch).mean(1)[1:-1], 16.0 * torch.arange(1, 6), atol=1e-3)
    assert on_patches(torch.ones(1, 3, 1, 1), 16, patch).shape == (1, 3, patch, patch)


def test_two_depths_of_a_vit_are_read():
    "What comes out of its ninth and of its twelfth block, each normalised."
    net, seen = create_segmenter(small("linear2", "vit_toy_patch8_96", pretrained=True), 3).eval(), {}
    for k in (8, 11):
        net.backbone.vit.blocks[k].register_forward_hook(lambda module, _, out, k=k: seen.update({k: out}))
    images = torch.rand(2, 3, 33, 49, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = net.coarse(images)
        tokens = torch.cat([net.backbone.vit.norm(seen[k])[:, 1:] for k in (8, 11)], 2)
        maps = tokens.transpose(1, 2).unflatten(2, (3, 4))
        torch.testing.assert_close(found, net.head.classifier(net.head.norm(maps)))


def test_a_vit_that_stays_as_it_is_learns_a_linear_layer(tmp_path):
    "With a rate of 0 no weight of the backbone moves, none needs a gradient, and what is to be learnt is."
    config = small(
        "linear", "vit_toy_patch8_96", pretrained=True, backbone_lr=0.0, steps=100, lr=0.05, optimizer="adamw"
    )
    before = create_segmenter(config, 3).backbone.state_dict()
    model, history = train_segmenter(config, Shapes(), tmp_path)
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.backbone.state_dict().items())
    assert history[-1]["loss"] < history[0]["loss"] / 2


def test_a_trained_classifier_is_a_backbone(tmp_path):
    "Its head is left out, also for a model that has none in timm, as DINOv2's."
    for name, changes in (("vit_toy_patch8_96", {}), ("vit_small_patch14_dinov2", dict(img_size=28))):
        trained = timm.create_model(name, num_classes=3, **changes)
        safetensors.torch.save_file(trained.state_dict(), tmp_path / f"{name}.safetensors")
    net = create_backbone("vit_toy_patch8_96", 16, weights=tmp_path / "vit_toy_patch8_96.safetensors")
    held = safetensors.torch.load_file(tmp_path / "vit_toy_patch8_96.safetensors")
    assert torch.equal(net.vit.cls_token, held["cls_token"])
    with pytest.raises(InputError, match="pos_embed"):  # of another size, and not of the head
        create_backbone("vit_small_patch14_dinov2", 16, weights=tmp_path / "vit_small_patch14_dinov2.safetensors")


def test_a_network_that_reads_early_maps_refuses_a_vit():
    with pytest.raises(InputError, match="Backbone 'vit_toy_patch8_96' is a ViT, .*'linear'"):
        create_segmenter(small("deeplabv3plus", "vit_toy_patch8_96"), 3)
    with pytest.raises(InputError, match="Backbone 'vit_toy_patch8_96' is a ViT"):  # before anything is trained
        check_fit(override(preset("toy"), {"segmenter.backbone": "vit_toy_patch8_96"}))


def test_killed_and_resumed_equals_uninterrupted(tmp_path, killed_at):
    "Bit for bit on the CPU, dropout and batch norm included, wherever the run is cut."
    config, data = small(steps=7, dropout=0.3), Shapes()
    whole, history = train_segmenter(config, data, tmp_path / "whole", seed=5, checkpoint_every=2)
    for cut in (3, 4):
        with killed_at(torch.optim.SGD, "step", cut + 1):
            train_segmenter(config, data, tmp_path / f"cut{cut}", seed=5, checkpoint_every=2)
        assert (tmp_path / f"cut{cut}" / "checkpoint.pt").is_file() and not (
            tmp_path / f"cut{cut}" / "model.safetensors"
        ).exists()
        resumed, again = train_segmenter(config, data, tmp_path / f"cut{cut}", seed=5, checkpoint_every=2)
        assert again == history
        assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))


def test_seed_and_workers(tmp_path):
    config, data = small(), Shapes()
    weights = [
        train_segmenter(config, data, tmp_path / str(i), seed=seed, workers=workers)[0].state_dict()
        for i, (seed, workers) in enumerate([(0, 0), (0, 2), (1, 0)])
    ]
    assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values()))
    assert any(not torch.equal(a, b) for a, b in zip(weights[0].values(), weights[2].values()))


def test_checkpoint_of_another_run_is_refused(tmp_path):
    data = Shapes()
    train_segmenter(small(steps=4), data, tmp_path, checkpoint_every=2)
    with pytest.raises(InputError, match="checkpoint.pt"):
        train_segmenter(small(steps=6), data, tmp_path, checkpoint_every=2)


def test_missing_pseudo_label_is_named_before_training(tmp_path):
    from wegformer.data import VOCDataset
    from wegformer.toyvoc import make_toy_voc

    root = make_toy_voc(tmp_path / "toy", train=3, val=1)
    ids = VOCDataset(root, "train").ids
    write_mask(tmp_path / "labels" / f"{ids[0]}.png", VOCDataset(root, "train").mask(0))
    with pytest.raises(InputError, match=rf"{ids[1]}.png does not exist \(2 of 3"):
        train_segmenter(small(), VOCDataset(root, "train", masks=tmp_path / "labels"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bf16_trains(tmp_path):
    model, history = train_segmenter(small(precision="bf16"), Shapes(), tmp_path)
    assert np.isfinite(history[-1]["loss"]) and all(p.dtype == torch.float32 for p in model.parameters())


def test_foreign_file_is_no_segmenter(tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    safetensors.torch.save_file(
        {"a": torch.zeros(1)}, tmp_path / "d.safetensors", {"config": "InitialConfig(images=8000)", "classes": "[]"}
    )
    (tmp_path / "b.safetensors").write_bytes(b"nothing")
    for name in ("a", "b", "c", "d"):
        with pytest.raises(InputError, match=f"{name}.safetensors"):
            load_segmenter(tmp_path / f"{name}.safetensors")


# ---- prediction


@pytest.mark.parametrize("size", [(64, 64), (37, 53), (1, 9), (90, 17)])
@pytest.mark.parametrize("scales,flip", [((1.0,), False), ((0.5, 1.0, 1.5), True)])
def test_probabilities_at_full_resolution(size, scales, flip):
    model = create_segmenter(small(), 4).eval()
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    probabilities = predict(model, image, scales=scales, flip=flip)
    assert probabilities.shape == (4, *size) and probabilities.dtype == torch.float32
    assert torch.allclose(probabilities.sum(0), torch.ones(size), atol=1e-5)


def test_flip_makes_prediction_mirror():
    model = create_segmenter(small(), 4).eval()
    image = torch.randint(0, 256, (3, 45, 71), dtype=torch.uint8)
    a, b = (
        predict(model, image, scales=(0.75, 1.0), flip=True),
        predict(model, image.flip(-1), scales=(0.75, 1.0), flip=True),
    )
    assert torch.allclose(a, b.flip(-1), atol=1e-5)
    assert not torch.allclose(predict(model, image), predict(model, image.flip(-1)).flip(-1), atol=1e-5)


def test_predict_is_the_mean_of_its_parts():
    model = create_segmenter(small(), 4).eval()
    image = torch.randint(0, 256, (3, 45, 71), dtype=torch.uint8)
    parts = [predict(model, image, scales=(s,)) for s in (0.5, 1.5)]
    assert torch.allclose(predict(model, image, scales=(0.5, 1.5)), torch.stack(parts).mean(0), atol=1e-6)


def test_predict_leaves_the_mode_alone():
    model = create_segmenter(small(), 4).train()
    image = torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8)
    before = model.head.decoder.block1[1].running_mean.clone()
    assert torch.equal(predict(model, image), predict(model, image))  # no dropout
    assert model.training and torch.equal(before, model.head.decoder.block1[1].running_mean)


def test_predict_dataset_goes_on(tmp_path):
    data, model = Shapes(4), create_segmenter(small(), 3).eval()
    marked = torch.full(tuple(data.mask(1).shape), 2, dtype=torch.uint8)
    write_mask(tmp_path / "id_1.png", marked)  # as if written before the kill
    (tmp_path / ".id_2.png.1.tmp").write_bytes(b"half")  # what a kill may leave behind
    predict_dataset(model, data, tmp_path)
    assert torch.equal(read_mask(tmp_path / "id_1.png"), marked)
    for i in (0, 2, 3):
        mask = read_mask(tmp_path / f"id_{i}.png", tuple(data.mask(i).shape))
        assert torch.equal(mask.as_subclass(torch.Tensor), predict(model, data.image(i)).argmax(0).to(torch.uint8))


@pytest.mark.parametrize("workers", [0, 1])
def test_crf_at_test_time(tmp_path, workers):
    crf = pytest.importorskip("wegformer.crf")
    data, model = Shapes(2), create_segmenter(small(), 3).eval()
    predict_dataset(model, data, tmp_path, crf=crf.CRFParams(), workers=workers)
    for i in range(2):
        expected = torch.as_tensor(crf.dense_crf(data.image(i), predict(model, data.image(i)), crf.CRFParams())).argmax(
            0
        )
        assert torch.equal(read_mask(tmp_path / f"id_{i}.png").as_subclass(torch.Tensor).long(), expected.long())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("network", ["deeplabv3plus", "deeplabv2"])
def test_gpu(network, tmp_path):
    model, history = train_segmenter(small(network, precision="bf16"), Shapes(), tmp_path)
    assert model.mean.is_cuda and np.isfinite(history[-1]["loss"])
    image = Shapes().image(0)
    with torch.backends.cudnn.flags(allow_tf32=False):
        gpu = predict(model, image).cpu()
    assert torch.allclose(gpu, predict(model.cpu(), image), atol=1e-2)
