"""The RL Zoo's wrappers for vector observations, with identical behaviour; the Zoo need not be installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from policy_distill.config import RequestError
from policy_distill.environments.wrappers import check_count, check_size

Step = tuple[Any, Any, bool, bool, dict[str, Any]]


class HistoryWrapper(gym.Wrapper):
    """The last ``horizon`` observations, then the last ``horizon`` actions, the newest last; zeros before an episode's first."""

    def __init__(self, env: gym.Env, horizon: int = 2) -> None:
        super().__init__(env)
        seen, acted = env.observation_space, _box_of_actions(env, "HistoryWrapper")
        if not isinstance(seen, gym.spaces.Box) or len(seen.shape) != 1 or len(acted.shape) != 1:
            raise RequestError("the wrapper HistoryWrapper needs vectors as observation and action")
        check_size("HistoryWrapper", horizon, seen.shape[0] + acted.shape[0])
        low, high = (np.concatenate([np.tile(one, horizon), np.tile(other, horizon)]) for one, other in
                     ((seen.low, acted.low), (seen.high, acted.high)))  # fmt: skip
        self.observation_space = gym.spaces.Box(low, high, dtype=seen.dtype)
        self._none = np.zeros(seen.shape[0] * horizon, seen.dtype), np.zeros(acted.shape[0] * horizon, acted.dtype)
        self._observations, self._actions = self._none

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(**kwargs)
        self._observations, self._actions = self._none
        return self._joined(observation), info

    def step(self, action: Any) -> Step:
        observation, reward, terminated, truncated, info = super().step(action)
        self._actions = _shifted(self._actions, action)
        return self._joined(observation), reward, terminated, truncated, info

    def _joined(self, observation: np.ndarray) -> np.ndarray:
        self._observations = _shifted(self._observations, observation)
        return np.concatenate([self._observations, self._actions]).astype(self.observation_space.dtype, copy=False)


class ActionNoiseWrapper(gym.Wrapper):
    """Add Gaussian noise to each action; the same noise in an episode with the same seed."""

    def __init__(self, env: gym.Env, noise_std: float = 0.1) -> None:
        super().__init__(env)
        if not isinstance(noise_std, int | float) or not noise_std >= 0:
            raise RequestError(f"the wrapper ActionNoiseWrapper has the noise_std {noise_std!r}; it must be a number >= 0")
        self._space, self._std = _box_of_actions(env, "ActionNoiseWrapper"), noise_std
        self._noise = np.random.default_rng(0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._noise = np.random.default_rng([seed, 2])  # another stream than the environment's own
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Step:
        noisy = action + self._noise.normal(0.0, self._std, np.shape(action))
        return super().step(np.clip(noisy, self._space.low, self._space.high).astype(self._space.dtype))


class ActionSmoothingWrapper(gym.Wrapper):
    """Step with ``smoothing_coef * previous + (1 - smoothing_coef) * action``, a moving average that begins at zero."""

    def __init__(self, env: gym.Env, smoothing_coef: float = 0.0) -> None:
        super().__init__(env)
        space = _box_of_actions(env, "ActionSmoothingWrapper")
        if not isinstance(smoothing_coef, int | float):
            raise RequestError(f"the wrapper ActionSmoothingWrapper has the smoothing_coef {smoothing_coef!r}; it must be a number")
        self._coefficient, self._none = smoothing_coef, np.zeros(space.shape, space.dtype)
        self._smoothed = self._none

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._smoothed = self._none
        return super().reset(**kwargs)

    def step(self, action: Any) -> Step:
        self._smoothed = self._coefficient * self._smoothed + (1 - self._coefficient) * np.asarray(action)
        return super().step(self._smoothed)


class DelayedRewardWrapper(gym.Wrapper):
    """Give the summed reward of every ``delay`` steps in the last of them, or at the end of the episode."""

    def __init__(self, env: gym.Env, delay: int = 10) -> None:
        super().__init__(env)
        check_count("DelayedRewardWrapper", "delay", delay)
        self._delay, self._step, self._owed = delay, 0, 0.0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._step, self._owed = 0, 0.0
        return super().reset(**kwargs)

    def step(self, action: Any) -> Step:
        observation, reward, terminated, truncated, info = super().step(action)
        self._step += 1
        self._owed += float(reward)
        paid = 0.0
        if self._step % self._delay == 0 or terminated or truncated:
            paid, self._owed = self._owed, 0.0
        return observation, paid, terminated, truncated, info


class FrameSkip(gym.Wrapper):
    """Repeat each action ``skip`` times and add the rewards up."""

    def __init__(self, env: gym.Env, skip: int = 4) -> None:
        super().__init__(env)
        check_count("FrameSkip", "skip", skip)
        self._skip = skip

    def step(self, action: Any) -> Step:
        total = 0.0
        for _ in range(self._skip):
            observation, reward, terminated, truncated, info = super().step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


class MaskVelocityWrapper(gym.ObservationWrapper):
    """Zeros in place of the velocities."""

    VELOCITIES: Mapping[str, tuple[int, ...]] = {
        "CartPole": (1, 3),
        "MountainCar": (1,),
        "MountainCarContinuous": (1,),
        "Pendulum": (2,),
        "LunarLander": (2, 3, 5),
        "LunarLanderContinuous": (2, 3, 5),
    }

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        name = env.unwrapped.spec.name if env.unwrapped.spec else ""
        if name not in self.VELOCITIES:
            raise RequestError(f"the wrapper MaskVelocityWrapper does not know which of {name} are velocities")
        self._mask = np.ones(env.observation_space.shape or (), env.observation_space.dtype)
        self._mask[list(self.VELOCITIES[name])] = 0

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation * self._mask


def _shifted(history: np.ndarray, newest: Any) -> np.ndarray:
    """A fresh array without its oldest entry, with ``newest`` at the end."""
    newest = np.asarray(newest, history.dtype)
    return np.append(history[len(newest) :], newest)


def _box_of_actions(env: gym.Env, wrapper: str) -> gym.spaces.Box:
    if not isinstance(env.action_space, gym.spaces.Box):
        raise RequestError(f"the wrapper {wrapper} needs continuous actions, not {env.action_space}")
    return env.action_space
