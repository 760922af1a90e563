"""Views: transformations of an environment's observations into a student's inputs, with their state over the episode."""

from __future__ import annotations

import copy
import functools
import importlib
import itertools
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from policy_distill.config import RequestError
from policy_distill.config.inputs import SECTION, InputsConfig, parse_inputs
from policy_distill.environments.action_masks import MASK, OBSERVATION, has_mask, space_without_mask, without_mask
from policy_distill.environments.frame_stacks import StackOf
from policy_distill.environments.vector import GOES_ON
from policy_distill.policies.encoders import channels_first
from policy_distill.policies.observations import observation_width
from policy_distill.support import trees
from policy_distill.support.trees import Tree
from policy_distill.support.untrusted import MAX_ELEMENTS

NOISE_STREAM = 9
"""Stream number of the noise, which separates it from other random numbers derived from an episode's seed."""


@dataclass
class ViewState:
    """State of a view for N episodes.

    Attributes:
        frames: the last observations, ``[N, history, ...]``, oldest first; None before the first step or without a history.
        streams: random generators of each episode's noise; empty without noise.
    """

    frames: Tree
    streams: list[np.random.Generator]


class View:
    """A student's inputs: a function of the observation, the history, and noise from the episode's seed.

    A mask of forbidden actions is passed through unchanged.

    Args:
        config: the transformation's steps.
        observed: space of the environment's observations.

    Attributes:
        space: space of the student's inputs.

    Raises:
        RequestError: if the steps do not apply to the space.
    """

    def __init__(self, config: InputsConfig, observed: gym.Space) -> None:
        self.config, self.observed = config, observed
        unmasked = space_without_mask(observed)
        self._wrapper: Any = None if config.wrapper is None else _wrapped(config.wrapper, unmasked)
        self._wrapped_space = unmasked if self._wrapper is None else self._wrapper.observation_space
        self._single = _selected(config, self._wrapped_space)
        self._noise = trees.of_space(self._single, functools.partial(_spread, config)) if config.is_noisy else None
        noisy = _of_parts(self._single, _unbounded) if config.is_noisy else self._single
        seen = _of_parts(noisy, functools.partial(_stacked, config.history)) if config.history > 1 else noisy
        self.space = seen if unmasked is observed else _joined(seen, {MASK: observed[MASK]}, gym.spaces.Dict)  # type: ignore[index]

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "observed": self.observed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, View) and self.__getstate__() == other.__getstate__()

    def __hash__(self) -> int:
        return hash(self.config)

    @property
    def has_state(self) -> bool:
        """Whether the student's inputs depend on more than the current observation."""
        return self.config.history > 1 or self.config.is_noisy

    @property
    def hides(self) -> bool:
        """Whether the view may remove information: by a wrapper, by noise, or by leaving components out."""
        return (
            self._wrapper is not None
            or self.config.is_noisy
            or observation_width(self._single) < observation_width(space_without_mask(self.observed))
        )

    @property
    def columns(self) -> tuple[int, ...] | None:
        """Components of the encoded observation that the student sees, in order; None if the view is not a plain selection."""
        if self.has_state or self._wrapper is not None or has_mask(self.observed):
            return None
        first, places = 0, {}
        for key, part in trees.leaf_spaces(self._wrapped_space).items():
            places[key] = list(range(first, first + observation_width(part)))
            first += len(places[key])
        chosen = [place for key in self.config.keys or places for place in places[key]]
        return tuple(chosen if self.config.keep is None else (chosen[index] for index in self.config.keep))

    def stacks(self, observed: Mapping[str, StackOf]) -> Mapping[str, StackOf]:
        """Which of the student's inputs are images of several frames, by key, where those of the observations are ``observed``."""
        images = {key: part for key, part in trees.leaf_spaces(self._single).items() if len(part.shape or ()) == 3}
        if has_mask(self.observed):
            return {}
        if self.config.history > 1:
            return {key: StackOf(self.config.history, 0 if channels_first(part) else -1) for key, part in images.items()}
        if self._wrapper is not None or self.config.is_noisy or self.config.keep is not None:
            return {}
        of = self.config.keys[0] if self.config.keys is not None and len(self.config.keys) == 1 else None
        return {key: observed[of or key] for key in images if (of or key) in observed}

    def initial_state(self, num_envs: int) -> ViewState:
        """The state before the first step of N environments."""
        streams = [np.random.default_rng([row, NOISE_STREAM]) for row in range(num_envs)] if self.config.is_noisy else []
        return ViewState(None, streams)

    def step(self, observations: Tree, state: ViewState, starts: np.ndarray | None) -> tuple[Tree, ViewState]:
        """The student's inputs for ``observations`` ``[N, ...]``, and the state; see ``policies.policy.Stateful.step``.

        The state is changed in place. The result may share memory with it or with ``observations``.
        """
        seen = self._selected(observations)
        began = np.zeros(trees.length(seen), bool) if starts is None else starts != GOES_ON
        if self._noise is not None:
            for row in np.flatnonzero(began):
                assert starts is not None
                state.streams[row] = np.random.default_rng([int(starts[row]), NOISE_STREAM])
            seen = trees.map_leaves(lambda leaf, spread: _noisy(leaf, spread, state.streams), seen, self._noise)
        if self.config.history > 1:
            seen = self._with_history(seen, state, began)
        return self._with_mask(seen, observations), state

    def see(self, observations: Tree) -> Tree:
        """The student's inputs for independent ``observations`` ``[B, ...]``.

        Raises:
            ValueError: if they depend on the episode; see ``has_state``.
        """
        if self.has_state:
            raise ValueError("the student sees a history or noise: call Student.step, which keeps a state")
        return self._with_mask(self._selected(observations), observations)

    def _with_mask(self, seen: Tree, observations: Tree) -> Tree:
        return _joined(seen, {MASK: observations[MASK]}, dict) if has_mask(self.observed) else seen

    def _selected(self, observations: Tree) -> Tree:
        if has_mask(self.observed):
            observations = without_mask(observations)
        if self._wrapper is not None:
            count = trees.length(observations)
            rows = [self._wrapper.observation(trees.copied(trees.rows(observations, row))) for row in range(count)]
            into = trees.zeros(self._wrapped_space, count)
            for row, seen in enumerate(rows):
                trees.write(into, row, seen)
            observations = into
        if (keys := self.config.keys) is not None:
            observations = observations[keys[0]] if len(keys) == 1 else {key: observations[key] for key in keys}
        if self.config.keep is not None:
            observations = observations.reshape(len(observations), -1)[:, list(self.config.keep)]
        return observations

    def _with_history(self, seen: Tree, state: ViewState, began: np.ndarray) -> Tree:
        length = self.config.history
        if state.frames is None:
            state.frames = trees.map_leaves(lambda leaf: np.repeat(leaf[:, None], length, axis=1), seen)
        else:

            def move(frames: np.ndarray, leaf: np.ndarray) -> None:
                frames[:, :-1] = frames[:, 1:].copy()
                frames[:, -1] = leaf
                frames[began] = leaf[began][:, None]

            trees.map_leaves(move, state.frames, seen)
        spaces = trees.of_space(self._single, lambda space: space)
        return trees.map_leaves(_side_by_side, state.frames, spaces)

    def to_dict(self) -> dict[str, Any]:
        """The steps as JSON-able data."""
        return self.config.to_dict()


