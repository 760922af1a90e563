"""Environments of any spaces that draw observations and masks, for agents that were trained with masks."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from policy_distill.environments.action_masks import mask_sizes
from policy_distill.environments.specs import EnvironmentSpec

LENGTH = 25


class Drawn(gym.Env):
    """Each step draws an observation and a mask, which allows at least one choice of each component; the first allowed ones earn most."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self._sizes = mask_sizes(action_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._left = LENGTH
        return self._next(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        chosen = np.atleast_1d(action)
        first = [int(np.flatnonzero(part)[0]) for part in self._parts]
        reward = float(np.mean(chosen == first))
        self._left -= 1
        return self._next(), reward, self._left == 0, False, {}

    def action_masks(self) -> np.ndarray:
        return np.concatenate(self._parts)

    def _next(self) -> Any:
        self._parts = []
        for size in self._sizes:
            part = self.np_random.random(size) < 0.4
            part[self.np_random.integers(size)] = True
            self._parts.append(part)
        return self._drawn(self.observation_space)

    def _drawn(self, space: gym.Space) -> Any:
        match space:
            case gym.spaces.Dict():
                return {key: self._drawn(part) for key, part in space.items()}
            case gym.spaces.MultiDiscrete():
                return self.np_random.integers(space.nvec).astype(space.dtype)
            case gym.spaces.Box() if space.dtype.kind in "iu":
                return self.np_random.integers(space.low, space.high, endpoint=True).astype(space.dtype)
            case gym.spaces.Box():
                return self.np_random.uniform(space.low, space.high).astype(space.dtype)
        raise TypeError(f"{space} is not drawn")


PARTS = gym.spaces.Dict({"far": gym.spaces.Box(-1, 1, (6,), np.float32), "near": gym.spaces.MultiDiscrete([3, 4])})
SPACES: dict[str, tuple[gym.Space, gym.Space]] = {
    "choices": (PARTS, gym.spaces.Discrete(7)),
    "several": (gym.spaces.Box(-1, 1, (6,), np.float32), gym.spaces.MultiDiscrete([3, 2, 4])),
    "switches": (gym.spaces.Box(-3, 3, (6,), np.int32), gym.spaces.MultiBinary(4)),
    "snake": (gym.spaces.Box(-1, 1, (12, 12), np.float32), gym.spaces.Discrete(4)),
    "integers": (gym.spaces.Box(-1, 48, (12,), np.int32), gym.spaces.Discrete(16)),
    "bins": (
        gym.spaces.Dict({"height_map": gym.spaces.MultiDiscrete([11] * 100), "visible_box_sizes": gym.spaces.MultiDiscrete([11] * 15)}),
        gym.spaces.Discrete(500),
    ),
}
MASKED = {name: EnvironmentSpec(f"tests/Masked-{name}-v0") for name in SPACES}


def make_drawn(name: str) -> Drawn:
    return Drawn(*SPACES[name])


for known in SPACES:
    gym.register(f"tests/Masked-{known}-v0", "tests.masked_worlds:make_drawn", kwargs={"name": known})
