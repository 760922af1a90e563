"""The format ``onnx-int8``: ``policy.onnx`` with weights of 8 bits, by onnxruntime's static quantiser.

Weights are rounded as in quantisation-aware training (``policies.quantization``), with a scale for each output. What a layer reads is
rounded to 8 bits, too, in the range that it has in the states of the calibration. In float stay: the normalisation and the input of the
first layer that reads it (Kresse and Lampert, arXiv 2511.07046), biases, outputs and the action rule.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from policy_distill.export.folded import Folded
from policy_distill.export.onnx import FILE, load, require_packages, save
from policy_distill.export.runner import Seen, Visited
from policy_distill.policies.quantization import quantize

if TYPE_CHECKING:
    import onnx

__all__ = ["FILE", "load", "write"]
BLOCK = 1000
"""Number of states in a run of the calibration."""
PREPARED = "onnx.quant.pre_process"
"""Metadata without which onnxruntime recommends a preparation of the model, which does nothing here."""


def write(folded: Folded, folder: Path, visited: Visited | None) -> None:
    """Write ``policy.onnx`` in 8 bits; inputs, outputs and metadata are those of the format ``onnx``.

    Raises:
        RequestError: if onnx or onnxruntime is not installed.
        ValueError: if there are no states to calibrate on.
    """
    require_packages()
    from policy_distill.export.onnx_graph import model_of

    if visited is None or not len(visited):
        raise ValueError("8 bits are calibrated on states that the student visits, and there are none")
    model = model_of(folded)
    first = next(node for node in model.graph.node if node.op_type == "Gemm")
    reads_images = all(normalization is None for normalization in folded.normalizations)
    quantized = _quantized(model, _feeds(model, visited), [] if reads_images else [first.name])
    if not reads_images:
        _quantize_weight(quantized, first.output[0])
    _tidy(quantized, model)
    save(quantized, folder)


def _feeds(model: onnx.ModelProto, visited: Visited) -> Iterator[Seen]:
    """Inputs by name, in blocks."""
    for first in range(0, len(visited), BLOCK):
        rows = visited.rows(slice(first, first + BLOCK))
        state = {} if len(model.graph.input) == len(rows.seen) else {model.graph.input[-1].name: rows.states}
        yield {**rows.seen, **state}


def _quantized(model: onnx.ModelProto, feeds: Iterator[Seen], exclude: list[str]) -> onnx.ModelProto:
    """The model with quantised matrix products and convolutions, but for the nodes of ``exclude``.

    Weights and activations are both unsigned: where they differ, x86 processors without VNNI saturate sums of two products.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def get_next(self) -> Seen | None:
            return next(feeds, None)

    layers, prepared = ["Gemm", "Conv"], onnx.ModelProto()
    weights = {node.input[1] for node in model.graph.node if node.op_type in layers and node.name not in exclude}
    scales = {tensor.name: _rounded(tensor)[1] for tensor in model.graph.initializer if tensor.name in weights}
    same = {"axis": 0, "quant_type": QuantType.QUInt8, "zero_point": np.array(128, np.uint8)}
    overrides = {name: [{**same, "scale": scale} for scale in of_rows] for name, of_rows in scales.items()}
    prepared.CopyFrom(model)
    onnx.helper.set_model_props(prepared, {PREPARED: "onnxruntime.quant"})
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch, "float.onnx"), Path(scratch, "int8.onnx")
        onnx.save(prepared, source)
        quantize_static(
            source,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=layers,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QUInt8,
            nodes_to_exclude=exclude,
            extra_options={"TensorQuantOverrides": overrides, "OpTypesToExcludeOutputQuantization": layers, "QuantizeBias": False},
        )
        return onnx.load(target)


def _quantize_weight(model: onnx.ModelProto, output: str) -> None:
    """Store the weight of the layer with this output in 8 bits; its input stays in float, and its product is computed in float."""
    from onnx import helper, numpy_helper

    nodes = model.graph.node
    index, layer = next((index, node) for index, node in enumerate(nodes) if output in node.output)
    stored = next(tensor for tensor in model.graph.initializer if tensor.name == layer.input[1])
    codes, scales = _rounded(stored)
    name = f"{stored.name}_first"
    parts = {f"{name}_codes": codes.astype(np.int8), f"{name}_scale": scales}
    model.graph.initializer.extend([numpy_helper.from_array(array, part) for part, array in parts.items()])
    model.graph.initializer.remove(stored)
    nodes.insert(index, helper.make_node("DequantizeLinear", list(parts), [name], axis=0))
    layer.input[1] = name


def _rounded(weight: onnx.TensorProto) -> tuple[np.ndarray, np.ndarray]:
    """Codes ``[outputs, inputs]`` and scales ``[outputs]`` of a weight of 8 bits; see ``policies.quantization``."""
    from onnx import numpy_helper

    codes, scales = quantize(torch.from_numpy(numpy_helper.to_array(weight).copy()).flatten(1), 8)
    return codes.numpy(), scales.numpy()[:, 0]


def _tidy(model: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Short names and the original's metadata: a third of a small policy's file would be names."""
    import onnx

    graph = model.graph
    kept = {value.name for value in (*graph.input, *graph.output)} | {""}
    names = (name for number in itertools.count() if (name := f"q{number}") not in kept)
    short: dict[str, str] = {name: name for name in kept}
    for tensor in graph.initializer:
        tensor.name = short.setdefault(tensor.name, next(names))
    for node in graph.node:
        node.name = ""
        for ends in (node.input, node.output):
            ends[:] = [short[name] if name in short else short.setdefault(name, next(names)) for name in ends]
    del graph.value_info[:], model.metadata_props[:]
    model.metadata_props.extend(original.metadata_props)
    model.producer_name, model.producer_version = original.producer_name, ""
    onnx.checker.check_model(model, full_check=True)
