"""What an environment answers becomes what its spaces say, and what it does wrong is one line."""

from __future__ import annotations

import random
import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from policy_distill.config import EnvironmentFault, RequestError
from policy_distill.environments import border as module
from policy_distill.environments.border import Border, Finite, is_finite, not_finite, own_random_state
from policy_distill.environments.specs import EnvironmentSpec, make
from tests import rude_worlds as rude
from tests.rude_worlds import Polite, spec_of
from tests.small_worlds import BANDIT, DIALS, PUSH, WALK, WALK_LIMIT


def played(env: gym.Env, seed: int, steps: int = rude.LENGTH) -> list[Any]:
    """The answers of an episode: those of its reset, then those of its steps."""
    first = (env.reset(seed=seed)[0], 0.0, False, False)
    return [first, *(env.step(step % 3)[:4] for step in range(steps))]


@pytest.mark.parametrize("kind", [Polite, rude.RewardArray, rude.Flags, rude.FirstWhole, rude.Row, rude.NoSeed, rude.SeedOnly])
def test_answers_are_those_that_stable_baselines3_would_read(kind):
    answers = played(make(spec_of(kind)), 7)
    theirs: Any = DummyVecEnv([Polite if kind in (rude.NoSeed, rude.SeedOnly, rude.RewardArray) else kind])
    theirs.seed(7)
    expected = [theirs.reset()[0], *(theirs.step(np.array([step % 3]))[0][0] for step in range(rude.LENGTH - 1))]
    for (observation, reward, terminated, truncated), like in zip(answers, expected, strict=False):
        assert observation.dtype == np.float32
        assert observation.shape == (2,)
        np.testing.assert_array_equal(observation, like)
        assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
    assert [truncated for *_, truncated in answers] == [False] * rude.LENGTH + [True]


def test_whole_rewards_become_floats():
    rewards = [reward for _, reward, *_ in played(make(spec_of(rude.RewardWhole)), 3)]
    assert all(type(reward) is float and reward == int(reward) for reward in rewards)


@pytest.mark.parametrize(("spec", "dtype"), [(BANDIT, np.int64), (DIALS, np.int64), (EnvironmentSpec("CartPole-v1"), np.float32)])
def test_observations_of_every_space_have_its_dtype_and_shape(spec, dtype):
    env = make(spec)
    for observation in (env.reset(seed=1)[0], env.step(env.action_space.sample())[0]):
        assert observation.dtype == dtype
        assert observation.shape == env.observation_space.shape


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (rude.Column, r"seed 7, step 1: the observation of shape \(2, 1\) does not fit its space of shape \(2,\)"),
        (rude.OldReset, r"seed 7, reset: reset returned no pair.*gym before 0\.26: let reset return \(observation, info\)"),
        (rude.OldStep, r"seed 7, step 1: step returned four values; .*gym before 0\.26"),
        (rude.Breaks, r"seed 7, step 8: step raised AssertionError: the simulator lost its connection; correct the environment"),
        (rude.Scenarios, None),
        (rude.OutOfRange, r"seed 7, step 14: the observation is 4, which is not in its space Discrete\(4\)"),
        (rude.OutOfRangeArray, r"seed 7, step 14: the observation is 4, which is not in its space Discrete\(4\)"),
        (rude.OneOutOfRange, r"seed 7, step 14: the observation is \[4 3\], which is not in its space MultiDiscrete\(\[4 3\]"),
    ],
)
def test_a_fault_names_environment_seed_and_step_in_one_line(kind, says):
    if says is None:
        with pytest.raises(
            EnvironmentFault, match=r"seed 10, reset: reset raised AssertionError: there is no scenario 10; each episode has"
        ):
            make(spec_of(kind)).reset(seed=10)
        return
    with pytest.raises(EnvironmentFault, match=says) as caught:
        played(make(spec_of(kind)), 7)
    assert str(caught.value).startswith(f"tests/{kind.__name__}-v0, seed 7, ")
    assert "\n" not in str(caught.value)


