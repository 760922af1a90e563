"""Compatibility of an agent's spaces with an environment's, and wrappers that would make them compatible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from policy_distill.config import RequestError
from policy_distill.config.environment import Wrapper
from policy_distill.environments.known_wrappers import ATARI, PADDING, STACK, environment_options
from policy_distill.environments.specs import EnvironmentSpec, make
from policy_distill.support.images import channels_come_first, is_image

ATARI_SIDES = (84, 84)
"""Height and width of the images of AtariWrapper."""


def check_fits(spec: EnvironmentSpec, *spaces: tuple[gym.Space, gym.Space]) -> None:
    """Make the environment once and refuse each pair of observation and action space that is not its own; see ``check_matches``."""
    env = make(spec)
    try:
        for observation_space, action_space in spaces:
            check_matches(spec, env, observation_space, action_space)
    finally:
        env.close()


def check_matches(spec: EnvironmentSpec, env: gym.Env, observation_space: gym.Space, action_space: gym.Space) -> None:
    """Refuse an agent whose spaces are not the environment's. Element types, and bounds of observations, may differ.

    Raises:
        RequestError: in one line, naming both.
    """
    if difference := first_difference((observation_space, action_space), (env.observation_space, env.action_space)):
        role, mine, theirs = difference
        fix = "name the environment it was trained in with --env"
        bounds = _rescaling_that_fits(action_space, env.action_space)
        if role == "observations":
            wrappers = wrappers_that_fit(observation_space, env.observation_space, atari=hasattr(env.unwrapped, "ale"))
        else:
            wrappers = [("RescaleAction", bounds)] if bounds else []
        if wrappers:
            names = " and ".join(name for name, _ in wrappers)
            fix += f", or give {_options(spec, wrappers)} if it was trained with {names}"
        raise RequestError(f"the agent's {role} are {mine}, those of {spec.id} are {theirs}; {fix}")


def wrappers_that_fit(mine: gym.Space, theirs: gym.Space, atari: bool = False) -> list[Wrapper]:
    """Wrappers, innermost first, that turn observations ``theirs`` into vectors or images of the shape of ``mine``; empty if none do.

    Args:
        mine: the agent's observations.
        theirs: the environment's.
        atari: whether the environment is a game of ale-py.
    """
    if isinstance(mine, gym.spaces.Dict) and isinstance(theirs, gym.spaces.Dict):
        key = "observation"  # the one that TimeFeatureWrapper lengthens
        others_fit = all(
            _kind(part, "observations") == _kind(theirs.spaces.get(name), "observations") for name, part in mine.items() if name != key
        )
        found = wrappers_that_fit(mine[key], theirs[key]) if others_fit and key in mine.keys() & theirs.keys() else []
        return found if [name for name, _ in found] == ["TimeFeatureWrapper"] else []
    if is_image(mine) and is_image(theirs):
        return _image_wrappers(mine, theirs, atari)
    if not isinstance(mine, gym.spaces.Box) or len(mine.shape) != 1:
        return []
    length, here = mine.shape[0], theirs.shape
    if not isinstance(theirs, gym.spaces.Box) or here is None or len(here) != 1:
        flat = theirs.is_np_flattenable and gym.spaces.flatdim(theirs) == length
        return [("FlattenObservation", {})] if flat else []
    if length == here[0] + 1:
        return [("TimeFeatureWrapper", {})]
    if here[0] and length % here[0] == 0 and length > here[0]:
        return [(STACK, {"n_stack": length // here[0]})]
    return []


def _image_wrappers(mine: gym.Space, theirs: gym.Space, atari: bool) -> list[Wrapper]:
    """Shades of grey, another size and a stack of frames, as far as ``mine`` needs them; see ``wrappers_that_fit``.

    Images of the agent may be turned; see ``TransposeImage``. Those of the environment can be changed if their channels come last.
    """
    sides, channels = _sides_and_channels(mine)
    here, colours = _sides_and_channels(theirs)
    wrappers: list[Wrapper] = []
    if atari and sides == ATARI_SIDES != here:
        wrappers, here, colours = [(ATARI, {})], sides, 1
    elif not channels_come_first(theirs):
        if colours == 3 and channels % 3:
            wrappers, colours = [("GrayscaleObservation", {"keep_dim": True})], 1
        if sides != here:
            wrappers, here = [*wrappers, ("ResizeObservation", {"shape": list(sides)})], sides
    if sides != here or channels % colours:
        return []
    return [*wrappers, (STACK, {"n_stack": channels // colours})] if channels > colours else wrappers


def _sides_and_channels(image: gym.Space) -> tuple[tuple[int, ...], int]:
    shape = image.shape or ()
    return (shape[1:], shape[0]) if channels_come_first(image) else (shape[:-1], shape[-1])


def _options(spec: EnvironmentSpec, wrappers: Sequence[Wrapper]) -> str:
    """Command-line options that put ``wrappers`` around those of ``spec``, which ``--wrapper`` replaces and ``--frame-stack`` keeps."""
    inner = [(name, kwargs) for name, kwargs in spec.wrappers if name not in (STACK, PADDING)]
    replaces = any(name != STACK for name, _ in wrappers)
    return environment_options([*inner, *wrappers] if replaces else wrappers)


def _rescaling_that_fits(mine: gym.Space, theirs: gym.Space) -> Mapping[str, Any] | None:
    """Arguments of RescaleAction if ``mine`` and ``theirs`` differ only in their bounds; else None."""
    if not (isinstance(mine, gym.spaces.Box) and isinstance(theirs, gym.spaces.Box) and mine.shape == theirs.shape):
        return None
    if not (mine.is_bounded() and theirs.is_bounded()):
        return None
    bounds = {"min_action": mine.low, "max_action": mine.high}
    return {name: float(value.flat[0]) if (value == value.flat[0]).all() else value.tolist() for name, value in bounds.items()}


def first_difference(mine: tuple[gym.Space, gym.Space], theirs: tuple[gym.Space, gym.Space]) -> tuple[str, str, str] | None:
    """First difference between two pairs of observation and action space: ``observations`` or ``actions``, and a description of both.

    Returns:
        None if the pairs are compatible. Element types, and bounds of observations, may differ.
    """
    for role, one, other in zip(("observations", "actions"), mine, theirs, strict=True):
        if _kind(one, role) != _kind(other, role):
            return role, _words(one, role), _words(other, role)
    return None


def _kind(space: gym.Space | None, role: str) -> object:
    """Properties that must be equal for an agent to act."""
    match space:
        case gym.spaces.Box() if role == "actions":
            low, high = (bound.astype(np.float64).round(4).tolist() for bound in (space.low, space.high))
            return space.shape, low, high
        case gym.spaces.Box():
            return space.shape
        case gym.spaces.Discrete():
            return int(space.n), int(space.start)
        case gym.spaces.MultiDiscrete():
            return space.nvec.tolist(), np.asarray(space.start).tolist()
        case gym.spaces.Dict():
            return {key: _kind(part, role) for key, part in space.items()}
    return str(space)


def _words(space: gym.Space, role: str) -> str:
    match space:
        case gym.spaces.Box():
            numbers = "1 number" if space.shape == (1,) else f"{'x'.join(map(str, space.shape))} numbers"
            return numbers if role == "observations" else f"{numbers} in [{space.low.min():g}, {space.high.max():g}]"
        case gym.spaces.Discrete():
            return f"one of {space.n} choices"
        case gym.spaces.Dict():
            return f"a Dict ({', '.join(f'{key}: {_words(part, role)}' for key, part in space.items())})"
    return str(space)
