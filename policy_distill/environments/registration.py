"""Environments that a package holds without registering them with Gymnasium: registered when they are first named."""

from __future__ import annotations

import re
from typing import Any

import gymnasium as gym

MINATAR_GAMES = ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")
"""Of MinAtar (Young and Tian 2019, arXiv 1903.03176); v0 has six actions in each game, v1 those that do something in it."""

_EXTRAS = {"minatar.gym": "minatar"}
"""Module of the environments -> the extra of this package that installs it."""


def register_known(gym_id: str) -> None:
    """Register the environment with Gymnasium if it is one of these. Nothing is imported before the environment is made."""
    if gym_id in gym.registry or gym_id not in _known():
        return
    entry_point, kwargs = _known()[gym_id]
    gym.register(gym_id, entry_point, kwargs=kwargs)


def extra_of(entry_point: str) -> str | None:
    """The extra of this package that installs the environments of an entry point; None if there is none."""
    shipped = re.match(r"gymnasium\.envs\.(box2d|mujoco)\.", entry_point)
    return shipped[1] if shipped else _EXTRAS.get(entry_point.partition(":")[0])


def _known() -> dict[str, tuple[str, dict[str, Any]]]:
    games = {
        f"MinAtar/{game}-v{version}": (
            "minatar.gym:BaseEnv",
            {"game": re.sub(r"(?<!^)(?=[A-Z])", "_", game).lower(), "use_minimal_action_set": version == 1},
        )
        for game in MINATAR_GAMES
        for version in (0, 1)
    }
    return games | {
        "BitFlippingEnv-v0": ("stable_baselines3.common.envs.bit_flipping_env:BitFlippingEnv", {}),
        "SingleMachine-v0": ("policy_distill.environments.single_machine:SingleMachine", {}),
    }
