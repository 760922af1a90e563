"""Which observations are images, and how they lie."""

from __future__ import annotations

import gymnasium as gym
import numpy as np


def is_image(space: gym.Space | None) -> bool:
    """Whether Stable-Baselines3 reads such observations as images, which it scales and turns: uint8 of three axes from 0 to 255."""
    three = isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3
    return three and bool((space.low == 0).all() and (space.high == 255).all())  # type: ignore[union-attr]


def channels_come_first(space: gym.Space) -> bool:
    """Whether Stable-Baselines3 takes an image for ``[C, H, W]``: where no axis is shorter than the first."""
    return int(np.argmin(space.shape)) == 0  # type: ignore[arg-type]
