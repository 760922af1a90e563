"""First episodes, recorded step by step: they detect NaN and endless episodes before workers are started."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from policy_distill.environments.specs import LONG_EPISODE, EnvironmentSpec, endless, longest_episode
from policy_distill.evaluation.teacher_check.behaviour import NOT_FINITE, Behaviour, observe
from policy_distill.evaluation.teacher_check.findings import Finding
from policy_distill.evaluation.teacher_check.returns import Idle, against_idle
from policy_distill.rollouts.episodes import Episodes
from policy_distill.rollouts.trajectories import Trajectory, labels_along, labels_of, record
from policy_distill.support.trees import concatenate
from policy_distill.teachers import RecurrentTeacher, Teacher

HARDLY_REACTS = 0.05
"""``Behaviour.reaction`` below which a continuous agent is compared with an idle one. Untrained networks have 0.001 to 0.04."""
MAX_BYTES = 2**28
"""Size of the states that the statistics are computed from; of longer episodes of images they are every second, fourth, ... state."""


@dataclass(frozen=True)
class Look:
    """Result of the first episodes.

    Attributes:
        own, random: episodes of the teacher and of a random policy on the same seeds; truncated if ``stop`` is ``never_ends``.
        behaviour: statistics of the teacher's actions in its own states, or in the random policy's if it did not act.
        stop: a finding that makes further episodes pointless; None if there is none.
        warning: another finding.
    """

    own: Episodes
    random: Episodes
    behaviour: Behaviour
    stop: Finding | None
    warning: Finding | None = None

    @property
    def env_steps(self) -> int:
        return self.own.env_steps + self.random.env_steps


def look(teacher: Teacher, spec: EnvironmentSpec, seeds: list[int], *, compare_with_idle: bool = True) -> Look:
    """Play one episode per seed, first at random, then with the teacher unless it returns NaN, which could crash the environment.

    Args:
        teacher: the agent.
        spec: the environment.
        seeds: one for each episode.
        compare_with_idle: also play an idle policy if the teacher hardly reacts to observations.
    """
    longest = max(longest_episode(spec) or LONG_EPISODE, 1)
    # A teacher with a memory labels whole episodes.
    limits: dict[str, Any] = {"max_steps": longest, "max_bytes": math.inf if isinstance(teacher, RecurrentTeacher) else MAX_BYTES}
    random_episodes = record(None, spec, seeds, **limits)
    behaviour = _behaviour(teacher, random_episodes)
    if not behaviour.finite:
        return Look(_episodes([]), _episodes(random_episodes), behaviour, NOT_FINITE)
    played = record(teacher, spec, seeds, **limits)
    endless_actor = next(
        (name for name, part in (("the agent", played), ("a random policy", random_episodes)) if not all(x.ended for x in part)), None
    )
    stop = None
    if endless_actor:
        stop = Finding("stop", "never_ends", *endless(spec, endless_actor, longest))
    own, random, behaviour = _episodes(played), _episodes(random_episodes), _behaviour(teacher, played)
    if compare_with_idle and stop is None and behaviour.reaction is not None and behaviour.reaction < HARDLY_REACTS:
        assert isinstance(teacher.action_space, gym.spaces.Box)
        idle = _episodes(record(Idle(teacher.action_space), spec, seeds, **limits))
        beside_idle = against_idle(own.returns, idle.returns, random.returns)
        if beside_idle is not None and beside_idle.severity == "warn":
            return Look(own, random, behaviour, None, beside_idle)
        stop = beside_idle
    return Look(own, random, behaviour, stop)


def judge_lengths(lengths: np.ndarray) -> list[Finding]:
    """A finding if all episodes, of lengths ``[E]``, end after one step."""
    if not (lengths == 1).all():
        return []
    fix = "unless the task is a bandit, check that the environment, its version and its wrappers are those of training"
    return [Finding("warn", "one_step_episodes", f"each of {len(lengths)} episodes ended after one step", fix)]


def _behaviour(teacher: Teacher, played: list[Trajectory]) -> Behaviour:
    observations = concatenate([episode.observations for episode in played])
    if isinstance(teacher, RecurrentTeacher):
        return observe(teacher, observations, labels_along(teacher, played))
    return observe(teacher, observations, labels_of(teacher, observations))


def _episodes(played: list[Trajectory]) -> Episodes:
    return Episodes(
        np.array([episode.seed for episode in played], np.int64),
        np.array([episode.episode_return for episode in played]),
        np.array([len(episode.rewards) for episode in played], np.int64),
    )
