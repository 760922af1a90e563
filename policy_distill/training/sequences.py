"""Rows in the order of their episodes: the sequences that students with a memory are trained on, and what students say of a dataset.

A sequence is a part of one episode. Its rows are consecutive, and those before it in the episode are its burn-in. Each row of the dataset
is as likely to be a sample as any other: a row is drawn, and with it the part of its episode in which it lies, where the episode is cut
into parts of ``length`` steps at a random phase. A shorter part (the first or the last, or a short episode, which is not cut) gives its
rows several times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from policy_distill.config import TrainConfig
from policy_distill.losses.objective import Objective
from policy_distill.policies.actions import ActionTargets
from policy_distill.policies.student import Student
from policy_distill.support.sampling import evenly
from policy_distill.support.trees import leaves, on_cpu, rows
from policy_distill.training.batches import Batches
from policy_distill.training.dataset import Dataset
from policy_distill.training.recurrent_stack import Sequences
from policy_distill.training.stacks import Stack

CHUNK, CHUNK_NUMBERS = 16_384, 2**26
"""Rows that a student is asked about at once, and numbers in these observations."""


def batches_of(
    dataset: Dataset, stack: Stack, objective: Objective, config: TrainConfig, generators: Sequence[torch.Generator], num_steps: int
) -> Batches:
    """What ``stack`` is trained on: single rows, or sequences where its students have a memory."""
    if not stack.architecture.memory:
        return Batches(dataset, stack, objective, config.batch_size, generators, num_steps)
    return SequenceBatches(dataset, stack, objective, config, generators, num_steps)


class EpisodeOrder:
    """Rows, episode after episode.

    Args:
        places: ``[n]`` of the rows in the dataset's arrays, in the order in which they came.
        numbers: ``[n]`` of their episodes.

    Attributes:
        places: ``[n]``, those of each episode together, in the order of its steps.
        starts, ends: ``[E]``, where each episode's rows begin and end among ``places``.
    """

    def __init__(self, places: Tensor, numbers: Tensor) -> None:
        order = torch.argsort(numbers, stable=True)
        self.places = places[order]
        _, counts = torch.unique_consecutive(numbers[order], return_counts=True)
        self.ends = counts.cumsum(0)
        self.starts = self.ends - counts

    def to(self, device: torch.device) -> EpisodeOrder:
        """The same on another device."""
        self.places, self.starts, self.ends = (tensor.to(device) for tensor in (self.places, self.starts, self.ends))
        return self

    def some(self, limit: int) -> Tensor:
        """Episodes, evenly over all of them, that hold about ``limit`` rows together, and one at least."""
        count = len(self.starts)
        return evenly(count, max(1, limit * count // len(self.places)), self.starts.device)


class SequenceBatches(Batches):
    """Sequences of training rows, chunk after chunk; see ``Batches``."""

    def __init__(
        self,
        dataset: Dataset,
        stack: Stack,
        objective: Objective,
        config: TrainConfig,
        generators: Sequence[torch.Generator],
        num_steps: int,
    ) -> None:
        self._length, self._burn_in = config.sequence_length, config.burn_in
        self._observations_read = 1 + -(-self._burn_in // self._length)
        super().__init__(dataset, stack, objective, config.batch_size, generators, num_steps)
        order = EpisodeOrder(*dataset.training_episodes())
        forgotten = (order.places < dataset.num_forgotten).long().cumsum(0)
        before = torch.cat([forgotten.new_zeros(1), forgotten])
        self._fresh = (order.starts + before[order.ends] - before[order.starts]).to(dataset.device)
        """``[E]``, where the rows of each episode begin that are not forgotten: the first ones are."""
        self._drawable = (order.places >= dataset.num_forgotten).nonzero().flatten().to(dataset.device)
        self._order = order.to(dataset.device)

    def _drawn(self, num_steps: int) -> tuple[Tensor, Sequence[Any], ActionTargets]:
        order, length, device = self._order, self._length, self._dataset.device
        shape, count = (num_steps, self._batch_size // length), len(self._drawable)
        # one number for the row and the phase, so that the draws of several steps are those of as many calls
        draws = [torch.randint(count * length, shape, generator=generator, device=device) for generator in self._generators]
        drawn = torch.stack(draws, dim=1)[:, :, None]  # [S, K, 1, Q]
        place = self._drawable[drawn // length]
        episode = torch.searchsorted(order.ends, place, right=True)
        start = order.starts[episode]
        phase = torch.where(order.ends[episode] - start > length, drawn % length, 0)
        first = start + (place - start + phase) // length * length - phase
        low, high = torch.maximum(first, self._fresh[episode]), torch.minimum(first + length, order.ends[episode])
        steps = torch.arange(length, device=device)[:, None]
        within = (place - low + steps) % (high - low)  # [S, K, length, Q]
        num_before = (low - start).clamp_max(self._burn_in)
        earlier = torch.arange(self._burn_in, device=device)[:, None]
        before = low - num_before + torch.minimum(earlier, (num_before - 1).clamp_min(0))
        window = low + torch.minimum(steps, high - low - 1)
        seen = self._dataset.take_rows(order.places[torch.cat([before, window], dim=2)])
        read = (within * shape[1] + torch.arange(shape[1], device=device)).flatten(2)
        inputs = [
            Sequences(
                rows(seen, (step, slice(None), slice(None, self._burn_in))),
                num_before[step, :, 0],
                rows(seen, (step, slice(None), slice(self._burn_in, None))),
                read[step],
            )
            for step in range(num_steps)
        ]
        samples = (order.places[low + within] - self._dataset.num_forgotten).flatten(2)
        return samples, inputs, self._take(samples.flatten(), observations=False)[1]


def answers(student: Student, dataset: Dataset, limit: int, *, held_out: bool = False) -> tuple[Tensor, ActionTargets] | None:
    """A student's outputs ``[B, outputs]`` on about ``limit`` rows, evenly over all of them, and the rows' targets; None if there are none.

    Args:
        student: on the CPU. One with a memory goes through whole episodes.
        dataset: asked about.
        limit: one with a memory sees one episode at least.
        held_out: the held-out rows instead of those that are trained on.
    """
    if not student.architecture.memory:
        found = dataset.held_out(limit) if held_out else dataset.spread(limit)
        return None if found is None else (student(on_cpu(found[0])), found[1])
    places, numbers = dataset.held_out_episodes() if held_out else dataset.training_episodes()
    if not len(places):
        return None
    order = EpisodeOrder(places, numbers)
    parts = list(unrolled(student, dataset, order, order.some(limit)))
    told = torch.cat([outputs for _, outputs in parts])
    return told, dataset.take_targets(torch.cat([places for places, _ in parts]))


def all_answers(student: Student, dataset: Dataset) -> Tensor:
    """The outputs ``[capacity, outputs]`` of a student with a memory on all rows, by their places in the dataset's arrays."""
    told = torch.zeros(dataset.capacity, student.family.width)
    for places, numbers in (dataset.training_episodes(), dataset.held_out_episodes()):
        if len(places):
            order = EpisodeOrder(places, numbers)
            for part, outputs in unrolled(student, dataset, order, torch.arange(len(order.starts))):
                told[part] = outputs
    return told


def unrolled(student: Student, dataset: Dataset, order: EpisodeOrder, episodes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Places ``[b]`` of some rows in the dataset's arrays, and the outputs ``[b, outputs]`` of a student that went through their episodes.

    Episodes of about one length go side by side.
    """
    lengths = (order.ends - order.starts)[episodes]
    by_length = lengths.argsort(descending=True)
    episodes, lengths = episodes[by_length], lengths[by_length]
    numbers = sum(leaf[0].numel() for leaf in leaves(dataset.take_rows(order.places[:1])))
    first = 0
    while first < len(episodes):
        longest = int(lengths[first])
        side_by_side = slice(first, first + max(1, CHUNK // longest))
        starts, own = order.starts[episodes[side_by_side]], lengths[side_by_side]
        state = None
        for steps in torch.arange(longest)[:, None].split(max(1, CHUNK_NUMBERS // (numbers * len(own)))):
            places = order.places[starts + torch.minimum(steps, own - 1)]
            outputs, state = student.unroll(on_cpu(dataset.take_rows(places)), state)
            there = steps < own
            yield places[there], outputs[there]
        first = side_by_side.stop
