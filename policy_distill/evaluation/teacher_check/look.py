"""A first look at a few episodes, step by step: what must not go on to the workers is stopped here."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np

from policy_distill.environments.specs import LONG_EPISODE, EnvironmentSpec, endless, time_limit
from policy_distill.evaluation.teacher_check.behaviour import NOT_FINITE, Behaviour, observe, targets_of
from policy_distill.evaluation.teacher_check.findings import Finding
from policy_distill.evaluation.teacher_check.returns import Idle, against_idle
from policy_distill.rollouts.episodes import Episodes
from policy_distill.rollouts.trajectories import Trajectory, record
from policy_distill.support.trees import concatenate
from policy_distill.teachers import Teacher

HARDLY_REACTS = 0.05
"""``Behaviour.reaction``: below, a continuous agent is compared with one that does nothing. New networks show 0.001 to 0.04."""


@dataclass(frozen=True)
class Look:
    """What a few episodes showed.

    Attributes:
        own, random: episodes of the teacher and of a random policy on the same seeds; they were cut off where ``stop`` says so.
        behaviour: how the teacher acts in its own states, or in the random policy's if it was not let to act.
        stop: why nothing further need be played; None if all is well.
        warning: what else was found by playing.
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
    """Play one episode a seed, first at random, then by the teacher unless it answers with NaN: that would crash an environment.

    Args:
        teacher: the agent.
        spec: the environment.
        seeds: one for each episode.
        compare_with_idle: play what does nothing, too, where the teacher hardly reacts to what it sees.
    """
    longest = max(time_limit(spec) or LONG_EPISODE, 1)
    by_chance = record(None, spec, seeds, max_steps=longest)
    behaviour = _behaviour(teacher, by_chance)
    if not behaviour.finite:
        return Look(_episodes([]), _episodes(by_chance), behaviour, NOT_FINITE)
    played = record(teacher, spec, seeds, max_steps=longest)
    going_on = next((who for who, part in (("the agent", played), ("a random policy", by_chance)) if not all(x.ended for x in part)), None)
    stop = None
    if going_on:
        stop = Finding("stop", "never_ends", *endless(spec, going_on, longest))
    own, random, behaviour = _episodes(played), _episodes(by_chance), _behaviour(teacher, played)
    if compare_with_idle and stop is None and behaviour.reaction is not None and behaviour.reaction < HARDLY_REACTS:
        assert isinstance(teacher.action_space, gym.spaces.Box)
        idle = _episodes(record(Idle(teacher.action_space), spec, seeds, max_steps=longest))
        beside_idle = against_idle(own.returns, idle.returns, random.returns)
        if beside_idle is not None and beside_idle.severity == "warn":
            return Look(own, random, behaviour, None, beside_idle)
        stop = beside_idle
    return Look(own, random, behaviour, stop)


def judge_lengths(lengths: np.ndarray) -> list[Finding]:
    """Episodes ``[E]`` that are over at once."""
    if not (lengths == 1).all():
        return []
    fix = "unless the task is a bandit, look whether the environment, its version and its wrappers are those of training"
    return [Finding("warn", "one_step_episodes", f"each of {len(lengths)} episodes was over after one step", fix)]


def _behaviour(teacher: Teacher, played: list[Trajectory]) -> Behaviour:
    observations = concatenate([episode.observations for episode in played])
    return observe(teacher, observations, targets_of(teacher, observations))


def _episodes(played: list[Trajectory]) -> Episodes:
    return Episodes(
        np.array([episode.seed for episode in played], np.int64),
        np.array([episode.episode_return for episode in played]),
        np.array([len(episode.rewards) for episode in played], np.int64),
    )
