"""A checkpoint is refused where the run would not be the same one. That its contents come back bit for bit: see test_state.py."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from policy_distill.config import CollectConfig, DistillConfig, EvaluateConfig, PolishConfig, StudentConfig, TrainConfig
from policy_distill.export.sb3 import save_ppo
from policy_distill.pipeline import checkpoint, state_file
from policy_distill.pipeline.checkpoint import CannotResume, Checkpoint
from policy_distill.pipeline.prepare import Job, prepare
from policy_distill.pipeline.state import State
from policy_distill.support.untrusted import read_yaml
from policy_distill.training.value_network import DistilledValues
from tests.small_worlds import WALK, labelled, walk_expert, walk_teacher
from tests.stand_ins import episodes, record

CONFIG = DistillConfig(
    env=WALK.id, device="cpu", workers=0, student=StudentConfig(hidden_sizes=(8,)),
    collect=CollectConfig(env_steps=200, rounds=2, num_envs=4),
    train=TrainConfig(gradient_steps=20, batch_size=16), polish=PolishConfig(below=0), evaluate=EvaluateConfig(episodes=4, certify=0.5),
)  # fmt: skip


@pytest.fixture
def job(tmp_path) -> Job:
    folder = tmp_path / "ppo" / "Walker_1"
    folder.mkdir(parents=True)
    teacher = save_ppo(walk_expert(), folder / "Walker.zip")
    return prepare(dataclasses.replace(CONFIG, teacher=str(teacher), output=str(tmp_path / "run")))


def saved(job: Job, state: State | None = None) -> Path:
    """The file of a checkpoint."""
    Checkpoint(job, checkpoint.identity(job)).write(state or State.begin(job))
    return checkpoint.folder_of(job.folder) / checkpoint.STATE


def refused(job: Job) -> str:
    with pytest.raises(CannotResume) as error:
        checkpoint.read(job.folder, checkpoint.identity(job)).state(job)
    assert "remove the folder checkpoint" in str(error.value)
    return str(error.value)


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Another checkpoint with a correct hash, as a stranger could send it; ``change`` receives its state and its arrays."""
    content, arrays = path.read_bytes(), load_file(path)
    data = json.loads(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["data"])
    change(data["state"], arrays)
    text = json.dumps(data)
    save_file(arrays, path, {"data": text, "sha256": state_file._digest(text, arrays)})


def again(job: Job, **changes: Any) -> Job:
    """The same request with other settings."""
    return prepare(dataclasses.replace(job.config, **changes))


def test_each_field_of_a_state_is_written_and_read():
    """A field that this list lacks was added to ``State`` and is perhaps missing from checkpoints."""
    described = {
        "columns", "dataset", "records", "trainer", "students", "returns", "kept", "teacher_parts", "random_parts", "student_episodes",
        "polishing", "critic", "values", "certified", "teacher_returns", "random_returns",
    }  # fmt: skip
    assert {field.name for field in dataclasses.fields(State)} == described | set(checkpoint.PLAIN)


def test_figures_are_read_as_they_were_written(job):
    """NaN, and the difference of None and NaN, among them."""
    state = State.begin(job)
    state.records = [dataclasses.replace(record(0), validation_retention=float("nan")), record(1, mean=0.1 + 0.2, finalist=7.0)]
    state.teacher_parts = [episodes(1.0, 2.0), episodes(0.1, agreement=0.3)]
    state.seconds["total"], state.view_loss, state.stage = 1 / 3, {"seen": 0.1}, "polish"
    saved(job, state)
    found = checkpoint.read(job.folder, checkpoint.identity(job)).state(job)
    assert repr(found.records) == repr(state.records)
    assert repr(found.teacher_parts) == repr(state.teacher_parts)
    assert (found.seconds, found.view_loss, found.stage, found.seeds) == (state.seconds, state.view_loss, "polish", state.seeds)
    assert found.student_episodes is None


def test_value_networks_are_read_as_they_were_written(job):
    state = State.begin(job)
    state.critic, state.values = [nn.Linear(2, 3), nn.Linear(3, 1)], DistilledValues([nn.Linear(2, 1)], 0.25)
    saved(job, state)
    found = checkpoint.read(job.folder, checkpoint.identity(job)).state(job)
    assert found.critic is not None
    assert found.values is not None
    assert found.values.explained_variance == 0.25
    for one, other in zip([*state.critic, *state.values.layers], [*found.critic, *found.values.layers], strict=True):
        assert torch.equal(one.weight, other.weight)
        assert torch.equal(one.bias, other.bias)


def test_the_notices_of_the_beginning_are_those_of_the_run(job):
    saved(dataclasses.replace(job, notices=("of the beginning",)))
    found = checkpoint.read(job.folder, checkpoint.identity(job))
    assert (found.notices, found.changed) == (("of the beginning",), [])


def test_the_settings_are_written_as_they_were_given(job):
    """Those of config.yaml have the student's sizes filled in, which may have followed from ``compression``."""
    saved(job)
    found = read_yaml(checkpoint.folder_of(job.folder) / checkpoint.CONFIG, "")
    assert found == json.loads(json.dumps(dataclasses.asdict(job.config)))


def test_settings_without_effect_on_the_student_may_differ(job):
    saved(job)
    checkpoint.read(job.folder, checkpoint.identity(again(job, workers=2, step_timeout=5.0)))


def test_another_setting_is_refused_and_named(job):
    saved(job)
    train = dataclasses.replace(job.config.train, gradient_steps=21, members=2)
    line = refused(again(job, train=train, seed=7))
    assert "seed is 7, it was 0; train.gradient_steps is 21, it was 20; train.members is 2, it was None" in line


