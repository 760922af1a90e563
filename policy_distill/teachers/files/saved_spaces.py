"""Observation and action spaces rebuilt from the plain text that Stable-Baselines3 writes beside their pickles."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
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
    with refuse_damage(fail, "save the agent again, or load it with --trust", NotPlainError):
        if kind != "Dict" or role != "observation":
            space = _space(kind, text, role, fail)
            _check_size(observation_width(space))
            return space
        parts: OrderedDict[str, gym.Space] = OrderedDict()  # of a plain dict, gymnasium would sort the keys
        total = 0
        for key, inner, printed in _printed_parts(text["spaces"]):
            parts[key] = _space(inner, printed, role, f"{fail}'s part {key!r}")
            total = _check_size(total + observation_width(parts[key]))
        return gym.spaces.Dict(parts)


def _check_size(width: int) -> int:
    if width > MAX_ELEMENTS:
        raise ValueError(f"it has {width:,} components, at most {MAX_ELEMENTS:,} are supported")
    return width


def _space(kind: str, text: Mapping[str, Any], role: str, fail: str) -> gym.Space:
    match kind:
        case "Tuple" | "Dict":
            raise RequestError(f"{fail} is a {kind}, which is not supported: observations of one Box, or of a Dict of boxes, are")
        case "Box":
            return _box(text, role, fail)
        case "Discrete":
            return gym.spaces.Discrete(int(text["n"]), start=int(text.get("start", 0)))
        case "MultiDiscrete":
            nvec = _integers(text["nvec"], fail)
            return gym.spaces.MultiDiscrete(nvec, start=_integers(text["start"], fail, lowest=None) if "start" in text else None)
    if kind != "MultiBinary":
        named = one_line(text.get(":type:", kind), 120)
        raise RequestError(f"{fail} is of type {named!r}; Box, Discrete, MultiDiscrete, MultiBinary and a Dict of these are supported")
    n = _integers(text["n"], fail)
    return gym.spaces.MultiBinary(int(n) if n.ndim == 0 else n.tolist())


def _printed_parts(text: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Key, kind and attributes of each space in ``{'key': Box(-1.0, 1.0, (3,), float32), ...}`` or in a printed ``OrderedDict``."""
    if len(text) > MAX_TEXT or not re.match(r"\{|OrderedDict\(\[", text):
        raise ValueError("its parts cannot be read")
    names = {
        "Box": ("low", "high", "shape", "dtype"),
        "Discrete": ("n", "start"),
        "MultiDiscrete": ("nvec", "start"),
        "MultiBinary": ("n",),
    }
    end = text.index("[") + 1 if text.startswith("O") else 1
    while match := re.compile(r"""[\s,()]*('[^'\\\n]*'|"[^"\\\n]*")\s*[:,]\s*(\w+)\(""").match(text, end):
        arguments, end = _arguments(text, match.end())
        values = [argument.rpartition("=")[2].strip() for argument in arguments]
        yield match[1][1:-1], match[2], dict(zip(names.get(match[2], ()), values, strict=False))
    if re.search(r"[^\s,()\]}]", text[end:]):
        raise ValueError("its parts cannot be read")


def _arguments(text: str, start: int) -> tuple[list[str], int]:
    """The arguments from ``start`` to the parenthesis that closes them, and where the text goes on."""
    found, depth, begin = [], 0, start
    for match in re.compile(r"[\[\](),]").finditer(text, start):
        sign, place = match[0], match.start()
        if depth == 0 and sign in ",)":
            found.append(text[begin:place])
            begin = place + 1
            if sign == ")":
                return found, begin
        depth += (sign in "[(") - (sign in "])")
    raise ValueError("a parenthesis is not closed")


def _box(text: Mapping[str, Any], role: str, fail: str) -> gym.spaces.Box:
    dtype = number_type(text["dtype"])
    sizes = text["_shape" if "_shape" in text else "shape"]
    shape = tuple(int(size) for size in (re.sub(r"[(),]", " ", sizes).split() if isinstance(sizes, str) else sizes))
    if min(shape, default=1) < 1 or math.prod(shape[:MAX_DIMENSIONS]) > MAX_ELEMENTS:
        raise RequestError(f"{fail} has the shape {shape}, which is not supported: at most {MAX_ELEMENTS:,} elements are")
    bounds = []
    for name, sign in (("low", -1), ("high", 1)):
        values = _numbers(text.get(name), math.prod(shape))
        if values is None:  # gymnasium keeps the short form of bounds that are one number throughout
            values = _numbers(text.get(f"{name}_repr"), math.prod(shape))
        if values is None and role == "action":
            raise NotPlainError(f"{fail}'s bound {name!r} is not readable in the file and is not guessed; load the agent with --trust")
        if values is None and dtype == np.uint8 and len(shape) == 3:
            values = _uniform(text.get(name), math.prod(shape))
            if values is None:  # whether pixels are divided by 255 depends on it
                raise NotPlainError(f"{fail}'s bound {name!r} is not readable in the file and is not guessed; load the agent with --trust")
        if values is None:
            values = np.full(math.prod(shape), _limit(dtype, sign))
        with np.errstate(all="ignore"):  # what does not fit becomes a bound that is none, or infinite
            bounds.append(_cast(values, dtype).reshape(shape))
    low, high = bounds
    if np.isnan(low).any() or np.isnan(high).any() or (low > high).any():
        raise RequestError(f"{fail} has bounds that are no bounds (low above high, or NaN); save the agent again")
    return gym.spaces.Box(low, high, dtype=dtype.type)


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


def _uniform(text: object, count: int) -> np.ndarray | None:
    """A shortened array all of whose numbers that are shown are one; None otherwise."""
    words = set(re.sub(r"[\[\](),]|\.\.\.", " ", text[:MAX_TEXT]).split()) if isinstance(text, str) else set()
    return np.full(count, float(word)) if len(words) == 1 and (word := words.pop()).isdecimal() else None


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
