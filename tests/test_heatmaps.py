"The comparison methods: brute force, batches, modes, one set of checks for all."

import inspect

import pytest
import timm
import torch
from hypothesis import given, settings, strategies as st
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import scale_cam_image

import wegformer.networks.toy  # noqa: F401 (registers with timm)
from wegformer.classifier import create_classifier
from wegformer.data import InputError
from wegformer.heatmaps import METHODS, cam_maps, cnn_cam_maps, grad_cam_maps, raw_attention_maps, rollout_maps
from wegformer.vit import attention_matrix
from wegformer.vit import run_blocks

KINDS = {
    "plain": {},
    "one block": {"depth": 1},
    "qk-norm": {"qk_norm": True},
    "LayerScale": {"init_values": 0.1},
    "no bias": {"qkv_bias": False},
    "fc_norm": {"fc_norm": True},
    "16x8": {"patch_size": (16, 8)},
}


def random_vit(img_size=32, std=0.2, dtype=torch.float64, name="vit_tiny_patch16_224", **options):
    torch.manual_seed(0)
    options = dict(patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=4) | options
    model = timm.create_model(name, img_size=img_size, **options)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    return model.to(dtype).eval()


def randn(*shape, dtype=torch.float64, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def all_pairs(images, classes):
    return torch.cartesian_prod(torch.arange(images), torch.arange(classes))


def caught_attention(model, image):
    "The attention maps that timm itself computes, unfused, caught on their way into the dropout."
    caught, hooks = [], []
    for block in model.blocks:
        block.attn.fused_attn = False
        hooks.append(block.attn.attn_drop.register_forward_hook(lambda m, args, out: caught.append(out)))
    with torch.no_grad():
        model(image[None])
    for hook in hooks:
        hook.remove()
    for block in model.blocks:
        block.attn.fused_attn = True
    return [M[0] for M in caught]  # (h, N, N) each


@pytest.mark.parametrize("kind", KINDS)
def test_rollout_is_the_matrix_product(kind):
    "Against full matrices, multiplied one image at a time, on the attention maps caught inside timm."
    model, images = random_vit(**KINDS[kind]), randn(3, 3, 32, 32)
    maps = rollout_maps(model, images, all_pairs(3, 2)).flatten(1)
    for i, image in enumerate(images):
        product = torch.eye(maps.shape[1] + 1).double()
        for M in caught_attention(model, image):
            A = M.mean(0) + torch.eye(len(product))
            product = (A / A.sum(1, keepdim=True)) @ product
        assert torch.allclose(product.sum(1), torch.ones(1).double())
        for c in range(2):
            assert torch.allclose(maps[2 * i + c], product[0, 1:], rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_matrix(kind):
    model, images = random_vit(**KINDS[kind]), randn(2, 3, 32, 32)
    for i in range(2):
        for b, M in enumerate(caught_attention(model, images[i])):
            with torch.no_grad():
                maps = attention_matrix(model.blocks[b], run_blocks(model, images, b))
            assert torch.allclose(maps[i], M)


@pytest.mark.parametrize("kind", KINDS)
def test_cam_is_the_head_on_patches(kind):
    model, images = random_vit(**KINDS[kind]), randn(2, 3, 32, 32)
    maps = cam_maps(model, images, all_pairs(2, 4)).view(2, 4, 32 // model.patch_embed.patch_size[0], 4)
    with torch.no_grad():
        z = model.forward_features(images)
    for i in range(2):
        for c in range(4):
            for y in range(maps.shape[2]):
                for x in range(4):
                    with torch.no_grad():
                        score = model.head(model.fc_norm(z[i, 1 + 4 * y + x])) - model.head.bias
                    assert torch.allclose(maps[i, c, y, x], score[c])


def test_cam_of_mean_pooling_is_the_logit():
    "What makes CAM what it is: with the mean of the patches in place of the class token, its mean is the logit."
    model, images = random_vit(final_norm=False), randn(2, 3, 32, 32)
    maps = cam_maps(model, images, all_pairs(2, 4)).mean((1, 2)).view(2, 4)
    with torch.no_grad():
        logits = model.head(model.forward_features(images)[:, 1:].mean(1))
    assert torch.allclose(maps + model.head.bias, logits)


def library_map(model, layer, images, pair, reshape=None):
    "The Grad-CAM of a maintained library for one (image, class), scaled to 0..1 at the picture's size."
    with GradCAM(model, [layer], reshape_transform=reshape) as cam:
        return torch.from_numpy(cam(images[pair[0] : pair[0] + 1], [lambda logits: 1e6 * logits[pair[1]]]))[0]


def scaled(maps, size):
    "Our map as that library scales it."
    maps = 1e6 * maps.clamp(min=0).numpy()[None]  # large, since 1e-7 is added to its maximum
    return torch.from_numpy(scale_cam_image(scale_cam_image(maps, size[::-1])))[0]  # once each layer, once their mean


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "16x8"])
def test_grad_cam_is_the_librarys(kind):
    model, images, pairs = (
        random_vit(dtype=torch.float32, **KINDS[kind]),
        randn(2, 3, 32, 32, dtype=torch.float32),
        all_pairs(2, 4),
    )
    for A, pair in zip(grad_cam_maps(model, images, pairs), pairs):
        theirs = library_map(
            model, model.blocks[-1].norm1, images, pair, lambda x: x[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
        )
        assert torch.allclose(scaled(A, (32, 32)), theirs, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_lite0", "mobilenetv3_small_050"])
def test_cnn_cam_is_the_librarys_grad_cam(name):
    "With nothing but an average before the head, Grad-CAM of the last features is CAM's positive part."
    torch.manual_seed(0)
    model, images, pairs = (
        timm.create_model(name, num_classes=4).eval(),
        randn(2, 3, 64, 96, dtype=torch.float32),
        all_pairs(2, 4),
    )
    if name.startswith("mobilenetv3"):  # a hidden layer lies between
        with pytest.raises(InputError, match="no class activation maps"):
            cnn_cam_maps(model, images, pairs)
        return
    layer = model.layer4[-1] if name.startswith("resnet") else model.bn2
    maps = cam_maps(model, images, pairs)
    assert maps.shape == (8, 2, 3)
    for A, pair in zip(maps, pairs):
        assert torch.allclose(scaled(A, (64, 96)), library_map(model, layer, images, pair), atol=1e-4)


@pytest.mark.parametrize("stride, shape", [(None, (2, 3)), (16, (4, 6)), (8, (8, 12))])
def test_cnn_cam_at_finer_output_strides(stride, shape):
    model = create_classifier("resnet_toy", 10, output_stride=stride)
    images, pairs = randn(2, 3, 64, 96, dtype=torch.float32), all_pairs(2, 3)
    maps = cam_maps(model, images, pairs)
    with torch.no_grad():
        scores = (model(images) - model.fc.bias)[pairs[:, 0], pairs[:, 1]]
    assert maps.shape[1:] == shape and torch.allclose(maps.mean((1, 2)), scores, atol=1e-4)
    grad_cam = maps.clamp(min=0) / maps[0].numel()  # behind an average the gradient is the head's weight
    assert torch.allclose(grad_cam_maps(model, images, pairs), grad_cam)
    for name, method in METHODS.items():
        if name not in ("cam", "grad_cam"):
            with pytest.raises(InputError):
                method.function(model, images, pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_raw_attention(kind):
    model, images = random_vit(**KINDS[kind]), randn(2, 3, 32, 32)
    maps = raw_attention_maps(model, images, all_pairs(2, 2)).flatten(1)
    for i in range(2):
        expected = caught_attention(model, images[i])[-1].mean(0)[0, 1:]
        assert torch.allclose(maps[2 * i], expected) and torch.allclose(maps[2 * i + 1], expected)


@pytest.mark.parametrize("kind", [dict(name="deit_tiny_distilled_patch16_224"), dict(reg_tokens=4)])
def test_other_prefix_tokens(kind):
    "A distillation token or registers: maps have the size of the patch grid, and what two heads read is their mean."
    model, images, pairs = random_vit(**kind), randn(2, 3, 32, 32), all_pairs(2, 4)
    for method in METHODS.values():
        assert method.function(model, images, pairs).shape == (8, 4, 4)
    if "name" in kind:
        M = torch.stack([caught_attention(model, image)[-1] for image in images])  # (B, h, N, N)
        assert torch.allclose(raw_attention_maps(model, images, pairs)[::4].flatten(1), M[:, :, :2, 2:].mean((1, 2)))
        with torch.no_grad():
            scores = sum(h(model.forward_features(images)[:, 2:]) - h.bias for h in (model.head, model.head_dist)) / 2
        assert torch.allclose(cam_maps(model, images, pairs).flatten(1), scores.mT.flatten(0, 1))


# ---- what all methods share


def test_methods():
    "One table: names as keys, titles in the order of figure 4, and only CAM of either sign."
    assert {name: method.title for name, method in METHODS.items()} == {
        "cam": "CAM",
        "grad_cam": "Grad-CAM",
        "attention": "raw attention",
        "rollout": "rollout",
        "dtd": "DTD",
    }
    assert [name for name, method in METHODS.items() if method.signed] == ["cam"]
    for name, method in METHODS.items():
        assert method.name == name
        assert list(inspect.signature(method.function).parameters)[:3] == ["model", "images", "pairs"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-8), (torch.float32, 1e-3)])
@pytest.mark.parametrize("size", [(32, 32), (8, 40), (48, 24)])
def test_batch_is_batch_of_one(method, dtype, tolerance, size):
    model, images = random_vit(dtype=dtype, dynamic_img_size=True), randn(3, 3, *size, dtype=dtype)
    pairs = all_pairs(3, 4)
    maps = METHODS[method].function(model, images, pairs)
    assert maps.shape == (12, size[0] // 8, size[1] // 8) and maps.dtype == dtype
    for n, (i, c) in enumerate(pairs.tolist()):
        one = METHODS[method].function(model, images[i : i + 1], torch.tensor([[0, c]]))[0]
        assert (one - maps[n]).norm() <= tolerance * one.norm()


_kept = {}


@pytest.mark.parametrize("method", METHODS)
@given(pairs=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=9))
@settings(max_examples=20, deadline=None)
def test_any_order_of_pairs(method, pairs):
    if "model" not in _kept:
        _kept["model"] = random_vit()
    model, images, pairs = _kept["model"], randn(3, 3, 32, 32), torch.tensor(pairs, dtype=torch.int64).view(-1, 2)
    if method not in _kept:
        _kept[method] = METHODS[method].function(model, images, all_pairs(3, 4)).view(3, 4, 4, 4)
    expected = _kept[method][pairs[:, 0], pairs[:, 1]]
    assert torch.allclose(METHODS[method].function(model, images, pairs), expected, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_grad_modes(method, mode):
    model, images, pairs = random_vit(), randn(2, 3, 32, 32), all_pairs(2, 4)
    expected = METHODS[method].function(model, images, pairs)
    with mode():
        got = METHODS[method].function(model, images, pairs)
    assert torch.equal(got, expected) and not got.requires_grad and not got.is_inference()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("half", ["autocast", torch.bfloat16, torch.float16])
def test_half_precision(method, half):
    model, images = random_vit(dtype=torch.float32, std=0.1), randn(2, 3, 32, 32, dtype=torch.float32)
    pairs = all_pairs(2, 4)
    expected = METHODS[method].function(model, images, pairs)
    with torch.autocast("cpu", torch.bfloat16, enabled=half == "autocast"):
        if half != "autocast":
            model, images = model.to(half), images.to(half)
        got = METHODS[method].function(model, images, pairs)
    cosine = torch.nn.functional.cosine_similarity(got.flatten(1), expected.flatten(1))
    assert got.dtype == torch.float32 and got.isfinite().all() and cosine.median() > 0.95


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("method", METHODS)
def test_gpu(method):
    model, images, pairs = random_vit(), randn(2, 3, 32, 32), all_pairs(2, 4)
    expected = METHODS[method].function(model, images, pairs)
    got = METHODS[method].function(model.cuda(), images.cuda(), pairs.cuda()).cpu()
    assert torch.allclose(got, expected, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "images, pairs, reason",
    [
        (randn(3, 32, 32), [[0, 0]], "images: expected a tensor"),
        (randn(1, 3, 32, 32).float(), [[0, 0]], "images: expected the model's"),
        (randn(1, 3, 30, 32), [[0, 0]], "images: expected height and width in multiples"),
        (randn(1, 3, 32, 32), [[1, 0]], "pairs: image index 1 is out of range"),
        (randn(1, 3, 32, 32), [[0, 4]], "pairs: class index 4 is out of range"),
        (randn(1, 3, 32, 32), [[0.5, 1]], "pairs: expected an int64 tensor"),
    ],
)
def test_bad_input(method, images, pairs, reason):
    with pytest.raises(InputError, match=reason):
        METHODS[method].function(random_vit(), images, torch.tensor(pairs))


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("cam", "grad_cam")])  # these take a CNN
def test_other_models(method):
    with pytest.raises(InputError, match="ResNet is not supported"):
        METHODS[method].function(timm.create_model("resnet18").eval(), randn(1, 3, 32, 32), torch.tensor([[0, 0]]))
