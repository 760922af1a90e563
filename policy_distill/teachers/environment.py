"""In which environment an agent acts: what the user asks for, and else what the agent's files say."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from policy_distill.config import EnvironmentOptions, RequestError
from policy_distill.config.environment import Wrapper, wrapper_options
from policy_distill.environments.action_masks import has_mask, space_without_mask
from policy_distill.environments.known_wrappers import MASKS, PADDING, STACK, WRAPPERS, asked_name, check_wrappers, effective, wrap
from policy_distill.environments.matching import first_difference
from policy_distill.environments.quiet import quiet_known_warnings
from policy_distill.environments.specs import EnvironmentSpec, make, modernize, named, named_again, substitution
from policy_distill.policies.observations import observation_width
from policy_distill.teachers.ensemble import Ensemble
from policy_distill.teachers.teacher import Teacher


class Agent(Protocol):
    """A teacher or a student."""

    @property
    def observation_space(self) -> gym.Space: ...
    @property
    def action_space(self) -> gym.Space: ...


def environment_for(teacher: Teacher, asked: EnvironmentOptions | str | None) -> tuple[EnvironmentSpec, tuple[str, ...]]:
    """``choose_environment`` for a teacher; an id alone will do."""
    options = asked if isinstance(asked, EnvironmentOptions) else EnvironmentOptions(asked)
    return choose_environment(teacher, teacher.saved_env, options)


def choose_environment(agent: Agent, saved: EnvironmentSpec | None, asked: EnvironmentOptions) -> tuple[EnvironmentSpec, tuple[str, ...]]:
    """Settle the environment and what the user should know about it.

    Without ``env`` it is the saved one, as it exists here. Each of the other options replaces what was saved of its kind.

    With ``env`` it is what that names, and nothing of the saved one, but for wrappers without which its spaces would not be the agent's.
    Where it names the saved ``module:ID`` once more, it is the saved one, and the module may be imported.

    Args:
        agent: who acts there; the spaces are compared.
        saved: the environment as the agent's files tell it, or None.
        asked: what the user says.

    Raises:
        RequestError: if nothing says which environment it is, if it or a wrapper cannot be had, or if a wrapper that a file names would
            have to be imported.
    """
    if saved is not None and (again := named_again(saved, asked.env)):
        saved, asked = again, replace(asked, env=None)
    if asked.env is not None:
        spec, notices = _named(agent, saved, asked)
    elif saved is not None:
        own = None if asked.wrappers is None else effective((asked_name(name), kwargs) for name, kwargs in asked.wrappers)
        wrappers = _merged(saved.wrappers, own, asked.frame_stack)
        check_wrappers(wrappers)
        spec, notices = modernize(replace(saved, wrappers=wrappers), observation_width(space_without_mask(agent.observation_space)))
        kwargs = {**spec.kwargs, **asked.env_kwargs}
        spec = replace(spec, kwargs=kwargs, max_episode_steps=asked.max_episode_steps or spec.max_episode_steps)
    else:
        raise RequestError("the agent's files do not say which environment it was trained in: give --env, for example --env CartPole-v1")
    if isinstance(agent, Teacher):
        spec, padded = fill_stack(spec, agent)
        notices += padded
    return _masking(spec, agent), notices


def _masking(spec: EnvironmentSpec, agent: Agent) -> EnvironmentSpec:
    """The environment with its action masks among the observations, for an agent that reads them."""
    if not has_mask(agent.observation_space) or MASKS in dict(spec.wrappers):
        return spec
    return replace(spec, wrappers=(*spec.wrappers, (MASKS, {})))


def fill_stack(spec: EnvironmentSpec, teacher: Teacher) -> tuple[EnvironmentSpec, tuple[str, ...]]:
    """For a teacher that normalised its frames before they were stacked: the stack begins with what it reads as zeros.

    Raises:
        RequestError: if the environment has no such stack outside all other wrappers, or is filled for another agent.
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
    what = "frames were normalised before they were stacked: those before an episode's first are the mean of the statistics here, which is"
    return spec, (f"{what} zero once it is normalised",)


def _paddings(teacher: Teacher) -> list[np.ndarray]:
    """The raw frame before an episode's first, of each agent that normalised its frames one by one."""
    agents: Iterable[Any] = teacher.network.members if isinstance(teacher.network, Ensemble) else [teacher]
    found = [agent.normalization.padding for agent in agents if agent.normalization is not None]
    return [padding for padding in found if padding is not None]


