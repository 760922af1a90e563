"""Derived random seeds."""

from __future__ import annotations

import numpy as np


def derived_seed(*numbers: int) -> int:
    """A seed below 2**32, derived deterministically from ``numbers``; different numbers give independent seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
