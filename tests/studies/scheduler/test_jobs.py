"""A job: what decides its result, and when it counts as done."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from policy_distill.config import CollectConfig, DistillConfig, EngineConfig, EnsembleConfig, RequestError
from policy_distill.studies.scheduler import jobs
from policy_distill.studies.scheduler.jobs import RECORD, StudyJob, files_of, perform
from policy_distill.support.files import write_json


@pytest.fixture
def config(tmp_path) -> DistillConfig:
    agent = tmp_path / "agents" / "ppo" / "One-v1_1"
    agent.mkdir(parents=True)
    (agent / "One-v1.zip").write_bytes(b"weights")
    return DistillConfig(teacher=str(agent), output=str(tmp_path / "run"))


@pytest.fixture
def distilled(monkeypatch) -> list[DistillConfig]:
    """The settings of each job that was run; each writes a result."""
    seen: list[DistillConfig] = []

    def distill(config: DistillConfig, **_: object) -> None:
        seen.append(config)
        Path(str(config.output)).mkdir(exist_ok=True)
        write_json(Path(str(config.output)) / "result.json", {"number": len(seen)})

    monkeypatch.setattr(jobs, "distill_or_resume", distill)
    return seen


def test_a_job_is_done_once_it_was_performed(config, distilled):
    assert StudyJob.of("one", config).completed() is None
    assert perform(StudyJob.of("one", config)).status == "done"
    assert StudyJob.of("other name", config).completed() == {"number": 1}


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"collect": CollectConfig(rounds=3)}, {"step_timeout": 1.0}, {"device": "cpu"}],
    ids=lambda changes: next(iter(changes)),
)
def test_other_settings_are_not_done_and_their_record_goes(changes, config, distilled):
    perform(StudyJob.of("one", config))
    assert StudyJob.of("one", dataclasses.replace(config, **changes)).completed() is None
    assert not Path(config.output, RECORD).exists()


def test_another_file_under_the_same_name_is_not_done(config, distilled):
    perform(StudyJob.of("one", config))
    Path(config.teacher, "One-v1.zip").write_bytes(b"other weights")
    assert StudyJob.of("one", config).completed() is None


def test_where_a_job_runs_does_not_decide_its_result(config, distilled, tmp_path):
    perform(StudyJob.of("one", config))
    moved = Path(config.output).rename(tmp_path / "moved")
    elsewhere = dataclasses.replace(config, output=str(moved), workers=3, engine=EngineConfig("ray", cpus=4), trust=True)
    assert StudyJob.of("one", elsewhere).completed() == {"number": 1}


def test_a_record_without_a_result_is_not_done(config, distilled):
    perform(StudyJob.of("one", config))
    Path(config.output, "result.json").unlink()
    assert StudyJob.of("one", config).completed() is None


def test_a_damaged_record_is_refused(config, distilled):
    perform(StudyJob.of("one", config))
    Path(config.output, RECORD).write_text("{")
    with pytest.raises(RequestError, match="remove the run's folder"):
        StudyJob.of("one", config).completed()


def test_a_failure_leaves_its_traceback_until_the_job_succeeds(config, distilled, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "distill_or_resume", fail)
        outcome = perform(StudyJob.of("one", config))
    assert (outcome.status, outcome.reason) == ("failed", "MemoryError: no room")
    error = Path(config.output, "error.txt")
    assert "Traceback" in error.read_text()
    assert StudyJob.of("one", config).completed() is None
    perform(StudyJob.of("one", config))
    assert not error.exists()


def test_the_files_of_a_job_are_all_that_its_settings_name(config, tmp_path):
    other = tmp_path / "elsewhere"
    (other / "Two-v1").mkdir(parents=True)
    for name in ("Two-v1.zip", "Three-v1.zip", "Two-v1/config.yml", "norm.pkl", "net.py", "worst.npz"):
        (other / name).write_bytes(b"")
    several = dataclasses.replace(
        config,
        ensemble=EnsembleConfig((str(other / "Two-v1.zip"),)),
        normalization=str(other / "norm.pkl"),
        extractor=f"{other / 'net.py'}:Net",
        collect=CollectConfig(extra_states=str(other / "worst.npz")),
    )
    named = {path.relative_to(tmp_path).as_posix() for path in files_of(several)}
    assert named == {
        "agents/ppo/One-v1_1/One-v1.zip",
        *(f"elsewhere/{name}" for name in ("Two-v1.zip", "Two-v1/config.yml", "norm.pkl", "net.py", "worst.npz")),
    }


def test_an_agent_that_ships_with_the_project_has_files():
    names = {path.name for path in files_of(DistillConfig(teacher="ppo/CartPole-v1"))}
    assert "CartPole-v1.zip" in names
    assert not {name for name in names if name.startswith("LunarLander")}


def test_settings_are_text_that_a_file_keeps(config):
    settings = StudyJob.of("one", dataclasses.replace(config, collect=CollectConfig(window=2))).settings
    assert json.loads(json.dumps({"settings": settings}))["settings"] == settings


def test_a_failure_costs_one_job_even_if_nothing_can_be_written(config, monkeypatch, tmp_path):
    def fail(config: DistillConfig, **_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jobs, "distill_or_resume", fail)
    (tmp_path / "file").write_text("")
    outcome = perform(StudyJob.of("one", dataclasses.replace(config, output=str(tmp_path / "file" / "run"))))
    assert (outcome.status, outcome.reason) == ("failed", "OSError: [Errno 28] No space left on device")
