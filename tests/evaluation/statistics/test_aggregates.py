"""Aggregates by hand and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from policy_distill.evaluation.statistics import geometric_mean, interquartile_mean, optimality_gap
from policy_distill.evaluation.statistics.aggregates import wins

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


@given(*[arrays.arrays(np.float64, st.integers(1, 6), elements=st.integers(-2, 2))] * 2)
def test_the_share_of_wins_is_mann_whitney_s(first, second):
    expected = stats.mannwhitneyu(first, second).statistic / (len(first) * len(second)) if len({*first, *second}) > 1 else 0.5
    assert wins(first, second).mean() == pytest.approx(expected)
