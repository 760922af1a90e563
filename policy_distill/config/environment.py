"""What a user says of the environment: arguments, wrappers, frame stack, length of an episode."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from policy_distill.config.checks import RequestError, require

Wrapper: TypeAlias = tuple[str, Mapping[str, Any]]
"""A wrapper's name and its keyword arguments."""
Arguments: TypeAlias = Mapping
"""Keyword arguments by name. Without the types of what it holds, for which jsonargparse would turn the text "1" into a number."""
WrapperRequest: TypeAlias = str | dict
"""A wrapper as a user writes it: ``NAME``, or ``{NAME: {argument: value}}``."""
NO_WRAPPER = "none"
RESERVED = {"render_mode": "render_policy sets it", "max_episode_steps": "give --max-episode-steps N"}
"""Arguments of ``gymnasium.make`` that are no arguments of the environment -> what to do instead."""


@dataclass(frozen=True)
class EnvironmentOptions:
    """The environment, as far as the user names it; what is left out is as the agent was saved."""

    env: str | None = None
    """Gymnasium id (``module:ID`` imports the module first), entry of envs/, or a YAML file like them. Left out: the agent's own."""
    env_kwargs: Arguments = field(default_factory=dict)
    """Keyword arguments of the environment, over those that it was saved with: '{"gravity": -5}', or the RL Zoo's gravity:-5 wind:True."""
    wrapper: tuple[WrapperRequest, ...] | None = None
    """Wrappers around the environment, innermost first, in place of those the agent was saved with: a known name (TimeFeatureWrapper) or
    module:Class, which is imported; '{"NAME": {"argument": 1}}' with arguments; none for no wrapper. May be given several times."""
    frame_stack: int | None = None
    """Stack this many observations, as Stable-Baselines3's VecFrameStack does, outside the wrappers; 1: none."""
    max_episode_steps: int | None = None
    """Truncate an episode after this many steps, instead of after those that the environment is registered with."""

    def __post_init__(self) -> None:
        require(self.frame_stack is None or self.frame_stack >= 1, "frame_stack", self.frame_stack, ">= 1 (1: no stack)")
        require(self.max_episode_steps is None or self.max_episode_steps >= 1, "max_episode_steps", self.max_episode_steps, ">= 1")
        for name, instead in RESERVED.items():
            require(name not in self.env_kwargs, "env_kwargs", self.env_kwargs, f"arguments of the environment, without {name}: {instead}")
        _ = self.wrappers  # checks them

    @property
    def wrappers(self) -> tuple[Wrapper, ...] | None:
        """Names and keyword arguments, innermost first; None where the user left them to the agent.

        Raises:
            RequestError: if one is no name, or ``none`` stands beside others.
        """
        if self.wrapper is None:
            return None
        found = tuple(_parsed(request) for request in self.wrapper)
        none = [name for name, _ in found if name == NO_WRAPPER]
        require(not none or len(found) == 1, "wrapper", self.wrapper, f"{NO_WRAPPER} alone, or the names of wrappers")
        return () if none else found

    def options(self) -> str:
        """All but ``--env`` as options of a command, ready for a shell."""
        words = [f"--env_kwargs {shlex.quote(json.dumps(dict(self.env_kwargs)))}"] if self.env_kwargs else []
        words += [wrapper_options(self.wrappers)] if self.wrappers is not None else []
        numbers = {"frame_stack": self.frame_stack, "max_episode_steps": self.max_episode_steps}
        return " ".join([*words, *(f"--{name} {number}" for name, number in numbers.items() if number is not None)])


def _parsed(request: WrapperRequest) -> Wrapper:
    name, kwargs = next(iter(request.items())) if isinstance(request, dict) and len(request) == 1 else (request, None)
    if not isinstance(name, str) or not isinstance(kwargs, dict | None) or not re.fullmatch(r"[^\W\d]\w*([.:][^\W\d]\w*)*", name):
        raise RequestError(f"wrapper is {request!r}; it must be a known name, module:Class, or {{NAME: {{argument: value}}}}")
    return name, dict(kwargs or {})


def wrapper_options(wrappers: Iterable[Wrapper]) -> str:
    """The options that ask for these wrappers, ready for a shell: ``--wrapper A --wrapper '{"B": {"n": 2}}'``."""
    requests = [json.dumps({name: dict(kwargs)}) if kwargs else name for name, kwargs in wrappers] or [NO_WRAPPER]
    return " ".join(f"--wrapper {shlex.quote(request)}" for request in requests)
