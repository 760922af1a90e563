"""A student as an ONNX graph: the operations of ``Folded``, one node each, without what a tracing exporter adds.

Inputs have the names of ``Folded.inputs``, then follows ``state`` for a student with a memory. Outputs are ``action``, ``outputs`` and
``next_state``, in this order; a name that an input already has gets underscores. The first axis of each is the batch, of any size. The
metadata describe them as JSON, see ``_metadata``.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from policy_distill.export.folded import MASK_NAME, ActionRule, Folded, Gru, Input, Normalization, image_shapes
from policy_distill.policies.families.choices import FORBIDDEN

OPSET, IR_VERSION = 18, 8
"""Versions of the operators and of the file format (ONNX 1.13), for readers that are older than the writer."""
BATCH = "batch"


def model_of(folded: Folded) -> onnx.ModelProto:
    """The policy as an ONNX model, checked by ONNX's checker."""
    graph = _Graph(folded)
    parts = zip(folded.inputs, folded.normalizations, strict=True)
    features = [graph.features(part, normalization) for part, normalization in parts if normalization is None or len(normalization.columns)]
    values = graph.node("Concat", *features, axis=1) if len(features) > 1 else features[0]
    if folded.memory is not None:
        values = graph.gru(folded.memory, values)
    for layer in folded.layers[:-1]:
        values = graph.activated(graph.dense(values, layer.weight, layer.bias))
    last, masked = folded.layers[-1], folded.rule.masked
    outputs = graph.dense(values, last.weight, last.bias, name=None if masked else graph.outputs)
    if masked:
        graph.mask(folded.rule, outputs)
    graph.act(folded.rule)
    return graph.model()


