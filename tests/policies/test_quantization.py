"""Weights of a few bits: hand-worked values, exactness and idempotence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policy_distill.policies.quantization import BITS, SCALE_BITS, SMALLEST, largest_code, quantize, rounded


def test_a_row_worked_out_by_hand():
    # 4 bits: codes -7..7. Row 0: scale 3.5 / 7 = 0.5. Row 1: scale 0.875 / 7 = 0.125; 0.0625 is half a step, which goes to the even code 0.
    weight = torch.tensor([[3.5, -1.0, 0.3, -0.2], [-0.875, 0.0625, 0.1875, 0.25]])
    codes, scale = quantize(weight, 4)
    torch.testing.assert_close(scale, torch.tensor([[0.5], [0.125]]), rtol=0, atol=0)
    torch.testing.assert_close(codes, torch.tensor([[7.0, -2.0, 1.0, -0.0], [-7.0, 0.0, 2.0, 2.0]]), rtol=0, atol=0)


@pytest.mark.parametrize(("bits", "largest"), [(8, 127), (4, 7), (3, 3), (2, 1)])
def test_the_largest_weight_has_the_largest_code(bits, largest):
    assert largest_code(bits) == largest
    codes, _ = quantize(torch.tensor([[0.1, -0.7]]), bits)
    assert codes[0, 1] == -largest


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(BITS), st.integers(1, 40), st.floats(-20, 20), st.integers(0, 10_000))
def test_rounding_is_idempotent_exact_and_within_half_a_step(bits, width, exponent, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, width, generator=generator) * 10.0**exponent
    codes, scale = quantize(weight, bits)
    once = rounded(weight, bits)
    assert torch.equal(once.double(), codes.double() * scale.double())
    assert torch.equal(rounded(once, bits), once)
    again, same_scale = quantize(once, bits)
    assert torch.equal(again, codes)
    assert torch.equal(same_scale, scale)
    assert float(codes.abs().max()) == largest_code(bits)
    assert torch.equal(codes, codes.round())
    assert bool(((once - weight).abs() <= scale * 0.5001).all())


def test_a_scale_has_sixteen_significant_bits():
    _, scale = quantize(torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)), 8)
    mantissa, _ = np.frexp(scale.numpy())
    whole = mantissa * 2**SCALE_BITS
    np.testing.assert_array_equal(whole, np.rint(whole))


def test_rows_are_independent_and_leading_dimensions_are_kept():
    weight = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))
    together, _ = quantize(weight, 8)
    for member, row in np.ndindex(2, 4):
        assert torch.equal(together[member, row], quantize(weight[member, row][None], 8)[0][0])


@pytest.mark.parametrize("row", [[0.0, 0.0], [SMALLEST / 2, -SMALLEST / 4]])
def test_a_row_of_zeros_stays_zero(row):
    codes, scale = quantize(torch.tensor([row]), 8)
    assert not codes.any()
    assert scale.item() == 1.0


@pytest.mark.parametrize(("weight", "bits"), [(torch.ones(1, 1), 5), (torch.ones(1, 1, dtype=torch.float64), 8)])
def test_other_numbers_of_bits_and_other_dtypes_are_refused(weight, bits):
    with pytest.raises(ValueError, match="weights are rounded to"):
        quantize(weight, bits)
