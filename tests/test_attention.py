import timm
import pytest
import torch

import wegformer.networks.toy  # noqa: F401 (registers with timm)
from wegformer.attention import AttentionConfig, attention_maps, min_max
from wegformer.data import InputError
from wegformer.heatmaps import METHODS


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=48,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=3,
        num_classes=5,
        dynamic_img_size=True,
    ).eval()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(48, 48), (31, 57), (64, 9)])
def test_maps_have_the_photographs_size_and_range(model, method, size):
    image, classes = torch.randint(0, 256, (3, *size), dtype=torch.uint8), torch.tensor([1, 3, 5])
    maps = attention_maps(model, image, classes, AttentionConfig(method=method, long_side=48, precision="no"))
    assert maps.shape == (3, *size) and maps.dtype == torch.float32
    assert torch.allclose(maps.amin((1, 2)), torch.zeros(3)) and torch.allclose(
        maps.amax((1, 2)), torch.ones(3), atol=1e-3
    )


def test_each_class_alone_equals_all_together(model):
    image, config = torch.randint(0, 256, (3, 40, 48), dtype=torch.uint8), AttentionConfig(long_side=48, precision="no")
    together = attention_maps(model, image, torch.tensor([2, 4]), config)
    for k, c in enumerate((2, 4)):
        assert torch.allclose(together[k], attention_maps(model, image, torch.tensor([c]), config)[0], atol=1e-5)


def test_flip_makes_maps_equivariant(model):
    image, classes = torch.randint(0, 256, (3, 48, 48), dtype=torch.uint8), torch.tensor([1])
    for join in ("sum", "max"):
        config = AttentionConfig(long_side=48, join=join, precision="no")
        straight, mirrored = (
            attention_maps(model, image, classes, config),
            attention_maps(model, image.flip(-1), classes, config).flip(-1),
        )
        assert torch.allclose(straight, mirrored, atol=1e-4)


def test_scales_are_summed_by_hand(model):
    image, classes = torch.randint(0, 256, (3, 48, 48), dtype=torch.uint8), torch.tensor([2])
    from wegformer.classifier import normalize

    x = normalize(image, model)[None]
    maps = METHODS["dtd"].function(model, torch.cat([x, x.flip(-1)]), torch.tensor([[0, 1], [1, 1]]))
    total = sum(
        torch.nn.functional.interpolate(m[None, None], (48, 48), mode="bilinear")[0]
        for m in (maps[0], maps[1].flip(-1))
    )
    assert torch.allclose(
        attention_maps(model, image, classes, AttentionConfig(long_side=48, scales=(1.0,), precision="no")),
        min_max(total),
        atol=1e-5,
    )


@pytest.mark.parametrize("options", [{}, dict(join="max"), dict(flip=False, scales=(1.0, 0.5))])
def test_several_first_blocks_equal_each_alone(model, options):
    image, classes = torch.randint(0, 256, (3, 40, 48), dtype=torch.uint8), torch.tensor([2, 5])
    maps = attention_maps(
        model, image, classes, AttentionConfig(long_side=48, precision="no", blocks=(0, 1), **options)
    )
    assert maps.shape == (2, 2, 40, 48)
    for start, block in enumerate(maps):
        alone = attention_maps(
            model, image, classes, AttentionConfig(long_side=48, precision="no", start_block=start, **options)
        )
        assert torch.allclose(block, alone, atol=1e-4)
    none = attention_maps(model, image, classes[:0], AttentionConfig(blocks=(0, 1)))
    assert none.shape == (2, 0, 40, 48)


def test_no_labels_no_maps(model):
    assert attention_maps(model, torch.zeros(3, 9, 7, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)).shape == (
        0,
        9,
        7,
    )


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(method="lrp"), "attention.method is 'lrp'"),
        (dict(blocks=(1,), method="cam"), "attention.blocks is"),
        (dict(blocks=(1,), start_block=0), "attention.blocks is"),
        (dict(join="mean"), "attention.join"),
        (dict(scales=()), "attention.scales"),
        (dict(scales=(0.0,)), "attention.scales"),
    ],
)
def test_wrong_settings(wrong, words):
    with pytest.raises(InputError, match=words):
        AttentionConfig(**wrong)