class _Graph:
    """Nodes and constants of a graph; methods add to it and return the name of their result.

    Attributes:
        state, action, outputs, next_state: names of the inputs and outputs that are no part of the observation.
    """

    def __init__(self, folded: Folded) -> None:
        self._folded = folded
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._taken = {part.name for part in folded.inputs}
        self.state, self.action, self.outputs, self.next_state = map(self._free, ("state", "action", "outputs", "next_state"))
        self._numbers = itertools.count()

    def _free(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def node(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add an operation with one result."""
        name = name or self._free(f"v{next(self._numbers)}")
        self._nodes.append(helper.make_node(operator, inputs, [name], name=f"{operator}:{name}", **attributes))
        return name

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """Add a constant."""
        self._constants.append(numpy_helper.from_array(np.asarray(values, dtype), self._free(f"c{next(self._numbers)}")))
        return str(self._constants[-1].name)

    def cast(self, values: str, current: Any, wanted: Any) -> str:
        """Convert ``values`` of the dtype ``current``, if that is not the ``wanted`` one."""
        return values if np.dtype(current) == np.dtype(wanted) else self.node("Cast", values, to=_type(wanted))

    def features(self, part: Input, normalization: Normalization | None) -> str:
        """Features ``[B, width]`` of one part of the observation."""
        return self._images(part) if normalization is None else self._vector(part, normalization)

    def _vector(self, part: Input, normalization: Normalization) -> str:
        dtype, columns = normalization.mean.dtype, normalization.columns
        values = part.name if len(part.shape) == 1 else self.node("Flatten", part.name, axis=1)
        if part.sizes:  # one-hot: compare the component of each column with the column's value
            component = np.repeat(np.arange(len(part.sizes)), part.sizes)[columns]
            value = np.concatenate([start + np.arange(size) for size, start in zip(part.sizes, part.starts, strict=True)])[columns]
            if len(part.sizes) > 1:
                values = self.node("Gather", values, self.constant(component, np.int64), axis=1)
            equal = self.node("Equal", self.cast(values, part.dtype, np.int64), self.constant(value, np.int64))
            values = self.cast(equal, np.bool_, dtype)
        else:
            if not np.array_equal(columns, np.arange(part.width)):
                values = self.node("Gather", values, self.constant(columns, np.int64), axis=1)
            values = self.cast(values, part.dtype, dtype)
        if np.any(normalization.mean != 0):
            values = self.node("Sub", values, self.constant(normalization.mean, dtype))
        if np.any(normalization.scale != 1):
            values = self.node("Div", values, self.constant(normalization.scale, dtype))
        return self.cast(values, dtype, np.float32)

    def _images(self, part: Input) -> str:
        values = part.name if part.channels_first else self.node("Transpose", part.name, perm=(0, 3, 1, 2))
        values = self.cast(values, part.dtype, np.float32)
        for layer in part.convolutions:
            kernel, stride = layer.weight.shape[2:], (layer.stride, layer.stride)
            constants = self.constant(layer.weight), self.constant(layer.bias)
            values = self.activated(self.node("Conv", values, *constants, kernel_shape=kernel, strides=stride))
        if image_shapes(part)[-1][1:] != (1, 1):
            values = self.node("Transpose", values, perm=(0, 2, 3, 1))
        return self.node("Flatten", values, axis=1)

    def dense(self, values: str, weight: np.ndarray, bias: np.ndarray | None, name: str | None = None) -> str:
        constants = [self.constant(weight)] + ([] if bias is None else [self.constant(bias)])
        return self.node("Gemm", values, *constants, name=name, transB=1)

    def activated(self, values: str) -> str:
        match self._folded.activation:
            case "silu":
                return self.node("Mul", values, self.node("Sigmoid", values))
            case "relu" | "tanh" | "elu":
                return self.node(self._folded.activation.capitalize(), values)

    def gru(self, gru: Gru, values: str) -> str:
        """The state after the step, with ``z h + (1 - z) n`` as ``n + z (h - n)``."""
        sizes = self.constant((2 * gru.units, gru.units), np.int64)
        inputs = self._split(self.dense(values, gru.inputs, gru.bias), sizes, 2)
        recurrent = self._split(self.dense(self.state, gru.recurrent, None), sizes, 2)
        gates = self.node("Sigmoid", self.node("Add", inputs[0], recurrent[0]))
        reset, update = self._split(gates, self.constant((gru.units, gru.units), np.int64), 2)
        new = self.node("Tanh", self.node("Add", inputs[1], self.node("Mul", reset, recurrent[1])))
        return self.node("Add", new, self.node("Mul", update, self.node("Sub", self.state, new)), name=self.next_state)

    def _split(self, values: str, sizes: str, count: int) -> list[str]:
        names = [self._free(f"v{next(self._numbers)}") for _ in range(count)]
        self._nodes.append(helper.make_node("Split", [values, sizes], names, name=f"Split:{names[0]}", axis=1))
        return names

    def mask(self, rule: ActionRule, logits: str) -> None:
        """Replace the logits of forbidden actions; see ``Choices.masked`` and ``Bernoulli.masked``."""
        allowed = self.node("Cast", self.node("Flatten", MASK_NAME, axis=1), to=_type(np.bool_))
        forbidden = self.constant(FORBIDDEN)
        if rule.kind == "argmax":
            self.node("Where", allowed, logits, forbidden, name=self.outputs)
            return
        bits = len(rule.sizes)
        off, on = (self.node("Gather", allowed, self.constant(np.arange(first, 2 * bits, 2), np.int64), axis=1) for first in (0, 1))
        without_on = self.node("Where", off, forbidden, self.constant(0.0))  # logit 0 where neither is allowed
        self.node("Where", on, self.node("Where", off, logits, self.constant(-FORBIDDEN)), without_on, name=self.outputs)

    def act(self, rule: ActionRule) -> None:
        """The action from the outputs."""
        match rule.kind:
            case "box":
                values, dtype = self._boxed(rule), np.float32
            case "bits":
                values, dtype = self.node("Greater", self.outputs, self.constant(0.0)), np.bool_  # type: ignore[assignment]
            case "argmax":
                values, dtype = self._argmax(rule), np.int64  # type: ignore[assignment]
        values = self.cast(values, dtype, rule.dtype)
        if len(rule.shape) > 1:
            values = self.node("Reshape", values, self.constant((-1, *rule.shape), np.int64))
        if values != self.action:  # the last node's result gets the name
            self._nodes[-1].output[0] = self.action

    def _boxed(self, rule: ActionRule) -> str:
        values = self.outputs
        if np.any(rule.scale != 1):
            values = self.node("Mul", values, self.constant(rule.scale))
        if np.any(rule.offset != 0):
            values = self.node("Add", values, self.constant(rule.offset))
        return self.node("Min", self.node("Max", values, self.constant(rule.low)), self.constant(rule.high))

    def _argmax(self, rule: ActionRule) -> str:
        parts = self._split(self.outputs, self.constant(rule.sizes, np.int64), len(rule.sizes)) if len(rule.sizes) > 1 else [self.outputs]
        columns = [self.node("ArgMax", part, axis=1, keepdims=int(bool(rule.shape))) for part in parts]
        values = self.node("Concat", *columns, axis=1) if len(columns) > 1 else columns[0]
        return self.node("Add", values, self.constant(rule.starts, np.int64)) if any(rule.starts) else values

    def model(self) -> onnx.ModelProto:
        """The whole model, checked."""
        folded, rule = self._folded, self._folded.rule
        inputs = [_value(part.name, part.dtype, part.shape) for part in folded.inputs]
        outputs = [_value(self.action, rule.dtype, rule.shape), _value(self.outputs, np.float32, (folded.outputs,))]
        if folded.memory is not None:
            inputs.append(_value(self.state, np.float32, (folded.memory.units,)))
            outputs.append(_value(self.next_state, np.float32, (folded.memory.units,)))
        graph = helper.make_graph(self._nodes, "policy", inputs, outputs, self._constants)
        versions: dict[str, Any] = {"opset_imports": [helper.make_opsetid("", OPSET)], "ir_version": IR_VERSION}
        model = helper.make_model(graph, producer_name="policy-distill", **versions)
        helper.set_model_props(model, {name: json.dumps(text) for name, text in self._metadata().items()})
        onnx.checker.check_model(model, full_check=True)
        return model

    def _metadata(self) -> dict[str, Any]:
        """What inputs and outputs mean: ``observation``, ``action``, ``outputs``, and ``state`` of a student with a memory."""
        folded, rule = self._folded, self._folded.rule
        observation: dict[str, Any] = {part.name: {"shape": part.shape, "dtype": str(part.dtype)} for part in folded.inputs}
        for part in filter(lambda part: part.sizes, folded.inputs):
            observation[part.name] |= {"sizes": part.sizes, "starts": part.starts}
        action: dict[str, Any] = {"name": self.action, "kind": rule.kind, "shape": rule.shape, "dtype": str(rule.dtype)}
        if rule.kind == "box":
            action |= {name: [_number(value) for value in getattr(rule, name)] for name in ("low", "high")}
            outputs = {"parameters": "means; action = clip(mean * scale + offset, low, high)"}
            outputs |= {name: getattr(rule, name).tolist() for name in ("scale", "offset", "log_std")}
        else:
            action |= {"sizes": rule.sizes, **({"starts": rule.starts} if rule.kind == "argmax" else {})}
            outputs = {"parameters": "logits"}
        found = {"observation": observation, "action": action, "outputs": {"name": self.outputs, **outputs}}
        if folded.memory is not None:
            found["state"] = {"input": self.state, "output": self.next_state, "units": folded.memory.units, "initial": 0}
        return found


def _number(value: np.floating) -> float | str:
    """A number for JSON, which has no infinities."""
    return float(value) if np.isfinite(value) else str(value)


def _value(name: str, dtype: Any, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, _type(dtype), (BATCH, *shape))


def _type(dtype: Any) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
