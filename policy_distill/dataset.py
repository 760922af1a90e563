"""Transitions on the training device: append, draw, hold out by episode."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from policy_distill.actions import ActionTargets, Parameters

NO_EPISODE = -1
"""What a row says that belongs to no episode of the run; it is never held out."""


@dataclass(frozen=True)
class Transitions:
    """What environments and teacher gave, flat over time and environments; row i is one observation, labelled once.

    Attributes:
        observations: ``[B, ...]`` raw.
        targets: the teacher's word on them.
        rewards: ``[B]`` of the executed action.
        terminated, truncated: ``[B]`` bool, of the executed action; the next row of the same environment begins a new episode.
        episodes: ``[B]`` int64, which episode a row belongs to, unique within a run; or ``NO_EPISODE``.
        by_teacher: ``[B]`` bool, whose action was executed.
    """

    observations: Tensor
    targets: ActionTargets
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    episodes: Tensor
    by_teacher: Tensor

    def __len__(self) -> int:
        return len(self.observations)


class Dataset:
    """A growing set of labelled observations in preallocated tensors.

    Args:
        capacity: rows.
        holdout: share of the episodes that ``draw`` never draws from; ``held_out`` returns them.
        device: where the rows live and the batches are drawn.
    """

    def __init__(self, capacity: int, *, holdout: float, device: torch.device) -> None:
        self.capacity, self.device = capacity, device
        self._holdout = holdout
        self._size = 0
        self._observations: Tensor | None = None
        self._actions: Tensor
        self._parameters: Parameters
        self._train_rows = torch.empty(capacity, dtype=torch.int64, device=device)
        self._held_rows = torch.empty(capacity, dtype=torch.int64, device=device)
        self._num_train = self._num_held = self._first_train = 0

    def __len__(self) -> int:
        return self._size

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
        """
        count = len(transitions)
        if self._size + count > self.capacity:
            raise ValueError(f"{count} transitions do not fit: {self._size} of {self.capacity} rows are taken")
        if self._observations is None:
            self._observations = self._allocate(transitions.observations)
            self._actions = self._allocate(transitions.targets.actions)
            self._parameters = {name: self._allocate(value) for name, value in transitions.targets.parameters.items()}
        rows = slice(self._size, self._size + count)
        self._observations[rows] = transitions.observations.to(self.device)
        self._actions[rows] = transitions.targets.actions.to(self.device)
        for name, value in transitions.targets.parameters.items():
            self._parameters[name][rows] = value.to(self.device)
        held = self._is_held_out(transitions.episodes).to(self.device)
        indices = torch.arange(rows.start, rows.stop, device=self.device)
        self._num_train = _extend(self._train_rows, self._num_train, indices[~held])
        self._num_held = _extend(self._held_rows, self._num_held, indices[held])
        self._size += count

    def with_targets(self, targets: ActionTargets) -> Dataset:
        """The same rows with other targets, one for each row; observations and the split into training and held-out rows are shared."""
        twin = copy.copy(self)
        twin._parameters, twin._actions, twin.capacity = dict(targets.parameters), targets.actions, self._size
        return twin

    def forget_before(self, row: int) -> None:
        """Draw no training row before ``row`` any more; validation and normalisation keep seeing all of them."""
        self._first_train = int((self._train_rows[: self._num_train] < row).sum())

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

    def take(self, drawn: Tensor, parameters: Collection[str] | None = None) -> tuple[Tensor, ActionTargets]:
        """What ``draw`` drew: observations ``[*drawn.shape, ...]`` and targets.

        Args:
            drawn: of any shape.
            parameters: of the targets, those that are read; the others are left out, each of them costs as much as the observations.
        """
        rows = self._train_rows[self._first_train : self._num_train]
        return self._gather(rows.index_select(0, drawn.flatten()).view(drawn.shape), parameters)

    def held_out(self, limit: int) -> tuple[Tensor, ActionTargets] | None:
        """At most ``limit`` held-out rows, evenly over all of them; None as long as no held-out episode was seen."""
        if self._num_held == 0:
            return None
        return self._gather(self._held_rows[_evenly(self._num_held, limit, self.device)])

    def spread(self, limit: int) -> tuple[Tensor, ActionTargets]:
        """At most ``limit`` training rows, evenly over all of them."""
        return self._gather(self._train_rows[_evenly(self._num_train, limit, self.device)])

    def rows(self) -> tuple[Tensor, ActionTargets]:
        """All rows, as views."""
        assert self._observations is not None, "the dataset is empty"
        parameters = {name: value[: self._size] for name, value in self._parameters.items()}
        return self._observations[: self._size], ActionTargets(parameters, self._actions[: self._size])

    def _gather(self, index: Tensor, names: Collection[str] | None = None) -> tuple[Tensor, ActionTargets]:
        assert self._observations is not None, "the dataset is empty"
        rows = index.flatten()

        def take(source: Tensor) -> Tensor:
            return source.index_select(0, rows).unflatten(0, index.shape)  # copies whole rows, several times faster than indexing

        parameters = {name: take(value) for name, value in self._parameters.items() if names is None or name in names}
        return take(self._observations), ActionTargets(parameters, take(self._actions))

    def _allocate(self, like: Tensor) -> Tensor:
        return torch.empty(self.capacity, *like.shape[1:], dtype=like.dtype, device=self.device)

    def _is_held_out(self, episodes: Tensor) -> Tensor:
        """Multiples of the golden ratio are spread evenly: every stretch of episodes holds out its share, and never the first one."""
        chosen = (episodes + 1) * 618_033_989 % 1_000_000_000 < self._holdout * 1_000_000_000
        return chosen & (episodes != NO_EPISODE)


def _evenly(count: int, limit: int, device: torch.device) -> Tensor:
    """At most ``limit`` of the indices below ``count``, first and last among them."""
    return torch.linspace(0, count - 1, min(limit, count), dtype=torch.float64, device=device).long()


def _extend(rows: Tensor, count: int, new: Tensor) -> int:
    rows[count : count + len(new)] = new
    return count + len(new)
