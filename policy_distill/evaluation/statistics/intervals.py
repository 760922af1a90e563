"""Retention and its interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit

from policy_distill.evaluation.statistics.means import ROUNDING, contrast, skewness, t_statistic, without_skewness

RESAMPLES = 10_000
SKEWNESS_SHARE = 0.5
"""Fraction of the sample's skewness that the interval's test corrects for. With 1, rare falls are over-corrected (98 % coverage of nominal
95 %); with 0, coverage is 91 %; see docs/statistics.md."""


@dataclass(frozen=True)
class Retention:
    """Retention ``(student - random) / (teacher - random)`` of mean returns, with an interval.

    Attributes:
        estimate: the retention; nan if the teacher is not distinguishable from a random policy.
        low, high: ends of the paired interval; nan in the same case.
        confidence: confidence level of the interval.
        episodes: number of paired episodes.
    """

    estimate: float
    low: float
    high: float
    confidence: float
    episodes: int

    @property
    def defined(self) -> bool:
        """Whether the teacher is distinguishable from a random policy; otherwise the retention is undefined."""
        return bool(np.isfinite(self.estimate))


def retention(
    student: np.ndarray,
    teacher: np.ndarray,
    random: np.ndarray,
    *,
    confidence: float = 0.95,
    method: Literal["test", "bootstrap"] = "test",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Retention:
    """Estimate the retention from returns on the same seeds, with a paired interval.

    ``test`` inverts a two-sided test of ``contrast`` (Fieller 1954) whose t-statistic is corrected for half the skewness
    (``without_skewness``). ``bootstrap`` takes percentiles over resampled episodes (Efron & Tibshirani 1993, ch. 13), each with all three
    of its returns. In both, effects of the seed that are common to the three returns cancel. ``test`` has the better coverage for students
    that fall in a few episodes.

    Args:
        student, teacher, random: ``[E]``, returns on the same E seeds in the same order.
        confidence: confidence level of the two-sided interval.
        method: method of the interval.
        seed: seed of the bootstrap; the same arrays give the same interval.
        resamples: number of bootstrap samples.

    Returns:
        the estimate and its interval; undefined (nan) if the interval of ``teacher - random`` includes zero.

    Raises:
        ValueError: if the arrays differ in length, have fewer than two episodes, or contain a return that is not finite.
    """
    rows = paired(student, teacher, random)
    ends = _bootstrap_ends(rows, confidence, seed, resamples) if method == "bootstrap" else _test_ends(rows, confidence)
    episodes = rows.shape[1]
    if ends is None:
        return Retention(float("nan"), float("nan"), float("nan"), confidence, episodes)
    return Retention(retention_of_means(*rows), *ends, confidence, episodes)


def retention_of_means(student: np.ndarray, teacher: np.ndarray, random: np.ndarray) -> float:
    """Retention of the mean returns; nan where the teacher earns no more than a random policy.

    Args:
        student, teacher, random: ``[E]``, returns on the same seeds.
    """
    top, chance = teacher.mean(), random.mean()
    return float((student.mean() - chance) / (top - chance)) if top > chance else float("nan")


def retention_standard_error(student: np.ndarray, teacher: np.ndarray, random: np.ndarray) -> float:
    """Standard error of ``retention_of_means``, paired by seed; nan where that is nan or there is one episode.

    The delta method for a ratio of means: the spread of ``contrast`` at the estimate, over the gap of teacher and random policy.
    """
    count, share = len(student), retention_of_means(student, teacher, random)
    if count < 2 or not np.isfinite(share):
        return float("nan")
    spread = contrast(student, teacher, random, share).std(ddof=1)
    return float(spread / count**0.5 / (teacher.mean() - random.mean()))


def paired(student: np.ndarray, teacher: np.ndarray, random: np.ndarray) -> np.ndarray:
    """Stack returns on the same seeds to float64 ``[3, E]``.

    Raises:
        ValueError: if the arrays differ in length, have fewer than two episodes, or contain a return that is not finite.
    """
    if not (student.shape == teacher.shape == random.shape and student.ndim == 1 and len(student) >= 2):
        raise ValueError(f"need three arrays of the same E >= 2 returns, got {student.shape}, {teacher.shape}, {random.shape}")
    rows = np.stack([student, teacher, random]).astype(np.float64)
    if not np.isfinite(rows).all():
        raise ValueError("a return is nan or infinite: the environment's rewards are invalid")
    return rows


def interval_statistic(student: np.ndarray, teacher: np.ndarray, random: np.ndarray, *, share: float) -> np.ndarray:
    """The test statistic that the interval inverts, ``[..., E]`` to ``[...]``; large if the retention is above ``share``."""
    return _half_corrected(contrast(student, teacher, random, share))


def share_where(excess: Callable[[float], float], inside: float, step: float) -> float:
    """The share nearest to ``inside`` in the direction of ``step`` at which ``excess`` becomes positive; infinite if it never does.

    Args:
        excess: statistic of a share minus the critical value; not positive at ``inside``.
        inside: a share that is not rejected.
        step: first step outwards; doubled until the share is rejected.
    """
    near = inside
    for _ in range(50):
        far = near + step
        if excess(far) > 0:
            return float(brentq(excess, near, far, xtol=1e-9)) if excess(near) <= 0 else near
        near, step = far, 2 * step
    return float(np.sign(step) * np.inf)


def _half_corrected(values: np.ndarray) -> np.ndarray:
    return without_skewness(t_statistic(values), SKEWNESS_SHARE * skewness(values), values.shape[-1])


def _test_ends(rows: np.ndarray, confidence: float) -> tuple[float, float] | None:
    critical = float(stdtrit(rows.shape[1] - 1, 1 - (1 - confidence) / 2))
    gaps = rows[1] - rows[2]
    if not float(_half_corrected(gaps)) > critical:
        return None
    estimate = retention_of_means(*rows)
    spread = contrast(rows[0], rows[1], rows[2], estimate).std(ddof=1)
    if spread <= ROUNDING * np.abs(rows).max():
        return estimate, estimate
    step = critical * float(spread) / rows.shape[1] ** 0.5 / float(gaps.mean())
    low = share_where(lambda share: float(interval_statistic(*rows, share=share)) - critical, estimate, -step)
    high = share_where(lambda share: -float(interval_statistic(*rows, share=share)) - critical, estimate, step)
    return low, high


def _bootstrap_ends(rows: np.ndarray, confidence: float, seed: int, resamples: int) -> tuple[float, float] | None:
    student_means, teacher_means, random_means = bootstrap_means(rows, np.random.default_rng(seed), resamples)
    gaps = teacher_means - random_means
    if percentile_ends(gaps, confidence)[0] <= 0:
        return None
    above = gaps > 0  # the retention is undefined in samples where the teacher is not above the random policy
    return percentile_ends((student_means - random_means)[above] / gaps[above], confidence)


def percentile_ends(resampled: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Ends of the two-sided percentile interval of bootstrap samples ``[resamples]`` (Efron & Tibshirani 1993, ch. 13)."""
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return float(low), float(high)


def bootstrap_means(rows: np.ndarray, generator: np.random.Generator, resamples: int) -> np.ndarray:
    """Means ``[rows, resamples]`` of episodes drawn with replacement from ``rows`` ``[rows, E]``, the same episodes in all rows."""
    episodes = rows.shape[1]
    draws = generator.multinomial(episodes, np.full(episodes, 1 / episodes), size=resamples)
    return np.asarray(rows @ draws.T / episodes)
