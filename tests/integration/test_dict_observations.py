"""Teachers that observe a Dict, from the first step to what a run leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import PPO

from policy_distill.commands.cli import main
from policy_distill.config import CollectConfig, DistillConfig, EvaluateConfig, PolishConfig, SelfDistillConfig, StudentConfig, TrainConfig
from policy_distill.evaluation.disagreements import find
from policy_distill.pipeline.distill import distill
from policy_distill.policies.student import Student
from policy_distill.rollouts.episodes import evaluate, evaluation_seeds
from policy_distill.rollouts.stochastic import Drawing
from policy_distill.support import trees
from policy_distill.teachers import Teacher
from tests.small_worlds import PLACES, Halves, Places, places_teacher, random_observations, walk_best, walk_teacher
from tests.teachers.conftest import build


def config_of(tmp_path: Path, **changes: Any) -> DistillConfig:
    settings: dict[str, Any] = {
        "env": PLACES.id,
        "output": str(tmp_path / "run"),
        "workers": 0,
        "student": StudentConfig(hidden_sizes=(16,)),
        "collect": CollectConfig(rounds=2, env_steps=600, num_envs=4),
        "train": TrainConfig(gradient_steps=300),
        "evaluate": EvaluateConfig(episodes=10),
    }
    return DistillConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dict")
    result = distill(config_of(folder, self_distill=SelfDistillConfig(generations=1)), teacher=places_teacher())
    assert result.retention.estimate > 0.95
    return folder / "run"


def test_the_student_and_its_zip_act_alike_on_observations_by_key(run):
    student, model = Student.load(run / "student"), PPO.load(run / "student.zip", device="cpu")
    assert list(trees.leaf_spaces(student.observation_space)) == list(trees.leaf_spaces(model.observation_space)) == ["target", "position"]
    observations = random_observations(Places.observation_space, 64)
    expected = student.act(observations)
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(model.predict(observations, deterministic=True)[0], expected)
    seeds = evaluation_seeds("check", 5)
    assert evaluate(student, PLACES, seeds).returns.tolist() == evaluate(student, PLACES, seeds, num_envs=1).returns.tolist()
    assert len(evaluate(Drawing(student), PLACES, seeds).returns) == 5


def test_a_dict_and_the_vector_that_it_is_read_as_give_the_same_student(tmp_path):
    """Collecting, training, polishing and measuring: nothing may depend on how the same numbers are packed."""

    def halves_best(seen: dict[str, np.ndarray]) -> np.ndarray:
        return walk_best(np.concatenate([seen["position"], seen["target"]], axis=1))

    halves = Teacher.from_callable(halves_best, Halves.observation_space, walk_teacher().action_space)
    polish = PolishConfig(below=10.0, env_steps=2048, num_envs=4, num_steps=64, snapshots=2)
    weights, results = [], []
    for name, env, teacher in (("dict", "tests/Halves-v0", halves), ("vector", "tests/Walk-v0", walk_teacher())):
        distill(
            config_of(tmp_path / name, env=env, polish=polish, collect=CollectConfig(rounds=1, env_steps=200, num_envs=4)), teacher=teacher
        )
        weights.append((tmp_path / name / "run" / "student" / "student.safetensors").read_bytes())
        results.append(json.loads((tmp_path / name / "run" / "result.json").read_text()))
    assert results[0]["polish"]["records"] == results[1]["polish"]["records"]
    assert results[0]["polish"]["records"]
    assert results[0]["returns"] == results[1]["returns"]
    assert weights[0] == weights[1]


def test_the_number_of_workers_does_not_change_the_student(run, tmp_path):
    distill(config_of(tmp_path, workers=2, self_distill=SelfDistillConfig(generations=1)), teacher=places_teacher())
    assert (tmp_path / "run" / "student" / "student.safetensors").read_bytes() == (run / "student" / "student.safetensors").read_bytes()


def test_states_of_a_comparison_join_the_next_run(run, tmp_path):
    found = find(Student.load(run / "student"), _opposite(), PLACES, range(5))
    path = found.save(tmp_path / "states.npz")
    collect = CollectConfig(rounds=1, env_steps=400, num_envs=4, extra_states=str(path), max_extra_states=20)
    distill(config_of(tmp_path, collect=collect), teacher=places_teacher())
    assert 0 < json.loads((tmp_path / "run" / "result.json").read_text())["extra_states"] <= 20


def _opposite() -> Teacher:
    return Teacher.from_callable(lambda seen: 2 * (seen["target"] > 5), Places.observation_space, places_teacher().action_space)


def test_a_saved_agent_goes_through_the_commands(tmp_path, capsys):
    build("PPO", Places.observation_space, places_teacher().action_space, policy="MultiInputPolicy").save(tmp_path / "agent.zip")
    agent = Teacher.load(tmp_path / "agent.zip")
    assert agent.act(trees.stack([Places.observation_space.sample()])).shape == (1,)
    common = ["--env", PLACES.id, "--episodes", "4", "--json"]
    assert main(["evaluate_policy", "--policy", str(tmp_path / "agent.zip"), *common]) == 0
    assert main(["check_teacher", "--teacher", str(tmp_path / "agent.zip"), "--env", PLACES.id, "--json"]) in (0, 1, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_several_agents_of_a_dict_are_one_teacher():
    kinds = [build("PPO", Places.observation_space, places_teacher().action_space, policy="MultiInputPolicy") for _ in range(2)]
    members = [Teacher.from_sb3(model) for model in kinds]
    observations = random_observations(Places.observation_space, 8)
    for combine in ("mean", "value"):
        team = Teacher.ensemble(members, combine=combine)
        np.testing.assert_array_equal(team.act(observations), members[0].act(observations))
        assert len(evaluate(team, PLACES, [1, 2]).returns) == 2
    assert members[0].values(trees.to_tensors(observations)).shape == (8,)
