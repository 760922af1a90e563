"""The job: a teacher and an environment in, a small student and what it kept of the return out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from policy_distill.config import DistillConfig
from policy_distill.evaluation.certify import certificate, files_of_student, files_of_teacher, plan_of, play, write_certificate
from policy_distill.evaluation.return_cache import known_returns
from policy_distill.evaluation.statistics import Retention, retention
from policy_distill.evaluation.teacher_check import preflight
from policy_distill.export.sb3 import save_ppo, why_not_exported
from policy_distill.pipeline.context import Run
from policy_distill.pipeline.imitation import imitate
from policy_distill.pipeline.polish import polish_if_needed
from policy_distill.pipeline.prepare import Job, prepare, settle_action_units, write_config
from policy_distill.pipeline.self_distillation import self_distill
from policy_distill.pipeline.summary import summarize, track_final
from policy_distill.policies.student import Student
from policy_distill.report import write_report
from policy_distill.report.tensorboard import Tracker
from policy_distill.rollouts.episodes import Episodes, evaluation_seeds, merge
from policy_distill.rollouts.workers import Rollouts
from policy_distill.support.files import write_json
from policy_distill.support.progress import Display
from policy_distill.support.seeds import derived_seed
from policy_distill.support.threads import one_torch_thread
from policy_distill.teachers import Teacher
from policy_distill.training.dataset import Dataset
from policy_distill.training.value_network import DistilledValues, fit_values


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
    known = len(job.notices)
    for notice in job.notices:
        display.note(f"note: {notice}")
    with one_torch_thread():
        before = preflight(job.teacher, job.spec, workers=config.workers, step_timeout=config.step_timeout, skip=config.check.skip)
        job, looked = settle_action_units(dataclasses.replace(job, notices=(*job.notices, *before.notices)))
        for notice in job.notices[known:]:
            display.note(f"note: {notice}")
        return _run(job, display, before.env_steps + looked)


def _run(job: Job, display: Display, checking_env_steps: int) -> DistillResult:
    config = job.config

    def save(student: Student, **extra: Any) -> None:
        student.save(job.folder / "student", extra={"environment": job.spec.to_dict(), **extra})

    write_config(job)
    with (
        Rollouts(
            job.spec,
            job.teacher,
            num_envs=config.collect.num_envs,
            seed=config.seed,
            workers=config.workers,
            backend=job.backend,
            step_timeout=config.step_timeout,
        ) as rollouts,
        Tracker(job.folder / "tensorboard") as tracker,
        display,
    ):
        display.note(rollouts.backend)
        run = Run(job, rollouts, tracker, display, known_returns(job.teacher, job.spec) if config.evaluate.reuse_returns else None)
        run.evaluation_env_steps = checking_env_steps
        imitation = imitate(run)
        if run.reused_episodes:
            what = f"{run.reused_episodes} episodes of teacher and random policy are known from earlier jobs"
            display.note(f"{what}; --evaluate.reuse_returns false plays them again")
        lineage = self_distill(run, imitation.kept, imitation.dataset)
        save(lineage.kept.student)  # whatever becomes of the rest, this one is not lost
        polished = polish_if_needed(run, lineage.kept)
        kept = polished.kept if polished else lineage.kept
        values = distil_values(run, kept.student, imitation.dataset)
        display.stage("measuring the student")
        with run.watch.measure("evaluate"):
            student_episodes = run.begin(kept.student, evaluation_seeds("final", config.evaluate.episodes), with_agreement=True)()
        teacher_episodes, random_episodes = merge(imitation.teacher_parts), merge(imitation.random_parts)
        episodes = (student_episodes, teacher_episodes, random_episodes)
        figure = retention(*(part.returns for part in episodes), confidence=config.evaluate.confidence)
        plan = plan_of(config.evaluate)
        with run.watch.measure("evaluate"):
            certified = play(rollouts, kept.student, plan, num_envs=config.evaluate.num_envs, display=display) if plan else None
        if certified:
            run.evaluation_env_steps += sum(part.env_steps for part in (certified.student, certified.teacher, certified.random))
        summary = summarize(run, imitation, lineage, polished, kept.origin, figure, *episodes, certified, values)
        track_final(tracker, summary)

    student = kept.student
    save(student, teacher=summary["teacher"])
    if reason := why_not_exported(student):
        display.note(f"note: no student.zip is written: {reason}")
    else:
        critic = values.layers if values else polished.critic if polished else None
        save_ppo(student, job.folder / "student.zip", critic=critic)
    if certified:
        student_files, teacher_files = files_of_student(job.folder / "student"), files_of_teacher(job.teacher, config.teacher or None)
        found = certificate(certified, spec=job.spec, student=student_files, teacher=teacher_files)
        write_certificate(job.folder / "certificate.json", found)
    write_json(job.folder / "result.json", summary)
    write_report(job.folder)
    return DistillResult(student, figure, *episodes, job.folder, summary)


def distil_values(run: Run, student: Student, dataset: Dataset) -> DistilledValues | None:
    """The value network for student.zip, if one is asked for."""
    config = run.job.config
    if config.value.hidden_sizes is None:
        return None
    run.display.stage("fitting the value network")
    with run.watch.measure("train"):
        found = fit_values(run.job.teacher, dataset, student, config.value, config.train, seed=derived_seed(config.seed, 7))
    run.tracker.scalars("value", {"explained_variance": found.explained_variance}, run.env_steps)
    run.display.note(f"the value network explains {found.explained_variance:.3f} of the variance of the critic's values")
    return found
