"""Registration of environments that installed packages contain but do not register with Gymnasium."""

from __future__ import annotations

import importlib
import re
from typing import Any

import gymnasium as gym

from policy_distill.config import RequestError

MINATAR_GAMES = ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")
"""Games of MinAtar (Young and Tian 2019, arXiv 1903.03176); v0 has six actions in each game, v1 only those with an effect."""

ATARI = r"ALE/\w+-v5|\w+(NoFrameskip|Deterministic)-v[04]"
"""Pattern of the ids of ale-py's games."""
_EXTRAS = {"minatar.gym": "minatar", "ale_py.env": "atari"}
"""Module of the environments -> the extra of this package that installs it."""


def register_known(gym_id: str) -> None:
    """Register the environment with Gymnasium if it is a known one.

    For a game of ale-py this imports ale-py; other packages are imported when the environment is made.

    Raises:
        RequestError: for a game of ale-py if ale-py is not installed.
    """
    if re.fullmatch(ATARI, gym_id) and gym_id not in gym.registry:
        _register_atari(gym_id)
    if gym_id in gym.registry or gym_id not in _known():
        return
    entry_point, kwargs = _known()[gym_id]
    gym.register(gym_id, entry_point, kwargs=kwargs)


def _register_atari(gym_id: str) -> None:
    try:
        ale_py = importlib.import_module("ale_py")
    except ImportError as error:
        raise RequestError(f'{gym_id} needs a package that is not installed: pip install "policy-distill[atari]"') from error
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # otherwise each game prints to the terminal
    gym.register_envs(ale_py)


def extra_of(entry_point: str) -> str | None:
    """The extra of this package that installs the entry point's package; None if there is none."""
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
