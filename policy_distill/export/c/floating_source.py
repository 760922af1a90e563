"""The parts of policy.c that differ with float32 arithmetic."""

from __future__ import annotations

import numpy as np

from policy_distill.export.c.arrays import array, number
from policy_distill.export.c.floating import TANH_ABOVE, TANH_BELOW, TANH_LIMIT, FloatNetwork, reciprocal
from policy_distill.export.c.interface import Argument
from policy_distill.export.folded import Input, Normalization

TYPE, STATE_TYPE = "float", "float"
"""C types of activations and of the recurrent state."""

DENSE = """\
static void dense(const float *restrict in, int32_t inputs, const float *restrict weights, const float *restrict biases,
                  float *restrict out, int32_t outputs)
{
    for (int32_t j = 0; j < outputs; j++) {
        out[j] = biases[j];
    }
    for (int32_t i = 0; i < inputs; i++, weights += outputs) {
        const float value = in[i];
        for (int32_t j = 0; j < outputs; j++) {
            out[j] += value * weights[j];
        }
    }
}"""
TANH = """\
/* tanh as a quotient of polynomials; the largest relative error is 4e-7. */
static float tangent(float x)
{{
    const float bounded = x < -{limit} ? -{limit} : x > {limit} ? {limit} : x;
    const float square = bounded * bounded;
    const float above = {above};
    const float below = {below};
    return bounded * above / below;
}}"""
SIGMOID = """\
static float sigmoid(float x)
{
    return 0.5f + 0.5f * tangent(0.5f * x);
}"""
ACTIVATE = {
    "relu": "x[i] = x[i] > 0.0f ? x[i] : 0.0f;",
    "tanh": "x[i] = tangent(x[i]);",
    "elu": (
        "const float half = tangent(x[i] < 0.0f ? 0.5f * x[i] : 0.0f);\n        x[i] = x[i] > 0.0f ? x[i] : (half + half) / (1.0f - half);"
    ),
    "silu": "x[i] = x[i] * sigmoid(x[i]);",
}
REMEMBER = """\
static void remember(const float *features, policy_state *state)
{{
    float inputs[{gates}], recurrent[{gates}];
    dense(features, {width}, GRU_WEIGHTS, GRU_BIASES, inputs, {gates});
    dense(state->units, {units}, GRU_RECURRENT, GRU_ZEROS, recurrent, {gates});
    for (int32_t k = 0; k < {units}; k++) {{
        const float reset = sigmoid(inputs[k] + recurrent[k]);
        const float update = sigmoid(inputs[{units} + k] + recurrent[{units} + k]);
        const float fresh = tangent(inputs[2 * {units} + k] + reset * recurrent[2 * {units} + k]);
        state->units[k] = fresh + update * (state->units[k] - fresh);
    }}
}}"""


class FloatSource:
    """Text of a ``FloatNetwork``; see ``source.Source``."""

    type, state_type = TYPE, STATE_TYPE
    about = "The arithmetic is float32."

    def __init__(self, network: FloatNetwork) -> None:
        self._network, self._folded = network, network.folded

    def tables(self) -> list[str]:
        texts, folded = [], self._folded
        for index, part in enumerate(folded.inputs):
            for layer_index, layer in enumerate(part.convolutions):
                weight = layer.weight.transpose(2, 3, 1, 0)
                texts += _layer(f"IMAGE_{index}_{layer_index}", weight, layer.bias)
        if folded.memory is not None:
            texts += _layer("GRU", folded.memory.inputs.T, folded.memory.bias)
            texts.append(array("GRU_RECURRENT", np.ascontiguousarray(folded.memory.recurrent.T)))
            texts.append(array("GRU_ZEROS", np.zeros(3 * folded.memory.units, np.float32)))
        for index, dense in enumerate(folded.layers):
            texts += _layer(f"LAYER_{index}", dense.weight.T, dense.bias)
        return texts

    def functions(self) -> list[str]:
        folded = self._folded
        texts, hidden = [DENSE], len(folded.layers) > 1 or any(part.convolutions for part in folded.inputs)
        if folded.memory is not None or (hidden and folded.activation != "relu"):
            texts.append(TANH.format(limit=number(float(TANH_LIMIT)), above=_horner(TANH_ABOVE), below=_horner(TANH_BELOW)))
        if folded.memory is not None or (hidden and folded.activation == "silu"):
            texts.append(SIGMOID)
        if hidden:
            body = ACTIVATE[folded.activation]
            texts.append(
                f"static void activate(float *x, int32_t count)\n{{\n    for (int32_t i = 0; i < count; i++) {{\n        {body}\n    }}\n}}"
            )
        if folded.memory is not None:
            units, width = folded.memory.units, folded.memory.inputs.shape[1]
            texts.append(REMEMBER.format(units=units, gates=3 * units, width=width))
        return texts

    def vector(self, name: str, argument: Argument, normalization: Normalization) -> tuple[list[str], str]:
        """Tables, and the feature ``i`` of a value ``x``."""
        if self._network.is_folded:
            return [], "x" if argument.dtype == np.float32 else "(float)x"
        wide = normalization.mean.dtype == np.float64
        tables = [array(f"{name}_MEAN", normalization.mean), array(f"{name}_FACTOR", reciprocal(normalization))]
        return tables, f"(float)((({'double' if wide else 'float'})x - {name}_MEAN[i]) * {name}_FACTOR[i])"

    def one_hot(self, name: str, normalization: Normalization) -> tuple[list[str], str, str]:
        """Tables, and the feature ``i`` of a component that has, or has not, the value that it stands for."""
        if self._network.is_folded:
            return [], "1.0f", "0.0f"
        hot, cold = (((value - normalization.mean) * reciprocal(normalization)).astype(np.float32) for value in (1, 0))
        return [array(f"{name}_HOT", hot), array(f"{name}_COLD", cold)], f"{name}_HOT[i]", f"{name}_COLD[i]"

    def pixel(self, part: int, pixel: str) -> str:
        return f"(float){pixel}"

    def reads_directly(self, part: Input, argument: Argument, normalization: Normalization) -> bool:
        """Whether the first layer can read the raw input."""
        columns = normalization.columns
        plain = not part.sizes and argument.dtype == np.float32 and np.array_equal(columns, np.arange(part.width))
        return self._network.is_folded and plain

    def dense(self, name: str, inputs: str, width: int, out: str, outputs: int) -> list[str]:
        """Statements of a layer with its activation."""
        return [
            f"dense({inputs}, {width}, {name}_WEIGHTS, {name}_BIASES, {out}, {outputs});",
            f"activate({out}, {outputs});",
        ]

    def last(self, name: str, inputs: str, width: int, outputs: int) -> list[str]:
        """Statements of the last layer."""
        return [f"dense({inputs}, {width}, {name}_WEIGHTS, {name}_BIASES, outputs, {outputs});"]

    def remembered(self, features: str, out: str, units: int) -> tuple[list[str], str]:
        """Statements of the memory, and what the head reads."""
        return [f"remember({features}, state);"], "state->units"


def _layer(name: str, weight: np.ndarray, bias: np.ndarray) -> list[str]:
    """Tables of weights ``[in, out]`` and biases."""
    return [array(f"{name}_WEIGHTS", np.ascontiguousarray(weight)), array(f"{name}_BIASES", bias)]


def _horner(coefficients: np.ndarray) -> str:
    text = number(coefficients[-1])
    for index, value in enumerate(coefficients[-2::-1]):
        text = f"({text}) * square + {number(value)}" if index else f"{text} * square + {number(value)}"
    return text
