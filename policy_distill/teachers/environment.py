"""The environment of an agent, from the user's options and the agent's files."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from policy_distill.config import EnvironmentOptions, RequestError
from policy_distill.config.environment import Wrapper
from policy_distill.environments.action_masks import has_mask, space_without_mask
from policy_distill.environments.known_wrappers import (
    ATARI,
    MASKS,
    PADDING,
    STACK,
    TRANSPOSE,
    WRAPPERS,
    asked_name,
    check_wrappers,
    effective,
    environment_options,
    wrap,
)
from policy_distill.environments.matching import first_difference
from policy_distill.environments.quiet import quiet_known_warnings
from policy_distill.environments.specs import EnvironmentSpec, make, modernize, named, named_again, substitution, time_limit
from policy_distill.policies.observations import observation_width
from policy_distill.support.images import is_image
from policy_distill.support.trees import leaf_spaces
from policy_distill.teachers.ensemble import Ensemble
from policy_distill.teachers.teacher import Teacher


class Agent(Protocol):
    """A teacher or a student."""

    @property
    def observation_space(self) -> gym.Space: ...
    @property
    def action_space(self) -> gym.Space: ...


def environment_for(teacher: Teacher, env: EnvironmentOptions | str | None) -> tuple[EnvironmentSpec, tuple[str, ...]]:
    """``choose_environment`` for a teacher; ``env`` may be an id."""
    options = env if isinstance(env, EnvironmentOptions) else EnvironmentOptions(env)
    return choose_environment(teacher, teacher.saved_env, options)


def choose_environment(agent: Agent, saved: EnvironmentSpec | None, options: EnvironmentOptions) -> tuple[EnvironmentSpec, tuple[str, ...]]:
    """The environment of an agent, and notices for the user.

    Without ``env`` it is the saved environment, as it exists here; each other option replaces the saved value of its kind.

    With ``env`` it is the environment of this name. Of the saved one only those wrappers are kept without which the spaces would not be
    the agent's. If ``env`` repeats the saved ``module:ID``, the saved environment is used, and its module may be imported.

    Args:
        agent: the acting policy; its spaces are compared.
        saved: the environment recorded in the agent's files, or None.
        options: the user's options.

    Raises:
        RequestError: if no environment is named, if it or a wrapper is not available, or if a wrapper named in a file would have to be
            imported.
    """
    if saved is not None:
        saved = replace(saved, wrappers=_without_outermost(saved.wrappers, (TRANSPOSE, MASKS)))  # _turning and _masking add them
    if saved is not None and (again := named_again(saved, options.env)):
        saved, options = again, replace(options, env=None)
    if options.env is not None:
        spec, notices = _named(agent, saved, options)
    elif saved is not None:
        chosen = None if options.wrappers is None else effective((asked_name(name), kwargs) for name, kwargs in options.wrappers)
        wrappers = _merged(saved.wrappers, chosen, options.frame_stack)
        check_wrappers(wrappers)
        spec, notices = modernize(replace(saved, wrappers=wrappers), observation_width(space_without_mask(agent.observation_space)))
        kwargs = {**spec.kwargs, **options.env_kwargs}
        spec = replace(spec, kwargs=kwargs, max_episode_steps=options.max_episode_steps or spec.max_episode_steps)
    else:
        raise RequestError("the agent's files do not say which environment it was trained in: give --env, for example --env CartPole-v1")
    if isinstance(agent, Teacher):
        spec, padded = fill_stack(spec, agent)
        notices += padded
    if ATARI in dict(spec.wrappers):
        notices += ("episodes are whole games, and rewards are not clipped, as Stable-Baselines3 evaluates agents trained in AtariWrapper",)
    if "ClipReward" in dict(spec.wrappers):
        notices += ("returns are sums of rewards after ClipReward; Stable-Baselines3's Monitor, inside the wrappers, counts those before",)
    return _masking(_turning(spec, agent), agent), notices


def _without_outermost(wrappers: tuple[Wrapper, ...], names: tuple[str, ...]) -> tuple[Wrapper, ...]:
    """``wrappers`` without those at the end that have one of these names."""
    while wrappers and wrappers[-1][0] in names:
        wrappers = wrappers[:-1]
    return wrappers


def _turning(spec: EnvironmentSpec, agent: Agent) -> EnvironmentSpec:
    """The environment with images ``[C, H, W]`` where it gives ``[H, W, C]`` and the agent reads the former.

    Stable-Baselines3 turns images in training, and its agents say only what they read.
    """
    mine = {key: part for key, part in leaf_spaces(space_without_mask(agent.observation_space)).items() if is_image(part)}
    if not mine or TRANSPOSE in dict(spec.wrappers):
        return spec
    env = make(spec)
    try:
        theirs = leaf_spaces(space_without_mask(env.observation_space))
    except ValueError:  # no tree of arrays, which is refused elsewhere
        return spec
    finally:
        env.close()
    turned = [key for key, part in mine.items() if key in theirs and is_image(theirs[key]) and theirs[key].shape != part.shape]
    if not turned or any(_channels_first(theirs[key].shape) != mine[key].shape for key in turned):
        return spec
    return replace(spec, wrappers=(*spec.wrappers, (TRANSPOSE, {})))


def _channels_first(shape: Any) -> tuple[int, int, int]:
    return shape[2], shape[0], shape[1]


def _masking(spec: EnvironmentSpec, agent: Agent) -> EnvironmentSpec:
    """The environment, with action masks in its observations if the agent reads them."""
    if not has_mask(agent.observation_space) or MASKS in dict(spec.wrappers):
        return spec
    return replace(spec, wrappers=(*spec.wrappers, (MASKS, {})))


def fill_stack(spec: EnvironmentSpec, teacher: Teacher) -> tuple[EnvironmentSpec, tuple[str, ...]]:
    """The environment whose frame stack starts with frames that are zero after normalisation, if the teacher normalised before stacking.

    Raises:
        RequestError: if the outermost wrapper is no such stack, or already starts with another agent's frames.
    """
    paddings = _paddings(teacher)
    for padding in paddings:
        frames = teacher.observation_space.shape[0] // len(padding)  # type: ignore[index]
        name, kwargs = spec.wrappers[-1] if spec.wrappers else ("", {})
        if name != STACK or kwargs.get("n_stack") != frames:
            raise RequestError(
                f"the normalisation statistics are of {len(padding)} numbers, the agent reads {frames} times as many: if frames were "
                f"stacked after normalisation, give --frame-stack {frames}, else the vecnormalize.pkl that was saved with this agent"
            )
        filled = kwargs.get("padding")
        if filled is not None and not np.array_equal(filled, padding):
            raise RequestError("these agents normalised their frames with different statistics before stacking: measure each by itself")
        spec = replace(spec, wrappers=(*spec.wrappers[:-1], (STACK, {**kwargs, "padding": padding.tolist()})))
    if not paddings:
        return spec, ()
    return spec, (
        "frames were normalised before they were stacked: the frames before an episode's first are the mean of the statistics, "
        "which is zero after normalisation",
    )


def _paddings(teacher: Teacher) -> list[np.ndarray]:
    """The raw frames before an episode's first, one for each agent that normalised its frames before stacking."""
    agents: Iterable[Any] = teacher.network.members if isinstance(teacher.network, Ensemble) else [teacher]
    paddings = [agent.normalization.padding for agent in agents if agent.normalization is not None]
    return [padding for padding in paddings if padding is not None]


