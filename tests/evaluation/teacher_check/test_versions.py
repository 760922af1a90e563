"""Other versions of an environment: which fit, and whether the agent earns there what it was said to earn."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.evaluation.teacher_check import Claim
from policy_distill.evaluation.teacher_check.versions import look_elsewhere, other_versions
from policy_distill.rollouts.episodes import evaluate
from policy_distill.teachers import Teacher
from tests.small_worlds import WALK, Walk, walk_teacher


class Uphill(Walk):
    """Each step costs 3."""

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, *rest, info = super().step(action)
        return observation, 3 * reward, *rest, info  # type: ignore[return-value]


class Wide(Walk):
    observation_space = gym.spaces.Box(0, 10, (3,), np.float32)


gym.register("tests/Hill-v1", entry_point="tests.evaluation.teacher_check.test_versions:Uphill", max_episode_steps=12)
gym.register("tests/Hill-v2", entry_point="tests.evaluation.teacher_check.test_versions:Wide", max_episode_steps=12)
gym.register("tests/Hill-v3", entry_point="tests.small_worlds:Walk", max_episode_steps=12)
gym.register("tests/Hill-v4", entry_point="nowhere.at_all:Hill")
SEEDS = list(range(20))
UPHILL = EnvironmentSpec("tests/Hill-v1")


def test_versions_that_cannot_be_made_or_do_not_fit_are_left_out():
    assert [other.id for other in other_versions(UPHILL, walk_teacher())] == ["tests/Hill-v3"]
    assert [other.id for other in other_versions(EnvironmentSpec("tests/Hill-v3"), walk_teacher())] == ["tests/Hill-v1"]
    assert other_versions(EnvironmentSpec("NoVersion"), walk_teacher()) == []


def test_the_version_that_keeps_the_promise_is_named():
    own = evaluate(walk_teacher(), UPHILL, SEEDS).returns
    finding = look_elsewhere(walk_teacher(), UPHILL, own, Claim(-4.0, 1.0, 100, "card.json"), SEEDS)
    assert finding is not None
    assert "in tests/Hill-v3 the agent earns" in finding.what
    assert finding.fix == "give --env tests/Hill-v3"


def test_one_that_is_further_from_it_is_not():
    better = EnvironmentSpec("tests/Hill-v3")
    own = evaluate(walk_teacher(), better, SEEDS).returns
    assert look_elsewhere(walk_teacher(), better, own, Claim(-3.0, 1.0, 100, "card.json"), SEEDS) is None


def test_nor_one_in_which_all_is_the_same():
    still = Teacher.from_callable(lambda seen: np.full(len(seen), 1), Walk.observation_space, gym.spaces.Discrete(3))
    own = evaluate(still, WALK, SEEDS).returns
    assert look_elsewhere(still, EnvironmentSpec("tests/Hill-v3"), own, Claim(0.0, 1.0, 100, "card.json"), SEEDS) is None
