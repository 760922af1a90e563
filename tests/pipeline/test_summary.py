"""The keys and figures of result.json, and what TensorBoard is told at the end."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from policy_distill.evaluation.statistics import Retention
from policy_distill.export.sb3 import save_ppo
from policy_distill.pipeline.prepare import write_config
from policy_distill.pipeline.records import KEYS, Candidate
from policy_distill.pipeline.state import Kept
from policy_distill.pipeline.summary import VERSION, final_test, summarize, track_final
from policy_distill.teachers import Teacher
from tests.small_worlds import WALK, walk_expert
from tests.stand_ins import Recorder, episodes, record, run_of

RESULT_KEYS = {
    "": "version versions config seed device env environment teacher student random compression retention agreement env_steps "
    "evaluation_env_steps gradient_steps kept chosen_round validation rounds self_distillation polish notices returns seconds value "
    "final_test certificate extra_states reused_episodes backend view",
    "environment": "id kwargs wrappers max_episode_steps extra",
    "teacher": "path algo params normalization reading return_mean return_std",
    "student": "hidden_sizes activation params bytes multiply_adds return_mean return_std",
    "random": "return_mean return_std",
    "retention": "estimate low high confidence episodes",
    "returns": "seeds student teacher random",
    "seconds": "collect train polish evaluate total decision",
    "validation": "episodes teacher_return_mean random_return_mean",
    "polish": "start start_retention chosen records",
}
FINAL = episodes(-2.0, -4.0, agreement=0.9), episodes(-1.0, -3.0), episodes(-9.0, -11.0)


def summary(folder: Path, *, polished: bool = False, teacher: Teacher | None = None) -> dict[str, Any]:
    state, services = run_of(folder, teacher=teacher)
    state.teacher_returns, state.random_returns = np.array([-1.0, -2.0, -30.0, -30.0]), np.array([-9.0, -10.0, -50.0, -50.0])
    state.env_steps, state.gradient_steps, state.evaluation_env_steps = 2000, 20, 300
    state.seconds["polish"] = 4.0
    generation = Candidate("generation", 1, 2000, 50, {"forward_kl_nats": 0.5}, paired_difference=-0.5, validation_retention=0.25)
    state.records = [record(0), dataclasses.replace(record(1), kept=True), generation]
    state.kept = [Kept(walk_expert(), np.array([-3.5, -3.5]), "round 2")]
    if polished:
        first = Candidate("polish", 1, 640, 0, {"std": 0.5}, validation_return_mean=-3.0, validation_retention=0.5)
        second = Candidate("polish", 2, 1280, 0, {}, validation_retention=0.625, finalist_return_mean=-2.5, kept=True)
        state.records += [first, second]
        state.kept.append(Kept(walk_expert(), FINAL[0].returns, "polish, 1,280 steps"))
    return summarize(services.job, state, Retention(0.75, 0.5, float("nan"), 0.95, 2), *FINAL)


def test_the_summary_has_the_keys_that_were_promised_and_no_others(tmp_path):
    found = summary(tmp_path, polished=True)
    for where, keys in RESULT_KEYS.items():
        assert set(found[where] if where else found) == set(keys.split()), where
    assert {tuple(entry) for entry in found["rounds"]} == {KEYS["round"]}
    assert {tuple(entry) for entry in found["self_distillation"]} == {KEYS["generation"]}
    assert {tuple(entry) for entry in found["polish"]["records"]} == {KEYS["polish"]}
    json.dumps(found)


def test_the_summary_s_figures(tmp_path):
    found = summary(tmp_path)
    # 2 -> 16 -> 16 -> 3: 48 + 272 + 51 = 371
    assert found["student"] == {
        "hidden_sizes": [16, 16], "activation": "relu", "params": 371, "return_mean": -3.0, "return_std": pytest.approx(math.sqrt(2)),
        "bytes": 4 * 1251, "multiply_adds": 2 * 32 + 32 * 32 + 32 * 3,  # of the student that was kept: 2 -> 32 -> 32 -> 3
    }  # fmt: skip
    assert (found["teacher"]["algo"], found["teacher"]["path"], found["teacher"]["return_mean"]) == ("callable", None, -2.0)
    assert found["random"]["return_mean"] == -10.0
    assert found["returns"] == {"seeds": [7, 8], "student": [-2.0, -4.0], "teacher": [-1.0, -3.0], "random": [-9.0, -11.0]}
    assert (found["env_steps"], found["gradient_steps"], found["evaluation_env_steps"]) == (2000, 20, 300)
    assert (found["kept"], found["chosen_round"]) == ("round 2", 1)
    assert (found["version"], found["seed"], found["device"], found["env"]) == (VERSION, 5, "cpu", WALK.id)
    assert found["agreement"] == 0.9
    assert found["compression"] is None  # a function has no parameters to compare with
    assert found["seconds"]["polish"] == 4.0
    assert found["self_distillation"][0]["paired_difference"] == -0.5


def test_the_validation_s_two_lines_are_those_of_every_round(tmp_path):
    assert summary(tmp_path)["validation"] == {"episodes": 2, "teacher_return_mean": -1.5, "random_return_mean": -9.5}


def test_the_settings_are_those_of_config_yaml(tmp_path):
    found = summary(tmp_path)
    write_config(run_of(tmp_path)[1].job)
    assert json.loads(json.dumps(found["config"])) == yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert found["config"]["student"]["activation"] == "relu"  # settled by the job


def test_the_versions_of_what_is_not_installed_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("policy_distill.pipeline.summary.PACKAGES", ("torch", "no-such-package"))
    found = summary(tmp_path)["versions"]
    assert set(found) == {"python", "platform", "torch"}
    assert found["torch"].startswith(torch.__version__.split("+")[0])


def test_polishing_is_reported_where_there_was_any(tmp_path):
    assert summary(tmp_path)["polish"] is None
    found = summary(tmp_path, polished=True)
    start, share, chosen, records = found["polish"].values()
    assert (start, share, chosen) == ("round 2", 0.75, 1)  # (-3.5 + 9.5) / (-1.5 + 9.5)
    assert (found["kept"], found["chosen_round"]) == ("polish, 1,280 steps", 1)
    assert records[0] == {
        "env_steps": 640, "metrics": {"std": 0.5}, "validation_return_mean": -3.0, "validation_retention": 0.5,
        "finalist_return_mean": None, "finalist_episodes": None,
        "validation_retention_standard_error": pytest.approx(math.nan, nan_ok=True),
    }  # fmt: skip
    assert records[1]["finalist_return_mean"] == -2.5


def test_the_members_of_an_ensemble_are_named(tmp_path):
    zips = [str(save_ppo(walk_expert(), tmp_path / name)) for name in ("one.zip", "two.zip")]
    found = summary(tmp_path / "run", teacher=Teacher.ensemble([Teacher.load(path) for path in zips]))["teacher"]
    assert set(found) == {*RESULT_KEYS["teacher"].split(), "members"}
    assert (found["algo"], found["path"], found["members"], found["params"]) == ("ensemble", None, zips, 2 * 1251)


def test_what_the_end_writes_to_tensorboard(tmp_path):
    recorder = Recorder()
    track_final(recorder, {**summary(tmp_path), "agreement": None})  # type: ignore[arg-type]
    assert recorder.seen["final/retention"] == (0.75, 2000)
    assert "final/agreement" not in recorder.seen
    assert recorder.hparams[0]["seed"] == 5
    assert recorder.hparams[1] == ["final/retention", "final/retention_low", "final/retention_high"]
    assert set(recorder.pictures) == {"final/paired_returns", "final/return_distribution", "eval/retention_of_each_student"}
    assert all(pixels.dtype == np.uint8 and pixels.std() > 5 for pixels in recorder.pictures.values())
    assert "| compression | unknown |" in recorder.texts["result"]


CERTIFICATE_KEYS = {"verdict", "reason", "share", "confidence", "max_episodes", "episodes", "low", "high"}


def test_final_episodes_that_decide_say_so():
    teacher, random = episodes(*[500.0] * 100), episodes(*[20.0] * 100)
    shown = final_test(teacher, teacher, random, 0.9, 0.95)
    assert shown is not None
    assert set(shown) == CERTIFICATE_KEYS
    assert (shown["verdict"], shown["share"], shown["episodes"]) == ("certified", 0.9, 100)
    broken = final_test(random, teacher, random, 0.95, 0.95)
    assert broken is not None
    assert broken["verdict"] == "refuted"


def test_final_episodes_that_do_not_decide_are_silent():
    """Nor does anybody speak after fewer than fifty, however alike they are."""
    few, chance = episodes(*[500.0] * 49), episodes(*[20.0] * 49)
    assert final_test(few, few, chance, 0.5, 0.95) is None
    teacher, random = episodes(*[500.0] * 100), episodes(*[20.0] * 100)
    assert final_test(teacher, teacher, random, 0.99, 0.95) is None
