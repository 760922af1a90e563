"""Spaces as plain data, and observations as flat vectors for a network."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from policy_distill.support.trees import Tree, leaf_spaces
from policy_distill.support.untrusted import MAX_ELEMENTS, element_count, number_type

FAR_FROM_ZERO = 1e4
"""Distance from 0, in standard deviations, beyond which float32 rounds by about a thousandth of a standard deviation."""


def observation_width(space: gym.Space) -> int:
    """Width of the vectors of ``encode_observations``.

    Raises:
        ValueError: for an unsupported space (Tuple, a Dict within a Dict, ...).
    """
    match space:
        case gym.spaces.Dict():
            return sum(map(observation_width, leaf_spaces(space).values()))
        case gym.spaces.Box():
            return math.prod(space.shape)
        case gym.spaces.Discrete():
            return int(space.n)
        case gym.spaces.MultiDiscrete():
            return sum(map(int, space.nvec.ravel()))
        case gym.spaces.MultiBinary():
            return math.prod(map(int, space.shape))
    raise ValueError(f"observation space {space} is not supported: Box, Discrete, MultiDiscrete, MultiBinary and a Dict of these are")


def encode_observations(space: gym.Space, observations: Tree, dtype: torch.dtype = torch.float32) -> Tensor:
    """Vectors ``[B, width]`` of raw observations ``[B, ...]``: boxes flattened, discrete values one-hot, as in Stable-Baselines3.

    The parts of a Dict are concatenated in the order of the space's keys, as in its ``CombinedExtractor``.
    """
    match space:
        case gym.spaces.Dict():
            return torch.cat([encode_observations(part, observations[key], dtype) for key, part in space.items()], dim=-1)
        case gym.spaces.Discrete():
            return F.one_hot(observations.long().reshape(-1) - int(space.start), int(space.n)).to(dtype)
        case gym.spaces.MultiDiscrete():
            start = torch.as_tensor(space.start.ravel(), device=observations.device)
            columns = (observations.long().reshape(len(observations), -1) - start).unbind(-1)
            return torch.cat([F.one_hot(column, int(n)).to(dtype) for column, n in zip(columns, space.nvec.ravel(), strict=True)], dim=-1)
        case _:
            return observations.reshape(len(observations), -1).to(dtype)


def parts_of(space: gym.Space, vectors: Tensor) -> Tree:
    """Views ``[B, ...]`` of the parts of encoded ``vectors`` ``[B, width]``, by key; discrete parts stay one-hot."""
    spaces = leaf_spaces(space)
    parts = [
        part.reshape(len(part), *(one.shape if isinstance(one, gym.spaces.Box | gym.spaces.MultiBinary) else (-1,)))
        for part, one in zip(vectors.split([observation_width(one) for one in spaces.values()], dim=-1), spaces.values(), strict=True)
    ]
    return dict(zip(spaces, parts, strict=True)) if isinstance(space, gym.spaces.Dict) else parts[0]


def space_to_dict(space: gym.Space) -> dict[str, Any]:
    """A space as JSON-able data; the inverse of ``space_from_dict``."""
    match space:
        case gym.spaces.Dict():
            return {"type": "Dict", "spaces": {key: space_to_dict(part) for key, part in leaf_spaces(space).items()}}
        case gym.spaces.Box():
            bounds = {name: [_number(value) for value in getattr(space, name).ravel()] for name in ("low", "high")}
            return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
        case gym.spaces.Discrete():
            return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
        case gym.spaces.MultiDiscrete():
            return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
        case gym.spaces.MultiBinary():
            return {"type": "MultiBinary", "n": [int(size) for size in space.shape]}
    raise ValueError(f"space {space} is not supported")


def space_from_dict(data: dict[str, Any]) -> gym.Space:
    """The space that ``space_to_dict`` described.

    Raises:
        ValueError, KeyError, ...: for an unknown type, a damaged description, or more than ``MAX_ELEMENTS`` components.
    """
    space = _space(data)
    if (width := observation_width(space)) > MAX_ELEMENTS:
        raise ValueError(f"a space of {width:,} components, at most {MAX_ELEMENTS:,} are supported")
    return space


def _space(data: dict[str, Any]) -> gym.Space:
    match data["type"]:
        case "Dict":  # gymnasium sorts the keys of a plain dict
            return gym.spaces.Dict(OrderedDict((key, _space(part)) for key, part in data["spaces"].items()))
        case "Box":
            dtype = number_type(data["dtype"])
            if not len(data["low"]) == len(data["high"]) == element_count(data["shape"]):
                raise ValueError("a box's bounds do not fit its shape")
            low, high = (np.array([float(value) for value in data[name]], dtype).reshape(data["shape"]) for name in ("low", "high"))
            return gym.spaces.Box(low, high, dtype=dtype.type)
        case "Discrete":
            return gym.spaces.Discrete(int(data["n"]), start=int(data["start"]))
        case "MultiDiscrete":
            return gym.spaces.MultiDiscrete(data["nvec"], start=data["start"])
        case "MultiBinary":
            return gym.spaces.MultiBinary(data["n"] if len(data["n"]) > 1 else data["n"][0])
    raise ValueError(f"space type {data['type']!r} is not known")


def _number(value: float) -> float | str:
    """A number for JSON: infinities become strings, which ``float`` reads."""
    return float(value) if math.isfinite(value) else str(float(value))
