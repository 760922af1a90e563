"""What many agents show together: aggregates of scores and their bootstrap intervals (Agarwal et al. 2021, arXiv 2108.13264)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, stdtrit

from policy_distill.statistics.intervals import RESAMPLES, bootstrap_means, paired

Scores = Sequence[np.ndarray]
"""Scores of a method: for each task ``[runs]``, one a training seed. Tasks may differ in their number of runs."""


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its interval."""

    estimate: float
    low: float
    high: float
    confidence: float


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of the middle half of ``values`` ``[N]``, the outer quarters weighed away fractionally (Agarwal et al. 2021)."""
    ordered = np.sort(np.asarray(values, np.float64))
    count = len(ordered)
    edges = np.arange(count + 1) / count
    weights = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0, None)
    return float((ordered * weights).sum() / weights.sum())


def geometric_mean(values: np.ndarray) -> float:
    """``exp`` of the mean logarithm of ``values`` ``[N]``: of ratios, where halving and doubling cancel; 0 as soon as one of them is 0.

    Raises:
        ValueError: if a value is below zero; retentions may be.
    """
    if not (np.asarray(values) >= 0).all():
        raise ValueError(f"a geometric mean needs values >= 0, the smallest is {np.min(values)}")
    with np.errstate(divide="ignore"):  # exp(-inf) is the 0 that is meant
        return float(np.exp(np.log(values).mean()))


def optimality_gap(values: np.ndarray, target: float = 1.0) -> float:
    """How far ``values`` ``[N]`` stay below ``target`` on average; what is above it makes nothing good (Agarwal et al. 2021, sec. 4.3)."""
    return float(np.maximum(target - np.asarray(values, np.float64), 0.0).mean())


def performance_profile(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """Share of runs that score above each of ``thresholds`` ``[T]``, every task counting alike, ``[T]`` (Agarwal et al. 2021, sec. 4.2)."""
    return np.mean([(np.asarray(runs)[:, None] > thresholds).mean(0) for runs in scores], axis=0)


def probability_of_improvement(first: Scores, second: Scores) -> float:
    """How likely a run of ``first`` beats one of ``second`` on a task drawn at random; ties count half (Agarwal et al. 2021, sec. 4.3).

    Args:
        first, second: scores on the same tasks in the same order; ``[runs]`` each, not necessarily as many.
    """
    return float(np.mean([wins(ours, theirs).mean() for ours, theirs in zip(first, second, strict=True)]))


def wins(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of each pair of ``first`` ``[N]`` and ``second`` ``[M]``, ``[N, M]``: 1 if the first is larger, 0.5 if both are equal, else 0."""
    return 0.5 + 0.5 * np.sign(np.subtract.outer(first, second))


def stratified_bootstrap(
    scores: Scores, aggregate: Callable[[np.ndarray], float], *, confidence: float = 0.95, seed: int = 0, resamples: int = 2_000
) -> Interval:
    """An aggregate over all runs of all tasks, with a percentile interval that resamples the runs of each task by themselves.

    The tasks are fixed: the interval says what other training seeds would have given, not what other tasks would have
    (Agarwal et al. 2021, sec. 4.1).

    Args:
        scores: at least two runs of each task.
        aggregate: of ``[N]`` scores of all tasks together, ``interquartile_mean`` for example.
        confidence: of the two-sided interval.
        seed: of the resampling.
        resamples: bootstrap samples.

    Raises:
        ValueError: if a task has fewer than two runs: nothing can be said of other seeds then.
    """
    if not scores or min(len(runs) for runs in scores) < 2:
        raise ValueError("a stratified bootstrap needs at least two runs (training seeds) of each task")
    draws = np.random.default_rng(seed)
    drawn = np.concatenate([np.asarray(runs)[draws.integers(0, len(runs), (resamples, len(runs)))] for runs in scores], axis=1)
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile([aggregate(row) for row in drawn], [tail, 100 - tail])
    return Interval(aggregate(np.concatenate([np.asarray(runs) for runs in scores])), float(low), float(high), confidence)


def two_level_bootstrap(
    runs: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], *, confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Mean retention of a method over training seeds: training seeds are drawn with replacement, then episodes of each.

    More episodes make the figure of one student sure, not the method's: that needs further students. The percentiles are widened as a t
    quantile is (Hesterberg 2015, sec. 3.2), since few training seeds vary less among themselves than all would.

    Args:
        runs: of each training seed, returns ``[E]`` of student, teacher and random policy on the same evaluation seeds.
        confidence: of the two-sided interval.
        seed: of the resampling.
        resamples: bootstrap samples.

    Raises:
        ValueError: with fewer than two training seeds, or where a teacher earns no more than its random policy.
    """
    count = len(runs)
    if count < 2:
        raise ValueError(f"a claim about a method needs at least two training seeds, got {count}")
    draws = np.random.default_rng(seed)
    estimates, resampled = [], []
    for returns in runs:
        rows = paired(*returns)
        means = rows.mean(axis=1)
        if means[1] <= means[2]:
            raise ValueError("a teacher earns no more than its random policy: there is no retention to average")
        estimates.append((means[0] - means[2]) / (means[1] - means[2]))
        student, teacher, random = bootstrap_means(rows, draws, resamples)
        gaps = teacher - random
        resampled.append(np.where(gaps > 0, (student - random) / np.where(gaps > 0, gaps, 1.0), estimates[-1]))
    # A training seed that is drawn twice brings its episodes twice, drawn anew: another column of its row.
    seeds, columns = (draws.integers(0, limit, (resamples, count)) for limit in (count, resamples))
    means = np.array(resampled)[seeds, columns].mean(axis=1)
    tail = 100 * float(ndtr((count / (count - 1)) ** 0.5 * stdtrit(count - 1, (1 - confidence) / 2)))
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(float(np.mean(estimates)), float(low), float(high), confidence)