def _joined(seen: Any, mask: dict[str, Any], kind: Any) -> Any:
    """Inputs, or their space, with the mask added."""
    parts = dict(seen) if isinstance(seen, dict | gym.spaces.Dict) else {OBSERVATION: seen}
    return kind(OrderedDict(parts | mask))


def _selected(config: InputsConfig, space: gym.Space) -> gym.Space:
    """The space after ``keys`` and ``keep``."""
    if config.keys is not None:
        parts = trees.leaf_spaces(space) if isinstance(space, gym.spaces.Dict) else {}
        if missing := [key for key in config.keys if key not in parts]:
            has = f"it has the keys {', '.join(parts)}" if parts else f"the observation is not a Dict: {space}"
            raise RequestError(f"{SECTION}.keys names {missing[0]!r}, which the observation does not have; {has}")
        chosen = {key: parts[key] for key in config.keys}
        space = next(iter(chosen.values())) if len(chosen) == 1 else gym.spaces.Dict(OrderedDict(chosen))
    if config.keep is None:
        return space
    if not isinstance(space, gym.spaces.Box):
        raise RequestError(f"{SECTION}.keep names components of a vector, and the student sees {space}: name one key of a vector by keys")
    width = observation_width(space)
    if wrong := [index for index in config.keep if index >= width]:
        raise RequestError(f"{SECTION}.keep names {wrong[0]}, and the observation has the components 0 to {width - 1}")
    low, high = (bound.ravel()[list(config.keep)] for bound in (space.low, space.high))
    return gym.spaces.Box(low, high, dtype=space.dtype.type)


