"""Arrays as text of C."""

from __future__ import annotations

import itertools
import math
import re
import textwrap
from collections.abc import Iterable

import numpy as np

from policy_distill.export.c.interface import C_TYPES

SMALLEST = float(np.finfo(np.float32).tiny)
"""Smaller numbers are written as 0: some compilers warn of denormal numbers."""


def number(value: float) -> str:
    """A float32 in C, exactly; infinity as the largest float32."""
    largest = float(np.finfo(np.float32).max)
    value = min(max(float(value), -largest), largest)
    text = f"{value:.9g}" if abs(value) >= SMALLEST else "0"
    return f"{text}f" if any(sign in text for sign in ".e") else f"{text}.0f"


def double(value: float) -> str:
    """A float64 in C, exactly."""
    text = f"{float(value):.17g}" if math.fabs(value) >= SMALLEST else "0"
    return text if any(sign in text for sign in ".e") else f"{text}.0"


def array(name: str, values: np.ndarray, comment: str = "") -> str:
    """The definition of a constant array; its type follows from the dtype."""
    flat = values.ravel()
    written: Iterable[str] = map({"float32": number, "float64": double}.get(values.dtype.name, integer), flat.tolist())
    if values.dtype == np.float32 and len(flat) > 8 and np.array_equal(flat, np.rint(flat)):
        written = (f"{int(value)}" for value in flat)  # whole numbers, such as encoded images, are shorter as integers
    lines = textwrap.wrap(", ".join(written) or "0", 118, break_long_words=False, break_on_hyphens=False)
    head = f"/* {comment} */\n" if comment else ""
    return (
        head
        + f"static const {C_TYPES[values.dtype.name]} {name}[{max(len(flat), 1)}] = {{\n"
        + "\n".join(f"    {line}" for line in lines)
        + "\n};"
    )


def bytes_of_arrays(code: str) -> int:
    """Bytes of the constant arrays in a text that was written by ``array``."""
    sizes = {name: np.dtype(dtype).itemsize for dtype, name in C_TYPES.items()}
    return sum(sizes[name] * int(count) for name, count in re.findall(r"^static const (\w+) \w+\[(\d+)\]", code, re.MULTILINE))


def integer(value: int) -> str:
    """An integer in C."""
    return str(int(value))


def narrowest(values: np.ndarray) -> np.ndarray:
    """Integers in the smallest dtype that holds them."""
    dtypes = map(np.dtype, ("uint8", "int8", "uint16", "int16", "int32", "int64"))
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    return values.astype(next(one for one in dtypes if np.iinfo(one).min <= low and high <= np.iinfo(one).max))


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes ``[rows, n]`` of at most 4 bits as bytes: the first code of a byte in its lowest bits, each plus half of the range.

    Codes of 3 bits take 4. Rows end with the end of a byte; what is left of it is never read.
    """
    field = 2 if bits == 2 else 4
    each = 8 // field
    width = -(-codes.shape[1] // each) * each
    padded = np.zeros((len(codes), width), np.int64)
    padded[:, : codes.shape[1]] = codes + 2 ** (field - 1)
    shifts = np.array(list(itertools.islice(itertools.count(0, field), each)))
    return (padded.reshape(len(codes), -1, each) << shifts).sum(-1).astype(np.uint8)
