"""Reading a policy's weights (``policy.pth``) without PyTorch's loader: the pickle is data, and sizes are checked against the bytes.

A file of ``torch.save`` is a pickle of names and of views (storage, offset, shape, strides), and the storages' bytes. Since PyTorch 1.6
they are members of a zip; before, they follow the pickle. ``torch.load`` trusts the declared sizes: a stride of zero, a storage that is
said to be longer than it is, or ``bytearray(10**10)`` in place of a weight would take the memory.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from policy_distill.support.untrusted import element_count, open_zip, read_member
from policy_distill.teachers.files.inert import PERSISTENT, Inert, load_inert, load_next

MAX_WEIGHT_BYTES = 160 << 20
"""Maximum size of a policy's weights, also as float32: 42 million numbers. File and tensors are in memory at the same time."""
MAX_PICKLE_BYTES = 16 << 20
MAX_TENSORS = 2000
TYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16, "CharStorage": torch.int8,
    "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
"""Storage class -> element type."""
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

Plain = TypeVar("Plain", int, str)
Record = Callable[[str, int], bytes]
"""Returns the bytes of a storage, up to a limit."""


def read_weights(content: bytes) -> dict[str, Tensor]:
    """The tensors of a state dict that ``torch.save`` wrote, on the CPU.

    Raises:
        ValueError, KeyError, ...: if it is something else or damaged, see ``untrusted.refuse_damage``.
    """
    if content[:2] == b"PK":
        return _from_zip(content)
    return _from_pickles(content)


def _from_zip(content: bytes) -> dict[str, Tensor]:
    with open_zip(io.BytesIO(content)) as archive:
        pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it holds no data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and read_member(archive, f"{folder}byteorder", 16) != b"little":
            raise ValueError("its numbers are big-endian, which is not read")
        saved = load_inert(read_member(archive, pickles[0], MAX_PICKLE_BYTES))
        return _tensors(saved, lambda key, limit: read_member(archive, f"{folder}data/{key}", limit))


def _from_pickles(content: bytes) -> dict[str, Tensor]:
    """The format before PyTorch 1.6: magic number, version, system, weights, names of the storages; then of each its length and bytes."""
    file = io.BytesIO(content)
    magic, protocol, _, saved, keys = (load_next(file, len(content)) for _ in range(5))
    if (magic, protocol) != (LEGACY_MAGIC, LEGACY_PROTOCOL):
        raise ValueError("it was not written by torch.save")
    sizes = {_name(found.args[2]): _type_of(found.args[1]).itemsize for found in _storages(saved)}
    records = {}
    for key in map(_name, keys):
        count = int.from_bytes(file.read(8), "little")
        records[key] = file.read(element_count((count,), len(content)) * sizes[key])
    return _tensors(saved, lambda key, limit: records[key])


def _storages(saved: Any) -> list[Inert]:
    return [_view(value).args[0] for value in _items(saved).values()]


def _items(saved: Any) -> dict[str, Any]:
    """An ordinary or ordered dict of a few tensors by name."""
    items = saved.entries if isinstance(saved, Inert) and saved.name == "collections.OrderedDict" else saved
    if not isinstance(items, dict) or not all(isinstance(key, str) for key in items) or len(items) > MAX_TENSORS:
        raise ValueError("it is no dict of tensors by name")
    return items


def _view(value: Any) -> Inert:
    """The record of a tensor: ``_rebuild_tensor_v2(storage, offset, shape, strides, ...)``; that of a parameter wraps one."""
    if isinstance(value, Inert) and value.name == "torch._utils._rebuild_parameter":
        value = value.args[0]
    if not isinstance(value, Inert) or value.name not in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
        raise ValueError("it holds something else than tensors")
    storage = value.args[0]
    if not isinstance(storage, Inert) or storage.name != PERSISTENT or storage.args[0] != "storage":
        raise ValueError("a tensor has no storage")
    return value


def _type_of(kind: Any) -> torch.dtype:
    package, _, name = str(getattr(kind, "name", "")).rpartition(".")
    if package not in ("torch", "torch.storage") or name not in TYPES:
        raise ValueError("a tensor's elements are no ordinary numbers")
    return TYPES[name]


def _tensors(saved: Any, record: Record) -> dict[str, Tensor]:
    """Views into the storages, each of which is unpacked once."""
    storages: dict[str, Tensor] = {}
    tensors = {}
    left_bytes, left = MAX_WEIGHT_BYTES, MAX_WEIGHT_BYTES // 4  # elements: they are turned into float32
    for name, value in _items(saved).items():
        view = _view(value)
        storage, offset, shape, strides = view.args[:4]
        key = _name(storage.args[2])
        if key not in storages:
            content = record(key, left_bytes)
            left_bytes -= len(content)
            storages[key] = torch.frombuffer(bytearray(content), dtype=_type_of(storage.args[1])) if content else torch.empty(0)
        data = storages[key]
        left -= (count := element_count(shape, left))
        if len(strides) != len(shape) or _plain(offset, int) < 0 or any(_plain(stride, int) < 0 for stride in strides):
            raise ValueError(f"the tensor {name!r} has no ordinary layout")
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if (data.dtype != _type_of(storage.args[1]) and count) or count > data.numel() or (count and last >= data.numel()):
            raise ValueError(f"the tensor {name!r} is larger than its bytes")
        tensors[name] = data.as_strided(tuple(shape), tuple(strides), offset) if count else torch.empty(tuple(shape))
    return tensors


def _name(value: Any) -> str:
    """Require a string, since hashing or printing deeply nested tuples may never end."""
    return _plain(value, str)


def _plain(value: Any, kind: type[Plain]) -> Plain:
    if type(value) is not kind:
        raise ValueError("a tensor is described by something else than plain values")
    return value
