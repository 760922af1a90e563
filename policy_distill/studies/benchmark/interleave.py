"""Interleaved timing of variants: other load on the machine affects all of them alike, so ratios are reliable where times are not."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Timing:
    """Time of one variant per unit of work (a step, an episode, a student), for each turn.

    Attributes:
        wall_seconds, cpu_seconds: ``[R]`` per unit; CPU time includes child processes that have ended.
    """

    wall_seconds: np.ndarray
    cpu_seconds: np.ndarray


@dataclass(frozen=True)
class Ratio:
    """Speed-up of one variant over another: the median over the turns and its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def between(cls, slow: np.ndarray, fast: np.ndarray) -> Ratio:
        """The speed-up from the seconds of two variants in the same turns, both ``[R]``."""
        low, median, high = np.percentile(slow / fast, [25, 50, 75])
        return cls(float(median), float(low), float(high))


def interleave(variants: Mapping[str, Callable[[], int]], *, turns: int) -> dict[str, Timing]:
    """Run every variant once to warm up, then all of them in turn, ``turns`` times.

    Args:
        variants: name -> function that does some work and returns its number of units.
        turns: R; every second turn has the reverse order, so that no variant benefits from its position.
    """
    for work in variants.values():
        work()
    wall: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(turns):
        for name in list(variants) if turn % 2 == 0 else reversed(list(variants)):
            began, spent = time.perf_counter(), cpu_seconds()
            units = variants[name]()
            wall[name].append((time.perf_counter() - began) / units)
            cpu[name].append((cpu_seconds() - spent) / units)
    return {name: Timing(np.array(wall[name]), np.array(cpu[name])) for name in variants}


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
