"""Students that see something else than their teachers, from collecting to what a run leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from stable_baselines3 import PPO

from policy_distill.commands.cli import main
from policy_distill.config import (
    CollectConfig,
    DistillConfig,
    EvaluateConfig,
    PolishConfig,
    RequestError,
    SelfDistillConfig,
    StudentConfig,
    TrainConfig,
    parse_inputs,
)
from policy_distill.evaluation.disagreements import find
from policy_distill.pipeline.distill import distill
from policy_distill.policies.architecture import Architecture
from policy_distill.policies.student import Student
from policy_distill.policies.views import View
from policy_distill.rollouts.collect import Collector
from policy_distill.rollouts.episodes import evaluate, evaluation_seeds
from policy_distill.rollouts.stochastic import Drawing
from policy_distill.rollouts.workers import Rollouts
from tests.small_worlds import BEFORE, WALK, Before, Walk, before_teacher, places_teacher, random_observations, walk_teacher


def config_of(tmp_path: Path, inputs: Any, **changes: Any) -> DistillConfig:
    settings: dict[str, Any] = {
        "env": BEFORE.id,
        "output": str(tmp_path / "run"),
        "workers": 0,
        "student": StudentConfig(hidden_sizes=(16,), inputs=inputs),
        "collect": CollectConfig(rounds=2, env_steps=10_000, num_envs=4),
        "train": TrainConfig(gradient_steps=400, members=1),
        "polish": PolishConfig(below=0),
        "evaluate": EvaluateConfig(episodes=20),
    }
    return DistillConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def remembering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    config = config_of(folder, {"keep": [0, 2, 3], "history": 2}, self_distill=SelfDistillConfig(generations=1))
    distill(config, teacher=before_teacher())
    return folder / "run"


def result_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


def test_a_student_reaches_by_its_history_what_its_teacher_sees(remembering):
    found = result_of(remembering)
    assert found["student"]["return_mean"] == found["teacher"]["return_mean"] == 10
    assert found["student"]["inputs"] == {"keep": [0, 2, 3], "history": 2}
    # of [0, 2, 3] twice only the bits vary, at places 0 and 3: 16 * 3 + 2 * 17 parameters
    assert found["student"]["varying_inputs"] == [0, 3]
    assert found["student"]["params"] == 16 * 3 + 2 * 17
    assert any("4 of 6 inputs do not vary" in notice for notice in found["notices"])
    assert found["view"]["seen"] == pytest.approx(found["view"]["everything"], abs=0.02)
    assert yaml.safe_load((remembering / "config.yaml").read_text())["student"]["inputs"] == {"keep": [0, 2, 3], "history": 2}
    assert "history 2" in (remembering / "report.md").read_text()
    assert not (remembering / "student.zip").exists()


def test_without_one_it_can_only_guess_and_the_loss_says_so(tmp_path):
    distill(config_of(tmp_path, [0]), teacher=before_teacher())
    found = result_of(tmp_path / "run")
    assert found["student"]["return_mean"] < 8
    # a bit that is seen by the teacher alone: ln 2 nats
    assert found["view"]["seen"] > 0.5 > 0.05 > found["view"]["everything"]
    assert "lowest held-out loss" in (tmp_path / "run" / "report.md").read_text()


def test_the_loss_of_the_view_is_no_higher_than_the_student_s_own(tmp_path, monkeypatch):
    monkeypatch.setattr("policy_distill.pipeline.view_loss.GRADIENT_STEPS", 1)  # a wide network that has learnt nothing
    distill(config_of(tmp_path, {"keep": [0, 2, 3], "history": 2}), teacher=before_teacher())
    found = result_of(tmp_path / "run")["view"]
    assert found["seen"] < 0.1 < 0.3 < found["everything"]


def test_saved_students_are_given_their_view_by_every_command(remembering, capsys):
    assert main(["evaluate_policy", "--policy", str(remembering), "--episodes", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["policy"]["return_mean"] == 10
    student, seeds = Student.load(remembering / "student"), evaluation_seeds("check", 6)
    assert (evaluate(student, BEFORE, seeds).returns == 10).all()
    assert evaluate(student, BEFORE, seeds, reference=before_teacher()).agreement == 1
    assert find(student, before_teacher(), BEFORE, seeds).agreement == 1
    assert evaluate(Drawing(student), BEFORE, seeds).returns.mean() > 9


@pytest.mark.parametrize("inputs", [{"history": 3}, {"keep": [0], "noise": 2.0}, {"history": 2, "noise": 0.5}])
def test_returns_do_not_depend_on_how_many_episodes_are_played_side_by_side(inputs):
    student = walking(inputs)
    seeds = evaluation_seeds("check", 24)
    expected = evaluate(student, WALK, seeds, num_envs=24).returns
    assert len(set(expected.tolist())) > 1
    for num_envs in (1, 5):
        np.testing.assert_array_equal(evaluate(student, WALK, seeds, num_envs=num_envs).returns, expected)
    np.testing.assert_array_equal(evaluate(student, WALK, seeds[7:], num_envs=3).returns, expected[7:])
    drawn = evaluate(Drawing(student), WALK, seeds, num_envs=24).returns
    np.testing.assert_array_equal(evaluate(Drawing(student), WALK, seeds, num_envs=2).returns, drawn)


def walking(inputs: Any) -> Student:
    """A student of drawn weights in the walk."""
    config = parse_inputs(inputs)
    assert config is not None
    space = Walk.observation_space
    student = Student(Architecture(space, walk_teacher().action_space, (8,), view=View(config, space)))
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
    return student.eval().requires_grad_(False)


def test_what_is_collected_does_not_depend_on_the_workers_and_is_what_the_student_saw():
    student = walking({"keep": [0, 1], "history": 2, "noise": 0.5})
    parts = []
    for workers in (0, 2):
        with Rollouts(WALK, walk_teacher(), num_envs=4, seed=3, workers=workers, view=student.view) as rollouts:
            parts.append([*rollouts.collect(30, None, 1.0, 0), *rollouts.collect(30, student, 0.0, 1)])
    for one, other in zip(*parts, strict=True):
        assert torch.equal(one.seen, other.seen)
        assert torch.equal(one.observations, other.observations)
    # the history of each row holds what was seen in the row before it, four environments earlier, unless an episode began
    for rounds in parts[0]:
        later, same = rounds.seen[4:], rounds.episodes[4:] == rounds.episodes[:-4]
        assert torch.equal(later[same][:, :2], rounds.seen[:-4][same][:, 2:])
        assert torch.equal(later[~same][:, :2], later[~same][:, 2:])
        noise = rounds.seen[:, 2:] - rounds.observations
        assert 0.4 < noise.std() < 0.6
    assert not parts[0][1].by_teacher.any()


def test_a_round_that_is_collected_in_parts_goes_on_with_the_history():
    view = walking({"history": 3}).view
    whole, parts = (Collector(WALK, indices=range(3), num_envs=3, seed=0, view=view) for _ in range(2))
    expected = whole.collect(20, walk_teacher(), None, 1.0).seen
    found = [parts.collect(steps, walk_teacher(), None, 1.0).seen for steps in (1, 12, 7)]
    assert torch.equal(torch.cat(found), expected)


def test_a_zip_takes_the_whole_observation_and_ignores_what_is_hidden(tmp_path):
    distill(config_of(tmp_path, [1, 0, 4]), teacher=before_teacher())
    student, model = Student.load(tmp_path / "run" / "student"), PPO.load(tmp_path / "run" / "student.zip", device="cpu")
    assert student.architecture.columns == (0, 1)  # the third is constant
    observations = random_observations(Before.observation_space, 200)
    expected = student.act(observations)
    assert len(np.unique(expected)) == 2
    np.testing.assert_array_equal(model.predict(observations, deterministic=True)[0], expected)
    weights = model.policy.state_dict()["mlp_extractor.policy_net.0.weight"]
    assert weights.shape == (16, 8)
    assert (weights[:, 2:] == 0).all()
    assert (weights[:, :2] != 0).any()


def test_a_key_of_a_dict_alone(tmp_path):
    config = config_of(tmp_path, {"keys": ["position"]}, env="tests/Places-v0", collect=CollectConfig(rounds=1, env_steps=2000, num_envs=4))
    distill(config, teacher=places_teacher())
    student, model = Student.load(tmp_path / "run" / "student"), PPO.load(tmp_path / "run" / "student.zip", device="cpu")
    observations = random_observations(student.observation_space, 50)
    np.testing.assert_array_equal(model.predict(observations, deterministic=True)[0], student.act(observations))
    assert student.mean.shape == (1,)


def test_polishing_sees_what_the_student_sees(tmp_path):
    polish = PolishConfig(below=10, env_steps=3000, num_steps=64, num_envs=4, snapshots=2)
    evaluate_ = EvaluateConfig(episodes=20, validation_episodes=4, finalist_episodes=4)
    inputs = {"keep": [0], "history": 2, "noise": 0.1}
    result = distill(config_of(tmp_path, inputs, polish=polish, evaluate=evaluate_), teacher=before_teacher())
    assert result.summary["polish"]["records"]
    assert result.student.view == Student.load(tmp_path / "run" / "student").view
    assert result.student_episodes.returns.mean() > 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"polish": PolishConfig(teacher_weight=0.5)}, r"polish\.teacher_weight"),
        ({"collect": CollectConfig(extra_states="states.npz")}, "single observations"),
    ],
)
def test_what_cannot_be_with_a_history_is_refused_before_any_work(changes, message, tmp_path):
    with pytest.raises(RequestError, match=message):
        distill(config_of(tmp_path, {"history": 2}, **changes), teacher=before_teacher())


def test_inputs_that_vary_late_are_said_and_break_nothing(tmp_path, monkeypatch):
    """Here the second component varies in the second round only."""
    step, reset = Before.step, Before.reset
    monkeypatch.setattr("policy_distill.pipeline.imitation.varying_inputs", lambda job, dataset: (0, 1))
    calls = {"resets": 0}

    def later(self: Before, **kwargs: Any) -> Any:
        observation, info = reset(self, **kwargs)
        calls["resets"] += 1
        self.state[5] = observation[5] = 0.5 if calls["resets"] < 900 else -0.5
        return observation, info

    monkeypatch.setattr(Before, "reset", later)
    assert Before.step is step
    distill(config_of(tmp_path, None), teacher=before_teacher())
    found = result_of(tmp_path / "run")
    assert found["student"]["varying_inputs"] == [0, 1]
    assert any("[5] varied in later rounds" in notice for notice in found["notices"])
    assert found["student"]["return_mean"] == 10
