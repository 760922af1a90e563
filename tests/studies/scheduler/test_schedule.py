"""A list of jobs: order, failures, what is done already, and that no memory is kept."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from policy_distill.config import DistillConfig, EngineConfig, RequestError, TrainConfig
from policy_distill.pipeline.context import Services
from policy_distill.pipeline.distill import STAGES
from policy_distill.pipeline.state import State
from policy_distill.studies.scheduler import schedule
from policy_distill.studies.scheduler.jobs import Outcome, StudyJob, perform
from policy_distill.studies.scheduler.schedule import run_here, run_jobs
from policy_distill.support.files import write_json
from tests.integration.small_jobs import small_job


def record(job: StudyJob, quiet: bool) -> Outcome:
    """Stands in for ``perform``; the job's seed says what happens."""
    if job.config.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if job.config.seed == 2:
        return Outcome("failed", "ValueError: two")
    job.folder.mkdir(parents=True, exist_ok=True)
    write_json(job.folder / "result.json", {"pid": os.getpid(), "workers": job.config.workers})
    write_json(job.folder / "job.json", {"settings": job.settings})
    return Outcome("done")


@pytest.fixture
def stand_in(monkeypatch) -> None:
    monkeypatch.setattr(schedule, "perform", record)


def jobs_in(folder: Path, seeds: range) -> list[StudyJob]:
    return [StudyJob.of(f"job {seed}", DistillConfig(seed=seed, output=str(folder / str(seed)))) for seed in seeds]


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_a_failing_job_costs_its_own_row(at_a_time, stand_in, tmp_path):
    outcomes = {job.name: outcome for job, outcome in run_jobs(jobs_in(tmp_path, range(5)), EngineConfig(), at_a_time=at_a_time)}
    assert [outcomes[f"job {seed}"].status for seed in range(5)] == ["done", "failed", "failed", "done", "done"]
    assert outcomes["job 1"].reason == "its process died (exit code -9); was the memory enough?"
    assert outcomes["job 2"].reason == "ValueError: two"
    pids = {outcome.summary["pid"] for outcome in outcomes.values() if outcome.summary}
    assert len(pids) == 3
    assert os.getpid() not in pids


def test_what_is_done_comes_first_and_is_not_run_again(stand_in, tmp_path):
    list(run_jobs(jobs_in(tmp_path, range(3, 5)), EngineConfig(), at_a_time=0))
    found = list(run_jobs(jobs_in(tmp_path, range(2, 6)), EngineConfig(), at_a_time=0))
    assert [(job.name, outcome.earlier) for job, outcome in found] == [
        ("job 3", True), ("job 4", True), ("job 2", False), ("job 5", False),
    ]  # fmt: skip


def test_jobs_at_the_same_time_share_the_cores(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "available_cores", lambda: 8)
    for at_a_time, count, workers in [(0, 1, 8), (1, 2, 8), (3, 3, 2), (9, 9, 1), (9, 1, 8), (None, 8, 1), (None, 3, 2)]:
        jobs = jobs_in(tmp_path / f"{at_a_time} of {count}", range(3, 3 + count))
        for _, outcome in run_jobs(jobs, EngineConfig(), at_a_time=at_a_time):
            assert outcome.summary is not None
            assert outcome.summary["workers"] == workers
    (job,) = jobs_in(tmp_path / "own", range(3, 4))
    own = dataclasses.replace(job, config=dataclasses.replace(job.config, workers=5))
    ((_, outcome),) = run_jobs([own], EngineConfig(), at_a_time=2)
    assert outcome.summary is not None
    assert outcome.summary["workers"] == 5


def test_two_jobs_in_one_folder_are_refused(tmp_path):
    (job,) = jobs_in(tmp_path, range(1))
    with pytest.raises(RequestError, match="two jobs have the folder"):
        next(run_jobs([job, dataclasses.replace(job, name="other")], EngineConfig()))
    with pytest.raises(RequestError, match="jobs is -1"):
        next(run_jobs([job], EngineConfig(), at_a_time=-1))
    with pytest.raises(RequestError, match="leave out --engine ray"):
        next(run_jobs([job], EngineConfig("ray"), at_a_time=0))


def test_a_study_that_is_left_ends_its_jobs(tmp_path):
    found = run_here([small_job(tmp_path, seed) for seed in range(2)], at_a_time=2, quiet=True)
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert not schedule_children()


def schedule_children() -> list[object]:
    return [child for child in multiprocessing.active_children() if "ForkServer" in type(child).__name__]


def test_a_real_job_is_the_same_here_and_in_a_child(tmp_path):
    here, child = small_job(tmp_path / "here", 0), small_job(tmp_path / "child", 0)
    assert perform(here).status == "done"
    ((_, outcome),) = run_jobs([child], EngineConfig(), at_a_time=1)
    mine, theirs = here.completed(), outcome.summary
    assert mine is not None
    assert theirs is not None
    assert mine["returns"] == theirs["returns"]
    weights = [(job.folder / "student" / "student.safetensors").read_bytes() for job in (here, child)]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_jobs_leave_no_memory_handles_or_processes(tmp_path):
    used = []
    for _ in run_jobs([small_job(tmp_path, seed) for seed in range(50)], EngineConfig(), at_a_time=1):
        status = Path("/proc/self/status").read_text()
        resident = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
        used.append((resident, len(os.listdir("/proc/self/fd"))))
    (first, handles), (last, handles_at_the_end) = used[4], used[-1]
    assert last < first + 10_000, f"{first} kB after five jobs, {last} kB after fifty"
    assert handles_at_the_end <= handles
    assert not schedule_children()


def test_an_interrupted_job_goes_on(tmp_path, monkeypatch):
    """It is stopped after its first round, and does not collect that round's transitions for training again."""
    whole, halted = small_job(tmp_path / "whole", 0), small_job(tmp_path / "halted", 0)
    assert perform(whole).status == "done"
    stages = dict(STAGES)

    def stop(state: State, services: Services) -> State:
        if len(state.records) == 1:
            raise KeyboardInterrupt
        return stages["imitation"](state, services)

    with monkeypatch.context() as patch:
        patch.setitem(STAGES, "imitation", stop)
        with pytest.raises(KeyboardInterrupt):
            perform(halted)
    notes: list[str] = []
    monkeypatch.setattr("policy_distill.support.progress.Display.note", lambda self, line: notes.append(line))
    assert perform(halted).status == "done"
    assert any(note.startswith("resumed: 160 environment steps") for note in notes)
    weights = [(job.folder / "student" / "student.safetensors").read_bytes() for job in (whole, halted)]
    assert weights[0] == weights[1]


def test_a_checkpoint_of_other_settings_is_begun_again(tmp_path, monkeypatch):
    halted = small_job(tmp_path, 0)

    def stop(state: State, services: Services) -> State:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(STAGES, "imitation", stop)
        with pytest.raises(KeyboardInterrupt):
            perform(halted)
    other = dataclasses.replace(halted.config, train=TrainConfig(gradient_steps=30, batch_size=32, members=1))
    assert perform(StudyJob.of("other", other)).status == "done"