def test_another_teacher_is_refused(job):
    saved(job)
    save_ppo(walk_expert(), Path(job.config.teacher), critic=None)
    with open(job.config.teacher, "ab") as file:
        file.write(b"\0")
    assert "the teacher's file Walker.zip is '" in refused(job)


def test_a_teacher_may_have_moved(job, tmp_path):
    saved(job)
    (tmp_path / "ppo").rename(tmp_path / "elsewhere")
    moved = again(job, teacher=str(tmp_path / "elsewhere" / "Walker_1" / "Walker.zip"), algo="ppo")
    line = refused(moved)
    assert "algo is 'ppo'" in line
    assert "teacher is" not in line


def test_another_network_is_refused_where_no_file_describes_it(job):
    """A live model has no files."""
    saved(job)
    with torch.no_grad():
        next(value for name, value in job.teacher.state_dict().items() if name.startswith("network.")).add_(1)
    assert "the hash of the teacher's weights is" in refused(job)


def test_another_environment_and_device_are_refused(job):
    saved(job)
    assert "the environment's kwargs.size is 2, it was None" in refused(
        dataclasses.replace(job, spec=dataclasses.replace(job.spec, kwargs={"size": 2}))
    )
    assert "the device is 'cuda', it was 'cpu'" in refused(dataclasses.replace(job, device=torch.device("cuda")))


def test_other_code_and_another_format_are_refused(job, monkeypatch):
    saved(job)
    with monkeypatch.context() as patch:
        patch.setitem(checkpoint.SOURCES, "policy_distill", "0123456789abcdef")
        line = refused(job)
    assert "(sources 01234567): resume it with that code" in line
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    assert "is of format 1, this version reads 2" in refused(job)


def test_other_versions_are_said(job, monkeypatch):
    saved(job)
    before = checkpoint.versions()
    monkeypatch.setattr(checkpoint, "versions", lambda: {**before, "torch": "9.9"})
    assert checkpoint.read(job.folder, checkpoint.identity(job)).changed == [f"torch is 9.9, it was {before['torch']}"]


def test_without_a_checkpoint_there_is_nothing_to_resume(job):
    assert not checkpoint.exists(job.folder)
    assert "cannot be read (No such file or directory)" in refused(job)


@pytest.mark.parametrize("place", [3, 200, -3])
def test_a_changed_byte_is_noticed(place, job):
    state = State.begin(job)
    state.teacher_parts = [episodes(1.0, 2.0)]
    path = saved(job, state)
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    assert "state.safetensors cannot be read" in refused(job)


def test_other_contents_with_the_same_hash_are_noticed(job):
    path = saved(job)
    content = path.read_bytes()
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    save_file(load_file(path), path, {**metadata, "data": metadata["data"].replace('"env_steps": 0', '"env_steps": 1')})
    assert "its contents are not those that were written" in refused(job)


def test_a_failed_write_leaves_the_checkpoint_before(job, monkeypatch):
    state = State.begin(job)
    path = saved(job, state)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    state.env_steps = 100
    with monkeypatch.context() as patch:
        patch.setattr(state_file, "save_file", full)
        with pytest.raises(Exception, match="No space left"):
            saved(job, state)
    assert path.read_bytes() == before
    assert sorted(os.listdir(path.parent)) == ["config.yaml", "state.safetensors"]


def test_a_removed_checkpoint_leaves_nothing(job):
    saved(job)
    assert checkpoint.exists(job.folder)
    checkpoint.remove(job.folder)
    assert not checkpoint.exists(job.folder)
    assert not checkpoint.folder_of(job.folder).exists()
    checkpoint.remove(job.folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state, arrays: state.update(students=10**12), "it does not hold 1000000000000 students"),
        (lambda state, arrays: state.update(stage="os.system"), "it names no stage"),
        (lambda state, arrays: state.update(env_steps="\x1b[2J"), "env_steps is a str"),
        (lambda state, arrays: state["dataset"].update(columns=[["observations", None, "uint8", [2**40]]]), "a shape of more than"),
        (lambda state, arrays: state["dataset"].update(columns=[["observations", None, "object", [1]]]), "'object' is no type of numbers"),
        (
            lambda state, arrays: (
                state.update(critic=1),
                arrays.update({"critic/0/weight": np.zeros((2**40, 0), np.float32), "critic/0/bias": np.zeros(1, np.float32)}),
            ),
            "a bias does not fit its weight",
        ),
    ],
)
def test_a_checkpoint_that_was_forged_costs_neither_time_nor_memory(change, reason, job):
    rewritten(saved(job), change)
    assert reason in refused(job)


def test_what_is_too_large_or_no_file_is_not_read(job, monkeypatch):
    path = saved(job)
    for limit in ("MAX_FILE_BYTES", "MAX_DATA_BYTES"):
        with monkeypatch.context() as patch:
            patch.setattr(state_file, limit, 100)
            assert "it is larger than any that is written" in refused(job)
    path.unlink()
    os.mkfifo(path)
    assert "is no regular file" in refused(job)


def test_rows_that_are_a_link_to_another_file_are_not_written(job, tmp_path):
    (tmp_path / "precious").write_bytes(b"precious")
    state = State.begin(job)
    path = saved(job, state)
    path.with_name("rows").symlink_to(tmp_path / "precious")
    seen = torch.zeros(1, 2)
    state.dataset.append(labelled(seen, walk_teacher().targets(seen)))
    with pytest.raises(OSError, match="symbolic links"):
        saved(job, state)
    assert (tmp_path / "precious").read_bytes() == b"precious"
