"""Whole episodes step by step: observations, actions and rewards. ``evaluate`` keeps only returns and lengths."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch

from policy_distill.config import RequestError
from policy_distill.environments.border import own_random_state
from policy_distill.environments.specs import LONG_EPISODE, EnvironmentSpec, endless, longest_episode
from policy_distill.policies.actions import ActionTargets, joined
from policy_distill.policies.policy import Policy
from policy_distill.rollouts.acting import Player, labelling
from policy_distill.rollouts.episodes import Returns, evaluation_seeds
from policy_distill.rollouts.play import Ended, Recorder, play
from policy_distill.support import trees
from policy_distill.support.trees import Tree
from policy_distill.teachers import RecurrentTeacher, Teacher

AT_ONCE_BYTES = 2**29
"""Size of the observations of a group of episodes that are recorded together, if each is as long as it may be."""


@dataclass(frozen=True)
class Trajectory:
    """One episode of T steps.

    Attributes:
        seed: of the episode.
        observations: ``[T, ...]``, before each action; every n-th of them, beginning with the first, if ``record`` had to limit them.
        actions: ``[T, ...]`` as the environment received them.
        rewards: ``[T]``, float64.
        last_observation: ``[...]``, after the last step.
        terminated, truncated: how it ended; both False if it was cut off.
    """

    seed: int
    observations: Tree
    actions: np.ndarray
    rewards: np.ndarray
    last_observation: Tree
    terminated: bool
    truncated: bool

    @property
    def episode_return(self) -> float:
        """Sum of the rewards, added in the same order as in ``evaluate``, so that both agree bit for bit.

        ``sum`` would not: since Python 3.12 it compensates for rounding errors.
        """
        return float(np.cumsum(self.rewards)[-1]) if len(self.rewards) else 0.0

    @property
    def ended(self) -> bool:
        """False if ``max_steps`` cut the episode off."""
        return self.terminated or self.truncated


@own_random_state()
def record(
    policy: Policy | None, spec: EnvironmentSpec, seeds: Sequence[int], *, max_steps: int | None = None, max_bytes: float = math.inf
) -> list[Trajectory]:
    """Run one episode for each seed and keep every step; the episodes are those of ``evaluate``.

    Args:
        policy: the acting policy; None acts uniformly at random.
        spec: the environment.
        seeds: one for each episode.
        max_steps: steps after which an episode is cut off; None: only the environment ends it.
        max_bytes: maximum size of all observations. If they are more, every second of them is dropped, as often as necessary.

    Returns:
        The episodes in the order of ``seeds``.

    Raises:
        EnvironmentFault: see ``evaluate``.
    """
    recorder = _Steps(seeds, max_bytes)
    play([policy], spec, seeds, recorder, max_steps=max_steps)
    return [recorder.done[episode] for episode in range(len(seeds))]


@torch.inference_mode()
def labels_of(teacher: Teacher, observations: Tree) -> ActionTargets:
    """Labels of a teacher without a memory for raw ``observations`` ``[B, ...]``, in several forward passes on its device."""
    device = teacher.anchor.device
    on_device = (trees.map_leaves(lambda part: part.to(device), rows) for rows in trees.passes(trees.to_tensors(observations)))
    return joined([teacher.targets(rows) for rows in on_device])


@torch.inference_mode()
def labels_along(teacher: RecurrentTeacher, episodes: Sequence[Trajectory]) -> ActionTargets:
    """Labels ``[B, ...]`` of a recurrent teacher for each step of whole episodes, one episode after the other.

    They are the same, bit for bit, as labels made during the episodes. The acting policy may be any.
    """
    parameters: dict[str, list[np.ndarray]] = {}
    actions = []
    for episode in episodes:
        player = Player(labelling(teacher, 1), 1)
        for step, observation in enumerate(trees.blocks(episode.observations, 1)):
            step_parameters, action = player(observation, np.array([episode.seed]) if step == 0 else None)
            actions.append(action.copy())
            for name, values in step_parameters.items():
                parameters.setdefault(name, []).append(values.copy())
    joined = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in parameters.items()}
    return ActionTargets(joined, torch.from_numpy(np.concatenate(actions)))


def episodes_at_once(spec: EnvironmentSpec, observation_space: gym.Space) -> int:
    """Number of episodes whose observations need at most ``AT_ONCE_BYTES``, but at least one."""
    steps = min(longest_episode(spec) or LONG_EPISODE, LONG_EPISODE)
    return max(1, AT_ONCE_BYTES // max(trees.row_bytes(observation_space) * steps, 1))


def check_ends(spec: EnvironmentSpec, policies: Mapping[str, Policy | None]) -> None:
    """Play an episode of each policy if the environment has no known time limit.

    Args:
        spec: the environment.
        policies: policies by their name in messages; None acts at random.

    Raises:
        RequestError: if an episode does not end in ``LONG_EPISODE`` steps.
    """
    if longest_episode(spec) is not None:
        return
    for name, policy in policies.items():
        recorder = Returns(1)
        with own_random_state():
            play([policy], spec, evaluation_seeds("check", 1), recorder, max_steps=LONG_EPISODE)
        if not recorder.over[0]:
            raise RequestError("; ".join(endless(spec, name, LONG_EPISODE)))


class _Steps(Recorder):
    """Records every step of every episode.

    Args:
        seeds: seeds of the episodes.
        max_bytes: maximum size of all observations.

    Attributes:
        done: finished episodes by the index of their seed.
    """

    def __init__(self, seeds: Sequence[int], max_bytes: float = math.inf) -> None:
        self._seeds, self._max_bytes = seeds, max_bytes
        self._every = 1
        self._kept = 0
        """Number of observations."""
        self._running: dict[int, _Running] = {}
        self.done: dict[int, Trajectory] = {}

    def began(self, slot: int, episode: int) -> None:
        self._running[slot] = _Running([], [], [])

    def acted(self, observations: Tree, policy_actions: Sequence[Any], running: list[int]) -> None:
        for slot in running:
            episode = self._running[slot]
            if len(episode.actions) % self._every == 0:
                episode.observations.append(trees.copied(trees.rows(observations, slot)))
                self._kept += 1
            episode.actions.append(np.array(policy_actions[0][slot]))
        row_bytes = sum(leaf[0].nbytes for leaf in trees.leaves(observations))
        while self._kept * row_bytes > self._max_bytes and self._kept > len(self._seeds):
            self._drop_every_second()

    def _drop_every_second(self) -> None:
        self._every *= 2
        for episode in self._running.values():
            del episode.observations[1::2]
        for index, trajectory in self.done.items():
            kept = trees.copied(trees.rows(trajectory.observations, slice(None, None, 2)))
            self.done[index] = dataclasses.replace(trajectory, observations=kept)
        of_done = sum(trees.length(trajectory.observations) for trajectory in self.done.values())
        self._kept = of_done + sum(len(episode.observations) for episode in self._running.values())

    def stepped(self, rewards: list[float], running: list[int]) -> None:
        for slot in running:
            self._running[slot].rewards.append(rewards[slot])

    def ended(self, end: Ended) -> None:
        episode = self._running.pop(end.slot)
        arrays = trees.stack(episode.observations), np.stack(episode.actions), np.array(episode.rewards)
        outcome = trees.copied(end.observation), end.terminated, end.truncated
        self.done[end.episode] = Trajectory(int(self._seeds[end.episode]), *arrays, *outcome)


class _Running(NamedTuple):
    """The steps so far of an episode."""

    observations: list[Tree]
    actions: list[np.ndarray]
    rewards: list[float]
