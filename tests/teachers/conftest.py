"""Tiny untrained agents of every algorithm, and the real ones where they are at hand."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.environments.action_masks import MASK, OBSERVATION, has_mask
from policy_distill.support import trees
from policy_distill.teachers import Teacher


class TinyEnv(gym.Env):
    """Any pair of spaces as an environment; nothing happens in it."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


VECTOR = gym.spaces.Box(np.array([-1, -2, -3], np.float32), np.inf, dtype=np.float32)
LOPSIDED = gym.spaces.Box(np.array([-1, -0.1], np.float32), np.array([3, 0.3], np.float32), dtype=np.float32)
THREE = gym.spaces.Discrete(3)


def scrambled(model: Any) -> Any:
    """Move every weight away from its initial value, where heads are almost zero and all actions alike."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_((0.7 if parameter.ndim > 1 else 0.2) * torch.randn(parameter.shape, generator=generator))
    return model


def build(
    algo: str, observation_space: gym.Space = VECTOR, action_space: gym.Space = LOPSIDED, *, policy: str = "MlpPolicy", **kwargs: Any
) -> Any:
    """A small agent with weights of no particular value."""
    import stable_baselines3

    library = stable_baselines3 if hasattr(stable_baselines3, algo) else pytest.importorskip("sb3_contrib")
    if algo in ("DQN", "QRDQN", "SAC", "TQC", "TD3", "DDPG", "CrossQ"):
        kwargs.setdefault("buffer_size", 10)
    if algo not in ("ARS",):
        kwargs.setdefault("policy_kwargs", {}).setdefault("net_arch", [7, 5])
    return scrambled(getattr(library, algo)(policy, TinyEnv(observation_space, action_space), device="cpu", seed=0, **kwargs))


def unmasked(teacher: Teacher, observations: Any) -> Any:
    """Observations as the teacher reads them; a mask among them allows everything."""
    if not has_mask(teacher.observation_space):
        return observations
    mask = np.ones((trees.length(observations), *teacher.observation_space[MASK].shape), np.int8)  # type: ignore[index]
    return {**(observations if isinstance(observations, dict) else {OBSERVATION: observations}), MASK: mask}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Save an agent and return the zip's path."""

    def save_(model: Any, name: str = "agent.zip") -> Path:
        model.save(tmp_path / name)
        return tmp_path / name

    return save_


@pytest.fixture(scope="session")
def real_teachers() -> Path:
    """Folder of agents that other people trained; tests that need it are skipped without it."""
    default = Path(__file__).resolve().parents[3] / "shared" / "teachers"
    folder = Path(os.environ.get("POLICY_DISTILL_TEACHERS", default))
    if not (folder / "measured.csv").is_file():
        pytest.skip(f"no agents in {folder}; POLICY_DISTILL_TEACHERS names their folder")
    return folder


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "code ran")


@pytest.fixture
def trap(tmp_path: Path):
    """A payload whose file must not exist when the test is over."""
    path = tmp_path / "code_ran.txt"
    yield Payload(path)
    assert not path.exists(), "code from the file ran"


def rewrite(path: Path, members: dict[str, bytes | None], target: Path) -> Path:
    """Copy a zip with some members replaced (None: left out)."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            if name not in members:
                copy.writestr(name, source.read(name))
        for name, content in members.items():
            if content is not None:
                copy.writestr(name, content)
    return target
