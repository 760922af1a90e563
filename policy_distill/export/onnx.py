"""The format ``onnx``: a student as ``policy.onnx``, executed by onnxruntime."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from policy_distill.config import RequestError
from policy_distill.export.folded import Folded
from policy_distill.export.runner import Seen, Visited
from policy_distill.support.files import write_atomically
from policy_distill.support.untrusted import read_bytes, refuse_damage

if TYPE_CHECKING:
    import onnx
    from onnxruntime import InferenceSession

FILE = "policy.onnx"
MAX_BYTES = 256 << 20
"""Limit for reading."""
OPERATORS = {
    *("Flatten", "Transpose", "Gather", "Equal", "Cast", "Sub", "Div", "Concat"),  # observations
    *("QuantizeLinear", "DequantizeLinear", "Conv", "Gemm", "Relu", "Tanh", "Elu", "Sigmoid", "Mul", "Add", "Split"),  # layers
    *("Where", "ArgMax", "Greater", "Max", "Min", "Reshape"),  # actions
}
"""What a policy consists of. Other files are refused: operators such as Loop can run for ever or ask for any amount of memory."""


def write(folded: Folded, folder: Path, visited: Visited | None = None) -> None:
    """Write ``policy.onnx``; see ``onnx_graph`` for its inputs, outputs and metadata.

    The normalisation is folded into the first layer where float32 allows it.

    Raises:
        RequestError: if onnx or onnxruntime is not installed.
    """
    require_packages()
    from policy_distill.export.onnx_graph import model_of

    model = model_of(folded.with_folded_normalization() if folded.normalization_folds else folded)
    save(model, folder)


def save(model: onnx.ModelProto, folder: Path) -> None:
    """Write a model as ``policy.onnx``."""
    write_atomically(folder / FILE, lambda target: target.write_bytes(model.SerializeToString()))


def load(folder: Path, folded: Folded) -> OnnxRunner:
    """The policy of ``policy.onnx``; ``folded`` gives its inputs and outputs.

    The file is not trusted. A model runs no code of its own, and only the operators of a policy are accepted.

    Raises:
        RequestError: if onnx or onnxruntime is not installed, or the file is damaged or not the policy of such a student.
    """
    require_packages()
    path = folder / FILE
    with refuse_damage(path, "export the student again"):
        content = read_bytes(path, MAX_BYTES)
        _check_operators(content)
        session = _session(content)
        _check_signature(session, folded)
        return OnnxRunner(session, folded)


def require_packages() -> None:
    """
    Raises:
        RequestError: if the packages of the formats ``onnx`` and ``onnx-int8`` are not installed.
    """
    for package in ("onnx", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise RequestError(f"the ONNX formats need {package}: pip install 'policy-distill[export]'") from error


def _check_operators(content: bytes) -> None:
    import onnx

    model = onnx.load_model_from_string(content)
    found = {node.domain or node.op_type for node in model.graph.node}
    if foreign := sorted(found - OPERATORS) or [function.name for function in model.functions]:
        raise ValueError(f"it holds {', '.join(foreign)}, which no policy needs")
    if any(onnx.external_data_helper.uses_external_data(tensor) for tensor in model.graph.initializer):
        raise ValueError("its weights are in another file")


def _session(content: bytes) -> InferenceSession:
    """A session of one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _check_signature(session: InferenceSession, folded: Folded) -> None:
    """
    Raises:
        ValueError: if the model's inputs or outputs are not those of the student.
    """
    units = [] if folded.memory is None else [(np.dtype(np.float32), (folded.memory.units,))]
    inputs = [(part.dtype, part.shape) for part in folded.inputs] + units
    outputs = [(folded.rule.dtype, folded.rule.shape), (np.dtype(np.float32), (folded.outputs,)), *units]
    for kind, found, wanted in (("input", session.get_inputs(), inputs), ("output", session.get_outputs(), outputs)):
        have = [(_numpy_type(value.type), tuple(value.shape[1:])) for value in found]
        if have != wanted:
            raise ValueError(f"its {kind}s are {have}, those of the student are {wanted}")


def _numpy_type(name: str) -> np.dtype:
    """The dtype that onnxruntime calls ``tensor(name)``."""
    inner = name.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(inner, inner))


class OnnxRunner:
    """A ``Runner`` of an onnxruntime session.

    Each row is a run of its own with a batch of 1, as it is when the policy is deployed: kernels for larger batches round differently.
    Inputs and outputs are bound to fixed arrays, which takes a third less time than passing arrays to each run.
    """

    def __init__(self, session: InferenceSession, folded: Folded) -> None:
        rule, memory = folded.rule, folded.memory
        self._run, self._binding = session.run_with_iobinding, session.io_binding()
        self._seen = [(part.name, np.zeros((1, *part.shape), part.dtype)) for part in folded.inputs]
        self._action, self._outputs = np.zeros((1, *rule.shape), rule.dtype), np.zeros((1, folded.outputs), np.float32)
        self._states = [] if memory is None else [np.zeros((1, memory.units), np.float32) for _ in range(2)]  # before and after the step
        inputs, outputs = [*(array for _, array in self._seen), *self._states[:1]], [self._action, self._outputs, *self._states[1:]]
        for value, array in zip(session.get_inputs(), inputs, strict=True):
            self._binding.bind_input(value.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for value, array in zip(session.get_outputs(), outputs, strict=True):
            self._binding.bind_output(value.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def __call__(self, seen: Seen, state: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        results = [self._decide(seen, state, row) for row in range(len(state))]
        return results[0] if len(results) == 1 else tuple(map(np.concatenate, zip(*results, strict=True)))  # type: ignore[return-value]

    def _decide(self, seen: Seen, state: np.ndarray, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        for name, array in self._seen:
            array[0] = seen[name][row]
        if not self._states:
            self._run(self._binding)
            return self._action.copy(), self._outputs.copy(), state[row : row + 1]
        before, after = self._states
        before[0] = state[row]
        self._run(self._binding)
        return self._action.copy(), self._outputs.copy(), after.copy()