def test_a_reward_that_is_not_finite_is_a_fault():
    env = make(spec_of(rude.NanReward))
    seed = next(seed for seed in range(100) if env.reset(seed=seed)[0][1] > 0.5)
    with pytest.raises(EnvironmentFault, match=rf"seed {seed}, step 13: the reward is nan"):
        played(env, seed)


def test_a_policy_that_answers_with_nan_is_blamed_and_not_the_environment():
    env = make(PUSH)
    env.reset(seed=0)
    with pytest.raises(EnvironmentFault, match=r"step 1: the policy returned \[nan 0\.?5?\], and then step raised AssertionError"):
        env.step(np.array([np.nan, 0.5]))


def test_an_episode_without_a_seed_is_counted_from_the_last_that_had_one():
    env = make(spec_of(rude.Breaks))
    env.reset(seed=7)
    env.reset()
    for _ in range(7):
        env.step(0)
    with pytest.raises(EnvironmentFault, match=r"seed 7 and 1 episodes later, step 8"):
        env.step(0)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (rude.Argument, r"cannot be made without its argument 'size': give --env-kwargs"),
        (rude.FileMissing, r"cannot be made: its constructor raised FileNotFoundError: .*robot\.urdf"),
    ],
)
def test_an_environment_that_cannot_be_made_is_a_wrong_request(kind, says):
    with pytest.raises(RequestError, match=says):
        make(spec_of(kind))


def test_the_time_limit_is_counted_as_gymnasium_counts_it():
    env, plain = make(WALK), gym.make(WALK.id)
    assert "TimeLimit" not in str(env)
    assert env.has_time_limit
    env.reset(seed=3)
    plain.reset(seed=3)
    stay = [env.step(1)[2:4] for _ in range(WALK_LIMIT)]
    assert stay == [plain.step(1)[2:4] for _ in range(WALK_LIMIT)]
    assert stay[-1] == (False, True)
    env.reset(seed=3)
    assert env.step(1)[2:4] == (False, False)


def test_a_time_limit_beneath_other_wrappers_is_known(tmp_path):
    env = make(EnvironmentSpec("CartPole-v1", wrappers=(("TimeFeatureWrapper", {}),)))
    assert env.has_time_limit
    assert "TimeLimit" in str(env)
    assert not make(spec_of(Polite)).has_time_limit
    assert make(EnvironmentSpec("tests/Polite-v0", max_episode_steps=9)).has_time_limit


def test_an_episode_that_never_ends_is_given_up_with_the_option(monkeypatch):
    monkeypatch.setattr(module, "NEVER_ENDING", 50)
    env = make(spec_of(rude.Endless))
    env.reset(seed=1)
    for _ in range(49):
        env.step(0)
    with pytest.raises(EnvironmentFault, match=r"seed 1, step 50: there is no time limit.*--max-episode-steps"):
        env.step(0)


def test_each_episode_seeds_the_global_generators():
    env = make(spec_of(rude.DrawsGlobally))
    with own_random_state():
        first, other = env.reset(seed=5)[0], env.reset(seed=6)[0]
        np.random.seed(99)  # noqa: NPY002
        random.seed(99)
        torch.manual_seed(99)
        np.testing.assert_array_equal(env.reset(seed=5)[0], first)
    assert not np.array_equal(first, other)


def test_the_caller_s_generators_go_on_as_if_nothing_had_been_drawn():
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002

    with own_random_state():
        module.seed_global_generators(3)
        expected = draws()
        module.seed_global_generators(3)
        with own_random_state():
            module.seed_global_generators(4)
            assert draws() != expected
        assert draws() == expected


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_one_number_among_many_that_is_not_finite_is_found(wrong, dtype):
    rows = np.full((16, 3, 2), np.finfo(dtype).max, dtype)
    all_finite = Finite(rows)
    assert all_finite(rows)
    rows[5, 2, 1] = rows[9, 0, 0] = wrong
    assert not all_finite(rows)
    assert all_finite.first_wrong() == 5


