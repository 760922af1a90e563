"""Environments as Stable-Baselines3's PPO steps them: in this process, or shared out among processes; what comes of it is the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from multiprocessing.sharedctypes import RawArray
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from policy_distill.actions import Box
from policy_distill.processes import Remote, answers_of

Ended = dict[int, dict[str, Any]]
"""Index of an environment whose episode ended with this step -> what Stable-Baselines3 wants to know of it."""


class SharedArray:
    """Zeros that processes which are started with it see alike."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._memory = RawArray("b", math.prod(shape) * self._dtype.itemsize)

    def view(self) -> np.ndarray:
        """The array itself."""
        return np.frombuffer(self._memory, self._dtype).reshape(self._shape)


class LeanVecEnv(VecEnv):
    """Environments that tell, beside observation and reward, of an episode's end alone.

    Continuous actions are in box units, and clipped to the bounds. The step that ends an episode reports its return and length, as
    ``Monitor`` does.

    Args:
        env_fns: make one environment each.
        workers: processes that step them side by side; 0: all of them here, one after the other.
    """

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env]], workers: int = 0) -> None:
        example = env_fns[0]()
        super().__init__(len(env_fns), example.observation_space, example.action_space)
        example.close()
        self._inner: Any = self.action_space
        if isinstance(self._inner, gym.spaces.Box):
            self._scale, self._offset = (values.reshape(self._inner.shape) for values in Box.from_space(self._inner).affine())
            self.action_space = gym.spaces.Box(-1.0, 1.0, self._inner.shape)
        self._returns, self._lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, np.int64)
        count = min(workers, self.num_envs)
        spaces: tuple[Any, ...] = (example.observation_space, self._inner, gym.spaces.Box(-np.inf, np.inf, (), np.float64))
        shared = [SharedArray((self.num_envs, *space.shape), space.dtype) for space in spaces]
        self._observations, self._actions, self._rewards = (array.view() for array in shared)
        self._here = None if count else _Group(env_fns, 0, *shared)
        shares = np.array_split(np.arange(self.num_envs), count) if count else []
        self._workers = [Remote(_Group, env_fns[share[0] : share[-1] + 1], int(share[0]), *shared) for share in shares]

    def reset(self) -> Any:
        self._returns[:], self._lengths[:] = 0.0, 0
        if self._here is not None:
            self._here.reset(self._seeds)
        for worker in self._workers:
            worker.send("reset", (self._seeds,))
        answers_of(self._workers)
        self._reset_seeds()
        return np.array(self._observations)

    def step_async(self, actions: np.ndarray) -> None:
        if isinstance(self._inner, gym.spaces.Box):  # rounding takes none of them past the bounds
            actions = np.clip(actions * self._scale + self._offset, self._inner.low, self._inner.high)
        self._actions[:] = actions
        for worker in self._workers:
            worker.send("step")

    def step_wait(self) -> Any:
        parts = answers_of(self._workers) if self._here is None else [self._here.step()]
        self._returns += self._rewards
        self._lengths += 1
        dones = np.zeros(self.num_envs, bool)
        infos: list[dict[str, Any]] = [{}] * self.num_envs
        for ended in parts:
            for index, info in ended.items():
                dones[index] = True
                infos[index] = {**info, "episode": {"r": float(self._returns[index]), "l": int(self._lengths[index])}}
                self._returns[index], self._lengths[index] = 0.0, 0
        return np.array(self._observations), np.array(self._rewards, np.float32), dones, infos

    def close(self) -> None:
        if self._here is not None:
            self._here.close()
        for worker in self._workers:
            worker.close()
        self._workers = []

    # What nobody here asks for.

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        if attr_name == "render_mode":
            return [None] * self.num_envs
        raise AttributeError(attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


class _Group:
    """Environments stepped one after the other, which read and write their rows of arrays that hold those of all.

    Args:
        env_fns: make one environment each.
        first: row of the first of them.
        observations: ``[N, ...]`` written after each step; the next episode's first where one ended.
        actions: ``[N, ...]`` in the environments' own units, read.
        rewards: ``[N]`` written after each step.
    """

    def __init__(
        self, env_fns: Sequence[Callable[[], gym.Env]], first: int, observations: SharedArray, actions: SharedArray, rewards: SharedArray
    ) -> None:
        self._envs = [make() for make in env_fns]
        self._first = first
        self._observations, self._actions, self._rewards = observations.view(), actions.view(), rewards.view()

    def reset(self, seeds: Sequence[int | None]) -> None:
        for index, env in enumerate(self._envs, self._first):
            self._observations[index], _ = env.reset(seed=seeds[index])

    def step(self) -> Ended:
        ended: Ended = {}
        for index, env in enumerate(self._envs, self._first):
            observation, self._rewards[index], terminated, truncated, _ = env.step(self._actions[index].copy())
            if terminated or truncated:  # the environment may write the next observation into the same array
                ended[index] = {"TimeLimit.truncated": truncated and not terminated, "terminal_observation": np.array(observation)}
                observation, _ = env.reset()
            self._observations[index] = observation
        return ended

    def close(self) -> None:
        for env in self._envs:
            env.close()
