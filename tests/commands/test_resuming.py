"""``distill_policy --resume``: a run that was interrupted goes on, a finished one is shown, and all else is refused in one line."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from policy_distill.commands.cli import main
from policy_distill.config import CheckConfig, CollectConfig, DistillConfig, EvaluateConfig, PolishConfig, StudentConfig, TrainConfig
from policy_distill.pipeline import checkpoint
from policy_distill.pipeline import distill as module
from policy_distill.pipeline.context import Services
from policy_distill.pipeline.distill import distill_or_resume
from policy_distill.pipeline.state import Kept, State
from policy_distill.policies.student import Student
from policy_distill.support.files import locked
from policy_distill.support.progress import Display
from tests.commands.test_cli import SMALL, expert, refused  # noqa: F401 - a fixture
from tests.small_worlds import WALK


def settings(teacher: str, run: Path, *more: str) -> list[str]:
    return ["distill_policy", "--teacher", teacher, "--env", WALK.id, "--output", str(run), "--check.skip", *SMALL, *more]


@pytest.fixture
def stopping(monkeypatch):
    """Send this process a signal at the beginning of a stage."""

    def stop_at(stage: Any, number: int) -> None:
        advance = module.STAGES[stage]

        def stop_once(state: State, services: Services) -> State:
            monkeypatch.setitem(module.STAGES, stage, advance)
            os.kill(os.getpid(), number)
            return advance(state, services)

        monkeypatch.setitem(module.STAGES, stage, stop_once)

    return stop_at


def contents(run: Path) -> tuple[bytes, dict[str, Any]]:
    """The student's weights, and result.json without times and the run's folder."""
    found = json.loads((run / "result.json").read_text())
    del found["seconds"], found["config"]["output"]
    return (run / "student" / "student.safetensors").read_bytes(), found


@pytest.mark.parametrize(
    ("number", "code", "by"), [(signal.SIGINT, 130, ""), (signal.SIGTERM, 143, " by SIGTERM"), (signal.SIGHUP, 129, " by SIGHUP")]
)
def test_a_signal_ends_a_run_with_the_command_that_goes_on(number, code, by, expert, tmp_path, capsys, stopping):  # noqa: F811
    run, whole = tmp_path / "a  run", tmp_path / "whole"  # two spaces
    assert main(settings(expert, whole)) == 0
    stopping("evaluation", number)
    assert main(settings(expert, run)) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"policy-distill: interrupted{by}; go on with: policy-distill distill_policy --resume '{run}'"
    assert not (run / "result.json").exists()
    assert (run / "student" / "student.json").exists()
    assert main(["distill_policy", "--resume", str(run), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["env_steps"] == 200
    assert contents(run) == contents(whole)
    assert not (run / "checkpoint").exists()


def test_a_finished_run_is_shown_and_not_run_again(expert, tmp_path, capsys):  # noqa: F811
    assert main(settings(expert, tmp_path / "run", "--json")) == 0
    before = capsys.readouterr().out
    changed = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    (tmp_path / "run" / "checkpoint").mkdir()  # as if the process was killed while it removed the checkpoint
    (tmp_path / "run" / "checkpoint" / "config.yaml").touch()
    assert main(["distill_policy", f"--resume={tmp_path / 'run'}", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == json.loads(before)
    assert captured.err == f"policy-distill: {tmp_path / 'run'} is finished, and is not run again\n"
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert main(["distill_policy", "--resume", str(tmp_path / "run"), "--seed=9", "--train.members", "2"]) == 0
    captured = capsys.readouterr()
    assert "retention" in captured.out
    assert f"--seed and --train.members had no effect: its settings are in {tmp_path / 'run' / 'config.yaml'}" in captured.err
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == changed


def test_an_interrupted_run_is_neither_overwritten_nor_continued_with_other_settings(expert, tmp_path, capsys, stopping):  # noqa: F811
    run = tmp_path / "run"
    stopping("choice", signal.SIGINT)
    main(settings(expert, run))
    capsys.readouterr()
    line = refused(capsys, *settings(expert, run))
    assert f"{run} holds a run that was interrupted: go on with: policy-distill distill_policy --resume {run}" in line
    line = refused(capsys, "distill_policy", "--resume", str(run), "--seed", "9")
    assert "seed is 9, it was 0" in line
    line = refused(capsys, "distill_policy", "--resume", str(run), "--config", "x.yaml")
    assert "leave --config out" in line
    assert main(["distill_policy", "--resume", str(run), "--workers", "1", "--json"]) == 0


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    line = refused(capsys, "distill_policy", "--resume", str(tmp_path))
    assert f"{tmp_path} holds no run that was interrupted" in line


def test_settings_that_run_code_are_typed_again(expert, tmp_path, capsys, stopping):  # noqa: F811
    """The checkpoint's settings are a file, and may be another user's."""
    run, inputs = tmp_path / "run", json.dumps({"wrapper": "tests.policies.test_views:Halved"})
    stopping("choice", signal.SIGINT)
    assert main(settings(expert, run, "--student.inputs", inputs)) == 130
    typed = shlex.split(capsys.readouterr().err.splitlines()[-1].split("policy-distill ")[-1])
    assert typed == ["distill_policy", "--resume", str(run), "--student.inputs", inputs]
    assert "importing it runs its code" in refused(capsys, *typed[:3])
    assert main(typed) == 0


def test_a_folder_in_use_is_refused(expert, tmp_path, capsys):  # noqa: F811
    run = tmp_path / "run"
    run.mkdir()
    with locked(run):
        assert "is in use by another run of this process" in refused(capsys, *settings(expert, run))
    assert sorted(os.listdir(run)) == []


def test_a_new_run_leaves_nothing_of_the_run_before(expert, tmp_path, stopping):  # noqa: F811
    run = tmp_path / "run"
    certified = ("--evaluate.certify", "0.5", "--evaluate.max_episodes", "50")
    assert main(settings(expert, run, *certified)) == 0
    assert (run / "certificate.json").exists()
    for name in ("disagreements.npz", "episode.gif", ".result.json.abc.json", "notes.txt"):
        (run / name).write_text("")
    stopping("imitation", signal.SIGINT)
    assert main(settings(expert, run)) == 130
    left = {path.relative_to(run).as_posix() for path in run.rglob("*")}
    logs = {name for name in left if "tfevents" in name}
    assert len(logs) == 1
    checkpoint_files = {"checkpoint", "checkpoint/config.yaml", "checkpoint/state.safetensors"}
    assert left - logs == {"config.yaml", "student", "tensorboard", "notes.txt"} | checkpoint_files
    assert checkpoint.exists(run)


def test_a_polished_student_is_on_the_disk_as_soon_as_it_is_chosen(expert, tmp_path, stopping, monkeypatch):  # noqa: F811
    """Evaluation and certificate may take hours, and the disk may be full afterwards."""
    run, better = tmp_path / "run", []

    def polish(state: State, services: Services) -> State:
        better.append(copy.deepcopy(state.kept[-1].student))
        better[0].linears[-1].bias.add_(1)
        state.kept.append(Kept(better[0], state.kept[-1].returns, "polish, 8 steps"))
        state.stage = "value"
        return state

    monkeypatch.setitem(module.STAGES, "polish", polish)
    stopping("value", signal.SIGINT)
    assert main(settings(expert, run)) == 130
    weights = Student.load(run / "student").state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in better[0].state_dict().items())


def test_the_states_that_a_new_run_reads_are_not_removed(tmp_path):
    """They may be those of the run before, in the same folder."""
    for name in ("disagreements.npz", "result.json"):
        (tmp_path / name).write_text("")
    module.remove_results(tmp_path, except_for=str(tmp_path / "disagreements.npz"))
    assert os.listdir(tmp_path) == ["disagreements.npz"]
    module.remove_results(tmp_path, except_for=None)
    assert os.listdir(tmp_path) == []


def test_a_job_of_a_study_goes_on_and_one_of_other_settings_begins_anew(expert, tmp_path, stopping):  # noqa: F811
    """Both commands of studies call ``distill_or_resume``."""
    begun: list[int] = []
    config = DistillConfig(
        teacher=expert, env=WALK.id, output=str(tmp_path / "run"), device="cpu", workers=0, check=CheckConfig(skip=True),
        student=StudentConfig((8,)), collect=CollectConfig(env_steps=200, rounds=2, num_envs=4), polish=PolishConfig(below=0),
        train=TrainConfig(gradient_steps=50, batch_size=32), evaluate=EvaluateConfig(episodes=6, validation_episodes=3),
    )  # fmt: skip

    class Notes(Display):
        def note(self, message: str) -> None:
            begun.append("resumed" in message)

    changes: list[tuple[dict[str, Any], bool]] = [({}, True), ({"seed": 9}, False)]
    for change, resumed in changes:
        stopping("choice", signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            distill_or_resume(config)
        begun.clear()
        result = distill_or_resume(dataclasses.replace(config, **change), display=Notes())
        assert (any(begun), result.summary["seed"]) == (resumed, change.get("seed", 0))
        assert not checkpoint.exists(tmp_path / "run")
