"""Environments that are not written by the book, as many are: each differs from ``Polite`` in one thing."""

from __future__ import annotations

import random
import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from policy_distill.environments.specs import EnvironmentSpec

LENGTH = 20


class Polite(gym.Env):
    """Move a point to a goal, one of three ways; after 20 steps it is over."""

    observation_space: gym.Space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.x, self.goal = self.np_random.uniform(-1, 1, 2)
        self.t = 0
        return np.array([self.x, self.goal], np.float32), {}

    def step(self, action: Any) -> Any:
        self.x = float(np.clip(self.x + 0.2 * (int(action) - 1), -1, 1))
        self.t += 1
        return np.array([self.x, self.goal], np.float32), -abs(self.x - self.goal), False, self.t >= LENGTH, {}


class RewardArray(Polite):
    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, np.array([reward]), *rest


class RewardWhole(Polite):
    """The reward is a whole number of numpy's."""

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, np.int64(round(reward)), *rest


class Flags(Polite):
    """Flags are arrays of one, the observation is a list."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation.tolist(), reward, np.array([terminated]), np.array([truncated]), info


class FirstWhole(Polite):
    """The first observation is made of ints, later ones of float64."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.x = 0.0
        return np.array([0, 0]), {}

    def step(self, action: Any) -> Any:
        _, *rest = super().step(action)
        return np.array([self.x, self.goal]), *rest


class Row(Polite):
    """Observations have a leading dimension of one, which numpy's assignment drops."""

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return observation[None], *rest


class Column(Polite):
    """Observations have a trailing one, which it does not."""

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return observation[:, None], *rest


class NoSeed(Polite):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class SeedOnly(Polite):
    def reset(self, seed: int | None = None) -> Any:  # type: ignore[override]
        return super().reset(seed=seed)


class OldReset(Polite):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed)[0]


class OldStep(Polite):
    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, info


class Argument(Polite):
    def __init__(self, size: int) -> None:
        self.size = size


class FileMissing(Polite):
    def __init__(self) -> None:
        open("/nonexistent/robot.urdf")  # noqa: SIM115


class Breaks(Polite):
    """Fails in its eighth step."""

    def step(self, action: Any) -> Any:
        assert self.t < 7, "the simulator lost\nits connection"
        return super().step(action)


class BreaksLate(Polite):
    """Fails in the thirteenth step of some episodes."""

    def step(self, action: Any) -> Any:
        assert self.t < 12 or self.goal < 0.5, "the wheel came off"
        return super().step(action)


class NanObservation(Polite):
    """In its thirteenth step."""

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        if self.t == 13:
            observation[1] = np.nan
        return observation, *rest


class InfiniteObservation(Polite):
    """In its first, in an episode whose goal lies to the right; its space allows it."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observation, info = super().reset(seed=seed)
        return observation if self.goal < 0.5 else np.array([np.inf, 0.0], np.float32), info


class NanReward(Polite):
    """In the thirteenth step of some episodes."""

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, np.nan if self.t == 13 and self.goal > 0.5 else reward, *rest


class Endless(Polite):
    def step(self, action: Any) -> Any:
        return *super().step(action)[:3], False, {}


class Hangs(Polite):
    """In the fifteenth step of some episodes."""

    def step(self, action: Any) -> Any:
        if self.t == 14 and self.goal > 0.5:
            time.sleep(600)
        return super().step(action)


class HangsAtOnce(Polite):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        time.sleep(600)


class Scenarios(Polite):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        assert seed is None or 0 <= seed < 10, f"there is no scenario {seed}"
        return super().reset(seed=seed)


class DrawsGlobally(Polite):
    """Begins where the global generators say, whatever the seed."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.x, self.goal = np.random.uniform(-1, 1), random.uniform(-1, 0) + float(torch.rand(()))  # noqa: NPY002
        return np.array([self.x, self.goal], np.float32), {}


class DrawsGloballyInSteps(DrawsGlobally):
    def step(self, action: Any) -> Any:
        self.x += np.random.normal(0, 0.05)  # noqa: NPY002
        return super().step(action)


class Clock(Polite):
    """Begins where the time of the day says."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.x = time.perf_counter() % 1.0
        return np.array([self.x, self.goal], np.float32), {}


class OutOfRange(Polite):
    """Its observations are numbers from 0 to 3; after a while it says 4."""

    observation_space: gym.Space = gym.spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return 0, {}

    def step(self, action: Any) -> Any:
        _, *rest = super().step(action)
        return self.t % 5 if self.t > 12 else self.t % 4, *rest


class OutOfRangeArray(OutOfRange):
    """The same numbers, as arrays without a dimension."""

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return np.array(observation), *rest


class OneOutOfRange(OutOfRange):
    """The same number, beside another one, which counts from 1."""

    observation_space = gym.spaces.MultiDiscrete([4, 3], start=[0, 1])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return np.array([0, 1]), super().reset(seed=seed)[1]

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return np.array([observation, 3]), *rest


KINDS: list[type[Polite]] = [Polite, *Polite.__subclasses__(), DrawsGloballyInSteps, OutOfRangeArray, OneOutOfRange]
for _kind in KINDS:
    gym.register(f"tests/{_kind.__name__}-v0", entry_point=_kind)  # type: ignore[arg-type]


def spec_of(kind: type[Polite]) -> EnvironmentSpec:
    return EnvironmentSpec(f"tests/{kind.__name__}-v0")
