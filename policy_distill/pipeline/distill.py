"""A distillation job: from a teacher and an environment to a small student and its retention."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from policy_distill.config import DistillConfig, RequestError
from policy_distill.config.code import settings_that_run_code
from policy_distill.evaluation.certify import certificate, files_of_student, files_of_teacher, plan_of, play, write_certificate
from policy_distill.evaluation.machines import this_machine
from policy_distill.evaluation.return_cache import known_returns
from policy_distill.evaluation.statistics import Retention, retention
from policy_distill.evaluation.teacher_check import preflight
from policy_distill.export.sb3 import save_ppo, why_not_exported, why_not_ppo
from policy_distill.pipeline import checkpoint
from policy_distill.pipeline.context import Services, failing_well
from policy_distill.pipeline.imitation import choose_round, imitate
from policy_distill.pipeline.polish import polish
from policy_distill.pipeline.prepare import Job, prepare, settle_action_units, write_config
from policy_distill.pipeline.self_distillation import self_distill
from policy_distill.pipeline.state import Stage, State
from policy_distill.pipeline.summary import summarize, track_final
from policy_distill.pipeline.varying import settled
from policy_distill.pipeline.view_loss import compare_views
from policy_distill.policies.student import Student
from policy_distill.report import write_report
from policy_distill.report.tensorboard import Tracker
from policy_distill.rollouts.episodes import Episodes, evaluation_seeds, merge
from policy_distill.rollouts.processes import Recovery
from policy_distill.rollouts.workers import Rollouts
from policy_distill.support.files import locked, make_folder, remove_unfinished, storing, write_json
from policy_distill.support.progress import Display
from policy_distill.support.seeds import derived_seed
from policy_distill.support.threads import one_torch_thread
from policy_distill.teachers import Teacher
from policy_distill.training.value_network import fit_values

RESULTS = (
    "result.json", "report.html", "report.md", "student/student.json", "student/student.safetensors", "student.zip", "certificate.json",
    "disagreements.npz", "episode.gif", "error.txt", "worker_errors.log", "student/student.next.safetensors", "job.json",
)  # fmt: skip
"""Files in a run folder that describe one run; other commands write some of them."""


@dataclass(frozen=True)
class DistillResult:
    """Student and figures of a run, the same as in its result.json.

    Attributes:
        student: the student that was kept.
        retention: estimate and confidence interval on fresh seeds.
        student_episodes, teacher_episodes, random_episodes: the final episodes, on the same seeds.
        folder: the run folder.
        summary: contents of result.json.
    """

    student: Student
    retention: Retention
    student_episodes: Episodes
    teacher_episodes: Episodes
    random_episodes: Episodes
    folder: Path
    summary: dict[str, Any] = field(repr=False)


def distill(
    config: DistillConfig, *, teacher: Teacher | None = None, display: Display | None = None, resume: bool = False
) -> DistillResult:
    """Distil ``config.teacher`` into a small student, measure its retention, and write a run folder.

    Args:
        config: the settings of the run.
        teacher: used instead of ``config.teacher``: a live Stable-Baselines3 model or a callable, wrapped by ``Teacher``.
        display: shows progress; None shows nothing.
        resume: continue the interrupted run in ``config.output``, which ends with the same student, bit for bit.

    Raises:
        RequestError: before any work, if the request cannot be carried out, or another run writes into the folder.
    """
    display = display or Display(quiet=True)
    job = prepare(config, teacher)
    with one_torch_thread(), locked(job.folder):
        for name in (*RESULTS, "config.yaml"):
            remove_unfinished(job.folder / name)
        identity = checkpoint.identity(job)
        job, state = _resumed(job, identity, display) if resume else _begun(job, display)
        try:
            return _run(job, state, checkpoint.Checkpoint(job, identity), display)
        except BaseException as error:
            if checkpoint.exists(job.folder):
                error.add_note(("" if isinstance(error, KeyboardInterrupt) else "once the cause is gone, ") + how_to_resume(job))
            raise


def distill_or_resume(config: DistillConfig, *, display: Display | None = None) -> DistillResult:
    """``distill``, which continues an interrupted run of the same request in ``config.output``; one of another request is replaced."""
    run = Path(config.output or "")
    if config.output and checkpoint.exists(run):
        try:
            return distill(config, display=display, resume=True)
        except checkpoint.CannotResume:
            checkpoint.remove(run)
    return distill(config, display=display)


def _begun(job: Job, display: Display) -> tuple[Job, State]:
    """The job after the checks that play episodes, and the state of a new run; results of an earlier run are removed."""
    if checkpoint.exists(job.folder):
        raise RequestError(f"{job.folder} holds a run that was interrupted: {how_to_resume(job)}, or {checkpoint.AGAIN}")
    known = len(job.notices)
    for notice in job.notices:
        display.note(f"note: {notice}")
    before = preflight(job.teacher, job.spec, workers=job.config.workers, step_timeout=job.config.step_timeout, skip=job.config.check.skip)
    job, unit_env_steps = settle_action_units(dataclasses.replace(job, notices=(*job.notices, *before.notices)))
    for notice in job.notices[known:]:
        display.note(f"note: {notice}")
    checkpoint.remove(job.folder)  # what is left of a removal that was interrupted
    remove_results(job.folder, except_for=job.config.collect.extra_states)
    write_config(job)
    state = State.begin(job)
    state.evaluation_env_steps = before.env_steps + unit_env_steps
    return job, state


def _resumed(job: Job, identity: Mapping[str, Any], display: Display) -> tuple[Job, State]:
    """The job and the state of the run in its folder."""
    saved = checkpoint.read(job.folder, identity)
    for line in saved.changed:
        display.note(f"note: {line}; the student may differ from that of an uninterrupted run in its last bits")
    job = dataclasses.replace(settle_action_units(job)[0], notices=saved.notices)
    state = saved.state(job)
    done = f"{state.env_steps:,} environment steps and {state.gradient_steps:,} gradient steps are done"
    display.note(f"resumed: {done}; next stage: {state.stage.replace('_', ' ')}")
    return job, state


def remove_results(folder: Path, *, except_for: str | None = None) -> None:
    """Remove what an earlier run left in the folder, so that no file there belongs to another run than its neighbours.

    Args:
        folder: the run folder.
        except_for: an input of the new run, which may lie there.
    """
    for path in (folder / name for name in RESULTS):
        if path.exists() and not (except_for and Path(except_for).exists() and path.samefile(except_for)):
            path.unlink()
    shutil.rmtree(folder / "exports", ignore_errors=True)
    for log in (folder / "tensorboard").glob("events.out.tfevents.*"):
        log.unlink()


def how_to_resume(job: Job) -> str:
    """How the run goes on after an interruption, as part of a sentence."""
    if not job.config.teacher:
        return "distill(config, teacher=teacher, resume=True) goes on"
    typed = " ".join(["", *(found.option for found in settings_that_run_code(vars(job.config)))])
    return f"go on with: policy-distill distill_policy --resume {shlex.quote(str(job.folder))}{typed.rstrip()}"


def _run(job: Job, state: State, saved: checkpoint.Checkpoint, display: Display) -> DistillResult:
    config = job.config

    def note(line: str) -> None:
        """Show a line about what failed and was put right, and keep it for result.json."""
        display.note(f"note: {line}")
        state.notices.append(line)

    with storing(job.folder / "checkpoint"):
        saved.write(state)
    workers = Rollouts(
        job.spec,
        job.teacher,
        num_envs=config.collect.num_envs,
        seed=config.seed,
        workers=config.workers,
        backend=job.backend,
        step_timeout=config.step_timeout,
        view=job.architecture.view,
        recovery=Recovery(config.worker_restarts, note, job.folder / "worker_errors.log"),
        engine=config.engine,
    )
    with workers as rollouts, Tracker(job.folder / "tensorboard", note) as tracker, display:
        display.note(rollouts.backend)
        known = known_returns(job.teacher, job.spec, note) if config.evaluate.reuse_returns else {}
        if config.engine.kind == "ray":
            differing = this_machine().check(rollouts.ask_each(this_machine))
            state.notices += [notice for notice in differing if notice not in state.notices]  # a run that is resumed has them already
        services = Services(job, rollouts, tracker, display, known)
        while state.stage != "done":
            num_kept = len(state.kept)
            with failing_well(job, state):
                with state.timed("total"):
                    state = STAGES[state.stage](state, services)
                if len(state.kept) > num_kept:  # on the disk at once, in case a later stage fails
                    _save(services.job, state.kept[-1].student)
                with state.timed("total"), storing(job.folder / "checkpoint"):
                    saved.write(state)
                    services.cache_returns()
        assert state.student_episodes is not None
        job = settled(job, state.columns)
        student = state.kept[-1].student
        episodes = (state.student_episodes, merge(state.teacher_parts), merge(state.random_parts))
        final_retention = retention(*(part.returns for part in episodes), confidence=config.evaluate.confidence)
        summary = summarize(job, state, final_retention, *episodes)
        track_final(tracker, summary)
    _write(job, state, summary, display)
    checkpoint.remove(job.folder)
    return DistillResult(student, final_retention, *episodes, job.folder, summary)


def _write(job: Job, state: State, summary: dict[str, Any], display: Display) -> None:
    """Write what a run leaves: result.json after all that it describes, then the report."""
    student, config = state.kept[-1].student, job.config
    write_config(job)  # sizes may have followed from the first round
    _save(job, student, teacher=summary["teacher"])
    if why_not_ppo(student.architecture):
        pass  # a notice said so before the work
    elif reason := why_not_exported(student):
        display.note(f"note: no student.zip is written: {reason}")
    else:
        save_ppo(student, job.folder / "student.zip", critic=state.values.layers if state.values else state.critic)
    if state.certified:
        student_files, teacher_files = files_of_student(job.folder / "student"), files_of_teacher(job.teacher, config.teacher or None)
        found = certificate(state.certified, spec=job.spec, student=student_files, teacher=teacher_files)
        write_certificate(job.folder / "certificate.json", found)
    write_json(job.folder / "result.json", summary)
    write_report(job.folder)


def _save(job: Job, student: Student, **extra: Any) -> None:
    student.save(make_folder(job.folder / "student"), extra={"environment": job.spec.to_dict(), **extra})


def distil_values(state: State, services: Services) -> State:
    """Fit the value network for student.zip, if ``value.hidden_sizes`` is set."""
    config, state.stage = services.job.config, "view"
    if config.value.hidden_sizes is None:
        return state
    services.display.stage("fitting the value network")
    with state.timed("train"):
        seed = derived_seed(config.seed, 7)
        values = fit_values(services.job.teacher, state.dataset, state.kept[-1].student, config.value, config.train, seed=seed)
    services.tracker.scalars("value", {"explained_variance": values.explained_variance}, state.env_steps)
    services.display.note(f"the value network explains {values.explained_variance:.3f} of the variance of the critic's values")
    state.values = values
    return state


def measure(state: State, services: Services) -> State:
    """Play the kept student's final episodes; those of teacher and random policy were played while rounds trained."""
    services.display.stage("measuring the student")
    seeds = evaluation_seeds("final", services.job.config.evaluate.episodes)
    with state.timed("evaluate"):
        state.student_episodes = services.begin(state, state.kept[-1].student, seeds, with_agreement=True).result()
    state.stage = "certificate"
    return state


