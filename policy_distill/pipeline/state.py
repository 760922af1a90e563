"""The state of a run: everything that it needs to continue, except what follows from its settings."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from torch import nn

from policy_distill.evaluation.certify import Certified
from policy_distill.evaluation.statistics import retention_of_means, retention_standard_error
from policy_distill.pipeline.prepare import Job
from policy_distill.pipeline.records import Candidate, Origin
from policy_distill.policies.student import Student
from policy_distill.rollouts.episodes import Episodes, evaluation_seeds
from policy_distill.training.dataset import Dataset
from policy_distill.training.ppo.kickstart import Kickstart
from policy_distill.training.trainer import Trainer
from policy_distill.training.value_network import DistilledValues

FOLDER = "checkpoint"
"""Folder of the checkpoint in a run folder; it is removed when the run is done."""
Stage = Literal["imitation", "choice", "self_distillation", "polish", "value", "view", "evaluation", "certificate", "done"]


@dataclass(frozen=True)
class Kept:
    """A student that a stage kept.

    Attributes:
        student: the student.
        returns: ``[E]`` on the first E validation seeds.
        origin: description of its stage: ``round 7``, ``polish, 102,400 steps``.
    """

    student: Student
    returns: np.ndarray
    origin: str


@dataclass
class Polishing:
    """Training by reward in progress.

    Attributes:
        training: PPO between two snapshots.
        students, critics: student and value network of each snapshot.
        returns: ``[num_first]`` of each snapshot but the last, whose student is evaluated while PPO continues.
        records: of each snapshot.
    """

    training: Kickstart
    students: list[Student] = field(default_factory=list)
    critics: list[list[nn.Linear]] = field(default_factory=list)
    returns: list[np.ndarray] = field(default_factory=list)
    records: list[Candidate] = field(default_factory=list)


@dataclass
class State:
    """State of a run between two advances.

    An advance is ``advance(state, services) -> state``: a round, the choice among the rounds' students, a generation, a snapshot of
    polishing, or a whole later stage. It changes the state in place and returns it. Between two advances no work is pending: the services
    may be closed and created again, here or in another process, and the run ends with the same student. A stage's progress is the number
    of its ``records``.

    Attributes:
        seeds: validation seeds; every candidate plays the first ``num_first``, finalists play more.
        num_first: number of validation seeds that every candidate plays.
        dataset: all collected transitions and the extra states.
        stage: the next advance.
        env_steps, gradient_steps: steps that training has taken so far in all stages.
        evaluation_env_steps: environment steps of evaluation, not part of ``env_steps``; cached episodes count none.
        reused_episodes: episodes of teacher and random policy taken from earlier jobs.
        seconds: time spent on each kind of work and in total.
        teacher_returns, random_returns: ``[E]`` on the first E validation seeds.
        records: records of all candidates so far.
        trainer: trainer of the rounds: the stack's weights and their averages, the optimiser, the generators that draw batches.
        students: students of all rounds, each round's members together.
        returns: ``[num_first]`` of each of ``students``; the last round's members are evaluated while the next round trains.
        first_rows: index of each round's first row among the dataset's training rows.
        teacher_parts, random_parts: final episodes played so far, in parts while rounds train.
        kept: the chosen round's student and its successors: generations and a polished student. The run continues with the last.
        polishing: training by reward in progress; None before and after.
        critic: value network of a polished student.
        values: distilled value network, if ``value.hidden_sizes`` is set.
        columns: components of what the student sees that vary, known after the first round; None: all of them.
        view_loss: held-out losses with the student's view and with all inputs; see ``pipeline.view_loss``.
        notices: notices of the run itself, after those of the job.
        student_episodes: final episodes of the kept student.
        certified: outcome of the sequential test, if ``evaluate.certify`` is set.
    """

    seeds: list[int]
    num_first: int
    dataset: Dataset
    stage: Stage = "imitation"
    env_steps: int = 0
    gradient_steps: int = 0
    evaluation_env_steps: int = 0
    reused_episodes: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("collect", "train", "polish", "evaluate", "total"), 0.0))
    teacher_returns: np.ndarray = field(default_factory=lambda: np.zeros(0))
    random_returns: np.ndarray = field(default_factory=lambda: np.zeros(0))
    records: list[Candidate] = field(default_factory=list)
    trainer: Trainer | None = None
    students: list[Student] = field(default_factory=list)
    returns: list[np.ndarray] = field(default_factory=list)
    first_rows: list[int] = field(default_factory=list)
    teacher_parts: list[Episodes] = field(default_factory=list)
    random_parts: list[Episodes] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    polishing: Polishing | None = None
    critic: list[nn.Linear] | None = None
    values: DistilledValues | None = None
    columns: tuple[int, ...] | None = None
    view_loss: dict[str, Any] | None = None
    notices: list[str] = field(default_factory=list)
    student_episodes: Episodes | None = None
    certified: Certified | None = None

    @classmethod
    def begin(cls, job: Job) -> State:
        """The state before any work."""
        collect, evaluate = job.config.collect, job.config.evaluate
        capacity = collect.env_steps // collect.num_envs * collect.num_envs + job.num_extra_states
        folder = job.folder / FOLDER if collect.storage == "disk" else None
        return cls(
            evaluation_seeds("validation", evaluate.validation_episodes + job.finalist_episodes),
            evaluate.validation_episodes,
            Dataset(
                capacity,
                holdout=job.config.train.holdout,
                device=job.device,
                folder=folder,
                sequences=job.architecture.memory > 0,
                stacks=job.stacks,
            ),
        )

    def records_of(self, origin: Origin) -> list[Candidate]:
        """Records of one stage."""
        return [record for record in self.records if record.origin == origin]

    @contextmanager
    def timed(self, work: str) -> Iterator[None]:
        """Add the block's duration to ``seconds[work]``."""
        began = time.perf_counter()
        yield
        self.seconds[work] += time.perf_counter() - began

    @property
    def reference(self) -> tuple[float, float]:
        """Mean returns of the teacher and of a random policy on the seeds that every candidate plays."""
        return float(self.teacher_returns[: self.num_first].mean()), float(self.random_returns[: self.num_first].mean())

    def with_references(self, returns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns ``[E]`` of a student on the first E validation seeds, of the teacher and of the random policy."""
        return returns, self.teacher_returns[: len(returns)], self.random_returns[: len(returns)]

    def retention(self, returns: np.ndarray) -> float:
        """Retention of a student with ``returns`` ``[E]`` on the first E validation seeds; see ``retention_of_means``."""
        return retention_of_means(*self.with_references(returns))

    def validated(self, record: Candidate, returns: np.ndarray) -> Candidate:
        """The record with its student's returns ``[E]`` on the first E validation seeds."""
        return dataclasses.replace(
            record,
            validation_return_mean=float(returns.mean()),
            validation_return_standard_error=float(returns.std() / max(len(returns) - 1, 1) ** 0.5),
            validation_retention=self.retention(returns),
            validation_retention_standard_error=retention_standard_error(*self.with_references(returns)),
        )