def _named(agent: Agent, saved: EnvironmentSpec | None, options: EnvironmentOptions) -> tuple[EnvironmentSpec, tuple[str, ...]]:
    """The environment of ``options.env``."""
    assert options.env is not None
    spec, notices = named(options), list(substitution(options.env))
    if saved is None:
        return spec, tuple(notices)
    if any(name not in options.env_kwargs and (name, value) not in spec.kwargs.items() for name, value in saved.kwargs.items()):
        given = shlex.quote(json.dumps(dict(saved.kwargs)))
        notices.append(f"--env names the environment without the arguments that the agent was saved with; --env-kwargs {given} gives them")
    limit = saved.max_episode_steps
    if limit is not None and options.max_episode_steps is None and limit != time_limit(replace(spec, wrappers=())):
        what = f"the limit of {limit:,} steps that the agent was saved with"
        notices.append(f"--env names the environment without {what}; --max-episode-steps {limit} sets it")
    has_stack = options.frame_stack is not None or any(name == STACK for name, _ in spec.wrappers)
    candidates = [
        (name, kwargs)
        for name, kwargs in saved.wrappers
        if (name, kwargs) not in spec.wrappers and name != PADDING and (not has_stack if name == STACK else options.wrapper is None)
    ]
    if not candidates:
        return spec, tuple(notices)
    needed: list[Wrapper] = []
    if not _fits(spec, agent):
        stacked = bool(spec.wrappers) and spec.wrappers[-1][0] == STACK and options.frame_stack is not None
        inner, stack = (spec.wrappers[:-1], spec.wrappers[-1:]) if stacked else (spec.wrappers, ())
        needed = _needed(replace(spec, wrappers=inner), candidates)
        wrapped = replace(spec, wrappers=(*inner, *needed, *stack))
        if needed and _fits(wrapped, agent):
            spec = wrapped
            what = f"the agent reads and acts as {spec.id} does only within wrappers that it was saved with, which are kept"
            notices.append(f"{what}: {_wrappers_text(needed)}")
        else:
            check_wrappers(candidates)  # an unknown wrapper may be the missing one
            needed = []
    if left := [wrapper for wrapper in candidates if wrapper not in needed]:
        notices.append(f"--env names the environment without these wrappers, which the agent was saved with: {_wrappers_text(left)}")
    return spec, tuple(notices)


