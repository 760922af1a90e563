"""The job: a teacher and an environment in, a small student and what it kept of the return out."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policy_distill.config import DistillConfig
from policy_distill.dataset import Dataset
from policy_distill.evaluate import Episodes, evaluation_seeds
from policy_distill.export.sb3 import save_ppo
from policy_distill.job import Job, one_torch_thread, prepare, write_config
from policy_distill.progress import Display
from policy_distill.report import write_report
from policy_distill.spaces import encode_observations
from policy_distill.statistics import Retention, retention
from policy_distill.students import Student, StudentStack
from policy_distill.teachers import Teacher
from policy_distill.tracking import Tracker, write_json
from policy_distill.train import Trainer
from policy_distill.workers import Rollouts


@dataclass(frozen=True)
class Round:
    """What one round did; losses and errors carry their unit in their name."""

    round: int
    env_steps: int
    gradient_steps: int
    teacher_action_prob: float
    train: dict[str, float]
    held_out: dict[str, float]
    validation_return_mean: float
    validation_return_standard_error: float
    validation_retention: float


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

    def total(self) -> float:
        return time.perf_counter() - self._started


def _run(job: Job, display: Display) -> DistillResult:
    config, watch = job.config, Stopwatch()
    write_config(job)
    validation_seeds = evaluation_seeds("validation", config.evaluate.validation_episodes)
    with (
        Rollouts(job.spec, job.teacher, num_envs=config.collect.num_envs, seed=config.seed, workers=config.workers) as rollouts,
        Tracker(job.folder / "tensorboard") as tracker,
        display,
    ):
        num_envs = config.evaluate.num_envs
        display.start("measuring the teacher", config.collect.rounds + 1)
        with watch.measure("evaluate"):
            teacher_validation = rollouts.evaluate("teacher", validation_seeds, num_envs=num_envs)
            random_validation = rollouts.evaluate("random", validation_seeds, num_envs=num_envs)
        teacher_mean, random_mean = teacher_validation.returns.mean(), random_validation.returns.mean()
        display.advance(f"teacher {teacher_mean:.1f}, random {random_mean:.1f}", 0)

        dataset = Dataset(_total_env_steps(config), holdout=config.train.holdout, device=job.device)
        trainer: Trainer | None = None
        student: Student | None = None
        rounds: list[Round] = []
        students: list[Student] = []
        for index in range(config.collect.rounds):
            display.stage(f"round {index + 1}")
            probability = config.collect.teacher_action_prob**index
            with watch.measure("collect"):
                transitions = rollouts.collect(_round_steps(config, index), student, probability, index)
                dataset.append(transitions)
            with watch.measure("train"):
                trainer = trainer or _new_trainer(job, dataset)
                losses = trainer.run(dataset, _share(config.train.gradient_steps, config.collect.rounds, index))
                student = trainer.student()
                trainer.fit_log_std(student, dataset)
            with watch.measure("evaluate"):
                validation = rollouts.evaluate(student, validation_seeds, num_envs=num_envs)
                held_out = trainer.validate(dataset, student)
            mean = float(validation.returns.mean())
            rounds.append(
                Round(
                    round=index,
                    env_steps=len(dataset),
                    gradient_steps=trainer.gradient_steps,
                    teacher_action_prob=probability,
                    train=losses,
                    held_out=held_out,
                    validation_return_mean=mean,
                    validation_return_standard_error=float(validation.returns.std(ddof=1) / np.sqrt(len(validation.returns)))
                    if len(validation.returns) > 1
                    else 0.0,
                    validation_retention=float((mean - random_mean) / (teacher_mean - random_mean))
                    if teacher_mean != random_mean
                    else float("nan"),
                )
            )
            students.append(student)
            _track_round(tracker, rounds[-1], transitions.rewards, len(transitions), watch, trainer)
            display.advance(_figures(rounds[-1]))

        display.stage("measuring the student")
        chosen = choose_round(rounds)
        student = students[chosen]
        final_seeds = evaluation_seeds("final", config.evaluate.episodes)
        with watch.measure("evaluate"):
            student_episodes = rollouts.evaluate(student, final_seeds, num_envs=num_envs, with_agreement=True)
            teacher_episodes = rollouts.evaluate("teacher", final_seeds, num_envs=num_envs)
            random_episodes = rollouts.evaluate("random", final_seeds, num_envs=num_envs)
        kept = retention(student_episodes.returns, teacher_episodes.returns, random_episodes.returns, confidence=config.evaluate.confidence)
        assert trainer is not None
        evaluation_steps = [episodes.env_steps for episodes in (student_episodes, teacher_episodes, random_episodes)]
        summary = _summary(job, rounds, chosen, kept, student_episodes, teacher_episodes, random_episodes, watch)
        summary["evaluation_env_steps"] = sum(evaluation_steps) + teacher_validation.env_steps + random_validation.env_steps
        _track_final(tracker, summary)

    student.save(job.folder / "student", extra={"environment": job.spec.to_dict(), "teacher": summary["teacher"]})
    save_ppo(student, job.folder / "student.zip")
    write_json(job.folder / "result.json", summary)
    write_report(job.folder / "report.md", summary)
    return DistillResult(student, kept, student_episodes, teacher_episodes, random_episodes, job.folder, summary)


def choose_round(rounds: list[Round]) -> int:
    """The latest round whose validation return is within one standard error of the best: later ones saw more data at lower rates."""
    best = max(rounds, key=lambda record: record.validation_return_mean)
    bar = best.validation_return_mean - best.validation_return_standard_error
    return max(record.round for record in rounds if record.validation_return_mean >= bar)


def _new_trainer(job: Job, dataset: Dataset) -> Trainer:
    """A fresh student, normalised by the first round's observations."""
    observations, _ = dataset.rows()
    mean, scale = normalization_of(encode_observations(job.teacher.observation_space, observations))
    seeds = torch.Generator().manual_seed(job.config.seed)
    stack = StudentStack(job.architecture, generators=[seeds], mean=mean, scale=scale)
    return Trainer(stack, job.objective, job.config.train, torch.Generator(job.device).manual_seed(job.config.seed))


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


