"""The outermost wrapper of environments, which are foreign code: it converts outputs to their spaces and errors to one line."""

from __future__ import annotations

import contextlib
import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from policy_distill.config import EnvironmentCrash, EnvironmentFault
from policy_distill.support.trees import Tree, is_mapping, leaves

NEVER_ENDING = 100_000
"""Steps after which an episode without a time limit is an error. Atari's longest episodes, with frame skip, have 27,000."""
FRAMES = "max_num_frames_per_episode"
"""Setting of ale-py, and argument of its environments: the number of frames after which a game is truncated; 0: no limit."""
OLD_API = (
    "this is the API of gym before 0.26: let reset return (observation, info) and step (observation, reward, terminated, truncated, info)"
)

on_step: Callable[[str], object] | None = None
"""Receives ``where()`` before each reset and step of environments that are made while it is set. It costs 2 us a step, so it is set only in
processes that may die in an environment; see ``rollouts.processes``."""


class Border(gym.Wrapper):
    """The outermost wrapper of every environment.

    - Observations, and the parts of a Dict, get the dtype and shape of their space: others are assigned to a buffer, as in
      Stable-Baselines3's DummyVecEnv. The keys of a Dict are in the space's order. Rewards are finite floats, ``terminated`` and
      ``truncated`` are bools.
    - Python's, numpy's and torch's global generators are seeded with each episode's seed. Otherwise an environment that draws from them
      would repeat the same episodes in each worker process.
    - Errors become ``EnvironmentFault``, which names the environment, the episode's seed and the step.
    - It replaces Gymnasium's TimeLimit if that is the outermost wrapper, which saves its cost. An episode without a time limit is an error
      after ``NEVER_ENDING`` steps.

    Observations are not checked for NaN here: checking a whole batch is cheaper, see ``Finite``.

    Args:
        env: the environment with all other wrappers.
        name: name of the environment in messages.

    Attributes:
        steps: number of steps begun in the current episode.
        episodes: number of episodes begun.
        episode_seed: last seed given to ``reset``; None if there was none.
        has_time_limit: whether Gymnasium's TimeLimit is among the wrappers, or the environment is a game of Atari, which ends by itself
            after a number of frames (108,000, unless its argument says otherwise).
    """

    def __init__(self, env: gym.Env, name: str) -> None:
        replaces_limit = type(env) is gym.wrappers.TimeLimit
        limit: int | None = env._max_episode_steps if isinstance(env, gym.wrappers.TimeLimit) and replaces_limit else None
        super().__init__(_with_full_reset(env.env if isinstance(env, gym.Wrapper) and replaces_limit else env))
        self.name = name
        self.steps = self.episodes = 0
        self.episode_seed: int | None = None
        self._episodes_since_seed = 0
        self.has_time_limit = limit is not None or _has_time_limit(env)
        self._truncates = limit is not None
        self._last_step = limit if limit is not None else (2**62 if self.has_time_limit else NEVER_ENDING)
        self._step = self.env.step if on_step is None else self._announced_step
        space = self.observation_space
        needs_no_check = _is_array(space) and not isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete)
        self._shape, self._dtype = (space.shape, space.dtype) if needs_no_check else (None, None)
        self._parts = dict(space.spaces) if isinstance(space, gym.spaces.Dict) else None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode. Evaluation always gives a seed."""
        self.steps = 0
        self.episodes += 1
        if seed is None:
            self._episodes_since_seed += 1
        else:
            self.episode_seed, self._episodes_since_seed = seed, 0
            seed_global_generators(seed)
        if on_step is not None:
            on_step(self.where())
        try:
            result = self.env.reset(seed=seed, options=options)
        except Exception as error:
            raise self._raised(error, "reset") from error
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)):
            raise self.fault(f"reset returned no pair of observation and info; {OLD_API}")
        return self._converted(result[0]), dict(result[1])

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a step."""
        self.steps = steps = self.steps + 1
        try:
            observation, reward, terminated, truncated, info = self._step(action)
            if reward.__class__ is not float:
                reward = self._number(reward)
            if terminated is not False:
                terminated = bool(terminated)
            if truncated is not False:
                truncated = bool(truncated)
        except Exception as error:
            raise self._raised(error, "step", action) from error
        if reward - reward != 0.0:  # NaN, or infinite
            raise self.fault(f"the reward is {reward}, and so would be the return: correct the environment", action)
        if observation.__class__ is not np.ndarray or observation.dtype is not self._dtype or observation.shape != self._shape:
            observation = self._converted(observation)
        if steps >= self._last_step:
            if not self._truncates and not (terminated or truncated):
                raise self.fault("there is no time limit, and this episode did not end; give --max-episode-steps, for example 1000")
            truncated = truncated or self._truncates
        return observation, reward, terminated, truncated, info

    def _announced_step(self, action: Any) -> Any:
        if on_step is not None:
            on_step(self.where())
        return self.env.step(action)

    def fault(self, what: str, action: Any = None, kind: type[EnvironmentFault] = EnvironmentFault) -> EnvironmentFault:
        """The exception for the problem ``what`` in the current episode and step, after ``action``."""
        if action is not None and not _finite(action):
            what = f"the policy returned {np.asarray(action)}, and then {what}"
            kind = EnvironmentFault
        return kind(f"{self.where()}: {what}")

    def where(self) -> str:
        """Description of the environment, the episode's seed and the step."""
        seed = "without a seed" if self.episode_seed is None else f"seed {self.episode_seed}"
        if self._episodes_since_seed and self.episode_seed is not None:
            seed += f" and {self._episodes_since_seed} episodes later"
        return f"{self.name}, {seed}, {f'step {self.steps}' if self.steps else 'reset'}"

    def _raised(self, error: Exception, where: str, action: Any = None) -> EnvironmentFault:
        if isinstance(error, EnvironmentFault):
            return error
        text = " ".join(str(error).split())
        if isinstance(error, ValueError) and "expected 5, got 4" in text:
            return self.fault(f"step returned four values; {OLD_API}")
        hint = "; correct the environment, or name another with --env"
        if where == "reset" and self.episode_seed is not None:
            hint = "; each episode has its own seed, from 0 to 2**31: let reset accept all of them, for example modulo the supported range"
        return self.fault(f"{where} raised {type(error).__name__}: {text}{hint}", action, EnvironmentCrash)

    def _number(self, reward: Any) -> float:
        """A reward as a float, from any number or array of one element."""
        if isinstance(reward, int | float | np.floating | np.integer | np.bool_):
            return float(reward)
        array = np.asarray(reward)
        if array.size != 1 or array.dtype.kind not in "fiub":
            raise self.fault(f"the reward is {reward!r}, which is not one number")
        return float(array.reshape(-1)[0])

    def _converted(self, observation: Any) -> Any:
        """The observation with the space's dtype and shape."""
        if self._parts is None:
            return self._array(self.observation_space, observation, "observation")
        if not is_mapping(observation):
            raise self.fault(f"the observation is a {type(observation).__name__}, but its space is a Dict of {', '.join(self._parts)}")
        if observation.keys() != self._parts.keys():
            missing, extra = ([str(key) for key in keys] for keys in (self._parts.keys() - observation, observation.keys() - self._parts))
            what = f"lacks {', '.join(sorted(missing))}" if missing else f"has {', '.join(sorted(extra))}, which its space has not"
            raise self.fault(f"the observation {what}; make observation and space match")
        return {key: self._array(part, observation[key], f"observation's {key!r}") for key, part in self._parts.items()}

    def _array(self, space: gym.Space, observation: Any, name: str) -> Any:
        """An array with the space's dtype and shape, cast and broadcast by numpy's assignment as in Stable-Baselines3."""
        if space.shape is None or space.dtype is None:  # Tuple, Text, ...: no supported agent reads it
            return observation
        if observation.__class__ is np.ndarray and observation.dtype is space.dtype and observation.shape == space.shape:
            return observation if isinstance(space, gym.spaces.Box) else self._in_range(space, observation, name)
        if isinstance(space, gym.spaces.Discrete) and isinstance(observation, int | np.integer):  # the most frequent case, on a fast path
            return self._in_range(space, observation, name)
        buffer = np.empty(space.shape, space.dtype)
        try:
            if buffer.dtype.kind in "iub" and not _finite(observation):
                raise self.fault(f"the {name} is {observation}, but its space holds whole numbers")
            buffer[...] = observation
        except (TypeError, ValueError, OverflowError) as error:
            raise self.fault(
                f"the {name} {_shape_of(observation)} does not fit its space of shape {space.shape}; make observation and space match "
                f"({' '.join(str(error).split())})"
            ) from error
        return self._in_range(space, buffer, name)

    def _in_range(self, space: gym.Space, value: Any, name: str) -> Any:
        """``value`` with the space's dtype. Numbers of choices are checked, since one-hot encoding fails beyond them; bounds are not."""
        match space:
            case gym.spaces.Discrete():
                value = space.dtype.type(value)
                inside = space.start <= int(value) < space.start + space.n
            case gym.spaces.MultiDiscrete():
                choices = value.astype(np.int64) - space.start
                inside = bool(((choices >= 0) & (choices < space.nvec)).all())
            case _:
                return value
        if not inside:
            raise self.fault(f"the {name} is {value}, which is not in its space {space}")
        return value


