"Deep Taylor decomposition: reference vectors, the rules, fast against plain, every way to call it, bad input."

import copy
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from timm.models.vision_transformer import ParallelThingsBlock, ResPostBlock

import wegformer.all_blocks as all_blocks
from wegformer.data import InputError
from wegformer.last_block import pair_slots, value_products
from wegformer.relevance import dtd_maps
from wegformer.rules import (
    add_rule,
    divide,
    dtd_maps_plain,
    fork_rule,
    linear_rule,
    matmul_rule,
    propagate,
    record_forward,
)
from wegformer.vit import check_vit

OPTIONS = [
    {},
    {"clamp": False},
    {"gradient": False},
    {"seed": "logit"},
    {"clamp": False, "gradient": False, "seed": "logit"},
]


def random_vit(img_size=32, std=0.2, dtype=torch.float64, name="vit_tiny_patch16_224", seed=0, **options):
    "A small ViT, every parameter random: also biases, norms and LayerScales have both signs."
    torch.manual_seed(seed)
    options = dict(patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=4) | options
    model = timm.create_model(name, img_size=img_size, **options)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    return model.to(dtype).eval()


def randn(*shape, dtype=torch.float64, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def distance(maps, expected):
    "The worst relative L2 distance of a map to the expected one."
    maps, expected = maps.flatten(1).double(), torch.as_tensor(expected).flatten(1).double()
    return ((maps - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


def all_pairs(images, classes):
    return torch.cartesian_prod(torch.arange(images), torch.arange(classes))


# ---- reference vectors


@pytest.fixture(scope="module")
def golden(shared):
    with np.load(shared / "golden" / "dtd_a.npz") as data:
        z = dict(data)
    size, patch, width, depth, heads, classes, count = map(int, z["config"])
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=size,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        num_classes=classes,
    )
    model.load_state_dict({k[2:]: torch.from_numpy(v) for k, v in z.items() if k.startswith("w:")})
    return (
        model.double().eval(),
        torch.from_numpy(z["x"]).double(),
        all_pairs(count, classes),
        {k: v.reshape(count * classes, *v.shape[2:]) for k, v in z.items() if k[:2] not in ("w:", "x", "co")},
    )


@pytest.mark.parametrize("maps", [dtd_maps, dtd_maps_plain])
def test_golden(golden, maps):
    model, x, pairs, z = golden
    np.testing.assert_allclose(model(x).detach().flatten(), z["logits"].flatten(), atol=1e-12)
    assert distance(maps(model, x, pairs), z["last_block"]) < 1e-9
    for k in range(4):
        assert distance(maps(model, x, pairs, k), z[f"attribution_start{k}"]) < 1e-9
    assert distance(maps(model, x, pairs, 0, gradient=False), z["rollout_relevance"]) < 1e-9


def in_another_order(model, seed):
    "The same network with its channels and hidden units in another order, so that sums are added up in another one."
    model, g = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    channels = torch.randperm(model.embed_dim, generator=g)
    with torch.no_grad():
        for name, p in model.named_parameters():
            out_of = name.endswith(("proj.weight", "proj.bias", "fc2.weight", "fc2.bias")) or "norm" in name
            if out_of:
                p.copy_(p[channels])
            if name in ("cls_token", "pos_embed"):
                p.copy_(p[..., channels])
            if name.endswith(("qkv.weight", "fc1.weight", "head.weight")):
                p.copy_(p[:, channels])
        for block in model.blocks:
            hidden = torch.randperm(block.mlp.fc1.out_features, generator=g)
            for p in (block.mlp.fc1.weight, block.mlp.fc1.bias):
                p.copy_(p[hidden])
            block.mlp.fc2.weight.copy_(block.mlp.fc2.weight[:, hidden])
    return model


def test_golden_to_the_last_digit(golden):
    "The plain procedure is the published one, stabilisers and all; only the order of additions differs."
    model, x, pairs, z = golden
    assert distance(dtd_maps_plain(model, x, pairs), z["last_block"]) < 1e-12
    others = [in_another_order(model, seed) for seed in range(4)]
    cases = [(k, True, z[f"attribution_start{k}"]) for k in range(4)] + [(0, False, z["rollout_relevance"])]
    for k, gradient, expected in cases:
        maps = dtd_maps_plain(model, x, pairs, k, gradient=gradient)
        # the order is the processor's, too: no closer than the procedure comes to itself in another one
        noise = max(distance(dtd_maps_plain(other, x, pairs, k, gradient=gradient), maps) for other in others)
        assert noise < 1e-10 and distance(maps, expected) < max(1e-12, noise)


def test_golden_class_token_rows(golden):
    model, x, pairs, z = golden
    for n, (i, c) in enumerate(pairs.tolist()):
        records, top, logits = record_forward(model, x[i])
        G = torch.autograd.grad(logits[c], records[-1].M)[0]
        with torch.no_grad():
            R = propagate(model, records, top, F.one_hot(torch.tensor(c), 5).double(), 3)[0][3]
        assert (G[:, 1:] == 0).all() and (R[:, 1:] == 0).all()
        assert distance(G[:, 0], z["last_grad_cls"][n]) < 1e-10 and distance(R[:, 0], z["last_rel_cls"][n]) < 1e-12


def test_float32_is_close(golden):
    model, x, pairs, z = golden
    single = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, patch_size=8, embed_dim=48, depth=4, num_heads=3, num_classes=5
    )
    single.load_state_dict(model.state_dict())
    maps = dtd_maps(single.eval(), x.float(), pairs)
    assert maps.dtype == torch.float32 and distance(maps, z["last_block"]) < 1e-3


# ---- the rules


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(0, 9999))
@settings(max_examples=60, deadline=None)
def test_linear_rule(rows, n_in, n_out, seed):
    "Against the definition as a double loop, and the sum kept wherever an output was raised at all."
    x, W, R = randn(rows, n_in, seed=seed), randn(n_out, n_in, seed=seed + 1), randn(rows, n_out, seed=seed + 2)
    raised = (x[:, None] * W).clamp(min=0)  # (rows, out, in): x+W+ and x-W- are the positive products
    total = raised.sum(-1)
    expected = (raised * divide(R, total)[..., None]).sum(1)
    got = linear_rule(x, W, R)
    assert torch.allclose(got, expected)
    assert torch.allclose(got.sum(1), (R * (total > 0)).sum(1), rtol=1e-4, atol=1e-4)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(0, 9999))
