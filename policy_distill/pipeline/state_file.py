"""Arrays and JSON in one file, written whole and checked by a hash when it is read: safetensors, with the JSON in its metadata."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save_file

from policy_distill.support.files import write_atomically
from policy_distill.support.untrusted import open_regular

MAX_FILE_BYTES, MAX_DATA_BYTES = 8 << 30, 32 << 20
"""Maximum sizes of the file and of its JSON that are read; a usual run has a few MB and a few kB."""


def write_state(path: Path, data: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write ``data`` (JSON) and ``arrays``; an earlier file is replaced once this one is on the disk.

    Raises:
        StorageFault: if it cannot be written; an earlier file is unchanged.
    """
    text = json.dumps(data)
    metadata = {"data": text, "sha256": _digest(text, arrays)}
    write_atomically(path, lambda target: save_file(dict(arrays), target, metadata))


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What ``write_state`` wrote.

    Raises:
        Exception: of any kind, if the file is missing or damaged; see ``untrusted.refuse_damage``.
    """
    with open_regular(path) as file:
        data_bytes = int.from_bytes(file.read(8), "little")  # the size of the JSON that follows
        if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES or data_bytes > MAX_DATA_BYTES:
            raise ValueError("it is larger than any that is written")
        file.seek(0)
        content = file.read()
    arrays = load(content)
    metadata = json.loads(content[8 : 8 + data_bytes])["__metadata__"]
    if _digest(metadata["data"], arrays) != metadata["sha256"]:
        raise ValueError("its contents are not those that were written")
    data: dict[str, Any] = json.loads(metadata["data"])
    return data, arrays


def differences(saved: Any, now: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted name, saved and present value of each entry that differs."""
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        names = {**saved, **now}
        return [found for key in names for found in differences(saved.get(key), now.get(key), f"{name}.{key}".lstrip("."))]
    return [] if saved == now else [(name, saved, now)]


def as_json(data: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` as it is after it was written as JSON and read again: with lists instead of tuples."""
    read: dict[str, Any] = json.loads(json.dumps(data))
    return read


def _digest(data: str, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(data.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
