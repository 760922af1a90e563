"""Retention: its value, what it does not depend on, the coverage of its intervals, and when there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from policy_distill.evaluation.statistics import retention, retention_of_means, retention_standard_error
from policy_distill.evaluation.statistics.intervals import interval_statistic, percentile_ends, share_where
from policy_distill.evaluation.statistics.simulation import POPULATIONS


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


METHODS = pytest.mark.parametrize("method", ["test", "bootstrap"])


@METHODS
@settings(max_examples=15)
@given(st.floats(0.01, 100), st.floats(-1000, 1000))
def test_the_reward_s_scale_and_origin_do_not_matter(method, scale, offset):
    arrays_of = returns(80, 90, 10)
    kept, moved = (retention(*group, method=method) for group in (arrays_of, [scale * array + offset for array in arrays_of]))
    np.testing.assert_allclose([moved.estimate, moved.low, moved.high], [kept.estimate, kept.low, kept.high], rtol=1e-5)


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
    assert retention(*arrays_of, method="bootstrap", seed=3) == retention(*arrays_of, method="bootstrap", seed=3)
    other = retention(*arrays_of, method="bootstrap", seed=4)
    assert other.estimate == retention(*arrays_of, method="bootstrap", seed=3).estimate
    assert other.low != retention(*arrays_of, method="bootstrap", seed=3).low


def test_the_interval_is_the_bootstrap_s_percentiles():
    """Against a loop that resamples indices one at a time."""
    student, teacher, random = returns(80, 90, 10, episodes=30)
    draws = np.random.default_rng(5)
    shares = []
    for _ in range(4000):
        rows = draws.integers(0, 30, 30)
        shares.append((student[rows].mean() - random[rows].mean()) / (teacher[rows].mean() - random[rows].mean()))
    kept = retention(student, teacher, random, method="bootstrap")
    spread = np.std(shares)
    np.testing.assert_allclose([kept.low, kept.high], np.percentile(shares, [2.5, 97.5]), atol=0.15 * spread)


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says():
    # the truth is (80 - 10) / (90 - 10) = 0.875; 300 intervals of 90 %: their coverage has a standard error of 0.017
    kept = [retention(*returns(80, 90, 10, noise=8, seed=seed), confidence=0.9, method="bootstrap", resamples=400) for seed in range(300)]
    assert 0.83 < np.mean([interval.low <= 0.875 <= interval.high for interval in kept]) < 0.96


def test_without_skewness_the_interval_is_fieller_s():
    """Its ends by the quadratic formula (Fieller 1954), on values that are symmetrical about their mean and so have no skewness."""
    draws = np.random.default_rng(2).normal(size=(3, 30))
    student, teacher, random = (np.concatenate([mean + noise, mean - noise]) for mean, noise in zip((7, 9, 1), draws, strict=True))
    a, b, n = student - random, teacher - random, 60
    q2 = stats.t.ppf(0.975, n - 1) ** 2 / n
    (var_a, cov), (_, var_b) = np.cov(a, b)
    quadratic = [b.mean() ** 2 - q2 * var_b, -2 * (a.mean() * b.mean() - q2 * cov), a.mean() ** 2 - q2 * var_a]
    kept = retention(student, teacher, random)
    np.testing.assert_allclose([kept.low, kept.high], np.sort(np.roots(quadratic)), rtol=1e-6)


@pytest.mark.parametrize("name", POPULATIONS)
def test_the_interval_holds_what_its_test_does_not_reject(name):
    """docs/statistics.md counts rejections instead of building intervals: both are the same."""
    draws = np.random.default_rng(3)
    for _ in range(10):
        student, teacher, random = (array[0] for array in POPULATIONS[name](draws, (1, 200), 0.9))
        kept = retention(student, teacher, random)
        critical = stats.t.ppf(0.975, 199)
        width = max(kept.high - kept.low, 0.01)
        for share in (kept.low - 0.01 * width, kept.high + 0.01 * width):
            assert abs(float(interval_statistic(student, teacher, random, share=share))) > critical
        if kept.low < kept.high:
            for share in (kept.low + 0.01 * width, kept.high - 0.01 * width):
                assert abs(float(interval_statistic(student, teacher, random, share=share))) < critical


def test_rare_falls_move_the_interval_down():
    """One episode of twenty lost: symmetrical intervals end too high; the true share was below theirs in 9 % of the samples, not 2.5."""
    student, teacher, random = np.ones(100), np.ones(100), np.zeros(100)
    student[:5] = 0
    kept = retention(student, teacher, random)
    assert kept.estimate == pytest.approx(0.95)
    assert kept.estimate - kept.low > 1.3 * (kept.high - kept.estimate)


def test_a_share_that_is_never_rejected_is_infinitely_far():
    assert share_where(lambda share: share - 3, 1.0, 0.5) == pytest.approx(3)
    assert share_where(lambda share: -share - 3, 1.0, -0.5) == pytest.approx(-3)
    assert share_where(lambda share: -1.0, 1.0, -0.5) == -math.inf


def test_a_return_that_is_no_number_is_refused():
    student, teacher, random = returns(80, 90, 10)
    student[3] = math.nan
    with pytest.raises(ValueError, match="nan or infinite"):
        retention(student, teacher, random)


@pytest.mark.parametrize(("student", "teacher", "random"), [(10, 10, 10), (10, 10.2, 10), (50, 5, 10)])
def test_there_is_no_retention_where_the_teacher_is_no_better_than_chance(student, teacher, random):
    kept = retention(*returns(student, teacher, random, noise=5))
    assert not kept.defined
    assert all(math.isnan(value) for value in (kept.estimate, kept.low, kept.high))


def test_an_interval_is_finite_although_some_samples_have_no_gap():
    """One sample in 729 draws the two last episodes alone, in which teacher and random policy earn the same."""
    teacher, random = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0]), np.zeros(6)
    kept = retention(teacher, teacher, random, method="bootstrap")
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


def test_percentile_ends_by_hand():
    # 0, 1, ..., 100: the percentiles are the values themselves
    assert percentile_ends(np.arange(101.0), 0.9) == (pytest.approx(5), pytest.approx(95))
    assert percentile_ends(np.arange(101.0)) == (pytest.approx(2.5), pytest.approx(97.5))


def test_the_standard_error_of_a_retention_is_paired_by_seed():
    teacher, random = np.array([4.0, 6.0, 8.0]), np.array([0.0, 2.0, 4.0])
    # half of what the teacher adds on each seed: however much the seeds differ, there is nothing to be unsure about
    assert retention_of_means(np.array([2.0, 4.0, 6.0]), teacher, random) == 0.5
    assert retention_standard_error(np.array([2.0, 4.0, 6.0]), teacher, random) == 0.0
    # contrast at 0.5: -1, 0, 1; standard deviation 1; of the mean of three over a gap of 4
    assert retention_standard_error(np.array([1.0, 4.0, 7.0]), teacher, random) == pytest.approx(1 / math.sqrt(3) / 4)


def test_a_teacher_like_chance_has_no_retention_and_one_episode_no_standard_error():
    assert math.isnan(retention_of_means(np.array([2.0, 2.0]), np.array([1.0, 3.0]), np.array([3.0, 1.0])))
    assert math.isnan(retention_standard_error(np.array([2.0, 2.0]), np.array([4.0, 4.0]), np.array([0.0, 9.0])))
    assert retention_of_means(np.array([2.0]), np.array([4.0]), np.array([0.0])) == 0.5
    assert math.isnan(retention_standard_error(np.array([2.0]), np.array([4.0]), np.array([0.0])))
