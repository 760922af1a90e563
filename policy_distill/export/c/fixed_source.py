"""The parts of policy.c that differ with fixed point arithmetic."""

from __future__ import annotations

import numpy as np

from policy_distill.export.c.arrays import array, double, narrowest, number, packed
from policy_distill.export.c.fixed import EXP, FAR, TANH, UNIT, FixedLayer, FixedNetwork, are_bytes, to_fixed
from policy_distill.export.c.interface import Argument
from policy_distill.export.folded import Input, Normalization

LAYER = """\
/* (sum * multiplier >> shift) + bias * step counts steps of 2^-point, activations count steps of 2^-fraction, at most limit.
   No sum of codes times inputs exceeds 31 bits, since the inputs are limited accordingly. */
typedef struct {{
    const {code} *codes;
{rows}
    int32_t inputs, outputs, step;
    int16_t limit;
    int8_t shift, point, fraction;
}} layer;"""
WIDE_ROWS = """\
    const uint16_t *multipliers;
    const int16_t *biases;"""
NARROW_ROWS = """\
    const int16_t *rows; /* bias * 16 + multiplier / unit - 1 */
    int32_t unit;"""
WIDE_SCALED = "(int32_t)(((int64_t)sum * one->multipliers[row]) >> one->shift) + one->biases[row] * one->step"
NARROW_SCALED = """\
(int32_t)(((int64_t)sum * (one->unit * ((one->rows[row] & 15) + 1))) >> one->shift)
        + (one->rows[row] >> 4) * one->step"""
ROUNDED = """\
static int32_t rounded(int32_t value, int32_t by)
{
    return by > 0 ? ((value >> (by - 1)) + 1) >> 1 : value;
}"""
TO_FIXED = """\
/* The nearest integer to half of doubled, less the mean, limited. */
static int16_t {name}({type} doubled, int32_t mean, int16_t limit)
{{
    const {type} bound = {bound};
    int32_t value;
    if (!(doubled >= -bound)) {{
        return (int16_t)-limit;
    }}
    value = (int32_t)(doubled < bound ? doubled : bound);
    value = (value < 0 ? value - 1 : value + 1) / 2 - mean;
    return (int16_t)(value > limit ? limit : value < -limit ? -limit : value);
}}"""
UNIT_OF_BYTES = """\
static int32_t unit(const layer *one, const int16_t *in, int32_t row)
{{
    const int8_t *codes = one->codes + row * one->inputs;
    const int16_t *const end = in + one->inputs;
    int32_t sum = 0;
    do {{ /* five instructions on a Cortex-M4; the same as a for loop has seven */
        sum += (int32_t)*in++ * *codes++;
    }} while (in != end);
    return {scaled};
}}"""
UNIT_OF_FIELDS = """\
static int32_t unit(const layer *one, const int16_t *in, int32_t row)
{{
    const int32_t whole = one->inputs / {each}, rest = one->inputs % {each};
    const uint8_t *codes = one->codes + row * (whole + (rest > 0));
    int32_t sum = 0;
    for (int32_t i = 0; i < whole; i++, in += {each}) {{
        const int32_t fields = codes[i];
{sums}
    }}
    for (int32_t i = 0; i < rest; i++) {{
        sum += (int32_t)in[i] * (((codes[whole] >> (i * {field})) & {mask}) - {half});
    }}
    return {scaled};
}}"""
DISTANCE = """\
/* The distance of a value from a multiple of 1/2, in steps of 2^-15 */
static int32_t distance_from(int32_t place, int32_t value, int32_t point)
{
    const int32_t distance = value - place * ((int32_t)1 << (point - 1));
    return point > 15 ? distance >> (point - 15) : distance * ((int32_t)1 << (15 - point));
}"""
TANGENT = """\
/* tanh in steps of 2^-15: the Taylor series around the nearest multiple of 1/2, whose derivatives are polynomials in tanh */
static int32_t tangent(int32_t value, int32_t point)
{{
    const int32_t size = value < 0 ? -value : value, place = rounded(size, point - 1);
    int32_t found = 32767;
    if (place < {count}) {{
        const int32_t near = TANH[place], square = near * near >> 15, distance = distance_from(place, size, point);
        const int32_t third = 10922 - square - (distance * (near * (21845 - square) >> 15) >> 15);
        const int32_t second = near + (distance * third >> 15);
        found = near + ((distance * (32768 - square) >> 15) * (32768 - (distance * second >> 15)) >> 15);
    }}
    return value < 0 ? -found : found;
}}"""
VANISHING = """\
/* 1 - exp(-value) in steps of 2^-15: exp at the nearest multiple of 1/2, times a Taylor series */
static int32_t vanishing(int32_t value, int32_t point)
{{
    const int32_t place = rounded(value, point - 1);
    if (place < {count}) {{
        const int32_t distance = distance_from(place, value, point);
        const int32_t second = 32768 - (distance * (16384 - (distance * 5461 >> 15)) >> 15);
        return 32768 - (EXP[place] * (32768 - (distance * second >> 15)) >> 15);
    }}
    return 32767;
}}"""
SIGMOID = """\
/* The logistic function in steps of 2^-16 */
static int32_t sigmoid(int32_t value, int32_t point)
{
    return 32768 + tangent(value, point + 1);
}"""
ACTIVATED = {
    "relu": "rounded(sum > 0 ? sum : 0, one->point - one->fraction)",
    "tanh": "rounded(tangent(sum, one->point), 15 - one->fraction)",
    "elu": (
        "sum > 0 ? rounded(sum, one->point - one->fraction)\n"
        "                                  : -rounded(vanishing(-sum, one->point), 15 - one->fraction)"
    ),
    "silu": ("(int32_t)((((int64_t)sum * sigmoid(sum, one->point) >> (15 + one->point - one->fraction)) + 1) >> 1)"),
}
DENSE = """\
static void dense(const layer *one, const int16_t *in, int16_t *out)
{{
    for (int32_t row = 0; row < one->outputs; row++) {{
        const int32_t sum = unit(one, in, row);
        const int32_t value = {activated};
        out[row] = (int16_t)(value > one->limit ? one->limit : value < -one->limit ? -one->limit : value);
    }}
}}"""
REMEMBER = """\
static void remember(const int16_t *features, policy_state *state)
{{
    int16_t before[{units}];
    for (int32_t k = 0; k < {units}; k++) {{
        before[k] = (int16_t)rounded(state->units[k], {drop});
    }}
    for (int32_t k = 0; k < {units}; k++) {{
        const int32_t reset = sigmoid(unit(&GRU, features, k) + unit(&GRU_RECURRENT, before, k), {point}) >> 1;
        const int32_t update = sigmoid(unit(&GRU, features, {units} + k) + unit(&GRU_RECURRENT, before, {units} + k), {point}) >> 1;
        const int32_t part = (int32_t)(((int64_t)reset * unit(&GRU_RECURRENT, before, 2 * {units} + k)) >> 15);
        const int32_t fresh = tangent(unit(&GRU, features, 2 * {units} + k) + part, {point});
        state->units[k] = (int16_t)(fresh + rounded(update * (state->units[k] - fresh), 15));
    }}
}}"""


