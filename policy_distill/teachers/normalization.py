"""VecNormalize statistics, read from their pickle without executing it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policy_distill.config import RequestError
from policy_distill.teachers.inert import Inert, load_inert, plain_array

MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class ObservationNormalization:
    """``clip((observation - mean) / sqrt(var + epsilon), -clip, clip)``, what the agent saw in training."""

    mean: np.ndarray
    """float64, of the observation's shape."""
    var: np.ndarray
    epsilon: float
    clip: float

    def __post_init__(self) -> None:
        if self.mean.shape != self.var.shape or not (np.isfinite(self.mean).all() and np.isfinite(self.var).all()):
            raise RequestError("the observation statistics are not finite or their shapes differ; save VecNormalize again")
        if not (math.isfinite(self.epsilon) and self.clip > 0 and (self.var + self.epsilon > 0).all()):
            raise RequestError("the observation statistics have a variance, epsilon or clip that is not positive; save VecNormalize again")


def read_normalization(path: str | Path) -> ObservationNormalization | None:
    """Read ``vecnormalize.pkl`` as saved by ``VecNormalize.save``, of any Stable-Baselines3 version.

    Every class and function that the pickle names becomes an inert record of its arguments; arrays are then made of the recorded bytes.

    Returns:
        None if the file says that observations are not normalised (``norm_obs=False``).

    Raises:
        RequestError: if the file is missing, damaged, no VecNormalize, or one of Dict observations.
    """
    path = Path(path)
    state = _read_state(path)
    if not state["norm_obs"]:
        return None
    statistics = state.get("obs_rms")
    if isinstance(statistics, dict) or (isinstance(statistics, Inert) and statistics.name == "collections.OrderedDict"):
        raise RequestError(f"{path} normalises Dict observations, which are not supported: agents on one flat vector are")
    with _damage_in_one_line(path):
        fields = statistics.state  # type: ignore[union-attr]
        return ObservationNormalization(
            mean=plain_array(fields["mean"]),
            var=plain_array(fields["var"]),
            epsilon=float(plain_array(state["epsilon"])),
            clip=float(plain_array(state["clip_obs"])),
        )


def read_reward_scale(path: str | Path, *, normalized: bool | None = None) -> float | None:
    """Read from a file as saved by ``VecNormalize.save`` what rewards were divided by in training: ``sqrt(ret_rms.var + epsilon)``.

    Args:
        path: of the file.
        normalized: whether rewards were normalised in training, where the run's settings tell; None: the file's own word counts.

    Returns:
        ``> 0``; 1 if rewards were not normalised; None if nothing tells: where the file says ``norm_reward=False`` and ``training=False``,
        as both are set for evaluation.

    Raises:
        RequestError: if the file is missing, damaged, no VecNormalize, or its variance is not finite and positive.
    """
    path = Path(path)
    state = _read_state(path)
    if normalized is None and state.get("norm_reward") is False:
        return None if state.get("training") is False else 1.0
    if normalized is False:
        return 1.0
    with _damage_in_one_line(path):
        return reward_scale_of(float(plain_array(state["ret_rms"].state["var"])), float(plain_array(state["epsilon"])))


def reward_scale_of(variance: float, epsilon: float) -> float:
    """What VecNormalize divides rewards by, ``sqrt(variance + epsilon)``.

    Raises:
        RequestError: if it is not finite and positive.
    """
    if not (math.isfinite(variance + epsilon) and variance + epsilon > 0):
        raise RequestError("the reward statistics have a variance that is not finite and positive; save VecNormalize again")
    return math.sqrt(variance + epsilon)


def _read_state(path: Path) -> dict[str, Any]:
    """The attributes of the saved VecNormalize, as plain values and inert records."""
    if not path.is_file():
        raise RequestError(f"{path} does not exist; name the vecnormalize.pkl that was saved with the agent")
    if path.stat().st_size > MAX_BYTES:
        raise RequestError(f"{path} is larger than the {MAX_BYTES} bytes that are read; statistics of vector observations are much smaller")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        saved = load_inert(content)
    except Exception as error:  # a hostile pickle may raise anything, and none of it is ours
        raise RequestError(_damaged(path)) from error
    state = saved.state if isinstance(saved, Inert) else None
    if not isinstance(state, dict) or not isinstance(state.get("norm_obs"), bool):
        raise RequestError(_damaged(path))
    return state


def _damaged(path: Path) -> str:
    return f"{path} is no readable VecNormalize pickle; save it again with VecNormalize.save, do not trust the file"


@contextmanager
def _damage_in_one_line(path: Path) -> Iterator[None]:
    """Name the file in whatever goes wrong with what it holds."""
    try:
        yield
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise RequestError(_damaged(path)) from error