@settings(max_examples=60, deadline=None)
def test_add_rule(batch, n, d, seed):
    "The batch's sums stay apart, the sum is kept, and the branches carry it by the sizes of their own sums."
    a, b, R = (randn(batch, n, d, seed=seed + i) for i in range(3))
    r_a, r_b = add_rule(a, b, R)
    for i in range(batch):
        one = add_rule(a[i], b[i], R[i])
        assert torch.allclose(r_a[i], one[0]) and torch.allclose(r_b[i], one[1])
        s_a, s_b = (R[i] * a[i] / (a[i] + b[i])).sum().abs(), (R[i] * b[i] / (a[i] + b[i])).sum().abs()
        assert torch.allclose(r_a[i].sum(), R[i].sum() * s_a / (s_a + s_b), rtol=1e-3, atol=1e-5)
        assert torch.allclose(r_a[i].sum() + r_b[i].sum(), R[i].sum(), rtol=1e-3, atol=1e-5)


def test_fork_rule():
    "The published stabiliser: all of it passes, but for what arrives where x = 0, which is lost."
    x, R = randn(40, 7), randn(40, 7, seed=2)
    assert torch.allclose(fork_rule(x, R), R, rtol=1e-5)
    assert torch.allclose(fork_rule(x, R), x * (divide(R / 3, x) + divide(R * 2 / 3, x)), rtol=1e-12)
    assert (fork_rule(torch.zeros_like(x), R) == 0).all()
    assert fork_rule(torch.tensor(-1e-9, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)).isfinite()


