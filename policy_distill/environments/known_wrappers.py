"""Wrappers by name: known ones, and custom ones as module:Class."""

from __future__ import annotations

import difflib
import functools
import importlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from policy_distill.config import RequestError
from policy_distill.config.environment import Wrapper, wrapper_options
from policy_distill.environments import wrappers as shipped
from policy_distill.environments import zoo_wrappers as zoo
from policy_distill.environments.action_masks import ActionMasks
from policy_distill.environments.image_wrappers import TransposeImage, WholeGame, check_opencv

STACK, PADDING, MASKS, TRANSPOSE = "VecFrameStack", "PadObservation", "ActionMasks", "VecTransposeImage"
ATARI = "AtariWrapper"


def _gymnasiums(name: str) -> Any:
    """Gymnasium's wrapper; lists, which is all that YAML has, as the bounds or tuples that it takes."""

    def wrap(env: gym.Env, **kwargs: Any) -> gym.Env:
        kind: Any = (lambda values: np.array(values, np.float64)) if re.match("Rescale|ClipReward", name) else tuple
        return getattr(gym.wrappers, name)(env, **{key: kind(value) if isinstance(value, list) else value for key, value in kwargs.items()})

    return wrap


def _frame_stack(env: gym.Env, stack_size: int, **kwargs: Any) -> gym.Env:
    shipped.check_size("FrameStackObservation", stack_size, gym.spaces.flatdim(env.observation_space))
    return gym.wrappers.FrameStackObservation(env, stack_size, **kwargs)


def _old_frame_stack(env: gym.Env, num_stack: int, lz4_compress: bool = False) -> gym.Env:
    """``FrameStack`` with its name and arguments until Gymnasium 0.29."""
    return _frame_stack(env, num_stack)


def _resize(env: gym.Env, shape: Any) -> gym.Env:
    """A square by the length of its side, as until Gymnasium 0.29, or height and width."""
    height, width = (shape, shape) if isinstance(shape, int) else shape
    shipped.check_size("ResizeObservation", height, width)
    return gym.wrappers.ResizeObservation(env, (height, width))


def _atari_preprocessing(env: gym.Env, screen_size: Any = 84, **kwargs: Any) -> gym.Env:
    """A square by the length of its side, or width and height."""
    width, height = (screen_size, screen_size) if isinstance(screen_size, int) else screen_size
    shipped.check_size("AtariPreprocessing", height, width)
    if getattr(env.unwrapped, "_frameskip", 1) != 1 and kwargs.get("frame_skip", 4) > 1:
        raise RequestError(
            "the wrapper AtariPreprocessing skips frames itself and does not take a game that does so too: "
            """give --env_kwargs '{"frameskip": 1}', or the wrapper's argument frame_skip: 1"""
        )
    return gym.wrappers.AtariPreprocessing(env, screen_size=(width, height), **kwargs)


def _stable_baselines3s(name: str) -> Any:
    """A wrapper of ``stable_baselines3.common.atari_wrappers``. Like the rest of the library it is imported where it is needed."""

    def wrap(env: gym.Env, **kwargs: Any) -> gym.Env:
        return getattr(importlib.import_module("stable_baselines3.common.atari_wrappers"), name)(env, **kwargs)

    return wrap


def _warp_frame(env: gym.Env, width: int = 84, height: int = 84) -> gym.Env:
    shipped.check_size("WarpFrame", height, width)
    check_opencv("WarpFrame")
    return _stable_baselines3s("WarpFrame")(env, width=width, height=height)


def _discretize(env: gym.Env, bins: Any, multidiscrete: bool = False) -> gym.Env:
    """The number of bins of all components, or of each."""
    for count in bins if isinstance(bins, list) else [bins]:
        shipped.check_size("DiscretizeAction", count, 1)
    return gym.wrappers.DiscretizeAction(env, tuple(bins) if isinstance(bins, list) else bins, multidiscrete)


def _dtype_observation(env: gym.Env, dtype: Any) -> gym.Env:
    """A file names the element type as a text."""
    return gym.wrappers.DtypeObservation(env, np.dtype(dtype).type)


