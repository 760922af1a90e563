"""The fields of a zip tell which algorithm saved it."""

from __future__ import annotations

import json
import zipfile

import gymnasium as gym
import pytest

from policy_distill.teachers.saved_algorithm import algorithm_of_fields
from policy_distill.teachers.trusted import CLASSES
from tests.teachers.conftest import LOPSIDED, THREE, VECTOR, TinyEnv, build

NAMES = {algo: path.rpartition(".")[2] for algo, path in CLASSES.items()}


@pytest.mark.parametrize("algo", NAMES)
def test_every_algorithm_is_told(algo, save):
    actions: gym.Space = THREE if algo in ("dqn", "qrdqn", "ppo_mask") else LOPSIDED
    path = save(build(NAMES[algo], VECTOR, actions))
    assert algorithm_of_fields(json.loads(zipfile.ZipFile(path).read("data"))) == algo


def test_an_agent_with_a_memory_is_told(tmp_path):
    recurrent = pytest.importorskip("sb3_contrib").RecurrentPPO("MlpLstmPolicy", TinyEnv(VECTOR, THREE), device="cpu")
    recurrent.save(tmp_path / "agent.zip")
    assert algorithm_of_fields(json.loads(zipfile.ZipFile(tmp_path / "agent.zip").read("data"))) == "ppo_lstm"


@pytest.mark.parametrize("data", [{}, {"gamma": 0.99}, {"policy_class": None}])
def test_fields_that_tell_nothing(data):
    assert algorithm_of_fields(data) is None