def _of_parts(space: gym.Space, change: Any) -> gym.Space:
    if isinstance(space, gym.spaces.Dict):
        return gym.spaces.Dict(OrderedDict((key, change(part)) for key, part in trees.leaf_spaces(space).items()))
    changed: gym.Space = change(space)
    return changed


def _unbounded(space: gym.Space) -> gym.Space:
    return gym.spaces.Box(-np.inf, np.inf, space.shape, space.dtype.type)  # type: ignore[union-attr]


def _spread(config: InputsConfig, space: gym.Space) -> np.ndarray:
    """The noise's standard deviation of each component of a part."""
    if not isinstance(space, gym.spaces.Box) or space.dtype.kind != "f":
        raise RequestError(f"{SECTION}.noise is for observations of floating-point numbers, and the student sees {space}: leave it out")
    with np.errstate(over="ignore"):
        sigma = np.asarray(config.noise, space.dtype)
    if not np.isfinite(sigma).all():
        raise RequestError(f"{SECTION}.noise {config.noise} is too large for observations of {space.dtype}")
    if sigma.ndim and sigma.size != observation_width(space):
        raise RequestError(f"{SECTION}.noise has {sigma.size} numbers, and the student sees {observation_width(space)} components")
    return sigma.reshape(space.shape) if sigma.ndim else np.full(space.shape, sigma)


def _noisy(leaf: np.ndarray, spread: np.ndarray, streams: list[np.random.Generator]) -> np.ndarray:
    draws = np.stack([stream.standard_normal(spread.shape) for stream in streams])
    return leaf + (spread * draws).astype(leaf.dtype)


def _stacked(count: int, space: gym.Space) -> gym.Space:
    """The space of ``count`` stacked observations: vectors are concatenated, images along their channels."""
    match space:
        case gym.spaces.Box(shape=(_, _, _)):
            first = channels_first(space)
            low, high = (np.concatenate([bound] * count, axis=0 if first else 2) for bound in (space.low, space.high))
            stack = gym.spaces.Box(low, high, dtype=space.dtype.type)
            if channels_first(stack) != first:  # the student's encoder would take the channels for rows or columns of pixels
                raise RequestError(f"{SECTION}.history {count} makes images of {stack.shape}, as many channels as pixels: choose less")
            return stack
        case gym.spaces.Box():
            low, high = (np.tile(bound.ravel(), count) for bound in (space.low, space.high))
            return gym.spaces.Box(low, high, dtype=space.dtype.type)
        case gym.spaces.Discrete():
            return gym.spaces.MultiDiscrete([int(space.n)] * count, start=[int(space.start)] * count)
    raise RequestError(f"{SECTION}.history is for Box and Discrete observations, and the student sees {space}: leave it out")


