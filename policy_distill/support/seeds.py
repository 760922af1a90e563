"""Seeds that follow from others."""

from __future__ import annotations

import numpy as np


def derived_seed(*numbers: int) -> int:
    """A seed below 2**32 that these numbers alone decide; other numbers, such as a stage's own, give one that has nothing to do with it."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
