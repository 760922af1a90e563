"""Errors and coverage by simulation: a short form of docs/statistics.md, with bounds that a broken test oversteps."""

from __future__ import annotations

import numpy as np
import pytest

from policy_distill.evaluation.statistics import Plan
from policy_distill.evaluation.statistics.simulation import (
    POPULATIONS,
    SUITES,
    bootstrap_coverage,
    coverage,
    naive_certifications,
    normal_paired,
    simulate,
    suite_coverage,
    tables,
)

REPLICATES = 1000
PLAN = Plan.of(0.95, 0.95, max_episodes=300)
ALLOWED = 0.05 + 3 * (0.05 * 0.95 / REPLICATES) ** 0.5
"""What is allowed, and three standard errors of the simulation."""


@pytest.mark.parametrize("name", POPULATIONS)
def test_students_that_keep_just_the_share_are_rarely_judged(name):
    """A plain t-test at each look certifies 17 to 60 % of them."""
    verdicts, _ = simulate(POPULATIONS[name], 0.95, PLAN, replicates=REPLICATES)
    assert (verdicts == 1).mean() <= ALLOWED
    assert (verdicts == -1).mean() <= ALLOWED
    assert naive_certifications(POPULATIONS[name], PLAN, replicates=REPLICATES) > 0.1


@pytest.mark.parametrize("name", POPULATIONS)
def test_a_population_keeps_what_it_says(name):
    draws = np.random.default_rng(0)
    student, teacher, random = (array.mean() for array in POPULATIONS[name](draws, (400, 1000), 0.8))
    assert teacher == pytest.approx(1, abs=0.015)
    assert random == pytest.approx(0, abs=0.015)
    assert (student - random) / (teacher - random) == pytest.approx(0.8, abs=0.015)


def test_looking_early_costs_little_power_and_saves_episodes():
    plan, fixed = Plan.of(0.95, max_episodes=600), Plan.at((600,), 0.95)
    sequential, episodes = simulate(POPULATIONS["normal, paired"], 0.99, plan, replicates=REPLICATES)
    once, all_episodes = simulate(POPULATIONS["normal, paired"], 0.99, fixed, replicates=REPLICATES)
    assert (once == 1).mean() - (sequential == 1).mean() < 0.04
    assert (once == 1).mean() > 0.5
    assert (all_episodes == 600).all()
    assert episodes.mean() < 540


@pytest.mark.parametrize(
    "name", ["normal, paired", "normal, unpaired", "exponential losses, paired", "exponential losses, unpaired", "falls or not, paired",
             "falls or not, unpaired", "heavy tails (t3), unpaired"],
)  # fmt: skip
def test_the_interval_s_coverage_is_near_nominal_from_a_hundred_episodes_on(name):
    below, above = coverage(POPULATIONS[name], 0.9, 100, replicates=4000)
    assert abs(below + above - 0.05) < 0.015 + 0.006  # two standard errors of the simulation


def test_rare_falls_are_where_the_bootstrap_fails():
    population = POPULATIONS["rare falls of the student"]
    missed, _ = bootstrap_coverage(population, 0.95, 100, replicates=400)
    below, above = coverage(population, 0.95, 100, replicates=2000)
    assert missed > 0.045  # of 0.025
    assert below < 0.04
    assert below + above < 0.065


def test_percentiles_of_the_optimality_gap_lie_beside_the_truth():
    """Noise only adds to the gap, and resampling adds as much again: where all keep 1, percentiles never held the 0 that is true."""
    held = {
        name: suite_coverage(normal_paired, SUITES[name], 100, replicates=30, resamples=200) for name in ("all keep 1", "all keep 0.97")
    }
    basic, percentile = held["all keep 1"]["optimality_gap"]
    assert percentile < 0.1
    assert basic > 0.5
    assert all(basic > 0.8 for basic, _ in held["all keep 0.97"].values())


def test_the_tables_say_what_the_functions_find():
    text = tables(16)
    verdicts, _ = simulate(POPULATIONS["rare falls of the student"], 0.95, Plan.of(0.95, 0.95, 500), replicates=16)
    line = next(line for line in text.splitlines() if line.startswith("| rare falls"))
    assert line.split("|")[2].strip() == f"{100 * (verdicts == 1).mean():.1f}"
    assert text.count("\n## ") + text.startswith("## ") == 4
    held = suite_coverage(normal_paired, SUITES["all keep 0.97"], 100, replicates=1)["optimality_gap"]
    line = next(line for line in text.splitlines() if line.startswith("| all keep 0.97"))
    assert line.split("|")[-2].strip() == f"{100 * held[0]:.1f} ({100 * held[1]:.1f})"
