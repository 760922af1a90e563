"""Returns: known ones are found, and they do not depend on what runs beside an episode."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from policy_distill.config import EnvironmentFault
from policy_distill.environments import border
from policy_distill.environments.specs import EnvironmentSpec, make
from policy_distill.rollouts.episodes import Episodes, alike, evaluate, evaluation_seeds, merge
from policy_distill.rollouts.workers import Rollouts
from tests import rude_worlds as rude
from tests.small_worlds import (
    BANDIT,
    PUSH,
    WALK,
    WALK_LIMIT,
    Push,
    Walk,
    bandit_teacher,
    push_teacher,
    random_student,
    walk_best,
    walk_teacher,
)

SEEDS = list(range(40))


class Constant:
    """Acts alike everywhere and remembers what it was asked about."""

    def __init__(self, action: object) -> None:
        self.action = np.asarray(action)
        self.asked: list[np.ndarray] = []

    def act(self, observations: np.ndarray) -> np.ndarray:
        self.asked.append(observations.copy())
        return np.repeat(self.action[None], len(observations), axis=0)


def distances(seeds: list[int]) -> np.ndarray:
    env = make(WALK)
    starts = np.stack([env.reset(seed=seed)[0] for seed in seeds])
    return np.abs(starts[:, 0] - starts[:, 1])


def test_the_best_policy_earns_the_known_best_return():
    episodes = evaluate(walk_teacher(), WALK, SEEDS)
    np.testing.assert_array_equal(episodes.returns, -distances(SEEDS))
    np.testing.assert_array_equal(episodes.lengths, distances(SEEDS))
    np.testing.assert_array_equal(episodes.seeds, SEEDS)
    assert episodes.env_steps == distances(SEEDS).sum()
    np.testing.assert_allclose(evaluate(push_teacher(), PUSH, SEEDS).returns, 0, atol=1e-5)


def test_an_episode_that_never_ends_is_cut_at_the_limit():
    episodes = evaluate(Constant(1), WALK, SEEDS[:5])
    np.testing.assert_array_equal(episodes.returns, [-WALK_LIMIT] * 5)
    np.testing.assert_array_equal(episodes.lengths, [WALK_LIMIT] * 5)


@pytest.mark.parametrize("world", ["walk", "push"])
def test_returns_do_not_depend_on_how_many_episodes_run_side_by_side(world):
    spec, spaces = (WALK, Walk()) if world == "walk" else (PUSH, Push())
    student = random_student(spaces.observation_space, spaces.action_space, hidden_sizes=(32, 32))
    runs = [evaluate(student, spec, SEEDS, num_envs=num_envs) for num_envs in (1, 4, 16, 32)]
    assert np.ptp(runs[0].returns) > 0
    for run in runs[1:]:
        np.testing.assert_array_equal(run.returns, runs[0].returns)
        np.testing.assert_array_equal(run.lengths, runs[0].lengths)


def test_each_return_belongs_to_its_seed():
    student = random_student(Push.observation_space, Push().action_space)
    together = evaluate(student, PUSH, SEEDS, num_envs=8)
    for index in (0, 7, 39):
        assert evaluate(student, PUSH, [SEEDS[index]]).returns[0] == together.returns[index]
    backwards = evaluate(student, PUSH, SEEDS[::-1], num_envs=8)
    np.testing.assert_array_equal(backwards.returns[::-1], together.returns)


@pytest.mark.parametrize("spec", [WALK, PUSH])
def test_the_random_policy_is_reproducible_and_does_not_depend_on_the_others(spec):
    runs = [evaluate(None, spec, SEEDS, num_envs=num_envs) for num_envs in (1, 4, 32)]
    assert np.ptp(runs[0].returns) > 0
    for run in runs[1:]:
        np.testing.assert_array_equal(run.returns, runs[0].returns)


def test_the_random_policy_does_not_draw_what_the_environment_drew():
    """Seeded alike, action space and environment draw the same numbers, and chance would name the right one of four each time."""
    mean = evaluate(None, BANDIT, list(range(400))).returns.mean()
    assert mean == pytest.approx(0.25, abs=5 * np.sqrt(0.25 * 0.75 / 400))


@pytest.mark.parametrize("num_envs", [1, 3, 20])
def test_a_policy_of_a_user_s_own_is_asked_about_one_observation_at_a_time(num_envs):
    """Nobody knows what its batches would do to a row."""
    policy = Constant(1)
    evaluate(policy, WALK, SEEDS[:20], num_envs=num_envs)
    assert {asked.shape for asked in policy.asked} == {(1, 2)}


def test_discrete_observations_that_begin_elsewhere_can_be_evaluated():
    student = random_student(gym.spaces.Discrete(4, start=3), gym.spaces.Discrete(4))
    policy = Constant(0)
    policy.act = lambda observations: student.act(observations + 3)  # type: ignore[method-assign]
    assert evaluate(policy, BANDIT, SEEDS).lengths.tolist() == [1] * 40


def test_environments_that_are_given_are_used_again_and_filled_up():
    envs: list[gym.Env] = []
    first = evaluate(walk_teacher(), WALK, SEEDS, num_envs=2, envs=envs)
    made = list(envs)
    assert len(made) == 2
    second = evaluate(walk_teacher(), WALK, SEEDS, num_envs=4, envs=envs)
    assert envs[:2] == made
    assert len(envs) == 4
    np.testing.assert_array_equal(first.returns, second.returns)


def test_agreement_is_the_share_of_visited_states():
    policy = walk_teacher()
    assert evaluate(policy, WALK, SEEDS, reference=policy).agreement == 1.0
    assert evaluate(policy, WALK, SEEDS).agreement is None
    # always right agrees where the target lies to the right: in all steps of those episodes
    starts = np.stack([make(WALK).reset(seed=seed)[0] for seed in SEEDS])
    to_the_right = walk_best(starts) == 2
    found = evaluate(policy, WALK, SEEDS, reference=Constant(2), num_envs=7).agreement
    assert found == pytest.approx(distances(SEEDS)[to_the_right].sum() / distances(SEEDS).sum())


def test_alike_is_equal_or_within_a_twentieth_of_the_range():
    discrete = gym.spaces.MultiDiscrete([3, 3])
    assert alike(np.array([[1, 2], [1, 2]]), np.array([[1, 2], [1, 1]]), discrete).tolist() == [True, False]
    assert alike(np.array([1, 2]), np.array([1, 1]), gym.spaces.Discrete(3)).tolist() == [True, False]
    # of [-2, 6] and [0, 1]: 0.4 and 0.05
    space = Push().action_space
    first = np.array([[0, 0.5], [0, 0.5], [0, 0.5]])
    assert alike(first, first + np.array([[0.39, -0.049], [0.41, 0], [0, 0.051]]), space).tolist() == [True, False, False]


def test_the_bandit_s_teacher_is_always_right():
    assert evaluate(bandit_teacher(), BANDIT, SEEDS).returns.tolist() == [1.0] * 40


def test_seeds_for_choosing_and_for_the_figure_do_not_meet():
    final, validation = evaluation_seeds("final", 10_000), evaluation_seeds("validation", 10_000)
    assert len(set(final)) == len(set(validation)) == 10_000
    assert not set(final) & set(validation)
    assert evaluation_seeds("final", 10) == final[:10]


def test_seeds_of_one_purpose_end_where_those_of_the_next_begin():
    assert max(evaluation_seeds("final", 1_000_000)) < min(evaluation_seeds("validation", 1))
    with pytest.raises(ValueError, match=r"1,000,000 seeds for final, not 1,000,001"):
        evaluation_seeds("final", 1_000_001)


def test_an_unknown_purpose_has_no_seeds():
    with pytest.raises(KeyError, match="training"):
        evaluation_seeds("training", 1)


def test_merging_sorts_by_seed_and_weighs_agreement_by_steps():
    one = Episodes(np.array([5, 1]), np.array([50.0, 10.0]), np.array([3, 1]), 0.5)
    other = Episodes(np.array([3]), np.array([30.0]), np.array([12]), 1.0)
    merged = merge([one, other])
    assert merged.seeds.tolist() == [1, 3, 5]
    assert merged.returns.tolist() == [10.0, 30.0, 50.0]
    assert merged.lengths.tolist() == [1, 12, 3]
    # (0.5 * 4 + 1 * 12) / 16 = 0.875
    assert merged.agreement == 0.875
    assert merge([Episodes(np.array([1]), np.array([1.0]), np.array([1]))]).agreement is None


def test_merged_agreement_is_that_of_one_worker_bit_for_bit():
    """The sum of products of shares and steps differs from it in the last digit, in one of these cases."""
    draws = np.random.default_rng(0)
    for _ in range(400):
        steps = draws.integers(1, 2000, 3)
        agreed = draws.integers(0, steps + 1)
        parts = [
            Episodes(np.array([index]), np.zeros(1), steps[index : index + 1], int(agreed[index]) / int(steps[index])) for index in range(3)
        ]
        assert merge(parts).agreement == int(agreed.sum()) / int(steps.sum())


class Leaver(gym.Env):
    """Ends an episode with an odd seed after six steps, and another after sixty."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = 6 if seed is None or seed % 2 else 60
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return np.zeros(1, np.float32), 1.0, self.left == 0, False, {}


