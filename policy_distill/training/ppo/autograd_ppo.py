"""PPO on students of any encoder, and on students with a memory, differentiated by autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policy_distill.config import PolishConfig
from policy_distill.policies.student import Student
from policy_distill.rollouts.ppo_rollouts import Ended, RolloutEnv
from policy_distill.support import trees
from policy_distill.support.trees import Tree
from policy_distill.training.ppo.ppo import PPO, Batch, Evaluated
from policy_distill.training.stacks.autograd import AutogradStack, Pass
from policy_distill.training.stacks.recurrent import RecurrentStack, Sequences

CHUNK = 2**24
"""Maximum number of elements of the observations in one pass over a rollout."""


class AutogradPPO(PPO[AutogradStack]):
    """PPO on two ``AutogradStack`` of one; see ``PPO``."""

    def _evaluate(self, environments: RolloutEnv, observations: Tree, truncated: Sequence[Ended]) -> Evaluated:
        critic, shape = self.critic.live(0), environments.rewards.shape
        last_values = np.zeros(0, np.float32)
        if truncated:
            last_values = _outputs(critic, trees.to_tensors(trees.stack([episode.observation for episode in truncated])))[:, 0].numpy()
        following = _outputs(critic, trees.to_tensors(trees.rows(environments.observations, -1)))
        values = torch.cat([_outputs(critic, observations), following]).reshape(shape[0] + 1, shape[1])
        return Evaluated({}, _outputs(self.actor.live(0), observations), values.numpy(), last_values)

    def _arrange(self, batch: Batch) -> tuple[Any, Any]:
        inputs = trees.map_leaves(lambda leaf: leaf[None], batch.observations)
        return inputs, inputs

    def _room(self, size: int) -> tuple[Pass, Pass]:
        """New buffers: these would hold the graph of their last pass."""
        return self.actor.buffers(size), self.critic.buffers(size)


def _outputs(student: Student, observations: Tree) -> Tensor:
    """``student(observations)``, a part at a time."""
    elements = sum(leaf[0].numel() for leaf in trees.leaves(observations))
    return torch.cat([student(part) for part in trees.blocks(observations, max(1, CHUNK // elements))])


class RecurrentPPO(AutogradPPO):
    """PPO on two ``RecurrentStack`` of one, whose minibatches are sequences.

    A sequence lies within one episode of a rollout, and begins with the state that its network had there before the update (Kapturowski et
    al. 2019, https://openreview.net/forum?id=r1lyTjAqYX, "stored state").
    """

    def __init__(
        self,
        actor: RecurrentStack,
        critic: RecurrentStack,
        config: PolishConfig,
        *,
        seed: int,
        penalty: Callable[[Tensor, Tree, dict[str, Tensor]], Tensor],
    ) -> None:
        super().__init__(actor, critic, config, seed=seed, penalty=penalty)
        self._states: list[Tensor | None] = [None, None]
        """State ``[N, units]`` of actor and critic before the next rollout's first observations; None before the first rollout."""

    def state_dict(self) -> dict[str, Tensor]:
        states = zip(("acting", "judging"), self._states, strict=True)
        return {**super().state_dict(), **{name: state for name, state in states if state is not None}}

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        super().load_state_dict(saved)
        self._states = [saved.get(name) for name in ("acting", "judging")]

    def _evaluate(self, environments: RolloutEnv, observations: Tree, truncated: Sequence[Ended]) -> Evaluated:
        starts = torch.from_numpy(environments.starts)
        students = [stack.live(0) for stack in (self.actor, self.critic)]
        seen = trees.to_tensors(environments.observations)
        (outputs, acting, _), (values, judging, after) = (
            unrolled(student, seen, starts, state) for student, state in zip(students, self._states, strict=True)
        )
        self._states = [acting[-1], judging[-1]]
        last_values = np.zeros(0, np.float32)
        if truncated:
            steps, columns = [episode.step for episode in truncated], [episode.index for episode in truncated]
            last = trees.to_tensors(trees.stack([episode.observation for episode in truncated]))
            last_values = students[1].unroll(trees.rows(last, None), after[steps, columns])[0][0, :, 0].numpy()
        begins = starts[:-1] | (torch.arange(len(starts) - 1) % self.config.sequence_length == 0)[:, None]
        inputs = {name: rows.flatten(0, 1) for name, rows in (("actor", acting[:-1]), ("critic", judging[:-1]), ("begins", begins))}
        return Evaluated(inputs, outputs[:-1].flatten(0, 1), values[..., 0].numpy(), last_values)

    def _minibatches(self, batch: Batch) -> Iterator[Tensor]:
        """Whole sequences in a new order; a sequence is in the minibatch in which it begins, if rows are counted in that order."""
        first, sizes = _sequences(batch)
        order = torch.from_numpy(self._orders.permutation(len(first)))
        first, sizes = first[order], sizes[order]
        numbers = (sizes.cumsum(0) - sizes) // self.config.batch_size
        _, counts = torch.unique_consecutive(numbers, return_counts=True)
        for firsts, lengths in zip(first.split(counts.tolist()), sizes.split(counts.tolist()), strict=True):
            steps = torch.arange(int(lengths.sum())) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
            yield firsts.repeat_interleave(lengths) + steps

    def _arrange(self, batch: Batch) -> tuple[Sequences, Sequences]:
        first, sizes = _sequences(batch)
        window = first + torch.minimum(torch.arange(int(sizes.max()))[:, None], sizes - 1)  # [length, Q]
        numbers = torch.arange(len(first)).repeat_interleave(sizes)
        read = (torch.arange(len(numbers)) - first[numbers]) * len(first) + numbers
        observations = trees.map_leaves(lambda leaf: leaf[window][None], batch.observations)
        before, none = trees.rows(observations, (slice(None), slice(0))), torch.zeros(1, len(first), dtype=torch.int64)
        acting, judging = (
            Sequences(before, none, observations, read[None], batch.inputs[name][first][None]) for name in ("actor", "critic")
        )
        return acting, judging


def unrolled(student: Student, seen: Tree, starts: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """A student with a memory along T steps of N environments.

    Args:
        student: the student.
        seen: ``[T, N, ...]``.
        starts: ``[T, N]``, True where an episode begins with this observation.
        state: ``[N, units]`` before the first step; None: of episodes' starts.

    Returns:
        Outputs ``[T, N, width]``, and the states before and after each step, ``[T, N, units]``.
    """
    state = torch.zeros(starts.shape[1], student.architecture.memory) if state is None else state
    steps = []
    for step, begins in enumerate(starts):
        before = state.masked_fill(begins[:, None], 0.0)
        output, state = student.unroll(trees.rows(seen, slice(step, step + 1)), before)
        steps.append((output[0], before, state))
    outputs, before, after = map(torch.stack, zip(*steps, strict=True))
    return outputs, before, after


def _sequences(batch: Batch) -> tuple[Tensor, Tensor]:
    """First row and length of each sequence."""
    first = batch.inputs["begins"].nonzero().flatten()
    return first, torch.diff(first, append=first.new_tensor([len(batch.returns)]))
