"""A replay buffer on the disk: each checkpoint appends the new transitions, and removes those that the buffer does not hold any more."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from policy_distill.support.files import open_own
from policy_distill.support.untrusted import open_regular

BLOCK_BYTES = 16 << 20
"""Bytes that are copied at once."""


class ReplayFile:
    """The transitions of a replay buffer in files ``replay0``, ``replay1``, ...: one for each time that the buffer is filled.

    Rows are appended to the last file, so a crash leaves what an earlier checkpoint counted. A transition of all environments is a row: the
    buffer's arrays one after the other.

    Args:
        folder: of the files.
        buffer: Stable-Baselines3's ``ReplayBuffer``, or one of Dict observations.
    """

    def __init__(self, folder: Path, buffer: Any) -> None:
        self._folder, self._buffer, self._size = folder, buffer, int(buffer.buffer_size)
        self._arrays = list(_arrays_of(buffer))
        self._row_bytes = sum(_bytes_of_row(array) for array in self._arrays)
        self._written, self._first = 0, 0
        self._digests: dict[int, Any] = {}

    def append(self, total: int) -> dict[str, Any]:
        """Write the rows up to number ``total``, counted from the beginning of the training, and return what ``read`` needs."""
        for fill, rows in self._fills(self._written, total):
            path = self._path(fill)
            with open_own(path, "r+b" if path.exists() else "w+b") as file:
                file.seek(rows.start * self._row_bytes)
                for block in self._blocks(rows):
                    content = np.concatenate([_bytes(array[block]) for array in self._arrays], axis=1)
                    self._digests.setdefault(fill, hashlib.sha256()).update(content.data)
                    file.write(content.data)
                file.truncate()  # an interrupted checkpoint may have left more
                file.flush()
                os.fsync(file.fileno())
        self._written = total
        return {"total": total, "files": {str(fill): self._digests[fill].hexdigest() for fill, _ in self._fills(self._oldest, total)}}

    def remove_old(self) -> None:
        """Remove the files whose rows were overwritten; call it when the checkpoint that needs them is replaced."""
        for fill in range(self._first, self._oldest // self._size):
            self._path(fill).unlink(missing_ok=True)
            self._digests.pop(fill, None)
        self._first = self._oldest // self._size

    def read(self, saved: dict[str, Any]) -> None:
        """Fill the buffer with the rows of a checkpoint. Its last transition does not go on: environments cannot be saved.

        Raises:
            Exception: of any kind, if a file is missing or damaged; see ``untrusted.refuse_damage``.
        """
        self._written = total = int(saved["total"])
        self._first = self._oldest // self._size
        for fill, rows in self._fills(self._oldest // self._size * self._size, total):
            digest = self._digests[fill] = hashlib.sha256()
            with open_regular(self._path(fill)) as file:
                for block in self._blocks(rows):
                    content = np.frombuffer(file.read((block.stop - block.start) * self._row_bytes), np.uint8).reshape(-1, self._row_bytes)
                    digest.update(content.data)
                    first = 0
                    for array in self._arrays:
                        last = first + _bytes_of_row(array)
                        array[block] = np.ascontiguousarray(content[:, first:last]).view(array.dtype).reshape(array[block].shape)
                        first = last
            if digest.hexdigest() != saved["files"][str(fill)]:
                raise ValueError(f"{self._path(fill).name} does not hold what was written")
        self._buffer.pos, self._buffer.full = total % self._size, total >= self._size
        if total:
            cut = self._buffer.dones if self._buffer.optimize_memory_usage else self._buffer.timeouts
            cut[self._buffer.pos - 1] = True

    @property
    def _oldest(self) -> int:
        """Number of the oldest row that the buffer holds."""
        return max(self._written - self._size, 0)

    def _path(self, fill: int) -> Path:
        return self._folder / f"replay{fill}"

    def _fills(self, start: int, stop: int) -> Iterator[tuple[int, slice]]:
        """The files of rows ``start`` to ``stop``, and the rows in each, which are those in the buffer."""
        for fill in range(start // self._size, -(-stop // self._size)):
            before = fill * self._size
            yield fill, slice(max(start - before, 0), min(stop - before, self._size))

    def _blocks(self, rows: slice) -> Iterator[slice]:
        step = max(1, BLOCK_BYTES // self._row_bytes)
        for start in range(rows.start, rows.stop, step):
            yield slice(start, min(start + step, rows.stop))


def _arrays_of(buffer: Any) -> Iterator[np.ndarray]:
    """The buffer's arrays ``[buffer_size, ...]`` in the order of their names."""
    for _, value in sorted(vars(buffer).items()):
        for array in (value[key] for key in sorted(value)) if isinstance(value, dict) else (value,):
            if isinstance(array, np.ndarray) and array.ndim and len(array) == buffer.buffer_size:
                yield array


def _bytes_of_row(array: np.ndarray) -> int:
    return math.prod(array.shape[1:]) * array.itemsize


def _bytes(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8).reshape(len(rows), -1)
