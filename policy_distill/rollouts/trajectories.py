"""Whole episodes step by step: observations, actions and rewards. ``evaluate`` keeps only returns and lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from policy_distill.config import RequestError
from policy_distill.environments.border import own_random_state
from policy_distill.environments.specs import LONG_EPISODE, EnvironmentSpec, endless, time_limit
from policy_distill.policies.actions import ActionTargets
from policy_distill.policies.policy import Policy
from policy_distill.rollouts.acting import Player, labelling
from policy_distill.rollouts.episodes import Returns, evaluation_seeds
from policy_distill.rollouts.play import Ended, Recorder, play
from policy_distill.support import trees
from policy_distill.support.trees import Tree
from policy_distill.teachers import RecurrentTeacher


@dataclass(frozen=True)
class Trajectory:
    """One episode of T steps.

    Attributes:
        seed: of the episode.
        observations: ``[T, ...]``, before each action.
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
def record(policy: Policy | None, spec: EnvironmentSpec, seeds: Sequence[int], *, max_steps: int | None = None) -> list[Trajectory]:
    """Run one episode for each seed and keep every step; the episodes are those of ``evaluate``.

    Args:
        policy: the acting policy; None acts uniformly at random.
        spec: the environment.
        seeds: one for each episode.
        max_steps: steps after which an episode is cut off; None: only the environment ends it.

    Returns:
        The episodes in the order of ``seeds``.

    Raises:
        EnvironmentFault: see ``evaluate``.
    """
    recorder = _Steps(seeds)
    play([policy], spec, seeds, recorder, max_steps=max_steps)
    return [recorder.done[episode] for episode in range(len(seeds))]


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


def check_ends(spec: EnvironmentSpec, policies: Mapping[str, Policy | None]) -> None:
    """Play an episode of each policy if the environment has no known time limit.

    Args:
        spec: the environment.
        policies: policies by their name in messages; None acts at random.

    Raises:
        RequestError: if an episode does not end in ``LONG_EPISODE`` steps.
    """
    if time_limit(spec) is not None:
        return
    for name, policy in policies.items():
        recorder = Returns(1)
        with own_random_state():
            play([policy], spec, evaluation_seeds("check", 1), recorder, max_steps=LONG_EPISODE)
        if not recorder.over[0]:
            raise RequestError("; ".join(endless(spec, name, LONG_EPISODE)))


class _Steps(Recorder):
    """Records every step of every episode.

    Attributes:
        done: finished episodes by the index of their seed.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = seeds
        self._running: dict[int, tuple[list[Tree], list[np.ndarray], list[float]]] = {}
        self.done: dict[int, Trajectory] = {}

    def began(self, slot: int, episode: int) -> None:
        self._running[slot] = [], [], []

    def acted(self, observations: Tree, policy_actions: Sequence[Any], running: list[int]) -> None:
        for slot in running:
            episode_observations, actions, _ = self._running[slot]
            episode_observations.append(trees.copied(trees.rows(observations, slot)))
            actions.append(np.array(policy_actions[0][slot]))

    def stepped(self, rewards: list[float], running: list[int]) -> None:
        for slot in running:
            self._running[slot][2].append(rewards[slot])

    def ended(self, end: Ended) -> None:
        observations, actions, rewards = self._running.pop(end.slot)
        arrays = trees.stack(observations), np.stack(actions), np.array(rewards)
        outcome = trees.copied(end.observation), end.terminated, end.truncated
        self.done[end.episode] = Trajectory(int(self._seeds[end.episode]), *arrays, *outcome)
