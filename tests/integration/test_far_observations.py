"""Observations that lie far from zero compared with how much they vary: a clock, a price, a position on a map."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from policy_distill.config import CollectConfig, DistillConfig, EvaluateConfig, PolishConfig, StudentConfig, TrainConfig
from policy_distill.pipeline.distill import distill
from policy_distill.policies.families import Categorical
from policy_distill.policies.student import Student
from policy_distill.rollouts.episodes import evaluate
from policy_distill.teachers import ObservationNormalization, Teacher
from policy_distill.teachers.networks.acting import DiscreteNetwork

ORIGIN, SPAN = 1.7e9, 10.0


class Map(gym.Env):
    """Step towards a goal; both positions are in metres from an origin that is far away, where float32 has steps of 128."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.goal = (float(value) for value in self.np_random.uniform(-1, 1, 2))
        self.left = 12
        return self._look(), {}

    def _look(self) -> np.ndarray:
        return ORIGIN + SPAN * np.array([self.x, self.goal])

    def step(self, action):
        self.x += 0.2 if action == 1 else -0.2
        self.left -= 1
        return self._look(), -abs(self.x - self.goal), False, self.left == 0, {}


gym.register("tests/Map-v0", "tests.integration.test_far_observations:Map")


def map_teacher() -> Teacher:
    """Right where the goal is to the right."""
    linear = nn.Linear(2, 2)
    linear.weight.data = torch.tensor([[10.0, -10.0], [-10.0, 10.0]])
    linear.bias.data.zero_()
    network = DiscreteNetwork(nn.Sequential(linear), Categorical(2), scores="logits")
    statistics = ObservationNormalization(np.full(2, ORIGIN), np.full(2, SPAN**2 / 3), 1e-8, 10.0)
    return Teacher(network, Map.observation_space, Map.action_space, algo="ppo", normalization=statistics)


def test_a_student_keeps_what_float32_would_lose(tmp_path: Path):
    teacher = map_teacher()
    assert teacher.needs_float64
    config = DistillConfig(
        env="tests/Map-v0", output=str(tmp_path), workers=0, student=StudentConfig(hidden_sizes=(8,)),
        collect=CollectConfig(env_steps=1600, rounds=2, num_envs=4), train=TrainConfig(gradient_steps=600),
        evaluate=EvaluateConfig(episodes=20, validation_episodes=4, finalists=2, finalist_episodes=8),
        polish=PolishConfig(below=2.0, env_steps=1024, num_envs=4, num_steps=64),
    )  # fmt: skip

    result = distill(config, teacher=teacher)

    assert result.retention.estimate > 0.97
    assert len(result.summary["polish"]["records"]) == 4
    assert not (tmp_path / "student.zip").exists()
    student = Student.load(tmp_path / "student")
    assert student.mean.dtype == torch.float64
    assert evaluate(student, "tests/Map-v0", range(20)).returns.mean() > evaluate(teacher, "tests/Map-v0", range(20)).returns.mean() - 0.1


@pytest.mark.parametrize(
    ("mean", "std", "dtype", "needed"),
    [
        (1.7e9, 58.0, np.float64, True), (1.7e9, 58.0, np.int64, True), (1.7e9, 58.0, np.float32, False), (1.7e9, 1e8, np.float64, False),
        (1.0, 1e-5, np.float64, False), (0.0, 1.0, np.float64, False),
    ],
)  # fmt: skip
def test_what_needs_float64(mean, std, dtype, needed):
    linear = DiscreteNetwork(nn.Sequential(nn.Linear(1, 2)), Categorical(2), scores="logits")
    statistics = ObservationNormalization(np.array([mean]), np.array([std**2]), 1e-8, 10.0)
    space = gym.spaces.Box(0, 10, (1,), dtype)
    assert Teacher(linear, space, gym.spaces.Discrete(2), algo="ppo", normalization=statistics).needs_float64 is needed
