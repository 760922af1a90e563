"""The format ``npz``: a student's arrays in one file, and its decisions as numpy operations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from policy_distill.export.folded import MASK_NAME, ActionRule, Convolution, Folded, Gru, Input, Normalization
from policy_distill.export.runner import Seen, Visited
from policy_distill.policies.families.choices import FORBIDDEN
from policy_distill.support.files import write_atomically
from policy_distill.support.untrusted import read_npz, refuse_damage

FILE = "policy.npz"
MAX_BYTES = 256 << 20
"""Limit for reading."""


def write(folded: Folded, folder: Path, visited: Visited | None = None) -> list[str]:
    """Write ``policy.npz``: the arrays of ``Folded`` by their dotted names, such as ``layers.0.weight``."""
    arrays = dict(_arrays(folded))
    write_atomically(folder / FILE, lambda target: np.savez(target, **arrays))  # type: ignore[arg-type]
    return [FILE]


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
        if folded.rule.masked:
            outputs = _masked(folded.rule, outputs, seen[MASK_NAME])
        return choose(folded.rule, outputs), outputs, state

    def _features(self, part: Input, normalization: Normalization | None, values: np.ndarray) -> np.ndarray:
        if normalization is not None:
            vectors = encoded(part, values)[:, normalization.columns]
            return ((vectors - normalization.mean) / normalization.scale).astype(np.float32)
        images = (values if part.channels_first else values.transpose(0, 3, 1, 2)).astype(np.float32)
        for layer in part.convolutions:
            images = self._activate(convolve(layer, images))
        return images.transpose(0, 2, 3, 1).reshape(len(images), -1)


def encoded(part: Input, values: np.ndarray) -> np.ndarray:
    """Vectors ``[B, width]`` of raw values ``[B, ...]``: flattened, discrete values one-hot; floating-point values keep their dtype."""
    flat = values.reshape(len(values), -1)
    if not part.sizes:
        return flat
    components = zip(flat.T, part.sizes, part.starts, strict=True)
    return np.concatenate([np.eye(size, dtype=np.float32)[values - start] for values, size, start in components], axis=1)


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


def choose(rule: ActionRule, outputs: np.ndarray) -> np.ndarray:
    """Actions ``[B, *shape]`` from outputs ``[B, width]``; see ``ActionRule``."""
    if rule.kind == "box":
        actions = (outputs * rule.scale + rule.offset).clip(rule.low, rule.high)
    elif rule.kind == "bits":
        actions = outputs > 0
    else:
        components = np.split(outputs, np.cumsum(rule.sizes)[:-1], axis=1)
        actions = np.stack([component.argmax(1) + start for component, start in zip(components, rule.starts, strict=True)], axis=1)
    return actions.reshape(len(outputs), *rule.shape).astype(rule.dtype, copy=False)


def _masked(rule: ActionRule, outputs: np.ndarray, mask: np.ndarray) -> np.ndarray:
    allowed = mask.reshape(len(mask), -1) != 0
    if rule.kind == "argmax":
        return np.where(allowed, outputs, np.float32(FORBIDDEN))
    off, on = allowed[:, 0::2], allowed[:, 1::2]  # logit 0 where neither is allowed
    return np.where(on, np.where(off, outputs, np.float32(-FORBIDDEN)), np.where(off, np.float32(FORBIDDEN), np.float32(0)))


def _sigmoid(values: np.ndarray) -> np.ndarray:
    half = np.float32(0.5)
    return half * (1 + np.tanh(half * values))


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda values: np.maximum(values, np.float32(0)),
    "tanh": np.tanh,
    "elu": lambda values: np.maximum(values, 0) + np.expm1(np.minimum(values, 0)),
    "silu": lambda values: values * _sigmoid(values),
}
