"""PPO on students of vectors, with analytic gradients.

For networks of a few hundred parameters, distribution objects and autograd cost more than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from policy_distill.policies.observations import encode_observations
from policy_distill.rollouts.ppo_rollouts import Ended, RolloutEnv
from policy_distill.support import trees
from policy_distill.training.ppo.ppo import PPO, Batch, Evaluated
from policy_distill.training.stacks.analytic import StudentStack


class VectorPPO(PPO[StudentStack]):
    """PPO on two ``StudentStack`` of one with the same normalisation; see ``PPO``."""

    def inputs(self, observations: trees.Tree) -> Tensor:
        """Inputs of both networks ``[B, inputs + 1]`` from raw observations: encoded, normalised, and a last column of ones."""
        architecture = self.actor.architecture
        encoded = encode_observations(architecture.seen_space, observations, self.actor.mean.dtype)
        if architecture.columns is not None:
            encoded = encoded[:, list(architecture.columns)]
        normalized = ((encoded - self.actor.mean) / self.actor.scale).to(self.actor.flat.dtype)
        return torch.cat([normalized, normalized.new_ones(len(normalized), 1)], dim=1)

    def outputs(self, inputs: Tensor) -> Tensor:
        """The actor's logits or means ``[B, width]`` for the result of ``inputs``; not differentiable."""
        return self.actor.forward(inputs.T[None], self._room(len(inputs))[0])[0].T.clone(memory_format=torch.contiguous_format)

    def values(self, inputs: Tensor) -> np.ndarray:
        """The critic's values ``[B]`` for the result of ``inputs``."""
        return self.critic.forward(inputs.T[None], self._room(len(inputs))[1])[0, 0].numpy().copy()

    def _evaluate(self, environments: RolloutEnv, observations: trees.Tree, truncated: Sequence[Ended]) -> Evaluated:
        inputs = self.inputs(observations)
        values = self.values(inputs).reshape(environments.rewards.shape)
        last_values = np.zeros(0, np.float32)
        if truncated:
            last_values = self.values(self.inputs(trees.to_tensors(trees.stack([episode.observation for episode in truncated]))))
        following = self.values(self.inputs(trees.to_tensors(trees.rows(environments.observations, -1))))
        return Evaluated(inputs, self.outputs(inputs), np.concatenate([values, following[None]]), last_values)

    def _arrange(self, batch: Batch) -> tuple[Tensor, Tensor]:
        inputs = batch.inputs.T[None].contiguous()
        return inputs, inputs
