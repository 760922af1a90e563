"""Boundaries against published tables, verdicts by hand, and how often they err."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from policy_distill.evaluation.statistics import Decision, Plan, decide, look_schedule, sequential, spending_boundaries
from policy_distill.evaluation.statistics.sequential import outcomes, spent, statistics_at
from policy_distill.evaluation.statistics.simulation import POPULATIONS

PLAN = Plan.of(0.95)


def judged(student: float | np.ndarray, teacher: float | np.ndarray, random: float | np.ndarray, plan: Plan = PLAN) -> Decision:
    """Each a constant or an array; a thousandth of noise makes constants vary a little."""
    count = plan.looks[-1]
    noise = np.random.default_rng(0).normal(0, 1e-3, (3, count))
    return decide(*(np.zeros(count) + array + jitter for array, jitter in zip((student, teacher, random), noise, strict=True)), plan=plan)


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (0.025, [4.877, 3.357, 2.680, 2.290, 2.031]),  # Lan & DeMets 1983; DeMets & Lan 1994, Stat. Med. 13, table 2
        (0.05, [4.229, 2.888, 2.298, 1.962, 1.740]),  # Reboussin et al. 2000 (ldbounds), one-sided 0.05
    ],
)
def test_the_boundaries_are_the_published_ones(alpha, expected):
    np.testing.assert_allclose(spending_boundaries([0.2, 0.4, 0.6, 0.8, 1.0], alpha), expected, atol=1.1e-3)


def test_two_looks_by_the_bivariate_normal_distribution():
    bounds = spending_boundaries([0.3, 1.0], 0.05)
    first = 1 - stats.norm.cdf(bounds[0])
    both = stats.multivariate_normal([0, 0], [[1, 0.3**0.5], [0.3**0.5, 1]]).cdf(bounds)
    assert first == pytest.approx(float(spent(np.array(0.3), 0.05)), rel=1e-9)
    assert 1 - both == pytest.approx(0.05, abs=1e-6)


def test_one_look_is_the_ordinary_test():
    assert spending_boundaries([1.0], 0.05) == pytest.approx([stats.norm.ppf(0.95)])
    plan = Plan.at((100,), 0.9)
    assert plan.critical(0) == pytest.approx(stats.t.ppf(0.95, 100))


def test_the_quadrature_is_fine_enough(monkeypatch):
    monkeypatch.setattr(sequential, "NODES", 100)
    np.testing.assert_allclose(Plan.of(0.95).boundaries, PLAN.boundaries, atol=1e-8)


def test_a_random_walk_crosses_as_often_as_was_spent():
    fractions = np.array([0.1, 0.25, 0.5, 0.75, 1.0])
    bounds = spending_boundaries(fractions.tolist(), 0.1)
    steps = np.random.default_rng(0).normal(size=(100_000, 5)) * np.sqrt(np.diff(fractions, prepend=0))
    crossed = np.maximum.accumulate(steps.cumsum(axis=1) / np.sqrt(fractions) > bounds, axis=1).mean(axis=0)
    np.testing.assert_allclose(crossed, spent(fractions, 0.1), atol=0.003)  # standard error 0.00095 at the end


def test_before_anything_may_be_spent_nothing_is_decided():
    bounds = spending_boundaries([1e-4, 0.5, 1.0], 0.05)
    assert bounds[0] == np.inf
    np.testing.assert_allclose(bounds[1:], spending_boundaries([0.5, 1.0], 0.05), atol=1e-9)


@pytest.mark.parametrize("fractions", [[], [0.5, 0.5], [0.0, 1.0], [0.5, 1.1]])
def test_fractions_that_do_not_rise_are_refused(fractions):
    with pytest.raises(ValueError, match="they must rise"):
        spending_boundaries(fractions, 0.05)


def test_errors_out_of_range_are_refused():
    with pytest.raises(ValueError, match="alpha is 0"):
        spending_boundaries([1.0], 0.0)
    with pytest.raises(ValueError, match="confidence is 1"):
        Plan.of(0.95, 1.0)
    with pytest.raises(ValueError, match="share is 0"):
        Plan.of(0.0)
    with pytest.raises(ValueError, match="max_episodes is 49; it must be >= 50"):
        Plan.of(0.95, max_episodes=49)


@given(st.integers(50, 20_000))
def test_looks_rise_from_the_first_to_the_budget(max_episodes):
    looks = look_schedule(max_episodes)
    assert looks[0] == 50
    assert looks[-1] == max_episodes
    ratios = np.array(looks[1:]) / looks[:-1]
    assert (ratios > 1).all()
    assert (ratios < 1.9).all()


# Verdicts.


def test_a_student_as_good_as_its_teacher_is_certified_as_early_as_it_can_be():
    found = judged(500, 500, 20)
    assert (found.verdict, found.final, found.episodes) == ("certified", True, PLAN.fewest())
    assert PLAN.fewest() == 252
    assert found.low > 0.95
    assert "at least 0.95" in found.reason


def test_equal_returns_are_no_division_by_zero_and_are_not_taken_at_their_word_before_that():
    constant = [np.full(2000, value) for value in (500.0, 500.0, 20.0)]
    assert decide(*constant, plan=PLAN).episodes == 252
    early = decide(*(values[:168] for values in constant), plan=PLAN)
    assert (early.verdict, early.final) == ("undecided", False)


def test_a_broken_student_is_refuted_soon():
    found = judged(20, 500, 20)
    assert found.verdict == "refuted"
    assert found.episodes <= 75
    assert -0.1 < found.low < 0 < found.high < 0.1
    assert "less than 0.95" in found.reason


@pytest.mark.parametrize(("student", "verdict"), [(-76.5, "certified"), (-70, "certified"), (-120, "refuted"), (-500, "refuted")])
def test_negative_returns_do_not_fool_it(student, verdict):
    """Acrobot: of a teacher's -76 the plain ratio makes 158 % of a student's -120."""
    assert judged(student, -76, -499).verdict == verdict


def test_a_teacher_that_is_no_better_than_chance_certifies_nobody():
    noise = np.random.default_rng(1).normal(0, 50, 2000)
    found = judged(300, noise, noise[::-1])
    assert (found.verdict, found.final) == ("undecided", True)
    assert "cannot be told apart" in found.reason
    assert (found.low, found.high) == (-np.inf, np.inf)
    worse = judged(300, 10, 20)
    assert (worse.verdict, worse.final, worse.episodes) == ("undecided", True, 50)
    assert "less than a random policy" in worse.reason


def test_a_gap_that_shows_late_holds_the_verdict_up():
    """The student is well above what is asked, but for long nothing says that its teacher adds anything."""
    gap = np.random.default_rng(2).normal(2, 20, 2000)
    found = judged(gap + 30, gap, 0)
    assert found.verdict == "certified"
    early = [look for look in found.looks if look.keeps > look.critical]
    assert early[0].episodes < found.episodes
    assert found.looks[-1].gap > found.looks[-1].critical


def test_a_budget_too_small_for_anybody_is_said():
    plan = Plan.of(0.99, max_episodes=100)
    assert plan.fewest() is None
    found = judged(500, 500, 20, plan)
    assert (found.verdict, found.final, found.episodes) == ("undecided", True, 100)
    assert "not even a student that equals its teacher" in found.reason


def test_the_order_of_play_decides_nothing_but_when():
    draws = np.random.default_rng(3)
    student, teacher, random = draws.normal(0.99, 0.3, 2000), draws.normal(1, 0.3, 2000), draws.normal(0, 0.1, 2000)
    part = decide(student[:300], teacher[:300], random[:300], plan=PLAN)
    assert not part.final
    assert part.looks == decide(student, teacher, random, plan=PLAN).looks[: len(part.looks)]
    assert part.episodes == 252


@given(st.floats(0.01, 100), st.floats(-500, 500))
def test_the_reward_s_scale_and_origin_do_not_matter(scale, offset):
    arrays = POPULATIONS["falls or not, unpaired"](np.random.default_rng(4), (3, 300), 0.93)
    for values, moved in zip(
        statistics_at(*arrays, share=0.95), statistics_at(*(scale * a + offset for a in arrays), share=0.95), strict=True
    ):
        np.testing.assert_allclose(moved, values, rtol=1e-6, atol=1e-6)


def test_certifying_and_refuting_are_mirror_images():
    student, teacher, random = POPULATIONS["exponential losses, unpaired"](np.random.default_rng(5), (4, 100), 0.95)
    keeps, loses, *_ = statistics_at(student, teacher, random, share=0.95)
    mirrored = 2 * (0.95 * teacher + 0.05 * random) - student
    np.testing.assert_allclose(statistics_at(mirrored, teacher, random, share=0.95)[:2], [loses, keeps], rtol=1e-9)


def test_returns_that_mean_nothing_are_refused():
    values = np.ones(60)
    with pytest.raises(ValueError, match="nan or infinite"):
        decide(np.append(values[1:], np.nan), values, values, plan=PLAN)
    with pytest.raises(ValueError, match="40 episodes; the first look is at 50"):
        decide(values[:40], values[:40], values[:40], plan=PLAN)
    with pytest.raises(ValueError, match="three arrays of the same"):
        decide(values[1:], values, values, plan=PLAN)


def test_the_bounds_are_the_shares_that_would_just_have_been_decided():
    arrays = POPULATIONS["normal, unpaired"](np.random.default_rng(6), (1, 2000), 1.0)
    student, teacher, random = (array[0] for array in arrays)
    found = decide(student, teacher, random, plan=PLAN)
    assert found.verdict == "certified"
    assert found.low > 0.95
    last = Plan(0.0, PLAN.confidence, (found.episodes,), (PLAN.boundaries[PLAN.looks.index(found.episodes)],))
    for share, verdict in ((found.low - 1e-4, "certified"), (found.high + 1e-4, "refuted")):
        assert decide(student, teacher, random, plan=dataclasses.replace(last, share=share)).verdict == verdict
    for share in (found.low + 1e-4, found.high - 1e-4):
        assert decide(student, teacher, random, plan=dataclasses.replace(last, share=share)).verdict == "undecided"


def test_many_at_once_are_each_by_itself():
    plan = Plan.of(0.9, max_episodes=200)
    for name in ("falls or not, unpaired", "rare falls of the student", "normal, paired"):
        arrays = POPULATIONS[name](np.random.default_rng(7), (30, 200), 0.8)
        verdicts, episodes = outcomes(*arrays, plan)
        alone = [decide(*(array[index] for array in arrays), plan=plan) for index in range(30)]
        names = {1: "certified", -1: "refuted", 0: "undecided"}
        assert [names[verdict] for verdict in verdicts] == [found.verdict for found in alone]
        assert episodes.tolist() == [found.episodes for found in alone]