def test_matmul_rule_and_divide():
    A, B, R = randn(2, 3, 4).abs() + 0.1, randn(2, 4, 5).abs() + 0.1, randn(2, 3, 5)
    R_A, R_B = matmul_rule(A, B, R)
    product = A[..., None] * B[:, None] * divide(R, A @ B)[:, :, None] / 2  # (2, n, k, m)
    assert torch.allclose(R_A, product.sum(3)) and torch.allclose(R_B, product.sum(1))
    assert torch.equal(
        divide(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 0.0, -1.0])), torch.tensor([0.0, 0.0, -3.0])
    )
    assert divide(torch.tensor(1.0, dtype=torch.float64), torch.tensor(-1e-9, dtype=torch.float64)).isfinite()


@pytest.mark.parametrize(
    "options", [{}, {"init_values": 0.1}, {"qk_norm": True}, {"qkv_bias": False}, {"act_layer": "gelu_tanh"}]
)
def test_relevance_is_conserved(options):
    model = random_vit(depth=4, **options)
    for c in range(4):
        with torch.no_grad():
            records, z, logits = record_forward(model, randn(3, 32, 32))
            _, R = propagate(model, records, z, F.one_hot(torch.tensor(c), 4).double())
        assert torch.allclose(logits, model(randn(1, 3, 32, 32))[0]) and abs(R.sum().item() - 1) < 1e-4


# ---- fast and plain

MODELS = {
    "plain": {},
    "one block": {"depth": 1},
    "one head": {"num_heads": 1},
    "wide MLP": {"mlp_ratio": 5.5},
    "no biases": {"qkv_bias": False, "proj_bias": False},
    "LayerScale": {"init_values": 0.1},
    "qk-norm": {"qk_norm": True},
    "tanh GELU": {"act_layer": "gelu_tanh"},
    "ReLU": {"act_layer": "relu"},
    "quick GELU": {"act_layer": "quick_gelu"},
    "fc_norm": {"fc_norm": True},
    "pre_norm": {"pre_norm": True},
    "no final norm": {"final_norm": False},
    "no_embed_class": {"no_embed_class": True},
    "no position embedding": {"pos_embed": "none"},
    "RMS norm": {"norm_layer": "rmsnorm"},
    "patch 16x8": {"patch_size": (16, 8)},
    "one class": {"num_classes": 1},
    "unfused": {},
    "one channel": {"in_chans": 1},
    "registers": {"reg_tokens": 3},
    "distilled": {"name": "deit_tiny_distilled_patch16_224"},
    "wide heads": {"embed_dim": 136, "num_heads": 1},
}


