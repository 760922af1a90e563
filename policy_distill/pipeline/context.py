"""What the stages of one job work with: workers, log, known returns; measuring students and choosing among them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from policy_distill.evaluation.return_cache import NONE, KnownReturns
from policy_distill.pipeline.prepare import Job
from policy_distill.pipeline.state import State
from policy_distill.policies.policy import Policy
from policy_distill.policies.student import Student
from policy_distill.report.tensorboard import Tracker
from policy_distill.rollouts.episodes import Episodes, evaluation_seeds, merge
from policy_distill.rollouts.workers import Rollouts
from policy_distill.support.pending import Pending
from policy_distill.support.progress import Display

CONSECUTIVE_PASSES = 3
"""Measurements in a row that must be good enough to end a stage early."""


@dataclass
class Services:
    """What the stages work with. It holds nothing that decides about the student: new services go on from any state.

    Attributes:
        job: the request.
        rollouts, tracker, display: workers, log, terminal.
        known: where returns of "teacher" and "random" are kept from job to job; who is left out plays each time.
        collected_rounds: through which these rollouts' environments have gone; their episodes go on from round to round.
    """

    job: Job
    rollouts: Rollouts
    tracker: Tracker
    display: Display
    known: Mapping[str, KnownReturns] = field(default_factory=dict)
    collected_rounds: int = 0

    def begin(self, state: State, policy: Policy | str, seeds: Sequence[int], *, with_agreement: bool = False) -> Pending[Episodes]:
        """Start measuring; see ``Rollouts.begin_evaluation``.

        Episodes of teacher and random policy that are known are not played again, unless agreement is asked for.
        """
        num_envs, store = self.job.config.evaluate.num_envs, None
        known, unknown = NONE, list(seeds)
        if isinstance(policy, str) and policy in self.known and not with_agreement:
            store = self.known[policy]
            known = store.read(seeds)
            unknown = sorted(set(seeds) - set(known.seeds.tolist()))
            state.reused_episodes += len(known.seeds)
            if not unknown:
                return Pending.known(known)

        def count(episodes: Episodes) -> Episodes:
            state.evaluation_env_steps += episodes.env_steps
            if store is None:
                return episodes
            store.add(episodes)
            return merge([known, episodes])

        return self.rollouts.begin_evaluation(policy, unknown, num_envs=num_envs, with_agreement=with_agreement).then(count)

    def begin_validation(self, state: State, student: Student) -> Pending[Episodes]:
        """Start measuring on the seeds that every candidate plays."""
        return self.begin(state, student, state.seeds[: state.num_first])

    def validate(self, state: State, students: Sequence[Student]) -> list[np.ndarray]:
        """Returns ``[num_first]`` of students on the seeds that every candidate plays, all measured side by side."""
        return [pending.result().returns for pending in [self.begin_validation(state, student) for student in students]]

    def play_on(self, state: State, episodes: int) -> None:
        """Measure the kept student, which has played all validation seeds, teacher and random policy on this many more of them."""
        kept, known = state.kept[-1], len(state.seeds)
        state.seeds = evaluation_seeds("validation", known + episodes)
        waiting = [self.begin(state, who, state.seeds[known:]) for who in ("teacher", "random", kept.student)]
        teacher, chance, student = (pending.result().returns for pending in waiting)
        state.teacher_returns = np.concatenate([state.teacher_returns, teacher])
        state.random_returns = np.concatenate([state.random_returns, chance])
        state.kept[-1] = dataclasses.replace(kept, returns=np.concatenate([kept.returns, student]))

    def choose(
        self, state: State, students: Sequence[Student], returns: Sequence[np.ndarray], at_least: float | None = None
    ) -> tuple[int | None, dict[int, np.ndarray]]:
        """Let the best few candidates play on the further validation seeds, half of them less and less, and choose among the last two.

        The best of many noisy means flatters itself, and more episodes for all of them would mostly go to those that are out of the
        question (sequential halving, Karnin et al. 2013, https://proceedings.mlr.press/v28/karnin13.html). Of equals the later one is
        kept.

        Args:
            state: whose validation seeds they play.
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
            able = [index for index, own in played.items() if at_least is None or state.retention(own) >= at_least]
            return {index: played[index] for index in sorted(able, key=lambda index: (played[index].mean(), index), reverse=True)[:count]}

        full = played = best(evaluate.finalists)
        known = state.num_first
        for survivors, episodes in halving(evaluate.finalists, evaluate.finalist_episodes):
            seeds = state.seeds[known : state.num_first + episodes]
            waiting = {index: self.begin(state, students[index], seeds) for index in best(survivors)}
            played = {index: np.concatenate([played[index], pending.result().returns]) for index, pending in waiting.items()}
            full, known = full | played, state.num_first + episodes
        return next(iter(best(1)), None), full


def kept_enough(shares: Sequence[float], enough: float) -> bool:
    """Whether the last ``CONSECUTIVE_PASSES`` retentions are all at least ``enough``; nan is not."""
    return len(shares) >= CONSECUTIVE_PASSES and all(share >= enough for share in shares[-CONSECUTIVE_PASSES:])


def halving(candidates: int, episodes: int) -> list[tuple[int, int]]:
    """How many candidates go on, and how many episodes each of them has then played: twice as many for half of them, in each stage.

    The last two play ``episodes``. Stages without an episode are left out.
    """
    survivors = [candidates]
    while survivors[-1] > 2:
        survivors.append(-(-survivors[-1] // 2))
    shares = [episodes >> later for later in range(len(survivors))][::-1]
    return [stage for stage, before in zip(zip(survivors, shares, strict=True), [0, *shares], strict=False) if stage[1] > before]
