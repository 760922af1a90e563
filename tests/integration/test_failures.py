"""Runs that fail in the middle: one line that names the cause, the best student so far, and earlier files as they were."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from policy_distill.commands.cli import main
from policy_distill.config import CollectConfig, EnvironmentFault, EvaluateConfig, MemoryFault, StorageFault, TrainConfig, TrainingFault
from policy_distill.pipeline.distill import STAGES, distill
from policy_distill.policies.student import Student
from policy_distill.rollouts.episodes import evaluate
from policy_distill.training.trainer import Trainer
from tests.integration.test_distill import expert_zip, tiny  # noqa: F401
from tests.small_worlds import WALK


def failing_in(monkeypatch: pytest.MonkeyPatch, number: int, fail: Any) -> None:
    """Call ``fail`` in place of the training of round ``number``."""
    train, calls = Trainer.run, []

    def run(self: Trainer, *arguments: Any, **named: Any) -> Any:
        calls.append(1)
        return fail(self) if len(calls) == number else train(self, *arguments, **named)

    monkeypatch.setattr(Trainer, "run", run)


def raising(error: BaseException) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize("error", [TrainingFault("a loss became nan"), EnvironmentFault("the reward is nan"), ZeroDivisionError("bug")])
def test_the_best_student_so_far_is_kept_and_named(error, tmp_path, expert_zip, monkeypatch):  # noqa: F811
    failing_in(monkeypatch, 4, raising(error))
    with pytest.raises(type(error)) as caught:
        distill(tiny(tmp_path / "run", teacher=str(expert_zip)))
    saved = [note for note in caught.value.__notes__ if note.startswith("the best student so far, of round ")]
    assert saved[0].endswith(f"is in {tmp_path / 'run' / 'student'}")
    assert evaluate(Student.load(tmp_path / "run" / "student"), WALK, range(5)).returns.mean() > -12
    assert not (tmp_path / "run" / "result.json").exists()


def test_before_any_student_is_measured_none_is_kept(tmp_path, expert_zip, monkeypatch):  # noqa: F811
    failing_in(monkeypatch, 1, raising(TrainingFault("a loss became nan")))
    with pytest.raises(TrainingFault) as caught:
        distill(tiny(tmp_path / "run", teacher=str(expert_zip)))
    assert not any("best student" in note for note in caught.value.__notes__)
    assert not (tmp_path / "run" / "student").exists()


def test_weights_that_became_infinite_end_the_training_and_are_not_saved(tmp_path, expert_zip, monkeypatch):  # noqa: F811
    train, calls = Trainer.run, []

    def run(self: Trainer, *arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            self.stack.flat.fill_(torch.inf)
        return train(self, *arguments, **named)

    monkeypatch.setattr(Trainer, "run", run)
    with pytest.raises(TrainingFault, match=r"training diverged: .*lower train\.learning_rate"):
        distill(tiny(tmp_path / "run", teacher=str(expert_zip)))
    assert Student.load(tmp_path / "run" / "student").not_finite() is None


OUT_OF_MEMORY = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
    "numpy": MemoryError(),
    "cpu": RuntimeError("DefaultCPUAllocator: can't allocate memory"),
}


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY.keys())
def test_memory_that_runs_out_names_the_settings_to_lower(error, tmp_path, expert_zip, monkeypatch):  # noqa: F811
    failing_in(monkeypatch, 3, raising(error))
    with pytest.raises(MemoryFault) as caught:
        distill(tiny(tmp_path / "run", teacher=str(expert_zip)))
    assert str(caught.value) == (
        "the memory of the CPU ran out in the stage imitation: lower train.batch_size (it is 64), train.members (it is 1) or "
        "collect.env_steps (it is 1,202), or set collect.storage disk"
    )
    assert any("best student so far" in note for note in caught.value.__notes__)


def test_memory_that_runs_out_while_polishing_names_the_settings_of_polishing(tmp_path, expert_zip, monkeypatch):  # noqa: F811
    def polish(state: Any, services: Any) -> None:
        state.stage = "value"
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(STAGES, "polish", polish)
    with pytest.raises(MemoryFault, match=r"in the stage polish: lower polish\.batch_size \(it is 512\), polish\.num_steps"):
        distill(tiny(tmp_path / "run", teacher=str(expert_zip)))


def test_a_disk_that_fails_at_any_write_leaves_the_earlier_files_whole(tmp_path, expert_zip, monkeypatch):  # noqa: F811
    """Renaming each of these files fails once, in a run of its own; what was written before can be read."""
    config = tiny(
        tmp_path / "run",
        teacher=str(expert_zip),
        collect=CollectConfig(env_steps=200, rounds=2, num_envs=4),
        train=TrainConfig(gradient_steps=40, batch_size=32, members=1),
        evaluate=EvaluateConfig(episodes=4, validation_episodes=2, finalist_episodes=2),
    )
    replace, writes, failing = Path.replace, [], [0]

    def counted(self: Path, target: Any) -> Path:
        writes.append(Path(target).name)
        if len(writes) == failing[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", counted)
    distill(config)
    names = list(writes)
    assert {"config.yaml", "student.json", "student.safetensors", "student.zip", "result.json", "report.md", "report.html"} <= set(names)
    tried = ("state.safetensors", "student.json", "student.safetensors", "student.zip", "result.json")
    for number in (len(names) - names[::-1].index(name) for name in tried):  # the last write of each
        shutil.rmtree(tmp_path / "run")
        writes.clear()
        failing[0] = number
        with pytest.raises(StorageFault, match=rf"{names[number - 1]} cannot be written \(No space left on device\)"):
            distill(config)
        if (tmp_path / "run" / "student").is_dir():
            Student.load(tmp_path / "run" / "student")
        assert not [path for path in (tmp_path / "run").rglob(".*") if path.suffix in (".json", ".yaml", ".zip", ".safetensors")]


def test_a_run_folder_that_is_gone_is_not_made_again(tmp_path, expert_zip, monkeypatch):  # noqa: F811
    def remove(_: Trainer) -> dict[str, float]:
        shutil.rmtree(tmp_path / "run")
        return {}

    failing_in(monkeypatch, 3, remove)
    with pytest.raises(StorageFault, match=rf"the folder {tmp_path / 'run'}\S* does not exist any more"):
        distill(tiny(tmp_path / "run", teacher=str(expert_zip)))
    assert not (tmp_path / "run").exists()


def test_an_error_of_the_disk_that_no_code_expects_ends_with_one_line_too(tmp_path, monkeypatch, capsys):
    failing_in(monkeypatch, 2, raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")))
    small = [
        "--collect.rounds=3",
        "--collect.env_steps=600",
        "--train.gradient_steps=60",
        "--polish.below=0",
        "--workers=0",
        "--device=cpu",
    ]
    assert main(["distill_policy", "--teacher=ppo/CartPole-v1", f"--output={tmp_path / 'run'}", *small]) == 1
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert "policy-distill: distill_policy failed: [Errno 28] No space left on device: 'somewhere'" in errors.splitlines()[-1]


def test_the_restarts_of_workers_are_in_the_result(tmp_path, monkeypatch):
    import tests.faulty_worlds  # noqa: F401

    for name, value in {"FAULT": "exit", "FAULT_IN": "validation", "FAULT_ONCE": str(tmp_path / "once")}.items():
        monkeypatch.setenv(name, value)
    config = tiny(tmp_path / "run", env="Faulty-v0", teacher="ppo/CartPole-v1", workers=1)
    summary = distill(config).summary
    assert any("restart 1 of at most 2" in notice for notice in summary["notices"])