@pytest.mark.parametrize("kind", MODELS)
def test_fast_is_plain(kind):
    model = random_vit(**MODELS[kind])
    if kind == "unfused":
        for block in model.blocks:
            block.attn.fused_attn = False
    images, pairs = randn(2, model.patch_embed.proj.in_channels, 32, 32), all_pairs(2, model.num_classes)
    for options in OPTIONS:
        fast, plain = dtd_maps(model, images, pairs, **options), dtd_maps_plain(model, images, pairs, **options)
        assert fast.shape == plain.shape == (len(pairs), 32 // model.patch_embed.patch_size[0], 4)
        assert torch.allclose(fast, plain, rtol=1e-6, atol=1e-8 * plain.abs().max().item()), options
    for options in (
        {"start_block": 0},
        {"start_block": 0, "clamp": False, "seed": "logit"},
        {"start_block": 1, "gradient": False},
    ):
        if options["start_block"] >= len(model.blocks):
            continue
        fast, plain = dtd_maps(model, images, pairs, **options), dtd_maps_plain(model, images, pairs, **options)
        assert torch.allclose(fast, plain, rtol=1e-6, atol=1e-8 * plain.abs().max().item()), options


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (8, 40), (56, 24), (48, 64)])
def test_any_size(size):
    model = random_vit(dynamic_img_size=True)
    images, pairs = randn(2, 3, *size), all_pairs(2, 4)
    fast = dtd_maps(model, images, pairs)
    assert fast.shape == (8, size[0] // 8, size[1] // 8) and distance(fast, dtd_maps_plain(model, images, pairs)) < 1e-8


def test_maps_are_the_right_way_round():
    "Rows are rows: in a non-square picture, the patch with the only object is where the map is."
    model = random_vit(dynamic_img_size=True, pos_embed="none")
    images = torch.zeros(1, 3, 24, 48, dtype=torch.float64)
    images[..., 16:24, 8:16] = randn(3, 8, 8)
    A = dtd_maps(model, images, torch.tensor([[0, 0]]), clamp=False)[0]  # (3, 6)
    odd = (A - A[0, 0]).abs()
    assert odd[2, 1] > 0 and torch.allclose(odd.sum(), odd[2, 1])


def test_start_block_of_the_last_is_the_default():
    model, images, pairs = random_vit(), randn(2, 3, 32, 32), all_pairs(2, 4)
    assert torch.equal(dtd_maps(model, images, pairs, 2), dtd_maps(model, images, pairs))


# timm's own models with their structure as it is, but narrow and shallow
SWEEP = [
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "deit_tiny_patch16_224.fb_in1k",
    "deit_base_patch16_384.fb_in1k",
    "deit3_small_patch16_224.fb_in22k_ft_in1k",
    "deit_tiny_distilled_patch16_224.fb_in1k",
    "deit_base_distilled_patch16_384.fb_in1k",
    "vit_small_patch14_dinov2.lvd142m",
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "vit_small_patch8_224.dino",
    "vit_base_patch32_224.augreg_in21k_ft_in1k",
    "vit_base_patch16_224.orig_in21k_ft_in1k",
    "vit_base_patch16_clip_224.openai_ft_in1k",
    "vit_base_patch32_clip_quickgelu_224.openai",
    "vit_medium_patch16_rope_reg1_gap_256",
]


@pytest.mark.parametrize("name", SWEEP)
def test_sweep(name):
    "Conservation, independence of the batch, agreement with the plain procedure; refusals have their reason."
    torch.manual_seed(0)
    options = dict(depth=3, num_classes=3, embed_dim=24, num_heads=3, img_size=64, dynamic_img_size=True)
    if "rope" in name:
        with pytest.raises(InputError, match="is not supported: it has no class token|not a timm VisionTransformer"):
            check_vit(timm.create_model(name, depth=2, num_classes=3))
        return
    model = timm.create_model(name, **options).double().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    p, q = model.patch_embed.patch_size
    images, pairs = randn(2, 3, 3 * p, 2 * q), torch.tensor([[1, 2], [0, 0], [1, 0]])
    logits = model(images)
    for start in range(3):
        plain = dtd_maps_plain(model, images, pairs, start)
        fast, size = dtd_maps(model, images, pairs, start), plain.abs().max().item()
        assert plain.shape == (3, 3, 2) and size > 0 and torch.allclose(fast, plain, rtol=1e-6, atol=1e-8 * size)
        one = torch.cat([dtd_maps(model, images[i : i + 1], torch.tensor([[0, c]]), start) for i, c in pairs.tolist()])
        assert torch.allclose(fast, one, rtol=1e-8, atol=1e-10 * size)
    with torch.no_grad():
        records, z, one_logits = record_forward(model, images[0])
        _, R = propagate(model, records, z, F.one_hot(torch.tensor(1), 3).double())
    assert torch.allclose(one_logits, logits[0]) and abs(R.sum().item() - 1) < 1e-3


def test_groups_and_tiles_do_not_matter(monkeypatch):
    "However few images and rows are computed at once, the maps are the same."
    model, images, pairs = (
        random_vit(),
        randn(4, 3, 32, 32),
        torch.tensor([[3, 0], [0, 1], [0, 2], [2, 3], [3, 1], [0, 3]]),
    )
    expected = dtd_maps(model, images, pairs, 0)
    monkeypatch.setattr(all_blocks, "RECORD_BYTES", {"cpu": 1, "cuda": 1})
    assert distance(dtd_maps(model, images, pairs, 0), expected) < 1e-9
    rule = all_blocks.attention_rule
    for room in (1, 500, 3000, 10**9):
        monkeypatch.setattr(all_blocks, "attention_rule", lambda *args, room=room: rule(*args, room=room))
        assert distance(dtd_maps(model, images, pairs, 0), expected) < 1e-9


@pytest.mark.parametrize("start_block", [None, 0])
def test_float32_loses_no_more_than_the_plain_procedure(start_block):
    "Distances to the float64 map, median and worst over images: ours against the plain procedure's."
    model, images, pairs = (
        random_vit(depth=6, embed_dim=48, img_size=64),
        randn(12, 3, 64, 64),
        torch.tensor([[i, i % 4] for i in range(12)]),
    )
    exact = dtd_maps_plain(model, images, pairs, start_block).flatten(1)
    single = random_vit(depth=6, embed_dim=48, img_size=64, dtype=torch.float32)
    errors = [
        ((f(single, images.float(), pairs, start_block).flatten(1) - exact).norm(dim=1) / exact.norm(dim=1))
        for f in (dtd_maps, dtd_maps_plain)
    ]
    fast, plain = ((e.median().item(), e.max().item()) for e in errors)
    # chance decides which of two roundings is luckier; a flaw would be orders off
    assert fast[0] < 2 * plain[0] and fast[1] < 4 * plain[1], (fast, plain)


@pytest.mark.parametrize("kind", ["plain", "registers", "distilled", "qk-norm", "wide heads"])
def test_kernels_are_the_reference(kind, monkeypatch):
    "With Triton's interpreter on a CPU, the kernels themselves on a GPU."
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, images, pairs = (
        random_vit(**MODELS[kind]).to(device),
        randn(3, 3, 32, 32).to(device),
        torch.tensor([[2, 1], [0, 3], [2, 0]], device=device),
    )
    for options in ({}, {"start_block": 0}, {"start_block": 1, "gradient": False, "clamp": False}):
        monkeypatch.setenv("WEGFORMER_KERNELS", "0")
        expected = dtd_maps(model, images, pairs, **options)
        monkeypatch.setenv("WEGFORMER_KERNELS", "1")
        assert torch.allclose(
            dtd_maps(model, images, pairs, **options), expected, rtol=1e-6, atol=1e-9 * expected.abs().max().item()
        )
    half, images = model.to(torch.bfloat16), images.to(torch.bfloat16)
    got = dtd_maps(half, images, pairs)
    monkeypatch.setenv("WEGFORMER_KERNELS", "0")
    expected = dtd_maps(half, images, pairs)
    assert got.dtype == torch.float32 and torch.allclose(
        got, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item()
    )


# ---- batches and pairs


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-3)])  # near-zero divisors
@pytest.mark.parametrize("start_block", [None, 1])
def test_batch_is_batch_of_one(dtype, tolerance, start_block):
    model, images, pairs = random_vit(dtype=dtype), randn(5, 3, 32, 32, dtype=dtype), all_pairs(5, 4)
    maps = dtd_maps(model, images, pairs, start_block)
    for n, (i, c) in enumerate(pairs.tolist()):
        one = dtd_maps(model, images[i : i + 1], torch.tensor([[0, c]]), start_block)
        assert distance(one, maps[n : n + 1]) < tolerance


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_any_order_of_pairs(pairs):
    model, images, pairs = _shared_model(), randn(4, 3, 32, 32), torch.tensor(pairs)
    expected = _shared_maps()[pairs[:, 0], pairs[:, 1]]
    assert torch.allclose(dtd_maps(model, images, pairs), expected, rtol=1e-7, atol=1e-12)


