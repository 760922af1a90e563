"""What a suite of teachers shows as a whole: aggregates of what their students keep, with intervals (Agarwal et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from policy_distill.evaluation.statistics.aggregates import geometric_mean, interquartile_mean, optimality_gap, wins
from policy_distill.evaluation.statistics.intervals import bootstrap_means, percentile_ends

Returns = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of one teacher: returns ``[E]`` of student, teacher and random policy on the same seeds."""
Ends = tuple[float, float]


@dataclass(frozen=True)
class Aggregate:
    """A figure over all teachers of a suite, with the ends of its intervals.

    Attributes:
        estimate: of the teachers and episodes that there were.
        over_episodes: what other episodes of these teachers would have given, by a stratified bootstrap: the episodes of each teacher are
            drawn anew by themselves. None where the returns are not known.
        over_teachers: what other teachers of this kind would have given: teachers are drawn anew too, and with few of them their choice
            is most of it. None where the returns are not known, or there are fewer than two teachers.
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
        retentions: ``[T]``, of each teacher's student.
        returns: of each teacher, in the same order; None where they are not known: the estimates stand alone, and the probability of
            improvement is left out.
        confidence: of the two-sided intervals.
        seed: of the resampling.
        resamples: bootstrap samples.
    """
    kept = np.asarray(retentions, np.float64)
    if returns is None:
        return {name: Aggregate(of(kept)) for name, (of, _) in OF_RETENTIONS.items()}
    draws = np.random.default_rng(seed)
    kept_again = np.stack([resampled_retentions(rows, draws, resamples) for rows in returns])
    better = np.array([wins(student, teacher).mean() for student, teacher, _ in returns])
    better_again = np.stack([_improvements(student, teacher, draws, resamples) for student, teacher, _ in returns])
    # A teacher that is drawn twice brings its episodes twice, drawn anew: another column of its row.
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
    """Percentiles of ``resampled`` ``[resamples]``, reflected at the estimate (Davison & Hinkley 1997, sec. 5.2), and cut at ``limits``.

    Noise in a student's retention can only add to the optimality gap, and resampling adds as much again: the percentiles themselves lie
    beside the truth (docs/statistics.md).
    """
    near, far = percentile_ends(resampled, confidence)
    low, high = np.clip([2 * estimate - far, 2 * estimate - near], *limits)
    return float(low), float(high)


def _geometric_mean_of_retentions(values: np.ndarray) -> float:
    """A student that earns no more than a random policy keeps nothing: it counts 0, which makes the whole mean 0."""
    return geometric_mean(np.maximum(values, 0.0))


OF_RETENTIONS: dict[str, tuple[Callable[[np.ndarray], float], Ends]] = {
    "interquartile_mean": (interquartile_mean, (-np.inf, np.inf)),
    "geometric_mean": (_geometric_mean_of_retentions, (0.0, np.inf)),
    "optimality_gap": (optimality_gap, (0.0, np.inf)),
}
"""Name -> aggregate of retentions ``[T]``, and the values that it can take."""


def resampled_retentions(returns: Returns, draws: np.random.Generator, resamples: int) -> np.ndarray:
    """Retention ``[resamples]`` of episodes drawn anew, each with all three of its returns."""
    student, teacher, random = bootstrap_means(np.stack(returns).astype(np.float64), draws, resamples)
    above = teacher > random  # the few samples whose teacher is not above the random policy have no retention
    kept = (student - random)[above] / (teacher - random)[above]
    return kept[draws.integers(0, len(kept), resamples)]


def _improvements(student: np.ndarray, teacher: np.ndarray, draws: np.random.Generator, resamples: int) -> np.ndarray:
    """Share ``[resamples]`` of pairs in which the student's episode earns more, of seeds drawn anew, the same for both."""
    episodes = len(student)
    drawn = draws.multinomial(episodes, np.full(episodes, 1 / episodes), size=resamples).astype(np.float64)
    return np.einsum("re,re->r", drawn @ wins(student, teacher), drawn) / episodes**2
