"""The first look: NaN never reaches an environment, and an episode that does not end is cut off."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from policy_distill.environments.specs import EnvironmentSpec, longest_episode, make, time_limit
from policy_distill.evaluation.teacher_check import look as module
from policy_distill.evaluation.teacher_check.look import judge_lengths, look
from policy_distill.rollouts.episodes import evaluate
from policy_distill.teachers import Teacher
from tests.small_worlds import PUSH, WALK, WALK_LIMIT, Push, push_best, push_teacher, walk_best, walk_teacher

ENDLESS = EnvironmentSpec("tests/NeverEnding-v0")


class Endless(gym.Env):
    """Action 1 ends the episode; nothing else does."""

    observation_space = gym.spaces.Box(0, 10, (2,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.ones(2, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.ones(2, np.float32), 1.0, int(action) == 1, False, {}


gym.register("tests/NeverEnding-v0", entry_point="tests.evaluation.teacher_check.test_look:Endless")


def always(action: int) -> Teacher:
    return Teacher.from_callable(lambda seen: np.full(len(seen), action), Endless.observation_space, Endless.action_space)


def test_the_episodes_are_those_of_evaluate():
    found = look(walk_teacher(), WALK, [3, 4, 5])
    np.testing.assert_array_equal(found.own.returns, evaluate(walk_teacher(), WALK, [3, 4, 5]).returns)
    np.testing.assert_array_equal(found.random.returns, evaluate(None, WALK, [3, 4, 5]).returns)
    assert found.stop is None
    assert found.env_steps == found.own.lengths.sum() + found.random.lengths.sum()


def test_an_episode_without_end_is_cut_off_and_stops(monkeypatch):
    monkeypatch.setattr(module, "LONG_EPISODE", 50)
    found = look(always(0), ENDLESS, [1, 2])
    assert found.stop is not None
    assert found.stop.topic == "never_ends"
    assert "an episode of the agent went on for 50 steps" in found.stop.what
    assert found.own.lengths.tolist() == [50, 50]
    assert look(always(1), ENDLESS, [1, 2]).stop is None


def test_a_random_policy_without_end_stops_too(monkeypatch):
    monkeypatch.setattr(module, "LONG_EPISODE", 1)
    found = look(always(1), ENDLESS, [1, 2, 3, 4, 5])
    assert found.stop is not None
    assert "an episode of a random policy" in found.stop.what


def test_a_time_limit_is_the_request_s_or_the_registration_s():
    assert time_limit(WALK) == WALK_LIMIT
    assert time_limit(EnvironmentSpec(WALK.id, max_episode_steps=7)) == 7
    assert time_limit(ENDLESS) is None
    assert time_limit(EnvironmentSpec("tests.small_worlds:tests/Walk-v0")) == WALK_LIMIT


def test_a_game_of_atari_ends_after_its_number_of_frames(monkeypatch):
    pytest.importorskip("ale_py")
    monkeypatch.setattr(module, "LONG_EPISODE", 50)
    frames = {"obs_type": "ram", "frameskip": 4, "max_num_frames_per_episode": 1000}
    spec = EnvironmentSpec("ALE/Pong-v5", frames)
    assert longest_episode(EnvironmentSpec("ALE/Pong-v5")) == 108_001
    assert longest_episode(EnvironmentSpec("ALE/Pong-v5", {"max_num_frames_per_episode": 0})) is None
    env = make(spec)
    assert env.has_time_limit
    assert not make(EnvironmentSpec("ALE/Pong-v5", {"max_num_frames_per_episode": 0})).has_time_limit
    still = Teacher.from_callable(lambda seen: np.zeros(len(seen), np.int64), env.observation_space, env.action_space)
    found = look(still, spec, [1, 2])
    assert found.stop is None
    assert found.own.lengths.tolist() == [250, 250]


def test_answers_that_are_no_numbers_never_reach_the_environment():
    teacher = Teacher.from_callable(lambda seen: np.full((len(seen), 2), np.nan), Push.observation_space, Push().action_space)
    found = look(teacher, PUSH, [1, 2])  # Push would raise
    assert found.stop is not None
    assert (found.stop.topic, len(found.own.returns), len(found.random.returns)) == ("not_finite", 0, 2)


def test_one_that_hardly_reacts_is_compared_with_doing_nothing():
    """A thousandth of the best action around nothing is as good as nothing; the best action reacts."""
    still = Teacher.from_callable(lambda seen: 0.001 * push_best(seen), Push.observation_space, Push().action_space)
    found = look(still, PUSH, list(range(8)))
    assert found.behaviour.reaction is not None
    assert found.behaviour.reaction < 0.05
    assert found.stop is not None
    assert found.stop.topic == "no_better_than_idle"
    assert look(push_teacher(), PUSH, list(range(8))).stop is None


def test_one_that_holds_a_good_action_still_is_not_stopped():
    """The constant (2, 0.5) is the best answer on average and does not react at all: it costs less than nothing, (0, 0), does."""
    held = Teacher.from_callable(
        lambda seen: np.tile(np.array([2.0, 0.5], np.float32), (len(seen), 1)), Push.observation_space, Push().action_space
    )
    found = look(held, PUSH, list(range(40)))
    assert found.behaviour.constant
    assert found.stop is None


@pytest.mark.parametrize(("lengths", "told"), [([1, 1, 1], True), ([1, 2, 1], False)])
def test_episodes_that_are_over_at_once_are_reported(lengths, told):
    assert bool(judge_lengths(np.array(lengths))) == told


def test_a_discrete_teacher_is_not_compared_with_doing_nothing():
    assert look(Teacher.from_callable(walk_best, Endless.observation_space, gym.spaces.Discrete(3)), WALK, [1]).behaviour.reaction is None
