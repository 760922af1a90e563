"""The job: a teacher and an environment in, a small student and what it kept of the return out."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from policy_distill.config import DistillConfig, EvaluateConfig
from policy_distill.dataset import Dataset
from policy_distill.evaluate import Episodes, evaluation_seeds, merge
from policy_distill.export.sb3 import save_ppo, why_not_ppo
from policy_distill.job import Job, one_torch_thread, prepare, write_config
from policy_distill.progress import Display
from policy_distill.report import write_report
from policy_distill.rounds import Round, choose_round, finalists, summarize, track_final, track_round, track_validation
from policy_distill.spaces import encode_observations
from policy_distill.statistics import Retention, retention
from policy_distill.students import Student, StudentStack
from policy_distill.teachers import Teacher
from policy_distill.tracking import Tracker, write_json
from policy_distill.train import Trainer
from policy_distill.workers import Rollouts


@dataclass(frozen=True)
class DistillResult:
    """What a run found; the same figures as in its result.json.

    Attributes:
        student: the chosen round's.
        retention: on fresh seeds, with its interval.
        student_episodes, teacher_episodes, random_episodes: the returns behind it, on the same seeds.
        folder: of the run.
        summary: what result.json holds.
    """

    student: Student
    retention: Retention
    student_episodes: Episodes
    teacher_episodes: Episodes
    random_episodes: Episodes
    folder: Path
    summary: dict[str, Any] = field(repr=False)


def distill(config: DistillConfig, *, teacher: Teacher | None = None, display: Display | None = None) -> DistillResult:
    """Distil ``config.teacher`` into a small student, measure what it kept, and leave a run folder.

    Args:
        config: the run.
        teacher: used instead of ``config.teacher``: a live Stable-Baselines3 model or a callable, wrapped by ``Teacher``.
        display: where progress is shown; None shows nothing.

    Raises:
        RequestError: before any work, if the request cannot be carried out.
    """
    display = display or Display(quiet=True)
    job = prepare(config, teacher)
    for notice in job.notices:
        display.note(f"note: {notice}")
    with one_torch_thread():
        return _run(job, display)


class Stopwatch:
    """Seconds spent in each stage."""

    def __init__(self) -> None:
        self.seconds = {"collect": 0.0, "train": 0.0, "evaluate": 0.0}
        self._started = time.perf_counter()

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - began

    def read(self) -> dict[str, float]:
        """Seconds of each stage and in total since the watch was made."""
        return {**self.seconds, "total": time.perf_counter() - self._started}


def _run(job: Job, display: Display) -> DistillResult:
    config, watch = job.config, Stopwatch()
    write_config(job)
    with (
        Rollouts(job.spec, job.teacher, num_envs=config.collect.num_envs, seed=config.seed, workers=config.workers) as rollouts,
        Tracker(job.folder / "tensorboard") as tracker,
        display,
    ):
        measure = functools.partial(rollouts.begin_evaluation, num_envs=config.evaluate.num_envs)
        display.start("measuring the teacher", config.collect.rounds)
        validation_seeds = evaluation_seeds("validation", config.evaluate.validation_episodes)
        final_seeds = evaluation_seeds("final", config.evaluate.episodes)
        dataset = Dataset(_total_env_steps(config), holdout=config.train.holdout, device=job.device)
        trainer: Trainer | None = None
        students: list[Student] = []
        rounds: list[Round] = []
        teacher_parts: list[Episodes] = []
        random_parts: list[Episodes] = []
        evaluation_steps = 0

        for index in range(config.collect.rounds):
            display.stage(f"round {index + 1}: collecting")
            probability = config.collect.teacher_action_prob**index
            with watch.measure("collect"):
                transitions = rollouts.collect(_round_steps(config, index), students[-1] if students else None, probability, index)
                dataset.append(transitions)
            # While this process trains, the workers measure: the last round's student, and a share of what teacher and random policy
            # earn on the final seeds, which does not depend on the student.
            measured = (students[-1],) if students else ("teacher", "random")
            share = final_seeds[index :: config.collect.rounds]
            with watch.measure("evaluate"):
                waiting = [measure(policy, validation_seeds) for policy in measured]
                waiting += [measure(policy, share) for policy in ("teacher", "random") if share]
            display.stage(f"round {index + 1}: training")
            with watch.measure("train"):
                trainer = trainer or _new_trainer(job, dataset)
                losses = trainer.run(dataset, _share(config.train.gradient_steps, config.collect.rounds, index))
                students.append(trainer.student())
                trainer.fit_log_std(students[-1], dataset)
                held_out = trainer.validate(dataset, students[-1])
            with watch.measure("evaluate"):
                answers = [answer() for answer in waiting]
            evaluation_steps += sum(episodes.env_steps for episodes in answers)
            validations, finals = answers[: len(measured)], answers[len(measured) :]
            teacher_parts += finals[:1]
            random_parts += finals[1:]
            if index == 0:
                reference = (validations[0].returns.mean(), validations[1].returns.mean())
                display.advance(f"teacher {reference[0]:.1f}, random policy {reference[1]:.1f}", 0)
            else:
                rounds[-1] = rounds[-1].validated(validations[0].returns, *reference)
                display.advance(rounds[-1].figures())
                track_validation(tracker, rounds[-1], *reference)
            rounds.append(Round(index, len(dataset), trainer.gradient_steps, probability, losses, held_out))
            track_round(tracker, rounds[-1], transitions, trainer.learning_rate, watch.seconds)

        display.stage("measuring the student")
        with watch.measure("evaluate"):
            validation = measure(students[-1], validation_seeds)()
            rounds[-1] = rounds[-1].validated(validation.returns, *reference)
            display.advance(rounds[-1].figures())
            track_validation(tracker, rounds[-1], *reference)
            chosen, more_steps = _choose(rounds, students, measure, config.evaluate)
            student = students[chosen]
            student_episodes = measure(student, final_seeds, with_agreement=True)()
        teacher_episodes, random_episodes = merge(teacher_parts), merge(random_parts)
        kept = retention(student_episodes.returns, teacher_episodes.returns, random_episodes.returns, confidence=config.evaluate.confidence)
        summary = summarize(job, rounds, chosen, kept, student_episodes, teacher_episodes, random_episodes, watch.read())
        summary["evaluation_env_steps"] = evaluation_steps + validation.env_steps + more_steps + student_episodes.env_steps
        track_final(tracker, summary)

    student.save(job.folder / "student", extra={"environment": job.spec.to_dict(), "teacher": summary["teacher"]})
    if not why_not_ppo(student.observation_space, student.action_space):
        save_ppo(student, job.folder / "student.zip")
    write_json(job.folder / "result.json", summary)
    write_report(job.folder / "report.md", summary)
    return DistillResult(student, kept, student_episodes, teacher_episodes, random_episodes, job.folder, summary)


def _choose(
    rounds: list[Round], students: list[Student], measure: Callable[..., Callable[[], Episodes]], config: EvaluateConfig
) -> tuple[int, int]:
    """Measure the finalists again, note it in their records, and return the round to keep and the environment steps it took."""
    seeds = evaluation_seeds("validation", config.validation_episodes + config.finalist_episodes)[config.validation_episodes :]
    candidates = finalists(rounds, config.finalists)
    waiting = [measure(students[index], seeds) for index in candidates] if seeds else []
    answers = [answer() for answer in waiting]
    for place, index in enumerate(candidates):
        total = rounds[index].validation_return_mean * config.validation_episodes
        total += answers[place].returns.sum() if answers else 0.0
        rounds[index] = dataclasses.replace(rounds[index], finalist_return_mean=float(total / (config.validation_episodes + len(seeds))))
    return choose_round(rounds), sum(episodes.env_steps for episodes in answers)


def _new_trainer(job: Job, dataset: Dataset) -> Trainer:
    """A fresh student, normalised by the first round's observations."""
    observations, _ = dataset.rows()
    mean, scale = normalization_of(encode_observations(job.teacher.observation_space, observations))
    seeds = torch.Generator().manual_seed(job.config.seed)
    stack = StudentStack(job.architecture, generators=[seeds], mean=mean, scale=scale)
    return Trainer(stack, job.objective, job.config.train, [torch.Generator(job.device).manual_seed(job.config.seed)])


def normalization_of(observations: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale ``[inputs]`` of encoded observations ``[B, inputs]``; a component that never varies is left as it is."""
    wide = observations.double()
    mean, std = wide.mean(0), wide.std(0)
    constant = std < 1e-6 * (1 + mean.abs())
    return torch.where(constant, 0.0, mean).float(), torch.where(constant, 1.0, std).float()


def _share(total: int, rounds: int, index: int) -> int:
    """Part ``index`` of ``total`` cut into ``rounds`` nearly equal parts."""
    return total * (index + 1) // rounds - total * index // rounds


def _round_steps(config: DistillConfig, index: int) -> int:
    """Steps that each environment takes in a round."""
    return _share(config.collect.env_steps // config.collect.num_envs, config.collect.rounds, index)


def _total_env_steps(config: DistillConfig) -> int:
    return config.collect.env_steps // config.collect.num_envs * config.collect.num_envs
