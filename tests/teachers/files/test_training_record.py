"""What a zip remembers of its training, read without executing anything."""

from __future__ import annotations

import base64
import json
import pickle
import zipfile
from collections import deque
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from policy_distill.teachers.files.training_record import TrainingRecord, read_training_record
from tests.small_worlds import WALK

NOTHING = TrainingRecord(None, None)


def trained(path: Path, *, normalized: bool) -> tuple[PPO, Path]:
    env = DummyVecEnv([lambda: Monitor(gym.make(WALK.id))])
    model = PPO("MlpPolicy", VecNormalize(env) if normalized else env, n_steps=32, batch_size=32, seed=0, device="cpu")
    model.learn(64)
    model.save(path)
    return model, path


def edited(path: Path, **changes: object) -> Path:
    """A zip that holds these entries of ``data``, and no weights."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data", json.dumps(changes))
        file.writestr("policy.pth", b"")
    return path


def pickled(value: object, protocol: int = 4) -> dict[str, str]:
    return {":serialized:": base64.b64encode(pickle.dumps(value, protocol=protocol)).decode()}


@pytest.mark.parametrize("normalized", [False, True])
def test_the_last_episodes_and_the_wrapper_are_remembered(normalized, tmp_path):
    model, path = trained(tmp_path / "agent.zip", normalized=normalized)
    found = read_training_record(path)
    assert model.ep_info_buffer
    np.testing.assert_array_equal(found.returns, [episode["r"] for episode in model.ep_info_buffer])
    assert found.inside_vec_normalize is normalized


def test_an_off_policy_agent_does_not_tell_about_the_wrapper(tmp_path):
    DQN("MlpPolicy", "CartPole-v1", buffer_size=10, device="cpu").save(tmp_path / "dqn.zip")
    assert read_training_record(tmp_path / "dqn.zip") == NOTHING


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_every_protocol_is_read(protocol, tmp_path):
    episodes = deque([{"r": 1.5, "l": 3}, {"r": np.float64(2.5), "l": 3}, {"r": np.float32(4.5), "l": 1}], maxlen=100)
    found = read_training_record(edited(tmp_path / "a.zip", ep_info_buffer=pickled(episodes, protocol)))
    assert found.returns is not None
    assert found.returns.tolist() == [1.5, 2.5, 4.5]


class Trap:
    def __reduce__(self) -> tuple:
        return (open, ("trapped", "w"))


@pytest.mark.parametrize(
    "buffer",
    [None, [], 3, pickled([1]), pickled(deque()), pickled(deque([{"l": 3}])), pickled(deque([3])), pickled(deque([{"r": "x"}])),
     pickled(deque([{"r": float("nan")}])), {":serialized:": "!"}, {":serialized:": base64.b64encode(b"no pickle").decode()},
     {":type:": "<class 'collections.deque'>"}, pickled(Trap()), pickled(deque([{"r": Trap()}]))],
)  # fmt: skip
def test_whatever_else_is_there_tells_nothing_and_does_nothing(buffer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_training_record(edited(tmp_path / "a.zip", ep_info_buffer=buffer)).returns is None
    assert not (tmp_path / "trapped").exists()


def test_what_is_no_agent_tells_nothing(tmp_path):
    (tmp_path / "broken.zip").write_bytes(b"not a zip")
    (tmp_path / "other.zip").write_bytes(edited(tmp_path / "a.zip").read_bytes().replace(b"data", b"dada"))
    for name in ("broken.zip", "missing.zip", "other.zip"):
        assert read_training_record(tmp_path / name) == NOTHING
    with zipfile.ZipFile(tmp_path / "list.zip", "w") as file:
        file.writestr("data", "[1]")
        file.writestr("policy.pth", b"")
    assert read_training_record(tmp_path / "list.zip") == NOTHING


@pytest.mark.parametrize(
    ("inside_monitor", "normalized", "raw"), [(True, True, True), (True, False, True), (False, True, False), (False, False, True)]
)
def test_returns_that_may_be_of_normalised_rewards_are_reported(inside_monitor, normalized, raw, tmp_path):
    """Monitor stands inside VecNormalize and rounds; VecMonitor may stand outside and does not."""
    env = DummyVecEnv([lambda: Monitor(gym.make(WALK.id)) if inside_monitor else gym.make(WALK.id)])
    wrapped = VecNormalize(env) if normalized else env
    model = PPO("MlpPolicy", wrapped if inside_monitor else VecMonitor(wrapped), n_steps=32, batch_size=32, seed=0, device="cpu")
    model.learn(64).save(tmp_path / "agent.zip")
    found = read_training_record(tmp_path / "agent.zip")
    assert found.returns is not None
    assert found.inside_vec_normalize is normalized
    assert found.returns_are_raw is raw
