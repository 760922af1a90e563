"""Environments with a fault that environment variables choose, for whole commands: ``--env tests.faulty_worlds:Faulty-v0``.

``FAULT`` names the fault. ``FAULT_IN`` says where it happens: ``validation`` (validation seeds), ``collect`` (collecting), ``polish``
(rollouts of PPO), ``check`` (before the work). ``FAULT_ONCE`` names a file: the fault happens if it does not exist, and makes it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

STEP = 9
"""Step of an episode in which the fault happens."""


def hang() -> None:
    """Ignore everything that Python code can ignore."""
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(0.1)


FAULTS: dict[str, Callable[[], object]] = {
    "raise": lambda: (_ for _ in ()).throw(ConnectionError("the simulator lost\nits connection")),
    "hang": hang,
    "hang in C": lambda: ctypes.PyDLL(None).sleep(10_000),  # keeps the interpreter lock
    "exit": lambda: os._exit(3),
    "sys.exit": lambda: sys.exit(4),
    "segfault": lambda: ctypes.string_at(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "child": lambda: subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3)"]) and os._exit(5),
}
KINDS = (*FAULTS, "NaN observation", "NaN reward")


def first_to_make(path: Path) -> bool:
    """Whether this call made the file, of all processes that try."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class _Faults:
    """Calls the fault where ``step`` and ``reset`` of the environment that follows in the order of classes return."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.steps, self.where = 0, "collect" if seed is not None and seed > 10_000_000 else "polish"
        if seed is not None:
            self.where = {1: "final", 2: "validation", 3: "check", 4: "comparison"}.get(seed // 1_000_000, self.where)
        return super().reset(seed=seed, options=options)  # type: ignore[misc]

    def step(self, action: Any) -> Any:
        self.steps += 1
        observation, reward, *rest = super().step(action)  # type: ignore[misc]
        wanted, once = os.environ.get("FAULT", ""), os.environ.get("FAULT_ONCE")
        if not wanted or self.steps != STEP or os.environ.get("FAULT_IN") != self.where or (once and not first_to_make(Path(once))):
            return observation, reward, *rest
        if wanted == "NaN observation":
            observation = np.array([0.0, np.nan, 0.0, 0.0], np.float32)
        elif wanted == "NaN reward":
            reward = float("nan")
        else:
            FAULTS[wanted]()
        return observation, reward, *rest


class Faulty(_Faults, CartPoleEnv):
    """CartPole; see the module."""


class FaultyWrapper(_Faults, gym.Wrapper):
    """Around any environment: ``--wrapper tests.faulty_worlds:FaultyWrapper``."""


gym.register("Faulty-v0", entry_point=Faulty, max_episode_steps=200)  # type: ignore[arg-type]
