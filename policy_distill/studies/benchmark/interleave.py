"""Timing variants of one thing in turns: what the machine does meanwhile meets all of them alike, and ratios hold where times do not."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Timing:
    """What one variant took for one unit of work (a step, an episode, a student), turn by turn.

    Attributes:
        wall_seconds, cpu_seconds: ``[R]`` a unit; CPU time is this process's and its ended or reaped children's.
    """

    wall_seconds: np.ndarray
    cpu_seconds: np.ndarray


@dataclass(frozen=True)
class Ratio:
    """How many times less one variant takes than another: the median over the turns and its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def between(cls, slow: np.ndarray, fast: np.ndarray) -> Ratio:
        """From the seconds of two variants in the same turns, both ``[R]``."""
        low, median, high = np.percentile(slow / fast, [25, 50, 75])
        return cls(float(median), float(low), float(high))


def interleave(variants: Mapping[str, Callable[[], int]], *, turns: int) -> dict[str, Timing]:
    """Run every variant once to warm up, then all of them in turn, ``turns`` times.

    Args:
        variants: name -> does some work and returns how many units it did.
        turns: R; the order is reversed in every second one, so that none profits from its place.
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
