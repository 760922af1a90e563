"""Before a job: what would make it worthless is refused, a weak teacher is not, and the student is the same with and without the look."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from policy_distill.config import (
    CheckConfig,
    CollectConfig,
    DistillConfig,
    EvaluateConfig,
    PolishConfig,
    RequestError,
    StudentConfig,
    TrainConfig,
)
from policy_distill.environments.specs import resolve
from policy_distill.evaluation.teacher_check import preflight
from policy_distill.pipeline.distill import distill
from policy_distill.teachers import Teacher
from tests.small_worlds import PUSH, WALK, Push, Walk, walk_best, walk_teacher

TEACHERS = Path(os.environ.get("POLICY_DISTILL_TEACHERS", Path(__file__).resolve().parents[4] / "shared" / "teachers"))
CHEETAH = TEACHERS / "ppo" / "HalfCheetah-v3_1" / "HalfCheetah-v3.zip"


def job(output: Path, **changes: object) -> DistillConfig:
    config = DistillConfig(
        env=WALK.id,
        output=str(output),
        device="cpu",
        workers=0,
        student=StudentConfig(hidden_sizes=(4,)),
        collect=CollectConfig(env_steps=80, rounds=2, num_envs=4),
        train=TrainConfig(gradient_steps=20, batch_size=16, members=1),
        polish=PolishConfig(below=0.0),
        evaluate=EvaluateConfig(episodes=4, validation_episodes=2, finalist_episodes=0),
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def away_teacher() -> Teacher:
    """Walks away from the target."""
    return Teacher.from_callable(lambda seen: 2 - walk_best(seen), Walk.observation_space, gym.spaces.Discrete(3))


def clumsy_teacher() -> Teacher:
    """Goes the right way where the target is on its right, and anywhere else; better than chance, and poor."""
    return Teacher.from_callable(lambda seen: np.where(seen[:, 1] > seen[:, 0], 2, 1), Walk.observation_space, gym.spaces.Discrete(3))


def test_a_job_with_a_teacher_that_is_no_better_than_chance_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(RequestError, match=r"no more here than a random policy.*--check\.skip true") as caught:
        distill(job(tmp_path / "run"), teacher=away_teacher())
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "run").iterdir()) == []


def test_the_way_out_leads_on(tmp_path):
    result = distill(job(tmp_path / "run", check=CheckConfig(skip=True)), teacher=away_teacher())
    assert (result.folder / "result.json").is_file()


def test_a_weak_teacher_is_let_through():
    assert preflight(clumsy_teacher(), WALK, workers=0).notices == ()


def test_an_untrained_network_is_refused():
    model = PPO("MlpPolicy", "Pendulum-v1", seed=1, device="cpu")
    with pytest.raises(RequestError, match=r"hardly reacts|no more here than a random policy"):
        preflight(Teacher.from_sb3(model), resolve("Pendulum-v1"), workers=0)


def test_weights_that_are_no_numbers_are_refused_before_anything_is_played():
    model = PPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu")
    with torch.no_grad():
        model.policy.value_net.bias.fill_(torch.nan)
    with pytest.raises(RequestError, match="weights hold NaN"):
        preflight(Teacher.from_sb3(model), resolve("CartPole-v1"), workers=0)


def test_answers_that_are_no_numbers_are_refused():
    teacher = Teacher.from_callable(lambda seen: np.full((len(seen), 2), np.nan), Push.observation_space, Push().action_space)
    with pytest.raises(RequestError, match="answers with NaN"):
        preflight(teacher, PUSH, workers=0)


def test_what_is_worth_knowing_is_in_the_result_and_the_steps_are_counted(tmp_path):
    still = Teacher.from_callable(lambda seen: np.full(len(seen), 1), Walk.observation_space, gym.spaces.Discrete(3))
    with pytest.raises(RequestError):  # it never moves
        preflight(still, WALK, workers=0)
    looked = preflight(walk_teacher(), WALK, workers=0)
    with_look = distill(job(tmp_path / "a"), teacher=walk_teacher())
    without = distill(job(tmp_path / "b", check=CheckConfig(skip=True)), teacher=walk_teacher())
    assert with_look.summary["evaluation_env_steps"] == without.summary["evaluation_env_steps"] + looked.env_steps
    assert all(torch.equal(one, other) for one, other in zip(with_look.student.parameters(), without.student.parameters(), strict=True))


@pytest.mark.skipif(not CHEETAH.is_file(), reason="no agents")
def test_an_agent_whose_statistics_were_taken_away_is_refused(tmp_path):
    """With config.yml it is refused when it is read; the bare zip remembers that VecNormalize was there, and what it earned."""
    bare = tmp_path / "agent.zip"
    shutil.copy(CHEETAH, bare)
    with pytest.raises(RequestError, match=r"through a VecNormalize that is missing here; put vecnormalize\.pkl beside the zip"):
        preflight(Teacher.load(bare), resolve("HalfCheetah-v5"), workers=0)
    run = shutil.copytree(CHEETAH.parent, tmp_path / "ppo" / "HalfCheetah-v3_1")
    (run / "HalfCheetah-v3" / "vecnormalize.pkl").unlink()
    with pytest.raises(RequestError, match="statistics are missing"):
        Teacher.load(run)


@pytest.mark.skipif(not CHEETAH.is_file(), reason="no agents")
@pytest.mark.slow
def test_good_agents_of_strangers_pass_without_a_word():
    from policy_distill.teachers.environment import environment_for

    for name in ("ppo/HalfCheetah-v3_1", "ars/MountainCarContinuous-v0_1", "dqn/CartPole-v1_1", "a2c/Acrobot-v1_1", "ddpg/Pendulum-v1_1"):
        teacher = Teacher.load(TEACHERS / name)
        assert preflight(teacher, environment_for(teacher, None)[0], workers=0).notices == ()