class Finite:
    """A check that observations are finite: ``numpy.isfinite(rows).all()`` in a tenth of the time.

    Args:
        like: observations ``[B, ...]`` of the shape and dtype to check.
    """

    def __init__(self, like: Tree) -> None:
        self._parts = {key: Finite(part) for key, part in like.items()} if isinstance(like, dict) else {}
        self._finite = np.ones(like.shape, bool) if not isinstance(like, dict) and like.dtype.kind == "f" else None
        self._all = b"" if self._finite is None else self._finite.tobytes()

    def __call__(self, rows: Tree) -> bool:
        if self._finite is None:
            wrong = [
                key for key, part in self._parts.items() if not part(rows[key])
            ]  # evaluates every part, since first_wrong reads all results
            return not wrong
        np.isfinite(rows, self._finite)
        return self._finite.tobytes() == self._all

    def first_wrong(self) -> int:
        """The first row that is not finite in the last call."""
        return int(self._wrong_rows()[0])

    def _wrong_rows(self) -> np.ndarray:
        if self._finite is None:
            return np.unique(np.concatenate([np.zeros(0, np.int64), *(part._wrong_rows() for part in self._parts.values())]))
        return np.flatnonzero(~self._finite.reshape(len(self._finite), -1).all(axis=1))


def not_finite(env: gym.Env, observation: Tree, action: Any = None) -> EnvironmentFault:
    """The exception for an ``observation`` with NaN or infinity."""
    name = "observation's"
    if isinstance(observation, dict):
        key, observation = next((key, part) for key, part in observation.items() if not _finite(part))
        name += f" {key!r}: its"
    wrong = np.flatnonzero(~np.isfinite(observation))[0]
    value = observation.reshape(-1)[wrong]
    what = f"the {name} number {wrong} is {value}, for which every network returns NaN: correct the environment"
    assert isinstance(env, Border)
    return env.fault(what, action)


