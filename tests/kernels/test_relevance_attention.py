"The flash form of relevance through attention against the same formulas with every N x N array in memory."

import inspect
import os
from dataclasses import asdict, dataclass

import pytest
import torch
import torch.nn.functional as F

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from wegformer.attention_rule import Heads, Switches, Walk, attention_rule
from wegformer.data import InputError
from wegformer.kernels import relevance_attention as module
from wegformer.kernels.relevance_attention import aot, relevance_attention
from wegformer.rules import divide

# L2 distance of each result from the reference in float64, relative
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-6}


def reference(q, k, v, S, G, row, image, scale, below=True, clamp=True):
    q, k, v = q[image], k[image], v[image]
    product = q @ k.mT
    M = (scale * product).softmax(-1)
    R, GV = M * (S @ v.mT) / 2, None if G is None else G @ v.mT
    A = R if G is None else GV * R
    A = (A.clamp(min=0) if clamp else A).mean(1)
    new_row = (row[:, None] @ A)[:, 0] + F.pad(row, (0, k.shape[2] - row.shape[1]))
    if not below:
        return new_row, None, None
    S2 = divide(R, product)
    relevance = q * (S2 @ k) / 2, k * (S2.mT @ q) / 2, v * (M.mT @ S) / 2
    if G is None:
        return new_row, relevance, None
    P = M * (GV - (GV * M).sum(-1, keepdim=True))
    return new_row, relevance, (scale * (P @ k), scale * (P.mT @ q), M.mT @ G)


