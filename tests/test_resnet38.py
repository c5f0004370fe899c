import pytest
import timm
import torch
from timm.models import build_model_with_cfg, register_model
from torch import nn

from wegformer.classifier import create_classifier, mean_std
from wegformer.data import InputError
from wegformer.heatmaps import cam_maps
from wegformer.networks.resnet38 import STAGES, ResidualUnit, ResNet38

PLAIN = ["bn_branch2a", "bn_branch2b1", "conv_branch2a", "conv_branch2b1"]
BOTTLENECK = PLAIN + ["bn_branch2b2", "conv_branch2b2"]
UNITS = {name: PLAIN for name in "b2_1 b2_2 b3_1 b3_2 b4_1 b4_2 b4_3 b4_4 b4_5 b5_1 b5_2".split()}
UNITS |= {name: PLAIN + ["conv_branch1"] for name in ("b2", "b3", "b4", "b5")}
UNITS |= {name: BOTTLENECK + ["conv_branch1"] for name in ("b6", "b7")}
NORM = ("weight", "bias", "running_mean", "running_var")


@register_model
def resnet38_narrow(pretrained=False, **kwargs):
    return build_model_with_cfg(ResNet38, "resnet38_narrow", pretrained, **{"width": 4, **kwargs})


@pytest.fixture(scope="module")
def meta():
    with torch.device("meta"):
        return timm.create_model("resnet38", num_classes=20).eval()


def community_file(path, net, head=None, **extra):
    "What the community's converters write: no counts of batches, the head (if any) as a convolution."
    left_out = ("num_batches_tracked", "fc8.weight")
    state = {f"module.{k}": v for k, v in net.state_dict().items() if not k.endswith(left_out)}
    torch.save(state | ({} if head is None else {"module.fc8.weight": head}) | extra, path)
    return path


def test_names_are_the_communitys(meta):
    "AffinityNet's names and no others (its head is a 1x1 convolution of the same name)."
    expected = {"conv1a.weight", "fc8.weight"} | {f"bn7.{leaf}" for leaf in NORM}
    for unit, layers in UNITS.items():
        for layer in layers:
            expected |= {f"{unit}.{layer}.{leaf}" for leaf in (NORM if layer.startswith("bn") else ("weight",))}
    assert {k for k in meta.state_dict() if not k.endswith("num_batches_tracked")} == expected


@pytest.mark.parametrize(
    "key, shape",
    {
        "conv1a.weight": (64, 3, 3, 3),
        "b2.bn_branch2a.weight": (64,),
        "b2.conv_branch1.weight": (128, 64, 1, 1),
        "b2.conv_branch2a.weight": (128, 64, 3, 3),
        "b2.conv_branch2b1.weight": (128, 128, 3, 3),
        "b4_5.conv_branch2b1.weight": (512, 512, 3, 3),
        "b5.conv_branch2a.weight": (512, 512, 3, 3),
        "b5.conv_branch2b1.weight": (1024, 512, 3, 3),
        "b5_2.conv_branch2a.weight": (512, 1024, 3, 3),
        "b6.conv_branch2a.weight": (512, 1024, 1, 1),
        "b6.conv_branch2b1.weight": (1024, 512, 3, 3),
        "b6.conv_branch2b2.weight": (2048, 1024, 1, 1),
        "b7.conv_branch2b2.weight": (4096, 2048, 1, 1),
        "b7.conv_branch1.weight": (4096, 2048, 1, 1),
        "bn7.weight": (4096,),
        "fc8.weight": (20, 4096),
    }.items(),
)
def test_shapes_of_layers(meta, key, shape):
    assert tuple(meta.state_dict()[key].shape) == shape


def test_size_and_depth(meta):
    convolutions = [m for n, m in meta.named_modules() if isinstance(m, nn.Conv2d) and not n.endswith("branch1")]
    assert len(convolutions) + 1 == 38
    assert sum(p.numel() for n, p in meta.named_parameters() if not n.startswith("fc8")) == 105_070_912
    assert meta.get_classifier().weight.shape == (20, 4096) and meta.num_features == 4096


