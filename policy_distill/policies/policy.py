"""Interfaces of policies, without and with a state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from policy_distill.support.trees import Tree

State: TypeAlias = Any
"""State of a policy for N parallel episodes; None if it has none."""


class FeedForward(Protocol):
    """A policy without a state: a teacher, a student, an exported file or a custom policy."""

    def act(self, observations: Tree) -> np.ndarray:
        """Actions that ``env.step`` accepts, from raw observations ``[B, ...]``."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A policy with a state, such as a memory of the episode or a random generator for each episode."""

    def initial_state(self, num_envs: int) -> State:
        """The state before the first step of N environments."""
        ...

    def step(self, observations: Tree, state: State, starts: np.ndarray | None) -> tuple[Any, State]:
        """The actions, and the state for the next step.

        Args:
            observations: raw, ``[N, ...]``.
            state: what the last call returned, or ``initial_state``.
            starts: ``[N]`` int64. Where an episode begins with this observation, the episode's seed, or its number within the run if it
                has none; elsewhere ``GOES_ON``. None: all episodes continue.
        """
        ...


@runtime_checkable
class StatefulTeacher(Stateful, Protocol):
    """A teacher with a state; it labels trajectories of any acting policy."""

    def label(self, observations: Tree, state: State, starts: np.ndarray | None) -> tuple[Any, State]:
        """The teacher's ``ActionTargets`` for the observations, and the state; see ``step``."""
        ...


Policy: TypeAlias = FeedForward | Stateful


class Memoryless:
    """A function of observations ``[N, ...]`` as a policy whose state is None.

    Args:
        function: maps a batch to actions or labels; each output row must depend on its input row alone.
    """

    def __init__(self, function: Callable[[Tree], Any]) -> None:
        self._function = function

    def initial_state(self, num_envs: int) -> State:
        return None

    def step(self, observations: Tree, state: State, starts: np.ndarray | None) -> tuple[Any, State]:
        return self._function(observations), None
