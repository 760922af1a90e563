"""Whole episodes step by step: what was seen, done and earned. ``evaluate`` keeps the sums alone."""

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
        observations: ``[T, ...]``, on each of which an action was taken.
        actions: ``[T, ...]`` as the environment received them.
        rewards: ``[T]``, float64.
        last_observation: ``[...]``, after the last step.
        terminated, truncated: how it ended; neither, if it was cut off.
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
        """Sum of the rewards, added one after the other as ``evaluate`` does: in another order the last bit would be another.

        ``sum`` will not do: from Python 3.12 on it carries what rounding loses.
        """
        return float(np.cumsum(self.rewards)[-1]) if len(self.rewards) else 0.0

    @property
    def ended(self) -> bool:
        """False if the episode was still going on when ``max_steps`` cut it off."""
        return self.terminated or self.truncated


@own_random_state()
def record(policy: Policy | None, spec: EnvironmentSpec, seeds: Sequence[int], *, max_steps: int | None = None) -> list[Trajectory]:
    """Run one episode for each seed and keep every step; the episodes are those of ``evaluate``.

    Args:
        policy: acts; None acts uniformly at random.
        spec: the environment.
        seeds: one for each episode.
        max_steps: steps after which an episode is cut off; None: only the environment ends it.

    Returns:
        the episodes in the order of ``seeds``.

    Raises:
        EnvironmentFault: as ``evaluate``.
    """
    recorder = _Steps(seeds)
    play([policy], spec, seeds, recorder, max_steps=max_steps)
    return [recorder.done[episode] for episode in range(len(seeds))]


@torch.inference_mode()
def labels_along(teacher: RecurrentTeacher, episodes: Sequence[Trajectory]) -> ActionTargets:
    """What a teacher with a memory would have done in each step of whole episodes ``[B, ...]``, one episode after the other.

    The labels are those of the steps themselves, bit for bit, whoever acted.
    """
    parameters: dict[str, list[np.ndarray]] = {}
    actions = []
    for episode in episodes:
        player = Player(labelling(teacher, 1), 1)
        for step, observation in enumerate(trees.blocks(episode.observations, 1)):
            told, action = player(observation, np.array([episode.seed]) if step == 0 else None)
            actions.append(action.copy())
            for name, values in told.items():
                parameters.setdefault(name, []).append(values.copy())
    joined = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in parameters.items()}
    return ActionTargets(joined, torch.from_numpy(np.concatenate(actions)))


def check_ends(spec: EnvironmentSpec, policies: Mapping[str, Policy | None]) -> None:
    """Play an episode of each policy where no time limit is known.

    Args:
        spec: the environment.
        policies: by who they are, in words; None acts at random.

    Raises:
        RequestError: if one does not end in ``LONG_EPISODE`` steps.
    """
    if time_limit(spec) is not None:
        return
    for who, policy in policies.items():
        recorder = Returns(1)
        with own_random_state():
            play([policy], spec, evaluation_seeds("check", 1), recorder, max_steps=LONG_EPISODE)
        if not recorder.over[0]:
            raise RequestError("; ".join(endless(spec, who, LONG_EPISODE)))


class _Steps(Recorder):
    """Every step of every episode.

    Attributes:
        done: the episodes that are over, by the number of their seed.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = seeds
        self._going: dict[int, tuple[list[Tree], list[np.ndarray], list[float]]] = {}
        self.done: dict[int, Trajectory] = {}

    def began(self, slot: int, episode: int) -> None:
        self._going[slot] = [], [], []

    def acted(self, observations: Tree, answers: Sequence[Any], running: list[int]) -> None:
        for slot in running:
            seen, done, _ = self._going[slot]
            seen.append(trees.copied(trees.rows(observations, slot)))
            done.append(np.array(answers[0][slot]))

    def stepped(self, rewards: list[float], running: list[int]) -> None:
        for slot in running:
            self._going[slot][2].append(rewards[slot])

    def ended(self, end: Ended) -> None:
        seen, done, rewards = self._going.pop(end.slot)
        arrays = trees.stack(seen), np.stack(done), np.array(rewards)
        how = trees.copied(end.observation), end.terminated, end.truncated
        self.done[end.episode] = Trajectory(int(self._seeds[end.episode]), *arrays, *how)
