"""Aggregates of scores over many agents (Agarwal et al. 2021, arXiv 2108.13264)."""

from __future__ import annotations

import numpy as np


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of the middle half of ``values`` ``[N]``, with fractional weights at the quartiles (Agarwal et al. 2021)."""
    ordered = np.sort(np.asarray(values, np.float64))
    count = len(ordered)
    edges = np.arange(count + 1) / count
    weights = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0, None)
    return float((ordered * weights).sum() / weights.sum())


def geometric_mean(values: np.ndarray) -> float:
    """``exp`` of the mean logarithm of ``values`` ``[N]``, for ratios; 0 if any value is 0.

    Raises:
        ValueError: if a value is negative, as retentions may be.
    """
    if not (np.asarray(values) >= 0).all():
        raise ValueError(f"a geometric mean needs values >= 0, the smallest is {np.min(values)}")
    with np.errstate(divide="ignore"):  # log(0) is -inf, and exp(-inf) is 0
        return float(np.exp(np.log(values).mean()))


def optimality_gap(values: np.ndarray, target: float = 1.0) -> float:
    """Mean of ``max(target - value, 0)`` over ``values`` ``[N]`` (Agarwal et al. 2021, sec. 4.3)."""
    return float(np.maximum(target - np.asarray(values, np.float64), 0.0).mean())


def wins(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """For each pair of ``first`` ``[N]`` and ``second`` ``[M]``: 1 if the first is larger, 0.5 if equal, else 0; ``[N, M]``."""
    return 0.5 + 0.5 * np.sign(np.subtract.outer(first, second))
