"""The arithmetic of a policy in fixed point, written out in numpy: what the C computes, bit for bit.

A value between layers is an integer of 16 bits that counts steps of ``2**-fraction``. A layer multiplies it by codes of 8, 4, 3 or 2 bits
(``codes``) and adds the products in 32 bits. The sum of each row is multiplied by that row's scale, as an integer of 16
bits, and shifted so that it counts steps of ``2**-point``; then the bias is added, 16 bits that count coarser steps. Activations go from
there to the next layer's 16 bits. Outputs stay in 32 bits and become float32, whose multiplication by ``2**-point`` is exact.

Scale and bias of a row take 4 bytes; those of a narrow row (``codes``) take 2, 4 bits and 12.

No sum overflows, whatever the input: the integers that enter a layer are limited to ``(2**31 - 1) / (largest sum of absolute codes of a
row)``, at most 32767, and ``point`` is so small that the largest sum with its bias stays below ``2**30``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from policy_distill.config import RequestError
from policy_distill.export.c.codes import are_narrow, codes_of
from policy_distill.export.c.floating import choose, patches_of, pixels_last
from policy_distill.export.folded import Convolution, Folded, Input, Normalization, image_shapes
from policy_distill.export.runner import Seen
from policy_distill.export.shared import encoded, masked

RANGES = "features, pixels.PART, convolutions.PART.LAYER, layers.LAYER"
"""Names of the values whose largest size is measured on visited states: normalised vectors, images that are not bytes, and activations."""
MARGIN = 1.25
"""How far beyond the measured range a value can be expressed, at least."""
LARGEST, MAX_POINT, UNIT = 2**15 - 1, 20, 15
"""Largest integer of 16 bits, most fractional bits of a sum, and fractional bits of tanh and of the recurrent state."""
MIN_LIMIT = 255
"""Fewer values than these would make a layer's input coarser than its weights of 8 bits."""
MIN_POINT = 4
"""Fewest fractional bits of a sum."""
BIAS_BITS, NARROW_BIAS_BITS = 16, 12
"""Bits of a bias of wide and of narrow rows."""
FACTOR_BITS, LARGEST_EXPONENT = 12, 15
"""Significant bits of a component's factor in the features, and the largest exponent, which has four more bits."""
FAR = 2.0**30
"""Twice the largest integer of a raw component in steps of the features: beyond all means, which ``FAR_FROM_ZERO`` limits."""
TANH = np.array([min(round(math.tanh(index / 2) * 2**UNIT), LARGEST) for index in range(12)])
EXP = np.array([round(math.exp(-index / 2) * 2**UNIT) for index in range(20)])
"""tanh(x) and exp(-x) at multiples of 1/2, in steps of ``2**-UNIT``; a Taylor series leads from the nearest one to any argument."""


@dataclass(frozen=True)
class FixedLayer:
    """A fully connected layer, or a convolution as one.

    Attributes:
        codes: ``[out, in]`` integers.
        multipliers: ``[out]`` integers from 0 to ``2**16 - 1``. The largest has all 16 bits of its row's scale, the others fewer.
        biases: ``[out]`` integers of 16 bits (narrow: 12); ``(sum * multiplier >> shift) + bias * step`` counts steps of ``2**-point``.
        fraction, limit: of the activations that follow, which count steps of ``2**-fraction`` and are at most ``limit``; 0 if none do.
        unit: narrow rows' multipliers are 1 to 16 times this; 0 in layers of other rows.
    """

    codes: np.ndarray
    multipliers: np.ndarray
    biases: np.ndarray
    step: int
    shift: int
    point: int
    fraction: int = 0
    limit: int = 0
    unit: int = 0

    def sums(self, values: np.ndarray) -> np.ndarray:
        """``[B, out]`` integers that count steps of ``2**-point``, from integers ``[B, in]``."""
        sums = (values.astype(np.float64) @ self.codes.T).astype(np.int64)  # exact: integers below 2**31
        return (sums * self.multipliers >> self.shift) + self.biases * self.step


