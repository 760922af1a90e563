"""Retention: its value, what it does not depend on, the coverage of its interval, and when there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from policy_distill.statistics import contrast, interquartile_mean, retention, shows_positive_mean


def returns(student: float, teacher: float, random: float, *, noise: float = 1.0, episodes: int = 40, seed: int = 0) -> list[np.ndarray]:
    """Returns with a part that the episode's seed gives to all three alike."""
    draws = np.random.default_rng(seed)
    shared = draws.normal(0, 3 * noise, episodes)
    return [mean + shared + draws.normal(0, noise, episodes) for mean in (student, teacher, random)]


def test_retention_by_hand():
    # means 70, 90, 10: (70 - 10) / (90 - 10) = 0.75
    kept = retention(np.array([60.0, 80.0]), np.array([90.0, 90.0]), np.array([5.0, 15.0]))
    assert kept.estimate == 0.75
    assert kept.episodes == 2
    assert kept.defined


def test_a_student_that_is_its_teacher_keeps_exactly_everything():
    _, teacher, random = returns(0, 90, 10)
    kept = retention(teacher, teacher, random)
    assert (kept.estimate, kept.low, kept.high) == (1.0, 1.0, 1.0)
    nothing = retention(random, teacher, random)
    assert (nothing.estimate, nothing.low, nothing.high) == (0.0, 0.0, 0.0)


@settings(max_examples=15)
@given(st.floats(0.01, 100), st.floats(-1000, 1000))
def test_the_reward_s_scale_and_origin_do_not_matter(scale, offset):
    arrays_of = returns(80, 90, 10)
    kept, moved = retention(*arrays_of), retention(*(scale * array + offset for array in arrays_of))
    np.testing.assert_allclose([moved.estimate, moved.low, moved.high], [kept.estimate, kept.low, kept.high], rtol=1e-6)


def test_the_order_of_the_episodes_does_not_matter_to_the_estimate():
    arrays_of = returns(80, 90, 10)
    order = np.random.default_rng(0).permutation(40)
    assert retention(*(array[order] for array in arrays_of)).estimate == pytest.approx(retention(*arrays_of).estimate, rel=1e-12)


def test_pairing_takes_out_what_the_seeds_do_to_all_alike():
    draws = np.random.default_rng(1)
    student, teacher, random = returns(80, 90, 10, noise=2.0)
    paired = retention(student, teacher, random)
    unpaired = retention(draws.permutation(student), draws.permutation(teacher), draws.permutation(random))
    assert paired.high - paired.low < 0.6 * (unpaired.high - unpaired.low)


def test_more_confidence_is_a_wider_interval():
    narrow, wide = (retention(*returns(80, 90, 10), confidence=confidence) for confidence in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high
    assert (narrow.confidence, wide.confidence) == (0.5, 0.99)


def test_more_episodes_are_a_narrower_interval():
    few, many = (retention(*returns(80, 90, 10, episodes=episodes)) for episodes in (20, 500))
    assert many.high - many.low < 0.4 * (few.high - few.low)


def test_the_seed_decides_the_interval_and_nothing_else_does():
    arrays_of = returns(80, 90, 10)
    assert retention(*arrays_of, seed=3) == retention(*arrays_of, seed=3)
    other = retention(*arrays_of, seed=4)
    assert other.estimate == retention(*arrays_of, seed=3).estimate
    assert other.low != retention(*arrays_of, seed=3).low


def test_the_interval_is_the_bootstrap_s_percentiles():
    """Against a loop that resamples indices one at a time."""
    student, teacher, random = returns(80, 90, 10, episodes=30)
    draws = np.random.default_rng(5)
    shares = []
    for _ in range(4000):
        rows = draws.integers(0, 30, 30)
        shares.append((student[rows].mean() - random[rows].mean()) / (teacher[rows].mean() - random[rows].mean()))
    kept = retention(student, teacher, random)
    spread = np.std(shares)
    np.testing.assert_allclose([kept.low, kept.high], np.percentile(shares, [2.5, 97.5]), atol=0.15 * spread)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    # the truth is (80 - 10) / (90 - 10) = 0.875; 300 intervals of 90 %: their coverage has a standard error of 0.017
    kept = [retention(*returns(80, 90, 10, noise=8, seed=seed), confidence=0.9, resamples=400) for seed in range(300)]
    assert 0.83 < np.mean([interval.low <= 0.875 <= interval.high for interval in kept]) < 0.96


@pytest.mark.parametrize(("student", "teacher", "random"), [(10, 10, 10), (10, 10.2, 10), (50, 5, 10)])
def test_there_is_no_retention_where_the_teacher_is_no_better_than_chance(student, teacher, random):
    kept = retention(*returns(student, teacher, random, noise=5))
    assert not kept.defined
    assert all(math.isnan(value) for value in (kept.estimate, kept.low, kept.high))


def test_an_interval_is_finite_although_some_samples_have_no_gap():
    """One sample in 729 draws the two last episodes alone, in which teacher and random policy earn the same."""
    teacher, random = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0]), np.zeros(6)
    kept = retention(teacher, teacher, random)
    assert kept.estimate == 1.0
    assert (kept.low, kept.high) == (1.0, 1.0)


def test_a_teacher_that_is_the_random_policy_is_refused():
    same = np.arange(10.0)
    assert not retention(same + 1, same, same).defined


@pytest.mark.parametrize(
    "shapes", [((3,), (4,), (3,)), ((3,), (3,), (4,)), ((1,), (1,), (1,)), ((2, 2), (2, 2), (2, 2)), ((0,), (0,), (0,))]
)
def test_arrays_that_do_not_pair_are_refused(shapes):
    with pytest.raises(ValueError, match="need three arrays of the same E >= 2 returns"):
        retention(*(np.zeros(shape) for shape in shapes))


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


def test_what_a_student_earns_above_a_share_by_hand():
    student, teacher, random = np.array([5.0, 2.0]), np.array([8.0, 6.0]), np.array([0.0, -2.0])
    # three quarters of the way from random policy to teacher: 6 and 4
    np.testing.assert_allclose(contrast(student, teacher, random, 0.75), [-1.0, -2.0])
    np.testing.assert_allclose(contrast(student, teacher, random, 0.0), [5.0, 4.0])
    np.testing.assert_allclose(contrast(student, teacher, random, 1.0), [-3.0, -4.0])


@given(st.floats(-5, 5), st.floats(0, 1), st.integers(0, 99))
def test_a_student_earns_above_a_share_exactly_where_it_keeps_more(student, share, seed):
    of_student, of_teacher, of_random = returns(student, 4.0, -3.0, seed=seed)
    kept = (of_student.mean() - of_random.mean()) / (of_teacher.mean() - of_random.mean())
    above = contrast(of_student, of_teacher, of_random, share).mean()
    assert above == pytest.approx(0, abs=1e-9) or (above > 0) == (kept > share)


@given(arrays.arrays(np.float64, st.integers(2, 30), elements=st.integers(-4, 5)), st.sampled_from([0.9, 0.95, 0.99]))
def test_a_mean_above_zero_is_shown_as_student_s_test_shows_it(values, confidence):
    if values.std() == 0:
        assert shows_positive_mean(values, confidence) == (values[0] > 0)
    else:
        expected = stats.ttest_1samp(values, 0.0, alternative="greater").pvalue < 1 - confidence
        assert shows_positive_mean(values, confidence) == expected


def test_one_value_shows_nothing():
    assert not shows_positive_mean(np.array([1e9]))
