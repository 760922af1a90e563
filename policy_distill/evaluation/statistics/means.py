"""Tests of a mean that hold for returns as they are: skewed, of few values, and with rare falls that nobody has seen yet."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtri, stdtr

ROUNDING = 1e-12
"""Values that differ by less than this share of the largest of them are equal."""


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


def episodes_to_show(values: np.ndarray, confidence: float = 0.95, power: float = 0.8) -> int | None:
    """How many values like these ``[E]`` show a mean above zero with the probability ``power``, if their mean and spread are the true ones.

    For ``shows_positive_mean`` at ``confidence``, by the normal approximation; None for a single value, and where the mean is not above
    zero.
    """
    if len(values) < 2 or values.mean() <= 0:
        return None
    return math.ceil(((ndtri(confidence) + ndtri(power)) * values.std(ddof=1) / values.mean()) ** 2)


def skewness(values: np.ndarray) -> np.ndarray:
    """Third central moment over the standard deviation cubed, ``[..., E]`` to ``[...]``; 0 where the values do not vary."""
    largest = np.abs(values).max(-1, keepdims=True)
    scaled = values / np.where(largest > 0, largest, 1.0)  # the cube of a tiny spread would be no number
    centred = scaled - scaled.mean(-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(-1))
    varies = spread > ROUNDING
    third = (centred * centred * centred).mean(-1)  # ten times as fast as a power of 3
    return np.where(varies, third, 0.0) / np.where(varies, spread, 1.0) ** 3


def without_skewness(t: np.ndarray, gamma: np.ndarray, count: int) -> np.ndarray:
    r"""Make a t-statistic of skewed values one that is distributed nearly as of normal values (Hall 1992, J. R. Stat. Soc. B 54, eq. 2.2).

    ``t + a t^2 + a^2 t^3 / 3 + gamma / (6 sqrt(count))`` with ``a = gamma / (3 sqrt(count))``: the mean of left-skewed values and
    their standard deviation err together, so that a t-statistic is too large too often. Monotone in ``t``.

    Args:
        t: ``[...]``.
        gamma: ``[...]``, skewness of the values.
        count: how many values.

    Returns:
        ``[...]``; as it was where ``t`` is infinite.
    """
    finite = np.isfinite(t)
    bounded = np.where(finite, t, 0.0)
    a = gamma / (3 * count**0.5)
    return np.where(finite, bounded + a * bounded**2 + a**2 * bounded**3 / 3 + a / 2, t)


def t_statistic(values: np.ndarray) -> np.ndarray:
    """Mean over its standard error, ``[..., E]`` to ``[...]``; infinite, or 0 of zeros, where the values do not vary."""
    return _ratio(values.mean(-1), values.std(-1, ddof=1), np.abs(values).max(-1), values.shape[-1])


def guarded_statistic(values: np.ndarray, doubt: np.ndarray | float, gamma: np.ndarray | None = None) -> np.ndarray:
    """How strongly ``values`` show a mean above zero, on the scale of a t-statistic with E degrees of freedom; the sceptic's reading.

    Two guards keep the error of a test within its level where a plain t-test's is many times that (docs/statistics.md):

    - One value, ``-doubt``, is counted that was never seen: the loss that the values seen so far may have been lucky to miss. A
      student that falls in one episode of twenty falls in none of fifty with a probability of 8 %, and its t-statistic is then
      without bounds. With the guard, E equal values v against a doubt d have a statistic of ``(E v - d) / (v + d)``: so many perfect
      episodes show so much and no more, as in the rule of three.
    - Of the statistic and its ``without_skewness``, the smaller counts.

    Args:
        values: ``[..., E]``.
        doubt: ``[...]``, ``>= 0``.
        gamma: ``skewness(values)``, where it is known already.

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
    """``mean / (spread / sqrt(count))``, or what it tends to where there is no spread."""
    varies = spread > ROUNDING * largest
    limit = np.where(np.abs(mean) > ROUNDING * largest, np.copysign(np.inf, mean), 0.0)
    return np.where(varies, mean * count**0.5 / np.where(varies, spread, 1.0), limit)
