"""Aggregate retention over a suite of teachers, with bootstrap intervals (Agarwal et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from policy_distill.evaluation.statistics.aggregates import geometric_mean, interquartile_mean, optimality_gap, wins
from policy_distill.evaluation.statistics.intervals import bootstrap_means, percentile_ends

Returns = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Returns ``[E]`` of student, teacher and random policy on the same seeds, for one teacher."""
Ends = tuple[float, float]


@dataclass(frozen=True)
class Aggregate:
    """An aggregate over the teachers of a suite, with intervals.

    Attributes:
        estimate: the aggregate of the data.
        over_episodes: interval for other episodes of the same teachers: a bootstrap over episodes, stratified by teacher. None if the
            returns are unknown.
        over_teachers: interval for other teachers of the same kind: a bootstrap over teachers and episodes, wide if there are few
            teachers. None if the returns are unknown or there are fewer than two teachers.
    """

    estimate: float
    over_episodes: Ends | None = None
    over_teachers: Ends | None = None


def suite_aggregates(
    retentions: np.ndarray,
    returns: Sequence[Returns] | None,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2_000,
) -> dict[str, Aggregate]:
    """Interquartile mean, geometric mean and optimality gap of the retention, and the probability of improvement on the teacher.

    Args:
        retentions: ``[T]``, retention of each teacher's student.
        returns: returns of each teacher, in the same order; None if unknown: then there are no intervals and no probability of improvement.
        confidence: confidence level of the two-sided intervals.
        seed: seed of the resampling.
        resamples: number of bootstrap samples.
    """
    kept = np.asarray(retentions, np.float64)
    if returns is None:
        return {name: Aggregate(of(kept)) for name, (of, _) in OF_RETENTIONS.items()}
    draws = np.random.default_rng(seed)
    kept_again = np.stack([resampled_retentions(rows, draws, resamples) for rows in returns])
    better = np.array([wins(student, teacher).mean() for student, teacher, _ in returns])
    better_again = np.stack([_improvements(student, teacher, draws, resamples) for student, teacher, _ in returns])
    # A teacher that is sampled twice uses two independent resamples of its episodes: different columns of its row.
    count = len(returns)
    others = tuple(draws.integers(0, limit, (count, resamples)) for limit in (count, resamples))

    def found(estimates: np.ndarray, drawn: np.ndarray, aggregate: Callable[[np.ndarray], float], limits: Ends) -> Aggregate:
        estimate = aggregate(estimates)

        def ends(samples: np.ndarray) -> Ends:
            return basic_ends(estimate, np.array([aggregate(sample) for sample in samples.T]), limits, confidence=confidence)

        return Aggregate(estimate, ends(drawn), ends(drawn[others]) if count > 1 else None)

    aggregates = {name: found(kept, kept_again, of, limits) for name, (of, limits) in OF_RETENTIONS.items()}
    return aggregates | {"probability_of_improvement": found(better, better_again, lambda values: float(values.mean()), (0.0, 1.0))}


def basic_ends(estimate: float, resampled: np.ndarray, limits: Ends, *, confidence: float = 0.95) -> Ends:
    """Basic bootstrap interval: percentiles of ``resampled`` ``[resamples]`` reflected at the estimate (Davison & Hinkley 1997, sec. 5.2).

    The ends are clipped to ``limits``. Noise in retentions biases the optimality gap upwards, and resampling doubles this bias, so that
    plain percentile intervals miss the truth (docs/statistics.md).
    """
    near, far = percentile_ends(resampled, confidence)
    low, high = np.clip([2 * estimate - far, 2 * estimate - near], *limits)
    return float(low), float(high)


def _geometric_mean_of_retentions(values: np.ndarray) -> float:
    """Geometric mean with negative retentions (students below a random policy) counted as 0, which makes the mean 0."""
    return geometric_mean(np.maximum(values, 0.0))


OF_RETENTIONS: dict[str, tuple[Callable[[np.ndarray], float], Ends]] = {
    "interquartile_mean": (interquartile_mean, (-np.inf, np.inf)),
    "geometric_mean": (_geometric_mean_of_retentions, (0.0, np.inf)),
    "optimality_gap": (optimality_gap, (0.0, np.inf)),
}
"""Name -> aggregate of retentions ``[T]``, and the range of its values."""


def resampled_retentions(returns: Returns, draws: np.random.Generator, resamples: int) -> np.ndarray:
    """Retention ``[resamples]`` of resampled episodes, each with all three of its returns."""
    student, teacher, random = bootstrap_means(np.stack(returns).astype(np.float64), draws, resamples)
    above = teacher > random  # the retention is undefined in samples where the teacher is not above the random policy
    kept = (student - random)[above] / (teacher - random)[above]
    return kept[draws.integers(0, len(kept), resamples)]


def _improvements(student: np.ndarray, teacher: np.ndarray, draws: np.random.Generator, resamples: int) -> np.ndarray:
    """Share ``[resamples]`` of pairs in which the student's episode has the higher return, over resampled seeds common to both."""
    episodes = len(student)
    drawn = draws.multinomial(episodes, np.full(episodes, 1 / episodes), size=resamples).astype(np.float64)
    return np.einsum("re,re->r", drawn @ wins(student, teacher), drawn) / episodes**2
