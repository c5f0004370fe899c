"The last block's maps from V, M, S and G against the formula in float64 and against `dtd_maps` itself."

import os

import pytest
import timm
import torch
from hypothesis import given, settings, strategies as st

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import wegformer.relevance as relevance
from wegformer.data import InputError
from wegformer.kernels import cls_relevance as module
from wegformer.kernels.cls_relevance import _block_sizes, _group_pairs, aot, cls_relevance
from wegformer.kernels.launch import call_kernel

# tolerance, relative to the sum of the terms' sizes, to which rounding in the sums is proportional; V is taken as it is
TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6, torch.float16: 2e-6, torch.bfloat16: 2e-6}
PAIRS = {"in order": (0, 1, 2), "mixed": (2, 0, 2, 1, 2), "some without": (2, 2), "one": (1,)}


def example(device, B=3, h=2, N=9, d=16, image=(2, 0, 2, 2), dtype=torch.float32, seed=0):
    "Values as a view of a qkv tensor, as in use."
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    precise = torch.float64 if dtype == torch.float64 else torch.float32
    V = draw(B, N, 3, h, d).to(device, dtype).permute(2, 0, 3, 1, 4)[2]
    M, S, G = draw(B, h, N).softmax(-1), draw(len(image), h, d), draw(len(image), h, d)
    return V, *(t.to(device, precise) for t in (M, S, G)), torch.tensor(image, dtype=torch.int64, device=device)


def formula(V, M, S, G, image, clamp=True):
    "The map in float64, and the sum of its terms' sizes."
    V, M, S = V.double()[image], M.double()[image], S.double()
    A, size = M * torch.einsum("phd,phnd->phn", S, V) / 2, M * torch.einsum("phd,phnd->phn", S.abs(), V.abs()) / 2
    if G is not None:
        A = A * torch.einsum("phd,phnd->phn", G.double(), V)
        size = size * torch.einsum("phd,phnd->phn", G.double().abs(), V.abs())
    return (A.clamp(min=0) if clamp else A).mean(1), size.mean(1)


def check(V, M, S, G, image, clamp=True):
    result, (expected, size) = cls_relevance(V, M, S, G, image, clamp), formula(V, M, S, G, image, clamp)
    assert result.shape == expected.shape and result.dtype == M.dtype and result.device == V.device
    assert ((result - expected).abs() <= TOLERANCE[V.dtype] * size).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("h, N, d", [(1, 1, 16), (3, 17, 64), (2, 70, 32), (2, 16, 24), (1, 5, 1), (2, 3, 80)])
def test_shapes(device, h, N, d, dtype):
    check(*example(device, 2, h, N, d, (1, 0, 1), dtype))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_wide_heads(device, dtype):
    check(*example(device, 1, 1, 3, 160, (0,), dtype))


@pytest.mark.parametrize("image", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_options(device, image, gradient, clamp, dtype):
    V, M, S, G, image = example(device, image=image, dtype=dtype)
    check(V, M, S, G if gradient else None, image, clamp)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [7, 8, 9, 17])
def test_many_classes(device, count, dtype):
    "Up to eight classes are done in one pass, more in several; an image with one class beside it."
    check(*example(device, 2, image=(1, *[0] * count), dtype=dtype))