def _merged(saved: Sequence[Wrapper], chosen: tuple[Wrapper, ...] | None, frame_stack: int | None) -> tuple[Wrapper, ...]:
    """The user's wrappers instead of the saved ones, and the stack outside; padding of an entry of envs/ is always kept."""
    if chosen is None and frame_stack is None:
        return tuple(saved)
    padding = [wrapper for wrapper in saved if wrapper[0] == PADDING]
    inner = [wrapper for wrapper in saved if wrapper[0] not in (PADDING, STACK)] if chosen is None else chosen
    stacked = any(name == STACK for name, _ in inner)
    return (*padding, *inner, *(() if stacked and frame_stack is None else _stack(saved, frame_stack)))


def _stack(saved: Sequence[Wrapper], frame_stack: int | None) -> tuple[Wrapper, ...]:
    """The saved stack, or one of ``frame_stack`` frames; a saved stack of this size keeps its padding."""
    stacks = tuple(wrapper for wrapper in saved if wrapper[0] == STACK)
    if frame_stack is None or (len(stacks) == 1 and stacks[0][1].get("n_stack") == frame_stack):
        return stacks
    return ((STACK, {"n_stack": frame_stack}),) if frame_stack > 1 else ()


def _needed(spec: EnvironmentSpec, candidates: Sequence[Wrapper]) -> list[Wrapper]:
    """The known wrappers among ``candidates`` that change a space of the environment, applied in this order."""
    env: gym.Env = make(spec)
    needed: list[Wrapper] = []
    try:
        before = env.observation_space, env.action_space
        for name, kwargs in candidates:
            if name not in WRAPPERS:
                continue
            try:
                with quiet_known_warnings():
                    env = wrap(env, name, kwargs)
            except RequestError:  # it does not fit this environment
                continue
            after = env.observation_space, env.action_space
            if after != before:
                needed.append((name, kwargs))
            before = after
    finally:
        env.close()
    return needed


def _fits(spec: EnvironmentSpec, agent: Agent) -> bool:
    env = make(_masking(_turning(spec, agent), agent))
    try:
        return first_difference((agent.observation_space, agent.action_space), (env.observation_space, env.action_space)) is None
    finally:
        env.close()


def _wrappers_text(wrappers: Sequence[Wrapper]) -> str:
    """Names of wrappers, and the command line options that add them."""
    names = ", ".join(name for name, _ in wrappers)
    return f"{names} ({environment_options(wrappers)})"