def is_finite(observation: Tree) -> bool:
    """Whether an observation holds neither NaN nor infinity."""
    return all(_finite(part) for part in leaves(observation))


def seed_global_generators(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators, which foreign code may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)


@contextlib.contextmanager
def own_random_state() -> Iterator[None]:
    """Restore the state of the global random generators at the end, so that code inside does not affect the caller's random numbers."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


class _FullReset(gym.Wrapper):
    """Adds missing arguments ``seed`` or ``options`` to an environment's ``reset``; the environment's generator is always seeded."""

    def __init__(self, env: gym.Env, accepted: frozenset[str]) -> None:
        super().__init__(env)
        self._accepted = accepted

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        arguments: dict[str, Any] = {name: value for name, value in (("seed", seed), ("options", options)) if name in self._accepted}
        if "seed" not in arguments:
            gym.Env.reset(self.env, seed=seed)  # seeds np_random and does nothing else
        return self.env.reset(**arguments)


def _with_full_reset(env: gym.Env) -> gym.Env:
    """The environment, with ``_FullReset`` around its innermost part if its ``reset`` lacks ``seed`` or ``options``."""
    inner = env.unwrapped
    parameters = inspect.signature(inner.reset).parameters
    accepted = frozenset({"seed", "options"} & set(parameters))
    if len(accepted) == 2 or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return env
    wrapped = _FullReset(inner, accepted)
    if env is inner:
        return wrapped
    outer = env
    while isinstance(outer, gym.Wrapper) and outer.env is not inner:
        outer = outer.env
    assert isinstance(outer, gym.Wrapper)
    outer.env = wrapped
    return env


def _has_time_limit(env: gym.Env) -> bool:
    while isinstance(env, gym.Wrapper):
        if isinstance(env, gym.wrappers.TimeLimit):
            return True
        env = env.env
    ale = getattr(env, "ale", None) if type(env).__module__.startswith("ale_py.") else None
    return ale is not None and ale.getInt(FRAMES) > 0


def _is_array(space: gym.Space) -> bool:
    return space.shape is not None and space.dtype is not None


def _finite(value: Any) -> bool:
    """False for arrays, lists and numbers that hold NaN or infinity; True for other types."""
    array = np.asarray(value)
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _shape_of(observation: Any) -> str:
    try:
        return f"of shape {np.shape(observation)}"
    except ValueError:
        return f"of type {type(observation).__name__}"