_kept = {}


def _shared_model():
    return _kept.setdefault("model", random_vit())


def _shared_maps():
    if "maps" not in _kept:
        _kept["maps"] = dtd_maps(_shared_model(), randn(4, 3, 32, 32), all_pairs(4, 4)).unflatten(0, (4, 4))
    return _kept["maps"]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_pair_slots(image):
    assert pair_slots(torch.tensor(image)).tolist() == [image[:n].count(i) for n, i in enumerate(image)]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 2))
@settings(max_examples=30, deadline=None)
def test_value_products(image, K):
    image = torch.tensor(image)
    vectors, V = randn(len(image), K, 2, 5), randn(4, 2, 7, 5)
    assert torch.allclose(value_products(vectors, V, image), torch.einsum("pkhd,phnd->pkhn", vectors, V[image]))


def test_no_pairs():
    model, images = random_vit(), randn(2, 3, 32, 32)
    empty = torch.zeros(0, 2, dtype=torch.int64)
    for f in (dtd_maps, dtd_maps_plain):
        for x in (images, images[:0]):
            assert f(model, x, empty).shape == (0, 4, 4) and f(model, x, empty).dtype == torch.float64
        assert f(random_vit(dtype=torch.bfloat16), images.bfloat16(), empty).dtype == torch.float32


