"""The value network: what it learns of a critic, and that it arrives in the zip."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from torch import Tensor

from policy_distill.config import (
    CollectConfig,
    DistillConfig,
    EvaluateConfig,
    PolishConfig,
    RequestError,
    StudentConfig,
    TrainConfig,
    ValueConfig,
)
from policy_distill.export.sb3 import to_ppo
from policy_distill.pipeline.distill import distill
from policy_distill.pipeline.prepare import prepare
from policy_distill.policies.actions import ActionTargets
from policy_distill.policies.student import Student
from policy_distill.rollouts.transitions import Transitions
from policy_distill.teachers import Teacher
from policy_distill.training.dataset import Dataset
from policy_distill.training.value_network import fit_values
from tests.small_worlds import WALK, generator, random_student, walk_teacher

SPACE = gym.spaces.Box(-5, 5, (3,))


def promise(observations: Tensor) -> Tensor:
    """Far from zero, and not linear."""
    return 500 + 20 * torch.tanh(observations[:, 0]) - 30 * observations[:, 1].abs()


TEACHER: Any = SimpleNamespace(values=promise)


def collected(rows: int = 4000, holdout: float = 0.0) -> Dataset:
    observations = torch.randn(rows, 3, generator=generator(0)) * torch.tensor([1.0, 2.0, 1.0])
    episodes = torch.arange(rows) // 10
    ends = torch.arange(rows) % 10 == 9
    zeros = torch.zeros(rows)
    dataset = Dataset(rows, holdout=holdout, device=torch.device("cpu"))
    targets = ActionTargets({}, torch.zeros(rows, 1))
    dataset.append(Transitions(observations, targets, zeros, ends, zeros > 0, episodes, zeros > 0))
    return dataset


def student() -> Student:
    found = random_student(SPACE, gym.spaces.Box(-1, 1, (1,)), activation="tanh")
    found.mean.copy_(torch.tensor([0.5, -0.5, 0.0]))
    found.scale.copy_(torch.tensor([1.0, 2.0, 0.5]))
    return found


def fitted(**changes: Any) -> Any:
    seed, holdout = changes.pop("seed", 0), changes.pop("holdout", 0.0)
    config = ValueConfig(**{"hidden_sizes": (32, 32), "gradient_steps": 1500, **changes})
    return fit_values(TEACHER, collected(holdout=holdout), student(), config, TrainConfig(batch_size=128), seed=seed)


@pytest.mark.parametrize("holdout", [0.0, 0.1])
def test_it_learns_what_the_critic_expects_in_the_environment_s_rewards(holdout):
    found = fitted(holdout=holdout)
    assert 0.98 < found.explained_variance <= 1
    observations = torch.randn(200, 3, generator=generator(1))
    model: Any = to_ppo(student(), found.layers)
    with torch.no_grad():
        predicted = model.policy.predict_values(observations)[:, 0]  # on raw observations
    assert float((predicted - promise(observations)).abs().mean()) < 3
    assert model.policy.net_arch["vf"] == [32, 32]


def test_a_network_that_is_too_small_says_so():
    assert 0.03 < fitted(hidden_sizes=()).explained_variance < 0.7


def test_values_that_never_vary_are_no_cause_for_a_division_by_zero():
    teacher: Any = SimpleNamespace(values=lambda observations: torch.full((len(observations),), 7.0))
    found = fit_values(teacher, collected(), student(), ValueConfig((4,), 50), TrainConfig(batch_size=64), seed=0)
    with torch.no_grad():
        assert to_ppo(student(), found.layers).policy.predict_values(torch.zeros(1, 3)).item() == pytest.approx(7, abs=1e-3)


def test_the_seed_decides():
    first, again, other = (fitted(seed=seed, gradient_steps=20).layers[0].weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_teacher_without_a_critic_is_refused_before_the_work(tmp_path):
    config = DistillConfig(env=WALK.id, output=str(tmp_path), student=StudentConfig(hidden_sizes=(8,)), value=ValueConfig((8,)))
    with pytest.raises(RequestError, match=r"value.hidden_sizes asks for .* has no critic that can be read"):
        prepare(config, walk_teacher())


def test_a_job_ships_it(tmp_path):
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu").learn(64)
    config = DistillConfig(
        env="CartPole-v1",
        output=str(tmp_path),
        student=StudentConfig(hidden_sizes=(4,)),
        collect=CollectConfig(env_steps=600, rounds=2, num_envs=4),
        train=TrainConfig(gradient_steps=40, members=1),
        polish=PolishConfig(below=0.0),
        value=ValueConfig((16,), 800),
        evaluate=EvaluateConfig(episodes=4, validation_episodes=2, finalist_episodes=0),
        workers=0,
    )
    config = dataclasses.replace(config, check=dataclasses.replace(config.check, skip=True))
    teacher = Teacher.from_sb3(model)
    result = distill(config, teacher=teacher)
    assert result.summary["value"]["explained_variance"] > 0.9
    shipped = PPO.load(tmp_path / "student.zip", device="cpu")
    observations = torch.from_numpy(np.random.default_rng(0).uniform(-0.1, 0.1, (50, 4)).astype(np.float32))
    with torch.no_grad():
        difference = shipped.policy.predict_values(observations)[:, 0] - teacher.values(observations)
    assert float(difference.abs().mean()) < 0.3