def example(device, B=2, h=1, N=18, d=16, last=False, image=(1, 0, 1), gradient=True, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    n, P = 1 if last else N, len(image)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(device, dtype)

    q, k, v, S, G = draw(B, h, n, d), draw(B, h, N, d), draw(B, h, N, d), draw(P, h, n, d), draw(P, h, n, d)
    row, image = draw(P, n).abs(), torch.tensor(image, dtype=torch.int64, device=device)
    return q, k, v, S, G if gradient else None, row, image, d**-0.5


def parts(result):
    return [x for part in result if part is not None for x in (part if isinstance(part, tuple) else (part,))]


def sensitivity(q, k, v, S, G, row, image, scale):
    "How far R_q and R_k move, as norms, when each summand of a query times a key is rounded once in float32."
    q, k, v = q[image], k[image], v[image]
    product = q @ k.mT
    R = (scale * product).softmax(-1) * (S @ v.mT)
    change = divide(R, product * product).abs() * (q.abs() @ k.abs().mT) * 2.0**-24
    return (q.abs() * (change @ k.abs())).norm(), (k.abs() * (change.mT @ q.abs())).norm()


def compare(inputs, **options):
    "Ours against the reference in float64."
    double = [x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs]
    ours, exact = relevance_attention(*inputs, **options), reference(*double, **options)
    assert [part is None for part in ours] == [part is None for part in exact]
    dtype = inputs[1].dtype
    slack = sensitivity(*double) if dtype == torch.float32 else (0, 0)
    for i, (x, y) in enumerate(zip(parts(ours), parts(exact), strict=True)):
        assert x.shape == y.shape and x.dtype == dtype
        allowed = TOLERANCE[dtype] * (y.norm() + 1)  # the inputs are of size 1, and some results are exactly 0
        if i in (1, 2):
            allowed += slack[i - 1]  # R divided by products close to zero
        assert (x.double() - y).norm() <= allowed, (i, float((x.double() - y).norm()), float(allowed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("N, d, h", [(1, 16, 3), (17, 12, 2), (35, 16, 1), (9, 64, 1), (5, 80, 2)])
def test_shapes(device, N, d, h, last, dtype):
    compare(example(device, N=N, d=d, last=last, h=h, image=(1, 0), dtype=dtype))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("below", [False, True])
def test_switches(device, last, gradient, clamp, below):
    compare(example(device, B=1, h=2, image=(0,), last=last, gradient=gradient), clamp=clamp, below=below)


@pytest.mark.parametrize("image", [(0,), (2, 2, 2), (3, 0, 3, 1), (0, 1, 2, 3)])
def test_pairs_in_any_order_and_images_without(device, image):
    compare(example(device, B=4, N=7, image=image))


def test_fewer_queries_than_tokens(device):
    q, k, v, S, G, row, image, scale = example(device, N=20, image=(1,))
    compare((q[:, :, :18], k, v, S[:, :, :18], G[:, :, :18], row[:, :18], image, scale))


@pytest.mark.parametrize("last", [False, True])
def test_no_pairs(device, last):
    new_row, relevance, gradient = relevance_attention(*example(device, last=last, image=()))
    assert new_row.shape == (0, 18) and [x.shape for x in relevance] == [x.shape for x in gradient]
    assert [x.shape for x in relevance] == [(0, 1, 1 if last else 18, 16), (0, 1, 18, 16), (0, 1, 18, 16)]


def test_strided_views(device):
    "Queries, keys and values of one qkv array, S and G with heads inside the tokens, a row of every second number."
    q, k, v, S, G, row, image, scale = example(device, h=2, N=7)
    q, k, v = torch.stack([q, k, v]).permute(1, 3, 0, 2, 4).contiguous().permute(2, 0, 3, 1, 4)  # of (B, N, 3, h, d)
    S, G = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (S, G))
    row = row.repeat_interleave(2, 1)[:, ::2]
    assert not any(x.is_contiguous() for x in (q, k, v, S, G, row))
    compare((q, k, v, S, G, row, image, scale))
    channels_apart = k.mT.contiguous().mT
    assert channels_apart.stride(-1) != 1
    compare((q, channels_apart, v, S, G, row, image, scale))


def test_results_lie_as_the_linear_layer_wants_them(device):
    "Token by token, heads side by side, queries beyond the class token zero: joining them needs no transposition."
    for last in (False, True):
        _, relevance, _ = relevance_attention(*example(device, h=2, N=5, last=last))
        base = relevance[0]._base
        assert base.shape == (3, 5, 3, 2, 16) and base.is_contiguous() and base.isfinite().all()
        assert not last or not base[:, 1:, 0].any()
        for i, part in enumerate(relevance):
            assert torch.equal(base[:, : part.shape[2], i].transpose(1, 2), part)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_that_are_zero(device, dtype):
    "Their quotient is 0, in whole rows, whole columns and single places."
    q, k, v, S, G, row, image, scale = example(device, dtype=dtype)
    q[:, :, 3], k[:, :, 5] = 0, 0
    q[:, :, 7], k[:, :, 11] = 0, 0
    q[:, :, 7, 0], k[:, :, 11, 1] = 1, 1  # orthogonal
    compare((q, k, v, S, G, row, image, scale))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, about numbers that are never stored
@pytest.mark.parametrize("size", [-40.0, 40.0])
def test_large_scores(device, size):
    "All scores far below or above 0: what lies beyond the last token must not overflow into it."
    q, k, v, S, G, row, image, scale = example(device, N=19, image=(1,))
    q[..., 0], k[..., 0] = 40, size
    inputs = q, k, v, S, G, row, image, scale
    compare(inputs)
    single = [x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs]
    assert all(x.isfinite().all() for x in parts(relevance_attention(*single)))


def test_same_bits_again_and_in_another_batch(device):
    inputs = example(device, dtype=torch.float32)
    once, again = relevance_attention(*inputs), relevance_attention(*inputs)
    assert all(torch.equal(x, y) for x, y in zip(parts(once), parts(again)))
    q, k, v, S, G, row, image, scale = inputs
    alone = relevance_attention(q[1:], k[1:], v[1:], S[2:], G[2:], row[2:], image[2:] - 1, scale)
    assert all(torch.equal(x[2:], y) for x, y in zip(parts(once), parts(alone)))


def test_relevance_is_kept(device):
    "Values keep the half of the matrix-product rule, queries and keys a quarter each."
    inputs = example(device)
    q, k, v, S, _, _, image, scale = inputs
    R = ((scale * q @ k.mT).softmax(-1)[image] * (S @ v[image].mT)).sum((1, 2, 3)) / 2
    _, relevance, _ = relevance_attention(*inputs)
    for part, share in zip(relevance, (0.5, 0.5, 1.0)):
        assert torch.allclose(part.sum((1, 2, 3)), share * R, rtol=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes(device, mode):
    with mode():
        compare(example(device, N=5))


BAD = {
    "k: expected (B, h, N, d)": lambda x: x | {"k": x["k"][0]},
    "q: expected (B, h, n, d)": lambda x: x | {"q": torch.cat([x["q"]] * 2, 2)},
    "q: expected (2, 1, 18, 16)": lambda x: x | {"q": x["q"][..., :8]},
    "v: expected (2, 1, 18, 16)": lambda x: x | {"v": x["v"][:, :, :4]},
    "S: expected (3, 1, 18, 16)": lambda x: x | {"S": x["S"][:2]},
    "G: expected (3, 1, 18, 16)": lambda x: x | {"G": x["G"][:, :, :1]},
    "row: expected (3, 18)": lambda x: x | {"row": x["row"][:, :4]},
    "S: expected float32 or float64": lambda x: x | {"S": x["S"].float()},
    "q: expected float32 or float64": lambda x: {
        a: b.half() if torch.is_tensor(b) and a != "image" else b for a, b in x.items()
    },
    "S: expected a tensor": lambda x: x | {"S": None},
    "row: expected on": lambda x: x | {"row": x["row"].to("meta")},
    "image: expected an int64": lambda x: x | {"image": x["image"].int()},
    "image: expected indices from 0 to 1, found 1 to 2": lambda x: (
        x | {"image": x["image"].clamp(min=1) + torch.arange(3).eq(2).to(x["image"])}
    ),
    "image: expected indices from 0 to 1, found -1 to 0": lambda x: x | {"image": x["image"] - 1},
    "scale: expected a positive number": lambda x: x | {"scale": float("nan")},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(device, message):
    names = ("q", "k", "v", "S", "G", "row", "image", "scale")
    with pytest.raises(InputError) as caught:
        relevance_attention(**BAD[message](dict(zip(names, example(device)))))
    assert str(caught.value).startswith(message)


@dataclass(frozen=True)
class MoreSwitches(Switches):
    "A rule that has learned something."

    alpha: float = 2.0


def around(device, gradient=True):
    "What `attention_rule` is given: two images, two classes each."
    q, k, v, S, G, row, _, scale = example(device, h=2, N=7, image=(0, 0, 1, 1), gradient=gradient)
    o = (scale * q @ k.mT).softmax(-1) @ v
    side_by_side = [None if x is None else x.unflatten(0, (2, 2)).transpose(2, 3).flatten(3) for x in (S, G)]
    return Heads(q, k, v, o, scale), Walk(*side_by_side, row.unflatten(0, (2, 2)))


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("switches", [Switches(), Switches(below=False), Switches(clamp=False)])
def test_the_rule_hands_all_its_switches_to_the_kernel(device, monkeypatch, switches, gradient):
    "By the kernel and in tiles: the same."
    heads, walk = around(device, gradient)
    monkeypatch.setenv("WEGFORMER_KERNELS", "0")
    tiled = attention_rule(heads, walk, switches, 50)
    monkeypatch.setenv("WEGFORMER_KERNELS", "1")
    kernel = attention_rule(heads, walk, switches)
    for name in ("R", "G", "row"):
        ours, theirs = getattr(kernel, name), getattr(tiled, name)
        assert (ours is None) == (theirs is None) and (ours is None or torch.allclose(ours, theirs, rtol=1e-7))


def test_a_switch_that_the_kernel_does_not_know(device, monkeypatch):
    "Is refused by name, never ignored: a field more in `Switches` is enough."
    monkeypatch.setenv("WEGFORMER_KERNELS", "1")
    heads, walk = around(device)
    with pytest.raises(InputError, match="alpha=2.0: the kernel relevance_attention .* it knows below, clamp;"):
        attention_rule(heads, walk, MoreSwitches())


def test_the_kernel_knows_the_switches_of_the_rule():
    "By name, with the same defaults, and not by position."
    known = {
        p.name: p.default
        for p in inspect.signature(relevance_attention).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert known == asdict(Switches())


def test_heads_that_are_too_wide(device):
    with pytest.raises(InputError, match="1 to 128 channels, found 129"):
        relevance_attention(*example(device, N=2, d=129))


def test_cpu_without_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(InputError, match="expected on a GPU"):
        relevance_attention(*example(torch.device("cpu"), N=2))


def test_variants_name_every_argument():
    for variant in aot():
        assert list(variant["signature"]) == list(variant["kernel"].arg_names)
        assert {x for x, kind in variant["signature"].items() if kind == "constexpr"} == set(variant["constexprs"])
        assert set(variant["aligned"]) <= set(variant["signature"])
    assert {module._blocks(d, torch.float64)[2] for d in (1, 16, 72, 128)} == {16, 128}
