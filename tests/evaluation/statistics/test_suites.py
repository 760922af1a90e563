"""What a suite shows as a whole: figures by hand, and intervals that are as wide as episodes and teachers make them."""

from __future__ import annotations

import numpy as np
import pytest

from policy_distill.evaluation.statistics import Aggregate, suite_aggregates
from policy_distill.evaluation.statistics.aggregates import wins
from policy_distill.evaluation.statistics.suites import Returns, basic_ends

NAMES = ["interquartile_mean", "geometric_mean", "optimality_gap", "probability_of_improvement"]


def constant(*retentions: float) -> list[Returns]:
    """Teachers whose students kept exactly so much in each episode."""
    return [(np.full(20, 10 * kept), np.full(20, 10.0), np.zeros(20)) for kept in retentions]


def found(*retentions: float, confidence: float = 0.95) -> dict[str, Aggregate]:
    return suite_aggregates(np.array(retentions), constant(*retentions), confidence=confidence)


def noisy(kept: float, *, deviation: float = 5.0, episodes: int = 25, seed: int = 0) -> Returns:
    """A teacher that always earns 10; of its student's returns the mean is exactly ``10 * kept``."""
    student = np.random.default_rng(seed).normal(0, deviation, episodes)
    return student - student.mean() + 10 * kept, np.full(episodes, 10.0), np.zeros(episodes)


def test_the_figures_by_hand():
    values = found(0.25, 1.0, 4.0, 1.0)
    assert list(values) == NAMES
    assert values["interquartile_mean"].estimate == pytest.approx(1.0)
    assert values["geometric_mean"].estimate == pytest.approx(1.0)  # a quarter and four times cancel
    assert values["optimality_gap"].estimate == pytest.approx(0.75 / 4)  # four times makes nothing good
    assert values["probability_of_improvement"].estimate == pytest.approx((0 + 0.5 + 1 + 0.5) / 4)


def test_a_student_that_keeps_nothing_makes_the_geometric_mean_nothing():
    for nothing in (0.0, -0.5):
        assert found(nothing, 1.0)["geometric_mean"].estimate == 0
        assert found(nothing, 1.0)["geometric_mean"].over_episodes == (0, 0)


def test_where_nothing_varies_no_interval_is_wide():
    for aggregate in found(0.5, 0.5, 0.5).values():
        assert aggregate.over_episodes == pytest.approx((aggregate.estimate, aggregate.estimate))
        assert aggregate.over_teachers == pytest.approx((aggregate.estimate, aggregate.estimate))


def test_teachers_that_differ_widen_the_interval_over_teachers_alone():
    mean = found(0.0, 1.0)["interquartile_mean"]
    assert mean.over_episodes == pytest.approx((0.5, 0.5))
    assert mean.over_teachers == (0.0, 1.0)  # of two teachers one is drawn twice in half of the samples
    assert found(0.0, 1.0, confidence=0.4)["interquartile_mean"].over_teachers == pytest.approx((0.5, 0.5))


def test_one_teacher_says_nothing_of_others():
    only = found(0.5)["optimality_gap"]
    assert only.over_episodes == pytest.approx((0.5, 0.5))
    assert only.over_teachers is None


def test_episodes_that_differ_widen_both_intervals():
    runs = [noisy(0.5, seed=seed) for seed in range(8)]
    values = suite_aggregates(np.full(8, 0.5), runs)
    # a retention's standard error is 5 / sqrt(25) / 10 = 0.1; of a mean of eight 0.1 / sqrt(8), of the interquartile mean a little more
    for low, high in (values["interquartile_mean"].over_episodes, values["interquartile_mean"].over_teachers):  # type: ignore[misc]
        assert 0.40 < low < 0.5 - 1.5 * 0.1 / 8**0.5
        assert 0.5 + 1.5 * 0.1 / 8**0.5 < high < 0.60
    low, high = values["probability_of_improvement"].over_episodes  # type: ignore[misc]
    expected = np.mean([wins(student, teacher).mean() for student, teacher, _ in runs])
    assert low < expected < high
    assert values["probability_of_improvement"].estimate == pytest.approx(expected)
    assert suite_aggregates(np.full(8, 0.5), runs) == values
    assert suite_aggregates(np.full(8, 0.5), runs, seed=1) != values


def test_twice_the_episodes_of_one_teacher_do_not_outweigh_another():
    """Strata are drawn by themselves: teachers count alike."""
    better, worse = constant(1.5)[0], constant(0.5)[0]
    many = tuple(np.tile(array, 10) for array in better)
    chance = suite_aggregates(np.array([1.5, 0.5]), [many, worse])["probability_of_improvement"]  # type: ignore[list-item]
    assert (chance.estimate, chance.over_episodes) == (0.5, (0.5, 0.5))


def test_a_student_that_acts_as_its_teacher_is_no_improvement_in_any_sample():
    """Both are drawn on the same seeds: of equal returns just half of the pairs are won, whichever seeds come."""
    same = np.random.default_rng(0).normal(10, 3, 40)
    chance = suite_aggregates(np.ones(1), [(same, same, np.zeros(40))])["probability_of_improvement"]
    assert chance.estimate == 0.5
    assert chance.over_episodes == pytest.approx((0.5, 0.5))


def test_without_returns_the_estimates_stand_alone():
    values = suite_aggregates(np.array([0.5, 1.5]), None)
    assert values == {
        "interquartile_mean": Aggregate(1.0),
        "geometric_mean": Aggregate(pytest.approx(0.75**0.5)),  # type: ignore[arg-type]
        "optimality_gap": Aggregate(0.25),
    }


def test_samples_whose_teacher_is_no_better_than_chance_are_left_out():
    """Five episodes in six the teacher earns nothing: in some samples it earns nothing at all, and retention is not defined."""
    teacher = np.array([0.0, 0, 0, 0, 0, 6])
    values = suite_aggregates(np.ones(1), [(teacher.copy(), teacher, np.zeros(6))])
    assert values["interquartile_mean"].over_episodes == pytest.approx((1.0, 1.0))


def test_percentiles_are_reflected_and_cut():
    resampled = np.linspace(0.2, 0.6, 401)  # percentiles 2.5 and 97.5: 0.21 and 0.59
    assert basic_ends(0.3, resampled, (-np.inf, np.inf)) == pytest.approx((0.01, 0.39))
    assert basic_ends(0.25, resampled, (0.0, 0.2)) == pytest.approx((0.0, 0.2))
    assert basic_ends(0.3, resampled, (-np.inf, np.inf), confidence=0.5) == pytest.approx((0.1, 0.3))