@pytest.fixture
def leaver():
    gym.register("tests/Leaver-v0", Leaver)  # type: ignore[arg-type]
    yield EnvironmentSpec("tests/Leaver-v0")
    del gym.registry["tests/Leaver-v0"]


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_episode_without_end_is_an_error_wherever_it_is_played(leaver, monkeypatch, num_envs, workers):
    short, mixed = list(range(1, 41, 2)), [1, 3, 5, 7, 9, 2, 11]
    monkeypatch.setattr(border, "NEVER_ENDING", 7)  # far fewer than all steps together
    with Rollouts(leaver, None, num_envs=2, seed=0, workers=workers) as rollouts:
        assert rollouts.evaluate("random", short, num_envs=num_envs).lengths.tolist() == [6] * len(short)
        with pytest.raises(EnvironmentFault, match=r"tests/Leaver-v0, seed 2, step 7: there is no time limit"):
            rollouts.evaluate("random", mixed, num_envs=num_envs)
    limited = dataclasses.replace(leaver, max_episode_steps=50)
    assert evaluate(None, limited, mixed, num_envs=num_envs).lengths.tolist() == [6, 6, 6, 6, 6, 50, 6]


# Environments that are not written by the book.


def right(observations: np.ndarray) -> np.ndarray:
    """Towards the goal."""
    return (np.sign(observations[:, 1] - observations[:, 0]) + 1).astype(np.int64)


