"""Codes of weights for fixed point."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from policy_distill.export.c.codes import are_narrow, codes_of
from policy_distill.policies.quantization import rounded


def weights(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    draws = np.random.default_rng(seed)
    return (draws.normal(size=(rows, columns)) * np.exp(draws.normal(size=(rows, 1)))).astype(np.float32)


def test_narrow_rows_have_sixteen_scales_and_clip_nothing():
    # by hand: the largest scale is 127 / 127 = 1 and the unit 1/16, so a row up to 40 needs ceil(16 * 40 / 127) = 6 units
    weight = np.array([[127.0, -1.0], [40.0, 6.0], [0.1, 0.05], [0.0, 0.0]], np.float32)
    found = codes_of(weight, 8, narrow=True)
    assert found.multiples is not None
    assert found.multiples.tolist() == [16, 6, 1, 1]
    np.testing.assert_allclose(found.scales, [1.0, 6 / 16, 1 / 16, 0.0])
    assert found.codes.tolist() == [[127, -1], [107, 16], [2, 1], [0, 0]]


@pytest.mark.parametrize("seed", range(5))
def test_the_error_of_a_narrow_row_is_half_of_its_scale(seed):
    weight = weights(20, 16, seed)
    found = codes_of(weight, 8, narrow=True)
    assert np.abs(found.codes).max() <= 127
    assert (np.abs(found.codes * found.scales[:, None] - weight) <= 0.5001 * found.scales[:, None]).all()


def test_wide_rows_are_those_of_training():
    weight = weights(6, 5)
    found = codes_of(weight, 4, narrow=False)
    np.testing.assert_array_equal((found.codes * found.scales[:, None]).astype(np.float32), rounded(torch.from_numpy(weight), 4).numpy())
    assert found.multiples is None


@pytest.mark.parametrize(
    ("shape", "bits", "trained", "narrow"),
    [((16, 16), 8, False, True), ((16, 16), 4, False, False), ((16, 16), 8, True, False), ((16, 64), 8, False, False)],
)
def test_rows_are_narrow_where_they_are_short_and_nothing_is_exact_yet(shape, bits, trained, narrow):
    weight = weights(*shape)
    assert are_narrow([rounded(torch.from_numpy(weight), 8).numpy() if trained else weight], bits) == narrow


def test_a_layer_of_zeros_has_codes():
    for narrow in (False, True):
        found = codes_of(np.zeros((2, 3), np.float32), 8, narrow=narrow)
        assert not found.codes.any()
        assert not found.scales.any()
