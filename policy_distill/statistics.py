"""Retention and its interval: pure functions of arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

RESAMPLES = 10_000


@dataclass(frozen=True)
class Retention:
    """Share of what the teacher adds over a random policy that the student keeps: ``(student - random) / (teacher - random)``.

    Attributes:
        estimate: of the mean returns; nan where teacher and random policy cannot be told apart.
        low, high: ends of the paired bootstrap interval; nan likewise.
        confidence: of the interval.
        episodes: paired episodes behind it.
    """

    estimate: float
    low: float
    high: float
    confidence: float
    episodes: int

    @property
    def defined(self) -> bool:
        """False where teacher and random policy cannot be told apart: then there is nothing that could be kept."""
        return bool(np.isfinite(self.estimate))


def retention(
    student: np.ndarray, teacher: np.ndarray, random: np.ndarray, *, confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> Retention:
    """Estimate the retention from returns on the same seeds, with a percentile bootstrap over episodes (Efron & Tibshirani 1993, ch. 13).

    An episode is drawn with all three of its returns, so that what the seed does to them alike cancels.

    Args:
        student, teacher, random: ``[E]``, returns on the same E seeds in the same order.
        confidence: of the two-sided interval.
        seed: of the resampling; the same arrays give the same interval.
        resamples: bootstrap samples.

    Returns:
        the estimate and its interval; undefined (nan) where the interval of ``teacher - random`` reaches zero.

    Raises:
        ValueError: if the arrays differ in length or hold fewer than two episodes.
    """
    if not (student.shape == teacher.shape == random.shape and student.ndim == 1 and len(student) >= 2):
        raise ValueError(f"need three arrays of the same E >= 2 returns, got {student.shape}, {teacher.shape}, {random.shape}")
    rows = np.stack([student, teacher, random]).astype(np.float64)
    episodes = rows.shape[1]
    draws = np.random.default_rng(seed).multinomial(episodes, np.full(episodes, 1 / episodes), size=resamples)
    student_means, teacher_means, random_means = rows @ draws.T / episodes
    tail = 100 * (1 - confidence) / 2
    gaps = teacher_means - random_means
    if np.percentile(gaps, tail) <= 0:
        return Retention(float("nan"), float("nan"), float("nan"), confidence, episodes)
    mean_student, mean_teacher, mean_random = rows.mean(axis=1)
    above = gaps > 0  # the few samples whose teacher is not above the random policy have no retention
    low, high = np.percentile((student_means - random_means)[above] / gaps[above], [tail, 100 - tail])
    return Retention(float((mean_student - mean_random) / (mean_teacher - mean_random)), float(low), float(high), confidence, episodes)


def contrast(student: np.ndarray, teacher: np.ndarray, random: np.ndarray, share: float) -> np.ndarray:
    """What a student earns above ``share`` of what the teacher adds over a random policy, seed by seed.

    ``student - share * teacher - (1 - share) * random``, linear in the returns: of a teacher that is better than chance, its
    mean is above zero exactly where the retention of the means is above ``share``, whatever the signs of the returns.

    Args:
        student, teacher, random: ``[E]`` on the same seeds.
        share: of the retention that is asked for.

    Returns:
        ``[E]``.
    """
    return student - share * teacher - (1 - share) * random


def shows_positive_mean(values: np.ndarray, confidence: float = 0.95) -> bool:
    """Whether a one-sided t-test on ``values`` ``[E]`` shows a mean above zero; values that never vary are taken at their word."""
    count = len(values)
    mean, spread = float(values.mean()), float(values.std(ddof=1)) if count > 1 else float("inf")
    if spread == 0:
        return mean > 0
    return count > 1 and bool(stdtr(count - 1, mean / (spread / count**0.5)) > confidence)


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of the middle half of ``values`` ``[N]``, the outer quarters weighed away fractionally (Agarwal et al. 2021)."""
    ordered = np.sort(np.asarray(values, np.float64))
    count = len(ordered)
    edges = np.arange(count + 1) / count
    weights = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0, None)
    return float((ordered * weights).sum() / weights.sum())