def _side_by_side(frames: np.ndarray, space: gym.Space) -> np.ndarray:
    """``[N, history, ...]`` as one observation of ``_stacked``'s space."""
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 3 and not channels_first(space):
        count, length, height, width, channels = frames.shape
        return frames.transpose(0, 2, 3, 1, 4).reshape(count, height, width, length * channels)
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 3:
        return frames.reshape(len(frames), -1, *frames.shape[3:])
    return frames.reshape(len(frames), -1)


def read_view(saved: Any, observed: gym.Space, path: Path, trust: bool) -> View | None:
    """``inputs`` of student.json.

    Raises:
        RequestError: if a wrapper would be imported without ``trust``.
        ValueError: if they are malformed, or have too many components.
    """
    if saved is None:
        return None
    if not isinstance(saved, dict):
        raise ValueError(f"inputs are {saved!r}")
    config = parse_inputs(saved)
    if config is None:
        return None
    if config.wrapper is not None and not trust:
        module = config.wrapper.partition(":")[0]
        raise RequestError(
            f"{path}: the student sees through the wrapper {config.wrapper}, and importing {module} runs its code: give --trust "
            "if you trust it"
        )
    if config.history * observation_width(observed) > MAX_ELEMENTS:
        raise ValueError(f"inputs of more than {MAX_ELEMENTS:,} components")
    return View(config, observed)


def read_columns(saved: Any, seen: gym.Space) -> tuple[int, ...] | None:
    """``varying_inputs`` of student.json.

    Raises:
        ValueError: if they are not ascending components of the student's inputs.
    """
    if saved is None:
        return None
    width = observation_width(seen)
    if not isinstance(saved, list) or not saved or any(type(index) is not int or not 0 <= index < width for index in saved):
        raise ValueError(f"varying_inputs must be components from 0 to {width - 1}")
    if any(before >= after for before, after in itertools.pairwise(saved)):
        raise ValueError("varying_inputs must ascend")
    return tuple(saved)


class ViewedEnv(gym.ObservationWrapper):
    """An environment that returns the student's inputs. An episode reset without a seed uses the previous episode's noise seed plus 1."""

    def __init__(self, env: gym.Env, view: View) -> None:
        super().__init__(env)
        self.observation_space = view.space
        self._view, self._state, self._start = copy.copy(view), view.initial_state(1), GOES_ON

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._start = self._start + 1 if seed is None else seed
        return self._seen(observation, np.array([self._start])), info

    def observation(self, observation: Any) -> Any:
        return self._seen(observation, None)

    def _seen(self, observation: Any, starts: np.ndarray | None) -> Any:
        seen, self._state = self._view.step(trees.map_leaves(lambda leaf: np.asarray(leaf)[None], observation), self._state, starts)
        return trees.copied(trees.rows(seen, 0))


class _SpaceOnly(gym.Env[Any, Any]):
    """A placeholder that is passed to the wrapper; it only has spaces."""

    action_space = gym.spaces.Discrete(1)

    def __init__(self, space: gym.Space) -> None:
        self.observation_space = space


def _wrapped(name: str, space: gym.Space) -> Any:
    """The user's wrapper. The import runs its module, so ``name`` must come from the user or be trusted by them."""
    module, _, attribute = name.partition(":")
    try:
        wrapper = getattr(importlib.import_module(module), attribute)(_SpaceOnly(space))
        trees.leaf_spaces(wrapper.observation_space)
        callable_ = callable(wrapper.observation)
    except Exception as error:
        raise RequestError(f"{SECTION}.wrapper {name} cannot be used: {type(error).__name__}: {error}") from error
    if not callable_:
        raise RequestError(f"{SECTION}.wrapper {name} has no method observation: give a gymnasium.ObservationWrapper")
    return wrapper
