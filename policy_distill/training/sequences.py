"""Training sequences for students with a memory, and students' outputs on a dataset.

A sequence is a part of one episode. Its rows are consecutive, and the rows before it are its burn-in. Every row of the dataset is equally
likely to be a sample: a row is drawn, its episode is cut into parts of ``length`` steps at a random phase, and the part with the row is the
sequence. Rows of a shorter part (the first, the last, or a whole short episode) are repeated.
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
from policy_distill.training.stacks import Stack
from policy_distill.training.stacks.recurrent import Sequences

CHUNK, CHUNK_NUMBERS = 16_384, 2**26
"""Maximum number of rows in one forward pass of a student, and of elements in their observations."""


def batches_of(
    dataset: Dataset, stack: Stack, objective: Objective, config: TrainConfig, generators: Sequence[torch.Generator], num_steps: int
) -> Batches:
    """The training batches of ``stack``: single rows, or sequences if its students have a memory."""
    if not stack.architecture.memory:
        batch_size = config.batch_size_of(single_images=stack.architecture.reads_single_images)
        return Batches(dataset, stack, objective, batch_size, generators, num_steps, config.random_shift)
    return SequenceBatches(dataset, stack, objective, config, generators, num_steps)


class EpisodeOrder:
    """Rows sorted by episode.

    Args:
        places: ``[n]``, positions of the rows in the dataset's arrays, in order of arrival.
        numbers: ``[n]``, their episode numbers.

    Attributes:
        places: ``[n]``, sorted by episode and step.
        starts, ends: ``[E]``, range of each episode in ``places``.
    """

    def __init__(self, places: Tensor, numbers: Tensor) -> None:
        order = torch.argsort(numbers, stable=True)
        self.places = places[order]
        _, counts = torch.unique_consecutive(numbers[order], return_counts=True)
        self.ends = counts.cumsum(0)
        self.starts = self.ends - counts

    def to(self, device: torch.device) -> EpisodeOrder:
        """Move to another device."""
        self.places, self.starts, self.ends = (tensor.to(device) for tensor in (self.places, self.starts, self.ends))
        return self

    def some(self, limit: int) -> Tensor:
        """Evenly spaced episodes with about ``limit`` rows in total; at least one episode."""
        count = len(self.starts)
        return evenly(count, max(1, limit * count // len(self.places)), self.starts.device)


class SequenceBatches(Batches):
    """Batches of sequences; see ``Batches``."""

    def __init__(
        self,
        dataset: Dataset,
        stack: Stack,
        objective: Objective,
        config: TrainConfig,
        generators: Sequence[torch.Generator],
        num_steps: int,
    ) -> None:
        order = EpisodeOrder(*dataset.training_episodes())
        self._length = config.sequence_length
        self._burn_in = min(config.burn_in, int((order.ends - order.starts).max()) - 1)
        self._observations_read = 1 + -(-self._burn_in // self._length)
        super().__init__(dataset, stack, objective, config.batch_size_of(single_images=False), generators, num_steps)
        forgotten = (order.places < dataset.num_forgotten).long().cumsum(0)
        before = torch.cat([forgotten.new_zeros(1), forgotten])
        self._first_kept = (order.starts + before[order.ends] - before[order.starts]).to(dataset.device)
        """``[E]``, each episode's first row that is not forgotten."""
        self._drawable = (order.places >= dataset.num_forgotten).nonzero().flatten().to(dataset.device)
        self._order = order.to(dataset.device)

    def _drawn(self, num_steps: int) -> tuple[Tensor, Sequence[Any], ActionTargets]:
        order, length, device = self._order, self._length, self._dataset.device
        shape, count = (num_steps, self._batch_size // length), len(self._drawable)
        # one number encodes row and phase, so that drawing several steps at once gives the same numbers as separate calls
        draws = [torch.randint(count * length, shape, generator=generator, device=device) for generator in self._generators]
        drawn = torch.stack(draws, dim=1)[:, :, None]  # [S, K, 1, Q]
        place = self._drawable[drawn // length]
        episode = torch.searchsorted(order.ends, place, right=True)
        start = order.starts[episode]
        phase = torch.where(order.ends[episode] - start > length, drawn % length, 0)
        first = start + (place - start + phase) // length * length - phase
        low, high = torch.maximum(first, self._first_kept[episode]), torch.minimum(first + length, order.ends[episode])
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


def sampled_outputs(student: Student, dataset: Dataset, limit: int, *, held_out: bool = False) -> tuple[Tensor, ActionTargets] | None:
    """A student's outputs ``[B, outputs]`` on about ``limit`` evenly spaced rows, and the rows' targets; None if there are no rows.

    Args:
        student: on the CPU. A student with a memory is unrolled over whole episodes.
        dataset: source of the rows.
        limit: approximate number of rows; with a memory, at least one whole episode is used.
        held_out: use held-out rows instead of training rows.
    """
    if not student.architecture.memory:
        sample = dataset.held_out(limit) if held_out else dataset.spread(limit)
        return None if sample is None else (student(on_cpu(sample[0])), sample[1])
    places, numbers = dataset.held_out_episodes() if held_out else dataset.training_episodes()
    if not len(places):
        return None
    order = EpisodeOrder(places, numbers)
    parts = list(unrolled(student, dataset, order, order.some(limit)))
    outputs = torch.cat([part_outputs for _, part_outputs in parts])
    return outputs, dataset.take_targets(torch.cat([part_places for part_places, _ in parts]))


def all_outputs(student: Student, dataset: Dataset) -> Tensor:
    """Outputs ``[capacity, outputs]`` of a student with a memory on all rows, by position in the dataset's arrays."""
    outputs = torch.zeros(dataset.capacity, student.family.width)
    for places, numbers in (dataset.training_episodes(), dataset.held_out_episodes()):
        if len(places):
            order = EpisodeOrder(places, numbers)
            for part, part_outputs in unrolled(student, dataset, order, torch.arange(len(order.starts))):
                outputs[part] = part_outputs
    return outputs


def unrolled(student: Student, dataset: Dataset, order: EpisodeOrder, episodes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions ``[b]`` of rows in the dataset's arrays and the student's outputs ``[b, outputs]``, unrolled over whole episodes.

    Episodes of similar length are batched together.
    """
    lengths = (order.ends - order.starts)[episodes]
    by_length = lengths.argsort(descending=True)
    episodes, lengths = episodes[by_length], lengths[by_length]
    elements = sum(leaf[0].numel() for leaf in leaves(dataset.take_rows(order.places[:1])))
    first = 0
    while first < len(episodes):
        longest = int(lengths[first])
        batch = slice(first, first + max(1, CHUNK // longest))
        starts, batch_lengths = order.starts[episodes[batch]], lengths[batch]
        state = None
        for steps in torch.arange(longest)[:, None].split(max(1, CHUNK_NUMBERS // (elements * len(batch_lengths)))):
            places = order.places[starts + torch.minimum(steps, batch_lengths - 1)]
            outputs, state = student.unroll(on_cpu(dataset.take_rows(places)), state)
            valid = steps < batch_lengths
            yield places[valid], outputs[valid]
        first = batch.stop
