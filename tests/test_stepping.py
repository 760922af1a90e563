"""Environments as PPO steps them: what an episode's end tells, how actions are scaled, and that processes change nothing."""

from __future__ import annotations

import functools
import os
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from policy_distill.environments import make
from policy_distill.stepping import LeanVecEnv, SharedArray
from tests.small_worlds import BANDIT, PUSH, WALK


def play(spec: Any, workers: int, steps: int = 30) -> list[Any]:
    """What five environments say while actions are drawn from one generator."""
    env = LeanVecEnv([functools.partial(make, spec)] * 5, workers)
    env.seed(3)
    space = env.action_space
    space.seed(0)
    said: list[Any] = [env.reset(), *(env.step(np.stack([space.sample() for _ in range(5)])) for _ in range(steps))]
    env.close()
    return said


@pytest.mark.parametrize("spec", [PUSH, WALK, BANDIT], ids=["continuous", "discrete", "bandit"])
def test_processes_say_what_no_processes_say(spec):
    alone = play(spec, 0)
    for workers in (1, 2, 9):
        shared = play(spec, workers)
        np.testing.assert_array_equal(alone[0], shared[0])
        for mine, theirs in zip(alone[1:], shared[1:], strict=True):
            for part in range(3):
                np.testing.assert_array_equal(mine[part], theirs[part])
                assert mine[part].dtype == theirs[part].dtype
            for one, other in zip(mine[3], theirs[3], strict=True):
                assert one.keys() == other.keys()
                np.testing.assert_equal(one, other)
    assert any(dones.any() for _, _, dones, _ in alone[1:])


def test_what_was_said_is_not_overwritten_by_the_next_step():
    said = play(PUSH, 0, 3)
    assert len({observations.tobytes() for observations, *_ in said[1:]}) == 3


def test_a_failure_in_a_process_is_told():
    env = LeanVecEnv([Broken] * 2, workers=2)
    env.reset()
    with pytest.raises(RuntimeError, match="the rope tore"):
        env.step(np.zeros(2, int))
    env.close()


def test_a_shared_array_begins_with_zeros_and_all_views_are_one():
    shared = SharedArray((2, 3), np.float32)
    assert shared.view().tolist() == [[0, 0, 0], [0, 0, 0]]
    shared.view()[1, 2] = 5
    assert shared.view()[1, 2] == 5
    assert shared.view().dtype == np.float32
    assert SharedArray((), np.int64).view().shape == ()


def test_environments_are_closed_in_their_processes(tmp_path):
    class Closing(gym.Wrapper):
        def close(self) -> None:
            (tmp_path / f"{os.getpid()}-{id(self)}").touch()
            super().close()

    env = LeanVecEnv([lambda: Closing(make(WALK))] * 3, workers=2)
    env.reset()
    env.close()
    processes = [path.name.split("-")[0] for path in tmp_path.iterdir()]
    assert sorted(processes.count(process) for process in set(processes)) == [1, 1, 2]  # this one showed its spaces


class Broken(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        raise ValueError("the rope tore")


def test_the_end_of_an_episode_by_hand():
    env = LeanVecEnv([lambda: make(PUSH)] * 2)
    first: Any = env.reset()
    observations: Any
    zero = np.zeros((2, 2), np.float32)
    for step in range(1, 6):
        observations, rewards, dones, infos = env.step(zero)
        assert dones.tolist() == [step == 5] * 2
        if step < 5:
            assert infos == [{}, {}]
    assert all(info["TimeLimit.truncated"] and info["episode"]["l"] == 5 for info in infos)
    assert not np.array_equal(infos[0]["terminal_observation"], observations[0])  # the next episode's first
    assert first.shape == observations.shape == (2, 3)
    total = infos[0]["episode"]["r"]
    env.step(zero)
    for _ in range(4):
        _, rewards, _, infos = env.step(zero)
    assert infos[0]["episode"]["l"] == 5  # counted anew
    assert infos[0]["episode"]["r"] != total
    assert rewards.dtype == np.float32


def test_actions_are_scaled_to_the_bounds_and_clipped():
    """Push's bounds are -2 to 6 and 0 to 1; what is out of them is refused there."""
    seen: list[np.ndarray] = []

    class Watch(gym.Wrapper):
        def step(self, action: Any) -> Any:
            seen.append(action)
            return self.env.step(action)

    env = LeanVecEnv([lambda: Watch(make(PUSH))])
    env.reset()
    for action in ([0, 0], [-1, 1], [0.5, -0.5], [1.5, -3]):
        env.step(np.array([action], np.float32))
    assert [action.tolist() for action in seen] == [[2, 0.5], [-2, 1], [4, 0.25], [6, 0]]
    assert env.action_space == gym.spaces.Box(-1, 1, (2,))


class Unbounded(gym.Env):
    """One step, in which the time is over and the goal is reached; the first component of an action has no bounds."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Box(np.array([-np.inf, 0], np.float32), np.array([np.inf, 1], np.float32))

    def __init__(self, seen: list[list[float]]) -> None:
        self.seen = seen

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.seen.append(action.tolist())
        return np.ones(1, np.float32), 1.0, True, True, {}


def test_an_action_without_bounds_is_passed_on_and_a_reached_goal_is_no_truncation():
    seen: list[list[float]] = []
    env = LeanVecEnv([lambda: Unbounded(seen)])
    env.reset()
    _, _, dones, infos = env.step(np.array([[30.0, 30.0]], np.float32))
    assert seen == [[30.0, 1.0]]
    assert dones[0]
    assert not infos[0]["TimeLimit.truncated"]


def test_a_reset_begins_the_count_anew():
    env = LeanVecEnv([lambda: make(PUSH)])
    env.reset()
    env.step(np.zeros((1, 2), np.float32))
    env.reset()
    for _ in range(5):
        _, _, dones, infos = env.step(np.zeros((1, 2), np.float32))
    assert dones[0]
    assert infos[0]["episode"]["l"] == 5