WRAPPERS: Mapping[str, Any] = {
    STACK: shipped.FrameStack,
    PADDING: shipped.PadObservation,
    "TimeFeatureWrapper": shipped.TimeFeatureWrapper,
    MASKS: ActionMasks,
    TRANSPOSE: TransposeImage,
    ATARI: WholeGame,
    **{kind.__name__: kind for kind in (zoo.HistoryWrapper, zoo.ActionNoiseWrapper, zoo.ActionSmoothingWrapper, zoo.DelayedRewardWrapper,
                                        zoo.FrameSkip, zoo.MaskVelocityWrapper)},
    "FrameStackObservation": _frame_stack,
    "FrameStack": _old_frame_stack,
    "ResizeObservation": _resize,
    "AtariPreprocessing": _atari_preprocessing,
    "WarpFrame": _warp_frame,
    **{name: _stable_baselines3s(name) for name in ("FireResetEnv", "MaxAndSkipEnv", "NoopResetEnv", "StickyActionEnv")},
    **dict.fromkeys(("GrayscaleObservation", "GrayScaleObservation"), _gymnasiums("GrayscaleObservation")),
    "DtypeObservation": _dtype_observation,
    "DiscretizeAction": _discretize,
    **{name: _gymnasiums(name) for name in ("ClipAction", "ClipReward", "DelayObservation", "FilterObservation", "FlattenObservation",
                                            "MaxAndSkipObservation", "RepeatAction", "RescaleAction", "RescaleObservation",
                                            "ReshapeObservation", "StickyAction", "TimeAwareObservation", "TimeLimit")},
}  # fmt: skip
"""Saved name of a wrapper -> function that wraps an environment."""

WITHOUT_EFFECT = (
    "AutoResetWrapper", "Autoreset", "EnvCompatibility", "HumanRendering", "Monitor", "OrderEnforcing", "PassiveEnvChecker",
    "PlotActionWrapper", "RecordEpisodeStatistics", "RecordVideo", "RenderCollection", "StepAPICompatibility", "VecMonitor",
)  # fmt: skip
"""Wrappers that change neither observations, actions nor rewards; they are left out."""

LOST = {
    "ClipRewardEnv": "returns count rewards that are not clipped",
    "EpisodicLifeEnv": "episodes are whole games; AtariWrapper goes on after the loss of a life",
    "NormalizeObservation": "its running statistics are not among the agent's files",
    "NormalizeReward": "its running statistics are not among the agent's files",
    "TransformAction": "its function is not among the agent's files",
    "TransformObservation": "its function is not among the agent's files",
    "TransformReward": "its function is not among the agent's files",
    "VecNormalize": "its statistics belong into vecnormalize.pkl",
}
"""Wrappers that cannot be rebuilt from name and arguments, or that would change what a return is -> reason."""

PACKAGES = ("gym", "gymnasium", "policy_distill", "rl_zoo3", "sb3_contrib", "stable_baselines3", "utils")
"""Packages of the known wrappers; ``utils`` is an old module of the RL Zoo. A class with the same name in another package differs."""


def saved_name(name: str) -> str:
    """A wrapper's name as a file holds it: the last part of a known one, else the dotted path, which is never imported."""
    path = re.split("[.:]", name)
    known = path[-1] in WRAPPERS or path[-1] in WITHOUT_EFFECT or path[-1] in LOST
    return path[-1] if known and (len(path) == 1 or path[0] in PACKAGES) else ".".join(path)


def asked_name(name: str) -> str:
    """A wrapper's name as a user gives it: the last part of a known one, else ``module:Class``, which is imported.

    Raises:
        RequestError: if it is neither known nor has a module, or needs data that are not among the agent's files.
    """
    if ":" in name:
        return name
    short = saved_name(name)
    if short in LOST:
        raise RequestError(f"the wrapper {name} cannot be made: {LOST[short]}; name your own as module:Class")
    if short in WRAPPERS or short in WITHOUT_EFFECT:
        return short
    module, _, own = name.rpartition(".")
    if not module:
        near = difflib.get_close_matches(name, WRAPPERS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(WRAPPERS))};"
        raise RequestError(f"the wrapper {name} is not known here: {hint} name your own as module:Class")
    return f"{module}:{own}"