@pytest.mark.parametrize("size", [(8, 8), (224, 224), (375, 500), (97, 1)])
def test_output_stride(meta, size):
    features = meta.forward_features(torch.zeros(2, 3, *size, device="meta"))
    assert features.shape == (2, 4096, -(-size[0] // 8), -(-size[1] // 8))
    assert meta.forward_head(features).shape == (2, 20)
    assert meta.forward_head(features, pre_logits=True).shape == (2, 4096)


def test_dilation_and_dropout(meta):
    inside = {name: meta.get_submodule(name).conv_branch2b1.dilation[0] for name in UNITS}
    assert {name: d for name, d in inside.items() if d > 1} == {"b5": 2, "b5_1": 2, "b5_2": 2, "b6": 4, "b7": 4}
    first = {name: meta.get_submodule(name).conv_branch2a.dilation[0] for name in UNITS}
    assert {name: d for name, d in first.items() if d > 1} == {"b5_1": 2, "b5_2": 2}
    layers = meta.b5.dropout, meta.b6.dropout, meta.b7.dropout, meta.head_drop
    assert [layer.p for layer in layers] == [0, 0.3, 0.5, 0.5]
    assert [info["reduction"] for info in meta.feature_info] == [2, 4, 8, 8, 8, 8]


def test_a_unit_by_hand():
    torch.manual_seed(0)
    unit, x = ResidualUnit((3, 4, 5), stride=2).double(), torch.randn(2, 3, 7, 6, dtype=torch.float64)

    def normed(x):
        return (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()

    a = normed(x).relu()
    b = normed(nn.functional.conv2d(a, unit.conv_branch2a.weight, stride=2, padding=1)).relu()
    b = nn.functional.conv2d(b, unit.conv_branch2b1.weight, padding=1)
    assert torch.allclose(unit(x), b + nn.functional.conv2d(a, unit.conv_branch1.weight, stride=2))
    same = ResidualUnit((3, 3, 3)).eval()
    nn.init.zeros_(same.conv_branch2b1.weight)
    assert torch.equal(same(x.float()), x.float())  # the identity is not activated


@pytest.mark.parametrize("head", [None, (5, 256, 1, 1), (21, 256, 1, 1), (5, 256)])
def test_community_checkpoints(tmp_path, head):
    torch.manual_seed(0)
    net = timm.create_model("resnet38_narrow", num_classes=5).eval()
    head = None if head is None else torch.randn(head)
    more = {"module.f9.weight": torch.zeros(3), "module.fc8_seg.bias": torch.zeros(2)}
    path = community_file(tmp_path / "res38_cls.pth", net, head, **more)
    ours = create_classifier("resnet38_narrow", 5, weights=path)
    x = torch.randn(1, 3, 40, 33)
    with torch.no_grad():
        features = net.forward_features(x)
        assert torch.equal(ours.forward_features(x), features)
        if head is not None and len(head) == 5:
            assert torch.allclose(ours(x), features.mean((2, 3)) @ head.view(5, 256).T, atol=1e-6)


def test_checkpoints_of_other_networks(tmp_path):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.pth")
    words = "resnet18.pth belong to another model than ResNet38: it has no 'conv1a.weight'"
    with pytest.raises(InputError, match=words):
        create_classifier("resnet38_narrow", weights=tmp_path / "resnet18.pth")


def test_class_activation_maps():
    torch.manual_seed(0)
    net = create_classifier("resnet38_narrow", 5, pretrained=False, output_stride=8)
    images, pairs = torch.randn(2, 3, 48, 41), torch.tensor([[0, 1], [1, 4], [1, 0]])
    maps = cam_maps(net, images, pairs)
    assert maps.shape == (3, 6, 6)
    with torch.no_grad():
        assert torch.allclose(maps.mean((1, 2)), net(images)[pairs[:, 0], pairs[:, 1]], atol=1e-5)


def test_the_head_can_be_replaced():
    net = timm.create_model("resnet38_narrow", num_classes=0)
    assert net.eval()(torch.zeros(1, 3, 16, 16)).shape == (1, 256)
    net.reset_classifier(7)
    assert net(torch.zeros(1, 3, 16, 16)).shape == (1, 7) and net.num_classes == 7


def test_as_a_classifier():
    "The published width once, with numbers."
    net = create_classifier("resnet38", pretrained=False)
    with torch.inference_mode():
        assert net(torch.zeros(1, 3, 32, 32)).isfinite().all()
    assert mean_std(net) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) and len(STAGES) == 6
    with pytest.raises(InputError, match="cannot be made with output_stride=16"):
        create_classifier("resnet38", pretrained=False, output_stride=16)
    with pytest.raises(InputError, match="'resnet38' could not be loaded .*No pretrained weights.* weights=PATH"):
        create_classifier("resnet38")