def _named(agent: Agent, saved: EnvironmentSpec | None, asked: EnvironmentOptions) -> tuple[EnvironmentSpec, tuple[str, ...]]:
    """The environment of ``asked.env``."""
    assert asked.env is not None
    spec, notices = named(asked), list(substitution(asked.env))
    if saved is None:
        return spec, tuple(notices)
    if any(name not in spec.kwargs for name in saved.kwargs):
        given = shlex.quote(json.dumps(dict(saved.kwargs)))
        notices.append(f"--env names the environment without the arguments that the agent was saved with; --env-kwargs {given} gives them")
    has_stack = asked.frame_stack is not None or any(name == STACK for name, _ in spec.wrappers)
    candidates = [
        (name, kwargs)
        for name, kwargs in saved.wrappers
        if (name, kwargs) not in spec.wrappers and name != PADDING and (not has_stack if name == STACK else asked.wrapper is None)
    ]
    if not candidates:
        return spec, tuple(notices)
    needed: list[Wrapper] = []
    if not _fits(spec, agent):
        stacked = bool(spec.wrappers) and spec.wrappers[-1][0] == STACK and asked.frame_stack is not None
        inner, stack = (spec.wrappers[:-1], spec.wrappers[-1:]) if stacked else (spec.wrappers, ())
        needed = _needed(replace(spec, wrappers=inner), candidates)
        wrapped = replace(spec, wrappers=(*inner, *needed, *stack))
        if needed and _fits(wrapped, agent):
            spec = wrapped
            what = f"the agent reads and acts as {spec.id} does only within wrappers that it was saved with, which are kept"
            notices.append(f"{what}: {_words(needed)}")
        else:
            check_wrappers(candidates)  # an unknown one may be what is missing
            needed = []
    if left := [wrapper for wrapper in candidates if wrapper not in needed]:
        notices.append(f"--env names the environment without these wrappers, which the agent was saved with: {_words(left)}")
    return spec, tuple(notices)


def _merged(saved: Sequence[Wrapper], own: tuple[Wrapper, ...] | None, frame_stack: int | None) -> tuple[Wrapper, ...]:
    """The user's wrappers in place of the agent's, and the stack outside. What an entry of envs/ pads belongs to the environment."""
    if own is None and frame_stack is None:
        return tuple(saved)
    padding = [wrapper for wrapper in saved if wrapper[0] == PADDING]
    inner = [wrapper for wrapper in saved if wrapper[0] not in (PADDING, STACK)] if own is None else own
    stacked = any(name == STACK for name, _ in inner)
    return (*padding, *inner, *(() if stacked and frame_stack is None else _stack(saved, frame_stack)))


def _stack(saved: Sequence[Wrapper], frame_stack: int | None) -> tuple[Wrapper, ...]:
    """The saved stack, or one of ``frame_stack`` frames; if the saved one has as many, it is kept with its padding."""
    known = tuple(wrapper for wrapper in saved if wrapper[0] == STACK)
    if frame_stack is None or (len(known) == 1 and known[0][1].get("n_stack") == frame_stack):
        return known
    return ((STACK, {"n_stack": frame_stack}),) if frame_stack > 1 else ()


def _needed(spec: EnvironmentSpec, candidates: Sequence[Wrapper]) -> list[Wrapper]:
    """Those of the known ``candidates`` that change a space of the environment, one around the other."""
    env: gym.Env = make(spec)
    found: list[Wrapper] = []
    try:
        before = env.observation_space, env.action_space
        for name, kwargs in candidates:
            if name not in WRAPPERS:
                continue
            try:
                with quiet_known_warnings():
                    env = wrap(env, name, kwargs)
            except RequestError:  # it is not for this environment
                continue
            after = env.observation_space, env.action_space
            if after != before:
                found.append((name, kwargs))
            before = after
    finally:
        env.close()
    return found


def _fits(spec: EnvironmentSpec, agent: Agent) -> bool:
    env = make(_masking(spec, agent))
    try:
        return first_difference((agent.observation_space, agent.action_space), (env.observation_space, env.action_space)) is None
    finally:
        env.close()


def _words(wrappers: Sequence[Wrapper]) -> str:
    """Names of wrappers, and the options that ask for them."""
    names = ", ".join(name for name, _ in wrappers)
    plain = [(name, kwargs) for name, kwargs in wrappers if name != STACK]
    options = [wrapper_options(plain)] if plain else []
    options += [f"--frame-stack {kwargs.get('n_stack')}" for name, kwargs in wrappers if name == STACK]
    return f"{names} ({' '.join(options)})"
