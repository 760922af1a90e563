"""Candidates: their figures worked out by hand, and what TensorBoard is told of them."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from policy_distill.pipeline.records import Candidate, reports_to, track_generation, track_round, track_validation
from policy_distill.training.trainer import TrainingReport
from tests.stand_ins import Recorder, record


def test_a_round_s_line_counts_from_one_and_names_the_first_loss():
    assert record(1, 12.34).figures() == "round  2    2,000 steps  forward_kl 0.25  return 12.3  retention 0.500"


def test_what_a_round_writes_to_tensorboard():
    recorder = Recorder()
    round_ = dataclasses.replace(record(1), held_out={"forward_kl_nats": 0.5})
    seconds = {"collect": 4.0, "train": 0.0, "polish": 0.0, "evaluate": 1.0, "total": 9.0}
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
    assert "time/total_seconds" not in seen  # of the stages alone


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
    track_validation(recorder, record(0, 3.0), 1500, (7.0, -1.0))  # type: ignore[arg-type]
    assert recorder.seen == {
        "eval/validation_return_mean": (3.0, 1500),
        "eval/validation_retention": (0.5, 1500),
        "eval/validation_return_mean_teacher": (7.0, 1500),
        "eval/validation_return_mean_random": (-1.0, 1500),
    }


def test_what_a_generation_writes_to_tensorboard_lies_over_generations():
    recorder = Recorder()
    generation = dataclasses.replace(record(0, 3.0), origin="generation", number=2, paired_difference=-0.25)
    track_generation(recorder, generation)  # type: ignore[arg-type]
    assert recorder.seen == {
        "self_distill/forward_kl_nats": (0.25, 2),
        "self_distill/other": (9.0, 2),
        "self_distill/validation_return_mean": (3.0, 2),
        "self_distill/validation_retention": (0.5, 2),
        "self_distill/paired_difference": (-0.25, 2),
    }


FULL = Candidate("round", 3, 640, 50, {"kl": 0.5}, {"kl": 0.75}, 0.25, -1.5, -3.0, 0.125, 0.625, 0.0625, -2.5, 8, True)
"""Every field has a value of its own."""


def test_what_result_json_holds_of_each_candidate():
    """The keys and their order are a contract."""
    assert list(FULL.summary().items()) == [
        ("round", 2), ("env_steps", 640), ("gradient_steps", 50), ("teacher_action_prob", 0.25), ("train", {"kl": 0.5}),
        ("held_out", {"kl": 0.75}), ("validation_return_mean", -3.0), ("validation_return_standard_error", 0.125),
        ("validation_retention", 0.625), ("finalist_return_mean", -2.5), ("validation_retention_standard_error", 0.0625),
        ("finalist_episodes", 8),
    ]  # fmt: skip
    assert list(dataclasses.replace(FULL, origin="generation").summary().items()) == [
        ("generation", 3), ("gradient_steps", 50), ("train", {"kl": 0.5}), ("held_out", {"kl": 0.75}), ("validation_return_mean", -3.0),
        ("validation_retention", 0.625), ("paired_difference", -1.5), ("kept", True), ("validation_retention_standard_error", 0.0625),
    ]  # fmt: skip
    assert list(dataclasses.replace(FULL, origin="polish").summary().items()) == [
        ("env_steps", 640), ("metrics", {"kl": 0.5}), ("validation_return_mean", -3.0), ("validation_retention", 0.625),
        ("finalist_return_mean", -2.5), ("validation_retention_standard_error", 0.0625), ("finalist_episodes", 8),
    ]  # fmt: skip


def test_a_finalist_has_the_mean_of_all_that_it_played():
    found = record(0).as_finalist(np.array([1.0, 2.0, 6.0]))
    assert (found.finalist_return_mean, found.finalist_episodes) == (3.0, 3)
    assert found.validation_return_mean == 0.0


def test_a_look_s_line():
    look = Candidate("polish", 1, 12_345, 0, {"train_return_mean": 1.26}, validation_return_mean=12.34, validation_retention=0.5)
    assert look.figures() == "polish     12,345 steps  sampled return 1.26  return 12.3  retention 0.500"
    assert "sampled return nan" in dataclasses.replace(look, train={}).figures()
