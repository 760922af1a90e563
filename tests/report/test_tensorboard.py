"""TensorBoard scalars can be read back; JSON is JSON."""

from __future__ import annotations

import errno
import io
import json
import math
import os
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from policy_distill.report import tensorboard as module
from policy_distill.report.tensorboard import Tracker, flat
from policy_distill.support.files import write_json


def test_scalars_are_read_back_with_stage_value_and_step(tmp_path):
    with Tracker(tmp_path) as tracker:
        tracker.scalars("train", {"forward_kl_nats": 0.5, "learning_rate": 0.25}, 100)
        tracker.scalars("train", {"forward_kl_nats": 0.125}, 200)
        tracker.scalars("eval", {"return_mean": -3}, 200)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["scalars"]) == ["eval/return_mean", "train/forward_kl_nats", "train/learning_rate"]
    assert [(event.step, event.value) for event in events.Scalars("train/forward_kl_nats")] == [(100, 0.5), (200, 0.125)]


class FullDisk(io.RawIOBase):
    """Takes some bytes, then none."""

    def __init__(self, room: int) -> None:
        self.room = room

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.room -= len(content)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(content)


@pytest.mark.parametrize("room", [0, 100, 200])
def test_a_full_disk_costs_the_curves_alone_and_is_reported_once(room, tmp_path, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(module, "open", lambda *_: io.BufferedWriter(FullDisk(room)), raising=False)
    with Tracker(tmp_path, lines.append) as tracker:
        for step in range(20):
            tracker.scalars("eval", {"return_mean": 1.0}, step)
            tracker.text("notes", "words")
            tracker.picture("final/plot", np.zeros((20, 30, 3), np.uint8), 7)
        tracker.settings({"a": 1}, ["eval/return_mean"])
    assert lines == [f"nothing more is written for TensorBoard: {tmp_path} cannot be written (No space left on device)"]


def test_a_folder_that_cannot_be_made_costs_the_curves_alone(tmp_path):
    (tmp_path / "file").touch()
    lines: list[str] = []
    with Tracker(tmp_path / "file" / "tensorboard", lines.append) as tracker:
        tracker.scalars("eval", {"return_mean": 1.0}, 0)
    assert len(lines) == 1
    assert "Not a directory" in lines[0]


def test_two_runs_of_one_process_have_a_file_each(tmp_path):
    with Tracker(tmp_path), Tracker(tmp_path):
        assert len(list(tmp_path.iterdir())) == 2


def test_values_that_are_no_numbers_are_left_out(tmp_path):
    with Tracker(tmp_path) as tracker:
        tracker.scalars("eval", {"retention": math.nan, "low": math.inf, "return_mean": 1.0}, 0)
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"] == ["eval/return_mean"]


def test_a_picture_is_read_back(tmp_path):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, 15:, 0] = 255
    with Tracker(tmp_path) as tracker:
        tracker.picture("final/plot", pixels, 7)
    (event,) = EventAccumulator(str(tmp_path)).Reload().Images("final/plot")
    assert (event.step, event.height, event.width) == (7, 20, 30)
    assert (np.asarray(Image.open(io.BytesIO(event.encoded_image_string))) == pixels).all()


def test_settings_and_figures_are_one_run_in_one_file(tmp_path):
    """add_hparams would make a sub-run named by the time, which the HPARAMS page shows beside a run without settings."""
    with Tracker(tmp_path) as tracker:
        tracker.scalars("final", {"retention": 0.5}, 100)
        tracker.settings({"seed": 3, "train": {"learning_rate": 0.25, "members": None}, "sizes": [8, 8]}, ["final/retention"])
    (path,) = tmp_path.iterdir()
    assert path.is_file()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.value for event in events.Scalars("final/retention")] == [0.5]
    contents = events.PluginTagToContent("hparams")
    started = plugin_data_pb2.HParamsPluginData.FromString(contents["_hparams_/session_start_info"]).session_start_info.hparams
    assert {name: value.number_value or value.string_value for name, value in started.items()} == {
        "seed": 3.0, "train.learning_rate": 0.25, "sizes": "[8, 8]",
    }  # fmt: skip
    experiment = plugin_data_pb2.HParamsPluginData.FromString(contents["_hparams_/experiment"]).experiment
    assert [metric.name.tag for metric in experiment.metric_infos] == ["final/retention"]


def test_settings_are_flattened_without_what_was_left_out():
    assert flat({"a": {"b": {"c": True}, "d": None}, "e": (1, 2), "f": "x", "g": {}}) == {"a.b.c": True, "e": "[1, 2]", "f": "x"}


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
