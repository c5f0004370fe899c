"Eq. 4 in one kernel against `class_attention` in float64: shapes, types, views, rows, NaN, bad input."

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from wegformer.data import InputError
from wegformer.kernels import head_mean as module
from wegformer.kernels.head_mean import aot, head_mean
from wegformer.rules import class_attention

# result type, and the tolerance relative to the largest entry: inputs are exact, sums are formed in the result's type
TYPES = {
    torch.float64: (torch.float64, 1e-14),
    torch.float32: (torch.float32, 5e-7),
    torch.float16: (torch.float32, 5e-7),
    torch.bfloat16: (torch.float32, 5e-7),
}
SHAPES = [(1, 1, 1, 1), (2, 3, 5, 5), (3, 1, 17, 17), (1, 6, 33, 33), (2, 2, 16, 16), (1, 12, 65, 65), (4, 3, 1, 1)]
RECTANGLES = [(2, 3, 1, 9), (1, 4, 5, 31), (2, 2, 16, 40), (3, 2, 7, 3)]  # fewer rows than columns; more


def maps(device, shape, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g).to(device, dtype) for _ in range(2)]


def reference(G, R, clamp=True):
    R = R.double()
    P, h, n, N = R.shape

    def square(t):  # as class_attention wants them
        return torch.nn.functional.pad(t, (0, max(0, n - N), 0, max(0, N - n)))

    rows = [class_attention(square(R[p]), None if G is None else square(G[p].double()), clamp) for p in range(P)]
    return torch.stack(rows)[:, :n, :N] if P else R.new_zeros(0, n, N)


def check(G, R, clamp=True):
    result, expected = head_mean(G, R, clamp), reference(G, R, clamp)
    dtype, tolerance = TYPES[R.dtype]
    assert result.shape == expected.shape and result.dtype == dtype and result.device == R.device
    assert result.is_contiguous()
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=tolerance * max(1, expected.abs().max()))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES + RECTANGLES)
def test_shapes(device, shape, dtype):
    check(*maps(device, shape, dtype))


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 19, 19), (2, 3, 4, 19)])
def test_options(device, shape, clamp, gradient):
    G, R = maps(device, shape)
    check(G if gradient else None, R, clamp)


VIEWS = {
    "transposed": lambda t: t.mT,
    "second heads": lambda t: t[:, ::2],
    "second columns": lambda t: t[..., ::2],
    "rows of a larger map": lambda t: t[:, :, 2:7, :11],
    "heads last": lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1),
    "one pair for all": lambda t: t[:1].expand_as(t),
    "one head for all": lambda t: t[:, :1].expand_as(t),
    "one row for all": lambda t: t[:, :, :1].expand_as(t),
    "one number for all": lambda t: t[:1, :1, :1, :1].expand_as(t),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("which", ["G", "R", "both"])
def test_views(device, view, which):
    G, R = maps(device, (2, 4, 13, 13))
    g, r = VIEWS[view](G), VIEWS[view](R)
    if which == "G":
        r = r.contiguous()
    if which == "R":
        g = g.contiguous()
    check(g, r)


@pytest.mark.parametrize("offset", [1, 3])
def test_unaligned(device, offset):
    G, R = (t.flatten()[offset:][: 2 * 3 * 64].view(2, 3, 8, 8) for t in maps(device, (2, 4, 8, 16)))
    check(G, R)


def test_many_programs(device):
    "More entries than one program makes, with the last program partly outside; and the large block size."
    check(*maps(device, (3, 2, 37, 37)))
    G, R = (t.expand(1, 1, 1030, 1030) for t in maps(device, (1, 1, 1, 1030)))  # over 2**20 entries: in blocks of 1024
    result = head_mean(G, R)
    assert torch.equal(
        result - torch.eye(1030, device=device) * result.diagonal(dim1=1, dim2=2)[:, None],
        (G * R).clamp(min=0)[:, 0] * (1 - torch.eye(1030, device=device)),
    )
    torch.testing.assert_close(result.diagonal(dim1=1, dim2=2), (G * R).clamp(min=0)[:, 0, 0] + 1)


def test_sixteen_bits_are_added_in_float32(device):
    R = torch.ones(1, 300, 2, 2, device=device, dtype=torch.bfloat16)  # a bfloat16 sum would stop at 256
    assert torch.equal(head_mean(None, R), torch.eye(2, device=device)[None] + 1)


def test_nan_and_infinity_stay(device):
    G, R = maps(device, (1, 2, 5, 5))
    R[0, 0, 1, 2], R[0, 1, 3, 3] = float("nan"), float("inf")
    G[0, 1, 3, 3] = 1
    result = head_mean(G, R)
    assert result.isnan().sum() == 1 and result[0, 1, 2].isnan() and result[0, 3, 3] == float("inf")


@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (2, 3, 0, 0), (2, 3, 0, 5)])
def test_empty(device, shape):
    G, R = maps(device, shape)
    assert head_mean(G, R).shape == (shape[0], *shape[2:])


def test_inputs_stay_and_inference_mode(device):
    G, R = maps(device, (2, 3, 6, 6))
    before = G.clone(), R.clone()
    with torch.inference_mode():
        result = head_mean(G, R)
    assert torch.equal(result, head_mean(G, R)) and torch.equal(G, before[0]) and torch.equal(R, before[1])


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(R=None), "R: expected a tensor"),
        (dict(R=lambda R: R[0]), r"R: expected a tensor \(P, h, n, N\), found shape \(3, 4, 4\)"),
        (dict(R=lambda R: R.int(), G=None), "R: .*found torch.int32"),
        (dict(R=lambda R: R[:, :0], G=None), "at least one head"),
        (dict(G=lambda G: G[..., :3]), r"G: expected R's shape \(2, 3, 4, 4\), found \(2, 3, 4, 3\)"),
        (dict(G=lambda G: G.double()), "G: expected R's dtype torch.float32, found torch.float64"),
        (dict(G=lambda G: G.to("meta")), "G: expected R's device"),
        (dict(G=lambda G: 1.0), "G: expected a tensor like R or None, found float"),
    ],
)
def test_bad_input(device, change, words):
    arguments = dict(zip("GR", maps(device, (2, 3, 4, 4))))
    arguments |= {k: f(arguments[k]) if callable(f) else f for k, f in change.items()}
    with pytest.raises(InputError, match=words):
        head_mean(arguments["G"], arguments["R"])


def test_cpu_is_refused_by_the_compiled_kernel(monkeypatch):
    "Without the interpreter there is no kernel for a CPU."
    monkeypatch.setattr(module, "_head_mean_kernel", object.__new__(module.triton.JITFunction))
    with pytest.raises(InputError, match="R: expected on a CUDA device, found cpu"):
        head_mean(None, torch.zeros(1, 1, 2, 2))


def test_aot_names_every_argument():
    variants = aot()
    assert len({v["name"] for v in variants}) == len(variants)
    for v in variants:
        assert list(v["signature"]) == list(v["kernel"].arg_names)
        assert {k for k, kind in v["signature"].items() if kind == "constexpr"} == set(v["constexprs"])
