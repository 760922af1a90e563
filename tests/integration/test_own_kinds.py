"""A family of actions and an algorithm of one's own: each is defined here, registered, and distilled without a word in the package."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.save_util import data_to_json
from torch import Tensor

from policy_distill.config import CollectConfig, DistillConfig, EvaluateConfig, LossConfig, PolishConfig, StudentConfig, TrainConfig
from policy_distill.pipeline.distill import DistillResult, distill
from policy_distill.policies.actions import Parameters
from policy_distill.policies.divergences import forward_kl, reverse_kl
from policy_distill.policies.families import FAMILIES, Family, family_of
from policy_distill.policies.student import Student
from policy_distill.teachers import Teacher
from policy_distill.teachers.algorithms import ALGORITHMS, Algorithm, Keys, Layout
from tests.small_worlds import WALK, Walk, walk_best

LEVELS = 5


@dataclass(frozen=True)
class Ordinal(Family):
    """Levels in an order: the score plus logistic noise falls between two of ``levels - 1`` thresholds, one apart (ordered logit)."""

    levels: int
    box = None
    names = ("score",)

    @classmethod
    def of_space(cls, space: gym.spaces.Discrete) -> Ordinal:
        return cls(int(space.n))

    @property
    def width(self) -> int:
        return 1

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.levels,)

    @property
    def action_shape(self) -> tuple[int, ...]:
        return ()

    def thresholds(self) -> Tensor:
        return torch.arange(1, self.levels) - self.levels / 2

    def log_probs(self, parameters: Parameters) -> Tensor:
        """``[..., levels]``."""
        reached = (parameters["score"] - self.thresholds()).sigmoid()  # P(level >= k) for k = 1, 2, ...
        ends = torch.cat([torch.ones_like(reached[..., :1]), reached, torch.zeros_like(reached[..., :1])], dim=-1)
        return (ends[..., :-1] - ends[..., 1:]).clamp_min(1e-12).log()

    def mode(self, parameters: Parameters) -> Tensor:
        return (parameters["score"] > self.thresholds()).sum(-1)

    def log_prob(self, parameters: Parameters, raw: Tensor) -> Tensor:
        return self.log_probs(parameters).gather(-1, raw)[..., 0]

    def entropy(self, parameters: Parameters) -> Tensor:
        log_probs = self.log_probs(parameters)
        return -(log_probs.exp() * log_probs).sum(-1)

    def draw(self, parameters: Parameters, uniform: Tensor) -> Tensor:
        return (uniform < (parameters["score"] - self.thresholds()).sigmoid()).sum(-1, keepdim=True)

    def divergence(
        self, name: str, teacher: Parameters, student: Parameters, *, temperature: Tensor | float = 1.0, beta: float = 0.5
    ) -> Tensor:
        measure = {"forward_kl": forward_kl, "reverse_kl": reverse_kl}[name]
        return measure(self.log_probs(teacher), self.log_probs(student), temperature=temperature)

    def confident(self, actions: Tensor) -> Parameters:
        return {"score": actions[:, None] - (self.levels - 1) / 2}


class Gauge(gym.Env):
    """Four steps; each earns 1 less the distance to the level that the observation shows."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self) -> None:
        self.action_space = gym.spaces.Discrete(LEVELS)
        self.shown, self.steps = np.zeros(2, np.float32), 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.shown, self.steps = self.np_random.uniform(-1, 1, 2).astype(np.float32), 0
        return self.shown, {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = 1.0 - abs(int(action) - int(gauge_best(self.shown[None])[0]))
        self.shown, self.steps = self.np_random.uniform(-1, 1, 2).astype(np.float32), self.steps + 1
        return self.shown, reward, False, self.steps == 4, {}


def gauge_best(observations: np.ndarray) -> np.ndarray:
    return np.clip((observations.mean(-1) + 1) / 2 * LEVELS, 0, LEVELS - 1).astype(np.int64)


gym.register("tests/Gauge-v0", entry_point=f"{__name__}:Gauge")


def distilled(folder: Path, env: str, teacher: Teacher | str, **changes: Any) -> DistillResult:
    named: dict[str, Any] = {"teacher": teacher} if isinstance(teacher, str) else {}
    config = DistillConfig(
        env=env,
        output=str(folder),
        device="cpu",
        workers=0,
        student=StudentConfig(hidden_sizes=(16,)),
        collect=CollectConfig(env_steps=600, rounds=2, num_envs=4),
        train=TrainConfig(gradient_steps=600, batch_size=64, members=2),
        polish=PolishConfig(below=0.0),
        evaluate=EvaluateConfig(episodes=30, validation_episodes=10, finalist_episodes=20, finalists=2),
        **named,
        **changes,
    )
    return distill(config, teacher=teacher if isinstance(teacher, Teacher) else None)


def check_saved(result: DistillResult, observations: np.ndarray) -> Student:
    """The student as it is read again, which acts the same."""
    student = Student.load(result.folder / "student")
    np.testing.assert_array_equal(student.act(observations), result.student.act(observations))
    return student


@pytest.mark.parametrize("loss", [LossConfig(), LossConfig(kind="nll"), LossConfig(divergence="reverse_kl", hard_weight=0.5)])
def test_a_family_of_one_s_own_is_distilled(loss, tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, gym.spaces.Discrete, Ordinal.of_space)
    teacher = Teacher.from_callable(gauge_best, Gauge.observation_space, gym.spaces.Discrete(LEVELS))
    assert teacher.family == family_of(gym.spaces.Discrete(LEVELS)) == Ordinal(LEVELS)

    result = distilled(tmp_path, "tests/Gauge-v0", teacher, loss=loss)

    assert result.retention.estimate > 0.9
    observations = np.random.default_rng(0).uniform(-1, 1, (200, 2)).astype(np.float32)
    student = check_saved(result, observations)
    assert student.family == Ordinal(LEVELS)
    assert student.architecture.widths == (2, 16, 1)
    assert (student.act(observations) == gauge_best(observations)).mean() > 0.8
    assert not (tmp_path / "student.zip").exists()  # Stable-Baselines3 has no such distribution


CEM = Algorithm(
    "cem",
    "sb3_contrib.CEM",
    ("elite_fraction",),
    Layout(
        signs=("searcher.",),
        actor=Keys("searcher.scores", ("searcher.trunk",)),
        activation="SiLU",
        scores="logits",
        value=Keys("judge", ("searcher.trunk",)),
    ),
)


def write_cem(path: Path) -> str:
    """An agent that walks to the target: its two hidden units say how far it lies to the right and to the left."""
    weights = {
        "searcher.trunk.0.weight": torch.tensor([[-20.0, 20.0], [20.0, -20.0]]),
        "searcher.trunk.0.bias": torch.zeros(2),
        "searcher.scores.weight": torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]),
        "searcher.scores.bias": torch.tensor([0.0, 5.0, 0.0]),
        "judge.weight": torch.tensor([[-0.05, -0.05]]),
        "judge.bias": torch.zeros(1),
    }
    spaces = {"observation_space": Walk.observation_space, "action_space": gym.spaces.Discrete(3)}
    data = json.loads(data_to_json(spaces)) | {
        "elite_fraction": 0.1,
        "num_timesteps": 1000,
        "gamma": 1.0,
        "policy_class": {"__module__": "sb3_contrib.cem.policies"},
    }
    content = io.BytesIO()
    torch.save(weights, content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps(data))
        archive.writestr("policy.pth", content.getvalue())
    return str(path)


def test_an_algorithm_of_one_s_own_is_read_and_distilled(tmp_path, monkeypatch):
    monkeypatch.setitem(ALGORITHMS, CEM.name, CEM)
    path = write_cem(tmp_path / "agent.zip")

    teacher = Teacher.load(path)
    assert (teacher.algo, teacher.params) == ("cem", 2 * 3 + 3 * 3)
    observations = np.array([[3, 7], [7, 3], [0, 10], [6, 5]], np.float32)
    np.testing.assert_array_equal(teacher.act(observations), walk_best(observations))
    distances = np.abs(observations[:, 0] - observations[:, 1])
    np.testing.assert_allclose(teacher.values(torch.from_numpy(observations)), -distances, rtol=1e-5)

    result = distilled(tmp_path / "run", WALK.id, path)
    assert result.summary["teacher"]["algo"] == "cem"
    assert result.retention.estimate > 0.9
    check_saved(result, observations)
