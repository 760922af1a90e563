"""A first look at a few episodes, step by step: what must not go on to the workers is stopped here."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np

from policy_distill.check.behaviour import NOT_FINITE, Behaviour, observe, targets_of
from policy_distill.check.findings import Finding
from policy_distill.check.returns import Idle, against_idle
from policy_distill.environments import EnvironmentSpec
from policy_distill.evaluate import Episodes
from policy_distill.teachers import Teacher
from policy_distill.trajectories import Trajectory, play

HARDLY_REACTS = 0.05
"""Of half the range: below, a continuous agent is compared with one that does nothing. New networks show 0.001 to 0.04."""
NEVER_ENDING = 10_000
"""Steps after which an episode without a time limit is taken for one that does not end; fewer than ``border.NEVER_ENDING``, since every
step of several episodes is kept."""


@dataclass(frozen=True)
class Look:
    """What a few episodes showed.

    Attributes:
        own, random: episodes of the teacher and of a random policy on the same seeds; they were cut off where ``stop`` says so.
        behaviour: how the teacher acts in its own states, or in the random policy's if it was not let to act.
        stop: why nothing further need be played; None if all is well.
    """

    own: Episodes
    random: Episodes
    behaviour: Behaviour
    stop: Finding | None

    @property
    def env_steps(self) -> int:
        return self.own.env_steps + self.random.env_steps


def look(teacher: Teacher, spec: EnvironmentSpec, seeds: list[int]) -> Look:
    """Play one episode a seed, first at random, then by the teacher unless it answers with NaN: that would crash an environment."""
    longest = max(time_limit(spec) or NEVER_ENDING, 1)
    by_chance = play(None, spec, seeds, max_steps=longest)
    behaviour = _behaviour(teacher, by_chance)
    if not behaviour.finite:
        return Look(_episodes([]), _episodes(by_chance), behaviour, NOT_FINITE)
    played = play(teacher, spec, seeds, max_steps=longest)
    endless = next((who for who, part in (("the agent", played), ("a random policy", by_chance)) if not all(x.ended for x in part)), None)
    stop = None
    if endless:
        what = f"{spec.id} has no time limit, and an episode of {endless} went on for {longest:,} steps without an end"
        stop = Finding("stop", "never_ends", what, "give --max-episode-steps, for example 1000")
    own, random, behaviour = _episodes(played), _episodes(by_chance), _behaviour(teacher, played)
    if stop is None and behaviour.reaction is not None and behaviour.reaction < HARDLY_REACTS:
        assert isinstance(teacher.action_space, gym.spaces.Box)
        idle = _episodes(play(Idle(teacher.action_space), spec, seeds, max_steps=longest))
        stop = against_idle(own.returns, idle.returns, random.returns)
    return Look(own, random, behaviour, stop)


def time_limit(spec: EnvironmentSpec) -> int | None:
    """Steps after which an episode is truncated; None if neither the request nor the registration names any."""
    registered = gym.registry.get(spec.id.rpartition(":")[2])
    return spec.max_episode_steps or (registered.max_episode_steps if registered else None)


def judge_lengths(lengths: np.ndarray) -> list[Finding]:
    """Episodes ``[E]`` that are over at once."""
    if not (lengths == 1).all():
        return []
    mend = "unless the task is a bandit, look whether the environment, its version and its wrappers are those of training"
    return [Finding("warn", "one_step_episodes", f"each of {len(lengths)} episodes was over after one step", mend)]


def _behaviour(teacher: Teacher, played: list[Trajectory]) -> Behaviour:
    observations = np.concatenate([episode.observations for episode in played])
    return observe(teacher, observations, targets_of(teacher, observations))


def _episodes(played: list[Trajectory]) -> Episodes:
    return Episodes(
        np.array([episode.seed for episode in played], np.int64),
        np.array([episode.rewards.sum() for episode in played]),
        np.array([len(episode.rewards) for episode in played], np.int64),
    )
