"""Rollouts as PPO takes them: what an episode's end tells, how actions are drawn and scaled, and that processes change nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.config import EnvironmentFault, RequestError
from policy_distill.environments.specs import make
from policy_distill.policies.student import Student
from policy_distill.rollouts.ppo_rollouts import RolloutEnv
from policy_distill.rollouts.processes import Host, Remote
from tests import rude_worlds as rude
from tests.small_worlds import BANDIT, PUSH, RECALL, WALK, WORLDS, random_student, recurrent_student


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


@contextlib.contextmanager
def sites(workers: int) -> Iterator[list[Remote]]:
    """Processes that can share environments."""
    made = [Remote(Host) for _ in range(workers)]
    yield made
    for site in made:
        site.close()


def play(spec: Any, workers: int, rollouts: int = 2, *, seed: int = 4) -> list[Any]:
    """What five environments write in rollouts of 15 steps."""
    with sites(workers) as shared:
        env = RolloutEnv([functools.partial(make, spec)] * 5, 15, seed=seed, sites=shared)
        said: list[Any] = [env.reset()]
        for _ in range(rollouts):
            ended = env.rollout(student_of(make(spec)))
            told = [dataclasses.asdict(episode) for episode in ended]
            said += [env.observations, env.starts, env.actions, env.rewards, told]
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


def test_a_memory_goes_on_in_the_next_rollout():
    """Two rollouts of seven steps are one of fourteen; an episode has six."""
    world, actions = make(RECALL), []
    student = recurrent_student(world.observation_space, world.action_space)
    for num_steps, count in ((7, 2), (14, 1)):
        env = RolloutEnv([functools.partial(make, RECALL)] * 5, num_steps, seed=4)
        env.reset()
        parts = []
        for _ in range(count):
            env.rollout(student)
            parts.append(env.actions)
        actions.append(np.concatenate(parts))
    np.testing.assert_array_equal(actions[0], actions[1])


def test_environments_draw_apart_from_each_other_and_anew_in_each_rollout():
    *_, actions, _, _ = play(BANDIT, 0)
    drawn_by = [actions[:, index].tobytes() for index in range(5)]
    again = [play(BANDIT, 0, rollouts=1)[3][:, index].tobytes() for index in range(5)]
    assert len({*drawn_by, *again}) == 10


def test_a_failure_in_a_process_is_reported():
    with sites(2) as shared:
        env = RolloutEnv([Broken] * 2, 3, sites=shared)
        env.reset()
        with pytest.raises(RuntimeError, match="the rope tore"):
            env.rollout(student_of(Broken))


class Closing(gym.Wrapper):
    """Leaves a file where it is closed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(make(WALK))
        self._folder = folder

    def close(self) -> None:
        (self._folder / f"{os.getpid()}-{id(self)}").touch()
        super().close()


def test_environments_are_closed_in_their_processes_which_go_on(tmp_path):
    with sites(2) as shared:
        env = RolloutEnv([functools.partial(Closing, tmp_path)] * 3, 5, sites=shared)
        env.reset()
        assert not list(tmp_path.iterdir())
        env.close()
        processes = [path.name.split("-")[0] for path in tmp_path.iterdir()]
        assert sorted(processes.count(process) for process in set(processes)) == [1, 2]
        assert len(RolloutEnv([functools.partial(make, WALK)] * 3, 5, sites=shared).reset()) == 3


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
    with sites(workers) as shared:
        env = RolloutEnv([functools.partial(make, rude.spec_of(kind))] * 8, 15, seed=3, sites=shared)
        env.reset()
        with pytest.raises(EnvironmentFault, match=rf"tests/{kind.__name__}-v0, seed \d+, {says}"):
            env.rollout(student_of(make(rude.spec_of(kind))))


def test_an_environment_that_cannot_be_made_in_a_process_is_reported():
    with sites(1) as shared, pytest.raises(RequestError, match="colour"):
        RolloutEnv([functools.partial(make, dataclasses.replace(WALK, kwargs={"colour": 1}))] * 2, 3, sites=shared)


def test_a_last_observation_that_is_not_finite_is_reported_where_its_value_is_asked_for():
    class LastIsNan(rude.Polite):
        def step(self, action: Any) -> Any:
            observation, *rest = super().step(action)
            return observation * (np.nan if self.t == rude.LENGTH else 1.0), *rest

    env = RolloutEnv([LastIsNan] * 2, rude.LENGTH + 2, seed=3)
    env.reset()
    with pytest.raises(EnvironmentFault, match=rf"seed 3, step {rude.LENGTH}: the observation's number 0 is nan"):
        env.rollout(student_of(LastIsNan()))
