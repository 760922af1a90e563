"""A student of images, from a callable teacher to its files: it reaches the best return, and acts from them bit for bit the same."""

from __future__ import annotations

import gymnasium as gym
import numpy as np

from policy_distill import Student, distill
from policy_distill.config import (
    CheckConfig,
    CollectConfig,
    DistillConfig,
    EvaluateConfig,
    PolishConfig,
    SelfDistillConfig,
    StudentConfig,
    TrainConfig,
)
from policy_distill.environments.specs import make
from policy_distill.rollouts.numpy_policies import actor
from policy_distill.teachers import Teacher
from tests.small_worlds import BEACON, Beacon, beacon_best, random_observations


def test_two_members_that_see_images_reach_the_best_return(tmp_path):
    teacher = Teacher.from_callable(beacon_best, Beacon.observation_space, gym.spaces.Discrete(4), params=100_000)
    config = DistillConfig(
        env=BEACON.id,
        output=str(tmp_path),
        workers=1,
        student=StudentConfig(hidden_sizes=(32,), channels=(8, 16)),
        collect=CollectConfig(env_steps=3000, rounds=2, num_envs=8),
        train=TrainConfig(gradient_steps=400, members=2, batch_size=128),
        self_distill=SelfDistillConfig(generations=1, gradient_steps=40),
        polish=PolishConfig(below=0.0),
        check=CheckConfig(skip=True),
        evaluate=EvaluateConfig(episodes=50, reuse_returns=False),
    )
    result = distill(config, teacher=teacher)
    env = make(BEACON)
    distances = [env.reset(seed=1_000_000 + seed)[1]["distance"] for seed in range(50)]  # nobody can be quicker
    np.testing.assert_array_equal(result.teacher_episodes.returns, -np.array(distances))
    assert result.student_episodes.returns.mean() >= -np.mean(distances) - 0.1
    assert result.retention.estimate > 0.98
    assert result.summary["student"]["channels"] == [8, 16]
    assert not (tmp_path / "student.zip").exists()
    assert (tmp_path / "report.html").exists()
    again = Student.load(tmp_path / "student")
    images = random_observations(Beacon.observation_space, 100)
    np.testing.assert_array_equal(actor(again, 100)(images), actor(result.student, 100)(images))