def certify(state: State, services: Services) -> State:
    """Run the sequential test of the student's retention, if ``evaluate.certify`` is set."""
    evaluate, state.stage = services.job.config.evaluate, "done"
    if plan := plan_of(evaluate):
        with state.timed("evaluate"):
            found = play(services.rollouts, state.kept[-1].student, plan, num_envs=evaluate.num_envs, display=services.display)
        state.evaluation_env_steps += sum(part.env_steps for part in (found.student, found.teacher, found.random))
        state.certified = found
    return state


Advance: TypeAlias = Callable[[State, Services], State]


def _with_settled_job(advance: Advance) -> Advance:
    """``advance`` with the job that follows from the first round, whose services may be new to the run."""

    def settled_advance(state: State, services: Services) -> State:
        services.job = settled(services.job, state.columns)
        return advance(state, services)

    return settled_advance


STAGES: dict[Stage, Advance] = {
    "imitation": _with_settled_job(imitate),
    "choice": _with_settled_job(choose_round),
    "self_distillation": _with_settled_job(self_distill),
    "polish": _with_settled_job(polish),
    "value": _with_settled_job(distil_values),
    "view": _with_settled_job(compare_views),
    "evaluation": _with_settled_job(measure),
    "certificate": _with_settled_job(certify),
}
"""The function that advances each stage."""
