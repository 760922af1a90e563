"""Services of a job's stages: workers, log and cached returns; evaluation of students, the choice among them, and what a failure leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from policy_distill.config import MemoryFault, StorageFault
from policy_distill.evaluation.return_cache import NO_EPISODES, KnownReturns
from policy_distill.evaluation.statistics import shows_positive_mean
from policy_distill.pipeline.prepare import Job
from policy_distill.pipeline.state import Stage, State
from policy_distill.policies.policy import Policy
from policy_distill.policies.student import Student
from policy_distill.report.tensorboard import Tracker
from policy_distill.rollouts.episodes import Episodes, evaluation_seeds, merge
from policy_distill.rollouts.ppo_rollouts import RolloutEnv
from policy_distill.rollouts.workers import Rollouts
from policy_distill.support.files import make_folder
from policy_distill.support.pending import Pending
from policy_distill.support.progress import Display

CONSECUTIVE_PASSES = 3
"""Consecutive measurements with enough retention that end a stage early."""
WORSE, WORSE_BY = 0.9, 0.05
"""Confidence at which a candidate is shown to be worse than the student that it would replace, and by how much retention at least. On
episodes in which that student did not fail, a candidate that never fails may keep less by a constant amount."""


@dataclass
class Services:
    """Workers, log and cache of a job. They do not affect the student: new services can continue from any state.

    Attributes:
        job: the request.
        rollouts, tracker, display: workers, log, terminal.
        known: cached returns of "teacher" and "random" from earlier jobs; a policy without an entry is always played.
        collected_rounds: rounds that these rollouts' environments have collected; episodes continue from round to round.
        ppo_environments: environments of PPO's rollouts, in the state that the training in progress has reached.
        played: episodes for the cache; see ``cache_returns``.
    """

    job: Job
    rollouts: Rollouts
    tracker: Tracker
    display: Display
    known: Mapping[str, KnownReturns] = field(default_factory=dict)
    collected_rounds: int = 0
    ppo_environments: RolloutEnv | None = None
    played: list[tuple[KnownReturns, Episodes]] = field(default_factory=list)

    def begin(self, state: State, policy: Policy | str, seeds: Sequence[int], *, with_agreement: bool = False) -> Pending[Episodes]:
        """Start an evaluation; see ``Rollouts.begin_evaluation``.

        Cached episodes of teacher and random policy are not played again, unless agreement is measured.
        """
        num_envs, store = self.job.config.evaluate.num_envs, None
        known, unknown = NO_EPISODES, list(seeds)
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
            self.played.append((store, episodes))
            return merge([known, episodes])

        return self.rollouts.begin_evaluation(policy, unknown, num_envs=num_envs, with_agreement=with_agreement).then(count)

    def cache_returns(self) -> None:
        """Add the episodes that were played to the cache; call it after the checkpoint of the advance that played them.

        Otherwise a run that is interrupted in between would find its own episodes there, and count them as reused.
        """
        for store, episodes in self.played:
            store.add(episodes)
        self.played.clear()

    def close_ppo_environments(self) -> None:
        """Close the environments of PPO's rollouts, if there are any."""
        if self.ppo_environments is not None:
            environments, self.ppo_environments = self.ppo_environments, None
            environments.close()

    def begin_validation(self, state: State, student: Student) -> Pending[Episodes]:
        """Start an evaluation on the seeds that every candidate plays."""
        return self.begin(state, student, state.seeds[: state.num_first])

    def validate(self, state: State, students: Sequence[Student]) -> list[np.ndarray]:
        """Returns ``[num_first]`` of each student on the seeds that every candidate plays, evaluated in parallel."""
        return [pending.result().returns for pending in [self.begin_validation(state, student) for student in students]]

    def extend_validation(self, state: State, episodes: int) -> None:
        """Add ``episodes`` validation seeds, and play them with the kept student, the teacher and the random policy."""
        kept, known = state.kept[-1], len(state.seeds)
        state.seeds = evaluation_seeds("validation", known + episodes)
        evaluations = [self.begin(state, policy, state.seeds[known:]) for policy in ("teacher", "random", kept.student)]
        teacher_returns, random_returns, student_returns = (pending.result().returns for pending in evaluations)
        state.teacher_returns = np.concatenate([state.teacher_returns, teacher_returns])
        state.random_returns = np.concatenate([state.random_returns, random_returns])
        state.kept[-1] = dataclasses.replace(kept, returns=np.concatenate([kept.returns, student_returns]))

    def choose(
        self, state: State, students: Sequence[Student], returns: Sequence[np.ndarray], start: np.ndarray | None = None
    ) -> tuple[int | None, dict[int, np.ndarray]]:
        """Choose a candidate by sequential halving: the best few play further validation seeds, and each stage drops the worse half.

        The highest of many noisy means overestimates its candidate, and extra episodes for all candidates would mostly go to poor ones
        (Karnin et al. 2013, https://proceedings.mlr.press/v28/karnin13.html). Ties go to the later candidate.

        Args:
            state: the run, with its validation seeds.
            students: the candidates.
            returns: ``[num_first]`` of each candidate on the first validation seeds.
            start: returns of another student on the validation seeds; candidates that are shown to be worse, episode by episode, drop out;
                see ``WORSE_BY``.

        Returns:
            Index of the chosen candidate, None if all dropped out; and each finalist's returns on the validation seeds that it played.
            The chosen candidate played all of them.
        """
        evaluate = self.job.config.evaluate
        played = dict(enumerate(returns))

        def is_worse(values: np.ndarray) -> bool:
            if start is None:
                return False
            teacher, random = state.reference
            return shows_positive_mean(start[: len(values)] - values - WORSE_BY * abs(teacher - random), WORSE)

        def best(count: int) -> dict[int, np.ndarray]:
            eligible = [index for index, values in played.items() if not is_worse(values)]
            ranked = sorted(eligible, key=lambda index: (played[index].mean(), index), reverse=True)
            return {index: played[index] for index in ranked[:count]}

        full = played = best(evaluate.finalists)
        known = state.num_first
        for survivors, episodes in halving(evaluate.finalists, self.job.finalist_episodes):
            seeds = state.seeds[known : state.num_first + episodes]
            evaluations = {index: self.begin(state, students[index], seeds) for index in best(survivors)}
            played = {index: np.concatenate([played[index], pending.result().returns]) for index, pending in evaluations.items()}
            full, known = full | played, state.num_first + episodes
        return next(iter(best(1)), None), full


