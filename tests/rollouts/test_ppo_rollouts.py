"""Rollouts as PPO takes them: what an episode's end tells, how actions are drawn and scaled, and that processes change nothing."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.config import EnvironmentFault
from policy_distill.environments.specs import make
from policy_distill.policies.student import Student
from policy_distill.rollouts.ppo_rollouts import RolloutEnv, SharedArray
from tests import rude_worlds as rude
from tests.small_worlds import BANDIT, PUSH, WALK, WORLDS, random_student


def student_of(world: Any, outputs: list[float] | None = None, log_std: float = -1.0) -> Student:
    """Acts in these spaces: random, or with the same ``outputs`` everywhere."""
    student = random_student(world.observation_space, world.action_space)
    if outputs is not None:
        for layer in student.linears:
            layer.weight.zero_()
            layer.bias.zero_()
        student.linears[-1].bias.copy_(torch.tensor(outputs))
    student.log_std.fill_(log_std)
    return student


def play(spec: Any, workers: int, rollouts: int = 2, *, seed: int = 4) -> list[Any]:
    """What five environments write in rollouts of 15 steps."""
    env = RolloutEnv([functools.partial(make, spec)] * 5, 15, seed=seed, workers=workers)
    env.reset()
    said: list[Any] = [env.observations[-1].copy()]
    for _ in range(rollouts):
        ended = env.rollout(student_of(make(spec)))
        told = [dataclasses.asdict(episode) for episode in ended]
        said += [env.observations.copy(), env.starts.copy(), env.actions.copy(), env.rewards.copy(), told]
    env.close()
    return said


@pytest.mark.parametrize("name", WORLDS)
def test_processes_write_what_no_processes_write(name):
    spec, _ = WORLDS[name]
    alone = play(spec, 0)
    for workers in (1, 2, 9):
        for mine, theirs in zip(alone, play(spec, workers), strict=True):
            np.testing.assert_equal(mine, theirs)
    assert alone[5]
    assert not np.array_equal(alone[3], play(spec, 0, seed=5)[3])  # the noise's seed decides


def test_a_rollout_goes_on_where_the_last_one_ended():
    first, observations, starts, *_, later, later_starts, _, _, _ = play(WALK, 0)
    np.testing.assert_array_equal(observations[0], first)
    assert starts[0].all()
    np.testing.assert_array_equal(later[0], observations[-1])
    np.testing.assert_array_equal(later_starts[0], starts[-1])


def test_environments_draw_apart_from_each_other_and_anew_in_each_rollout():
    *_, actions, _, _ = play(BANDIT, 0)
    drawn_by = [actions[:, index].tobytes() for index in range(5)]
    again = [play(BANDIT, 0, rollouts=1)[3][:, index].tobytes() for index in range(5)]
    assert len({*drawn_by, *again}) == 10


def test_a_failure_in_a_process_is_told():
    env = RolloutEnv([Broken] * 2, 3, workers=2)
    env.reset()
    with pytest.raises(RuntimeError, match="the rope tore"):
        env.rollout(student_of(Broken))
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

    env = RolloutEnv([lambda: Closing(make(WALK))] * 3, 5, workers=2)
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
    """Push lasts five steps."""
    env = RolloutEnv([lambda: make(PUSH)] * 2, 12)
    env.reset()
    ended = env.rollout(student_of(make(PUSH)))
    assert [(episode.step, episode.index, episode.truncated, episode.length) for episode in ended] == [
        (4, 0, True, 5), (4, 1, True, 5), (9, 0, True, 5), (9, 1, True, 5),
    ]  # fmt: skip
    assert [ended[0].episode_return, ended[2].episode_return] == pytest.approx([env.rewards[:5, 0].sum(), env.rewards[5:10, 0].sum()])
    assert np.flatnonzero(env.starts[:, 0]).tolist() == [0, 5, 10]
    assert not np.array_equal(ended[0].observation, env.observations[5, 0])  # the next episode's first
    ended = env.rollout(student_of(make(PUSH)))
    assert [(episode.step, episode.length) for episode in ended[::2]] == [(2, 5), (7, 5)]  # it began in the last rollout


def test_a_reset_begins_the_count_anew():
    env = RolloutEnv([lambda: make(PUSH)], 3)
    env.reset()
    env.rollout(student_of(make(PUSH)))
    env.reset()
    assert env.rollout(student_of(make(PUSH))) == []
    assert [episode.length for episode in env.rollout(student_of(make(PUSH)))] == [5]


def test_actions_are_scaled_to_the_bounds_and_clipped():
    """Push's bounds are -2 to 6 and 0 to 1; what is out of them is refused there."""
    seen: list[list[float]] = []

    class Watch(gym.Wrapper):
        def step(self, action: Any) -> Any:
            seen.append(action.tolist())
            return self.env.step(action)

    env = RolloutEnv([lambda: Watch(make(PUSH))], 1)
    env.reset()
    for outputs in ([0.0, 0.0], [-1.0, 1.0], [0.5, -0.5], [1.5, -3.0]):
        env.rollout(student_of(make(PUSH), outputs, log_std=-30.0))
        assert env.actions[0, 0].tolist() == pytest.approx(outputs)
    assert seen == [[2, 0.5], [-2, 1], [4, 0.25], [6, 0]]


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
    env = RolloutEnv([lambda: Unbounded(seen)], 1)
    env.reset()
    (ended,) = env.rollout(student_of(Unbounded, [30.0, 30.0], log_std=-30.0))
    assert (ended.step, ended.index, ended.truncated, ended.episode_return, ended.length) == (0, 0, False, 1.0, 1)
    assert ended.observation.tolist() == [1.0]
    assert seen == [[30.0, 1.0]]


# Noise.


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("kind", "says"), [(rude.NanObservation, "step 13: the observation"), (rude.NanReward, "step 13: the reward is nan")]
)
def test_numbers_that_are_not_finite_stop_the_rollout_with_seed_and_step(kind, says, workers):
    env = RolloutEnv([functools.partial(make, rude.spec_of(kind))] * 8, 15, seed=3, workers=workers)
    env.reset()
    with pytest.raises(EnvironmentFault, match=rf"tests/{kind.__name__}-v0, seed \d+, {says}"):
        env.rollout(student_of(make(rude.spec_of(kind))))
    env.close()


def test_an_environment_that_cannot_be_made_in_a_process_is_told():
    made = iter([make(WALK)])  # the first is made here
    env = RolloutEnv([lambda: next(made)] * 2, 3, workers=1)
    with pytest.raises(RuntimeError, match="a worker process failed: StopIteration"):
        env.reset()
    env.close()


def test_a_last_observation_that_is_not_finite_is_told_where_its_value_is_asked_for():
    class LastIsNan(rude.Polite):
        def step(self, action: Any) -> Any:
            observation, *rest = super().step(action)
            return observation * (np.nan if self.t == rude.LENGTH else 1.0), *rest

    env = RolloutEnv([LastIsNan] * 2, rude.LENGTH + 2, seed=3)
    env.reset()
    with pytest.raises(EnvironmentFault, match=rf"seed 3, step {rude.LENGTH}: the observation's number 0 is nan"):
        env.rollout(student_of(LastIsNan()))
