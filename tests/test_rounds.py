"""Rounds: figures worked out by hand, which one is kept, and the keys of result.json."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from policy_distill.config import DistillConfig, StudentConfig
from policy_distill.evaluate import Episodes
from policy_distill.job import prepare
from policy_distill.rounds import VERSION, Round, choose_round, finalists, summarize, track_final, track_round, track_validation
from policy_distill.statistics import Retention
from tests.small_worlds import WALK, random_transitions, walk_teacher

RESULT_KEYS = {
    "": "version seed device env environment teacher student random compression retention agreement env_steps gradient_steps "
    "chosen_round rounds self_distillation notices returns seconds",
    "environment": "id kwargs wrappers max_episode_steps extra",
    "teacher": "path algo params return_mean return_std",
    "student": "hidden_sizes activation params return_mean return_std",
    "random": "return_mean return_std",
    "retention": "estimate low high confidence episodes",
    "returns": "seeds student teacher random",
    "seconds": "collect train evaluate total",
}


def record(index: int, mean: float = 0.0, finalist: float | None = None) -> Round:
    losses = {"forward_kl_nats": 0.25, "other": 9.0}
    return Round(index, 1000 * (index + 1), 10 * (index + 1), 0.5**index, losses, {}, mean, 1.0, 0.5, finalist)


def episodes(*returns: float, agreement: float | None = None) -> Episodes:
    return Episodes(np.arange(len(returns)) + 7, np.array(returns), np.full(len(returns), 3), agreement)


class Recorder:
    """Stands in for the Tracker and keeps what it is told."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[float, int]] = {}
        self.texts: dict[str, str] = {}

    def scalars(self, stage: str, values: dict[str, float], env_steps: int) -> None:
        self.seen |= {f"{stage}/{name}": (value, env_steps) for name, value in values.items()}

    def text(self, tag: str, markdown: str) -> None:
        self.texts[tag] = markdown


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


@pytest.mark.parametrize(("count", "expected"), [(1, [3]), (2, [3, 1]), (3, [3, 1, 2]), (9, [3, 1, 2, 0])])
def test_finalists_are_the_best_and_of_equals_the_later(count, expected):
    assert finalists([record(0, 1.0), record(1, 5.0), record(2, 3.0), record(3, 5.0)], count) == expected


@pytest.mark.parametrize(
    ("means", "chosen"),
    [
        ([(9.0, None), (8.0, 7.5), (7.0, 7.6)], 2),  # all its episodes count, not the first few; round 0 came into no final
        ([(9.0, 8.0), (9.0, 8.0), (5.0, None)], 1),  # of equals the latest
        ([(-3.0, -2.0)], 0),
    ],
)
def test_the_finalist_with_the_best_mean_is_kept(means, chosen):
    assert choose_round([record(index, *values) for index, values in enumerate(means)]) == chosen


def summary(tmp_path, **changes: Any) -> dict[str, Any]:
    config = DistillConfig(env=WALK.id, output=str(tmp_path), seed=5, device="cpu", student=StudentConfig(hidden_sizes=(16, 16)))
    job = dataclasses.replace(prepare(config, walk_teacher()), **changes)
    kept = Retention(0.75, 0.5, float("nan"), 0.95, 2)
    seconds = {"collect": 1.0, "train": 2.0, "evaluate": 3.0, "total": 7.0}
    three = episodes(-2.0, -4.0, agreement=0.9), episodes(-1.0, -3.0), episodes(-9.0, -11.0)
    return summarize(job, [record(0), record(1)], 1, kept, *three, seconds)


def test_the_summary_has_the_keys_that_were_promised_and_no_others(tmp_path):
    found = summary(tmp_path)
    for where, keys in RESULT_KEYS.items():
        assert set(found[where] if where else found) == set(keys.split()), where
    assert set(found["rounds"][0]) == {field.name for field in dataclasses.fields(Round)}
    json.dumps(found)


def test_the_summary_s_figures(tmp_path):
    found = summary(tmp_path)
    # 2 -> 16 -> 16 -> 3: 48 + 272 + 51 = 371
    assert found["student"] == {
        "hidden_sizes": [16, 16], "activation": "relu", "params": 371, "return_mean": -3.0, "return_std": pytest.approx(math.sqrt(2)),
    }  # fmt: skip
    assert (found["teacher"]["algo"], found["teacher"]["path"], found["teacher"]["return_mean"]) == ("callable", None, -2.0)
    assert found["random"]["return_mean"] == -10.0
    assert found["returns"] == {"seeds": [7, 8], "student": [-2.0, -4.0], "teacher": [-1.0, -3.0], "random": [-9.0, -11.0]}
    assert (found["env_steps"], found["gradient_steps"], found["chosen_round"]) == (2000, 20, 1)
    assert (found["version"], found["seed"], found["device"], found["env"]) == (VERSION, 5, "cpu", WALK.id)
    assert found["agreement"] == 0.9
    assert found["compression"] is None  # a function has no parameters to compare with


def test_what_a_round_writes_to_tensorboard():
    recorder, transitions = Recorder(), random_transitions(walk_teacher().action_space, 8)
    transitions = dataclasses.replace(transitions, rewards=transitions.rewards + 2.0)
    round_ = dataclasses.replace(record(1), held_out={"forward_kl_nats": 0.5})
    seconds = {"collect": 4.0, "train": 0.0, "evaluate": 1.0}
    track_round(recorder, round_, transitions, 1e-3, seconds)  # type: ignore[arg-type]
    seen = {name: value for name, (value, _) in recorder.seen.items()}
    assert {steps for _, steps in recorder.seen.values()} == {2000}
    assert seen["collect/reward_mean"] == 2.0
    assert seen["collect/teacher_action_prob"] == 0.5
    assert (seen["train/forward_kl_nats"], seen["train/held_out_forward_kl_nats"]) == (0.25, 0.5)
    assert (seen["train/learning_rate"], seen["train/gradient_steps"]) == (1e-3, 20)
    assert seen["time/env_steps_per_second"] == 500.0  # 2000 in 4 s
    assert math.isfinite(seen["time/gradient_steps_per_second"])
    assert seen["time/collect_seconds"] == 4.0


def test_what_validation_and_the_end_write_to_tensorboard(tmp_path):
    recorder = Recorder()
    track_validation(recorder, record(0, 3.0), 7.0, -1.0)  # type: ignore[arg-type]
    assert recorder.seen["eval/validation_return_mean"] == (3.0, 1000)
    assert recorder.seen["eval/validation_return_mean_teacher"] == (7.0, 1000)
    assert recorder.seen["eval/validation_return_mean_random"] == (-1.0, 1000)
    track_final(recorder, {**summary(tmp_path), "agreement": None})  # type: ignore[arg-type]
    assert recorder.seen["final/retention"] == (0.75, 2000)
    assert "final/agreement" not in recorder.seen
    assert "| compression | unknown |" in recorder.texts["result"]
