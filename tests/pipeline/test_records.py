"""Rounds: figures worked out by hand, and what TensorBoard is told of them."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np
import pytest

from policy_distill.pipeline.records import reports_to, track_round, track_validation
from policy_distill.training.trainer import TrainingReport
from tests.stand_ins import Recorder, record


def test_a_validated_round_has_mean_standard_error_and_retention():
    plain = record(1)
    found = plain.validated(np.array([1.0, 2.0, 3.0, 6.0]), teacher_mean=7.0, random_mean=-1.0)
    assert found.validation_return_mean == 3.0
    # squares of the deviations: 4 + 1 + 0 + 9 = 14; variance 14 / 3; of a mean of four, 14 / 12
    assert found.validation_return_standard_error == pytest.approx(math.sqrt(14 / 12))
    assert found.validation_retention == 0.5  # (3 + 1) / (7 + 1)
    kept = ("round", "env_steps", "gradient_steps", "teacher_action_prob", "train", "held_out")
    assert all(getattr(found, name) == getattr(plain, name) for name in kept)


def test_a_round_whose_teacher_is_chance_has_no_retention_and_one_episode_no_error():
    found = record(0).validated(np.array([4.0]), teacher_mean=2.0, random_mean=2.0)
    assert math.isnan(found.validation_retention)
    assert found.validation_return_standard_error == 0.0


def test_a_round_s_line_counts_from_one_and_names_the_first_loss():
    assert record(1, 12.34).figures() == "round  2    2,000 steps  forward_kl 0.25  return 12.3  retention 0.500"


def test_what_a_round_writes_to_tensorboard():
    recorder = Recorder()
    round_ = dataclasses.replace(record(1), held_out={"forward_kl_nats": 0.5})
    seconds = {"collect": 4.0, "train": 0.0, "polish": 0.0, "evaluate": 1.0}
    track_round(recorder, round_, 2.0, 1e-3, seconds)  # type: ignore[arg-type]
    seen = {name: value for name, (value, _) in recorder.seen.items()}
    assert {steps for _, steps in recorder.seen.values()} == {2000}
    assert seen["collect/reward_mean"] == 2.0
    assert seen["collect/teacher_action_prob"] == 0.5
    assert (seen["train/forward_kl_nats"], seen["train/held_out_forward_kl_nats"]) == (0.25, 0.5)
    assert (seen["train/learning_rate"], seen["train/gradient_steps"]) == (1e-3, 20)
    assert seen["time/env_steps_per_second"] == 500.0  # 2000 in 4 s
    assert math.isfinite(seen["time/gradient_steps_per_second"])
    assert seen["time/collect_seconds"] == 4.0


def test_what_a_trainer_reports_is_shown_and_written_over_gradient_steps():
    class Shown:
        stages: ClassVar[list[str]] = []
        moved = 0

        def stage(self, description: str) -> None:
            self.stages.append(description)

        def move(self, amount: int) -> None:
            self.moved += amount

    recorder, shown = Recorder(), Shown()
    report = reports_to(recorder, shown, "train_steps", "round 2: training", begun=1000)  # type: ignore[arg-type]
    report(TrainingReport(200, 200, {"forward_kl_nats": 0.5, "relation_angle_body": 0.25}, 1e-3))
    assert recorder.seen == {
        "train_steps/forward_kl_nats": (0.5, 1200),
        "train_steps/relation_angle_body": (0.25, 1200),
        "train_steps/learning_rate": (1e-3, 1200),
    }
    report(TrainingReport(300, 100, {"forward_kl_nats": 0.125}, 5e-4))
    assert recorder.seen["train_steps/forward_kl_nats"] == (0.125, 1300)
    assert shown.stages == ["round 2: training, forward_kl 0.5", "round 2: training, forward_kl 0.125"]
    assert shown.moved == 300


def test_what_validation_writes_to_tensorboard():
    recorder = Recorder()
    track_validation(recorder, 1000, 3.0, 0.5, (7.0, -1.0))  # type: ignore[arg-type]
    assert recorder.seen == {
        "eval/validation_return_mean": (3.0, 1000),
        "eval/validation_retention": (0.5, 1000),
        "eval/validation_return_mean_teacher": (7.0, 1000),
        "eval/validation_return_mean_random": (-1.0, 1000),
    }
