"""Agents of Stable-Baselines3 that read images, through whole runs: from their zip to a student, its files and a comparison."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from policy_distill import Student, distill
from policy_distill.commands.cli import main
from policy_distill.config import (
    CheckConfig,
    CollectConfig,
    DistillConfig,
    EnvironmentOptions,
    EvaluateConfig,
    PolishConfig,
    RequestError,
    StudentConfig,
    TrainConfig,
)
from policy_distill.environments.specs import EnvironmentSpec, make
from policy_distill.pipeline.sizing import choose_architecture
from policy_distill.rollouts.episodes import evaluate
from policy_distill.teachers import Teacher
from policy_distill.teachers.environment import environment_for
from tests.small_worlds import random_observations

SPOT = EnvironmentSpec("tests/Spot-v0")


class Spot(gym.Env):
    """Name the quarter of the image, 36x40 pixels and one channel, that is bright; three steps, each of which earns 1."""

    observation_space = gym.spaces.Box(0, 255, (36, 40, 1), np.uint8)

    def __init__(self) -> None:
        self.action_space = gym.spaces.Discrete(4)

    def _look(self) -> np.ndarray:
        self.quarter = int(self.np_random.integers(4))
        image = self.np_random.integers(0, 80, (36, 40, 1)).astype(np.uint8)
        down, right = divmod(self.quarter, 2)
        image[18 * down : 18 * down + 18, 20 * right : 20 * right + 20] += 120
        return image

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return self._look(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action), f"{action!r} is no action"
        earned = float(action == self.quarter)
        self.steps += 1
        return self._look(), earned, False, self.steps == 3, {}


gym.register("tests/Spot-v0", entry_point=f"{__name__}:Spot")


def config(folder: Path, **changes: object) -> DistillConfig:
    settings = DistillConfig(
        env=SPOT.id,
        output=str(folder),
        workers=1,
        collect=CollectConfig(env_steps=600, rounds=1, num_envs=4),
        train=TrainConfig(gradient_steps=60, members=1, batch_size=64),
        polish=PolishConfig(below=0.0),
        check=CheckConfig(skip=True),
        evaluate=EvaluateConfig(episodes=30, reuse_returns=False),
    )
    return dataclasses.replace(settings, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """An agent that knows the quarter."""
    path = tmp_path_factory.mktemp("agent") / "agent.zip"
    model = PPO("CnnPolicy", Spot(), n_steps=128, batch_size=64, n_epochs=4, learning_rate=1e-3, gamma=0.0, seed=0, device="cpu")
    model.learn(1024)
    model.save(path)
    return path


def test_a_cnn_agent_is_distilled_with_the_default_student(trained, tmp_path, capsys):
    """The environment gives [H, W, C], the agent and its student read [C, H, W]; each command plays both there."""
    teacher = Teacher.load(trained)
    spec, _ = environment_for(teacher, SPOT.id)
    assert spec.wrappers == (("VecTransposeImage", {}),)
    assert evaluate(teacher, spec, range(30)).returns.mean() > 2.9
    result = distill(config(tmp_path), teacher=teacher)
    assert result.student.observation_space.shape == (1, 36, 40)
    assert result.summary["student"]["channels"]
    assert result.student.params < teacher.params / 9
    assert result.retention.estimate > 0.9
    assert not (tmp_path / "student.zip").exists()
    assert any("no student.zip is written" in notice for notice in result.summary["notices"])
    assert main(["evaluate_policy", "--policy", str(tmp_path), "--episodes", "5", "--workers", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["policy"]["return_mean"] == pytest.approx(3, abs=0.7)
    played = ["--teacher", str(trained), "--policy", str(tmp_path / "student"), "--env", SPOT.id, "--episodes", "4"]
    assert main(["compare_policies", *played, "--output", str(tmp_path / "compared.npz")]) == 0
    images = random_observations(result.student.observation_space, 8)
    np.testing.assert_array_equal(Student.load(tmp_path / "student").act(images), result.student.act(images))


def test_one_environment_or_many_play_the_same_episodes(trained):
    teacher = Teacher.load(trained)
    spec, _ = environment_for(teacher, EnvironmentOptions(SPOT.id, frame_stack=None))
    alone, together = (evaluate(teacher, spec, range(6), num_envs=count) for count in (1, 5))
    np.testing.assert_array_equal(alone.returns, together.returns)


def test_stacked_frames_of_an_agent_are_asked_for(tmp_path):
    model = DQN("CnnPolicy", make(EnvironmentSpec(SPOT.id, wrappers=(("VecFrameStack", {"n_stack": 4}),))), buffer_size=2, device="cpu")
    model.save(tmp_path / "agent.zip")
    teacher = Teacher.load(tmp_path / "agent.zip")
    assert teacher.observation_space.shape == (4, 36, 40)
    assert main(["evaluate_policy", "--policy", str(tmp_path / "agent.zip"), "--env", SPOT.id]) == 2
    spec, _ = environment_for(teacher, EnvironmentOptions(SPOT.id, frame_stack=4))
    assert [name for name, _ in spec.wrappers] == ["VecFrameStack", "VecTransposeImage"]
    env = make(spec)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (4, 36, 40)
    assert (observation[:3] == 0).all()
    assert teacher.act(observation[None]).shape == (1,)


def test_which_students_read_by_convolutions(trained, tmp_path):
    """Those whose teacher does; a function's layers are not known, and it is judged by its observations."""
    image, three = gym.spaces.Box(0, 255, (3, 40, 40), np.uint8), gym.spaces.Discrete(3)
    flat = PPO("MlpPolicy", Blank(image, three), device="cpu")
    grid = gym.spaces.Box(0, 1, (10, 10, 4), np.bool_)  # type: ignore[arg-type]
    assert choose_architecture(StudentConfig(), Teacher.load(trained)).channels
    assert not choose_architecture(StudentConfig(), Teacher.from_sb3(flat)).channels
    for space, convolved in ((image, True), (grid, False)):
        function = Teacher.from_callable(lambda seen: np.zeros(len(seen), np.int64), space, three, params=100_000)
        assert bool(choose_architecture(StudentConfig(), function).channels) == convolved
    PPO("MlpPolicy", Blank(grid, three), policy_kwargs={"features_extractor_class": Grid}, device="cpu").save(tmp_path / "agent.zip")
    own = Teacher.load(tmp_path / "agent.zip", extractor=f"{__file__}:Grid")
    assert choose_architecture(StudentConfig(), own).channels
    with pytest.raises(RequestError, match="no student has its convolutions"):
        choose_architecture(StudentConfig(same=True), Teacher.load(trained))
    same = choose_architecture(StudentConfig(same=True), own)
    assert (same.channels, same.params) == ((5,), own.params)


class Blank(gym.Env):
    """Spaces alone."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space


class Grid(BaseFeaturesExtractor):
    """One convolution of a grid ``[H, W, C]``."""

    def __init__(self, observation_space: gym.spaces.Box) -> None:
        super().__init__(observation_space, 5 * 8 * 8)
        self.conv = torch.nn.Conv2d(observation_space.shape[2], 5, 3)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.conv(observations.permute(0, 3, 1, 2)).relu().flatten(1)
