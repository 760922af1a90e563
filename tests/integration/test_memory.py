"""A student with a memory through a whole run: rounds, a generation, a certificate, files; the same with any number of workers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from policy_distill import DistillResult, Student, distill
from policy_distill.config import (
    CheckConfig,
    CollectConfig,
    DistillConfig,
    EvaluateConfig,
    LossConfig,
    PolishConfig,
    RelationConfig,
    RequestError,
    SelfDistillConfig,
    StudentConfig,
    TrainConfig,
    ValueConfig,
)
from policy_distill.evaluation.disagreements import find
from policy_distill.pipeline.prepare import complete_config, prepare
from policy_distill.pipeline.sizing import choose_architecture
from policy_distill.rollouts.episodes import evaluate
from policy_distill.support.progress import Display
from policy_distill.teachers import Teacher
from tests.small_worlds import PEEK, PUSH, WALK, Peek, Walk, push_teacher, walk_best, walk_teacher

SEEDS = range(1_000_000, 1_000_020)


class Notes(Display):
    """What was said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def settings(folder: Path, **changes: Any) -> DistillConfig:
    return DistillConfig(
        **{
            "env": WALK.id,
            "output": str(folder),
            "workers": 0,
            "seed": 3,
            "student": StudentConfig(memory="gru", memory_size=12),
            "collect": CollectConfig(env_steps=800, rounds=2, num_envs=4),
            "train": TrainConfig(gradient_steps=120, batch_size=64, sequence_length=8, burn_in=4, members=2),
            "check": CheckConfig(skip=True),
            "polish": PolishConfig(below=0.0),
            "evaluate": EvaluateConfig(episodes=20, validation_episodes=8, finalist_episodes=4, reuse_returns=False),
            **changes,
        }
    )


def run(folder: Path, **changes: Any) -> tuple[DistillResult, list[str]]:
    notes = Notes()
    return distill(settings(folder, **changes), teacher=walk_teacher(), display=notes), notes.lines


def test_a_whole_run_with_a_generation_and_a_certificate(tmp_path):
    result, notes = run(
        tmp_path,
        self_distill=SelfDistillConfig(generations=1, gradient_steps=60),
        polish=PolishConfig(below=10.0, env_steps=4096, num_steps=64),
        evaluate=EvaluateConfig(episodes=20, validation_episodes=8, finalist_episodes=4, reuse_returns=False, certify=0.5),
    )
    assert result.retention.estimate > 0.95
    assert sum("PPO has no policy with a memory" in note for note in notes) == 1  # is not exported
    assert len(result.summary["polish"]["records"]) == 4
    assert not (tmp_path / "student.zip").exists()
    assert (tmp_path / "report.html").exists()
    summary = json.loads((tmp_path / "result.json").read_text())
    assert summary["student"]["memory"] == {"kind": "gru", "size": 12}
    assert summary["student"]["params"] == 3 * 15 * 12 + 13 * 12 + 13 * 3
    assert summary["certificate"]["verdict"] == "certified"
    assert len(summary["self_distillation"]) == 1
    again = Student.load(tmp_path / "student")
    for num_envs in (1, 7):
        np.testing.assert_array_equal(evaluate(again, WALK, SEEDS, num_envs=num_envs).returns, result.student_episodes.returns)
    found = find(again, walk_teacher(), WALK, SEEDS)
    np.testing.assert_array_equal(found.student_returns, result.student_episodes.returns)


def test_it_is_the_same_with_any_number_of_workers_and_on_disk(tmp_path):
    tensors = []
    storages: list[tuple[int, Literal["memory", "disk"]]] = [(0, "memory"), (2, "disk")]
    for number, (workers, storage) in enumerate(storages):
        collect = CollectConfig(env_steps=800, rounds=2, num_envs=4, storage=storage)
        result, _ = run(tmp_path / str(number), workers=workers, collect=collect)
        tensors.append(result.student.state_dict())
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())


