"""What returns tell: chance, claims, training, drawn actions, doing nothing."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from policy_distill.evaluation.teacher_check.claims import Claim
from policy_distill.evaluation.teacher_check.returns import (
    SETTLING_EPISODES,
    Idle,
    against_claim,
    against_drawn,
    against_idle,
    against_training,
    stand,
)
from policy_distill.rollouts.episodes import evaluate
from tests.small_worlds import PUSH, Push

Values = NDArray[np.float64]


def never(episodes: int) -> tuple[Values, Values]:
    raise AssertionError("nothing was left open")


def drawing(mean: float, *, seed: int) -> Callable[[int], tuple[Values, Values]]:
    """Returns of a teacher ``mean`` standard deviations better, and of chance."""
    stream = np.random.default_rng(seed)
    return lambda episodes: (mean + stream.normal(size=episodes), np.zeros(episodes))


def test_a_few_episodes_are_enough_where_they_show_it():
    assert stand(np.array([9.0, 10.0, 11.0]), np.zeros(3), never).word == "better"


def test_a_few_episodes_are_enough_where_they_show_the_opposite():
    found = stand(np.array([-9.0, -10.0, -11.0, -10.0]), np.zeros(4), never)
    assert found.word == "no better"
    finding = found.finding()
    assert finding is not None
    assert (finding.severity, finding.topic) == ("stop", "no_better_than_random")


def test_what_is_left_open_is_played_on():
    asked = []

    def more(episodes: int) -> tuple[Values, Values]:
        asked.append(episodes)
        return np.full(episodes, 1.0), np.zeros(episodes)

    found = stand(np.array([-1.0, 1.0]), np.zeros(2), more)
    assert asked == [SETTLING_EPISODES - 2]
    assert len(found.own) == len(found.random) == SETTLING_EPISODES
    assert (found.word, found.finding()) == ("better", None)


def test_a_weak_teacher_is_hardly_ever_refused_and_a_useless_one_mostly():
    """0.3 standard deviations better: t is 4.2 on average, refused below 0.84; none better: refused in 4 of 5 cases."""
    words = {}
    for gain in (0.3, 0.0):
        plays = [drawing(gain, seed=seed) for seed in range(200)]
        words[gain] = [stand(*few, more).word for more in plays for few in [more(10)]]
    assert words[0.3].count("no better") <= 1
    assert words[0.3].count("better") >= 190
    assert 140 <= words[0.0].count("no better") <= 180


def test_a_teacher_that_rarely_succeeds_is_not_refused():
    """5 % of the episodes earn 1, the first ten earn nothing, chance never does."""
    successes = np.zeros(SETTLING_EPISODES)
    successes[19::20] = 1
    assert stand(successes[:10], np.zeros(10), lambda episodes: (successes[10:], np.zeros(episodes))).word == "better"


def test_between_shown_and_not_even_a_hint_lies_unclear():
    """Of 200 differences with mean 0.1 and standard deviation 1 t is 1.4, between 0.84 and 1.97."""
    own = 0.1 + np.tile([-1.0, 1.0], SETTLING_EPISODES // 2)
    found = stand(own, np.zeros(SETTLING_EPISODES), never)
    assert found.word == "unclear"
    finding = found.finding()
    assert finding is not None
    assert finding.severity == "warn"


@pytest.mark.parametrize(("claimed", "below"), [(14.2, False), (14.3, True), (5.0, False)])
def test_a_return_is_below_a_claim_beyond_three_standard_errors(claimed, below):
    """Here 10 with a standard error of 1, claimed with 4 / sqrt(16) = 1: noise reaches to 3 * sqrt(2) = 4.24."""
    finding = against_claim(np.array([9.0, 11.0]), Claim(claimed, 4.0, 16, "card.json"))
    assert (finding is not None) == below


def test_nothing_is_below_no_claim():
    assert against_claim(np.array([9.0, 11.0]), None) is None


@pytest.mark.parametrize(
    ("own", "missing", "severity"), [(30.0, True, "stop"), (30.0, False, "warn"), (70.0, True, None), (50.0, True, None)]
)
def test_less_than_half_of_what_training_earned_is_far_below(own, missing, severity):
    """Chance earns 0, training earned 100."""
    returns = own + np.tile([-1.0, 1.0], 5)
    finding = against_training(returns, np.zeros(10), Claim(100.0, 9.0, 100, "training"), normalization_missing=missing)
    assert (finding.severity if finding else None) == severity


def test_a_training_that_earned_no_more_than_chance_says_nothing():
    low, random = np.array([-9.0, -9.1]), np.zeros(2)
    assert against_training(low, random, Claim(-1.0, 1.0, 100, "training"), normalization_missing=True) is None
    assert against_training(low, random, None, normalization_missing=True) is None


@pytest.mark.parametrize(("drawn", "worse"), [(20.0, True), (10.3, False), (5.0, False)])
def test_best_actions_that_are_clearly_worse_than_drawn_ones_are_reported(drawn, worse):
    """10 with the best ones; 0.3 more is less than a twentieth of what drawn ones add over chance."""
    own = np.full(8, 10.0)
    finding = against_drawn(own, np.full(8, drawn), np.zeros(8))
    assert (finding is not None) == worse


@pytest.mark.parametrize(("own", "severity"), [(0.0, "stop"), (0.09, "stop"), (0.11, "warn"), (9.9, "warn"), (10.1, None)])
def test_an_agent_that_hardly_reacts_must_earn_more_than_an_idle_one(own, severity):
    """Doing nothing earns 0 with a standard deviation of 1, chance -100: a fact begins at 0.1, enough at 10."""
    idle = np.tile([-1.0, 1.0], 3)
    finding = against_idle(idle + own, idle, np.full(6, -100.0))
    assert (finding.severity if finding else None) == severity


def test_returns_of_other_units_are_no_reason_to_stop():
    """Training remembers 100, in rewards that may have been normalised."""
    own, trained = np.array([30.0, 31.0, 32.0, 33.0]), Claim(100.0, 9.0, 100, "training")
    certain = against_training(own, np.zeros(4), trained, normalization_missing=True)
    guess = against_training(own, np.zeros(4), trained, normalization_missing=True, returns_are_raw=False)
    assert certain is not None
    assert guess is not None
    assert (certain.severity, guess.severity) == ("stop", "warn")
    assert "in normalised rewards, if VecMonitor stood outside" in guess.what


def test_doing_nothing_is_the_action_nearest_to_zero():
    space = gym.spaces.Box(np.array([-2, 1], np.float32), np.array([6, 3], np.float32))
    np.testing.assert_array_equal(Idle(space).act(np.zeros((3, 4))), [[0, 1]] * 3)
    assert evaluate(Idle(Push().action_space), PUSH, [1, 2]).returns.max() < 0  # type: ignore[arg-type]  # the environment takes it
