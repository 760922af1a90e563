"""Batches of many gradient steps at once: drawn, and laid out as a stack reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from policy_distill.losses.objective import Objective
from policy_distill.policies.actions import LAYER, ActionTargets
from policy_distill.support.trees import Tree
from policy_distill.training.dataset import Dataset
from policy_distill.training.stacks import Stack

CHUNK_STEPS, CHUNK_BYTES = 32, 2**22
"""Batches that are drawn at once at most, and their bytes, which the last-level cache holds."""
LAYER_BYTES = 2**24
"""Of the teacher's layers among them: wide as they are, what ``CHUNK_BYTES`` holds of them would be one batch, and drawing it alone would
take as long as they do."""


class Batches:
    """What a stack is trained on, chunk after chunk, in buffers that the next chunk overwrites.

    Observations are encoded on their way into these buffers: a second, normalised copy of the dataset would save one division a number.

    Args:
        dataset: drawn from.
        stack: says how observations are laid out.
        objective: says which targets are read.
        batch_size: B.
        generators: one a member.
        num_steps: that will be taken.

    Attributes:
        chunk_steps: S, steps that may be drawn at once.
    """

    _observations_read = 1
    """For each sample of a batch."""

    def __init__(
        self,
        dataset: Dataset,
        stack: Stack,
        objective: Objective,
        batch_size: int,
        generators: Sequence[torch.Generator],
        num_steps: int,
    ) -> None:
        self._dataset, self._batch_size, self._generators = dataset, batch_size, generators
        self._stack = stack
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
        of_layers = sum(samples * value.numel() for samples, value in layers.values())
        fits = min(CHUNK_BYTES // (4 * sum(widths) * batch_size * members), LAYER_BYTES // max(4 * of_layers * members, 1))
        # With sampled targets each member's generator draws a batch and then the actions on it.
        self.chunk_steps = 1 if objective.kind == "nll" else max(1, min(CHUNK_STEPS, fits, num_steps))
        room = (self.chunk_steps, members)
        self._parameters = {name: value.new_empty(*room, value.shape[-1], batch_size) for name, value in like.parameters.items()}
        self._rows = {name: value.new_empty(*room, samples, value.shape[-1]) for name, (samples, value) in layers.items()}
        self._loaded_steps = 0
        self._actions = like.actions.new_empty(*room, like.actions[0].numel(), batch_size)

    def draw(self, num_steps: int) -> tuple[Sequence[Any], ActionTargets]:
        """The next ``num_steps`` batches.

        Returns:
            The inputs of each step, as the stack's ``forward`` reads them; and those targets that the objective reads, ``[S, K, B, ...]``,
            views of tensors that lie feature after feature. The teacher's layers lie sample after sample, and of one that relations alone
            read there are only the samples that they compare.

        Raises:
            ValueError: if there is not enough room.
        """
        if num_steps > self.chunk_steps:
            raise ValueError(f"{num_steps} steps do not fit: {self.chunk_steps} may be drawn at once")
        drawn, inputs, targets = self._drawn(num_steps)
        return inputs, self._laid_out(drawn, targets)

    def _drawn(self, num_steps: int) -> tuple[Tensor, Sequence[Any], ActionTargets]:
        """Training rows ``[S, K, B]``, the inputs of each step, and the rows' targets ``[S * K * B, ...]``."""
        drawn = self._dataset.draw(num_steps, self._batch_size, self._generators)
        observations, targets = self._take(drawn.flatten())
        if num_steps != self._loaded_steps:
            self._inputs, self._loaded_steps = self._stack.inputs(num_steps, self._batch_size), num_steps
        return drawn, self._stack.load(observations, self._inputs), targets

    def _laid_out(self, drawn: Tensor, targets: ActionTargets) -> ActionTargets:
        """Targets ``[S * K * B, ...]`` of the rows ``drawn``, in the buffers."""
        num_steps = len(drawn)

        def turned(rows: Tensor) -> Tensor:
            return rows.reshape(*drawn.shape, rows[0].numel()).transpose(2, 3)

        parameters = {
            name: self._parameters[name][:num_steps].copy_(turned(value)).transpose(2, 3) for name, value in targets.parameters.items()
        }
        for name, samples in self._layers.items():
            parameters[name] = self._dataset.take_target(name, drawn[:, :, :samples], out=self._rows[name][:num_steps])
        actions = self._actions[:num_steps].copy_(turned(targets.actions)).transpose(2, 3)
        return ActionTargets(parameters, actions.view(*drawn.shape, *targets.actions.shape[1:]))

    def _take(self, rows: Tensor, *, observations: bool = True) -> tuple[Tree, ActionTargets]:
        return self._dataset.take(rows, self._names, actions=self._reads_actions, observations=observations)
