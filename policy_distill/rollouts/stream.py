"""Continuing environments, which begin a new episode after each end: the loop behind collection and PPO rollouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import numpy as np

from policy_distill.environments.border import Finite
from policy_distill.environments.vector import GOES_ON, Group, Slots
from policy_distill.rollouts.acting import Player
from policy_distill.support import trees

Actor: TypeAlias = Callable[[int, Slots, Any], np.ndarray]
"""A function from the step, the environments' slots and the labels to the executed actions ``[N, ...]``."""
Results: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Rewards, terminated, truncated of a step, ``[N]`` each."""


class StreamRecorder(Protocol):
    """Records the steps of a stream."""

    def record(self, step: int, slots: Slots, labels: Any) -> Results:
        """Record the observations and labels of a step; return the arrays that the step's results are written to."""
        ...


class Streams:
    """A share of a run's environments. Their episodes continue from one call of ``stream`` to the next.

    Args:
        groups: the environments in groups, each with its slice of the slots.
        indices: indices of these environments in the run, which are also the numbers of their first episodes.

    Attributes:
        slots: current observations and episodes.
    """

    def __init__(self, groups: list[tuple[slice, Group]], indices: range) -> None:
        self._indices = indices
        self.action_space = groups[0][1].action_space
        self.slots = Slots.of_space(groups[0][1].observation_space, indices)
        self._places = [(part, group, self.slots.of(part)) for part, group in groups]
        self._all_finite = Finite(self.slots.observations)

    def reset(self) -> None:
        """Begin the first episodes."""
        self.slots.episodes[:] = self._indices
        for _, group, slots in self._places:
            group.reset(slots)

    def close(self) -> None:
        """Close the environments."""
        for _, group, _ in self._places:
            group.close()

    def check(self) -> None:
        """Raise ``EnvironmentFault`` if an observation is not finite."""
        if not self._all_finite(self.slots.observations):
            slot = self._all_finite.first_wrong()
            part, group = next((part, group) for part, group, _ in self._places if part.start <= slot < part.stop)
            raise group.not_finite(slot - part.start, trees.rows(self.slots.observations, slot))

    def step(self, actions: np.ndarray, rewards: np.ndarray, terminated: np.ndarray, truncated: np.ndarray) -> None:
        """Execute ``actions`` ``[N, ...]`` and write the results."""
        self.slots.starts.fill(GOES_ON)
        if len(self._places) == 1:  # array views would double the overhead
            self._places[0][1].step(actions, self.slots, rewards, terminated, truncated)
            return
        for part, group, slots in self._places:
            group.step(actions[part], slots, rewards[part], terminated[part], truncated[part])


def stream(envs: Streams, num_steps: int, actor: Actor, labeller: Player | None, recorder: StreamRecorder) -> None:
    """Take ``num_steps`` steps in each environment.

    Args:
        envs: environments that have been reset.
        num_steps: T.
        actor: chooses the executed actions.
        labeller: labels each observation once; None: no labels.
        recorder: records the steps.

    Raises:
        EnvironmentFault: if an environment fails, or returns observations or rewards that are not finite.
    """
    slots = envs.slots
    for step in range(num_steps):
        envs.check()
        labels = None if labeller is None else labeller(slots.observations, slots.starts)
        results = recorder.record(step, slots, labels)
        envs.step(actor(step, slots, labels), *results)