def effective(wrappers: Iterable[Wrapper]) -> tuple[Wrapper, ...]:
    """``wrappers`` without those that have no effect."""
    return tuple((name, kwargs) for name, kwargs in wrappers if name not in WITHOUT_EFFECT)


def environment_options(wrappers: Iterable[Wrapper]) -> str:
    """Command-line options for these wrappers, quoted for a shell; a stack of frames has an option of its own. Empty without wrappers."""
    wrappers = tuple(wrappers)
    plain = [(name, kwargs) for name, kwargs in wrappers if name != STACK]
    stacks = [f"--frame-stack {kwargs.get('n_stack')}" for name, kwargs in wrappers if name == STACK]
    return " ".join([*([wrapper_options(plain)] if plain else []), *stacks])


def trusting(wrappers: Iterable[Wrapper], named: Iterable[Wrapper]) -> tuple[Wrapper, ...]:
    """A file's wrappers, with those that the user also ``named`` as ``module:Class`` allowed to be imported."""
    own = {name.replace(":", "."): name for name, _ in named if ":" in name}
    return tuple((own.get(name, name), kwargs) for name, kwargs in wrappers)


def check_wrappers(wrappers: Iterable[Wrapper]) -> None:
    """Refuse wrappers that an agent was saved with and that cannot be made.

    Raises:
        RequestError: with options to allow or to drop them.
    """
    wrappers = tuple(wrappers)
    for name, _ in wrappers:
        if ":" in name or name in WRAPPERS or name in WITHOUT_EFFECT:
            continue
        others = [(other, kwargs) for other, kwargs in wrappers if other not in (STACK, PADDING)]
        without = wrapper_options((other, kwargs) for other, kwargs in others if other != name)
        if name in LOST:
            raise RequestError(f"the wrapper {name}, which the agent was saved with, cannot be made: {LOST[name]}; {without} leaves it out")
        module, _, own = name.rpartition(".")
        typed = f"{module or 'MODULE'}:{own}"
        naming = wrapper_options((typed if other == name else other, kwargs) for other, kwargs in others)
        raise RequestError(
            f"the wrapper {name}, which the agent was saved with, is not known here, and nothing that a file names is imported: give "
            f"{naming} if you trust it, or {without} to leave it out"
        )


def wrap(env: gym.Env, name: str, kwargs: Mapping[str, Any]) -> gym.Env:
    """Put a wrapper around an environment; one named as ``module:Class`` is imported.

    Raises:
        RequestError: if there is no such wrapper, or it does not take the environment or the arguments.
    """
    if name in WITHOUT_EFFECT:
        return env
    check_wrappers([(name, kwargs)])
    kind = WRAPPERS[name] if name in WRAPPERS else _imported(name)
    try:
        wrapped = kind(env, **kwargs)
    except RequestError:
        raise
    except gym.error.DependencyNotInstalled as error:
        raise RequestError(f"the wrapper {name} needs a package that is not installed: {' '.join(str(error).split())}") from error
    except Exception as error:  # of a wrapper from elsewhere
        given = f"the arguments {dict(kwargs)}" if kwargs else "this environment without arguments"
        raise RequestError(f"the wrapper {name} does not take {given}: {' '.join(str(error).split())}") from error
    if not isinstance(wrapped, gym.Env):
        raise RequestError(f"the wrapper {name} makes no Gymnasium environment of one, but a {type(wrapped).__name__}")
    return wrapped


@functools.cache
def _imported(name: str) -> Any:
    module, _, own = name.partition(":")
    try:
        kind = functools.reduce(getattr, own.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise RequestError(f"the wrapper {name} cannot be imported: {error}; is its folder on PYTHONPATH?") from error
    if not callable(kind):
        raise RequestError(f"the wrapper {name} is no class or function that takes an environment")
    return kind
