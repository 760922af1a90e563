"""Batches for several gradient steps at once, in the memory layout of a stack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from policy_distill.losses.objective import Objective
from policy_distill.policies.actions import LAYER, ActionTargets
from policy_distill.policies.encoders import channels_first, may_be_image
from policy_distill.support.trees import Tree
from policy_distill.training.dataset import Dataset
from policy_distill.training.stacks import Stack

CHUNK_STEPS, CHUNK_BYTES = 32, 2**22
"""Maximum number of batches drawn at once, and their size, which fits into the last-level cache."""
LAYER_BYTES = 2**24
"""Maximum size of the teacher's layers in these batches. It is larger than ``CHUNK_BYTES``, which would hold a single batch of wide layers,
and drawing batches one at a time would double the cost."""


class Batches:
    """Training batches of a stack, in chunks; each chunk overwrites the buffers of the previous one.

    Observations are encoded while they are copied into the buffers. A normalised copy of the dataset would save only one division per
    element.

    Args:
        dataset: source of the rows.
        stack: determines the layout of the inputs.
        objective: determines which targets are read.
        batch_size: B.
        generators: one per member.
        num_steps: total number of steps.
        random_shift: maximum shift of the images, in pixels; 0: none.

    Attributes:
        chunk_steps: S, maximum number of steps per chunk.
    """

    _observations_read = 1
    """Number of observations read for each sample of a batch."""

    def __init__(
        self,
        dataset: Dataset,
        stack: Stack,
        objective: Objective,
        batch_size: int,
        generators: Sequence[torch.Generator],
        num_steps: int,
        random_shift: int = 0,
    ) -> None:
        self._dataset, self._batch_size, self._generators = dataset, batch_size, generators
        self._stack, self._random_shift = stack, random_shift
        self._layers = {name: objective.samples_read(name, batch_size) for name in objective.reads if name.startswith(LAYER)}
        self._names, self._reads_actions = objective.reads - set(self._layers), objective.reads_actions
        first = torch.zeros(1, dtype=torch.int64, device=dataset.device)
        _, like = self._take(first)
        widths = [
            stack.sample_size * self._observations_read,
            *(value.shape[-1] for value in like.parameters.values()),
            like.actions[0].numel(),
        ]
        members = len(generators)
        layers = {name: (samples, dataset.take_target(name, first)) for name, samples in self._layers.items()}
        layer_size = sum(samples * value.numel() for samples, value in layers.values())
        fits = min(CHUNK_BYTES // (4 * sum(widths) * batch_size * members), LAYER_BYTES // max(4 * layer_size * members, 1))
        # With sampled targets each member's generator draws a batch and then the actions on it.
        self.chunk_steps = 1 if objective.kind == "nll" else max(1, min(CHUNK_STEPS, fits, num_steps))
        lead = (self.chunk_steps, members)
        self._parameters = {name: value.new_empty(*lead, value.shape[-1], batch_size) for name, value in like.parameters.items()}
        self._rows = {name: value.new_empty(*lead, samples, value.shape[-1]) for name, (samples, value) in layers.items()}
        self._loaded_steps = 0
        self._actions = like.actions.new_empty(*lead, like.actions[0].numel(), batch_size)

    def draw(self, num_steps: int) -> tuple[Sequence[Any], ActionTargets]:
        """The next ``num_steps`` batches.

        Returns:
            The inputs of each step for the stack's ``forward``, and the targets that the objective reads, ``[S, K, B, ...]``. In memory
            targets are feature-major, the teacher's layers sample-major. A layer that only relations read holds just the samples that they
            compare.

        Raises:
            ValueError: if ``num_steps`` exceeds ``chunk_steps``.
        """
        if num_steps > self.chunk_steps:
            raise ValueError(f"{num_steps} steps do not fit: {self.chunk_steps} may be drawn at once")
        drawn, inputs, targets = self._drawn(num_steps)
        return inputs, self._laid_out(drawn, targets)

    def _drawn(self, num_steps: int) -> tuple[Tensor, Sequence[Any], ActionTargets]:
        """Training rows ``[S, K, B]``, the inputs of each step, and the rows' targets ``[S * K * B, ...]``."""
        if self._random_shift:
            drawn, shifts = self._drawn_with_shifts(num_steps)
            observations, targets = self._take(drawn.flatten())
            observations = shifted(observations, self._stack.architecture.seen_space, shifts)
        else:
            drawn = self._dataset.draw(num_steps, self._batch_size, self._generators)
            observations, targets = self._take(drawn.flatten())
        if num_steps != self._loaded_steps:
            self._inputs, self._loaded_steps = self._stack.inputs(num_steps, self._batch_size), num_steps
        return drawn, self._stack.load(observations, self._inputs), targets

    def _drawn_with_shifts(self, num_steps: int) -> tuple[Tensor, Tensor]:
        """Training rows ``[S, K, B]`` and the shifts of their images ``[S * K * B, 2]``.

        Each step draws its rows and then its shifts, so that the numbers do not depend on how many steps are drawn at once.
        """
        rows, shifts = [], []
        for _ in range(num_steps):
            rows.append(self._dataset.draw(1, self._batch_size, self._generators))
            shifts += [draw_shifts(self._random_shift, self._batch_size, generator) for generator in self._generators]
        return torch.cat(rows), torch.cat(shifts)

    def _laid_out(self, drawn: Tensor, targets: ActionTargets) -> ActionTargets:
        """Copy the targets ``[S * K * B, ...]`` of the rows ``drawn`` into the buffers."""
        num_steps = len(drawn)

        def feature_major(rows: Tensor) -> Tensor:
            return rows.reshape(*drawn.shape, rows[0].numel()).transpose(2, 3)

        parameters = {
            name: self._parameters[name][:num_steps].copy_(feature_major(value)).transpose(2, 3)
            for name, value in targets.parameters.items()
        }
        for name, samples in self._layers.items():
            parameters[name] = self._dataset.take_target(name, drawn[:, :, :samples], out=self._rows[name][:num_steps])
        actions = self._actions[:num_steps].copy_(feature_major(targets.actions)).transpose(2, 3)
        return ActionTargets(parameters, actions.view(*drawn.shape, *targets.actions.shape[1:]))

    def _take(self, rows: Tensor, *, observations: bool = True) -> tuple[Tree, ActionTargets]:
        return self._dataset.take(rows, self._names, actions=self._reads_actions, observations=observations)


