"""The arithmetic of a policy in float32 C, written out in numpy.

Each operation is one of float32, rounded once, in the order of the C: a compiler that does not contract ``a * b + c`` computes the same
numbers, bit for bit, whichever processor it writes for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from policy_distill.export import shared
from policy_distill.export.folded import ActionRule, Convolution, Folded, Input, Normalization, image_shapes
from policy_distill.export.runner import Seen
from policy_distill.export.shared import encoded, masked

TANH_LIMIT = np.float32(9)
TANH_ABOVE = np.array([1.0, 0.13381028175354004, 0.0034955914597958326, 2.0609135390259326e-05, 1.3354727990133597e-08], np.float32)
TANH_BELOW = np.array([1.0, 0.4671434462070465, 0.02587699517607689, 0.0003285640268586576, 7.77658669903758e-07], np.float32)
"""``tanh(x) = x * above(x**2) / below(x**2)`` up to ``TANH_LIMIT``, coefficients from the constant on: fitted for the smallest largest
relative error, which is 2e-8, and 4e-7 in float32."""
Keep = Callable[[str, np.ndarray], None]

_HALF, _ONE, _ZERO = np.float32(0.5), np.float32(1), np.float32(0)


class FloatNetwork:
    """A policy as its float32 C computes it: a ``Runner``.

    Args:
        folded: the policy.
        folds: whether the normalisation is folded into the first layer where it can be.
        keep: receives intermediate values by name; see ``fixed.RANGES``.
    """

    def __init__(self, folded: Folded, *, folds: bool = True, keep: Keep | None = None) -> None:
        self.is_folded = folds and folded.normalization_folds
        self.folded = folded.with_folded_normalization() if self.is_folded else folded
        self._keep = keep or (lambda name, values: None)

    def __call__(self, seen: Seen, state: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        folded = self.folded
        parts = zip(folded.inputs, folded.normalizations, strict=True)
        values = np.concatenate([self._features(index, *pair, seen[pair[0].name]) for index, pair in enumerate(parts)], axis=1)
        if folded.memory is not None:
            gru, split = folded.memory, 2 * folded.memory.units
            inputs = dense(values, gru.inputs, gru.bias)
            recurrent = dense(state, gru.recurrent, np.zeros(len(gru.bias), np.float32))
            reset, update = np.split(sigmoid(inputs[:, :split] + recurrent[:, :split]), 2, axis=1)
            new = tanh(inputs[:, split:] + reset * recurrent[:, split:])
            values = state = new + update * (state - new)
        for index, layer in enumerate(folded.layers[:-1]):
            values = ACTIVATIONS[folded.activation](dense(values, layer.weight, layer.bias))
            self._keep(f"layers.{index}", values)
        outputs = masked(folded.rule, dense(values, folded.layers[-1].weight, folded.layers[-1].bias), seen)
        return choose(folded.rule, outputs), outputs, state

    def _features(self, index: int, part: Input, normalization: Normalization | None, values: np.ndarray) -> np.ndarray:
        if normalization is not None:
            features = self._vector(part, normalization, values)
            self._keep("features", features)
            return features
        pixels = pixels_last(part, values).astype(np.float32)
        self._keep(f"pixels.{index}", pixels)
        for number, (layer, (_, height, width)) in enumerate(zip(part.convolutions, image_shapes(part)[1:], strict=True)):
            weight = layer.weight.transpose(0, 2, 3, 1).reshape(len(layer.weight), -1)
            patches = patches_of(layer, pixels)
            pixels = ACTIVATIONS[self.folded.activation](dense(patches, weight, layer.bias)).reshape(len(values), height, width, -1)
            self._keep(f"convolutions.{index}.{number}", pixels)
        return pixels.reshape(len(values), -1)

    def _vector(self, part: Input, normalization: Normalization, values: np.ndarray) -> np.ndarray:
        read = encoded(part, values, normalization.mean.dtype)[:, normalization.columns]
        if self.is_folded:
            return read
        result: np.ndarray = ((read - normalization.mean) * reciprocal(normalization)).astype(np.float32)
        return result


def reciprocal(normalization: Normalization) -> np.ndarray:
    """1 / scale, in its dtype."""
    result: np.ndarray = 1 / normalization.scale
    return result


def dense(values: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """``bias + values @ weight.T``, the products added one after the other: ``[B, out]`` from ``[B, in]``."""
    result = np.repeat(bias[None], len(values), axis=0)
    for index in range(weight.shape[1]):
        result += values[:, index, None] * weight[:, index]
    return result


def tanh(values: np.ndarray) -> np.ndarray:
    """The hyperbolic tangent by ``TANH_ABOVE`` and ``TANH_BELOW``."""
    bounded = values.clip(-TANH_LIMIT, TANH_LIMIT)
    square = bounded * bounded
    above, below = (np.full_like(square, coefficients[-1]) for coefficients in (TANH_ABOVE, TANH_BELOW))
    for one, other in zip(TANH_ABOVE[-2::-1], TANH_BELOW[-2::-1], strict=True):
        above, below = above * square + one, below * square + other
    result: np.ndarray = bounded * above / below
    return result


def sigmoid(values: np.ndarray) -> np.ndarray:
    """The logistic function, by ``tanh``."""
    result: np.ndarray = _HALF + _HALF * tanh(_HALF * values)
    return result


def elu(values: np.ndarray) -> np.ndarray:
    """``exp(x) - 1 = 2 t / (1 - t)`` with ``t = tanh(x / 2)`` below zero, x above."""
    half = tanh(_HALF * np.minimum(values, _ZERO))
    result: np.ndarray = np.where(values > 0, values, (half + half) / (_ONE - half))
    return result


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda values: np.where(values > 0, values, _ZERO),
    "tanh": tanh,
    "elu": elu,
    "silu": lambda values: values * sigmoid(values),
}


def pixels_last(part: Input, values: np.ndarray) -> np.ndarray:
    """Images ``[B, H, W, C]``."""
    return values.transpose(0, 2, 3, 1) if part.channels_first else values


def patches_of(layer: Convolution, pixels: np.ndarray) -> np.ndarray:
    """What a convolution multiplies, ``[B * positions, kernel * kernel * channels]``, from ``[B, H, W, C]``."""
    kernel, step = layer.weight.shape[2], layer.stride
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (kernel, kernel), axis=(1, 2))[:, ::step, ::step]
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, kernel * kernel * pixels.shape[3])


def shift_of(rule: ActionRule) -> np.ndarray:
    """``offset / scale``: an action is ``(output + shift) * scale``, whose rounding no contraction changes."""
    return np.divide(rule.offset, rule.scale, out=np.zeros_like(rule.offset), where=rule.scale != 0)


def choose(rule: ActionRule, outputs: np.ndarray) -> np.ndarray:
    """Actions ``[B, *shape]``; see ``ActionRule``."""
    return shared.choose(rule, outputs, (outputs + shift_of(rule)) * rule.scale if rule.kind == "box" else outputs)
