"""Environments that are stepped together: the same dynamics, only rows on which something was done, whoever shares them out."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from policy_distill.config import EnvironmentFault, RequestError
from policy_distill.environments.specs import EnvironmentSpec, make
from policy_distill.environments.vector import GROUP, choose_backend, group_size
from policy_distill.rollouts.collect import Collector
from policy_distill.rollouts.transitions import AUTORESET_STEP, Transitions
from policy_distill.rollouts.workers import Rollouts, shares_of
from policy_distill.teachers import Teacher
from tests.small_worlds import WALK

CART = EnvironmentSpec("CartPole-v1")


class Count(gym.Env):
    """Observed is the step; an episode ends after as many steps as the environment's episodes so far, truncated where they are even."""

    observation_space = gym.spaces.Box(0, 100, (1,), np.float32)

    def __init__(self, mode: str = "NextStep") -> None:
        self.action_space = gym.spaces.Discrete(2)


class CountVector(VectorEnv):
    """The same, many at once."""

    def __init__(self, num_envs: int, mode: str = "NextStep", **_: Any) -> None:
        self.metadata = {"autoreset_mode": AutoresetMode(mode)} if mode else {}
        self.num_envs = num_envs
        self.single_observation_space = Count.observation_space
        self.single_action_space = gym.spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.steps, self.lengths, self.over = np.zeros(num_envs, int), np.ones(num_envs, int), np.zeros(num_envs, bool)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self.steps[:, None].astype(np.float32), {}

    def step(self, actions: np.ndarray) -> Any:
        assert self.action_space.contains(actions)
        before = self.over if self.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP else np.zeros(self.num_envs, bool)
        self.steps = np.where(before, 0, self.steps + 1)
        self.over = (self.steps == self.lengths) & ~before
        even = self.lengths % 2 == 0
        self.lengths = self.lengths + self.over
        rewards = np.where(before, 0.0, 1.0 + actions)
        if self.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP:
            self.steps = np.where(self.over, 0, self.steps)
        return self.steps[:, None].astype(np.float32), rewards, self.over & ~even, self.over & even, {}


gym.register(
    "tests/Count-v0", entry_point="tests.environments.test_vector:Count", vector_entry_point="tests.environments.test_vector:CountVector"
)
COUNT = EnvironmentSpec("tests/Count-v0")


def one_teacher() -> Teacher:
    return Teacher.from_callable(lambda seen: np.ones(len(seen), np.int64), Count.observation_space, gym.spaces.Discrete(2))


def balancing_teacher(gain: float = 0.3) -> Teacher:
    """Pushes to where the pole falls; most of the time."""

    def act(seen: np.ndarray) -> np.ndarray:
        return (seen[:, 2] + gain * seen[:, 3] > 0.02 * np.sin(50 * seen[:, 0])).astype(np.int64)

    space = make(CART).observation_space
    return Teacher.from_callable(act, space, gym.spaces.Discrete(2))


def collected(spec: EnvironmentSpec, teacher: Teacher, *, backend: Any, num_envs: int, workers: int, calls: tuple[int, ...]) -> Transitions:
    with Rollouts(spec, teacher, num_envs=num_envs, seed=3, workers=workers, backend=backend) as rollouts:
        parts = [part for index, steps in enumerate(calls) for part in rollouts.collect(steps, None, 1.0, index)]
    return Transitions(
        torch.cat([part.observations for part in parts]),
        dataclasses.replace(parts[0].targets, actions=torch.cat([part.targets.actions for part in parts])),
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("rewards", "terminated", "truncated", "episodes", "by_teacher")),
    )


def episodes_of(rows: Transitions) -> dict[int, torch.Tensor]:
    """Episode -> indices of its rows."""
    return {int(number): (rows.episodes == number).nonzero().flatten() for number in rows.episodes.unique()}


# Which rows are kept.


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_each_kept_row_is_an_observation_on_which_an_action_was_executed(mode):
    spec = dataclasses.replace(COUNT, kwargs={"mode": mode})
    rows = collected(spec, one_teacher(), backend="vector", num_envs=3, workers=0, calls=(7, 5))
    assert (rows.rewards == 2).all()  # a reset earns 0
    for number, own in episodes_of(rows).items():
        length = number // 3 + 1  # the n-th episode of an environment has n steps
        assert rows.observations[own, 0].tolist() == list(range(len(own)))
        ends = (rows.terminated | rows.truncated)[own]
        assert ends.tolist() == [False] * (len(own) - 1) + [len(own) == length]
        assert not (length % 2 == 0 and rows.terminated[own].any())
        assert not (length % 2 == 1 and rows.truncated[own].any())
    # 12 steps of 3 environments: episodes of 1, 2, 3, ... steps, and with NEXT_STEP a step for each reset: 1+1, 2+1, 3+1, 3
    assert len(rows) == 3 * (12 if mode == "SameStep" else 9)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_flags_may_be_whole_numbers(mode):
    """They were taken for indices of environments where these are reset in the same step."""
    rows, like = (
        collected(EnvironmentSpec(name, kwargs={"mode": mode}), one_teacher(), backend="vector", num_envs=3, workers=0, calls=(7, 5))
        for name in ("tests/CountWhole-v0", "tests/Count-v0")
    )
    for name in ("observations", "episodes", "terminated", "truncated"):
        assert torch.equal(getattr(rows, name), getattr(like, name)), name