def draw_shifts(limit: int, count: int, generator: torch.Generator) -> Tensor:
    """Numbers of pixels down and to the right ``[count, 2]``, uniform in ``[-limit, limit]``, on the generator's device."""
    return torch.randint(-limit, limit + 1, (count, 2), generator=generator, device=generator.device)


def shifted(observations: Tree, space: gym.Space, shifts: Tensor) -> Tree:
    """Observations ``[B, ...]`` whose images are shifted; the pixels at a border are repeated where none moves in.

    Random shifts are an augmentation of Kostrikov et al. 2021 (https://arxiv.org/abs/2004.13649, sec. 3).

    Args:
        observations: batch of raw observations; vectors in a Dict are returned as they are.
        space: their space.
        shifts: ``[B, 2]``, see ``draw_shifts``; the same for all images of an observation.
    """
    if isinstance(space, gym.spaces.Dict):
        return {key: shifted(observations[key], part, shifts) for key, part in space.items()}
    if not may_be_image(space):
        return observations
    images = observations.permute(0, 2, 3, 1) if channels_first(space) else observations
    count, height, width, _ = images.shape
    rows, columns = (
        (torch.arange(size, device=shifts.device) - shift[:, None]).clamp(0, size - 1)
        for size, shift in ((height, shifts[:, 0]), (width, shifts[:, 1]))
    )
    moved = images[torch.arange(count, device=shifts.device)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2) if channels_first(space) else moved
