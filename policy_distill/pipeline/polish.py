"""The stage after imitation: a student that did not keep enough of the return is trained on by reward, and the best of it is kept."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from policy_distill.environments.specs import make
from policy_distill.evaluation.statistics import contrast, episodes_to_show, shows_positive_mean
from policy_distill.export.sb3 import why_not_ppo
from policy_distill.pipeline.context import Kept, Run, as_finalist, kept_enough
from policy_distill.pipeline.records import track_validation
from policy_distill.policies.student import Student
from policy_distill.rollouts.episodes import Episodes
from policy_distill.rollouts.ppo_rollouts import RolloutEnv
from policy_distill.support.figures import return_text
from policy_distill.support.seeds import derived_seed
from policy_distill.training.kickstart import Snapshot, kickstart


@dataclass(frozen=True)
class PolishRecord:
    """One look at the student on the way.

    Attributes:
        env_steps: of this stage so far.
        metrics: see ``kickstart.Snapshot``.
        validation_return_mean, validation_retention: on the first validation seeds.
        validation_retention_standard_error: paired by seed; see ``Run.retention_standard_error``.
        finalist_return_mean, finalist_episodes: on all that it played, and how many they were, of a student that came into the final
            choice.
    """

    env_steps: int
    metrics: dict[str, float]
    validation_return_mean: float
    validation_retention: float
    finalist_return_mean: float | None = None
    validation_retention_standard_error: float = float("nan")
    finalist_episodes: int | None = None

    def figures(self) -> str:
        """One line for the display."""
        train = self.metrics.get("train_return_mean", float("nan"))
        return (
            f"polish    {self.env_steps:>7,} steps  sampled return {return_text(train)}  "
            f"return {return_text(self.validation_return_mean)}  retention {self.validation_retention:.3f}"
        )


@dataclass
class Polished:
    """What the stage found.

    Attributes:
        start: the retention that it began with, on all validation seeds.
        start_origin: where the student that it began with comes from.
        kept: its best student, or the one that it began with.
        records: of each look.
        chosen: index of the record that was kept; None if none beat the start.
        critic: the value network that belongs to the kept student; None with ``chosen``.
    """

    start: float
    start_origin: str
    kept: Kept
    records: list[PolishRecord] = field(default_factory=list)
    chosen: int | None = None
    critic: list[nn.Linear] | None = None

    def summary(self) -> dict[str, Any]:
        """For result.json."""
        return {
            "start": self.start_origin,
            "start_retention": self.start,
            "chosen": self.chosen,
            "records": [dataclasses.asdict(record) for record in self.records],
        }


def polish_if_needed(run: Run, kept: Kept) -> Polished | None:
    """Train on by reward unless imitation has shown that it keeps ``polish.below``; None where there was no need or no way."""
    config, job = run.job.config.polish, run.job
    if config.below == 0 or not np.isfinite(run.retention(kept.returns)) or _shows_enough(run, kept):
        return None
    reason = why_not_ppo(job.architecture)
    if job.teacher.needs_float64:
        reason = "Stable-Baselines3 reads observations in float32, which is too coarse for these"
    if reason:
        run.display.note(f"not polished: {reason}")
        return None
    kept = _played_on(run, kept)
    if _shows_enough(run, kept):
        return None
    start = run.retention(kept.returns)
    run.display.note(f"{kept.origin} keeps {start:.3f}, which does not show {config.below}: training on by reward")
    run.display.start("polishing", config.snapshots)
    polished = Polished(start, kept.origin, kept)
    students: list[Student] = []
    critics: list[list[nn.Linear]] = []
    returns: list[np.ndarray] = []
    waiting: list[tuple[Snapshot, Callable[[], Episodes]]] = []
    last: Snapshot
    seed = derived_seed(job.config.seed, 4)

    def note_answer() -> None:
        snapshot, answer = waiting.pop()
        episodes = answer()
        record = PolishRecord(
            snapshot.env_steps,
            snapshot.metrics,
            float(episodes.returns.mean()),
            run.retention(episodes.returns),
            validation_retention_standard_error=run.retention_standard_error(episodes.returns),
        )
        students.append(snapshot.student)
        returns.append(episodes.returns)
        polished.records.append(record)
        run.display.advance(record.figures())
        env_steps = run.env_steps + record.env_steps  # the axis goes on where imitation ended
        run.tracker.scalars("polish", record.metrics, env_steps)
        track_validation(run.tracker, env_steps, record.validation_return_mean, record.validation_retention, run.validation_reference)

    def on_snapshot(snapshot: Snapshot) -> bool:
        """The workers measure this one while PPO goes on; ask about the last one first, and say whether it was enough."""
        nonlocal last
        if waiting:
            note_answer()
        critics.append(snapshot.critic)
        waiting.append((snapshot, run.begin_validation(snapshot.student)))
        last = snapshot
        shares = [record.validation_retention for record in polished.records]
        lately = shares[-config.patience :]
        given_up = len(lately) == config.patience and max(lately) < config.hopeless * polished.start
        return given_up or kept_enough(shares, config.enough)

    with run.watch.measure("polish"):
        with contextlib.closing(_environments(run, seed)) as environments:
            kickstart(kept.student, job.teacher, environments, job.objective, config, seed=seed, on_snapshot=on_snapshot)
        note_answer()
    with run.watch.measure("evaluate"):
        chosen, full = run.choose(students, returns, at_least=polished.start)
    for index, values in full.items():
        polished.records[index] = as_finalist(polished.records[index], values)
    if chosen is not None and _fresh(run, full[chosen]).mean() > _fresh(run, kept.returns[: len(full[chosen])]).mean():
        polished.chosen, polished.critic = chosen, critics[chosen]
        polished.kept = Kept(students[chosen], full[chosen], f"polish, {polished.records[chosen].env_steps:,} steps")
    run.env_steps += polished.records[-1].env_steps
    run.gradient_steps += last.gradient_steps
    return polished


def _environments(run: Run, seed: int) -> RolloutEnv:
    """Where rollouts are taken, in as many processes as the run has."""
    job, config = run.job, run.job.config.polish
    made = [functools.partial(make, job.spec)] * config.num_envs
    return RolloutEnv(made, config.num_steps, seed=seed, workers=run.rollouts.num_workers, step_timeout=job.config.step_timeout)


def _shows_enough(run: Run, kept: Kept) -> bool:
    return shows_positive_mean(_above(run, kept), run.job.config.polish.confidence)


def _above(run: Run, kept: Kept) -> np.ndarray:
    """The contrast ``[E]`` with ``polish.below``, on fresh seeds."""
    count = len(kept.returns)
    student, teacher, chance = (_fresh(run, returns[:count]) for returns in (kept.returns, run.teacher_returns, run.random_returns))
    return contrast(student, teacher, chance, run.job.config.polish.below)


def _fresh(run: Run, returns: np.ndarray) -> np.ndarray:
    """Returns ``[E]`` on the seeds by which a student did not come among the finalists; those by which it did flatter it.

    Where there are no others, on them all.
    """
    return returns[run.num_first :] if len(returns) > run.num_first else returns


def _played_on(run: Run, kept: Kept) -> Kept:
    """The student after as many further episodes as are likely to show that it keeps enough; as it was, where too many would be needed."""
    config, above = run.job.config.polish, _above(run, kept)
    more = (episodes_to_show(above, config.confidence) or 0) - len(above)
    if not 0 < more <= config.further_episodes:
        return kept
    run.display.note(f"{kept.origin} keeps {run.retention(kept.returns):.3f}: {more} more episodes may show {config.below}")
    with run.watch.measure("evaluate"):
        return run.play_on(kept, more)