class FixedSource:
    """Text of a ``FixedNetwork``; see ``source.Source``."""

    type, state_type = "int16_t", "int16_t"

    def __init__(self, network: FixedNetwork) -> None:
        self._network, self._folded, self._bits = network, network.folded, network.bits
        self.about = f"Weights have {self._bits} bits; the arithmetic is fixed point."

    def tables(self) -> list[str]:
        network = self._network
        rows = NARROW_ROWS if network.narrow else WIDE_ROWS
        texts = [LAYER.format(code="int8_t" if self._bits == 8 else "uint8_t", rows=rows)]
        for index, layers in enumerate(network.convolutions):
            for number_of_layer, layer in enumerate(layers):
                texts += self._layer(f"IMAGE_{index}_{number_of_layer}", layer)
        for name, layer in zip(("GRU", "GRU_RECURRENT"), network.gates, strict=False):
            texts += self._layer(name, layer)
        for index, layer in enumerate(network.layers):
            texts += self._layer(f"LAYER_{index}", layer)
        if self._has_tanh:
            texts.append(array("TANH", TANH.astype(np.uint16), "tanh at multiples of 1/2"))
        if self._hidden and self._folded.activation == "elu":
            texts.append(array("EXP", EXP.astype(np.uint16), "exp(-x) at multiples of 1/2"))
        return texts

    def _layer(self, name: str, layer: FixedLayer) -> list[str]:
        codes = layer.codes.astype(np.int8) if self._bits == 8 else packed(layer.codes, self._bits)
        numbers = {"CODES": codes, "MULTIPLIERS": layer.multipliers.astype(np.uint16), "BIASES": layer.biases.astype(np.int16)}
        outputs, inputs = layer.codes.shape
        fields = f"{inputs}, {outputs}, {layer.step}, {layer.limit}, {layer.shift}, {layer.point}, {layer.fraction}"
        if self._network.narrow:
            multiples = layer.multipliers // max(layer.unit, 1)
            numbers = {"CODES": codes, "ROWS": (layer.biases * 16 + np.maximum(multiples, 1) - 1).astype(np.int16)}
            fields = f"{layer.unit}, {fields}"
        pointers = ", ".join(f"{name}_{field}" for field in numbers)
        return [
            *(array(f"{name}_{field}", values) for field, values in numbers.items()),
            f"static const layer {name} = {{{pointers}, {fields}}};",
        ]

    @property
    def _hidden(self) -> bool:
        return len(self._folded.layers) > 1 or any(part.convolutions for part in self._folded.inputs)

    @property
    def _has_tanh(self) -> bool:
        return self._folded.memory is not None or (self._hidden and self._folded.activation in ("tanh", "silu"))

    def functions(self) -> list[str]:
        folded, network = self._folded, self._network
        pairs = list(zip(folded.inputs, folded.normalizations, strict=True))
        numbers = [normalization for part, normalization in pairs if normalization is not None and not part.sizes]
        wide = {normalization.mean.dtype == np.float64 for normalization in numbers}
        wide |= {False for part, normalization in pairs if normalization is None and not are_bytes(part)}
        texts = [
            TO_FIXED.format(name="to_fixed_double", type="double", bound=double(FAR))
            if one
            else TO_FIXED.format(name="to_fixed", type="float", bound=number(FAR))
            for one in sorted(wide)
        ]
        texts.append(self._unit())
        elu = self._hidden and folded.activation == "elu"
        if self._hidden or folded.memory is not None:
            texts.append(ROUNDED)
        if self._has_tanh or elu:
            texts.append(DISTANCE)
        if self._has_tanh:
            texts.append(TANGENT.format(count=len(TANH)))
        if elu:
            texts.append(VANISHING.format(count=len(EXP)))
        if folded.memory is not None or (self._hidden and folded.activation == "silu"):
            texts.append(SIGMOID)
        if self._hidden:
            texts.append(DENSE.format(activated=ACTIVATED[folded.activation]))
        if folded.memory is not None:
            drop, point = UNIT - network.hidden, network.gates[0].point
            texts.append(REMEMBER.format(units=folded.memory.units, drop=drop, point=point))
        return texts

    def _unit(self) -> str:
        scaled = NARROW_SCALED if self._network.narrow else WIDE_SCALED
        if self._bits == 8:
            return UNIT_OF_BYTES.format(scaled=scaled)
        field = 2 if self._bits == 2 else 4
        each, mask, half = 8 // field, 2**field - 1, 2 ** (field - 1)
        sums = "\n".join(f"        sum += in[{k}] * (((fields >> {k * field}) & {mask}) - {half});" for k in range(each))
        return UNIT_OF_FIELDS.format(each=each, field=field, mask=mask, half=half, sums=sums, scaled=scaled)

    def vector(self, name: str, argument: Argument, normalization: Normalization) -> tuple[list[str], str]:
        """Tables, and the feature ``i`` of a value ``x``."""
        network = self._network
        if normalization.mean.dtype == np.float64:
            tables = [array(f"{name}_MEAN", normalization.mean), array(f"{name}_FACTOR", network.factors(normalization))]
            return tables, f"to_fixed_double(((double)x - {name}_MEAN[i]) * {name}_FACTOR[i], 0, {network.limit})"
        short = network.short_factors(normalization)
        tables = [array(f"{name}_FACTOR", short.codes), array(f"{name}_MEAN", narrowest(short.means))]
        factor = f"((float)((uint32_t)({name}_FACTOR[i] >> 4) << ({name}_FACTOR[i] & 15)) * {number(2.0**short.common)})"
        return tables, f"to_fixed((float)x * {factor}, {name}_MEAN[i], {network.limit})"

    def one_hot(self, name: str, normalization: Normalization) -> tuple[list[str], str, str]:
        """Tables, and the feature ``i`` of a component that has, or has not, the value that it stands for."""
        dtype, factors = normalization.mean.dtype, self._network.factors(normalization)
        hot, cold = (to_fixed((dtype.type(value) - normalization.mean) * factors, self._network.limit).astype(np.int16) for value in (1, 0))
        return [array(f"{name}_HOT", hot), array(f"{name}_COLD", cold)], f"{name}_HOT[i]", f"{name}_COLD[i]"

    def pixel(self, part: int, pixel: str) -> str:
        fraction = self._network.pixels[part]
        assert fraction is not None
        if are_bytes(self._folded.inputs[part]):
            return pixel
        return f"to_fixed((float){pixel} * {number(2.0 ** (fraction + 1))}, 0, {self._network.pixel_limit(part)})"

    def reads_directly(self, part: Input, argument: Argument, normalization: Normalization) -> bool:
        """Whether the first layer can read the raw input."""
        return False

    def dense(self, name: str, inputs: str, width: int, out: str, outputs: int) -> list[str]:
        """Statements of a layer with its activation."""
        return [f"dense(&{name}, {inputs}, {out});"]

    def last(self, name: str, inputs: str, width: int, outputs: int) -> list[str]:
        """Statements of the last layer."""
        step = number(2.0 ** -self._network.layers[-1].point)
        return [f"for (int32_t j = 0; j < {outputs}; j++) {{", f"    outputs[j] = (float)unit(&{name}, {inputs}, j) * {step};", "}"]

    def remembered(self, features: str, out: str, units: int) -> tuple[list[str], str]:
        """Statements of the memory, and what the head reads."""
        drop = UNIT - self._network.hidden
        statements = [f"remember({features}, state);"]
        if not drop:
            return statements, "state->units"
        copied = [f"for (int32_t k = 0; k < {units}; k++) {{", f"    {out}[k] = (int16_t)rounded(state->units[k], {drop});", "}"]
        return statements + copied, out
