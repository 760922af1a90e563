"""Which observations are stacks of frames, as the wrappers that stack them say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import FrameStackObservation, OrderEnforcing, TimeLimit

from policy_distill.environments.border import Border
from policy_distill.environments.image_wrappers import TransposeImage
from policy_distill.environments.specs import EnvironmentSpec, make
from policy_distill.environments.wrappers import FrameStack
from policy_distill.support.trees import leaf_spaces

PASSING = (Border, TimeLimit, OrderEnforcing, gym.ActionWrapper, gym.RewardWrapper)
"""Wrappers that return observations as they are."""


@dataclass(frozen=True)
class StackOf:
    """An array of ``count`` frames, the newest last.

    Attributes:
        count: number of frames.
        axis: axis of an observation along which frames are concatenated: 0 or -1.
    """

    count: int
    axis: int


def frame_stacks(spec: EnvironmentSpec) -> Mapping[str, StackOf]:
    """The stacks of images among an environment's observations, by key; ``""`` for an observation without keys.

    Stacks of vectors are left out, and stacks that another wrapper may change.
    """
    if not any("Stack" in name for name, _ in spec.wrappers):
        return {}
    env = make(spec)
    try:
        return stacks_of(env)
    finally:
        env.close()


def stacks_of(env: gym.Env) -> Mapping[str, StackOf]:
    """``frame_stacks`` of an environment that is made."""
    parts, turned = leaf_spaces(env.observation_space), set[str]()
    inner: Any = env
    while isinstance(inner, (*PASSING, TransposeImage)):
        if isinstance(inner, TransposeImage):
            turned.update(inner.turned)
        inner = inner.env
    if isinstance(inner, FrameStack):
        stacks = {key: StackOf(frames.count, 0 if key in turned else frames.axis) for key, frames in inner.frames.items()}
    elif isinstance(inner, FrameStackObservation) and not turned:
        stacks = {key: StackOf(int(inner.stack_size), 0) for key in parts}
    else:
        return {}
    return {key: stack for key, stack in stacks.items() if stack.count > 1 and len(parts[key].shape or ()) >= 3}
