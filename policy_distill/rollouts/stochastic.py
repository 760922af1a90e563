"""A policy that draws its actions from its own distribution, the same ones in the same episode whatever is played beside it."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch

from policy_distill.config import RequestError
from policy_distill.environments.vector import GOES_ON
from policy_distill.policies.policy import State
from policy_distill.policies.student import Student
from policy_distill.support import trees
from policy_distill.support.seeds import derived_seed
from policy_distill.support.trees import Tree
from policy_distill.teachers import RecurrentTeacher, Teacher


@dataclass(frozen=True)
class Drawing:
    """``policy`` with drawn actions. Its state is a generator for each episode, which the episode's seed alone decides and which is not
    the environment's, and the policy's own state.

    Raises:
        RequestError: if the policy has no distribution: agents with Q-values, td3, ddpg and ars only name an action.
    """

    policy: Student | Teacher

    def __post_init__(self) -> None:
        policy = self.policy
        names, nothing = policy.family.names, trees.zeros(policy.observation_space, 2)
        if not names or not set(names) <= _parameters(policy, nothing, _state(policy, 2), np.arange(2))[0].keys():
            raise RequestError("the policy only names its actions, it has no distribution to draw from: leave --stochastic out")

    def initial_state(self, num_envs: int) -> State:
        return [torch.Generator() for _ in range(num_envs)], _state(self.policy, num_envs)

    @torch.inference_mode()
    def step(self, observations: Tree, state: State, starts: np.ndarray | None) -> tuple[np.ndarray, State]:
        family, space = self.policy.family, self.policy.action_space
        generators, own_state = state
        parameters, own_state = _parameters(self.policy, observations, own_state, starts)
        drawn = []
        for row, generator in enumerate(generators):
            if starts is not None and starts[row] != GOES_ON:
                generator.manual_seed(derived_seed(int(starts[row]), 2))
            own = {name: values[row : row + 1] for name, values in parameters.items()}
            drawn.append(family.sample(own, generator).numpy())
        array: np.ndarray = np.concatenate(drawn)
        if isinstance(space, gym.spaces.Box):
            array = array.reshape(len(array), *space.shape).astype(space.dtype)
        return array, (generators, own_state)


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