def test_an_answer_that_does_not_fit_is_one_line():
    with pytest.raises(
        EnvironmentFault, match=r"^tests/CountFlat-v0, vector environments with seed \d+, step 1: step raised ValueError: could"
    ):
        collected(EnvironmentSpec("tests/CountFlat-v0"), one_teacher(), backend="vector", num_envs=3, workers=0, calls=(2,))


class CountWhole(CountVector):
    """Flags are 0 and 1."""

    def step(self, actions: np.ndarray) -> Any:
        observations, rewards, *flags, info = super().step(actions)
        return observations, rewards, *(flag.astype(int) for flag in flags), info


class CountFlat(CountVector):
    """Observations of a step are of another shape."""

    def step(self, actions: np.ndarray) -> Any:
        return np.zeros((self.num_envs, 2)), *super().step(actions)[1:]


for _kind in (CountWhole, CountFlat):
    gym.register(
        f"tests/{_kind.__name__}-v0",
        entry_point="tests.environments.test_vector:Count",
        vector_entry_point=f"tests.environments.test_vector:{_kind.__name__}",
    )


def test_a_collector_says_which_rows_are_none():
    collector = Collector(COUNT, indices=range(2), num_envs=2, seed=0, backend="vector")
    rows = collector.collect(6, one_teacher(), None, 1.0)
    assert rows.episodes.unflatten(0, (6, 2))[:, 0].tolist() == [0, AUTORESET_STEP, 2, 2, AUTORESET_STEP, 4]


# The environment's own vector form.


def test_a_vector_entry_point_has_the_dynamics_of_the_environment_itself():
    rows = collected(CART, balancing_teacher(), backend="vector", num_envs=4, workers=0, calls=(300, 400))
    env: Any = make(CART).unwrapped
    seen = rows.observations.numpy()
    numbers = episodes_of(rows)
    assert len(numbers) >= 8
    checked = 0
    for own in numbers.values():
        assert (np.abs(seen[own[0]]) <= 0.05).all()  # where an episode begins
        for now, following in zip(own[:-1].tolist(), own[1:].tolist(), strict=True):
            env.reset(seed=0)
            env.state = tuple(seen[now].astype(np.float64))
            expected, reward, terminated, _, _ = env.step(int(rows.targets.actions[now]))
            np.testing.assert_allclose(seen[following], expected, rtol=1e-4, atol=1e-5)
            assert (reward, terminated) == (rows.rewards[now], rows.terminated[now])
            checked += 1
    assert checked > 1000


def test_the_episode_s_limit_is_the_spec_s():
    rows = collected(
        dataclasses.replace(CART, max_episode_steps=20), balancing_teacher(), backend="vector", num_envs=4, workers=0, calls=(100,)
    )
    lengths = torch.bincount(rows.episodes)
    assert lengths.max() == 20
    assert rows.truncated.sum() == (lengths == 20).sum()


@pytest.mark.parametrize("backend", ["gymnasium", "vector"])
def test_what_is_collected_does_not_depend_on_the_number_of_workers(backend):
    teacher = balancing_teacher()
    found = [
        collected(CART, teacher, backend=backend, num_envs=2 * GROUP + 3, workers=workers, calls=(30, 25)) for workers in (0, 1, 2, 3, 5)
    ]
    for other in found[1:]:
        for name in ("observations", "rewards", "terminated", "truncated", "episodes", "by_teacher"):
            assert torch.equal(getattr(found[0], name), getattr(other, name)), name


def test_groups_differ_from_each_other():
    rows = collected(CART, balancing_teacher(), backend="vector", num_envs=2 * GROUP, workers=0, calls=(1,))
    assert len(rows.observations.unique(dim=0)) == 2 * GROUP


