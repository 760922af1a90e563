"""A policy that draws its actions from its own distribution, the same ones in the same episode whatever is played beside it."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch

from policy_distill.config import RequestError
from policy_distill.policies.student import Student
from policy_distill.support import trees
from policy_distill.support.seeds import derived_seed
from policy_distill.teachers import Teacher


@dataclass(frozen=True)
class Drawing:
    """``policy`` with drawn actions; see ``episodes.EpisodicPolicy``.

    Raises:
        RequestError: if the policy has no distribution: agents with Q-values, td3, ddpg and ars only name an action.
    """

    policy: Student | Teacher

    def __post_init__(self) -> None:
        policy = self.policy
        names = policy.family.names
        if not names or not set(names) <= _parameters(policy, trees.zeros(policy.observation_space, 2)).keys():
            raise RequestError("the policy only names its actions, it has no distribution to draw from: leave --stochastic out")

    def for_episode(self, seed: int) -> DrawingEpisode:
        """The policy with a generator that the episode's seed alone decides, and that is not the environment's."""
        return DrawingEpisode(self.policy, torch.Generator().manual_seed(derived_seed(seed, 2)))


@dataclass(frozen=True)
class DrawingEpisode:
    """``policy`` in one episode."""

    policy: Student | Teacher
    generator: torch.Generator

    @torch.inference_mode()
    def act(self, observations: trees.Tree) -> np.ndarray:
        """Raw observations ``[B, ...]`` to actions that ``env.step`` accepts."""
        family = self.policy.family
        actions = family.sample(_parameters(self.policy, observations), self.generator)
        array: np.ndarray = actions.numpy()
        space = self.policy.action_space
        return array.reshape(len(array), *space.shape).astype(space.dtype) if isinstance(space, gym.spaces.Box) else array


@torch.inference_mode()
def _parameters(policy: Student | Teacher, observations: trees.Tree) -> dict[str, torch.Tensor]:
    tensor = trees.map_leaves(torch.tensor, observations)
    return policy.targets(tensor).parameters if isinstance(policy, Teacher) else policy.parameters_of(tensor)
