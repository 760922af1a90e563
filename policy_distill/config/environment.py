"""User settings of the environment: id, arguments, wrappers, frame stack and episode length."""

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
"""Keyword arguments by name. The type of the values is left open, because jsonargparse would otherwise turn the text "1" into a number."""
WrapperRequest: TypeAlias = str | dict
"""A wrapper as a user writes it: ``NAME``, or ``{NAME: {argument: value}}``."""
NO_WRAPPER = "none"
RESERVED = {"render_mode": "render_policy sets it", "max_episode_steps": "give --max-episode-steps N"}
"""Arguments of ``gymnasium.make`` that do not reach the environment -> what to do instead."""


@dataclass(frozen=True)
class EnvironmentOptions:
    """The environment settings that the user gave; those left out are the agent's saved ones."""

    env: str | None = None
    """Gymnasium id (``module:ID`` imports the module first), entry of envs/, or a YAML file like them. Left out: the agent's own."""
    env_kwargs: Arguments = field(default_factory=dict)
    """Keyword arguments of the environment, which override saved ones: '{"gravity": -5}', or the RL Zoo's form gravity:-5 wind:True."""
    wrapper: tuple[WrapperRequest, ...] | None = None
    """Wrappers around the environment, innermost first, which replace the saved ones: a known name (TimeFeatureWrapper) or module:Class,
    which is imported; '{"NAME": {"argument": 1}}' with arguments; none for no wrapper. May be given several times."""
    frame_stack: int | None = None
    """Number of observations to stack outside the wrappers, as Stable-Baselines3's VecFrameStack does; 1: no stack."""
    max_episode_steps: int | None = None
    """Truncate episodes after this many steps, instead of the limit that the environment is registered with."""

    def __post_init__(self) -> None:
        require(self.frame_stack is None or self.frame_stack >= 1, "frame_stack", self.frame_stack, ">= 1 (1: no stack)")
        require(self.max_episode_steps is None or self.max_episode_steps >= 1, "max_episode_steps", self.max_episode_steps, ">= 1")
        for name, instead in RESERVED.items():
            require(name not in self.env_kwargs, "env_kwargs", self.env_kwargs, f"arguments of the environment, without {name}: {instead}")
        _ = self.wrappers  # checks them

    @property
    def wrappers(self) -> tuple[Wrapper, ...] | None:
        """Names and keyword arguments, innermost first; None if the user gave none, so that the agent's saved wrappers apply.

        Raises:
            RequestError: if one is malformed, or ``none`` is combined with others.
        """
        if self.wrapper is None:
            return None
        found = tuple(_parsed(request) for request in self.wrapper)
        none = [name for name, _ in found if name == NO_WRAPPER]
        require(not none or len(found) == 1, "wrapper", self.wrapper, f"{NO_WRAPPER} alone, or the names of wrappers")
        return () if none else found

    def options(self) -> str:
        """All settings but ``--env`` as command-line options, quoted for a shell."""
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
    """Command-line options for these wrappers, quoted for a shell: ``--wrapper A --wrapper '{"B": {"n": 2}}'``."""
    requests = [json.dumps({name: dict(kwargs)}) if kwargs else name for name, kwargs in wrappers] or [NO_WRAPPER]
    return " ".join(f"--wrapper {shlex.quote(request)}" for request in requests)
