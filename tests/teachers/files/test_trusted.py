"""On the user's word an agent is loaded with Stable-Baselines3 itself."""

from __future__ import annotations

import base64
import json
import sys
import zipfile
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from policy_distill.config import RequestError
from policy_distill.teachers import Teacher
from tests.teachers.conftest import LOPSIDED, THREE, VECTOR, build, rewrite, unmasked
from tests.teachers.files.test_archive import edited


class Negated(ActorCriticPolicy):
    """Acts against its weights: they alone do not tell what it does."""

    def _predict(self, observation: Any, deterministic: bool = False) -> torch.Tensor:
        return -super()._predict(observation, deterministic)


def test_a_custom_policy_needs_trust(save):
    model = build("PPO", policy=Negated)  # type: ignore[arg-type]
    observations = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    path = save(model)
    with pytest.raises(RequestError, match=r"custom policy class of 'tests\.teachers\.files\.test_trusted'"):
        Teacher.load(path)

    teacher = Teacher.load(path, trust=True)

    np.testing.assert_allclose(teacher.act(observations), model.predict(observations, deterministic=True)[0], atol=1e-6)
    assert teacher.algo == "ppo"
    assert "custom policy class" in teacher.notes[0]


def test_an_agent_that_normalises_what_gsde_reads_needs_trust(save):
    pytest.importorskip("sb3_contrib")
    model = build("CrossQ", use_sde=True)
    path = save(model)
    observations = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    with pytest.raises(RequestError, match=r"normalises what gSDE reads.*--trust"):
        Teacher.load(path)
    teacher = Teacher.load(path, trust=True)
    np.testing.assert_allclose(teacher.act(observations), model.predict(observations, deterministic=True)[0], atol=1e-6)
    assert teacher.algo == "crossq"


def test_bounds_that_cannot_be_read_need_trust(save):
    wide = gym.spaces.Box(np.linspace(-2, -1, 1200, dtype=np.float32), np.linspace(1, 2, 1200, dtype=np.float32))
    model = build("PPO", action_space=wide)
    observations = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    teacher = Teacher.load(save(model), trust=True)
    assert teacher.algo == "ppo"
    np.testing.assert_allclose(teacher.act(observations), model.predict(observations, deterministic=True)[0], atol=1e-5)


class Squared(BaseFeaturesExtractor):
    """A features extractor of the user's own."""

    def __init__(self, observation_space: gym.Space) -> None:
        super().__init__(observation_space, 3)
        self.layer = torch.nn.Linear(3, 3)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.layer(observations) ** 2


@pytest.mark.parametrize("algo", ["A2C", "PPO", "TRPO", "DQN", "QRDQN", "SAC", "TQC", "TD3", "DDPG", "MaskablePPO"])
def test_a_bare_zip_tells_its_algorithm_to_trust(algo, save):
    discrete = algo in ("DQN", "QRDQN", "MaskablePPO")
    model = build(algo, VECTOR, THREE if discrete else LOPSIDED, policy_kwargs={"features_extractor_class": Squared})
    observations = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    teacher = Teacher.load(save(model), trust=True)
    np.testing.assert_allclose(teacher.act(unmasked(teacher, observations)), model.predict(observations, deterministic=True)[0], atol=1e-5)


def test_a_compiled_policy_is_read_without_trust(save):
    """``torch.compile`` puts a word before the name of each weight; Stable-Baselines3 itself does not load such a zip."""
    model = build("PPO")
    observations = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    expected = model.predict(observations, deterministic=True)[0]
    model.policy = torch.compile(model.policy, backend="eager")
    teacher = Teacher.load(save(model))
    np.testing.assert_allclose(teacher.act(observations), expected, atol=1e-6)
    live = Teacher.from_sb3(model)
    assert live.describe()["layers"] == teacher.describe()["layers"] != []


def test_trust_is_not_used_where_it_is_not_needed(save, monkeypatch):
    monkeypatch.setattr("policy_distill.teachers.reading.load_model", lambda *_: pytest.fail("unpickled"))
    assert Teacher.load(save(build("PPO")), trust=True).notes == ()


def test_what_stable_baselines_cannot_load_is_refused_in_one_line(save, tmp_path):
    path = save(build("PPO", policy=Negated))  # type: ignore[arg-type]
    broken = edited(path, tmp_path / "broken.zip", policy_class=lambda entry: {**entry, ":serialized:": "AAAA"})
    with pytest.raises(RequestError, match=r"cannot load .* as ppo") as caught:
        Teacher.load(broken, trust=True)
    assert "\n" not in str(caught.value)
    data = json.loads(zipfile.ZipFile(path).read("data"))
    del data["gae_lambda"]
    untold = rewrite(path, {"data": json.dumps(data).encode()}, tmp_path / "untold.zip")
    with pytest.raises(RequestError, match="the algorithm is not told by the file"):
        Teacher.load(untold, trust=True)
    assert "gym" not in sys.modules


def test_network_arguments_that_do_not_unpickle_are_no_default_network(save, tmp_path):
    """Stable-Baselines3 warns and builds its default network, which takes the weights and acts otherwise (Tanh, here, for ReLU)."""
    path = save(build("PPO", policy=Negated, policy_kwargs={"activation_fn": torch.nn.ReLU, "net_arch": [64, 64]}))  # type: ignore[arg-type]
    gone = base64.b64encode(b"cmath\nwhat_was_renamed\n.").decode()
    broken = edited(path, tmp_path / "broken.zip", policy_kwargs=lambda entry: {**entry, ":serialized:": gone})
    with pytest.raises(RequestError, match=r"Could not deserialize object policy_kwargs.*--extractor") as caught:
        Teacher.load(broken, trust=True)
    assert "\n" not in str(caught.value)
