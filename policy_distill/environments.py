"""From an entry of envs/ or a Gymnasium id to an environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym


@dataclass(frozen=True)
class EnvironmentSpec:
    """An environment as data: enough to make it again."""

    id: str
    """Gymnasium id."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of ``gymnasium.make``."""
    wrappers: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """Names and keyword arguments of the wrappers around it, innermost first; only names that this module knows."""


def data_dir(name: str) -> Path:
    return Path(__file__).resolve().parent.parent / name


def resolve(name: str) -> EnvironmentSpec:
    return EnvironmentSpec(id=name)


def make(spec: EnvironmentSpec, *, render_mode: str | None = None) -> gym.Env:
    return gym.make(spec.id, disable_env_checker=True, **spec.kwargs)
