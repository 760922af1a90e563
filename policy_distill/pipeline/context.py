"""What the stages of one job share: workers, log, clock, and what teacher, random policy and students earn on the validation seeds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from policy_distill.evaluation.return_cache import KnownReturns
from policy_distill.evaluation.statistics import contrast
from policy_distill.pipeline.prepare import Job
from policy_distill.policies.policy import Policy
from policy_distill.policies.student import Student
from policy_distill.report.tensorboard import Tracker
from policy_distill.rollouts.episodes import Episodes, evaluation_seeds, merge
from policy_distill.rollouts.workers import Rollouts
from policy_distill.support.progress import Display

Record = TypeVar("Record", bound=Any)
"""Of a candidate: a dataclass with ``finalist_return_mean`` and ``finalist_episodes``."""

CONSECUTIVE_PASSES = 3
"""Measurements in a row that must be good enough to end a stage early."""


class Stopwatch:
    """Seconds spent in each stage."""

    def __init__(self) -> None:
        self.seconds = {"collect": 0.0, "train": 0.0, "polish": 0.0, "evaluate": 0.0}
        self._started = time.perf_counter()

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - began

    def read(self) -> dict[str, float]:
        """Seconds of each stage and in total since the watch was made."""
        return {**self.seconds, "total": time.perf_counter() - self._started}


@dataclass(frozen=True)
class Kept:
    """The student that a stage hands on.

    Attributes:
        student: itself.
        returns: ``[E]`` on all validation seeds.
        origin: where it comes from, in words: ``round 7``, ``polish, 102,400 steps``.
    """

    student: Student
    returns: np.ndarray
    origin: str


class Run:
    """Services and counters shared by the stages.

    Args:
        job, rollouts, tracker, display: what the stages work with.
        known: where returns of "teacher" and "random" are kept from job to job; who is left out plays each time.

    Attributes:
        teacher_returns, random_returns: ``[E]`` on all validation seeds: those of every round first, then those of the finalists.
        env_steps, gradient_steps: that training has taken so far, all stages together.
        evaluation_env_steps: that measuring has taken, reported apart; episodes that were known take none.
        reused_episodes: of teacher and random policy that were known from earlier jobs, and not played.
    """

    def __init__(
        self, job: Job, rollouts: Rollouts, tracker: Tracker, display: Display, known: Mapping[str, KnownReturns] | None = None
    ) -> None:
        self.job, self.rollouts, self.tracker, self.display = job, rollouts, tracker, display
        self.known = known or {}
        self.watch = Stopwatch()
        self.teacher_returns = self.random_returns = np.zeros(0)
        self.env_steps = self.gradient_steps = self.evaluation_env_steps = self.reused_episodes = 0
        evaluate = job.config.evaluate
        self.num_first = evaluate.validation_episodes
        self.seeds = evaluation_seeds("validation", evaluate.validation_episodes + evaluate.finalist_episodes)

    @property
    def validation_reference(self) -> tuple[float, float]:
        """Mean returns of the teacher and of a random policy on the seeds that every candidate plays."""
        return float(self.teacher_returns[: self.num_first].mean()), float(self.random_returns[: self.num_first].mean())

    def begin(self, policy: Policy | str, seeds: Sequence[int], *, with_agreement: bool = False) -> Callable[[], Episodes]:
        """Start measuring and return what waits for the answer; see ``Rollouts.begin_evaluation``.

        Episodes of teacher and random policy that are known are not played again, unless agreement is asked for.
        """
        store = self.known.get(policy) if isinstance(policy, str) and not with_agreement else None
        if store is None:
            return self._play(policy, seeds, with_agreement)
        known = store.read(seeds)
        self.reused_episodes += len(known.seeds)
        unknown = sorted(set(seeds) - set(known.seeds.tolist()))
        if not unknown:
            return lambda: known
        answer = self._play(policy, unknown, with_agreement)

        def wait() -> Episodes:
            played = answer()
            store.add(played)
            return merge([known, played])

        return wait

    def _play(self, policy: Policy | str, seeds: Sequence[int], with_agreement: bool) -> Callable[[], Episodes]:
        answer = self.rollouts.begin_evaluation(policy, seeds, num_envs=self.job.config.evaluate.num_envs, with_agreement=with_agreement)

        def wait() -> Episodes:
            episodes = answer.result()
            self.evaluation_env_steps += episodes.env_steps
            return episodes

        return wait

    def begin_validation(self, student: Student) -> Callable[[], Episodes]:
        """Start measuring on the seeds that every candidate plays."""
        return self.begin(student, self.seeds[: self.num_first])

    def validate(self, students: Sequence[Student]) -> list[Episodes]:
        """What students earn on these seeds, all measured side by side."""
        return [answer() for answer in [self.begin_validation(student) for student in students]]

    def play_on(self, kept: Kept, episodes: int) -> Kept:
        """Measure a student that has played all validation seeds, and with it teacher and random policy, on this many more of them."""
        known = len(self.seeds)
        self.seeds = evaluation_seeds("validation", known + episodes)
        waiting = [self.begin(who, self.seeds[known:]) for who in ("teacher", "random", kept.student)]
        teacher, chance, student = (answer().returns for answer in waiting)
        self.teacher_returns = np.concatenate([self.teacher_returns, teacher])
        self.random_returns = np.concatenate([self.random_returns, chance])
        return dataclasses.replace(kept, returns=np.concatenate([kept.returns, student]))

    def retention(self, returns: np.ndarray) -> float:
        """Of the means over the first ``len(returns)`` validation seeds; nan where the teacher earns no more than a random policy."""
        count = len(returns)
        teacher, chance = self.teacher_returns[:count].mean(), self.random_returns[:count].mean()
        return float((returns.mean() - chance) / (teacher - chance)) if teacher > chance else float("nan")

    def retention_standard_error(self, returns: np.ndarray) -> float:
        """Of ``retention(returns)``, paired by seed; nan where that is nan or there is one episode.

        The delta method for a ratio of means: the spread of ``contrast`` at the estimate, over the gap of teacher and random policy.
        """
        count, share = len(returns), self.retention(returns)
        if count < 2 or not np.isfinite(share):
            return float("nan")
        teacher, chance = self.teacher_returns[:count], self.random_returns[:count]
        spread = contrast(returns, teacher, chance, share).std(ddof=1)
        return float(spread / count**0.5 / (teacher.mean() - chance.mean()))

    def choose(
        self, students: Sequence[Student], returns: Sequence[np.ndarray], at_least: float | None = None
    ) -> tuple[int | None, dict[int, np.ndarray]]:
        """Let the best few candidates play on the further validation seeds, half of them less and less, and choose among the last two.

        The best of many noisy means flatters itself, and more episodes for all of them would mostly go to those that are out of the
        question (sequential halving, Karnin et al. 2013, https://proceedings.mlr.press/v28/karnin13.html). Of equals the later one is
        kept.

        Args:
            students: the candidates.
            returns: of each, ``[num_first]`` on the first validation seeds.
            at_least: a retention; who keeps less of it on what it has played drops out too, most episodes would go to such candidates.

        Returns:
            Index of the candidate to keep, None if all dropped out; and the returns of each finalist on the validation seeds that it
            played; the one to keep played all of them.
        """
        evaluate = self.job.config.evaluate
        played = dict(enumerate(returns))

        def best(count: int) -> dict[int, np.ndarray]:
            able = [index for index, own in played.items() if at_least is None or self.retention(own) >= at_least]
            return {index: played[index] for index in sorted(able, key=lambda index: (played[index].mean(), index), reverse=True)[:count]}

        full = played = best(evaluate.finalists)
        known = self.num_first
        for survivors, episodes in halving(evaluate.finalists, evaluate.finalist_episodes):
            seeds = self.seeds[known : self.num_first + episodes]
            waiting = {index: self.begin(students[index], seeds) for index in best(survivors)}
            played = {index: np.concatenate([played[index], answer().returns]) for index, answer in waiting.items()}
            full, known = full | played, self.num_first + episodes
        return next(iter(best(1)), None), full


def kept_enough(shares: Sequence[float], enough: float) -> bool:
    """Whether the last ``CONSECUTIVE_PASSES`` retentions are all at least ``enough``; nan is not."""
    return len(shares) >= CONSECUTIVE_PASSES and all(share >= enough for share in shares[-CONSECUTIVE_PASSES:])


def as_finalist(record: Record, returns: np.ndarray) -> Record:
    """The record of a candidate that came into the final choice, with its returns ``[E]`` on the validation seeds that it played."""
    return dataclasses.replace(record, finalist_return_mean=float(returns.mean()), finalist_episodes=len(returns))


def halving(candidates: int, episodes: int) -> list[tuple[int, int]]:
    """How many candidates go on, and how many episodes each of them has then played: twice as many for half of them, in each stage.

    The last two play ``episodes``. Stages without an episode are left out.
    """
    survivors = [candidates]
    while survivors[-1] > 2:
        survivors.append(-(-survivors[-1] // 2))
    shares = [episodes >> later for later in range(len(survivors))][::-1]
    return [stage for stage, before in zip(zip(survivors, shares, strict=True), [0, *shares], strict=False) if stage[1] > before]
