"""Transitions on the training device: append, draw, hold out by episode."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from policy_distill.policies.actions import ActionTargets
from policy_distill.rollouts.transitions import NO_EPISODE, Transitions
from policy_distill.support.files import mapped_tensor
from policy_distill.support.sampling import evenly
from policy_distill.support.trees import Tree, leaves, map_leaves
from policy_distill.support.trees import rows as rows_of

BLOCK_BYTES = 2**20
"""Of the observations that are looked at together where all of them are, one block after the other."""


class Dataset:
    """A growing set of labelled observations in preallocated tensors.

    Observations are those that the student sees. Where it has a view, the environment's own lie beside them.

    Rows that are trained on fill them from the front, those held out from the back, and stay where they are: there is no index, and
    nothing but these tensors grows with the number of rows.

    Args:
        capacity: rows.
        holdout: share of the episodes that ``draw`` never draws from; ``held_out`` returns them.
        device: where the batches are drawn and, without a folder, the rows live.
        folder: in which the rows lie as files without a name, mapped into memory; see ``mapped_tensor``.
        sequences: whether the rows' episodes are kept, for ``training_episodes``.
    """

    def __init__(self, capacity: int, *, holdout: float, device: torch.device, folder: Path | None = None, sequences: bool = False) -> None:
        self.capacity, self.device = capacity, device
        self._holdout, self._folder, self._sequences = holdout, folder, sequences
        self._observations: Tree = None
        self._episodes: Tensor | None = None
        self._raw: Tree = None  # where the student sees something else
        self._targets: ActionTargets
        self._num_train = self._num_held = self._first_train = 0

    def __len__(self) -> int:
        return self._num_train + self._num_held

    @property
    def num_train(self) -> int:
        return self._num_train

    @property
    def num_held_out(self) -> int:
        return self._num_held

    def append(self, transitions: Transitions) -> None:
        """Copy the transitions in.

        Raises:
            ValueError: if they do not fit.
            RequestError: if the folder has no room for ``capacity`` rows.
        """
        count = len(transitions)
        if len(self) + count > self.capacity:
            raise ValueError(f"{count} transitions do not fit: {len(self)} of {self.capacity} rows are taken")
        if self._observations is None:
            self._targets = self._allocate_targets(transitions.targets)
            self._observations = map_leaves(self._allocate, _seen(transitions))
            self._raw = None if transitions.seen is None else map_leaves(self._allocate, transitions.observations)
            self._episodes = self._allocate(transitions.episodes) if self._sequences else None
        held_out = self._is_held_out(transitions.episodes)
        trained, held = (~held_out).nonzero().flatten(), held_out.nonzero().flatten().flip(0)
        front, back = self._num_train, self.capacity - self._num_held
        arrays = [*zip(leaves(self._observations), leaves(_seen(transitions)), strict=True)]
        if self._raw is not None:
            arrays += zip(leaves(self._raw), leaves(transitions.observations), strict=True)
        if self._episodes is not None:
            arrays.append((self._episodes, transitions.episodes))
        for array, values in [*arrays, *_pairs(self._targets, transitions.targets)]:
            array[front : front + len(trained)] = _take_rows(values, trained)
            array[back - len(held) : back] = _take_rows(values, held)
        self._num_train += len(trained)
        self._num_held += len(held)

    def seeing_everything(self) -> Dataset:
        """The same rows as a student without a view sees them: raw observations."""
        twin = copy.copy(self)
        if self._raw is not None:
            twin._observations, twin._raw = self._raw, None
        return twin

    def relabelled(self, tell: Callable[[slice, Tree, ActionTargets], ActionTargets], *, raw: bool = False) -> Dataset:
        """The same rows with the targets that ``tell`` makes of some of them at a time; the observations are shared.

        Args:
            tell: which rows, see ``take_rows``, their observations ``[b, ...]`` and targets -> other targets.
            raw: whether ``tell`` gets the environment's observations, not what the student sees of them.
        """
        if raw:
            twin = copy.copy(self)
            twin._targets = self.seeing_everything().relabelled(tell)._targets
            return twin
        told: ActionTargets | None = None
        for rows in self._blocks():
            answer = tell(rows, *self._view(rows))
            told = told or self._allocate_targets(answer)
            for array, values in _pairs(told, answer):
                array[rows] = values
        assert told is not None, "the dataset is empty"
        twin = copy.copy(self)
        twin._targets = told
        return twin

    @property
    def num_forgotten(self) -> int:
        """The first training rows, which are not drawn any more."""
        return self._first_train

    def forget(self, count: int) -> None:
        """Draw none of the first ``count`` training rows any more; validation and normalisation keep seeing all of them."""
        self._first_train = count

    @property
    def num_drawn_from(self) -> int:
        """Training rows that are not forgotten."""
        return self._num_train - self._first_train

    def draw(self, num_steps: int, batch_size: int, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw training rows uniformly with replacement for S steps of K generators, one a member: ``[S, K, B]``, in 0..num_drawn_from - 1.

        On the CPU the draws of several steps are those of as many calls.
        """
        shape = (num_steps, batch_size)
        draws = [torch.randint(self.num_drawn_from, shape, generator=generator, device=self.device) for generator in generators]
        return torch.stack(draws, dim=1)

    def take(
        self, drawn: Tensor, parameters: Collection[str] | None = None, *, actions: bool = True, observations: bool = True
    ) -> tuple[Tree, ActionTargets]:
        """What ``draw`` drew: observations ``[*drawn.shape, ...]`` and targets.

        Args:
            drawn: of any shape.
            parameters: of the targets, those that are read; the others are left out, each of them costs as much as the observations.
            actions: whether the actions are read; if not, none are there: ``[*drawn.shape, 0]``.
            observations: whether these are read; None stands for them if not.
        """
        return self._gather(slice(self._first_train, self._num_train), drawn, parameters, actions, observations)

    def take_target(self, name: str, drawn: Tensor, out: Tensor | None = None) -> Tensor:
        """One of the targets' parameters of what ``draw`` drew, ``[*drawn.shape, width]``; written into ``out`` where that is given."""
        _, targets = self._view(slice(self._first_train, self._num_train))
        source = targets.parameters[name]
        if out is None or source.device != out.device:
            rows = self._take(source, drawn)
            return rows if out is None else out.copy_(rows)
        torch.index_select(source, 0, drawn.flatten(), out=out.view(-1, *source.shape[1:]))
        return out

    def take_rows(self, rows: Tensor) -> Tree:
        """Observations ``[*rows.shape, ...]`` of rows by their place in the arrays, see ``training_episodes``."""
        return map_leaves(lambda leaf: self._take(leaf, rows), self._observations)

    def take_targets(self, rows: Tensor) -> ActionTargets:
        """All targets of rows by their place in the arrays."""
        return self._gather(slice(0, self.capacity), rows, with_observations=False)[1]

    def training_episodes(self) -> tuple[Tensor, Tensor]:
        """The training rows' places in the arrays ``[n]``, in the order in which they came, and their episodes' numbers ``[n]``."""
        return self._with_episodes(torch.arange(self._num_train))

    def held_out_episodes(self) -> tuple[Tensor, Tensor]:
        """The same of the held-out rows."""
        return self._with_episodes(torch.arange(self.capacity - 1, self._back.start - 1, -1))

    def _with_episodes(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        assert self._episodes is not None, "the dataset keeps no episodes"
        return rows, _take_rows(self._episodes, rows.to(self._episodes.device)).cpu()

    def held_out(self, limit: int) -> tuple[Tree, ActionTargets] | None:
        """At most ``limit`` held-out rows, evenly over all of them; None as long as no held-out episode was seen."""
        if self._num_held == 0:
            return None
        return self._gather(self._back, self._num_held - 1 - evenly(self._num_held, limit, self.device))

    def spread(self, limit: int) -> tuple[Tree, ActionTargets]:
        """At most ``limit`` training rows, evenly over all of them."""
        return self._gather(self._front, evenly(self._num_train, limit, self.device))

    def training_rows(self) -> tuple[Tree, ActionTargets]:
        """All training rows in the order in which they came, as views."""
        return self._view(self._front)

    def blocks(self) -> Iterator[tuple[Tree, ActionTargets]]:
        """All rows, held-out ones too, as views of some of them at a time."""
        return map(self._view, self._blocks())

    @property
    def _front(self) -> slice:
        return slice(0, self._num_train)

    @property
    def _back(self) -> slice:
        return slice(self.capacity - self._num_held, self.capacity)

    def _blocks(self) -> Iterator[slice]:
        assert self._observations is not None, "the dataset is empty"
        count = max(1, BLOCK_BYTES // sum(leaf[0].nbytes for leaf in leaves(self._observations)))
        for part in (self._front, self._back):
            for first in range(part.start, part.stop, count):
                yield slice(first, min(first + count, part.stop))

    def _view(self, rows: slice) -> tuple[Tree, ActionTargets]:
        assert self._observations is not None, "the dataset is empty"
        parameters = {name: value[rows] for name, value in self._targets.parameters.items()}
        return rows_of(self._observations, rows), ActionTargets(parameters, self._targets.actions[rows])

    def _gather(
        self,
        part: slice,
        index: Tensor,
        names: Collection[str] | None = None,
        with_actions: bool = True,
        with_observations: bool = True,
    ) -> tuple[Tree, ActionTargets]:
        """The rows ``index`` of a part of the arrays."""
        observations, targets = self._view(part)
        parameters = {name: self._take(value, index) for name, value in targets.parameters.items() if names is None or name in names}
        actions = self._take(targets.actions, index) if with_actions else torch.empty(*index.shape, 0, device=self.device)
        seen = map_leaves(lambda leaf: self._take(leaf, index), observations) if with_observations else None
        return seen, ActionTargets(parameters, actions)

    def _take(self, source: Tensor, index: Tensor) -> Tensor:
        """Rows of an array, ``[*index.shape, ...]``, on the device of the batches."""
        return _take_rows(source, index.flatten().to(source.device)).to(self.device).unflatten(0, index.shape)

    def _allocate_targets(self, like: ActionTargets) -> ActionTargets:
        return ActionTargets({name: self._allocate(value) for name, value in like.parameters.items()}, self._allocate(like.actions))

    def _allocate(self, like: Tensor) -> Tensor:
        shape = (self.capacity, *like.shape[1:])
        if self._folder is not None:
            return mapped_tensor(self._folder, shape, like.dtype)
        return torch.empty(shape, dtype=like.dtype, device=self.device)

    def _is_held_out(self, episodes: Tensor) -> Tensor:
        """Multiples of the golden ratio are spread evenly: every stretch of episodes holds out its share, and never the first one."""
        chosen = (episodes + 1) * 618_033_989 % 1_000_000_000 < self._holdout * 1_000_000_000
        return chosen & (episodes != NO_EPISODE)


def _seen(transitions: Transitions) -> Tree:
    """What the student sees of them."""
    return transitions.observations if transitions.seen is None else transitions.seen


def _pairs(ours: ActionTargets, theirs: ActionTargets) -> list[tuple[Tensor, Tensor]]:
    """The tensors of two targets with the same names, side by side."""
    return [(ours.actions, theirs.actions), *((value, theirs.parameters[name]) for name, value in ours.parameters.items())]


def _take_rows(source: Tensor, rows: Tensor) -> Tensor:
    """``source[rows]``; on the CPU numpy copies short rows in two thirds of the time that ``index_select`` takes."""
    if source.device.type == "cpu":
        return torch.from_numpy(source.numpy().take(rows.numpy(), axis=0))
    return source.index_select(0, rows)
