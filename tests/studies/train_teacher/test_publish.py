"""The zip that is kept for acting: small, without paths or code, and opened by Stable-Baselines3 as any other."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policy_distill.environments.specs import EnvironmentSpec, make
from policy_distill.studies.train_teacher.publish import publish, save_slim


@pytest.fixture(params=["ppo", "dqn", "sac"])
def slimmed(request, tmp_path):
    """A model after some training, what it does, and its slim zip."""
    import stable_baselines3 as sb3

    choices: dict[str, dict[str, Any]] = {
        "ppo": {"n_steps": 64, "batch_size": 64, "learning_rate": lambda remaining: 0.01 * remaining},
        "dqn": {"learning_starts": 10, "buffer_size": 1000},
        "sac": {"learning_starts": 10, "buffer_size": 1000},
    }
    env = make(EnvironmentSpec("Pendulum-v1" if request.param == "sac" else "CartPole-v1"))
    algorithm = getattr(sb3, request.param.upper())
    log = str(tmp_path / "log")
    model = algorithm(
        "MlpPolicy", env, policy_kwargs={"net_arch": [16]}, tensorboard_log=log, seed=0, device="cpu", **choices[request.param]
    ).learn(64)
    model.save(tmp_path / "full.zip")
    observations = np.random.default_rng(0).normal(size=(32, *(env.observation_space.shape or ()))).astype(np.float32)
    actions, _ = model.predict(observations, deterministic=True)
    save_slim(model, tmp_path / "slim.zip")
    return algorithm, tmp_path, observations, actions


def test_a_slim_zip_opens_and_acts_as_before(slimmed):
    algorithm, folder, observations, actions = slimmed
    loaded = algorithm.load(folder / "slim.zip", device="cpu")
    np.testing.assert_array_equal(loaded.predict(observations, deterministic=True)[0], actions)
    assert loaded.num_timesteps == 64


def test_a_slim_zip_can_be_trained_further(slimmed):
    algorithm, folder, _, _ = slimmed
    env = make(EnvironmentSpec("Pendulum-v1" if algorithm.__name__ == "SAC" else "CartPole-v1"))
    algorithm.load(folder / "slim.zip", env=env, device="cpu").learn(64)


def test_a_slim_zip_holds_no_moments_paths_or_code(slimmed):
    _, folder, _, _ = slimmed
    assert (folder / "slim.zip").stat().st_size < 0.8 * (folder / "full.zip").stat().st_size
    with zipfile.ZipFile(folder / "slim.zip") as file:
        optimizers = [name for name in file.namelist() if "optimizer" in name]
        assert optimizers
        for name in optimizers:
            assert torch.load(io.BytesIO(file.read(name)), weights_only=True)["state"] == {}
        data = json.loads(file.read("data"))
        system = file.read("system_info.txt").decode()
        assert {info.date_time for info in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert data["tensorboard_log"] is None
    assert str(folder) not in json.dumps(data)
    assert "OS:" not in system
    assert "PyTorch:" in system
    assert not {"_last_obs", "lr_schedule", "action_noise", "exploration_schedule"} & set(data)
    assert isinstance(data["learning_rate"], float)
    # Only classes and spaces are left as pickles; a function would be bytecode of one Python version.
    pickled = {key for key, value in data.items() if isinstance(value, dict) and ":serialized:" in value}
    assert pickled <= {"policy_class", "observation_space", "action_space", "rollout_buffer_class", "replay_buffer_class", "train_freq"}


def test_folders_are_numbered_from_the_first_that_is_free(tmp_path):
    def publish_into(env: str) -> str:
        return publish(tmp_path, env, lambda folder: (folder / "file").touch()).name

    assert publish_into("A-v1") == "A-v1_1"
    (tmp_path / "A-v1_2").mkdir()
    (tmp_path / "A-v1_2" / "file").touch()
    assert publish_into("A-v1") == "A-v1_3"
    assert publish_into("B-v1") == "B-v1_1"


def test_a_folder_that_cannot_be_written_whole_does_not_appear(tmp_path):
    def write(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        publish(tmp_path, "A-v1", write)
    assert not list(tmp_path.iterdir())