@pytest.mark.parametrize("sizes", [(64, 64), (32, 32), (16, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_block_sizes(device, monkeypatch, sizes, dtype):
    "Small examples get small blocks; the large ones that a real batch gets must be right as well."
    monkeypatch.setattr(module, "_block_sizes", lambda B, N, d: sizes)
    check(*example(device, 2, N=67, image=(1, 0, 1), dtype=dtype))


def test_block_size_rule():
    assert _block_sizes(64, 769, 64) == (64, 64) and _block_sizes(1, 197, 64) == (16, 64)
    for d, block_d in ((1, 16), (16, 16), (17, 32), (80, 128), (256, 256)):
        block_n = _block_sizes(10**4, 10**3, d)[0]
        assert _block_sizes(10**4, 10**3, d)[1] == block_d and block_n >= 16 and block_n * block_d <= 4096


VIEWS = {
    "contiguous": lambda t: t.contiguous(),
    "last axis apart": lambda t: t.mT.contiguous().mT if t.ndim == 4 else t.movedim(-1, 0).contiguous().movedim(0, -1),
    "first axis last": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "one for all": lambda t: t[:1].expand_as(t),
    "every second": lambda t: t.repeat_interleave(2, 0)[::2],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("which", range(4), ids="VMSG")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_views(device, view, which, dtype):
    arguments = list(example(device, dtype=dtype))
    arguments[which] = VIEWS[view](arguments[which])
    check(*arguments)


def test_views_of_image(device):
    V, M, S, G, image = example(device)
    check(V, M, S, G, torch.stack([image, image * 0 - 1], 1)[:, 0])
    check(V, M, S, G, image[:1].expand(4))


def test_split_is_exact(device):
    "Tensor cores multiply bfloat16, yet S and G count with all of their digits: here the leading ones cancel."
    V = torch.tensor([1.0, -1.0] + [0.0] * 14, device=device).expand(1, 1, 2, 16).to(torch.bfloat16)
    S = torch.zeros(1, 1, 16, device=device)
    S[..., 0], S[..., 1] = 1 + 2**-20, 1
    one, image = torch.ones(1, 1, 2, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(cls_relevance(V.to(dtype), one, S, None, image), torch.full((1, 2), 2**-21, device=device))


def test_nan_stays_in_its_place(device):
    V, M, S, G, image = example(device, image=(2, 0, 2))
    M[2, 1, 4] = float("nan")
    result = cls_relevance(V, M, S, G, image)
    assert result.isnan().nonzero().tolist() == [[0, 4], [2, 4]]


@pytest.mark.parametrize("B, N, P", [(3, 9, 0), (3, 0, 2), (0, 9, 0)])
def test_empty(device, B, N, P):
    V, M, S, G, image = example(device, B, N=N, image=(0,) * P)
    assert cls_relevance(V, M, S, G, image).shape == (P, N)


def test_images_apart_give_the_same(device):
    "An image's maps do not depend on the batch around it, nor on the order of the pairs."
    V, M, S, G, image = example(device, image=(2, 0, 2, 1))
    together = cls_relevance(V, M, S, G, image)
    for p, i in enumerate(image.tolist()):
        alone = cls_relevance(V[i : i + 1], M[i : i + 1], S[p : p + 1], G[p : p + 1], image[:1] * 0)
        assert torch.equal(alone[0], together[p])
    turned = [3, 1, 0, 2]
    assert torch.equal(cls_relevance(V, M, S[turned], G[turned], image[turned]), together[turned])


@settings(max_examples=25, deadline=None)
@given(B=st.integers(1, 40), image=st.lists(st.integers(-3, 45), min_size=1, max_size=90))
def test_group_pairs(device, B, image):
    "Sorted and stable; pairs of no image are outside all runs, and their rows NaN."
    A = torch.zeros(len(image), 2, device=device)
    order, first = _group_pairs(torch.tensor(image, device=device), B, A)
    assert order.tolist() == sorted(range(len(image)), key=lambda p: image[p])
    assert first.tolist() == [sum(i < b for i in image) for b in range(B + 1)]
    assert A.isnan().all(1).tolist() == [not 0 <= i < B for i in image] and A.isnan().any(1).equal(A.isnan().all(1))


# ---- against the maps of a network


@pytest.mark.parametrize("options", [{}, {"clamp": False}, {"gradient": False}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtd_maps(device, monkeypatch, options, dtype):
    "`dtd_maps` of a random ViT with the kernel and without it; for bfloat16 under autocast, the values stay in it."
    torch.manual_seed(0)
    options_of_model = dict(img_size=40, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=4)
    model = timm.create_model("vit_tiny_patch16_224", **options_of_model)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    model, images = model.to(device, weights).eval(), torch.randn(3, 3, 40, 40, dtype=weights).to(device)
    pairs, seen = torch.tensor([[2, 1], [0, 3], [2, 0], [2, 2]], device=device), []

    def kernel(V, M, S, G, image, clamp=True):
        seen.append(V.dtype)
        return cls_relevance(V, M, S, G, image, clamp)

    monkeypatch.setattr(module, "cls_relevance", kernel)
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        monkeypatch.setenv("WEGFORMER_KERNELS", "0")
        expected = relevance.dtd_maps(model, images, pairs, **options)
        assert not seen
        monkeypatch.setenv("WEGFORMER_KERNELS", "1")
        result = relevance.dtd_maps(model, images, pairs, **options)
    assert seen == [dtype]
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5  # relative L2; both round in float32
    assert (result - expected).norm() <= tolerance * expected.norm()


# ---- bad input


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(V=lambda V: V[0]), "V: expected shape"),
        (dict(V=lambda V: V[:, :0]), "at least one head"),
        (dict(V=lambda V: V.int()), "V: .*found torch.int32"),
        (dict(V=lambda V: None), "V: expected a tensor, found NoneType"),
        (dict(M=lambda M: M[:, :, 1:]), r"M: expected torch.float32 \(3, 2, 9\)"),
        (dict(M=lambda M: M.double()), "M: expected torch.float32 .*found torch.float64"),
        (dict(S=lambda S: S[:3]), r"S: expected .*\(4, 2, 16\).*found .*\(3, 2, 16\)"),
        (dict(G=lambda G: G.half()), "G: expected torch.float32"),
        (dict(G=lambda G: G.to("meta")), "G: expected on V's device"),
        (dict(image=lambda i: i.int()), "image: expected an int64 tensor.*found torch.int32"),
        (dict(image=lambda i: i[None]), "image: expected an int64 tensor"),
        (dict(image=lambda i: i[0]), "image: expected an int64 tensor"),
        (dict(image=lambda i: i.tolist()), "image: expected a tensor, found list"),
    ],
)
def test_bad_input(device, change, words):
    arguments = dict(zip(("V", "M", "S", "G", "image"), example(device)))
    arguments |= {k: f(arguments[k]) for k, f in change.items()}
    with pytest.raises(InputError, match=words):
        cls_relevance(**arguments)


def test_too_wide(device):
    with pytest.raises(InputError, match="at most 256 channels, found 260"):
        cls_relevance(*example(device, 1, 1, 2, 260, (0,)))


@pytest.mark.parametrize("wrong", [-1, 3])
def test_no_such_image(device, wrong):
    "On a CPU an error; on a GPU, where looking means waiting, rows of NaN and nothing else harmed."
    V, M, S, G, image = example(device)
    image[1] = wrong
    if device.type == "cpu":
        with pytest.raises(InputError, match=r"image: expected indices 0 to 2"):
            cls_relevance(V, M, S, G, image)
    else:
        result = cls_relevance(V, M, S, G, image)
        assert result[1].isnan().all() and not result[[0, 2, 3]].isnan().any()


def test_cpu_is_refused_by_the_compiled_kernel(monkeypatch):
    "Without the interpreter there is no kernel for a CPU."
    monkeypatch.setattr(module, "_cls_relevance_kernel", object.__new__(module.triton.JITFunction))
    with pytest.raises(InputError, match="V: expected on a CUDA device, found cpu"):
        cls_relevance(*example("cpu"))


def test_a_switch_that_the_kernel_does_not_know(device):
    "Is refused by name, never ignored; those that it knows arrive."
    V, M, S, G, image = example(device)
    unclamped = call_kernel(cls_relevance, V, M, S, G, image, clamp=False)
    assert (unclamped < 0).any() and torch.equal(unclamped, cls_relevance(V, M, S, G, image, False))
    with pytest.raises(InputError, match="power=2: the kernel cls_relevance does not know .* it knows clamp;"):
        call_kernel(cls_relevance, V, M, S, G, image, clamp=True, power=2)


def test_aot_names_every_argument():
    variants = aot()
    assert len({v["name"] for v in variants}) == len(variants)
    for v in variants:
        assert list(v["signature"]) == list(v["kernel"].arg_names) and set(v["aligned"]) <= set(v["signature"])
        assert {k for k, kind in v["signature"].items() if kind == "constexpr"} == set(v["constexprs"])