def kept_enough(retentions: Sequence[float], enough: float) -> bool:
    """Whether the last ``CONSECUTIVE_PASSES`` retentions are all at least ``enough``; nan is not."""
    return len(retentions) >= CONSECUTIVE_PASSES and all(value >= enough for value in retentions[-CONSECUTIVE_PASSES:])


def halving(candidates: int, episodes: int) -> list[tuple[int, int]]:
    """Stages of sequential halving: number of candidates, and number of further episodes that each has played at the stage's end.

    Each stage has half the candidates and twice the episodes; the last two play ``episodes``. Stages without new episodes are left out.
    """
    survivors = [candidates]
    while survivors[-1] > 2:
        survivors.append(-(-survivors[-1] // 2))
    shares = [episodes >> later for later in range(len(survivors))][::-1]
    return [stage for stage, before in zip(zip(survivors, shares, strict=True), [0, *shares], strict=False) if stage[1] > before]


@contextmanager
def failing_well(job: Job, state: State) -> Iterator[None]:
    """If the block fails, save the run's best student so far; if memory runs out, name the settings that need less of it.

    Raises:
        MemoryFault: in place of the exceptions of torch and numpy.
    """
    stage = state.stage  # an advance may set the next one before it is done
    try:
        yield
    except Exception as error:
        fault = MemoryFault(less_memory(job, stage)) if is_out_of_memory(error) else error
        if saved := save_best(job, state):
            fault.add_note(saved)
        if fault is error:
            raise
        raise fault from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on the GPU or the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def less_memory(job: Job, stage: Stage) -> str:
    """What to lower in the stage that ran out of memory."""
    config = job.config
    if stage == "polish":
        names = {"polish.batch_size": config.polish.batch_size, "polish.num_steps": config.polish.num_steps}
    else:
        batch_size = config.train.batch_size_of(single_images=job.architecture.reads_single_images)
        names = {"train.batch_size": batch_size, "train.members": job.num_members}
    rows = f"collect.env_steps (it is {config.collect.env_steps:,}), or set collect.storage disk"
    lower = ", ".join(f"{name} (it is {value:,})" for name, value in names.items())
    other = "" if job.device.type == "cpu" else ", or device cpu"
    return f"the memory of the {job.device.type.upper()} ran out in the stage {stage.replace('_', ' ')}: lower {lower} or {rows}{other}"


def save_best(job: Job, state: State) -> str | None:
    """Save the student with the highest validation return so far; returns where it is, None if there is none."""
    best = best_so_far(state, job.num_members)
    if best is None:
        return None
    student, origin = best
    try:
        student.save(make_folder(job.folder / "student"), extra={"environment": job.spec.to_dict()})
    except StorageFault:  # the reason of the failure, or a second one
        return None
    return f"the best student so far, of {origin}, is in {job.folder / 'student'}"


def best_so_far(state: State, num_members: int) -> tuple[Student, str] | None:
    """The student that a run would keep if it ended now, and its origin; None if none was measured."""
    if state.kept:
        return state.kept[-1].student, state.kept[-1].origin
    if not state.returns:
        return None
    best = max(range(len(state.returns)), key=lambda index: (state.returns[index].mean(), index))
    return state.students[best], f"round {best // num_members + 1}"
