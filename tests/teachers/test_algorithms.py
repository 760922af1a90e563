"""The fields of a zip tell which algorithm saved it."""

from __future__ import annotations

import json
import zipfile

import gymnasium as gym
import pytest

from policy_distill.config import RequestError
from policy_distill.teachers import Teacher
from policy_distill.teachers.algorithms import ALGORITHMS, algorithm_of_fields
from tests.teachers.conftest import LOPSIDED, THREE, VECTOR, TinyEnv, build, rewrite

NAMES = {name: one.sb3_class.rpartition(".")[2] for name, one in ALGORITHMS.items() if not one.has_memory}


@pytest.mark.parametrize("algo", NAMES)
def test_every_algorithm_is_reported(algo, save):
    actions: gym.Space = THREE if algo in ("dqn", "qrdqn", "ppo_mask") else LOPSIDED
    path = save(build(NAMES[algo], VECTOR, actions))
    assert algorithm_of_fields(json.loads(zipfile.ZipFile(path).read("data"))) == algo


def test_an_agent_with_a_memory_is_reported(tmp_path):
    recurrent = pytest.importorskip("sb3_contrib").RecurrentPPO("MlpLstmPolicy", TinyEnv(VECTOR, THREE), device="cpu")
    recurrent.save(tmp_path / "agent.zip")
    assert algorithm_of_fields(json.loads(zipfile.ZipFile(tmp_path / "agent.zip").read("data"))) == "ppo_lstm"


def test_a_recurrent_agent_with_a_policy_of_its_own_is_refused_as_one(save, tmp_path):
    """Its class and its weights have other names; the state that it left is RecurrentPPO's."""
    data = json.loads(zipfile.ZipFile(path := save(build("PPO"))).read("data"))
    data |= {"_last_lstm_states": None, "policy_class": {"__module__": "my.policies"}}
    changed = rewrite(path, {"data": json.dumps(data).encode()}, tmp_path / "recurrent.zip")
    for trust in (False, True):
        with pytest.raises(RequestError, match="has a custom memory"):
            Teacher.load(changed, trust=trust)


@pytest.mark.parametrize("data", [{}, {"gamma": 0.99}, {"policy_class": None}])
def test_fields_that_tell_nothing(data):
    assert algorithm_of_fields(data) is None
