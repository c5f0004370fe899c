"Soft erase against the equations written out pixel by pixel, over shapes, dtypes and bad input."

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from wegformer.data import InputError
from wegformer.soft_erase import soft_erase


def by_pixel(attention, rate, renormalize):
    "Eqs. 6 and 7 as loops, in the array's own precision."
    out = np.zeros_like(attention)
    for c in range(attention.shape[0]):
        clip = attention[c].max() * attention.dtype.type(rate)
        for y, x in np.ndindex(attention.shape[1:]):
            value = min(attention[c, y, x], clip)
            out[c, y, x] = value / clip if renormalize and clip > 0 else value
    return out


@st.composite
def maps(draw):
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    shape = draw(hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6))
    values = st.sampled_from([0.0, 0.25, 0.5, 0.55, 1.0]) | st.floats(0, 1, width=32)
    return draw(hnp.arrays(dtype, shape, elements=values))


@settings(max_examples=150, deadline=None)
@given(attention=maps(), rate=st.sampled_from([0.1, 0.55, 0.9, 1.0]), renormalize=st.booleans())
def test_equals_the_equations(attention, rate, renormalize):
    attention = np.where(attention < 1e-30, 0, attention).astype(
        attention.dtype
    )  # no denormals: they depend on the processor's flags
    result = soft_erase(torch.from_numpy(attention), rate, renormalize)
    assert result.dtype == torch.from_numpy(attention).dtype
    np.testing.assert_allclose(
        result.numpy(), by_pixel(attention, rate, renormalize), rtol=1e-6 if attention.dtype == np.float32 else 1e-14
    )


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 7), (2, 5, 1), (4, 37, 61), (20, 8, 8), (0, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maximum(shape, dtype):
    attention = torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(0)) + 0.01
    erased, literal = soft_erase(attention), soft_erase(attention, renormalize=False)
    assert erased.shape == literal.shape == shape and erased.dtype == dtype
    assert (erased.amax((1, 2)) == 1).all()  # exactly: rules compare with 1
    assert torch.equal(literal.amax((1, 2)), attention.amax((1, 2)) * 0.55)
    assert (
        torch.equal(attention < 0.55 * attention.amax((1, 2), keepdim=True), literal == attention)
        or not literal.numel()
    )


def test_each_map_by_itself():
    attention = torch.rand(3, 9, 7)
    assert torch.equal(soft_erase(attention)[1:2], soft_erase(attention[1:2]))
    assert torch.allclose(soft_erase(attention * 0.3), soft_erase(attention))  # a scale does not matter


def test_input_is_left_alone_and_may_be_non_contiguous():
    attention = torch.rand(5, 7, 2).permute(2, 0, 1)
    copy = attention.clone()
    assert torch.equal(soft_erase(attention), soft_erase(attention.contiguous()))
    assert torch.equal(attention, copy)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_constant_maps(value):
    result = soft_erase(torch.full((2, 3, 4), value))
    assert torch.equal(result, torch.full((2, 3, 4), float(value > 0)))


def test_switches_matter():
    attention = torch.linspace(0, 1, 20).view(1, 4, 5)
    assert not torch.equal(soft_erase(attention), soft_erase(attention, renormalize=False))
    assert not torch.equal(soft_erase(attention), soft_erase(attention, 0.7))
    assert torch.equal(soft_erase(attention, 1.0), attention)


@pytest.mark.parametrize(
    "attention, rate, word",
    [
        (torch.rand(4, 5), 0.55, "shape"),
        (torch.rand(1, 1, 4, 5), 0.55, "shape"),
        (torch.rand(1, 0, 5), 0.55, "shape"),
        (np.zeros((1, 2, 2)), 0.55, "ndarray"),
        (torch.zeros(1, 2, 2, dtype=torch.uint8), 0.55, "dtype"),
        (torch.full((1, 2, 2), float("nan")), 0.55, "nan"),
        (torch.full((1, 2, 2), float("inf")), 0.55, "inf"),
        (torch.full((1, 2, 2), -0.1), 0.55, "-0.1"),
        (torch.rand(1, 2, 2), 0.0, "rate"),
        (torch.rand(1, 2, 2), 1.01, "rate"),
        (torch.rand(1, 2, 2), -1, "rate"),
        (torch.rand(1, 2, 2), float("nan"), "rate"),
        (torch.rand(1, 2, 2), "0.5", "rate"),
        (torch.rand(1, 2, 2), True, "rate"),
    ],
)
def test_bad_input(attention, rate, word):
    with pytest.raises(InputError, match=word):
        soft_erase(attention, rate)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_the_gpu():
    attention = torch.rand(3, 37, 41)
    assert torch.allclose(soft_erase(attention.cuda()).cpu(), soft_erase(attention))


# ---- further dtypes, corners and strides


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (20, 33, 50)])
def test_every_dtype_against_float64(dtype, shape):
    a = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    tolerance = 4 * torch.finfo(dtype).eps  # the rounding of the clip, of the quotient, and of 0.55
    for renormalize in (True, False):
        erased = soft_erase(a, 0.55, renormalize)
        assert erased.dtype == dtype
        np.testing.assert_allclose(
            erased.double().numpy(), by_pixel(a.double().numpy(), 0.55, renormalize), rtol=tolerance, atol=tolerance
        )
    assert (soft_erase(a).amax((1, 2)) == 1).all()  # exactly, in every dtype
    mixed = torch.cat([a, torch.zeros_like(a[:1])])  # an all-zero map beside others stays zero
    assert torch.equal(soft_erase(mixed), torch.cat([soft_erase(a), torch.zeros_like(a[:1])]))
    assert soft_erase(a[:0]).shape == (0, *shape[1:]) and soft_erase(a[:0]).dtype == dtype


def test_strides_and_gradient_history():
    a = torch.rand(9, 7, 6, generator=torch.Generator().manual_seed(0))
    for view in (a[::2, :, ::3], a[:, :, 0].t()[None].expand(3, -1, -1), a[1:, 2:]):
        before = view.clone()
        assert torch.equal(soft_erase(view), soft_erase(view.contiguous())) and torch.equal(view, before)
    leaf = a.clone().requires_grad_()
    soft_erase(leaf).sum().backward()
    assert leaf.grad.isfinite().all()
    with torch.inference_mode():
        assert torch.equal(soft_erase(a), soft_erase(leaf).detach())


def test_a_rate_may_be_any_real_number():
    a = torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(0))
    for rate in (np.float64(0.5), np.float32(0.5), np.float16(0.5)):
        assert torch.equal(soft_erase(a, rate), soft_erase(a, 0.5))
    assert torch.equal(soft_erase(a, np.int64(1)), soft_erase(a, 1.0))


@pytest.mark.parametrize("rate", [float("inf"), None, torch.tensor(0.55), 1j], ids=repr)
def test_rates_that_are_no_numbers_in_range(rate):
    with pytest.raises(InputError, match="^rate is .*expected.*\\.$"):
        soft_erase(torch.ones(1, 2, 2), rate)
