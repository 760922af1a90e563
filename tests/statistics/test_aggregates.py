"""Aggregates by hand and against scipy; intervals against their coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from policy_distill.statistics import (
    geometric_mean,
    interquartile_mean,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    retention,
    stratified_bootstrap,
    two_level_bootstrap,
)

SCORES = [np.array([0.5, 1.0, 1.5]), np.array([0.8, 0.9, 1.0])]


@given(st.integers(1, 12).flatmap(lambda quarter: arrays.arrays(np.float64, 4 * quarter, elements=st.floats(-1e3, 1e3))))
def test_the_interquartile_mean_of_quarters_is_the_trimmed_mean(values):
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25), rel=1e-9, abs=1e-9)


def test_the_interquartile_mean_weighs_cut_values_by_hand():
    # five values of weight 0.2; 0.25 from each end leaves weights 0, 0.15, 0.2, 0.15, 0: (0.15 * 2 + 0.2 * 3 + 0.15 * 7) / 0.5 = 3.9
    assert interquartile_mean(np.array([7.0, 100.0, 2.0, 3.0, -50.0])) == pytest.approx(3.9)
    # two values: half of each; one value: itself
    assert interquartile_mean(np.array([1.0, 2.0])) == pytest.approx(1.5)
    assert interquartile_mean(np.array([4.0])) == pytest.approx(4.0)


@given(arrays.arrays(np.float64, st.integers(1, 15), elements=st.floats(-1e3, 1e3)), st.floats(0.1, 10), st.floats(-100, 100))
def test_the_interquartile_mean_moves_with_its_values(values, scale, offset):
    assert interquartile_mean(scale * values + offset) == pytest.approx(scale * interquartile_mean(values) + offset, rel=1e-6, abs=1e-6)
    assert values.min() - 1e-9 <= interquartile_mean(values) <= values.max() + 1e-9


def test_the_geometric_mean_by_hand_and_what_it_refuses():
    assert geometric_mean(np.array([2.0, 8.0])) == pytest.approx(4)
    assert geometric_mean(np.array([0.5, 2.0])) == pytest.approx(1)
    assert geometric_mean(np.array([0.0, 100.0])) == 0
    with pytest.raises(ValueError, match="values >= 0, the smallest is -1"):
        geometric_mean(np.array([1.0, -1.0]))


def test_the_optimality_gap_by_hand():
    # below 1: 0.5, 0, 0, 0.2, 0.1, 0 over six scores
    assert optimality_gap(np.concatenate(SCORES)) == pytest.approx(0.8 / 6)
    assert optimality_gap(np.array([3.0]), target=4.0) == 1


def test_the_performance_profile_by_hand():
    # above 0.85: two of three, two of three; above 1: one of three, none; each task counts alike though one has two runs more
    np.testing.assert_allclose(performance_profile(SCORES, np.array([0.0, 0.85, 1.0, 2.0])), [1, 2 / 3, 1 / 6, 0])
    np.testing.assert_allclose(performance_profile([np.array([1.0, 1, 1, 0]), np.array([0.0, 0])], np.array([0.5])), [3 / 8])


@given(*[arrays.arrays(np.float64, st.integers(1, 6), elements=st.integers(-2, 2))] * 2)
def test_the_probability_of_improvement_is_mann_whitney_s(first, second):
    expected = stats.mannwhitneyu(first, second).statistic / (len(first) * len(second)) if len({*first, *second}) > 1 else 0.5
    assert probability_of_improvement([first], [second]) == pytest.approx(expected)
    assert probability_of_improvement([first, first], [second, first]) == pytest.approx((expected + 0.5) / 2)


def test_the_stratified_bootstrap_resamples_each_task_by_itself():
    """Runs within a task are alike: whatever is drawn, half of the scores are 0 and half are 1."""
    found = stratified_bootstrap([np.zeros(3), np.ones(3)], lambda values: float(values.mean()))
    assert (found.low, found.estimate, found.high) == (0.5, 0.5, 0.5)
    spread = stratified_bootstrap(SCORES, interquartile_mean, confidence=0.9)
    assert spread.low < spread.estimate == interquartile_mean(np.concatenate(SCORES)) < spread.high
    assert spread.confidence == 0.9
    assert spread == stratified_bootstrap(SCORES, interquartile_mean, confidence=0.9)
    many = [np.random.default_rng(0).normal(size=10)] * 2
    assert stratified_bootstrap(many, interquartile_mean, seed=1).low != stratified_bootstrap(many, interquartile_mean).low


def test_the_stratified_bootstrap_covers_the_mean():
    draws = np.random.default_rng(0)
    truth, hits = 0.9, []
    for seed in range(200):
        scores = [mean + draws.normal(0, 0.1, 20) for mean in (0.8, 0.9, 1.0)]
        found = stratified_bootstrap(scores, lambda values: float(values.mean()), confidence=0.9, seed=seed, resamples=400)
        hits.append(found.low <= truth <= found.high)
    assert 0.83 < np.mean(hits) < 0.96  # standard error 0.021


def test_one_run_of_a_task_says_nothing_of_others():
    with pytest.raises(ValueError, match="at least two runs"):
        stratified_bootstrap([np.ones(2), np.ones(1)], interquartile_mean)
    with pytest.raises(ValueError, match="at least two runs"):
        stratified_bootstrap([], interquartile_mean)


def method(draws: np.random.Generator, *, seeds: int, episodes: int, between: float) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Students of one method: each keeps 0.9 plus what its training seed makes of it."""
    runs = []
    for _ in range(seeds):
        kept = 0.9 + draws.normal(0, between)
        runs.append((kept + draws.normal(0, 0.1, episodes), 1 + draws.normal(0, 0.1, episodes), draws.normal(0, 0.1, episodes)))
    return runs


def test_a_claim_about_a_method_covers_its_mean_though_each_student_is_known_well():
    """Intervals that know of episodes alone hold the method's mean a third of the time."""
    draws = np.random.default_rng(1)
    nested, flat = [], []
    for seed in range(60):
        runs = method(draws, seeds=5, episodes=100, between=0.05)
        found = two_level_bootstrap(runs, seed=seed, resamples=500)
        nested.append(found.low <= 0.9 <= found.high)
        one = retention(*runs[0])
        flat.append(one.low <= 0.9 <= one.high)
    assert np.mean(nested) > 0.85
    assert np.mean(flat) < 0.65


def test_the_estimate_of_a_method_is_the_mean_over_its_students():
    runs = method(np.random.default_rng(2), seeds=3, episodes=50, between=0.1)
    found = two_level_bootstrap(runs)
    assert found.estimate == pytest.approx(np.mean([retention(*returns).estimate for returns in runs]))
    assert found.low < found.estimate < found.high


def test_a_method_needs_two_training_seeds_and_teachers_that_do_something():
    runs = method(np.random.default_rng(3), seeds=2, episodes=10, between=0.0)
    with pytest.raises(ValueError, match="at least two training seeds, got 1"):
        two_level_bootstrap(runs[:1])
    student, teacher, random = runs[0]
    with pytest.raises(ValueError, match="no more than its random policy"):
        two_level_bootstrap([runs[1], (student, random, teacher)])
