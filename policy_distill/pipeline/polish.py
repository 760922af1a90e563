"""The stage after self-distillation: a student that did not keep enough is trained on by reward, and the best of it is kept."""

from __future__ import annotations

import contextlib
import dataclasses
import functools

import gymnasium as gym
import numpy as np
from torch import nn

from policy_distill.environments.specs import EnvironmentSpec, make
from policy_distill.evaluation.statistics import contrast, episodes_to_show, shows_positive_mean
from policy_distill.export.sb3 import why_not_ppo
from policy_distill.pipeline.context import Services, kept_enough
from policy_distill.pipeline.records import Candidate, track_validation
from policy_distill.pipeline.state import Kept, State
from policy_distill.policies.student import Student
from policy_distill.policies.views import View, ViewedEnv
from policy_distill.rollouts.episodes import Episodes
from policy_distill.rollouts.ppo_rollouts import RolloutEnv
from policy_distill.support.pending import Pending
from policy_distill.support.seeds import derived_seed
from policy_distill.training.kickstart import Snapshot, kickstart


def polish(state: State, services: Services) -> State:
    """Train on by reward unless it is shown that the student keeps ``polish.below``, or there is no way to.

    The whole stage is one advance: what PPO has in its environments and in its optimiser is no part of the state.
    """
    job, config, display, kept = services.job, services.job.config.polish, services.display, state.kept[-1]
    state.stage = "value"
    if config.below == 0 or not np.isfinite(state.retention(kept.returns)) or _shows_enough(state, services):
        return state
    reason = why_not_ppo(job.architecture.without_view)
    if job.teacher.needs_float64:
        reason = "Stable-Baselines3 reads observations in float32, which is too coarse for these"
    if reason:
        display.note(f"not polished: {reason}")
        return state
    _play_on(state, services)
    if _shows_enough(state, services):
        return state
    kept = state.kept[-1]
    start = state.retention(kept.returns)
    display.note(f"{kept.origin} keeps {start:.3f}, which does not show {config.below}: training on by reward")
    display.start("polishing", config.snapshots)
    looks, seed = _Looks(state, services, start), derived_seed(job.config.seed, 4)
    with state.measure("polish"):
        job.objective.calibrate(state.dataset.training_rows()[1])
        with contextlib.closing(_environments(services, seed)) as environments:
            kickstart(
                kept.student.behind(job.architecture.without_view),
                job.teacher,
                environments,
                job.objective,
                config,
                seed=seed,
                on_snapshot=looks.take,
            )
        looks.note()
    records = looks.records
    with state.measure("evaluate"):
        chosen, full = services.choose(state, looks.students, looks.returns, at_least=start)
    for index, values in full.items():
        records[index] = records[index].as_finalist(values)
    if chosen is not None and _fresh(state, full[chosen]).mean() > _fresh(state, kept.returns[: len(full[chosen])]).mean():
        records[chosen] = dataclasses.replace(records[chosen], kept=True)
        state.kept.append(Kept(looks.students[chosen], full[chosen], f"polish, {records[chosen].env_steps:,} steps"))
        state.critic = looks.critics[chosen]
    state.records += records
    state.env_steps += records[-1].env_steps
    state.gradient_steps += records[-1].gradient_steps
    return state


class _Looks:
    """Students on the way, each measured by the workers while PPO goes on.

    Args:
        state, services: of the run.
        start: retention of the student that PPO began with.
    """

    def __init__(self, state: State, services: Services, start: float) -> None:
        self._state, self._services, self._start = state, services, start
        self._waiting: Pending[Episodes] | None = None
        self.students: list[Student] = []
        self.critics: list[list[nn.Linear]] = []
        self.returns: list[np.ndarray] = []
        self.records: list[Candidate] = []

    def take(self, snapshot: Snapshot) -> bool:
        """Have a student measured; read about the last one first, and say whether that was enough."""
        self.note()
        student = snapshot.student.behind(self._services.job.architecture)
        self.students.append(student)
        self.critics.append(snapshot.critic)
        self.records.append(Candidate("polish", len(self.students), snapshot.env_steps, snapshot.gradient_steps, snapshot.metrics))
        self._waiting = self._services.begin_validation(self._state, student)
        config = self._services.job.config.polish
        shares = [record.validation_retention for record in self.records[:-1]]
        lately = shares[-config.patience :]
        given_up = len(lately) == config.patience and max(lately) < config.hopeless * self._start
        return given_up or kept_enough(shares, config.enough)

    def note(self) -> None:
        """Wait for what the last student earned, and record it."""
        if self._waiting is None:
            return
        state, services = self._state, self._services
        self.returns.append(self._waiting.result().returns)
        self.records[-1] = record = state.validated(self.records[-1], self.returns[-1])
        services.display.advance(record.figures())
        env_steps = state.env_steps + record.env_steps  # the axis goes on where imitation ended
        services.tracker.scalars("polish", record.train, env_steps)
        track_validation(services.tracker, record, env_steps, state.reference)


def _environments(services: Services, seed: int) -> RolloutEnv:
    """Where rollouts are taken, in as many processes as the run has."""
    job, config = services.job, services.job.config.polish
    made = [functools.partial(_make, job.spec, job.architecture.view)] * config.num_envs
    return RolloutEnv(made, config.num_steps, seed=seed, workers=services.rollouts.num_workers, step_timeout=job.config.step_timeout)


def _make(spec: EnvironmentSpec, view: View | None) -> gym.Env:
    return make(spec) if view is None else ViewedEnv(make(spec), view)


def _shows_enough(state: State, services: Services) -> bool:
    config = services.job.config.polish
    return shows_positive_mean(_above(state, config.below), config.confidence)


def _above(state: State, share: float) -> np.ndarray:
    """The contrast ``[E]`` of the kept student with ``share``, on fresh seeds."""
    student, teacher, chance = (_fresh(state, returns) for returns in state.beside(state.kept[-1].returns))
    return contrast(student, teacher, chance, share)


def _fresh(state: State, returns: np.ndarray) -> np.ndarray:
    """Returns ``[E]`` on the seeds by which a student did not come among the finalists; those by which it did flatter it.

    Where there are no others, on them all.
    """
    return returns[state.num_first :] if len(returns) > state.num_first else returns


def _play_on(state: State, services: Services) -> None:
    """Let the kept student play as many further episodes as are likely to show that it keeps enough, unless too many would be needed."""
    config, kept = services.job.config.polish, state.kept[-1]
    above = _above(state, config.below)
    more = (episodes_to_show(above, config.confidence) or 0) - len(above)
    if not 0 < more <= config.further_episodes:
        return
    services.display.note(f"{kept.origin} keeps {state.retention(kept.returns):.3f}: {more} more episodes may show {config.below}")
    with state.measure("evaluate"):
        services.play_on(state, more)
