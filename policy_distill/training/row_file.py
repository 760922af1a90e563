"""The file of a dataset's rows: what a checkpoint keeps of them, and where they lie if they are stored on the disk.

Each column (an array with one entry for each row) has room for all rows. Rows are written once, where the dataset has them, so each
checkpoint writes only the new ones.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from policy_distill.support.files import mapped_file, open_own
from policy_distill.support.untrusted import number_type, open_regular

PAGE = 4096
"""Alignment of the columns in bytes."""


@dataclass(frozen=True)
class Column:
    """Name, dtype and row shape of an array.

    Attributes:
        part: ``observations``, ``raw``, ``episodes``, ``actions`` or ``parameters``; ``observations places`` and ``raw places`` of frames.
        key: key of an observation's part, or name of a parameter; None if there is just one array.
        dtype: such as ``float32``.
        shape: shape of one row.
    """

    part: str
    key: str | None
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def like(cls, part: str, key: str | None, rows: Tensor) -> Column:
        """The column for ``rows`` ``[B, ...]``."""
        return cls(part, key, str(rows.dtype).removeprefix("torch."), tuple(rows.shape[1:]))

    @property
    def torch_dtype(self) -> torch.dtype:
        """Raises ``ValueError`` if ``dtype`` is not a name of numbers."""
        dtype: torch.dtype = getattr(torch, str(number_type(self.dtype)))
        return dtype

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.torch_dtype.itemsize


class RowFile:
    """A file with ``capacity`` rows of each column.

    Args:
        path: the file; it is made when it is first needed.
        columns: the arrays in the order in which they lie in the file.
        capacity: number of rows.
    """

    def __init__(self, path: Path, columns: Sequence[Column], capacity: int) -> None:
        self._path, self._columns, self._capacity = path, list(columns), capacity
        self._offsets = [0]
        for column in columns:
            self._offsets.append(self._offsets[-1] + -(-column.row_bytes * capacity // PAGE) * PAGE)
        self._mapped: list[Tensor] | None = None

    def map(self) -> list[Tensor]:
        """The columns ``[capacity, ...]`` as memory that is backed by the file.

        Raises:
            RequestError: if the disk has no room for them.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open_own(self._path, "r+b" if self._path.exists() else "w+b") as file:
            self._memory = mapped_file(file, self._path.parent, max(self._offsets[-1], PAGE))
        self._mapped = [
            torch.frombuffer(self._memory, dtype=column.torch_dtype, count=self._capacity * math.prod(column.shape), offset=offset).view(
                self._capacity, *column.shape
            )
            for column, offset in zip(self._columns, self._offsets, strict=False)
        ]
        return self._mapped

    def write(self, arrays: Sequence[Tensor], parts: Sequence[slice]) -> str:
        """Write these rows of all columns to the disk and return their SHA-256. Mapped rows are in the file already and are flushed."""
        digest = hashlib.sha256()
        for *_, rows in self._parts(arrays, parts):
            digest.update(rows.data)
        if self._mapped is not None:
            self._memory.flush()
            return digest.hexdigest()
        with open_own(self._path, "r+b" if self._path.exists() else "w+b") as file:
            file.truncate(self._offsets[-1])
            for _, place, rows in self._parts(arrays, parts):
                file.seek(place)
                file.write(rows.data)
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()

    def read(self, arrays: Sequence[Tensor], parts: Sequence[slice]) -> str:
        """Read these rows of all columns into ``arrays`` and return their SHA-256. Mapped rows are only hashed.

        Raises:
            OSError, ValueError: if the file is missing or too short.
        """
        digest = hashlib.sha256()
        with open_regular(self._path) as file:
            for array, place, rows in self._parts(arrays, parts):
                if self._mapped is None:
                    file.seek(place)
                    if file.readinto(rows.data) != rows.nbytes:
                        raise ValueError("it is too short")
                    if array.device.type != "cpu":
                        array.copy_(torch.from_numpy(rows).view(array.dtype).view(array.shape))
                digest.update(rows.data)
        return digest.hexdigest()

    def _parts(self, arrays: Sequence[Tensor], parts: Sequence[slice]) -> Iterator[tuple[Tensor, int, np.ndarray]]:
        """Each column's slices, their places in the file and their bytes, which are a copy only if the arrays lie on a device."""
        for column, array, offset in zip(self._columns, arrays, self._offsets, strict=False):
            for rows in parts:
                if array[rows].numel():
                    yield array[rows], offset + rows.start * column.row_bytes, array[rows].cpu().numpy().reshape(-1).view(np.uint8)
