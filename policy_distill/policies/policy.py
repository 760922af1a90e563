"""What acts: a policy that answers from what it sees alone, or one that has a state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from policy_distill.support.trees import Tree

State: TypeAlias = Any
"""What a policy remembers of N episodes that it plays side by side; None if it remembers nothing."""


class FeedForward(Protocol):
    """A policy without a state: teachers, students, an exported file, a user's own."""

    def act(self, observations: Tree) -> np.ndarray:
        """Raw observations ``[B, ...]`` to actions that ``env.step`` accepts."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A policy with a state: it remembers the episode, or draws its actions from a generator of the episode's own."""

    def initial_state(self, num_envs: int) -> State:
        """The state before the first step of N environments."""
        ...

    def step(self, observations: Tree, state: State, starts: np.ndarray | None) -> tuple[Any, State]:
        """The actions, and the state for the next step.

        Args:
            observations: raw, ``[N, ...]``.
            state: what the last call returned, or ``initial_state``.
            starts: ``[N]`` int64. In a row whose episode begins with this observation, the episode's seed, or its number in a run where
                it has none; ``GOES_ON`` in the others. None: all of them go on.
        """
        ...


@runtime_checkable
class StatefulTeacher(Stateful, Protocol):
    """A teacher with a state, which labels along a trajectory, whoever acts."""

    def label(self, observations: Tree, state: State, starts: np.ndarray | None) -> tuple[Any, State]:
        """The teacher's ``ActionTargets`` of the observations, and the state; see ``step``."""
        ...


Policy: TypeAlias = FeedForward | Stateful


class Memoryless:
    """A function of observations ``[N, ...]`` as a policy whose state is None.

    Args:
        answer: what it says about a batch; its rows must not depend on each other.
    """

    def __init__(self, answer: Callable[[Tree], Any]) -> None:
        self._answer = answer

    def initial_state(self, num_envs: int) -> State:
        return None

    def step(self, observations: Tree, state: State, starts: np.ndarray | None) -> tuple[Any, State]:
        return self._answer(observations), None