def test_non_contiguous_images():
    model, images, pairs = random_vit(), randn(2, 3, 32, 32), all_pairs(2, 4)
    images_cl, pairs_t = images.to(memory_format=torch.channels_last), pairs.T.contiguous().T
    assert not images_cl.is_contiguous() and not pairs_t.is_contiguous()
    assert torch.allclose(dtd_maps(model, images_cl, pairs_t), dtd_maps(model, images, pairs))


# ---- modes and precisions


@pytest.mark.parametrize("maps", [dtd_maps, dtd_maps_plain])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("made_in_inference_mode", [False, True])
def test_grad_modes(maps, mode, made_in_inference_mode):
    model, images, pairs = random_vit(), randn(2, 3, 32, 32), all_pairs(2, 4)
    expected = maps(model, images, pairs)
    with torch.inference_mode(made_in_inference_mode):
        model, images, pairs = random_vit(), randn(2, 3, 32, 32), all_pairs(2, 4)
    if not made_in_inference_mode:
        images.requires_grad_()
    with mode():
        got = maps(model, images, pairs)
    assert (
        distance(got, expected) < 1e-9 and not got.requires_grad and not got.is_inference()
    )  # torch 2.11 rounds differently by mode
    assert images.grad is None and all(p.grad is None for p in model.parameters())


def test_frozen_model():
    model, images, pairs = random_vit(), randn(2, 3, 32, 32), all_pairs(2, 4)
    expected = dtd_maps(model, images, pairs)
    assert distance(dtd_maps(model.requires_grad_(False), images, pairs), expected) < 1e-9
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("maps", [dtd_maps, dtd_maps_plain])
def test_autocast(maps):
    "The blocks may be bf16; what comes after is float32: maps that stay close to float32's."
    model, images = random_vit(dtype=torch.float32, std=0.1), randn(2, 3, 32, 32, dtype=torch.float32)
    pairs = all_pairs(2, 4)
    expected = maps(model, images, pairs)
    with torch.autocast("cpu", torch.bfloat16):
        got = maps(model, images, pairs)
        assert torch.is_autocast_enabled("cpu")
    cosine = F.cosine_similarity(got.flatten(1), expected.flatten(1))
    assert got.dtype == torch.float32 and got.isfinite().all() and cosine.median() > 0.95


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_models(dtype):
    model, images, pairs = random_vit(dtype=dtype, std=0.1), randn(2, 3, 32, 32, dtype=dtype), all_pairs(2, 4)
    maps = dtd_maps(model, images, pairs)
    assert maps.dtype == torch.float32 and maps.isfinite().all()
    assert next(model.parameters()).dtype == dtype  # the caller's model is left alone
    cosine = F.cosine_similarity(maps.flatten(1), dtd_maps_plain(model, images, pairs).flatten(1))
    assert cosine.median() > 0.95