@pytest.mark.parametrize(("num_envs", "parts", "group"), [(16, 2, 16), (17, 2, 16), (40, 2, 16), (64, 3, 16), (5, 2, 1), (2, 4, 1)])
def test_shares_are_whole_groups_and_nobody_goes_empty(num_envs, parts, group):
    shares = shares_of(num_envs, parts, group)
    assert [index for share in shares for index in share] == list(range(num_envs))
    assert all(len(share) and share.start % group == 0 for share in shares)
    assert len(shares) == min(parts, -(-num_envs // group))


def test_workers_without_environments_still_measure():
    with Rollouts(CART, balancing_teacher(), num_envs=4, seed=0, workers=2, backend="vector") as rollouts:
        assert rollouts.backend == "4 environments of their own vector entry point in 1 worker process"
        assert len(list(rollouts.collect(5, None, 1.0, 0))) == 1
        assert len(rollouts.evaluate("teacher", range(6), num_envs=4).seeds) == 6


# The choice.


def test_auto_is_the_vector_entry_point_where_there_is_one():
    assert choose_backend(CART, "auto") == choose_backend(CART, "vector") == "vector"
    assert choose_backend(WALK, "auto") == choose_backend(WALK, "gymnasium") == choose_backend(CART, "gymnasium") == "gymnasium"
    assert (group_size("vector"), group_size("gymnasium"), group_size("envpool")) == (GROUP, 1, 1)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (WALK, "tests/Walk-v0 is registered without one"),
        (dataclasses.replace(CART, wrappers=(("TimeFeatureWrapper", {}),)), "with the wrappers TimeFeatureWrapper"),
        (dataclasses.replace(COUNT, kwargs={"mode": "Disabled"}), "does not reset ended episodes"),
        (dataclasses.replace(COUNT, kwargs={"mode": ""}), "does not reset ended episodes"),
        (EnvironmentSpec("tests/CountOther-v0"), "has other observations: .* instead of"),
        (EnvironmentSpec("tests/CountBroken-v0"), "does not work here"),
        (EnvironmentSpec("tests/CountElsewhere-v0"), "not numpy arrays"),
    ],
)
def test_what_cannot_stand_for_the_environment_is_refused_with_the_reason(spec, reason):
    with pytest.raises(RequestError, match=rf"collect\.backend is 'vector', but .*{reason}.*; leave it out to use what suits") as caught:
        choose_backend(spec, "vector")
    assert "\n" not in str(caught.value)
    assert choose_backend(spec, "auto") == "gymnasium"


class CountElsewhere(CountVector):
    """On a device of its own."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return torch.zeros(self.num_envs, 1), {}


gym.register(
    "tests/CountElsewhere-v0",
    entry_point="tests.environments.test_vector:Count",
    vector_entry_point="tests.environments.test_vector:CountElsewhere",
)


def broken_vector(num_envs: int) -> None:
    raise TypeError("no such\nargument")


gym.register("tests/CountOther-v0", entry_point="tests.small_worlds:Walk", vector_entry_point="tests.environments.test_vector:CountVector")
gym.register(
    "tests/CountBroken-v0",
    entry_point="tests.environments.test_vector:Count",
    vector_entry_point="tests.environments.test_vector:broken_vector",
)


def test_a_missing_envpool_is_reported_with_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"there is no envpool: it is not installed: pip install \"policy-distill\[envpool\]\""):
        choose_backend(CART, "envpool")


# envpool.

LANDER = EnvironmentSpec("LunarLander-v3")


@pytest.fixture
def envpool():
    return pytest.importorskip("envpool")


def idle_teacher() -> Teacher:
    env = make(LANDER)
    return Teacher.from_callable(lambda seen: (seen[:, 1] * 10).astype(np.int64) % 4, env.observation_space, env.action_space)


@pytest.mark.usefixtures("envpool")
def test_envpool_collects_the_same_with_any_number_of_workers():
    found = [
        collected(LANDER, idle_teacher(), backend=choose_backend(LANDER, "envpool"), num_envs=5, workers=workers, calls=(150, 50))
        for workers in (0, 2)
    ]
    for name in ("observations", "rewards", "terminated", "episodes"):
        assert torch.equal(getattr(found[0], name), getattr(found[1], name)), name
    numbers = episodes_of(found[0])
    assert len(numbers) > 8
    beginnings = found[0].observations[[int(own[0]) for own in numbers.values()]]
    assert len(beginnings.unique(dim=0)) == len(numbers)  # each episode is another
    assert ((beginnings[:, 1] - 1.4).abs() < 0.05).all()  # at the height at which Gymnasium's lander begins
    for own in numbers.values():
        assert not (found[0].terminated | found[0].truncated)[own[:-1]].any()


@pytest.mark.usefixtures("envpool")
@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (WALK, "it has no tests/Walk-v0"),
        (dataclasses.replace(LANDER, kwargs={"gravity": -5.0}), "it does not know Gymnasium's arguments"),
        (dataclasses.replace(LANDER, wrappers=(("TimeFeatureWrapper", {}),)), "with the wrappers TimeFeatureWrapper"),
    ],
)
def test_what_envpool_does_not_have_is_refused(spec, reason):
    with pytest.raises(RequestError, match=reason):
        choose_backend(spec, "envpool")
