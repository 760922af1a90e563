"""Checks of an agent's spaces. Stable-Baselines3 assumes that discrete values start at 0."""

from __future__ import annotations

import gymnasium as gym
import numpy as np

from policy_distill.config import RequestError
from policy_distill.policies.families import Family, family_of
from policy_distill.support.trees import leaf_spaces


def check_start(observation_space: gym.Space, action_space: gym.Space, source: str) -> None:
    """Refuse discrete spaces that do not start at 0.

    Stable-Baselines3 encodes observations as one-hot vectors without subtracting the start, and fails for values outside 0 to n - 1. Its
    actions are 0 to n - 1, which are partly outside the space.

    Raises:
        RequestError: for a Discrete or MultiDiscrete space with a start other than 0.
    """
    for role, space, fault in (
        *(("observations", part, "counts from 0 and fails at some of them") for part in leaf_spaces(observation_space).values()),
        ("actions", action_space, "acts from 0 on"),
    ):
        start = getattr(space, "start", 0)
        if np.any(start):
            first = int(start) if np.ndim(start) == 0 else np.asarray(start).tolist()
            raise RequestError(f"{source}: its {role} begin at {first}, but Stable-Baselines3 {fault}; retrain with {role} that begin at 0")


def acting_family(action_space: gym.Space, source: str) -> Family:
    """The family of an agent with this action space.

    Raises:
        RequestError: for a space that is not supported.
    """
    try:
        return family_of(action_space)
    except ValueError as error:
        raise RequestError(f"{source}: {error}") from error
