"""Observation and action spaces rebuilt from the plain text that Stable-Baselines3 writes beside their pickles."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from policy_distill.config import RequestError
from policy_distill.config.printable import one_line
from policy_distill.policies.observations import observation_width
from policy_distill.support.untrusted import MAX_DIMENSIONS, MAX_ELEMENTS, number_type, refuse_damage
from policy_distill.teachers.files.errors import NotPlainError

MAX_TEXT = 1 << 20
"""Maximum number of characters of a printed array; numpy shortens arrays of more than 1000 elements."""


def rebuild_space(text: Mapping[str, Any], *, role: str, source: str) -> gym.Space:
    """Build the gymnasium space that an archive describes.

    Bounds were printed with eight decimals, so they are exact to that. numpy shortens arrays of more than 1000 elements to ``...``:
    what the dots hide is taken as infinite for an observation, where no policy reads it, and refused for an action.

    Args:
        text: the archive's entry: ``:type:`` and the space's attributes as JSON or as ``str`` printed them.
        role: ``observation`` or ``action``.
        source: the file, for the message.

    Raises:
        RequestError: if the space is of a kind that is not supported, or unreadable.
    """
    kind = str(text.get(":type:", ""))[:200].rstrip("'>").rpartition(".")[2]
    fail = f"{source}: the {role} space"
    if kind in ("Dict", "Tuple"):
        raise RequestError(
            f"{fail} is a {kind}, which is not supported: retrain on one flat vector (gymnasium.wrappers.FlattenObservation)"
        )
    if kind not in ("Box", "Discrete", "MultiDiscrete", "MultiBinary"):
        named = one_line(text.get(":type:"), 120)
        raise RequestError(f"{fail} is of type {named!r}; Box, Discrete, MultiDiscrete and MultiBinary are supported")
    with refuse_damage(fail, "save the agent again, or load it with --trust", NotPlainError):
        space = _space(kind, text, role, fail)
        if (width := observation_width(space)) > MAX_ELEMENTS:
            raise ValueError(f"it has {width:,} components, at most {MAX_ELEMENTS:,} are supported")
        return space


def _space(kind: str, text: Mapping[str, Any], role: str, fail: str) -> gym.Space:
    match kind:
        case "Box":
            return _box(text, role, fail)
        case "Discrete":
            return gym.spaces.Discrete(int(text["n"]), start=int(text.get("start", 0)))
        case "MultiDiscrete":
            nvec = _integers(text["nvec"], fail)
            return gym.spaces.MultiDiscrete(nvec, start=_integers(text["start"], fail, lowest=None) if "start" in text else None)
    n = _integers(text["n"], fail)
    return gym.spaces.MultiBinary(int(n) if n.ndim == 0 else n.tolist())


def _box(text: Mapping[str, Any], role: str, fail: str) -> gym.spaces.Box:
    dtype = number_type(text["dtype"])
    shape = tuple(int(size) for size in text["_shape" if "_shape" in text else "shape"])
    if min(shape, default=1) < 1 or math.prod(shape[:MAX_DIMENSIONS]) > MAX_ELEMENTS:
        raise RequestError(f"{fail} has the shape {shape}, which is not supported: at most {MAX_ELEMENTS:,} elements are")
    bounds = []
    for name, sign in (("low", -1), ("high", 1)):
        values = _numbers(text.get(name), math.prod(shape))
        if values is None:  # gymnasium keeps the short form of bounds that are one number throughout
            values = _numbers(text.get(f"{name}_repr"), math.prod(shape))
        if values is None and role == "action":
            raise NotPlainError(f"{fail}'s bound {name!r} is not readable in the file and is not guessed; load the agent with --trust")
        if values is None:
            values = np.full(math.prod(shape), _limit(dtype, sign))
        with np.errstate(all="ignore"):  # what does not fit becomes a bound that is none, or infinite
            bounds.append(_cast(values, dtype).reshape(shape))
    low, high = bounds
    if np.isnan(low).any() or np.isnan(high).any() or (low > high).any():
        raise RequestError(f"{fail} has bounds that are no bounds (low above high, or NaN); save the agent again")
    space = gym.spaces.Box(low, high, dtype=dtype.type)
    if role == "observation" and is_image(space):
        raise RequestError(f"{fail} holds images {shape}, which are not supported: agents on vector observations are")
    return space


def is_image(space: gym.Space) -> bool:
    """Whether Stable-Baselines3 treats the space as images, which it scales and transposes: uint8 ``[H, W, C]`` from 0 to 255."""
    three = isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3
    return three and bool((space.low == 0).all() and (space.high == 255).all())  # type: ignore[attr-defined]


def _cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Numbers as ``dtype``; those outside an integer type's range are clipped, since C leaves such casts undefined."""
    if dtype.kind not in "iu":
        return values.astype(dtype)
    info = np.iinfo(dtype)
    inside = (values > info.min) & (values < info.max)
    return np.where(inside, np.where(inside, values, 0).astype(dtype), np.where(values <= info.min, info.min, info.max).astype(dtype))


def _limit(dtype: np.dtype, sign: int) -> float:
    """The lowest (-1) or highest (+1) value of a type."""
    match dtype.kind:
        case "f":
            return sign * np.inf
        case "b":
            return float(sign > 0)
    return np.iinfo(dtype).min if sign < 0 else np.iinfo(dtype).max


def _numbers(text: object, count: int) -> np.ndarray | None:
    """Read a printed array, or one number for all of it; None if elements are missing."""
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        return np.full(count, float(text))
    if not isinstance(text, (str, list)) or "..." in text:
        return None
    printed = str(text)
    if len(printed) > MAX_TEXT:
        return None
    words = re.sub(r"[\[\](),]", " ", printed).split()
    truth = {"False": 0.0, "True": 1.0}
    try:
        values = np.array([truth[word] if word in truth else float(word) for word in words])
    except ValueError:
        return None
    if values.size == 1 and not isinstance(text, list) and "[" not in text:
        return np.repeat(values, count)
    return values if values.size == count else None


def _integers(text: object, fail: str, lowest: int | None = 0) -> np.ndarray:
    """Read an integer or a printed or listed array of them, none below ``lowest``."""
    if isinstance(text, str):
        if "..." in text or text.count("[") > 1:
            raise RequestError(f"{fail} has more dimensions or components than are supported: one-dimensional ones are")
        text = [int(word) for word in re.sub(r"[\[\](),]", " ", text).split()] if "[" in text or "(" in text else int(text)
    values = np.asarray(text)
    too_low = lowest is not None and (values < lowest).any()
    if values.dtype.kind not in "iu" or values.size == 0 or too_low:
        raise ValueError("sizes must be whole numbers")
    return values
