"""Integer codes of weights for the C in fixed point, with a scale for each row.

A wide row has the scale of ``policies.quantization``, 16 bits, so that a student that was trained through this rounding loses nothing more.
Beside short rows of 8 bits, scales and biases would take a quarter of all bytes: there narrow rows have scales of 4 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from policy_distill.policies.quantization import SMALLEST, largest_code, quantize

SHORT_ROW = 28
"""Mean number of weights of a row below which rows are narrow."""
MULTIPLES = 16
"""Scales of narrow rows are 1 to 16 times that of their layer."""
UNIT_BITS = 12
"""Significant bits of the scale of a layer of narrow rows; 16 times that has 16 bits."""


@dataclass(frozen=True)
class Codes:
    """Weights as ``codes * scales``.

    Attributes:
        codes: ``[out, in]`` integers as float64.
        scales: ``[out]``, 0 for a row of zeros.
        multiples: ``[out]`` integers from 1 to ``MULTIPLES``: the scales of narrow rows in units of their layer's; None for wide rows.
    """

    codes: np.ndarray
    scales: np.ndarray
    multiples: np.ndarray | None = None

    @property
    def largest_sum(self) -> int:
        """The largest sum of absolute codes of a row."""
        return int(np.abs(self.codes).sum(1).max())


def codes_of(weight: np.ndarray, bits: int, *, narrow: bool) -> Codes:
    """Codes of a weight ``[out, in]`` float32."""
    if narrow:
        return _narrow(weight.astype(np.float64), largest_code(bits))
    codes, scales = (tensor.double().numpy() for tensor in quantize(_tensor(weight), bits))
    return Codes(codes, np.where(codes.any(1), scales[:, 0], 0.0))


def _narrow(weight: np.ndarray, most: int) -> Codes:
    """A scale is the smallest multiple with which no weight of the row is clipped."""
    largest = np.abs(weight).max(1)
    mantissa, exponent = math.frexp(max(largest.max(), SMALLEST) / most / MULTIPLES)
    unit = math.ceil(mantissa * 2**UNIT_BITS) * 2.0 ** (exponent - UNIT_BITS)
    multiples = np.ceil(largest / most / unit).clip(1, MULTIPLES)
    codes = np.rint(weight / (multiples * unit)[:, None])
    return Codes(codes, np.where(codes.any(1), multiples * unit, 0.0), multiples.astype(np.int64))


def are_narrow(weights: Sequence[np.ndarray], bits: int) -> bool:
    """Whether rows are narrow in a network with these weights ``[out, in]``: of 8 bits, short, and not rounded during training."""
    if bits != 8 or sum(weight.size for weight in weights) >= SHORT_ROW * sum(map(len, weights)):
        return False
    return any(
        not np.array_equal(codes * scales, _tensor(weight)) for weight in weights for codes, scales in [quantize(_tensor(weight), 8)]
    )


def _tensor(weight: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(weight))
