"""Weights of a few bits: what an export rounds weights to, and what quantisation-aware training trains through.

A weight of row j is ``codes[j, i] * scale[j]``, with integer codes and one scale for each row (the weights of one output). The largest
weight of a row has the largest code, so no weight is clipped. The scale has 16 significant bits. Products of a code and a scale are thus
exact in float32, rounding twice equals rounding once, and an integer program multiplies by the scale without loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = (8, 4, 3, 2)
"""Supported numbers of bits of a weight."""
SCALE_BITS = 16
"""Significant bits of a scale."""
SMALLEST = 2.0**-100
"""A row whose largest weight is smaller than this counts as zero: its scale would be denormal."""

_DROPPED = 24 - SCALE_BITS


def largest_code(bits: int) -> int:
    """Largest code of a weight: 127, 7, 3 or 1; the smallest is its negative."""
    return 2 ** (bits - 1) - 1


def quantize(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes of weights and the scale of each row; ``codes * scale`` are the rounded weights.

    Args:
        weight: ``[..., outputs, inputs]`` float32; a convolution's ``[outputs, inputs, kernel, kernel]`` is passed as
            ``weight.flatten(1)``.
        bits: one of ``BITS``.

    Returns:
        Codes ``[..., outputs, inputs]``, whole numbers in float32 from ``-largest_code(bits)`` to ``largest_code(bits)``, and scales
        ``[..., outputs, 1]`` float32, above zero (1 for a row of zeros).

    Raises:
        ValueError: if ``bits`` is not one of ``BITS``, or the weights are not float32.
    """
    if bits not in BITS or weight.dtype != torch.float32:
        raise ValueError(f"weights are rounded to {BITS} bits from float32, not to {bits} from {weight.dtype}")
    largest, levels = weight.abs().amax(-1, keepdim=True), largest_code(bits)
    exact = (largest / levels).view(torch.int32)  # as an integer, a float32 is rounded to fewer significant bits by a shift
    scale = (((exact + (1 << (_DROPPED - 1))) >> _DROPPED) << _DROPPED).view(torch.float32)
    scale = torch.where(largest < SMALLEST, 1.0, scale)
    return (weight / scale).round(), scale


def rounded(weight: Tensor, bits: int) -> Tensor:
    """The rounded weights ``[..., outputs, inputs]``, exactly; rounding them again changes nothing. See ``quantize``."""
    codes, scale = quantize(weight, bits)
    return codes * scale


def rounded_weight(weight: Tensor, bits: int | None) -> Tensor:
    """A layer's weight ``[..., outputs, inputs]`` or ``[outputs, inputs, kernel, kernel]``, rounded; unchanged if ``bits`` is None."""
    if bits is None:
        return weight
    return rounded(weight.flatten(1), bits).view(weight.shape) if weight.ndim == 4 else rounded(weight, bits)
