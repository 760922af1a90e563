"""Continuous actions whose bounds are far wider than what an agent does."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from policy_distill.config import (
    CollectConfig,
    DistillConfig,
    EnvironmentFault,
    EvaluateConfig,
    LossConfig,
    PolishConfig,
    RequestError,
    StudentConfig,
    TrainConfig,
)
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.evaluation.action_units import in_units, suited, units_of_actions
from policy_distill.evaluation.measure import measure
from policy_distill.export.sb3 import save_ppo
from policy_distill.pipeline.distill import distill
from policy_distill.pipeline.prepare import prepare, settle_action_units
from policy_distill.policies.actions import ActionTargets, Box
from policy_distill.policies.architecture import Architecture
from policy_distill.policies.divergences import bounded_error
from policy_distill.policies.families import Deterministic, DiagGaussian
from policy_distill.policies.student import Student
from policy_distill.rollouts.collect import Exploration
from policy_distill.rollouts.episodes import alike
from policy_distill.rollouts.numpy_policies import actor
from policy_distill.teachers import Teacher
from tests.teachers.kinds import Kind

LARGEST = float(np.finfo(np.float32).max)


class Wide(gym.Env):
    """Hold a plant at zero, x' = x + 0.5 u; the first action is u, of the order of 1, the second one does nothing and has bounds of 1."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, bound: float = 1e4) -> None:
        self.action_space = gym.spaces.Box(np.array([-bound, -1], np.float32), np.array([bound, 1], np.float32))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.push = (float(value) for value in self.np_random.uniform(-1, 1, 2))
        self.left = 10
        return np.array([self.x, self.push], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.x = float(np.clip(self.x + 0.5 * np.clip(action[0], -5, 5) + 0.2 * self.push, -3, 3))
        self.push = float(self.np_random.uniform(-1, 1))
        self.left -= 1
        return np.array([self.x, self.push], np.float32), -(self.x**2), False, self.left == 0, {}


class Hanging(Wide):
    def step(self, action: Any) -> Any:
        time.sleep(600)


gym.register("tests/HangingWide-v0", "tests.evaluation.test_action_units:Hanging", kwargs={"bound": 1e4}, max_episode_steps=10)
for bound in (5.0, 1e4, LARGEST, np.inf):
    gym.register(f"tests/Wide{bound:.0e}-v0".replace("+", ""), "tests.evaluation.test_action_units:Wide", kwargs={"bound": bound})


def best(observations: np.ndarray) -> np.ndarray:
    first = -2 * observations[:, 0] - 0.4 * observations[:, 1]
    return np.stack([first, 0.5 * np.tanh(observations[:, 0])], 1)


def wide_teacher(bound: float) -> Teacher:
    return Teacher.from_callable(best, Wide.observation_space, Wide(bound).action_space, params=1000)


def config(bound: float, folder: Path, **changes: Any) -> DistillConfig:
    return DistillConfig(
        env=f"tests/Wide{bound:.0e}-v0".replace("+", ""), output=str(folder), workers=0, student=StudentConfig(hidden_sizes=(16,)),
        collect=CollectConfig(env_steps=1600, rounds=2, num_envs=4, action_noise=0.1, epsilon=0.05), train=TrainConfig(gradient_steps=800),
        evaluate=EvaluateConfig(episodes=20, validation_episodes=4, finalists=2, finalist_episodes=8, reuse_returns=False),
        polish=PolishConfig(below=0), **changes,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning:gymnasium")
@pytest.mark.parametrize("bound", [1e4, LARGEST, np.inf])
def test_a_student_learns_actions_that_are_small_beside_their_bounds(bound: float, tmp_path: Path):
    result = distill(config(bound, tmp_path), teacher=wide_teacher(bound))

    observations = np.random.default_rng(0).uniform(-1, 1, (200, 2)).astype(np.float32)
    student = Student.load(tmp_path / "student")
    assert np.abs(student.act(observations) - best(observations)).mean() < 0.1
    np.testing.assert_allclose(actor(student, 200)(observations), student.act(observations), atol=1e-5)
    model = PPO.load(tmp_path / "student.zip", device="cpu")
    assert model.action_space == Wide(bound).action_space
    np.testing.assert_allclose(model.predict(observations, deterministic=True)[0], student.act(observations), atol=1e-4)
    units = student.architecture.action_units
    assert units is not None
    torch.testing.assert_close(model.policy.log_std.detach(), student.log_std + torch.tensor(units[0]).log())
    assert result.retention.estimate > 0.97
    agreement = result.student_episodes.agreement
    assert agreement is not None
    assert 0.3 < agreement <= 1
    assert any("far wider" in notice for notice in json.loads((tmp_path / "result.json").read_text())["notices"])


def test_ordinary_bounds_stay_the_units_and_nothing_is_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job = prepare(config(5.0, tmp_path), wide_teacher(5.0))
    monkeypatch.setattr("policy_distill.evaluation.action_units.record", None)
    assert settle_action_units(job) == (job, 0)


def test_wide_bounds_that_the_teacher_uses_stay_the_units(tmp_path: Path):
    teacher = Teacher.from_callable(lambda seen: 1e4 * best(seen), Wide.observation_space, Wide(1e4).action_space, params=1000)
    job, played = settle_action_units(prepare(config(1e4, tmp_path), teacher))
    assert job.architecture.action_units is None
    assert job.teacher.family.box.units is None  # type: ignore[union-attr]
    assert played == 40


def test_an_environment_that_hangs_is_given_up_while_units_are_looked_for():
    with pytest.raises(EnvironmentFault, match=r"tests/HangingWide-v0, .*step has not returned for more than 0\.3 s"):
        suited(wide_teacher(1e4), EnvironmentSpec("tests/HangingWide-v0"), step_timeout=0.3)


@pytest.fixture
def save_wide(tmp_path: Path) -> Path:
    """A PPO agent that acts around 1 between bounds of 10,000."""
    student = Student(Architecture(Wide.observation_space, Wide().action_space, (), action_units=((1.0, 1.0), (0.0, 0.0))))
    with torch.no_grad():
        student.linears[0].weight.copy_(torch.tensor([[-2.0, -0.4], [0.5, 0.0]]))
        student.linears[0].bias.zero_()
        student.log_std.fill_(-2.0)
    return save_ppo(student, tmp_path / "agent.zip")


def targets(actions: list[list[float]], log_std: float | None = None) -> ActionTargets:
    rows = torch.tensor(actions)
    return ActionTargets({} if log_std is None else {"mean": rows, "log_std": torch.full_like(rows, log_std)}, rows)


def test_units_by_hand():
    box = Box((-100.0, -1.0, -np.inf), (100.0, 3.0, np.inf))
    # Actions reach from 1 to 3: half of that is 1, the middle 2. Natural units of the second: scale 2, offset 1.
    found = units_of_actions(Deterministic(box), targets([[1.0, 0.0, 7.0], [3.0, 0.1, 7.0]]))
    assert found == ((1.0, 2.0, 7.0), (2.0, 1.0, 7.0))
    # A distribution that spreads exp(1.5) * 100 (in units of the bounds) is wider than the actions.
    scale = units_of_actions(DiagGaussian(box), targets([[1.0, 0.0, 7.0], [3.0, 0.1, 7.0]], 1.5))[0]  # type: ignore[index]
    np.testing.assert_allclose(scale, (100 * np.exp(1.5), 2.0, np.exp(1.5)), rtol=1e-5)
    assert units_of_actions(Deterministic(box), targets([[0.0, 0.0, 0.0]])) == ((1.0, 2.0, 1.0), (0.0, 1.0, 0.0))
    narrow = Box((-100.0,), (100.0,))
    assert units_of_actions(Deterministic(narrow), targets([[-5.0], [5.0]])) is None  # a twentieth of the range
    assert units_of_actions(Deterministic(Box((-10.0,), (10.0,))), targets([[0.0], [0.01]])) is None


UNITS = ((0.5, 2.0, 0.25), (0.1, -1.0, -2.0))


@pytest.mark.parametrize("kind", [
    Kind("ppo", "PPO", Wide.observation_space, gym.spaces.Box(-100, 100, (3,))),
    Kind("ppo extractor", "PPO", Wide.observation_space, gym.spaces.Box(-100, 100, (3,)), extractor="Layers"),
    Kind("sac", "SAC", Wide.observation_space, gym.spaces.Box(-100, 100, (3,))),
    Kind("td3", "TD3", Wide.observation_space, gym.spaces.Box(-100, 100, (3,))),
], ids=lambda kind: kind.name)  # fmt: skip
def test_a_teacher_in_other_units_acts_as_before_and_values_as_before(kind: Kind):
    teacher = Teacher.from_sb3(kind.model())
    observations = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
    before = teacher.targets(torch.tensor(observations))
    box = dataclasses.replace(teacher.family.box, units=UNITS)  # type: ignore[type-var]

    twin = in_units(teacher, box)  # type: ignore[arg-type]

    assert np.array_equal(twin.act(observations), teacher.act(observations))
    np.testing.assert_allclose(actor(twin, 16)(observations), teacher.act(observations), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(twin.values(torch.tensor(observations)), teacher.values(torch.tensor(observations)))
    told = twin.targets(torch.tensor(observations))
    if isinstance(twin.family, DiagGaussian):
        torch.testing.assert_close(twin.family.mode(told.parameters), told.actions, rtol=1e-4, atol=1e-4)
    if isinstance(twin.family, DiagGaussian) and not twin.family.squashed:
        scale, offset = (torch.tensor(part) for part in UNITS)
        torch.testing.assert_close(told.parameters["mean"] * scale + offset, before.parameters["mean"] * 100, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(told.parameters["log_std"] + scale.log(), before.parameters["log_std"] + np.log(100))
    assert teacher.family.box.units is None  # type: ignore[union-attr]


def test_an_ensemble_in_other_units_acts_as_before():
    kind = Kind("ppo", "PPO", Wide.observation_space, gym.spaces.Box(-100, 100, (3,)))
    teacher = Teacher.ensemble([Teacher.from_sb3(kind.model()), Teacher.from_sb3(kind.model())], weights=[1, 3])
    observations = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
    twin = in_units(teacher, dataclasses.replace(teacher.family.box, units=UNITS))  # type: ignore[type-var, arg-type]
    np.testing.assert_allclose(twin.act(observations), teacher.act(observations), rtol=1e-4, atol=1e-3)
    assert twin.family.box.units == UNITS  # type: ignore[union-attr]


def test_errors_stop_at_bounds_in_other_units():
    # Bounds at -4 and 2 in box units, and none; near them begins at 0.9 of that.
    limits = torch.tensor([-4.0, -torch.inf]), torch.tensor([2.0, torch.inf])
    error = bounded_error(torch.tensor([[1.9, 1.9], [-5.0, -5.0]]), torch.tensor([[3.0, 3.0], [-3.0, -3.0]]), near_bound=0.9, limits=limits)
    torch.testing.assert_close(error, torch.tensor([[0.0, 1.1], [1.0, 2.0]]))


def test_agreement_and_noise_are_in_the_units():
    space = gym.spaces.Box(-1000, 1000, (2,))
    box = Box((-1000.0,) * 2, (1000.0,) * 2, ((1.0, 1000.0), (0.0, 0.0)))
    student = Student(Architecture(space, space, (), action_units=box.units))
    mine, other = np.zeros((3, 2)), np.array([[0.09, 0.0], [0.11, 0.0], [0.0, 90.0]])
    assert alike(mine, other, space, student).tolist() == [True, False, True]
    assert alike(mine, other, space).tolist() == [True, True, True]
    streams = [np.random.default_rng(row) for row in range(400)]
    moved = Exploration(action_noise=0.1, box=box).disturb(np.zeros((400, 2)), space, streams)
    np.testing.assert_allclose(moved.std(0), (0.1, 100), rtol=0.15)
    drawn = Exploration(epsilon=1.0, box=box).disturb(np.zeros((400, 2)), space, streams)
    assert (np.abs(drawn).max(0) <= (2, 1000)).all()
    assert (np.abs(drawn).max(0) > (1.8, 900)).all()


def test_agreement_of_two_agents_is_in_the_units_of_what_the_teacher_does(save_wide: Path):
    # The other agent is off by 0.5 where actions are about 1: half of a twentieth of the bounds' range would be 500.
    model = PPO.load(save_wide, device="cpu")
    with torch.no_grad():
        head: Any = model.policy.action_net
        head.bias[0] += 0.5
    model.save(save_wide.with_name("other.zip"))

    def agreement(policy: Path) -> float | None:
        return measure(str(policy), teacher=str(save_wide), env="tests/Wide1e04-v0", episodes=5, workers=0).episodes.agreement

    found = agreement(save_wide.with_name("other.zip"))
    assert found is not None
    assert found < 0.2
    assert agreement(save_wide) == 1


@pytest.mark.slow
def test_polishing_acts_in_the_units(tmp_path: Path):
    loose = LossConfig(kind="regression")
    settings = dataclasses.replace(config(1e4, tmp_path, loss=loose), polish=PolishConfig(below=2.0, env_steps=4096, hopeless=0))
    assert distill(settings, teacher=wide_teacher(1e4)).retention.estimate > 0.97


@pytest.mark.parametrize(
    "units",
    [
        [[1.0, float("nan")], [0.0, 0.0]], [[1.0, 1.0], [0.0, float("inf")]], [[1.0, 0.0], [0.0, 0.0]], [[1.0, -1.0], [0.0, 0.0]],
        [[1.0, 1e300], [0.0, 0.0]], [[1.0, 1e-300], [0.0, 0.0]], [[1.0], [0.0]], [[1.0, 1.0]], [1.0, 0.0], "12", {}, [[[1.0]], [[0.0]]],
    ],
    ids=str,
)  # fmt: skip
def test_units_of_a_file_that_are_none_are_refused(units: object, tmp_path: Path):
    student = Student(Architecture(Wide.observation_space, Wide().action_space, (), action_units=((1.0, 2.0), (0.0, -1.0))))
    assert Student.load(student.save(tmp_path)).architecture == student.architecture
    path = tmp_path / "student.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "action_units": units}))
    with pytest.raises(RequestError, match="holds no readable student"):
        Student.load(tmp_path)
