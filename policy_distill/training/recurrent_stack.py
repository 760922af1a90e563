"""K students with a memory, trained side by side on sequences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from policy_distill.environments.action_masks import MASK
from policy_distill.policies.memories import Gru, scan
from policy_distill.support.trees import Tree, flattened, leaves, rows
from policy_distill.training.autograd_stack import AutogradStack


@dataclass(frozen=True)
class Sequences:
    """The inputs of one gradient step: Q sequences of each of K members, each of one episode alone.

    Attributes:
        before: observations ``[K, burn_in, Q, ...]`` that are seen first, without a gradient.
        num_before: ``[K, Q]``, how many of them there are; the rest is not read.
        window: observations ``[K, length, Q, ...]`` that follow.
        read: ``[K, B]``, of which of the window's observations (step * Q + sequence) each sample is.
    """

    before: Tree
    num_before: Tensor
    window: Tree
    read: Tensor


class RecurrentStack(AutogradStack):
    """K students whose memories go through their sequences together; the rest is ``AutogradStack``'s. See ``stacks.Stack``."""

    def _read(self, inputs: Sequences) -> Iterator[Tensor]:
        recurrent = torch.stack([memory.recurrent.weight.T for memory in self._memories])
        with torch.no_grad():
            state = recurrent.new_zeros(self.num_members, inputs.num_before.shape[1], recurrent.shape[1])
            if leaves(inputs.before)[0].shape[1]:
                states = torch.cat([state[None], scan(self._gates(inputs.before), recurrent, state)])
                state = states.gather(0, inputs.num_before[None, :, :, None].expand(1, *state.shape))[0]
        states = scan(self._gates(inputs.window), recurrent, state)
        for index, read in enumerate(inputs.read):
            yield states[:, index].flatten(0, 1)[read]

    def _mask(self, inputs: Sequences, index: int) -> Tensor:
        return rows(inputs.window[MASK], index).flatten(0, 1)[inputs.read[index]]

    def _gates(self, observations: Tree) -> Tensor:
        """What the memories make of the observations ``[K, T, Q, ...]`` alone: ``[T, K, Q, 3 * units]``."""
        parts = []
        for index, (student, memory) in enumerate(zip(self._students, self._memories, strict=True)):
            own = rows(observations, index)
            parts.append(memory.inputs(student.encoder(flattened(own))).unflatten(0, leaves(own)[0].shape[:2]))
        return torch.stack(parts, dim=1)

    @property
    def _memories(self) -> list[Gru]:
        return [student.memory for student in self._students if student.memory is not None]
