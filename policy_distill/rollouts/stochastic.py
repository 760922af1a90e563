"""A policy that samples actions from its distribution. An episode's actions do not depend on the other episodes in the batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from policy_distill.config import RequestError
from policy_distill.environments.vector import GOES_ON
from policy_distill.policies.policy import State
from policy_distill.policies.student import Student
from policy_distill.rollouts.numpy_policies import executable
from policy_distill.support import trees
from policy_distill.support.seeds import derived_seed
from policy_distill.support.trees import Tree
from policy_distill.teachers import RecurrentTeacher, Teacher


@dataclass(frozen=True)
class Drawing:
    """``policy`` with sampled actions. The state holds a generator for each episode, seeded by the episode's seed, and the policy's state.

    Raises:
        RequestError: if the policy is deterministic: agents with Q-values, td3, ddpg and ars.
    """

    policy: Student | Teacher

    def __post_init__(self) -> None:
        policy = self.policy
        names, zeros = policy.family.names, trees.zeros(policy.observation_space, 2)
        if not names or not set(names) <= _parameters(policy, zeros, _state(policy, 2), np.arange(2))[0].keys():
            raise RequestError("the policy is deterministic and has no distribution to sample from: leave --stochastic out")

    def initial_state(self, num_envs: int) -> State:
        return [torch.Generator() for _ in range(num_envs)], _state(self.policy, num_envs)

    @torch.inference_mode()
    def step(self, observations: Tree, state: State, starts: np.ndarray | None) -> tuple[np.ndarray, State]:
        family = self.policy.family
        generators, policy_state = state
        parameters, policy_state = _parameters(self.policy, observations, policy_state, starts)
        drawn = []
        for row, generator in enumerate(generators):
            if starts is not None and starts[row] != GOES_ON:
                generator.manual_seed(derived_seed(int(starts[row]), 2))
            row_parameters = {name: values[row : row + 1] for name, values in parameters.items()}
            drawn.append(family.sample(row_parameters, generator).numpy())
        return executable(self.policy.action_space, len(drawn))(np.concatenate(drawn)), (generators, policy_state)


def _state(policy: Student | Teacher, num_envs: int) -> State:
    return policy.initial_state(num_envs) if isinstance(policy, Student | RecurrentTeacher) else None


@torch.inference_mode()
def _parameters(
    policy: Student | Teacher, observations: Tree, state: State, starts: np.ndarray | None
) -> tuple[dict[str, torch.Tensor], State]:
    """Parameters of the policy's distribution, and its state after the step."""
    if isinstance(policy, RecurrentTeacher):
        targets, state = policy.label(observations, state, starts)
        return targets.parameters, state
    if isinstance(policy, Teacher):
        return policy.targets(trees.map_leaves(torch.tensor, observations)).parameters, state
    return policy.parameters_after(trees.map_leaves(np.array, observations), state, starts)