class Mover:
    """Acts by ``right``, and remembers what it was asked about."""

    def __init__(self) -> None:
        self.asked: list[np.ndarray] = []

    def act(self, observations: np.ndarray) -> np.ndarray:
        self.asked.append(observations.copy())
        return right(observations)


@pytest.mark.parametrize("kind", [rude.RewardArray, rude.Flags, rude.Row, rude.NoSeed, rude.SeedOnly])
def test_answers_in_another_form_are_the_same_episodes(kind):
    polite = evaluate(Mover(), rude.spec_of(rude.Polite), SEEDS)
    np.testing.assert_array_equal(evaluate(Mover(), rude.spec_of(kind), SEEDS).returns, polite.returns)


def test_a_first_observation_of_whole_numbers_does_not_cut_the_later_ones():
    policy = Mover()
    found = evaluate(policy, rude.spec_of(rude.FirstWhole), SEEDS[:5])
    assert {rows.dtype for rows in policy.asked} == {np.dtype(np.float32)}
    later = np.concatenate(policy.asked[1:])
    assert (later != later.round()).any()
    env = make(rude.spec_of(rude.FirstWhole))
    for seed, value in zip(SEEDS, found.returns, strict=False):
        observation, total, over = env.reset(seed=seed)[0], 0.0, False
        while not over:
            observation, reward, _, over, _ = env.step(right(observation[None])[0])
            total += reward
        assert value == total


def test_nan_in_an_observation_stops_with_seed_and_step():
    with pytest.raises(EnvironmentFault, match=r"^tests/NanObservation-v0, seed 0, step 13: the observation's number 1 is nan"):
        evaluate(Mover(), rude.spec_of(rude.NanObservation), SEEDS)


def test_infinity_in_a_first_observation_stops_with_its_seed():
    env = make(rude.spec_of(rude.Polite))
    seed = next(seed for seed in SEEDS if env.reset(seed=seed)[0][1] >= 0.5)
    with pytest.raises(EnvironmentFault, match=rf"seed {seed}, reset: the observation's number 0 is inf"):
        evaluate(None, rude.spec_of(rude.InfiniteObservation), [seed])


def test_an_environment_that_draws_globally_in_its_resets_is_repeatable_and_leaves_the_caller_s_draws():
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    returns = [evaluate(None, rude.spec_of(rude.DrawsGlobally), SEEDS, num_envs=count).returns for count in (1, 16)]
    np.testing.assert_array_equal(returns[0], returns[1])
    assert len(np.unique(returns[0])) == len(SEEDS)
    assert np.random.random() == expected  # noqa: NPY002
