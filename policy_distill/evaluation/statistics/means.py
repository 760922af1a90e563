"""Tests of a mean for the distributions of real returns: skewed, discrete, and with rare failures that the sample may have missed."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtri, stdtr

ROUNDING = 1e-12
"""Relative tolerance, with respect to the largest value, below which values count as equal."""


def contrast(student: np.ndarray, teacher: np.ndarray, random: np.ndarray, share: float) -> np.ndarray:
    """Contrast ``student - share * teacher - (1 - share) * random`` of each seed.

    It is linear in the returns. If the teacher is better than a random policy, its mean is positive exactly if the retention of the
    means is above ``share``, whatever the signs of the returns.

    Args:
        student, teacher, random: ``[E]`` on the same seeds.
        share: the retention to test.

    Returns:
        ``[E]``.
    """
    return student - share * teacher - (1 - share) * random


def shows_positive_mean(values: np.ndarray, confidence: float = 0.95) -> bool:
    """Whether a one-sided t-test on ``values`` ``[E]`` shows a mean above zero; constant values pass if they are positive."""
    count = len(values)
    mean, spread = float(values.mean()), float(values.std(ddof=1)) if count > 1 else float("inf")
    if spread == 0:
        return mean > 0
    return count > 1 and bool(stdtr(count - 1, mean / (spread / count**0.5)) > confidence)


def episodes_to_show(values: np.ndarray, confidence: float = 0.95, power: float = 0.8) -> int | None:
    """Sample size at which ``shows_positive_mean`` has the given power, if the mean and standard deviation of ``values`` ``[E]`` are true.

    By the normal approximation. None for a single value, and if the mean is not positive.
    """
    if len(values) < 2 or values.mean() <= 0:
        return None
    return math.ceil(((ndtri(confidence) + ndtri(power)) * values.std(ddof=1) / values.mean()) ** 2)


def skewness(values: np.ndarray) -> np.ndarray:
    """Third central moment over the cubed standard deviation, ``[..., E]`` to ``[...]``; 0 for constant values."""
    largest = np.abs(values).max(-1, keepdims=True)
    scaled = values / np.where(largest > 0, largest, 1.0)  # the cube of a tiny spread would underflow
    centred = scaled - scaled.mean(-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(-1))
    varies = spread > ROUNDING
    third = (centred * centred * centred).mean(-1)  # ten times as fast as a power of 3
    return np.where(varies, third, 0.0) / np.where(varies, spread, 1.0) ** 3


def without_skewness(t: np.ndarray, gamma: np.ndarray, count: int) -> np.ndarray:
    r"""Skewness correction of a t-statistic (Hall 1992, J. R. Stat. Soc. B 54, eq. 2.2).

    ``t + a t^2 + a^2 t^3 / 3 + gamma / (6 sqrt(count))`` with ``a = gamma / (3 sqrt(count))``. The errors of the mean and of the standard
    deviation of left-skewed values are correlated, so that a plain t-statistic is too large too often. Monotone in ``t``.

    Args:
        t: ``[...]``.
        gamma: ``[...]``, skewness of the values.
        count: number of values.

    Returns:
        ``[...]``; ``t`` itself if it is infinite.
    """
    finite = np.isfinite(t)
    bounded = np.where(finite, t, 0.0)
    a = gamma / (3 * count**0.5)
    return np.where(finite, bounded + a * bounded**2 + a**2 * bounded**3 / 3 + a / 2, t)


def t_statistic(values: np.ndarray) -> np.ndarray:
    """Mean over its standard error, ``[..., E]`` to ``[...]``; infinite for constant values, but 0 for zeros."""
    return _ratio(values.mean(-1), values.std(-1, ddof=1), np.abs(values).max(-1), values.shape[-1])


def guarded_statistic(values: np.ndarray, doubt: np.ndarray | float, gamma: np.ndarray | None = None) -> np.ndarray:
    """A conservative statistic for a mean above zero, on the scale of a t-statistic with E degrees of freedom.

    Two guards keep the error of a test within its level where a plain t-test exceeds it many times (docs/statistics.md):

    - One pseudo-observation ``-doubt`` is added: a loss that the sample may have missed. A student that falls in one episode of twenty
      falls in none of fifty with a probability of 8 %, and its t-statistic is then unbounded. With the guard, E equal values v and a
      doubt d give the statistic ``(E v - d) / (v + d)``, which is bounded as in the rule of three.
    - The result is the smaller of the statistic and its skewness correction ``without_skewness``.

    Args:
        values: ``[..., E]``.
        doubt: ``[...]``, ``>= 0``.
        gamma: ``skewness(values)``, if already known.

    Returns:
        ``[...]``.
    """
    count = values.shape[-1] + 1
    doubt = np.asarray(doubt, np.float64)
    mean = (values.sum(-1) - doubt) / count
    squares = ((values - mean[..., None]) ** 2).sum(-1) + (doubt + mean) ** 2
    t = _ratio(mean, np.sqrt(squares / (count - 1)), np.maximum(np.abs(values).max(-1), doubt), count)
    return np.minimum(t, without_skewness(t, skewness(values) if gamma is None else gamma, count))


def _ratio(mean: np.ndarray, spread: np.ndarray, largest: np.ndarray, count: int) -> np.ndarray:
    """``mean / (spread / sqrt(count))``, or its limit for zero spread."""
    varies = spread > ROUNDING * largest
    limit = np.where(np.abs(mean) > ROUNDING * largest, np.copysign(np.inf, mean), 0.0)
    return np.where(varies, mean * count**0.5 / np.where(varies, spread, 1.0), limit)
