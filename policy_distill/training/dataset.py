"""The dataset on the training device: append, draw batches, hold out whole episodes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from policy_distill.environments.frame_stacks import StackOf
from policy_distill.policies.actions import ActionTargets
from policy_distill.rollouts.transitions import NO_EPISODE, Transitions
from policy_distill.support.files import mapped_tensor
from policy_distill.support.sampling import evenly
from policy_distill.support.trees import Tree, leaves, map_leaves
from policy_distill.support.trees import rows as rows_of
from policy_distill.support.untrusted import element_count
from policy_distill.training.frames import LastRows, Others, Stacks, columns_of, take_rows, whole
from policy_distill.training.row_file import Column, RowFile

ROWS, FRAMES = "rows", "frames"
"""Names of the file of the rows, and of the files of frames that no row has as its newest."""
BLOCK_BYTES = 2**20
"""Size of the observations in one block, where all rows are processed block by block."""


class Dataset:
    """A growing set of labelled observations in preallocated tensors.

    Observations are the student's inputs. With a view, the environment's raw observations are stored in addition.

    Training rows fill the tensors from the front, held-out rows from the back. Rows never move, so no index is needed. Stacks of frames are
    stored frame by frame and put together where rows are read; see ``training.frames``.

    Args:
        capacity: maximum number of rows.
        holdout: fraction of the episodes that are held out: ``held_out`` returns them, ``draw`` does not.
        device: device of the batches and, without a folder, of the rows.
        folder: stores the rows in a file in this folder, mapped into memory; see ``RowFile``. The targets of ``relabelled`` are in unnamed
            files there.
        sequences: whether to store the rows' episode numbers, for ``training_episodes``.
        stacks: which arrays are stacks of frames: ``observations`` and, with a view, ``raw`` -> key (``""`` without keys) -> stack.
    """

    def __init__(
        self,
        capacity: int,
        *,
        holdout: float,
        device: torch.device,
        folder: Path | None = None,
        sequences: bool = False,
        stacks: Mapping[str, Mapping[str, StackOf]] | None = None,
    ) -> None:
        self.capacity, self.device = capacity, device
        self._holdout, self._folder, self._sequences = holdout, folder, sequences
        self._stacks = {(part, key or None): stack for part, keys in (stacks or {}).items() for key, stack in keys.items()}
        self._last_rows = LastRows()
        self._observations: Tree = None
        self._episodes: Tensor | None = None
        self._raw: Tree = None  # only with a view
        self._targets: ActionTargets
        self._num_train = self._num_held = self._first_train = 0
        self._columns: list[Column] = []
        self._file: RowFile | None = None  # with a folder
        self._saved: list[tuple[int, int, str]] = []
        """Numbers of training and held-out rows after each ``save``, and the hash of those that it wrote."""

    def __len__(self) -> int:
        return self._num_train + self._num_held

    @property
    def num_train(self) -> int:
        return self._num_train

    @property
    def num_held_out(self) -> int:
        return self._num_held

    def append(self, transitions: Transitions) -> None:
        """Append transitions.

        Raises:
            ValueError: if the capacity is exceeded.
            RequestError: if the folder has no space for ``capacity`` rows.
        """
        count = len(transitions)
        if len(self) + count > self.capacity:
            raise ValueError(f"{count} transitions do not fit: {len(self)} of {self.capacity} rows are taken")
        episodes = transitions.episodes if self._sequences else None
        raw = None if transitions.seen is None else transitions.observations
        arrays = _named(_seen(transitions), raw, episodes, transitions.targets)
        if self._observations is None:
            self._make([column for part in arrays for column in columns_of(Column.like(*part), self._stacks.get(part[:2]))])
        held_out = self._is_held_out(transitions.episodes)
        trained, held = (~held_out).nonzero().flatten(), held_out.nonzero().flatten().flip(0)
        front, back = self._num_train, self.capacity - self._num_held
        rows = torch.empty(count, dtype=torch.int64)
        rows[trained] = torch.arange(front, front + len(trained))
        rows[held] = torch.arange(back - len(held), back)
        previous = self._last_rows.before(transitions, rows) if self._stacks else rows
        for (*_, array), (*_, values) in zip(self._named_arrays, arrays, strict=True):
            if isinstance(array, Stacks):
                array.write(rows, values, previous)
                continue
            array[front : front + len(trained)] = take_rows(values, trained)
            array[back - len(held) : back] = take_rows(values, held)
        self._num_train += len(trained)
        self._num_held += len(held)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the rows that are new since the last call into ``folder``, flush them to the disk, and return what ``load`` needs besides.

        Rows that are stored on the disk must have this folder.
        """
        if self._observations is not None and self._saved_up_to != (self._num_train, self._num_held):
            new = self._between(self._saved_up_to, (self._num_train, self._num_held))
            self._saved.append((self._num_train, self._num_held, self._file_in(folder).write(self._arrays, new)))
        columns = [[column.part, column.key, column.dtype, list(column.shape)] for column in self._columns]
        return {
            "columns": columns,
            "saved": [list(saved) for saved in self._saved],
            "forgotten": self._first_train,
            "frames": [others.save(folder) for others in self._others],
            "last_rows": self._last_rows.save(),
        }

    def load(self, folder: Path, saved: Mapping[str, Any]) -> None:
        """Read the rows that ``save`` wrote into ``folder``; ``saved`` is what it returned.

        Raises:
            OSError, ValueError, ...: if they are not the rows that were written.
        """
        if not saved["columns"]:
            return
        for *_, shape in saved["columns"]:
            element_count(shape)
        self._make([Column(part, key, dtype, tuple(shape)) for part, key, dtype, shape in saved["columns"]])
        file = self._file_in(folder)
        for train, held, digest in saved["saved"]:
            if file.read(self._arrays, self._between(self._saved_up_to, (train, held))) != digest:
                raise ValueError("its rows are not those that were written")
            self._saved.append((train, held, digest))
        for others, frames in zip(self._others, saved["frames"], strict=True):
            others.load(folder, frames)
        (self._num_train, self._num_held), self._first_train = self._saved_up_to, saved["forgotten"]
        self._last_rows = LastRows(saved["last_rows"])

    @property
    def _saved_up_to(self) -> tuple[int, int]:
        """Numbers of training and held-out rows that are saved."""
        return self._saved[-1][:2] if self._saved else (0, 0)

    def _between(self, before: tuple[int, int], after: tuple[int, int]) -> tuple[slice, slice]:
        """The training and the held-out rows that came while their numbers grew from ``before`` to ``after``."""
        return slice(before[0], after[0]), slice(self.capacity - after[1], self.capacity - before[1])

    def _file_in(self, folder: Path) -> RowFile:
        return self._file or RowFile(folder / ROWS, self._columns, self.capacity)

    def seeing_everything(self) -> Dataset:
        """The same rows with raw observations, for a student without a view."""
        dataset = copy.copy(self)
        if self._raw is not None:
            dataset._observations, dataset._raw = self._raw, None
        return dataset

    def relabelled(self, relabel: Callable[[slice, Tree, ActionTargets], ActionTargets], *, raw: bool = False) -> Dataset:
        """The same rows with new targets; the observations are shared.

        Args:
            relabel: computes the new targets of a block from its rows (see ``take_rows``), observations ``[b, ...]`` and targets.
            raw: whether ``relabel`` receives raw observations instead of the student's inputs.
        """
        if raw:
            dataset = copy.copy(self)
            dataset._targets = self.seeing_everything().relabelled(relabel)._targets
            return dataset
        targets: ActionTargets | None = None
        for rows in self._blocks():
            block = relabel(rows, *self._whole(rows))
            targets = targets or self._allocate_targets(block)
            for array, values in _pairs(targets, block):
                array[rows] = values
        assert targets is not None, "the dataset is empty"
        dataset = copy.copy(self)
        dataset._targets = targets
        return dataset

    @property
    def num_forgotten(self) -> int:
        """Number of the first training rows that are no longer drawn."""
        return self._first_train

    def forget(self, count: int) -> None:
        """Stop drawing the first ``count`` training rows; validation and normalisation still use them."""
        self._first_train = count

    @property
    def num_drawn_from(self) -> int:
        """Number of training rows that are drawn from."""
        return self._num_train - self._first_train

    def draw(self, num_steps: int, batch_size: int, generators: Sequence[torch.Generator]) -> Tensor:
        """Row numbers ``[S, K, B]`` below ``num_drawn_from``, uniform with replacement, for S steps and one generator per member.

        On the CPU, drawing several steps at once gives the same numbers as separate calls.
        """
        shape = (num_steps, batch_size)
        draws = [torch.randint(self.num_drawn_from, shape, generator=generator, device=self.device) for generator in generators]
        return torch.stack(draws, dim=1)

    def take(
        self, drawn: Tensor, parameters: Collection[str] | None = None, *, actions: bool = True, observations: bool = True
    ) -> tuple[Tree, ActionTargets]:
        """Observations ``[*drawn.shape, ...]`` and targets of the rows that ``draw`` returned.

        Args:
            drawn: row numbers of any shape.
            parameters: names of the target parameters to return; None: all. Each costs as much time as the observations.
            actions: whether to return actions; if not, they are empty: ``[*drawn.shape, 0]``.
            observations: whether to return observations; if not, they are None.
        """
        return self._gather(slice(self._first_train, self._num_train), drawn, parameters, actions, observations)

    def take_target(self, name: str, drawn: Tensor, out: Tensor | None = None) -> Tensor:
        """One target parameter ``[*drawn.shape, width]`` of the rows that ``draw`` returned; written into ``out`` if given."""
        _, targets = self._view(slice(self._first_train, self._num_train))
        source = targets.parameters[name]
        if out is None or source.device != out.device:
            rows = self._take(source, drawn)
            return rows if out is None else out.copy_(rows)
        torch.index_select(source, 0, drawn.flatten(), out=out.view(-1, *source.shape[1:]))
        return out

    def take_rows(self, rows: Tensor) -> Tree:
        """Observations ``[*rows.shape, ...]`` by position in the arrays; see ``training_episodes``."""
        return map_leaves(lambda leaf: self._take(leaf, rows), self._observations)

    def take_targets(self, rows: Tensor) -> ActionTargets:
        """All targets by position in the arrays."""
        return self._gather(slice(0, self.capacity), rows, with_observations=False)[1]

    def training_episodes(self) -> tuple[Tensor, Tensor]:
        """Positions of the training rows in the arrays ``[n]``, in order of arrival, and their episode numbers ``[n]``."""
        return self._with_episodes(torch.arange(self._num_train))

    def held_out_episodes(self) -> tuple[Tensor, Tensor]:
        """The same as ``training_episodes`` for the held-out rows."""
        return self._with_episodes(torch.arange(self.capacity - 1, self._back.start - 1, -1))

    def _with_episodes(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        assert self._episodes is not None, "the dataset was created without sequences"
        return rows, take_rows(self._episodes, rows.to(self._episodes.device)).cpu()

    def held_out(self, limit: int) -> tuple[Tree, ActionTargets] | None:
        """At most ``limit`` held-out rows, evenly spaced; None if there are no held-out rows yet."""
        if self._num_held == 0:
            return None
        return self._gather(self._back, self._num_held - 1 - evenly(self._num_held, limit, self.device))

    def spread(self, limit: int) -> tuple[Tree, ActionTargets]:
        """At most ``limit`` training rows, evenly spaced."""
        return self._gather(self._front, evenly(self._num_train, limit, self.device))

    def training_targets(self) -> ActionTargets:
        """Views of the targets of all training rows in order of arrival."""
        return self._view(self._front)[1]

    def blocks(self) -> Iterator[tuple[Tree, ActionTargets]]:
        """All rows, including held-out ones, in blocks: views, but copies of stacks of frames."""
        return map(self._whole, self._blocks())

    @property
    def _front(self) -> slice:
        return slice(0, self._num_train)

    @property
    def _back(self) -> slice:
        return slice(self.capacity - self._num_held, self.capacity)

    def _blocks(self) -> Iterator[slice]:
        assert self._observations is not None, "the dataset is empty"
        count = max(1, BLOCK_BYTES // sum(leaf[:1].nbytes for leaf in leaves(self._observations)))
        for part in (self._front, self._back):
            for first in range(part.start, part.stop, count):
                yield slice(first, min(first + count, part.stop))

    def _view(self, rows: slice) -> tuple[Tree, ActionTargets]:
        assert self._observations is not None, "the dataset is empty"
        parameters = {name: value[rows] for name, value in self._targets.parameters.items()}
        return rows_of(self._observations, rows), ActionTargets(parameters, self._targets.actions[rows])

    def _whole(self, rows: slice) -> tuple[Tree, ActionTargets]:
        """``_view`` with stacks put together."""
        observations, targets = self._view(rows)
        return map_leaves(whole, observations), targets

    def _gather(
        self,
        part: slice,
        index: Tensor,
        names: Collection[str] | None = None,
        with_actions: bool = True,
        with_observations: bool = True,
    ) -> tuple[Tree, ActionTargets]:
        """The rows ``index`` of a slice of the arrays."""
        observations, targets = self._view(part)
        parameters = {name: self._take(value, index) for name, value in targets.parameters.items() if names is None or name in names}
        actions = self._take(targets.actions, index) if with_actions else torch.empty(*index.shape, 0, device=self.device)
        seen = map_leaves(lambda leaf: self._take(leaf, index), observations) if with_observations else None
        return seen, ActionTargets(parameters, actions)

    def _take(self, source: Tensor | Stacks, index: Tensor) -> Tensor:
        """Rows ``[*index.shape, ...]`` of an array, on the device of the batches."""
        return take_rows(source, index.flatten().to(source.device)).to(self.device).unflatten(0, index.shape)

    @property
    def _named_arrays(self) -> list[tuple[str, str | None, Any]]:
        """The arrays of rows with their names."""
        return _named(self._observations, self._raw, self._episodes, self._targets)

    @property
    def _arrays(self) -> list[Tensor]:
        """The arrays of all columns."""
        return [column for *_, array in self._named_arrays for column in (array.columns if isinstance(array, Stacks) else (array,))]

    @property
    def _others(self) -> list[Others]:
        """The frames of each stack that no row has as its newest."""
        return [array.others for *_, array in self._named_arrays if isinstance(array, Stacks)] if self._columns else []

    def _make(self, columns: Sequence[Column]) -> None:
        """Allocate an array ``[capacity, ...]`` for each column."""
        self._columns = list(columns)
        if self._folder is not None:
            self._file = RowFile(self._folder / ROWS, columns, self.capacity)
            arrays = self._file.map()
        else:
            arrays = [torch.empty((self.capacity, *column.shape), dtype=column.torch_dtype, device=self.device) for column in columns]
        parts: dict[str, Tree] = {"raw": None, "episodes": None, "parameters": {}}
        stored = zip(columns, arrays, strict=True)
        for index, (column, array) in enumerate(stored):
            leaf: Tensor | Stacks = array
            if (stack := self._stacks.get((column.part, column.key))) is not None:
                others = Others(column, device=self.device, folder=self._folder, name=f"{FRAMES}{index}")
                leaf = Stacks(stack, array, next(stored)[1], others)
            parts[column.part] = leaf if column.key is None else {**(parts.get(column.part) or {}), column.key: leaf}
        self._observations, self._raw, self._episodes = parts["observations"], parts["raw"], parts["episodes"]
        self._targets = ActionTargets(parts["parameters"], parts["actions"])

    def _allocate_targets(self, like: ActionTargets) -> ActionTargets:
        return ActionTargets({name: self._allocate(value) for name, value in like.parameters.items()}, self._allocate(like.actions))

    def _allocate(self, like: Tensor) -> Tensor:
        shape = (self.capacity, *like.shape[1:])
        if self._folder is not None:
            return mapped_tensor(self._folder, shape, like.dtype)
        return torch.empty(shape, dtype=like.dtype, device=self.device)

    def _is_held_out(self, episodes: Tensor) -> Tensor:
        """Low-discrepancy choice of episodes by multiples of the golden ratio; the first episode is never held out."""
        chosen = (episodes + 1) * 618_033_989 % 1_000_000_000 < self._holdout * 1_000_000_000
        return chosen & (episodes != NO_EPISODE)


def _seen(transitions: Transitions) -> Tree:
    """The student's inputs."""
    return transitions.observations if transitions.seen is None else transitions.seen


def _named(observations: Tree, raw: Tree, episodes: Tensor | None, targets: ActionTargets) -> list[tuple[str, str | None, Tensor]]:
    """The arrays of rows with the names of their columns, in the order in which they are stored."""
    parts = {"observations": observations, "raw": raw, "episodes": episodes, "actions": targets.actions, "parameters": targets.parameters}
    return [
        (name, key, array)
        for name, part in parts.items()
        if part is not None
        for key, array in (part.items() if isinstance(part, dict) else [(None, part)])
    ]


def _pairs(first: ActionTargets, second: ActionTargets) -> list[tuple[Tensor, Tensor]]:
    """Pairs of the tensors of two targets by name."""
    return [(first.actions, second.actions), *((value, second.parameters[name]) for name, value in first.parameters.items())]
