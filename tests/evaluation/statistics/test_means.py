"""Tests of a mean: by hand, against scipy, and against what they guard from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from policy_distill.evaluation.statistics import contrast, episodes_to_show, shows_positive_mean
from policy_distill.evaluation.statistics.means import guarded_statistic, skewness, t_statistic, without_skewness
from tests.evaluation.statistics.test_intervals import returns


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


def test_how_many_values_show_a_mean_by_hand():
    # 1.645 + 0.842 = 2.486 standard deviations of the mean; mean 2, standard deviation 2.944: (2.486 * 2.944 / 2)^2 = 13.4
    assert episodes_to_show(np.array([-1.0, 5.0, 0.0, 4.0])) == 14
    assert episodes_to_show(np.array([-1.0, 5.0, 0.0, 4.0]), power=0.5) == 6  # (1.645 * 2.944 / 2)^2 = 5.9
    assert episodes_to_show(np.array([-1.0, 5.0, 0.0, 4.0]), 0.8) == 7  # (2 * 0.842 * 2.944 / 2)^2 = 6.1
    assert episodes_to_show(np.array([-1.0, 1.0])) is episodes_to_show(np.array([3.0])) is None
    assert episodes_to_show(np.array([2.0, 2.0])) == 0


def test_so_many_show_it_about_as_often_as_was_asked_for():
    generator = np.random.default_rng(0)
    count = episodes_to_show(np.array([0.3 - 0.5**0.5, 0.3 + 0.5**0.5]))  # mean 0.3, standard deviation 1
    assert count is not None
    shown = [shows_positive_mean(generator.normal(0.3, 1.0, count)) for _ in range(4000)]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.03)


@given(arrays.arrays(np.float64, (3, 12), elements=st.integers(-4, 5)))
def test_t_statistic_and_skewness_are_scipy_s(values):
    varying = values[values.std(axis=1) > 0]
    if len(varying):
        np.testing.assert_allclose(t_statistic(varying), stats.ttest_1samp(varying, 0.0, axis=1).statistic, atol=1e-12)
        np.testing.assert_allclose(skewness(varying), stats.skew(varying, axis=1), atol=1e-12)


def test_values_that_do_not_vary():
    constant = np.array([[2.0] * 5, [0.0] * 5, [-0.1] * 5])
    assert t_statistic(constant).tolist() == [np.inf, 0.0, -np.inf]
    assert skewness(constant).tolist() == [0, 0, 0]
    assert guarded_statistic(np.zeros(5), 0.0) == 0
    assert without_skewness(np.array([np.inf, -np.inf]), np.array([1.0, -1.0]), 9).tolist() == [np.inf, -np.inf]


def test_hall_s_transformation_by_hand():
    # a = 1.2 / (3 * 2) = 0.2: 3 + 0.2 * 9 + 0.04 * 27 / 3 + 0.1 = 5.26
    assert without_skewness(np.array(3.0), np.array(1.2), 4) == pytest.approx(5.26)
    assert without_skewness(np.array(-3.0), np.array(-1.2), 4) == pytest.approx(-5.26)
    assert without_skewness(np.array(3.0), np.array(0.0), 4) == 3


def test_hall_s_transformation_takes_the_skewness_out():
    """Of 40 exponential losses the t-statistic is above its 95 % point in 9 % of the samples."""
    values = 1 - np.random.default_rng(0).exponential(size=(20_000, 40))
    t, limit = t_statistic(values), stats.t.ppf(0.95, 39)
    plain, corrected = (t > limit).mean(), (without_skewness(t, skewness(values), 40) > limit).mean()
    assert plain > 0.085
    assert corrected < 0.065


def test_the_guard_adds_one_value_against_the_claim():
    values = np.random.default_rng(1).gamma(4, size=30)  # skewed to the right: the plain statistic is the smaller one
    assert guarded_statistic(values, 2.5) == pytest.approx(float(t_statistic(np.append(values, -2.5))))
    # skewed to the left: the corrected one is
    values = 8 - values
    t = float(t_statistic(np.append(values, -2.5)))
    expected = float(without_skewness(np.array(t), skewness(values), 31))
    assert expected < t
    assert guarded_statistic(values, 2.5) == pytest.approx(expected)


@given(st.integers(2, 500), st.floats(0.01, 2), st.floats(0.01, 2))
def test_so_many_perfect_episodes_show_so_much(count, value, doubt):
    assert guarded_statistic(np.full(count, value), doubt) == pytest.approx((count * value - doubt) / (value + doubt), rel=1e-9)


def test_the_skewness_of_tiny_values_is_that_of_large_ones():
    """Their cubes are below the smallest number: this was 0 / 0 once."""
    values = np.array([0.0, 1, 1, 1, 1, 1, 1])
    assert skewness(1e-149 * values) == pytest.approx(float(skewness(values)))
    assert skewness(np.zeros(5)) == 0


@given(arrays.arrays(np.float64, (3, 7), elements=st.floats(-5, 5)), st.floats(0, 3), st.floats(0.1, 100))
def test_many_samples_at_once_are_each_by_itself_and_scale_does_not_matter(values, doubt, scale):
    together = guarded_statistic(values, np.full(3, doubt))
    np.testing.assert_allclose(together, [guarded_statistic(row, doubt) for row in values], rtol=1e-9)
    finite = np.isfinite(together) & (np.abs(together) < 1e6) & (values.std(axis=1) > 1e-3)
    np.testing.assert_allclose(guarded_statistic(scale * values, scale * np.full(3, doubt))[finite], together[finite], rtol=1e-6, atol=1e-9)
