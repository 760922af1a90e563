"""A certificate: who is judged how, on which seeds, and that everything is in it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from policy_distill.config import EvaluateConfig
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.evaluation.certify import (
    ROLES,
    certificate,
    files_of_student,
    files_of_teacher,
    plan_of,
    play,
    versions,
    write_certificate,
)
from policy_distill.evaluation.statistics import Plan
from policy_distill.export.sb3 import save_ppo
from policy_distill.policies.student import Student
from policy_distill.rollouts.episodes import evaluate, evaluation_seeds
from policy_distill.rollouts.workers import Rollouts
from policy_distill.teachers import Teacher
from tests.small_worlds import WALK, random_student, walk_expert, walk_teacher

PLAN = Plan.of(0.9, 0.95, max_episodes=300)


def played(student: Student, *, num_envs: int = 16, workers: int = 0):
    with Rollouts(WALK, walk_teacher(), num_envs=4, seed=0, workers=workers) as rollouts:
        return play(rollouts, student, PLAN, num_envs=num_envs)


def stray() -> Student:
    return random_student(gym.spaces.Box(0, 10, (2,), np.float32), gym.spaces.Discrete(3))


def test_a_good_student_is_certified_and_a_broken_one_refuted_on_seeds_of_their_own():
    good, broken = played(walk_expert()), played(stray())
    assert (good.decision.verdict, broken.decision.verdict) == ("certified", "refuted")
    assert good.student.seeds.tolist() == list(range(5_000_000, 5_000_000 + good.decision.episodes))
    np.testing.assert_array_equal(good.student.returns, good.teacher.returns)
    for purpose in ("final", "validation"):
        assert not set(evaluation_seeds(purpose, 20_000)) & set(good.student.seeds.tolist())


def test_the_portions_are_the_episodes_played_at_once():
    found = played(stray())
    seeds = evaluation_seeds("certificate", found.decision.episodes)
    for policy, episodes in zip((stray(), walk_teacher(), None), (found.student, found.teacher, found.random), strict=True):
        np.testing.assert_array_equal(episodes.returns, evaluate(policy, WALK, seeds).returns)


def test_how_many_play_side_by_side_decides_nothing():
    one, other = played(stray(), num_envs=3), played(stray(), workers=2)
    assert one.decision == other.decision
    for ours, theirs in zip(one.returns, other.returns, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_no_more_is_played_than_it_takes():
    found = played(walk_expert())
    fewest = PLAN.fewest()
    assert fewest is not None
    assert len(found.student.returns) == len(found.random.returns) == found.decision.episodes < 300
    assert found.decision.episodes >= fewest


def test_the_configuration_s_plan():
    assert plan_of(EvaluateConfig()) is None
    assert plan_of(EvaluateConfig(certify=0.9, max_episodes=300)) == PLAN


def test_everything_is_in_it(tmp_path):
    student = walk_expert()
    student.save(tmp_path / "run" / "student")
    zip_path = save_ppo(student, tmp_path / "ppo.zip")
    files = files_of_student(tmp_path / "run" / "student"), files_of_teacher(Teacher.load(zip_path), str(zip_path))
    found = played(student)
    path = write_certificate(tmp_path / "run" / "certificate.json", certificate(found, spec=WALK, student=files[0], teacher=files[1]))
    data = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert data["verdict"] == "certified"
    assert data["returns"] == {role: values.tolist() for role, values in zip(ROLES, found.returns, strict=True)}
    assert EnvironmentSpec.from_dict(data["environment"]) == WALK
    weights = (tmp_path / "run" / "student" / "student.safetensors").read_bytes()
    assert data["student"]["sha256"]["student.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert set(data["student"]["sha256"]) == {"student.safetensors", "student.json"}
    assert data["teacher"]["sha256"] == {"ppo.zip": hashlib.sha256(zip_path.read_bytes()).hexdigest()}
    assert (data["student"]["path"], data["teacher"]["path"]) == ("student", "../ppo.zip")  # as seen from the certificate
    assert data["test"]["looks"] == list(PLAN.looks)
    assert [look["episodes"] for look in data["test"]["seen"]] == [look for look in PLAN.looks if look <= found.decision.episodes]
    assert data["retention"]["estimate"] == 1.0
    assert data["seeds"][0] == 5_000_000


def test_a_teacher_s_statistics_belong_to_its_files(tmp_path):
    """Without them an agent is another one."""
    path = Path("agents/ppo/CartPole-v1_1")
    bare = files_of_teacher(Teacher.load("ppo/CartPole-v1"), "ppo/CartPole-v1")
    assert bare["path"] == "ppo/CartPole-v1"
    assert list(bare["sha256"]) == [next(path.glob("*.zip")).name]
    normalized = Teacher.load("sac/Pendulum-v1")
    names = files_of_teacher(normalized, "sac/Pendulum-v1")["sha256"]
    assert ("vecnormalize.pkl" in names) == (normalized.normalization is not None)


def test_a_teacher_in_memory_has_no_files():
    assert files_of_teacher(walk_teacher(), None) == {"path": None, "algo": "callable", "sha256": {}}


def test_the_versions_name_the_simulator_where_there_is_one():
    assert set(versions(WALK)) == {"policy-distill", "python", "numpy", "torch", "gymnasium", "machine", "rounding"}
    assert versions(EnvironmentSpec("HalfCheetah-v5"))["mujoco"].startswith("3.")
    assert versions(EnvironmentSpec("LunarLander-v3"))["box2d"].startswith("2.3")


@pytest.mark.parametrize(
    ("env", "package", "distribution"), [("MinAtar/Breakout-v1", "minatar", "minatar"), ("PongNoFrameskip-v4", "ale_py", "ale-py")]
)
def test_the_versions_name_the_package_of_the_environment_without_an_entry_of_it(env, package, distribution):
    """Without it, other returns of another MinAtar were said to be those of the same versions."""
    pytest.importorskip(package)
    assert versions(EnvironmentSpec(env))[distribution] == importlib.metadata.version(distribution)