def test_dead_inputs():
    "Zeros everywhere divide by zero everywhere: maps are zero, not NaN."
    model = random_vit()
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    for f in (dtd_maps, dtd_maps_plain):
        assert (f(model, randn(1, 3, 32, 32), all_pairs(1, 4)) == 0).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu():
    model, images, pairs = random_vit(), randn(3, 3, 32, 32), all_pairs(3, 4)
    for options in OPTIONS + [{"start_block": 1}]:
        expected = dtd_maps(model.cpu(), images, pairs, **options)
        for f in (dtd_maps, dtd_maps_plain):
            assert distance(f(model.cuda(), images.cuda(), pairs.cuda(), **options).cpu(), expected) < 1e-8
    with pytest.raises(InputError, match="pairs: expected on the model's device"):
        dtd_maps(model.cuda(), images.cuda(), pairs)


# ---- refused, by name


@pytest.mark.parametrize(
    "name, options, reason",
    [
        ("resnet18", {}, "not a timm VisionTransformer"),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, "no class token"),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, "global_pool='avg'"),
        ("vit_tiny_patch16_224", {"global_pool": "map"}, "global_pool='map'"),
        ("vit_tiny_patch16_224", {"num_classes": 0}, "head is of type Identity"),
        ("vit_tiny_patch16_224", {"scale_attn_norm": True}, "blocks.0.attn.norm is of type LayerNorm, not Identity"),
        ("vit_tiny_patch16_224", {"scale_mlp_norm": True}, "blocks.0.mlp.norm is of type LayerNorm"),
        ("vit_tiny_patch16_224", {"block_fn": ResPostBlock}, "blocks.0 is of type ResPostBlock, not Block"),
        ("vit_tiny_patch16_224", {"block_fn": ParallelThingsBlock}, "blocks.0 is of type ParallelThingsBlock"),
        ("vit_tiny_patch16_224", {"mlp_layer": timm.layers.SwiGLU}, "blocks.0.mlp is of type SwiGLU, not Mlp"),
    ],
)
def test_refused_models(name, options, reason):
    small = {} if name == "resnet18" else dict(depth=2, embed_dim=24, num_heads=3)
    model = timm.create_model(name, **small, **options).eval()
    with pytest.raises(InputError, match=reason) as error:
        check_vit(model)
    assert type(model).__name__ in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("maps", [dtd_maps, dtd_maps_plain])
