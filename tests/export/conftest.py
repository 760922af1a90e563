"""Fixtures of more than one module."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import pytest

from policy_distill.environments.specs import resolve
from policy_distill.export.sb3 import save_ppo
from policy_distill.support.files import write_json
from tests.report.example import SUMMARY
from tests.small_worlds import random_student


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with a student that plays CartPole."""
    folder, env = tmp_path / "run", gym.make("CartPole-v1")
    student = random_student(env.observation_space, env.action_space)
    student.save(folder / "student", extra={"environment": resolve("CartPole-v1").to_dict()})
    save_ppo(student, folder / "student.zip")
    (folder / "config.yaml").write_text("seed: 7\n")
    write_json(folder / "result.json", SUMMARY)
    return folder
