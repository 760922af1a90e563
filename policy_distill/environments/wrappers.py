"""Wrappers that Gymnasium lacks: those of sb3-contrib and Stable-Baselines3, and wrappers of this package."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from policy_distill.config import RequestError
from policy_distill.support.images import channels_come_first, is_image
from policy_distill.support.trees import leaf_spaces
from policy_distill.support.untrusted import MAX_ELEMENTS


class FreshWorld(gym.Wrapper):
    """Create a new Box2D world for each episode of Gymnasium's BipedalWalker, as its LunarLander does.

    BipedalWalker reuses one world, whose contacts and broad phase carry state from one episode to the next: returns of the same seed
    differed by up to 2.0, depending on the episodes before.
    """

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        from Box2D import b2World

        walker: Any = self.unwrapped
        walker._destroy()
        walker.terrain, walker.world = [], b2World()  # bodies of the old world do not exist in the new one
        return super().reset(**kwargs)


class NoLastAction(gym.Wrapper):
    """Begin each episode of MinAtar without a last action, as its first one does.

    It repeats the last action with probability 0.1, and in an episode's first step that was the last one of the episode before.
    """

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        game: Any = self.unwrapped
        game.game.last_action = 0
        return super().reset(**kwargs)


FRESH = {"gymnasium.envs.box2d.bipedal_walker:": FreshWorld, "minatar.gym:": NoLastAction}
"""Beginning of an entry point -> the wrapper without which an episode would depend on the one before."""


class TimeFeatureWrapper(gym.ObservationWrapper):
    """Append the remaining fraction of the episode, from 1 to 0 (Pardo et al. 2018, arXiv 1712.00378), as in sb3-contrib.

    Args:
        env: environment with vector observations, or Dict observations with a vector under ``observation``, to which it is appended.
        max_steps: episode length, if the environment's registration has no limit.
        test_mode: always append 1.
    """

    def __init__(self, env: gym.Env, max_steps: int = 1000, test_mode: bool = False) -> None:
        super().__init__(env)
        inner = env.observation_space
        parts = dict(inner.spaces) if isinstance(inner, gym.spaces.Dict) else {}
        space = _vector_space(parts.get("observation", inner), "TimeFeatureWrapper")
        low, high = np.append(space.low, 0.0), np.append(space.high, 1.0)
        self._space = gym.spaces.Box(low.astype(space.dtype), high.astype(space.dtype), dtype=space.dtype)
        self.observation_space = gym.spaces.Dict(OrderedDict(parts | {"observation": self._space})) if parts else self._space
        check_count("TimeFeatureWrapper", "max_steps", max_steps)
        self._max_steps = (env.spec.max_episode_steps if env.spec else None) or max_steps
        self._test_mode = test_mode
        self._step = 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._step = 0
        return super().reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._step += 1
        return super().step(action)

    def observation(self, observation: Any) -> Any:
        if isinstance(observation, dict):
            return observation | {"observation": self._timed(observation["observation"])}
        return self._timed(observation)

    def _timed(self, vector: np.ndarray) -> np.ndarray:
        remaining = 1.0 if self._test_mode else 1 - self._step / self._max_steps
        return np.append(vector, np.array(remaining, self._space.dtype))


class PadObservation(gym.ObservationWrapper):
    """Keep the first ``keep`` numbers and pad with zeros up to ``size``, for older versions whose observations had constant zeros.

    Args:
        env: environment with vector observations.
        size: length of the padded vector.
        keep: number of components to keep; left out: all.
    """

    def __init__(self, env: gym.Env, size: int, keep: int | None = None) -> None:
        super().__init__(env)
        space = _vector_space(env.observation_space, "PadObservation")
        check_size("PadObservation", size, 1)
        self._keep = space.shape[0] if keep is None else keep
        if not 0 <= self._keep <= min(size, space.shape[0]):
            raise RequestError(f"the wrapper PadObservation cannot keep {self._keep} of {space.shape[0]} numbers in {size}")
        self._zeros = np.zeros(size - self._keep, space.dtype)
        low, high = np.append(space.low[: self._keep], self._zeros - np.inf), np.append(space.high[: self._keep], self._zeros + np.inf)
        self.observation_space = gym.spaces.Box(low, high, dtype=space.dtype)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return np.append(observation[: self._keep], self._zeros)


STACK_BEGINS = "policy_distill_stack_begins"
"""Key in the info of a step after which a frame stack begins anew, although the episode goes on."""


class FrameStack(gym.ObservationWrapper):
    """Concatenate the last ``n_stack`` observations, the newest last, as Stable-Baselines3's VecFrameStack: vectors, images, Dicts of them.

    Images are stacked channel by channel, arrays of other kinds along the last axis.

    Args:
        env: environment with observations of one Box, or of a Dict of boxes.
        n_stack: number of observations.
        padding: vector for the frames before an episode's first; left out: zeros. For an agent that normalised each frame before stacking,
            it is the mean, which is normalised to zero.
        channels_order: ``first`` or ``last``, the axis along which images are stacked; left out: as their shape tells. By key for a Dict.
    """

    def __init__(
        self,
        env: gym.Env,
        n_stack: int,
        padding: Sequence[float] | None = None,
        channels_order: str | Mapping[str, str | None] | None = None,
    ) -> None:
        super().__init__(env)
        parts = leaf_spaces(env.observation_space)
        orders = channels_order if isinstance(channels_order, Mapping) else dict.fromkeys(parts, channels_order)
        self.frames = {key: _Frames(part, n_stack, padding, orders.get(key)) for key, part in parts.items()}
        self._is_dict = isinstance(env.observation_space, gym.spaces.Dict)
        spaces: OrderedDict[str, gym.Space] = OrderedDict((key, frames.space) for key, frames in self.frames.items())
        self.observation_space = gym.spaces.Dict(spaces) if self._is_dict else spaces[""]

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._begin()
        return super().reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if STACK_BEGINS in info:
            self._begin()
        return self.observation(observation), reward, terminated, truncated, info

    def observation(self, observation: Any) -> Any:
        if self._is_dict:
            return {key: frames.push(observation[key]) for key, frames in self.frames.items()}
        return self.frames[""].push(observation)

    def _begin(self) -> None:
        for frames in self.frames.values():
            frames.begin()


class _Frames:
    """The last ``count`` frames of one array, along ``axis``; see ``FrameStack``."""

    def __init__(self, space: gym.Space, n_stack: int, padding: Sequence[float] | None, order: str | None) -> None:
        if not isinstance(space, gym.spaces.Box) or not space.shape:
            raise RequestError(f"the wrapper VecFrameStack needs boxes as observation, not {space}")
        if order not in (None, "first", "last"):
            raise RequestError(f"the wrapper VecFrameStack has the channels_order {order!r}; it must be first or last")
        check_size("VecFrameStack", n_stack, math.prod(space.shape))
        self.count = n_stack
        self.axis = 0 if order == "first" or (order is None and is_image(space) and channels_come_first(space)) else -1
        low, high = (np.concatenate([bound] * n_stack, self.axis) for bound in (space.low, space.high))
        self.space = gym.spaces.Box(low, high, dtype=space.dtype.type)
        if padding is not None and space.shape != (len(padding),):
            raise RequestError(f"the wrapper VecFrameStack has a padding of {len(padding)} numbers for observations of shape {space.shape}")
        frame = np.zeros(space.shape, space.dtype) if padding is None else np.array(padding, space.dtype)
        self._empty = self._stacked = np.concatenate([frame] * n_stack, self.axis)
        self._older = (slice(frame.shape[0], None),) if self.axis == 0 else (..., slice(frame.shape[-1], None))

    def begin(self) -> None:
        self._stacked = self._empty

    def push(self, frame: np.ndarray) -> np.ndarray:
        """The stack with ``frame`` at its end, a fresh array."""
        self._stacked = np.concatenate([self._stacked[self._older], frame], self.axis)
        return self._stacked


def _vector_space(space: gym.Space, wrapper: str) -> gym.spaces.Box:
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise RequestError(f"the wrapper {wrapper} needs a vector as observation, not {space}")
    return space


def check_size(wrapper: str, number: int, size: int) -> None:
    """Refuse ``number`` arrays of ``size`` numbers that no memory holds: the arguments may come from a file.

    Raises:
        RequestError: if these are none, or more than ``MAX_ELEMENTS`` numbers.
    """
    if type(number) is not int or not 1 <= number * size <= MAX_ELEMENTS:
        raise RequestError(f"the wrapper {wrapper} cannot make {number} times {size} numbers: between 1 and {MAX_ELEMENTS:,} are supported")


def check_count(wrapper: str, name: str, value: object) -> None:
    """Refuse an argument that is no positive number of steps.

    Raises:
        RequestError: naming it.
    """
    if type(value) is not int or value < 1:
        raise RequestError(f"the wrapper {wrapper} has the {name} {value!r}; it must be a whole number >= 1")