def test_continuous_actions_and_relations_of_the_head(tmp_path):
    loss = LossConfig(relations=RelationConfig(weight=0.1, layers={"output": "hidden.0"}))
    result = distill(settings(tmp_path, env=PUSH.id, loss=loss), teacher=push_teacher())
    assert result.retention.estimate > 0.7
    assert float(result.student.log_std.max()) < -0.5  # fitted along the episodes


@pytest.mark.parametrize("memory", ["gru", "none"])
def test_what_is_hidden_from_it_is_remembered(memory, tmp_path):
    """The teacher sees all the time what the student is shown at the episode's start alone."""
    teacher = Teacher.from_callable(lambda seen: (seen[:, 2] > 0).astype(np.int64), Peek.observation_space, Peek().action_space)
    student = StudentConfig(hidden_sizes=(12,), inputs=[0, 1], memory=memory, memory_size=12 if memory == "gru" else None)
    config = settings(tmp_path, env=PEEK.id, student=student, self_distill=SelfDistillConfig(generations=1, gradient_steps=120))
    result = distill(config, teacher=teacher)
    assert set(result.teacher_episodes.returns) == {1.0}
    if memory == "gru":
        assert set(result.student_episodes.returns) == {1.0}
        again = Student.load(tmp_path / "student")
        np.testing.assert_array_equal(evaluate(again, PEEK, SEEDS, num_envs=3).returns, result.student_episodes.returns)
    else:
        assert result.student_episodes.returns.mean() < 0.9


# What is asked for, and refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": TrainConfig(batch_size=100)}, "batch_size is 100, .* sequences of 64 steps: choose a multiple"),
        ({"value": ValueConfig(hidden_sizes=(8,))}, "critic|memory: leave it out"),
        ({"collect": CollectConfig(extra_states="x.npz")}, "collect.extra_states are single observations"),
    ],
)
def test_what_needs_single_observations_is_refused_before_any_work(changes, message, tmp_path):
    with pytest.raises(RequestError, match=message):
        prepare(settings(tmp_path / "run", **changes), walk_teacher())
    assert not (tmp_path / "run").exists()


def test_the_sizes_follow_from_what_is_given():
    counted = Teacher.from_callable(walk_best, Walk.observation_space, Walk().action_space, params=10_000)
    chosen = choose_architecture(StudentConfig(memory="gru"), counted)
    assert chosen.params <= 1_000
    assert chosen.hidden_sizes == (chosen.memory,)
    assert choose_architecture(StudentConfig(memory="gru", compression=20), counted).params <= 500
    both = choose_architecture(StudentConfig(memory="gru", memory_size=9, hidden_sizes=()), counted)
    assert (both.memory, both.hidden_sizes) == (9, ())
    assert choose_architecture(StudentConfig(memory="gru", hidden_sizes=(5,)), counted).memory == 32
    assert choose_architecture(StudentConfig(), counted).memory == 0
    with pytest.raises(RequestError, match="cannot be counted"):
        choose_architecture(StudentConfig(memory="gru"), walk_teacher())


def test_a_written_config_asks_for_the_same_student(tmp_path):
    counted = Teacher.from_callable(walk_best, Walk.observation_space, Walk().action_space, params=10_000)
    job = prepare(dataclasses.replace(settings(tmp_path), student=StudentConfig(memory="gru")), counted)
    written: dict[str, Any] = {}
    for name, value in complete_config(job)["student"].items():
        written[name] = tuple(value) if isinstance(value, list) else value
    again = StudentConfig(**written)
    assert choose_architecture(again, counted) == job.architecture


@pytest.mark.parametrize(
    "settings_of_student",
    [
        {"memory": "lstm"},
        {"memory_size": 4},
        {"memory": "gru", "memory_size": 0},
        {"memory": "gru", "memory_size": 4, "compression": 5.0},
        {"memory": "gru", "same": True},
    ],
)
def test_settings_of_a_memory_that_make_no_sense_are_refused(settings_of_student):
    with pytest.raises(RequestError, match=r"student\.memory"):
        StudentConfig(**settings_of_student)
