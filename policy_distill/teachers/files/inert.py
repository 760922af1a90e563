"""Reading pickles as data: calls become inert records of their arguments, and nothing is executed."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import numpy as np

from policy_distill.support.untrusted import element_count

MAX_OPERATIONS = 400_000
"""Maximum number of operations of a pickle, about one second. A policy's weights need some hundreds, statistics some dozens."""
MAX_NAMES = 1000
"""Maximum number of different classes and functions that a pickle names."""
MAX_ARRAY_ELEMENTS = 10_000_000
PERSISTENT = "persistent id"
"""Name of the record of a persistent id, which refers to an object outside the pickle."""


def load_inert(content: bytes) -> Any:
    """Load a pickle with an ``Inert`` in place of every class and function. A hostile pickle may raise any exception."""
    return load_next(io.BytesIO(content), len(content))


def load_next(file: BinaryIO, size: int) -> Any:
    """``load_inert`` for the next of several concatenated pickles; ``size`` is the maximum number of bytes of the file."""
    return _InertUnpickler(file, size).load()


class Inert:
    """Placeholder for an object of a pickle: records arguments, state, and appended or set items, and does nothing."""

    name = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        self = super().__new__(cls)
        self.args, self.state, self.items, self.entries = args, None, [], {}
        return self

    args: tuple[Any, ...]
    state: Any
    items: list[Any]
    entries: dict[Any, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, item: Any) -> None:
        self.items.append(item)

    def extend(self, items: Any) -> None:
        self.items.extend(items)

    add = append


def _counted(operation: Callable[[Any], None]) -> Callable[[Any], None]:
    def counted(unpickler: Any) -> None:
        unpickler.operations += 1
        if unpickler.operations > MAX_OPERATIONS:
            raise pickle.UnpicklingError(f"more than {MAX_OPERATIONS:,} operations")
        operation(unpickler)

    return counted


def _of_plain_keys(operation: Callable[[Any], None], keys: slice) -> Callable[[Any], None]:
    """``operation`` with a check that its keys are plain values, since hashing deeply nested tuples may never end."""

    def checked(unpickler: Any) -> None:
        for key in unpickler.stack[keys]:
            if not all(isinstance(part, _HASHED_AT_ONCE) for part in (key if isinstance(key, tuple) else (key,))):
                raise pickle.UnpicklingError("a key is no plain value")
        operation(unpickler)

    return checked


_HASHED_AT_ONCE = (str, bytes, int, float, type(None), Inert, type)


class _InertUnpickler(pickle._Unpickler):
    """The unpickler written in Python (the one in C reserves whatever size a pickle claims), with inert classes for every name."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file)
        self._size = size
        self._names: dict[str, type[Inert]] = {}
        self.operations = 0

    def find_class(self, module: str, name: str) -> type[Inert]:
        full = f"{module}.{name}"
        if full not in self._names:
            if len(self._names) == MAX_NAMES:
                raise pickle.UnpicklingError(f"more than {MAX_NAMES} names")
            self._names[full] = type("Inert", (Inert,), {"name": full})
        return self._names[full]

    def persistent_load(self, pid: Any) -> Inert:
        found = Inert(*pid) if isinstance(pid, tuple) else Inert(pid)
        found.name = PERSISTENT
        return found

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError("extension codes are not read")

    def load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")  # type: ignore[attr-defined]
        if size > self._size:
            raise pickle.UnpicklingError("truncated")
        self.append(bytearray(self.read(size)))  # type: ignore[attr-defined]

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch[pickle.SETITEM[0]] = _of_plain_keys(dispatch[pickle.SETITEM[0]], slice(-2, -1))
    for _code in (pickle.SETITEMS[0], pickle.DICT[0]):  # their keys are every other object since the mark
        dispatch[_code] = _of_plain_keys(dispatch[_code], slice(0, None, 2))
    for _code in (pickle.ADDITEMS[0], pickle.FROZENSET[0]):
        dispatch[_code] = _of_plain_keys(dispatch[_code], slice(0, None))
    for _code, _operation in list(dispatch.items()):
        dispatch[_code] = _counted(_operation)
    del _code, _operation


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
        order = "F" if order == "F" else "C"
    else:
        _, shape, dtype, fortran, content = value.state
        order = "F" if fortran else "C"
    raw = _bytes(content)
    plain = _dtype(dtype)
    if len(raw) != element_count(shape, MAX_ARRAY_ELEMENTS) * plain.itemsize:
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
