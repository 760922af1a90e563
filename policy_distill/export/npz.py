"""The format ``npz``: a student's arrays in one file, and its decisions as numpy operations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from policy_distill.export.folded import Convolution, Folded, Gru, Input, Normalization
from policy_distill.export.runner import Seen, Visited
from policy_distill.export.shared import choose, encoded, masked
from policy_distill.support.files import write_atomically
from policy_distill.support.untrusted import read_npz, refuse_damage

FILE = "policy.npz"
MAX_BYTES = 256 << 20
"""Limit for reading."""


def write(folded: Folded, folder: Path, visited: Visited | None = None) -> None:
    """Write ``policy.npz``: the arrays of ``Folded`` by their dotted names, such as ``layers.0.weight``."""
    arrays = dict(_arrays(folded))
    write_atomically(folder / FILE, lambda target: np.savez(target, **arrays))  # type: ignore[arg-type]


def load(folder: Path, folded: Folded) -> NumpyRunner:
    """The policy of ``policy.npz``; ``folded`` gives its structure.

    Raises:
        RequestError: if the file is damaged, or its arrays have other names, shapes or types.
    """
    path, expected = folder / FILE, dict(_arrays(folded))
    with refuse_damage(path, "export the student again"):
        arrays = read_npz(path, None, MAX_BYTES)
        if arrays.keys() != expected.keys():
            raise ValueError(f"the arrays {sorted(arrays.keys() ^ expected.keys())} are missing or too many")
        for name, array in arrays.items():
            if (array.shape, array.dtype) != (expected[name].shape, expected[name].dtype):
                raise ValueError(
                    f"the array {name} is {array.dtype} {array.shape}, it must be {expected[name].dtype} {expected[name].shape}"
                )
    return NumpyRunner(_replaced(folded, arrays))


def _arrays(part: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """The arrays inside nested dataclasses and tuples, by dotted name."""
    if isinstance(part, np.ndarray):
        yield name, part
    elif isinstance(part, tuple):
        for index, item in enumerate(part):
            yield from _arrays(item, f"{name}.{index}")
    elif dataclasses.is_dataclass(part):
        for field in dataclasses.fields(part):
            yield from _arrays(getattr(part, field.name), f"{name}.{field.name}" if name else field.name)


def _replaced(part: Any, arrays: Any, name: str = "") -> Any:
    """``part`` with the arrays of these names."""
    if isinstance(part, np.ndarray):
        return arrays[name]
    if isinstance(part, tuple):
        return tuple(_replaced(item, arrays, f"{name}.{index}") for index, item in enumerate(part))
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        names = [field.name for field in dataclasses.fields(part)]
        changed = {one: _replaced(getattr(part, one), arrays, f"{name}.{one}" if name else one) for one in names}
        return dataclasses.replace(part, **changed)
    return part


class NumpyRunner:
    """A ``Runner`` of plain numpy operations; the reference for the other formats."""

    def __init__(self, folded: Folded) -> None:
        self._folded, self._activate = folded, ACTIVATIONS[folded.activation]

    def __call__(self, seen: Seen, state: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        folded = self._folded
        parts = zip(folded.inputs, folded.normalizations, strict=True)
        values = np.concatenate([self._features(part, normalization, seen[part.name]) for part, normalization in parts], axis=1)
        if folded.memory is not None:
            values = state = step_of_gru(folded.memory, values, state)
        for layer in folded.layers[:-1]:
            values = self._activate(values @ layer.weight.T + layer.bias)
        outputs = values @ folded.layers[-1].weight.T + folded.layers[-1].bias
        outputs = masked(folded.rule, outputs, seen)
        scaled = outputs * folded.rule.scale + folded.rule.offset if folded.rule.kind == "box" else outputs
        return choose(folded.rule, outputs, scaled), outputs, state

    def _features(self, part: Input, normalization: Normalization | None, values: np.ndarray) -> np.ndarray:
        if normalization is not None:
            vectors = encoded(part, values, normalization.mean.dtype)[:, normalization.columns]
            return ((vectors - normalization.mean) / normalization.scale).astype(np.float32)
        images = (values if part.channels_first else values.transpose(0, 3, 1, 2)).astype(np.float32)
        for layer in part.convolutions:
            images = self._activate(convolve(layer, images))
        return images.transpose(0, 2, 3, 1).reshape(len(images), -1)


def convolve(layer: Convolution, images: np.ndarray) -> np.ndarray:
    """A convolution of ``[B, C, H, W]``, without activation."""
    kernel, step = layer.weight.shape[2], layer.stride
    windows = np.lib.stride_tricks.sliding_window_view(images, (kernel, kernel), axis=(2, 3))[:, :, ::step, ::step]
    result: np.ndarray = np.einsum("bchwij,ocij->bohw", windows, layer.weight, optimize=True)
    return result + layer.bias[:, None, None]


def step_of_gru(gru: Gru, values: np.ndarray, state: np.ndarray) -> np.ndarray:
    """The state ``[B, units]`` after a step; see ``Gru``."""
    split = 2 * gru.units
    inputs, recurrent = values @ gru.inputs.T + gru.bias, state @ gru.recurrent.T
    reset, update = np.split(_sigmoid(inputs[:, :split] + recurrent[:, :split]), 2, axis=1)
    new = np.tanh(inputs[:, split:] + reset * recurrent[:, split:])
    after: np.ndarray = new + update * (state - new)
    return after


def _sigmoid(values: np.ndarray) -> np.ndarray:
    half = np.float32(0.5)
    return half * (1 + np.tanh(half * values))


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda values: np.maximum(values, np.float32(0)),
    "tanh": np.tanh,
    "elu": lambda values: np.maximum(values, 0) + np.expm1(np.minimum(values, 0)),
    "silu": lambda values: values * _sigmoid(values),
}