@pytest.mark.parametrize(
    "images, pairs, reason",
    [
        (randn(3, 32, 32), [[0, 0]], r"images: expected a tensor \(B, 3, H, W\), found shape \(3, 32, 32\)"),
        (randn(2, 1, 32, 32), [[0, 0]], r"images: expected a tensor \(B, 3, H, W\), found shape \(2, 1, 32, 32\)"),
        (np.zeros((2, 3, 32, 32)), [[0, 0]], "images: expected a tensor .*, found ndarray"),
        (randn(2, 3, 32, 32).to(torch.uint8), [[0, 0]], "images: expected floating point.*found torch.uint8"),
        (randn(2, 3, 32, 32).float(), [[0, 0]], "images: expected the model's torch.float64, found torch.float32"),
        (randn(2, 3, 32, 36), [[0, 0]], "multiples of the patch size 8x8, found 32x36"),
        (randn(2, 3, 0, 32), [[0, 0]], "multiples of the patch size 8x8, found 0x32"),
        (randn(2, 3, 32, 40), [[0, 0]], "images: expected 32x32, found 32x40.*dynamic_img_size=True"),
        (randn(2, 3, 32, 32).to("meta"), [[0, 0]], "images: expected on the model's device cpu, found meta"),
        (randn(2, 3, 32, 32), [[2, 0]], "image index 2 is out of range; expected 0 to 1"),
        (randn(2, 3, 32, 32), [[-1, 0]], "image index -1 is out of range"),
        (randn(2, 3, 32, 32), [[0, 0], [0, 4]], "class index 4 is out of range; expected 0 to 3"),
        (randn(2, 3, 32, 32), [[0, -2]], "class index -2 is out of range"),
        (randn(2, 3, 32, 32), [0, 0], r"pairs: expected an int64 tensor \(P, 2\).*found \(2,\) torch.int64"),
        (randn(2, 3, 32, 32), [[0, 0, 0]], r"pairs: .*found \(1, 3\)"),
        (randn(2, 3, 32, 32), [[0.0, 0.0]], "pairs: .*torch.float32"),
        (randn(2, 3, 32, 32), None, "pairs: .*found NoneType"),
    ],
)
def test_bad_input(maps, images, pairs, reason):
    with pytest.raises(InputError, match=reason) as error:
        maps(random_vit(), images, None if pairs is None else torch.tensor(pairs))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("maps", [dtd_maps, dtd_maps_plain])
@pytest.mark.parametrize(
    "options",
    [
        {"start_block": 3},
        {"start_block": -1},
        {"start_block": 1.0},
        {"start_block": True},
        {"seed": "one-hot"},
        {"seed": None},
    ],
)
def test_bad_options(maps, options):
    with pytest.raises(InputError, match=f"^{next(iter(options))}: expected"):
        maps(random_vit(), randn(1, 3, 32, 32), torch.tensor([[0, 0]]), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"proj_drop_rate": 0.1},
        {"attn_drop_rate": 0.1},
        {"drop_path_rate": 0.1},
        {"drop_rate": 0.1},
        {"pos_drop_rate": 0.1},
        {"patch_drop_rate": 0.5},
    ],
)
def test_training_mode(options):
    model, images, pairs = random_vit(**options), randn(1, 3, 32, 32), torch.tensor([[0, 0]])
    expected = dtd_maps(model, images, pairs)
    with pytest.raises(InputError, match=r"training mode.*call model\.eval\(\)"):
        dtd_maps(model.train(), images, pairs)
    without = random_vit()  # nothing that drops: training mode changes nothing
    assert torch.equal(dtd_maps(without.train(), images, pairs), dtd_maps(without.eval(), images, pairs))
    assert torch.equal(dtd_maps(model.eval(), images, pairs), expected)


def test_benchmark_runs(tmp_path, capsys):
    "It prints its rows and writes them only where asked; the rules as released give the plain procedure's maps."
    benchmark = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "dtd.py"))
    main, model, images, pairs = benchmark["main"], random_vit(), randn(2, 3, 32, 32), torch.tensor([[0, 1], [1, 2]])
    assert torch.equal(benchmark["dtd_maps_released"](model, images, pairs, 0), dtd_maps_plain(model, images, pairs, 0))
    threads = torch.get_num_threads()
    options = "--model vit_tiny_patch16_224 --size 32 48 --batch 2 --classes 1 3 --repeat 2"
    options = [*options.split(), "--threads", "1", "--device", "cpu", "--out", str(tmp_path / "rows.json")]
    try:
        rows = main(options)
    finally:
        torch.set_num_threads(threads)
    assert [(r["what"], r["pairs"], r["timed"]) for r in rows] == [
        ("forward", 0, 0),
        ("dtd_maps", 2, 2),
        ("dtd_maps", 6, 6),
        ("dtd_maps_plain", 2, 1),
        ("dtd_maps_plain", 6, 1),
        ("as_released", 2, 1),
        ("as_released", 6, 1),
    ]
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == rows
    assert "dtd_maps_plain" in capsys.readouterr().out
