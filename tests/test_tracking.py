"""TensorBoard scalars can be read back; JSON is JSON."""

from __future__ import annotations

import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from policy_distill.tracking import Tracker, write_json


def test_scalars_are_read_back_with_stage_value_and_step(tmp_path):
    with Tracker(tmp_path) as tracker:
        tracker.scalars("train", {"forward_kl_nats": 0.5, "learning_rate": 0.25}, 100)
        tracker.scalars("train", {"forward_kl_nats": 0.125}, 200)
        tracker.scalars("eval", {"return_mean": -3}, 200)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["scalars"]) == ["eval/return_mean", "train/forward_kl_nats", "train/learning_rate"]
    assert [(event.step, event.value) for event in events.Scalars("train/forward_kl_nats")] == [(100, 0.5), (200, 0.125)]


def test_values_that_are_no_numbers_are_left_out(tmp_path):
    with Tracker(tmp_path) as tracker:
        tracker.scalars("eval", {"retention": math.nan, "low": math.inf, "return_mean": 1.0}, 0)
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"] == ["eval/return_mean"]


def test_json_is_read_back_and_what_is_not_finite_is_null(tmp_path):
    data = {"a": 1, "b": [1.5, math.nan, (math.inf, "x")], "c": {"d": -math.inf, "e": None, "f": True}}
    path = write_json(tmp_path / "result.json", data)
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "a": 1,
        "b": [1.5, None, [None, "x"]],
        "c": {"d": None, "e": None, "f": True},
    }
    assert path.read_text().endswith("}\n")


def test_what_json_cannot_hold_is_an_error_and_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "result.json", {"a": object()})
    assert not list(tmp_path.iterdir())