def test_whole_numbers_are_finite():
    rows = np.zeros((4, 2), np.int64)
    assert Finite(rows)(rows)


class Parts(Polite):
    """Observes a Dict; ``change`` is what it does wrong."""

    observation_space = gym.spaces.Dict({"goal": gym.spaces.Discrete(5), "place": gym.spaces.Box(-1, 1, (1, 2), np.float32)})

    def __init__(self, **change: Any) -> None:
        self.change = change

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observation, info = super().reset(seed=seed)
        return {"place": observation.astype(np.float64), "goal": 3}, info

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        seen = {"place": observation.tolist(), "goal": np.float32(2.0), **self.change}
        return {key: value for key, value in seen.items() if value is not None}, *rest


def test_the_parts_of_a_dict_are_those_that_stable_baselines3_would_read():
    answers = played(Border(Parts(), "parts"), 7)
    theirs: Any = DummyVecEnv([Parts])
    theirs.seed(7)
    expected = [theirs.reset(), *(theirs.step(np.array([step % 3]))[0] for step in range(rude.LENGTH - 1))]
    for (observation, *_), like in zip(answers, expected, strict=False):
        assert list(observation) == ["goal", "place"]  # the space's order
        for key, part in observation.items():
            assert (part.dtype, part.shape) == (Parts.observation_space[key].dtype, Parts.observation_space[key].shape)
            np.testing.assert_array_equal(part, like[key][0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"goal": None}, "seed 7, step 1: the observation lacks goal; make observation and space match"),
        ({"more": 1, "again": 2}, "the observation has again, more, which its space has not"),
        ({"goal": 5}, r"the observation's 'goal' is 5, which is not in its space Discrete\(5\)"),
        ({"goal": np.nan}, "the observation's 'goal' is nan, but its space holds whole numbers"),
        ({"place": np.zeros(3)}, r"the observation's 'place' of shape \(3,\) does not fit its space of shape \(1, 2\)"),
    ],
)
def test_a_fault_names_the_part_of_a_dict(change, says):
    env = Border(Parts(**change), "parts")
    env.reset(seed=7)
    with pytest.raises(EnvironmentFault, match=says) as caught:
        env.step(1)
    assert "\n" not in str(caught.value)


def test_an_array_in_the_place_of_a_dict_is_a_fault():
    env = Border(gym.wrappers.TransformObservation(Parts(), lambda _: np.zeros(2), Parts.observation_space), "parts")
    with pytest.raises(EnvironmentFault, match="the observation is a ndarray, but its space is a Dict of goal, place"):
        env.reset(seed=7)


def test_the_first_row_with_a_part_that_is_not_finite_is_found_and_the_part_named():
    rows: dict[str, np.ndarray] = {"goal": np.zeros((6, 1), np.int64), "place": np.zeros((6, 2), np.float32), "speed": np.zeros(6)}
    all_finite = Finite(rows)
    assert all_finite(rows)
    rows["place"][4, 1], rows["speed"][2] = np.nan, np.inf
    assert not all_finite(rows)
    assert all_finite.first_wrong() == 2
    rows["speed"][2] = 0.0
    assert not all_finite(rows)
    assert all_finite.first_wrong() == 4
    fault = not_finite(Border(Parts(), "parts"), {key: part[4] for key, part in rows.items()})
    assert "the observation's 'place': its number 1 is nan" in str(fault)
    assert not is_finite({key: part[4] for key, part in rows.items()})
    assert is_finite({key: part[3] for key, part in rows.items()})


def test_border_wraps_what_is_not_from_make():
    env = Border(gym.make("CartPole-v1"), "mine")
    assert env.reset(seed=1)[0].dtype == np.float32
    assert re.match("mine, seed 1, reset", env.where())
