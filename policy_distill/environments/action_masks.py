"""Action masks, which mark the actions that a state allows, as a part of the observation.

An environment with ``action_masks()`` is wrapped so that its observations are dicts with the key ``action_masks()``. Masks thereby reach
workers, the dataset, teacher and student. As in sb3-contrib a mask is flat: one entry for each action (Discrete), for each choice of each
component (MultiDiscrete), or for off and on of each component (MultiBinary).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from policy_distill.config import RequestError
from policy_distill.support.trees import Tree

MASK = "action_masks()"
"""Key of the mask in an observation. A Dict's own part ``action_mask``, which a plain agent may read, is an observation like any other."""
OBSERVATION = "observation"
"""Key of the environment's observation, if it is not a Dict."""

Step = tuple[Any, Any, bool, bool, dict[str, Any]]


class ActionMasks(gym.Wrapper):
    """Adds the environment's ``action_masks()`` to observations; the method may be provided by any wrapper, as in sb3-contrib.

    A forbidden action raises an error.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        if not env.has_wrapper_attr("action_masks"):
            raise RequestError(
                f"{env.spec.id if env.spec else env} has no action_masks(), which an agent trained with action masks (MaskablePPO) needs: "
                "name the environment of its training, with --wrapper if it had ActionMasker; --algo ppo lets it act without masks"
            )
        self.observation_space = with_mask(env.observation_space, env.action_space)
        self._masks = env.get_wrapper_attr("action_masks")
        self._shape = self.observation_space[MASK].shape
        self._mask = np.ones(self._shape or (), np.int8)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(**kwargs)
        return self._joined(observation), info

    def step(self, action: Any) -> Step:
        if not allows(self.action_space, self._mask, action):
            raise ValueError(f"the action {action} is forbidden by the mask {self._mask.tolist()}")
        observation, reward, terminated, truncated, info = super().step(action)
        return self._joined(observation), reward, terminated, truncated, info

    def _joined(self, observation: Any) -> dict[str, Any]:
        mask = np.asarray(self._masks())
        if mask.size != np.prod(self._shape or ()):
            raise ValueError(f"action_masks() returned {mask.size} entries, {self._shape} are expected for {self.action_space}")
        self._mask = (mask.reshape(-1) != 0).astype(np.int8)
        parts = observation if isinstance(observation, Mapping) else {OBSERVATION: observation}
        return {**parts, MASK: self._mask}


def mask_sizes(space: gym.Space) -> tuple[int, ...]:
    """Number of mask entries for each component of an action.

    Raises:
        RequestError: for a space that does not support masks.
    """
    match space:
        case gym.spaces.Discrete():
            return (int(space.n),)
        case gym.spaces.MultiDiscrete() if space.nvec.ndim == 1:
            return tuple(map(int, space.nvec))
        case gym.spaces.MultiBinary() if isinstance(space.n, (int, np.integer)):
            return (2,) * int(space.n)
    raise RequestError(f"actions of {space} cannot be masked: those of Discrete, and of flat MultiDiscrete and MultiBinary, can")


def with_mask(observation_space: gym.Space, action_space: gym.Space) -> gym.spaces.Dict:
    """The observation space with a mask as its last part.

    Raises:
        RequestError: if the action space does not support masks, or the observation already has a part of this name.
    """
    parts = dict(observation_space.spaces) if isinstance(observation_space, gym.spaces.Dict) else {OBSERVATION: observation_space}
    if MASK in parts:
        raise RequestError(f"the observation has a part {MASK!r} already; rename it")
    # A plain dict's keys would be sorted.
    return gym.spaces.Dict(OrderedDict({**parts, MASK: gym.spaces.MultiBinary(sum(mask_sizes(action_space)))}))


def has_mask(observation_space: gym.Space) -> bool:
    """Whether observations contain a mask."""
    return isinstance(observation_space, gym.spaces.Dict) and MASK in observation_space.spaces


def mask_among(observations: Tree) -> np.ndarray | None:
    """The mask of an observation, or of a batch of observations; None if there is none."""
    return observations.get(MASK) if isinstance(observations, dict) else None


def space_without_mask(observation_space: gym.Space) -> gym.Space:
    """The observation space without the mask; the inverse of ``with_mask``."""
    if not has_mask(observation_space):
        return observation_space
    parts = without_mask(observation_space.spaces)  # type: ignore[attr-defined]
    return gym.spaces.Dict(OrderedDict(parts)) if isinstance(parts, dict) else parts


def without_mask(observations: Tree) -> Tree:
    """Observations with their mask removed."""
    rest = {key: leaf for key, leaf in observations.items() if key != MASK}
    return rest[OBSERVATION] if rest.keys() == {OBSERVATION} else rest


def allows(action_space: gym.Space, mask: np.ndarray, action: Any) -> bool:
    """Whether a mask ``[entries]`` allows an action. If it allows no choice of a component, all choices count as allowed."""
    sizes = mask_sizes(action_space)
    start = int(action_space.start) if isinstance(action_space, gym.spaces.Discrete) else 0
    choices = np.atleast_1d(np.asarray(action)) - start
    parts = np.split(np.asarray(mask) != 0, np.cumsum(sizes)[:-1])
    return all(bool(part[choice]) or not part.any() for part, choice in zip(parts, choices, strict=True))


def draw_allowed(action_space: gym.Space, mask: np.ndarray, stream: np.random.Generator) -> Any:
    """A uniformly drawn allowed action of the space's dtype. If no choice of a component is allowed, all of its choices are."""
    sizes = mask_sizes(action_space)
    parts = np.split(np.asarray(mask) != 0, np.cumsum(sizes)[:-1])
    drawn = [stream.choice(np.flatnonzero(part if part.any() else ~part)) for part in parts]
    if isinstance(action_space, gym.spaces.Discrete):
        return action_space.dtype.type(drawn[0] + action_space.start)
    return np.array(drawn, action_space.dtype)