@dataclass(frozen=True)
class ShortFactors:
    """Normalisation of a vector in few bytes: a raw component times its factor, less its mean, in steps of the features.

    Attributes:
        values: ``[n]`` float32, twice the steps of the features for a unit of a component: ``mantissa * 2**(exponent + common)``.
        codes: ``[n]`` uint16, ``mantissa << 4 | exponent``.
        means: ``[n]`` integers, in steps of the features.
    """

    values: np.ndarray
    codes: np.ndarray
    common: int
    means: np.ndarray


class FixedNetwork:
    """A policy in fixed point: a ``Runner``. Its state counts steps of ``2**-15``.

    Args:
        folded: the policy.
        bits: bits of a weight: 8, 4, 3 or 2.
        ranges: largest absolute values by the names of ``RANGES``.

    Attributes:
        features, limit: fractional bits and largest integer of the features.
        pixels: fractional bits of each part's pixels; None for a vector. Bytes have none.
        convolutions: of each part.
        gates: the memory's layers, from features and from the state; () without one.
        hidden: fractional bits of the state as input of a layer.
        layers: the head.

    Raises:
        RequestError: if a layer has too many inputs for sums of 32 bits.
    """

    def __init__(self, folded: Folded, bits: int, ranges: Mapping[str, float]) -> None:
        self.folded, self.bits = folded, bits
        heads = [(layer.weight, layer.bias) for layer in folded.layers]
        gru = folded.memory
        first = gru.inputs if gru else heads[0][0]
        convolutions = [_flat(layer) for part in folded.inputs for layer in part.convolutions]
        weights = [*convolutions, *((gru.inputs, gru.recurrent) if gru else ()), *(weight for weight, _ in heads)]
        self.narrow = are_narrow(weights, bits)
        self.limit = self._limit(first)
        images = [index for index, part in enumerate(folded.inputs) if part.convolutions]
        wide = [f"convolutions.{index}.{len(folded.inputs[index].convolutions) - 1}" for index in images]
        self.features = min(_fraction(self.limit, ranges[name]) for name in [*wide, *(["features"] if "features" in ranges else [])])
        parts = [self._images(index, part, ranges) for index, part in enumerate(folded.inputs)]
        smallest = min([self.features, *(layers[-1].fraction for _, layers in parts if layers)])
        if smallest < self.features:  # all parts of the features count the same steps
            self.features = smallest
            parts = [self._images(index, part, ranges) for index, part in enumerate(folded.inputs)]
        self.pixels, self.convolutions = [pixels for pixels, _ in parts], [layers for _, layers in parts]
        fraction = self.features
        self.gates: tuple[FixedLayer, ...] = ()
        self.hidden = fraction
        if gru:
            limit = min(self._limit(gru.recurrent), self._limit(heads[0][0]))
            self.hidden = fraction = _fraction_of_units(limit)
            pair = (gru.inputs, gru.bias, self.features, self.limit), (gru.recurrent, 0 * gru.bias, self.hidden, limit)
            point = min(self._layer(*one).point for one in pair)
            self.gates = tuple(self._layer(*one, point) for one in pair)
        self.layers = self._head(heads, fraction, self._limit(heads[0][0]), ranges)

    def _images(self, index: int, part: Input, ranges: Mapping[str, float]) -> tuple[int | None, list[FixedLayer]]:
        if not part.convolutions:
            return None, []
        weights = [_flat(layer) for layer in part.convolutions]
        limits = [self._limit(weight) for weight in weights] + [self.limit]
        pixels = fraction = 0 if are_bytes(part) else _fraction(limits[0], ranges[f"pixels.{index}"])
        layers = []
        for number, (layer, weight) in enumerate(zip(part.convolutions, weights, strict=True)):
            last = number == len(weights) - 1
            measured = self.features if last else _fraction(limits[number + 1], ranges[f"convolutions.{index}.{number}"])
            layers.append(self._layer(weight, layer.bias, fraction, limits[number], MAX_POINT, measured, limits[number + 1]))
            fraction = layers[-1].fraction
        return pixels, layers

    def _head(
        self, heads: list[tuple[np.ndarray, np.ndarray]], fraction: int, limit: int, ranges: Mapping[str, float]
    ) -> tuple[FixedLayer, ...]:
        layers = []
        for number, (weight, bias) in enumerate(heads):
            if number == len(heads) - 1:
                layers.append(self._layer(weight, bias, fraction, limit))
                break
            following = self._limit(heads[number + 1][0])
            bounded = self.folded.activation == "tanh"
            measured = _fraction_of_units(following) if bounded else _fraction(following, ranges[f"layers.{number}"])
            layers.append(self._layer(weight, bias, fraction, limit, MAX_POINT, measured, following))
            fraction, limit = layers[-1].fraction, following
        return tuple(layers)

    def _limit(self, weight: np.ndarray) -> int:
        """The largest integer that may enter a layer; see the module's first lines."""
        limit = min(LARGEST, (2**31 - 1) // max(codes_of(weight, self.bits, narrow=self.narrow).largest_sum, 1))
        if limit < MIN_LIMIT:
            wide = f"a layer of {weight.shape[1]:,} inputs is too wide for sums of 32 bits in fixed point"
            raise RequestError(f"{wide}: export c, or train a narrower student")
        return limit

    def _layer(
        self,
        weight: np.ndarray,
        bias: np.ndarray,
        steps: int,
        largest: int,
        most: int = MAX_POINT,
        fraction: int | None = None,
        limit: int = 0,
    ) -> FixedLayer:
        """A layer whose input counts steps of ``2**-steps`` and is at most ``largest``.

        Args:
            most: most fractional bits of its sums.
            fraction, limit: see ``FixedLayer``; the fraction may become smaller.
        """
        found = codes_of(weight, self.bits, narrow=self.narrow)
        scales = found.scales * 2.0**-steps
        worst = float((np.abs(found.codes).sum(1) * largest * scales + np.abs(bias)).max())
        point = min(most, 29 - _exponent(worst), 16 - _exponent(float(scales.max())))
        if point < MIN_POINT:
            raise RequestError("a layer's weights are too large for fixed point: export c, which has float32")
        shift = min(16 - _exponent(float(scales.max())) - point, 62)
        multipliers, unit = np.minimum(np.rint(scales * 2.0 ** (point + shift)), 2**16 - 1), 0
        if found.multiples is not None:
            unit = int((multipliers / found.multiples).max())
            multipliers = found.multiples * unit
        bits = BIAS_BITS if found.multiples is None else NARROW_BIAS_BITS
        step, end = 2 ** max(_exponent(float(np.abs(bias).max())) + point - bits + 1, 0), 2 ** (bits - 1) - 1
        biases = np.rint(bias.astype(np.float64) * 2.0**point / step).clip(-end, end)
        fraction = 0 if fraction is None else min(fraction, point - 1)
        codes, multipliers, biases = (array.astype(np.int64) for array in (found.codes, multipliers, biases))
        return FixedLayer(codes, multipliers, biases, step, shift, point, fraction, limit, unit)

    def __call__(self, seen: Seen, state: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        folded = self.folded
        parts = zip(folded.inputs, folded.normalizations, strict=True)
        values = np.concatenate([self._part(index, *pair, seen[pair[0].name]) for index, pair in enumerate(parts)], axis=1)
        if self.gates:
            units = to_fixed(state * np.float32(2.0 ** (UNIT + 1)), LARGEST)
            units = self._remember(values, units)
            state = units.astype(np.float32) * np.float32(2.0**-UNIT)
            values = rounding_shift(units, UNIT - self.hidden)
        for layer in self.layers[:-1]:
            values = activate(folded.activation, layer, layer.sums(values))
        last = self.layers[-1]
        outputs = masked(folded.rule, last.sums(values).astype(np.float32) * np.float32(2.0**-last.point), seen)
        return choose(folded.rule, outputs), outputs, state

    def _part(self, index: int, part: Input, normalization: Normalization | None, values: np.ndarray) -> np.ndarray:
        if normalization is not None:
            return self._vector(part, normalization, values)
        pixels, fraction = pixels_last(part, values), self.pixels[index]
        assert fraction is not None
        if not are_bytes(part):
            pixels = to_fixed(pixels.astype(np.float32) * np.float32(2.0 ** (fraction + 1)), self.pixel_limit(index))
        for layer, fixed, (_, height, width) in zip(part.convolutions, self.convolutions[index], image_shapes(part)[1:], strict=True):
            sums = fixed.sums(patches_of(layer, pixels))
            pixels = activate(self.folded.activation, fixed, sums).reshape(len(values), height, width, -1)
        return pixels.reshape(len(values), -1)

    def _vector(self, part: Input, normalization: Normalization, values: np.ndarray) -> np.ndarray:
        read = encoded(part, values, normalization.mean.dtype)[:, normalization.columns]
        if part.sizes or normalization.mean.dtype == np.float64:
            return to_fixed((read - normalization.mean) * self.factors(normalization), self.limit)
        short = self.short_factors(normalization)
        return to_fixed(read * short.values, self.limit, short.means)

    def pixel_limit(self, index: int) -> int:
        """Largest integer of the pixels of a part, other than bytes."""
        return self._limit(_flat(self.folded.inputs[index].convolutions[0]))

    def factors(self, normalization: Normalization) -> np.ndarray:
        """What a component less its mean is multiplied by, in the normalisation's dtype: twice the steps of the features."""
        return normalization.scale.dtype.type(2.0 ** (self.features + 1)) / normalization.scale

    def short_factors(self, normalization: Normalization) -> ShortFactors:
        """The factors in 16 bits each, relative to the largest; an error of 2**-13 is a hundredth of the weights' own of 8 bits."""
        exact = 2.0 ** (self.features + 1) / normalization.scale.astype(np.float64)
        exponents = np.frexp(exact)[1] - FACTOR_BITS
        common = int(exponents.max(initial=0)) - LARGEST_EXPONENT
        exponents = np.maximum(exponents - common, 0)
        mantissas = np.rint(exact * 2.0 ** -(exponents + common)).clip(1, 2**FACTOR_BITS - 1)
        values = (mantissas * 2.0 ** (exponents + common)).astype(np.float32)
        means = np.rint(normalization.mean.astype(np.float64) * values / 2).astype(np.int64)
        return ShortFactors(values, (mantissas * 2**4 + exponents).astype(np.uint16), common, means)

    def _remember(self, values: np.ndarray, units: np.ndarray) -> np.ndarray:
        """The state after a step, in steps of ``2**-UNIT``."""
        of_inputs, of_state = self.gates
        inputs, recurrent = of_inputs.sums(values), of_state.sums(rounding_shift(units, UNIT - self.hidden))
        split, point = 2 * units.shape[1], of_inputs.point
        gates = sigmoid(inputs[:, :split] + recurrent[:, :split], point) >> 1
        reset, update = np.split(gates, 2, axis=1)
        new = tanh(inputs[:, split:] + (reset * recurrent[:, split:] >> UNIT), point)
        return new + rounding_shift(update * (units - new), UNIT)


def _flat(layer: Convolution) -> np.ndarray:
    """A convolution's weight ``[out, kernel * kernel * channels]``."""
    return layer.weight.transpose(0, 2, 3, 1).reshape(len(layer.weight), -1)


def are_bytes(part: Input) -> bool:
    """Whether an image's pixels enter the first convolution as they are."""
    return part.dtype.itemsize == 1


def _fraction(limit: int, largest: float) -> int:
    """The most fractional bits, at most ``UNIT``, with which ``MARGIN * largest`` is at most ``limit``.

    Raises:
        ValueError: if ``largest`` is negative or not finite.
    """
    if not 0 <= largest < math.inf:
        raise ValueError(f"a range is {largest}")
    return min(UNIT, math.frexp(limit / (MARGIN * largest))[1] - 1) if largest else UNIT


def _fraction_of_units(limit: int) -> int:
    """The most fractional bits of values from -1 to 1; with ``UNIT`` of them the largest is ``LARGEST``."""
    return UNIT if limit == LARGEST else limit.bit_length() - 1


def _exponent(value: float) -> int:
    """The smallest integer e with ``|value| < 2**e``; for 0 it is 0."""
    return math.frexp(value)[1]


def to_fixed(doubled: np.ndarray, limit: int, means: np.ndarray | int = 0) -> np.ndarray:
    """The nearest integers to half of ``doubled``, halves away from zero, less ``means``, limited; NaN becomes ``-limit``."""
    bound = doubled.dtype.type(FAR)
    bounded = np.where(doubled >= -bound, np.minimum(doubled, bound), -bound)
    whole = np.trunc(bounded).astype(np.int64)
    return (np.sign(whole) * ((np.abs(whole) + 1) // 2) - means).clip(-limit, limit)


def rounding_shift(values: np.ndarray, by: int) -> np.ndarray:
    """``values / 2**by``, rounded to the nearest integer, halves up."""
    return ((values >> (by - 1)) + 1) >> 1 if by else values


def tanh(values: np.ndarray, point: int) -> np.ndarray:
    """tanh in steps of ``2**-UNIT``, of integers that count steps of ``2**-point``; the error is at most 6 steps."""
    place, distance = _nearest(np.abs(values), point)
    near = TANH[np.minimum(place, len(TANH) - 1)]
    square, one = near * near >> UNIT, 1 << UNIT
    third = one // 3 - square - (distance * (near * (2 * one // 3 - square) >> UNIT) >> UNIT)  # derivatives of tanh are polynomials in it
    second = near + (distance * third >> UNIT)
    found = near + ((distance * (one - square) >> UNIT) * (one - (distance * second >> UNIT)) >> UNIT)
    return np.sign(values) * np.where(place < len(TANH), found, LARGEST)


def sigmoid(values: np.ndarray, point: int) -> np.ndarray:
    """The logistic function in steps of ``2**-16``."""
    return (1 << UNIT) + tanh(values, point + 1)


def vanishing(values: np.ndarray, point: int) -> np.ndarray:
    """1 - exp(-x) in steps of ``2**-UNIT``, of integers x >= 0 that count steps of ``2**-point``; the error is at most 6 steps."""
    place, distance = _nearest(values, point)
    one = 1 << UNIT
    ratio = one - (distance * (one - (distance * (one // 2 - (distance * (one // 6) >> UNIT)) >> UNIT)) >> UNIT)
    return np.where(place < len(EXP), one - (EXP[np.minimum(place, len(EXP) - 1)] * ratio >> UNIT), LARGEST)


def _nearest(values: np.ndarray, point: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest multiples of 1/2, counted, and the distances from them in steps of ``2**-UNIT``."""
    place = rounding_shift(values, point - 1)
    distance = values - (place << (point - 1))
    return place, distance >> (point - UNIT) if point > UNIT else distance << (UNIT - point)


def activate(activation: str, layer: FixedLayer, sums: np.ndarray) -> np.ndarray:
    """The activations after a layer, in its steps, from its ``sums``."""
    point, drop, lift = layer.point, layer.point - layer.fraction, UNIT - layer.fraction
    match activation:
        case "relu":
            values = rounding_shift(np.maximum(sums, 0), drop)
        case "tanh":
            values = rounding_shift(tanh(sums, point), lift)
        case "elu":
            below = -rounding_shift(vanishing(np.maximum(-sums, 0), point), lift)
            values = np.where(sums > 0, rounding_shift(sums, drop), below)
        case _:
            values = rounding_shift(sums * sigmoid(sums, point), 16 + drop)
    return values.clip(-layer.limit, layer.limit)
