"""The parts of policy.c that differ with fixed point arithmetic."""

from __future__ import annotations

import numpy as np

from policy_distill.export.c.arrays import array, number, packed
from policy_distill.export.c.fixed import EXP, TABLE_STEP, TANH, UNIT, FixedLayer, FixedNetwork, are_bytes, to_fixed
from policy_distill.export.c.interface import Argument
from policy_distill.export.folded import Input, Normalization

LAYER = """\
/* (sum * multiplier >> shift) + bias * step counts steps of 2^-point, activations count steps of 2^-fraction, at most limit.
   No sum of codes times inputs exceeds 31 bits, since the inputs are limited accordingly. */
typedef struct {{
    const {code} *codes;
    const uint16_t *multipliers;
    const int16_t *biases;
    int32_t inputs, outputs, step;
    int16_t limit;
    int8_t shift, point, fraction;
}} layer;"""
ROUNDED = """\
static int32_t rounded(int32_t value, int32_t by)
{
    return by > 0 ? ((value >> (by - 1)) + 1) >> 1 : value;
}"""
TO_FIXED = """\
/* The nearest integer to half of doubled, limited. */
static int16_t {name}({type} doubled, int16_t limit)
{{
    const {type} bound = ({type})(2 * (int32_t)limit);
    int32_t whole;
    if (!(doubled >= -bound)) {{
        return (int16_t)-limit;
    }}
    whole = (int32_t)(doubled < bound ? doubled : bound);
    return (int16_t)((whole < 0 ? whole - 1 : whole + 1) / 2);
}}"""
UNIT_OF_BYTES = """\
static int32_t unit(const layer *one, const int16_t *in, int32_t row)
{
    const int8_t *codes = one->codes + row * one->inputs;
    const int16_t *const end = in + one->inputs;
    int32_t sum = 0;
    do { /* five instructions on a Cortex-M4; the same as a for loop has seven */
        sum += (int32_t)*in++ * *codes++;
    } while (in != end);
    return (int32_t)(((int64_t)sum * one->multipliers[row]) >> one->shift) + one->biases[row] * one->step;
}"""
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
    return (int32_t)(((int64_t)sum * one->multipliers[row]) >> one->shift) + one->biases[row] * one->step;
}}"""
LOOKED_UP = """\
/* Table with {entries} entries for each unit of its argument; between them the values are interpolated. */
static int32_t looked_up(const uint16_t *table, int32_t last, int32_t value, int32_t point)
{{
    const int32_t by = point - {step}, place = value >> by;
    if (place >= last) {{
        return table[last];
    }}
    return table[place] + (((table[place + 1] - table[place]) * (value & (((int32_t)1 << by) - 1))) >> by);
}}"""
TANGENT = """\
/* tanh in steps of 2^-15 */
static int32_t tangent(int32_t value, int32_t point)
{{
    return value < 0 ? -looked_up(TANH, {last}, -value, point) : looked_up(TANH, {last}, value, point);
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
        "                                  : -rounded(looked_up(EXP, {last}, -sum, one->point), 15 - one->fraction)"
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
        texts = [LAYER.format(code="int8_t" if self._bits == 8 else "uint8_t")]
        for index, layers in enumerate(network.convolutions):
            for number_of_layer, layer in enumerate(layers):
                texts += self._layer(f"IMAGE_{index}_{number_of_layer}", layer)
        for name, layer in zip(("GRU", "GRU_RECURRENT"), network.gates, strict=False):
            texts += self._layer(name, layer)
        for index, layer in enumerate(network.layers):
            texts += self._layer(f"LAYER_{index}", layer)
        if self._has_tanh:
            texts.append(array("TANH", TANH.astype(np.uint16), "tanh"))
        if self._hidden and self._folded.activation == "elu":
            texts.append(array("EXP", EXP.astype(np.uint16), "1 - exp(-x)"))
        return texts

    def _layer(self, name: str, layer: FixedLayer) -> list[str]:
        codes = layer.codes.astype(np.int8) if self._bits == 8 else packed(layer.codes, self._bits)
        numbers = {"CODES": codes, "MULTIPLIERS": layer.multipliers.astype(np.uint16), "BIASES": layer.biases.astype(np.int16)}
        outputs, inputs = layer.codes.shape
        fields = f"{inputs}, {outputs}, {layer.step}, {layer.limit}, {layer.shift}, {layer.point}, {layer.fraction}"
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
        texts = [TO_FIXED.format(name="to_fixed_double" if one else "to_fixed", type="double" if one else "float") for one in sorted(wide)]
        texts.append(self._unit())
        elu = self._hidden and folded.activation == "elu"
        if (self._hidden and folded.activation != "silu") or folded.memory is not None:
            texts.append(ROUNDED)
        if self._has_tanh or elu:
            texts.append(LOOKED_UP.format(entries=2**TABLE_STEP, step=TABLE_STEP))
        if self._has_tanh:
            texts.append(TANGENT.format(last=len(TANH) - 1))
        if folded.memory is not None or (self._hidden and folded.activation == "silu"):
            texts.append(SIGMOID)
        if self._hidden:
            texts.append(DENSE.format(activated=ACTIVATED[folded.activation].format(last=len(EXP) - 1)))
        if folded.memory is not None:
            drop, point = UNIT - network.hidden, network.gates[0].point
            texts.append(REMEMBER.format(units=folded.memory.units, drop=drop, point=point))
        return texts

    def _unit(self) -> str:
        if self._bits == 8:
            return UNIT_OF_BYTES
        field = 2 if self._bits == 2 else 4
        each, mask, half = 8 // field, 2**field - 1, 2 ** (field - 1)
        sums = "\n".join(f"        sum += in[{k}] * (((fields >> {k * field}) & {mask}) - {half});" for k in range(each))
        return UNIT_OF_FIELDS.format(each=each, field=field, mask=mask, half=half, sums=sums)

    def vector(self, name: str, argument: Argument, normalization: Normalization) -> tuple[list[str], str]:
        """Tables, and the feature ``i`` of a value ``x``."""
        wide = normalization.mean.dtype == np.float64
        tables = [array(f"{name}_MEAN", normalization.mean), array(f"{name}_FACTOR", self._network.factors(normalization))]
        value = f"(({'double' if wide else 'float'})x - {name}_MEAN[i]) * {name}_FACTOR[i]"
        return tables, f"{'to_fixed_double' if wide else 'to_fixed'}({value}, {self._network.limit})"

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
        return f"to_fixed((float){pixel} * {number(2.0 ** (fraction + 1))}, {self._network.pixel_limit(part)})"

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
