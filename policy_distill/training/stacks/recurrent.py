"""K students with a memory, trained together on sequences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from policy_distill.environments.action_masks import MASK
from policy_distill.policies.memories import Gru, scan
from policy_distill.support.trees import Tree, flattened, leaves, rows
from policy_distill.training.stacks.autograd import AutogradStack


@dataclass(frozen=True)
class Sequences:
    """The inputs of one gradient step: Q sequences for each of K members. A sequence lies within one episode.

    Attributes:
        before: burn-in observations ``[K, burn_in, Q, ...]``, which give no gradient.
        num_before: ``[K, Q]``, number of valid burn-in observations; the rest is ignored.
        window: observations ``[K, length, Q, ...]`` after the burn-in.
        read: ``[K, B]``, index of each sample in the window (step * Q + sequence).
        state: ``[K, Q, units]``, state before the burn-in; None: that of an episode's start, zeros.
    """

    before: Tree
    num_before: Tensor
    window: Tree
    read: Tensor
    state: Tensor | None = None


class RecurrentStack(AutogradStack):
    """An ``AutogradStack`` whose members' memories are unrolled together. See ``stacks.Stack``."""

    def _read(self, inputs: Sequences) -> Iterator[Tensor]:
        recurrent = torch.stack([memory.recurrent.weight.T for memory in self._memories])
        with torch.no_grad():
            zeros = recurrent.new_zeros(self.num_members, inputs.num_before.shape[1], recurrent.shape[1])
            state = zeros if inputs.state is None else inputs.state
            if leaves(inputs.before)[0].shape[1]:
                states = torch.cat([state[None], scan(self._gates(inputs.before), recurrent, state)])
                state = states.gather(0, inputs.num_before[None, :, :, None].expand(1, *state.shape))[0]
        states = scan(self._gates(inputs.window), recurrent, state)
        for index, read in enumerate(inputs.read):
            yield states[:, index].flatten(0, 1)[read]

    def _mask(self, inputs: Sequences, index: int) -> Tensor:
        return rows(inputs.window[MASK], index).flatten(0, 1)[inputs.read[index]]

    def _gates(self, observations: Tree) -> Tensor:
        """The input part of the GRU gates ``[T, K, Q, 3 * units]``, from observations ``[K, T, Q, ...]``."""
        parts = []
        for index, (student, memory) in enumerate(zip(self._students, self._memories, strict=True)):
            inputs = rows(observations, index)
            parts.append(memory.inputs(student.encoder(flattened(inputs))).unflatten(0, leaves(inputs)[0].shape[:2]))
        return torch.stack(parts, dim=1)

    @property
    def _memories(self) -> list[Gru]:
        return [student.memory for student in self._students if student.memory is not None]
