"""Pickles read as data: whatever they want to call becomes an inert record of its arguments, and nothing is executed."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np


def load_inert(content: bytes) -> Any:
    """Load a pickle with an ``Inert`` for every class and function that it names. A hostile pickle may raise anything."""
    return _InertUnpickler(content).load()


class Inert:
    """Stands for whatever a pickle wanted to call: keeps the arguments, the state and what was appended, does nothing."""

    name = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        self = super().__new__(cls)
        self.args, self.state, self.items = args, None, []
        return self

    args: tuple[Any, ...]
    state: Any
    items: list[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        self.items.append(item)

    def extend(self, items: Any) -> None:
        self.items.extend(items)

    add = append


class _InertUnpickler(pickle._Unpickler):
    """The unpickler written in Python (the one in C reserves whatever size a pickle claims), with inert classes for every name."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._size = len(content)

    def find_class(self, module: str, name: str) -> type[Inert]:
        return type("Inert", (Inert,), {"name": f"{module}.{name}"})

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError("extension codes are not read")

    def load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")  # type: ignore[attr-defined]
        if size > self._size:
            raise pickle.UnpicklingError("truncated")
        self.append(bytearray(self.read(size)))  # type: ignore[attr-defined]

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def plain_array(value: object) -> np.ndarray:
    """Make the float64 array or number that was recorded.

    Raises:
        ValueError: if bytes, dtype and shape do not agree, so that no claimed size is ever reserved.
    """
    if isinstance(value, (bool, int, float)):
        return np.array(value, np.float64)
    if not isinstance(value, Inert):
        raise ValueError("no array")
    function = value.name.rpartition(".")[2]
    order: Any = "C"
    shape: Any = ()
    if function == "scalar":
        dtype, content = value.args
    elif function == "_frombuffer":
        content, dtype, shape, order = value.args
    else:
        _, shape, dtype, fortran, content = value.state
        order = "F" if fortran else "C"
    raw = _bytes(content)
    plain = _dtype(dtype)
    if len(raw) != math.prod(shape) * plain.itemsize:
        raise ValueError("an array's bytes do not fit its shape")
    return np.frombuffer(raw, plain).reshape(shape, order=order).astype(np.float64)


def _dtype(value: object) -> np.dtype:
    if isinstance(value, Inert) and value.name == "numpy.dtype":
        code, byte_order = value.args[0], value.state[1] if value.state else "="
        if code in ("f2", "f4", "f8", "i4", "i8", "u4", "u8") and byte_order in ("<", ">", "="):
            return np.dtype(f"{byte_order}{code}")
    raise ValueError("no numeric dtype")


def _bytes(value: object) -> bytes:
    if isinstance(value, Inert) and value.name == "_codecs.encode":  # how pickle protocols 0 to 2 write bytes
        text, encoding = value.args
        if isinstance(text, str) and encoding == "latin1":
            return text.encode("latin1")
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    raise ValueError("no bytes")
