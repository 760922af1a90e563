"""The stage after self-distillation: PPO fine-tunes a student that did not keep enough return, and the best snapshot is kept."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
from torch import nn

from policy_distill.evaluation.statistics import contrast, episodes_to_show, shows_positive_mean
from policy_distill.pipeline.context import Services, kept_enough
from policy_distill.pipeline.records import Candidate, track_validation
from policy_distill.pipeline.state import Kept, State
from policy_distill.policies.student import Student
from policy_distill.rollouts.episodes import Episodes
from policy_distill.support.pending import Pending
from policy_distill.support.seeds import derived_seed
from policy_distill.training.kickstart import Snapshot, kickstart


def polish(state: State, services: Services) -> State:
    """Fine-tune the kept student with PPO, unless it is shown to keep ``polish.below`` or cannot be fine-tuned.

    The whole stage is one advance: PPO's environments and optimiser are not part of the state.
    """
    job, config, display, kept = services.job, services.job.config.polish, services.display, state.kept[-1]
    state.stage = "value"
    if config.below == 0 or not np.isfinite(state.retention(kept.returns)) or _shows_enough(state, services):
        return state
    if not (family := job.architecture.family).has_density:
        display.note(f"not polished: {type(family).__name__} has no draw and log_prob, which training by reward needs")
        return state
    _extend_validation(state, services)
    if _shows_enough(state, services):
        return state
    kept = state.kept[-1]
    start = state.retention(kept.returns)
    display.note(f"{kept.origin} keeps {start:.3f}, which does not show {config.below}: training on by reward")
    display.start("polishing", config.snapshots)
    snapshots, seed = _Snapshots(state, services, start), derived_seed(job.config.seed, 4)
    with state.timed("polish"):
        job.objective.calibrate(state.dataset.training_rows()[1])
        with contextlib.closing(services.rollouts.for_ppo(config.num_envs, config.num_steps, seed)) as environments:
            student = kept.student.behind(job.architecture.without_view)  # its view lies around the environments
            kickstart(student, job.teacher, environments, job.objective, config, seed=seed, on_snapshot=snapshots.take)
        snapshots.record_last()
    records = snapshots.records
    with state.timed("evaluate"):
        chosen, full = services.choose(state, snapshots.students, snapshots.returns, at_least=start)
    for index, returns in full.items():
        records[index] = records[index].as_finalist(returns)
    if chosen is not None and _fresh(state, full[chosen]).mean() > _fresh(state, kept.returns[: len(full[chosen])]).mean():
        records[chosen] = dataclasses.replace(records[chosen], kept=True)
        state.kept.append(Kept(snapshots.students[chosen], full[chosen], f"polish, {records[chosen].env_steps:,} steps"))
        state.critic = snapshots.critics[chosen]
    state.records += records
    state.env_steps += records[-1].env_steps
    state.gradient_steps += records[-1].gradient_steps
    return state


class _Snapshots:
    """Snapshots of the student, evaluated by the workers while PPO continues; ``start`` is the retention before PPO."""

    def __init__(self, state: State, services: Services, start: float) -> None:
        self._state, self._services, self._start = state, services, start
        self._evaluation: Pending[Episodes] | None = None
        self.students: list[Student] = []
        self.critics: list[list[nn.Linear]] = []
        self.returns: list[np.ndarray] = []
        self.records: list[Candidate] = []

    def take(self, snapshot: Snapshot) -> bool:
        """Record the last snapshot's returns, start the evaluation of this one, and return whether PPO should stop."""
        self.record_last()
        student = snapshot.student.behind(self._services.job.architecture)
        self.students.append(student)
        self.critics.append(snapshot.critic)
        self.records.append(Candidate("polish", len(self.students), snapshot.env_steps, snapshot.gradient_steps, snapshot.metrics))
        self._evaluation = self._services.begin_validation(self._state, student)
        config = self._services.job.config.polish
        retentions = [record.validation_retention for record in self.records[:-1]]
        recent = retentions[-config.patience :]
        hopeless = len(recent) == config.patience and max(recent) < config.hopeless * self._start
        return hopeless or kept_enough(retentions, config.enough)

    def record_last(self) -> None:
        """Wait for the last snapshot's evaluation, and record its returns."""
        if self._evaluation is None:
            return
        state, services = self._state, self._services
        self.returns.append(self._evaluation.result().returns)
        self.records[-1] = record = state.validated(self.records[-1], self.returns[-1])
        services.display.advance(record.figures())
        env_steps = state.env_steps + record.env_steps  # the axis continues where imitation ended
        services.tracker.scalars("polish", record.train, env_steps)
        track_validation(services.tracker, record, env_steps, state.reference)


def _shows_enough(state: State, services: Services) -> bool:
    config = services.job.config.polish
    return shows_positive_mean(_contrast(state, config.below), config.confidence)


def _contrast(state: State, share: float) -> np.ndarray:
    """The contrast ``[E]`` of the kept student with ``share``, on fresh seeds; see ``statistics.contrast``."""
    student, teacher, random = (_fresh(state, returns) for returns in state.with_references(state.kept[-1].returns))
    return contrast(student, teacher, random, share)


def _fresh(state: State, returns: np.ndarray) -> np.ndarray:
    """Returns ``[E]`` without those that selected the finalists, which are biased upwards; all returns if there are no further ones."""
    return returns[state.num_first :] if len(returns) > state.num_first else returns


def _extend_validation(state: State, services: Services) -> None:
    """Play further episodes if at most ``polish.further_episodes`` are likely to show that the kept student keeps enough."""
    config, kept = services.job.config.polish, state.kept[-1]
    contrasts = _contrast(state, config.below)
    more = (episodes_to_show(contrasts, config.confidence) or 0) - len(contrasts)
    if not 0 < more <= config.further_episodes:
        return
    services.display.note(f"{kept.origin} keeps {state.retention(kept.returns):.3f}: {more} more episodes may show {config.below}")
    with state.timed("evaluate"):
        services.extend_validation(state, more)