def _figures(record: Round) -> str:
    loss_name, loss = next(iter(record.train.items()))
    return (
        f"round {record.round + 1:>3}  {record.env_steps:>9,} steps  {loss_name} {loss:.4g}  "
        f"return {record.validation_return_mean:.1f}  retention {record.validation_retention:.3f}"
    )


def _track_round(tracker: Tracker, record: Round, rewards: Tensor, new_steps: int, watch: Stopwatch, trainer: Trainer) -> None:
    steps = record.env_steps
    collect = {"env_steps": steps, "teacher_action_prob": record.teacher_action_prob, "reward_mean": float(rewards.mean())}
    tracker.scalars("collect", collect, steps)
    held_out = {f"held_out_{name}": value for name, value in record.held_out.items()}
    train = {"learning_rate": trainer.learning_rate, "gradient_steps": record.gradient_steps}
    tracker.scalars("train", {**record.train, **held_out, **train}, steps)
    tracker.scalars(
        "eval", {"validation_return_mean": record.validation_return_mean, "validation_retention": record.validation_retention}, steps
    )
    seconds = {f"{stage}_seconds": value for stage, value in watch.seconds.items()}
    rates = {
        "env_steps_per_second": steps / max(watch.seconds["collect"], 1e-9),
        "gradient_steps_per_second": record.gradient_steps / max(watch.seconds["train"], 1e-9),
    }
    tracker.scalars("time", {**seconds, **rates}, steps)


def _track_final(tracker: Tracker, summary: dict[str, Any]) -> None:
    final = {
        "return_mean": summary["student"]["return_mean"],
        "teacher_return_mean": summary["teacher"]["return_mean"],
        "random_return_mean": summary["random"]["return_mean"],
        "retention": summary["retention"]["estimate"],
        "retention_low": summary["retention"]["low"],
        "retention_high": summary["retention"]["high"],
        "agreement": summary["agreement"],
        "compression": summary["compression"],
    }
    tracker.scalars("eval", {name: value for name, value in final.items() if value is not None}, summary["env_steps"])


def _summary(
    job: Job,
    rounds: list[Round],
    chosen: int,
    kept: Retention,
    student: Episodes,
    teacher: Episodes,
    random: Episodes,
    watch: Stopwatch,
) -> dict[str, Any]:
    """The contract of result.json."""

    def figures(episodes: Episodes) -> dict[str, float]:
        return {"return_mean": float(episodes.returns.mean()), "return_std": float(episodes.returns.std(ddof=1))}

    return {
        "version": importlib.metadata.version("policy-distill"),
        "seed": job.config.seed,
        "device": job.device.type,
        "env": job.spec.id,
        "environment": job.spec.to_dict(),
        "teacher": {"path": job.teacher.path, "algo": job.teacher.algo, "params": job.teacher.params, **figures(teacher)},
        "student": {
            "hidden_sizes": list(job.architecture.hidden_sizes),
            "activation": job.architecture.activation,
            "params": job.architecture.params,
            **figures(student),
        },
        "random": figures(random),
        "compression": job.teacher.params / job.architecture.params if job.teacher.params else None,
        "retention": dataclasses.asdict(kept),
        "agreement": student.agreement,
        "env_steps": rounds[-1].env_steps,
        "gradient_steps": rounds[-1].gradient_steps,
        "chosen_round": chosen,
        "rounds": [dataclasses.asdict(record) for record in rounds],
        "self_distillation": [],
        "notices": list(job.notices),
        "returns": {
            "seeds": student.seeds.tolist(),
            "student": student.returns.tolist(),
            "teacher": teacher.returns.tolist(),
            "random": random.returns.tolist(),
        },
        "seconds": {**watch.seconds, "total": watch.total()},
    }
