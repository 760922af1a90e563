"""Stacks of frames in the dataset: each frame is stored once, and stacks are put together where rows are read.

A row stores its newest frame and the places of all its frames. Older frames are the newest ones of earlier rows of the same episode. A
frame that is none of these (padding at the start of an episode, states without an episode) is stored once in a second array. A place is
written only after the frame there was found to be the same, byte for byte, so rows come back whole whatever the environment does.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from policy_distill.environments.frame_stacks import StackOf
from policy_distill.rollouts.transitions import NO_EPISODE, Transitions
from policy_distill.training.row_file import Column, RowFile

COMPARED_BYTES = 2**24
"""Size of the frames that are compared at once."""
FEWEST = 16
"""Initial room for frames that no row has as its newest."""


class Stacks:
    """An array of rows ``[n, ...]`` that are stacks of frames; like a tensor, a slice of it shares its memory.

    Args:
        stack: how a row is made of frames.
        newest: ``[n, *frame]``, each row's newest frame.
        places: ``[n, count]`` int32, where each row's frames are, oldest first: a position in ``newest``, or ``-1 - index`` in ``others``.
        others: frames that are no row's newest.
    """

    def __init__(self, stack: StackOf, newest: Tensor, places: Tensor, others: Others) -> None:
        self._stack, self._newest, self._places, self.others = stack, newest, places, others

    @property
    def columns(self) -> tuple[Tensor, Tensor]:
        """The arrays with one entry for each row."""
        return self._newest, self._places

    @property
    def device(self) -> torch.device:
        return self._newest.device

    @property
    def nbytes(self) -> int:
        """Bytes of the rows when they are put together."""
        return self._places.numel() * math.prod(self._newest.shape[1:]) * self._newest.itemsize

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, rows: slice) -> Stacks:
        return Stacks(self._stack, self._newest, self._places[rows], self.others)

    def take(self, rows: Tensor) -> Tensor:
        """Rows ``[B, ...]`` by position."""
        frames = self._frames(take_rows(self._places, rows).flatten()).unflatten(0, (len(rows), self._stack.count))
        if self._stack.axis == 0:
            return frames.flatten(1, 2)
        return frames.movedim(1, -2).flatten(-2)

    def write(self, rows: Tensor, stacks: Tensor, previous: Tensor) -> None:
        """Write ``stacks`` ``[B, ...]`` at the positions ``rows`` ``[B]``.

        Args:
            rows: positions, distinct.
            stacks: whole rows.
            previous: ``[B]``, position of the row before each of them in its episode, written here or before; -1: there is none.
        """
        rows, previous, stacks = (tensor.to(self.device) for tensor in (rows, previous, stacks))
        if self._stack.axis == 0:
            frames = stacks.unflatten(1, (self._stack.count, -1))
        else:
            frames = stacks.unflatten(-1, (self._stack.count, -1)).movedim(-2, 1)
        self._newest[rows] = frames[:, -1]
        places = torch.empty(len(rows), self._stack.count, dtype=torch.int32, device=self.device)
        places[:, -1] = rows
        self._places[rows] = places
        # From the newest to the oldest: a frame is one place newer in the row before, whose places are written by then.
        for age in reversed(range(self._stack.count - 1)):
            wanted, found = frames[:, age], torch.zeros(len(rows), dtype=torch.bool, device=self.device)
            for candidates, exist in ((self._places[previous, age + 1], previous >= 0), (places[:, age + 1], True)):
                tried = (~found & exist).nonzero().flatten()
                same = tried[self._are_at(candidates[tried], wanted, tried)]
                places[same, age] = candidates[same]
                found[same] = True
            new = (~found).nonzero().flatten()
            places[new, age] = self.others.add(wanted[new])
            self._places[rows, age] = places[:, age]

    def _are_at(self, places: Tensor, frames: Tensor, among: Tensor) -> Tensor:
        """Mask ``[b]``: whether the frames at ``places`` ``[b]`` are ``frames[among]``, byte for byte."""
        count = max(1, COMPARED_BYTES // max(self._newest[:1].nbytes, 1))
        parts = [
            (_as_bytes(self._frames(some)) == _as_bytes(frames[chosen])).all(1)
            for some, chosen in zip(places.split(count), among.split(count), strict=True)
        ]
        return torch.cat(parts)

    def _frames(self, places: Tensor) -> Tensor:
        """Copies of the frames ``[b, *frame]`` at ``places`` ``[b]``."""
        frames = take_rows(self._newest, places.clamp_min(0))
        elsewhere = (places < 0).nonzero().flatten()
        if len(elsewhere):
            frames[elsewhere] = take_rows(self.others.frames, -1 - places[elsewhere])
        return frames


class Others:
    """Different frames in an array that grows.

    Args:
        column: shape and dtype of a frame.
        device: device of the array, without a folder.
        folder: maps the array from a file in this folder; None: it lies in memory.
        name: name of its file.

    Attributes:
        frames: ``[room, *frame]``, of which the first are written.
    """

    def __init__(self, column: Column, *, device: torch.device, folder: Path | None, name: str) -> None:
        self._column, self._device, self._folder, self._name = column, device, folder, name
        self._indices: dict[bytes, int] = {}
        """SHA-256 of a frame -> its index."""
        self._saved: list[tuple[int, str]] = []
        """Number of frames after each ``save`` that wrote some, and the hash of those."""
        self._reserve(FEWEST)

    def __len__(self) -> int:
        return len(self._indices)

    def add(self, frames: Tensor) -> Tensor:
        """Places ``[b]`` of ``frames`` ``[b, *frame]``, of which the new ones are added."""
        places = []
        for frame in frames:
            digest = _digest(frame)
            if (index := self._indices.setdefault(digest, len(self._indices))) >= len(self.frames):
                self._reserve(2 * index)
            self.frames[index] = frame
            places.append(-1 - index)
        return torch.tensor(places, dtype=torch.int32, device=self.frames.device)

    def save(self, folder: Path) -> list[list[int | str]]:
        """Write the frames that are new since the last call into ``folder``, and return what ``load`` needs besides."""
        before, count = self._saved[-1][0] if self._saved else 0, len(self)
        if count > before:
            self._saved.append((count, self._file_in(folder).write([self.frames], [slice(before, count)])))
        return [list(saved) for saved in self._saved]

    def load(self, folder: Path, saved: list[tuple[int, str]]) -> None:
        """Read the frames that ``save`` wrote into ``folder``.

        Raises:
            OSError, ValueError, ...: if they are not the frames that were written.
        """
        before = 0
        of_frame = math.prod(self._column.shape) * self._column.torch_dtype.itemsize
        if saved and max(count for count, _ in saved) * of_frame > (folder / self._name).stat().st_size:
            raise ValueError("its file has fewer frames than were written")  # before anything of this size is allocated
        self._reserve(max([FEWEST, *(count for count, _ in saved)]))
        for count, digest in saved:
            if self._file_in(folder).read([self.frames], [slice(before, count)]) != digest:
                raise ValueError("its frames are not those that were written")
            self._saved.append((count, digest))
            before = count
        self._indices = {_digest(frame): index for index, frame in enumerate(self.frames[:before])}

    def _reserve(self, room: int) -> None:
        """Make room for at least ``room`` frames; those that are written stay."""
        self._room = room
        if self._folder is not None:
            self._file = RowFile(self._folder / self._name, [self._column], room)
            (self.frames,) = self._file.map()
            return
        frames = torch.empty((room, *self._column.shape), dtype=self._column.torch_dtype, device=self._device)
        if self._indices:
            kept = slice(0, len(self.frames))
            frames[kept] = self.frames
        self.frames = frames

    def _file_in(self, folder: Path) -> RowFile:
        return RowFile(folder / self._name, [self._column], self._room) if self._folder is None else self._file


class LastRows:
    """Which row follows which in the episodes that go on.

    Args:
        saved: what ``save`` returned.
    """

    def __init__(self, saved: Sequence[Sequence[int]] = ()) -> None:
        self._positions = {pair[0]: pair[1] for pair in saved}

    def save(self) -> list[list[int]]:
        """Number and position of the last row of each episode that goes on."""
        return [list(pair) for pair in self._positions.items()]

    def before(self, transitions: Transitions, rows: Tensor) -> Tensor:
        """Position ``[B]`` of the row before each new one in its episode; -1: there is none. ``rows`` ``[B]`` are the new positions."""
        if not len(rows):
            return rows
        order = transitions.episodes.argsort(stable=True)
        numbers, counts = transitions.episodes[order].unique_consecutive(return_counts=True)
        ends = counts.cumsum(0)
        sorted_before = torch.cat([rows.new_full((1,), -1), rows[order[:-1]]])
        sorted_before[ends - counts] = torch.tensor([self._positions.pop(number, -1) for number in numbers.tolist()])
        before = torch.empty_like(rows)
        before[order] = sorted_before
        before[transitions.episodes == NO_EPISODE] = -1
        last = order[ends - 1]
        goes_on = ~(transitions.terminated | transitions.truncated)[last] & (numbers != NO_EPISODE)
        self._positions.update(zip(numbers[goes_on].tolist(), rows[last[goes_on]].tolist(), strict=True))
        return before


def columns_of(column: Column, stack: StackOf | None) -> list[Column]:
    """The columns that store rows of ``column``: itself, or with a stack the newest frames and the places of all."""
    if stack is None:
        return [column]
    shape = list(column.shape)
    shape[stack.axis] //= stack.count
    return [replace(column, shape=tuple(shape)), Column(f"{column.part} places", column.key, "int32", (stack.count,))]


def whole(rows: Tensor | Stacks) -> Tensor:
    """All ``rows``, with stacks put together."""
    return rows.take(torch.arange(len(rows), device=rows.device)) if isinstance(rows, Stacks) else rows


def take_rows(source: Tensor | Stacks, rows: Tensor) -> Tensor:
    """``source[rows]``. On the CPU numpy copies short rows in two thirds of the time of ``index_select``."""
    if isinstance(source, Stacks):
        return source.take(rows)
    if source.device.type == "cpu":
        return torch.from_numpy(source.numpy().take(rows.numpy(), axis=0))
    return source.index_select(0, rows)


def _as_bytes(frames: Tensor) -> Tensor:
    """``[b, bytes]``, so that frames of floats are compared exactly."""
    return frames.flatten(1).contiguous().view(torch.uint8)


def _digest(frame: Tensor) -> bytes:
    return hashlib.sha256(_as_bytes(frame[None]).cpu().numpy().data).digest()
