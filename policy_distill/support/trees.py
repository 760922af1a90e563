"""Observations as trees: an array, or a dict of arrays, each with the same leading axes.

All code that indexes, stacks, stores or sends observations uses these functions and does not depend on the observations' structure.
Dtype and shape of a leaf come from its space, as in Stable-Baselines3's buffers, never from a sample. Leaves are numpy arrays while
environments are stepped and torch tensors in training. The keys of a dict have the order of their space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import torch

Tree: TypeAlias = Any
"""An array, or a dict of arrays; each function names the type of its leaves."""
PASS_ROWS, PASS_NUMBERS = 4096, 2**24
"""Maximum number of observations, and of the numbers in them, in one forward pass."""


def leaf_spaces(space: gym.Space) -> dict[str, gym.Space]:
    """The spaces of the leaves by key; a space of a single leaf has the key ``""``.

    Raises:
        ValueError: for a space that is no tree of arrays: Tuple, Graph, Sequence, Text, or a Dict within a Dict.
    """
    parts = dict(space.spaces) if isinstance(space, gym.spaces.Dict) else {"": space}
    for name, part in parts.items():
        if part.shape is None or part.dtype is None or isinstance(part, gym.spaces.Dict):
            raise ValueError(f"the observation space {space} is no array and no Dict of arrays" + (f" (its part {name!r})" if name else ""))
    return parts


def leaves(tree: Tree) -> list[Any]:
    """The arrays of a tree, in the order of its keys."""
    return list(tree.values()) if isinstance(tree, dict) else [tree]


def map_leaves(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """The tree of ``function(leaf, leaf of each other, ...)``."""
    if isinstance(tree, dict):
        return {key: function(leaf, *(other[key] for other in others)) for key, leaf in tree.items()}
    return function(tree, *others)


def of_space(space: gym.Space, function: Callable[[gym.Space], Any]) -> Tree:
    """The tree of ``function(leaf's space)``."""
    parts = leaf_spaces(space)
    return {key: function(part) for key, part in parts.items()} if isinstance(space, gym.spaces.Dict) else function(space)


def zeros(space: gym.Space, *lead: int) -> Tree:
    """Zeros ``[*lead, *shape]`` of each leaf's dtype, as numpy arrays."""
    return of_space(space, lambda part: np.zeros((*lead, *part.shape), part.dtype))  # type: ignore[misc]


def row_bytes(space: gym.Space) -> int:
    """Bytes of one observation."""
    return sum(math.prod(part.shape or ()) * np.dtype(part.dtype).itemsize for part in leaf_spaces(space).values())


def check_shapes(space: gym.Space, observations: Tree) -> None:
    """Check that arrays of several axes, such as images, have their axes in the order of their space.

    Args:
        space: of one observation.
        observations: ``[B, ...]``.

    Raises:
        ValueError: if they do not.
    """
    for part, leaf in zip(leaf_spaces(space).values(), leaves(observations), strict=False):
        if len(part.shape or ()) > 1 and tuple(leaf.shape[1:]) != part.shape:
            raise ValueError(f"observations have the shape {tuple(leaf.shape[1:])}, and their space has {part.shape}")


def length(tree: Tree) -> int:
    """Size of the first axis."""
    return len(leaves(tree)[0])


def rows(tree: Tree, index: Any) -> Tree:
    """``leaf[index]`` of each leaf."""
    return {key: leaf[index] for key, leaf in tree.items()} if isinstance(tree, dict) else tree[index]


def flattened(tree: Tree) -> Tree:
    """The tree of tensors with its first two axes as one."""
    return map_leaves(lambda leaf: leaf.flatten(0, 1), tree)


def blocks(tree: Tree, count: int) -> Iterator[Tree]:
    """The rows in their order, ``count`` at a time."""
    return (rows(tree, slice(first, first + count)) for first in range(0, length(tree), count))


def passes(tree: Tree) -> Iterator[Tree]:
    """The rows in their order, in blocks for forward passes: at most ``PASS_ROWS`` of them, and fewer if they are large."""
    numbers = sum(math.prod(leaf.shape[1:]) for leaf in leaves(tree))
    return blocks(tree, max(1, min(PASS_ROWS, PASS_NUMBERS // max(numbers, 1))))


def write(into: Tree, index: Any, values: Tree) -> None:
    """``leaf[index] = value`` for each leaf."""
    if isinstance(into, dict):
        for key, leaf in into.items():
            leaf[index] = values[key]
    else:
        into[index] = values


def stack(trees: Sequence[Tree], axis: int = 0) -> Tree:
    """Join trees along a new axis."""
    return map_leaves(lambda *parts: _joined(np.stack, torch.stack, parts, axis), trees[0], *trees[1:])


def concatenate(trees: Sequence[Tree], axis: int = 0) -> Tree:
    """Join trees along an axis that they have."""
    return map_leaves(lambda *parts: _joined(np.concatenate, torch.cat, parts, axis), trees[0], *trees[1:])


def to_tensors(tree: Tree) -> Tree:
    """The tree with torch tensors that share the arrays' memory."""
    return map_leaves(torch.as_tensor, tree)


def to_arrays(tree: Tree) -> Tree:
    """The tree with numpy arrays that share the tensors' memory."""
    return map_leaves(np.asarray, tree)


def on_cpu(tree: Tree) -> Tree:
    """The tree of tensors in the main memory."""
    return map_leaves(torch.Tensor.cpu, tree)


def copied(tree: Tree) -> Tree:
    """A copy that shares no memory, of numpy arrays."""
    return map_leaves(np.array, tree)


def is_mapping(observation: object) -> bool:
    """Whether a foreign observation has parts."""
    return isinstance(observation, Mapping)


def _joined(of_arrays: Callable[..., Any], of_tensors: Callable[..., Any], parts: Sequence[Any], axis: int) -> Any:
    return of_tensors(parts, dim=axis) if isinstance(parts[0], torch.Tensor) else of_arrays(parts, axis=axis)
