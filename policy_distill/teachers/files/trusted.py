"""Loading an agent with Stable-Baselines3 itself, which executes code in the file: only if the user gives ``--trust``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from policy_distill.config import RequestError
from policy_distill.teachers.algorithms import ALGORITHMS

SB3_PACKAGES = ("stable_baselines3.", "sb3_contrib.")


def load_model(path: Path, algo: str | None, spaces: dict[str, Any]) -> Any:
    """Load the zip with the class of ``algo`` on the CPU, with a minimal replay buffer.

    Args:
        path: the agent's zip.
        algo: the algorithm.
        spaces: ``observation_space`` and ``action_space`` if they could be read as data, so that they are not unpickled.

    Raises:
        RequestError: if the algorithm is not known or Stable-Baselines3 cannot load the file.
    """
    known = {name: algorithm.sb3_class for name, algorithm in ALGORITHMS.items() if not algorithm.has_memory}
    if algo in ALGORITHMS and algo not in known:
        raise RequestError(f"{path} has a memory (RecurrentPPO) and cannot be rebuilt from plain data; --trust does not load such agents")
    if algo not in known:
        raise RequestError(f"{path}: the algorithm is not told by the file; name it (--algo ppo); known: {', '.join(sorted(known))}")
    package, _, name = known[algo].rpartition(".")
    try:
        model_class = getattr(importlib.import_module(package), name)
    except ImportError as error:
        raise RequestError(f"{path} needs {package}; install it: pip install 'policy-distill[contrib]'") from error
    # Schedules of an older Python do not unpickle under a newer one, and acting needs none.
    schedules = ("lr_schedule", "clip_range", "exploration_schedule", "delta_std_schedule")
    replaced: dict[str, Any] = dict.fromkeys(schedules, _zero)
    replaced |= {"learning_rate": 0.0, "buffer_size": 1, "clip_range_vf": None, "action_noise": None, "_last_obs": None} | spaces
    try:
        with _gym_as_gymnasium(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Could not deserialize object")  # it does not act, but for
            warnings.filterwarnings("error", r"Could not deserialize object policy_kwargs")  # without which a default network is built
            return model_class.load(path, device="cpu", custom_objects=replaced)
    except Exception as error:  # the file decides what is raised
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        way = "name its features extractor with --extractor if it has one of its own, or load it yourself for Teacher.from_sb3"
        raise RequestError(f"Stable-Baselines3 cannot load {path} as {algo} ({reason}); {way}") from error


def algorithm_of(model: Any) -> str | None:
    """The algorithm of a live model, by its class or the nearest ancestor that Stable-Baselines3 or sb3-contrib defines."""
    names = {algorithm.sb3_class.rpartition(".")[2]: name for name, algorithm in ALGORITHMS.items()}
    for ancestor in type(model).__mro__:
        if ancestor.__module__.startswith(SB3_PACKAGES) and ancestor.__name__ in names:
            return names[ancestor.__name__]
    return None


def _zero(_: float) -> float:
    return 0.0


@contextmanager
def _gym_as_gymnasium() -> Iterator[None]:
    """Let pickles that name ``gym`` find gymnasium, where ``gym`` is not installed."""
    import gymnasium  # noqa: F401

    if "gym" in sys.modules or importlib.util.find_spec("gym") is not None:
        yield
        return
    aliases = {"gym" + name.removeprefix("gymnasium"): module for name, module in sys.modules.items() if name.split(".")[0] == "gymnasium"}
    sys.modules.update(aliases)
    try:
        yield
    finally:
        for name in aliases:
            sys.modules.pop(name, None)
