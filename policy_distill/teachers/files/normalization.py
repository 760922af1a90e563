"""VecNormalize statistics, read from their pickle without executing it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from policy_distill.config import RequestError
from policy_distill.policies.observations import observation_width
from policy_distill.support.trees import leaf_spaces, of_space
from policy_distill.support.untrusted import read_bytes, refuse_damage
from policy_distill.teachers.files.inert import Inert, load_inert, plain_array

MAX_BYTES = 64 << 20
FEW_DEVIATIONS = 1000
"""Number of standard deviations from zero above which float32 is too coarse for a component."""


@dataclass(frozen=True)
class ObservationNormalization:
    """Observation normalisation ``clip((observation - mean) / sqrt(var + epsilon), -clip, clip)``, as in training.

    If frames were normalised before stacking (``VecFrameStack`` around ``VecNormalize``, the RL Zoo's order), the statistics are those of
    one frame, repeated. The frames before an episode's first were zero after normalisation: raw observations have ``padding`` there,
    which is normalised to exactly zero.
    """

    mean: np.ndarray
    """float64, of the observation's shape; of a Dict, for the vector that ``encode_observations`` makes of it."""
    var: np.ndarray
    epsilon: float | np.ndarray
    clip: float | np.ndarray
    frames: int = 1
    """Number of stacked frames that share these statistics."""

    def __post_init__(self) -> None:
        if self.mean.shape != self.var.shape or not (np.isfinite(self.mean).all() and np.isfinite(self.var).all()):
            raise RequestError("the observation statistics are not finite or their shapes differ; save VecNormalize again")
        if not (np.isfinite(self.epsilon).all() and np.all(self.clip > 0) and (self.var + self.epsilon > 0).all()):
            raise RequestError("the observation statistics have a variance, epsilon or clip that is not positive; save VecNormalize again")

    def for_shape(self, shape: tuple[int, ...] | None) -> ObservationNormalization | None:
        """The statistics for observations of this shape: unchanged, or repeated for stacked frames; None if they do not fit."""
        if self.mean.shape == shape:
            return self
        if shape is not None and len(shape) == self.mean.ndim == 1 and self.mean.size and shape[0] % self.mean.size == 0:
            frames = shape[0] // self.mean.size
            return replace(self, mean=np.tile(self.mean, frames), var=np.tile(self.var, frames), frames=frames)
        return None

    @property
    def padding(self) -> np.ndarray | None:
        """The raw frame ``[size]`` that pads the stack before an episode's first; None if frames are not normalised separately."""
        return self.mean[: self.mean.size // self.frames] if self.frames > 1 else None

    def is_padding(self, observations: Tensor) -> Tensor:
        """Mask, bool ``[B, size]``, of the components of raw observations ``[B, size]`` in frames before an episode's first."""
        frames = observations.reshape(len(observations), self.frames, -1)
        padding = torch.as_tensor(self.mean, device=frames.device).to(frames.dtype).reshape(self.frames, -1)
        return (frames == padding).all(-1, keepdim=True).expand_as(frames).reshape(len(frames), -1)

    @property
    def is_far_from_zero(self) -> bool:
        """Whether float32 may be too coarse for some component: its steps are above 0.004 there, and it varies little for its size.

        The variance is no exact measure: VecNormalize's first estimate, around 0, widens it by ``mean**2 * 1e-4 / steps``.
        """
        distance = np.abs(self.mean)
        return bool(((distance > 2**16) & (distance > FEW_DEVIATIONS * np.sqrt(self.var + self.epsilon))).any())


Statistics: TypeAlias = ObservationNormalization | dict[str, ObservationNormalization]
"""Statistics of a VecNormalize, for one array or for the normalised keys of a Dict."""


def for_observations(statistics: Statistics, space: gym.Space) -> ObservationNormalization | None:
    """The statistics for observations of ``space``; None if they do not fit.

    Of a Dict, they are joined to those of the vector that ``encode_observations`` makes; keys without statistics pass as they are.
    """
    if not isinstance(statistics, dict):
        return None if isinstance(space, gym.spaces.Dict) else statistics.for_shape(space.shape)
    if not isinstance(space, gym.spaces.Dict) or any(statistics[key].mean.shape != _shape(space, key) for key in statistics):
        return None
    columns: list[list[np.ndarray]] = [[], [], [], []]
    for key, part in leaf_spaces(space).items():
        known, ones = statistics.get(key), np.ones(observation_width(part))
        of_key = (0.0, 1.0, 0.0, np.inf) if known is None else (known.mean.ravel(), known.var.ravel(), known.epsilon, known.clip)
        for column, values in zip(columns, of_key, strict=True):
            column.append(ones * values)
    mean, var, epsilon, clip = map(np.concatenate, columns)
    return ObservationNormalization(mean, var, epsilon, clip)


def required(statistics: Statistics, space: gym.Space, source: str, file: Path | None) -> ObservationNormalization:
    """``for_observations`` of the agent ``source``.

    Raises:
        RequestError: if the statistics, read from ``file``, do not fit.
    """
    if (found := for_observations(statistics, space)) is None:
        raise RequestError(
            f"{source}: the normalisation statistics are of shape {shape_of(statistics)}, its observations of "
            f"{of_space(space, lambda part: part.shape)}; {file or 'the vecnormalize.pkl'} is another agent's"
        )
    return found


def shape_of(statistics: Statistics) -> object:
    """The shape of the observations that they are of; of a Dict, by key."""
    return {key: known.mean.shape for key, known in statistics.items()} if isinstance(statistics, dict) else statistics.mean.shape


def _shape(space: gym.spaces.Dict, key: str) -> tuple[int, ...] | None:
    part = space.spaces.get(key)
    return part.shape if isinstance(part, gym.spaces.Box) else None


def read_normalization(path: str | Path) -> Statistics | None:
    """Read ``vecnormalize.pkl`` as saved by ``VecNormalize.save``, of any Stable-Baselines3 version.

    Classes and functions become inert records of their arguments; arrays are rebuilt from the recorded bytes.

    Returns:
        the statistics; None if observations are not normalised (``norm_obs=False``).

    Raises:
        RequestError: if the file is missing, damaged, or no VecNormalize.
    """
    path = Path(path)
    state = _read_state(path)
    if not state["norm_obs"]:
        return None
    with _damage_in_one_line(path):
        saved = _as_dict(state["obs_rms"])
        if saved is None:
            return _statistics(state, state["obs_rms"])
        keys = state.get("norm_obs_keys")  # until Stable-Baselines3 1.1 all keys were normalised
        return {str(key): _statistics(state, saved[key]) for key in (saved if keys is None else keys)}


def _as_dict(saved: object) -> Mapping[Any, Any] | None:
    """The saved statistics of a Dict observation by key; None if they are of one array."""
    if isinstance(saved, Inert) and saved.name == "collections.OrderedDict":
        return saved.entries
    return saved if isinstance(saved, dict) else None


def _statistics(state: Mapping[str, Any], moments: Any) -> ObservationNormalization:
    return ObservationNormalization(
        mean=plain_array(moments.state["mean"]),
        var=plain_array(moments.state["var"]),
        epsilon=float(plain_array(state["epsilon"])),
        clip=float(plain_array(state["clip_obs"])),
    )


def read_observation_count(path: str | Path) -> int:
    """The number of observations in the statistics of a file saved by ``VecNormalize.save``.

    VecNormalize counts one for each environment and step, and in newer versions one for each environment and ``reset()``.

    Raises:
        RequestError: if the file is missing, damaged, or no VecNormalize.
    """
    path = Path(path)
    state = _read_state(path)
    with _damage_in_one_line(path):
        saved = _as_dict(state["obs_rms"])
        moments = state["obs_rms"] if saved is None else next(iter(saved.values()))
        return round(float(plain_array(moments.state["count"])))


def read_reward_scale(path: str | Path, *, normalized: bool | None = None) -> float | None:
    """The reward scale ``sqrt(ret_rms.var + epsilon)`` in a file saved by ``VecNormalize.save``.

    Args:
        path: the file.
        normalized: whether rewards were normalised in training, if known from the run's settings; None: use the file's own flags.

    Returns:
        ``> 0``; 1 if rewards were not normalised; None if unknown: the file has ``norm_reward=False`` and ``training=False``, which are
        both set for evaluation.

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
    """VecNormalize's reward scale ``sqrt(variance + epsilon)``.

    Raises:
        RequestError: if it is not finite and positive.
    """
    if not (math.isfinite(variance + epsilon) and variance + epsilon > 0):
        raise RequestError("the reward statistics have a variance that is not finite and positive; save VecNormalize again")
    return math.sqrt(variance + epsilon)


def _read_state(path: Path) -> dict[str, Any]:
    """The attributes of the saved VecNormalize, as plain values and inert records."""
    if not os.path.isfile(path):
        raise RequestError(f"{path} does not exist; name the vecnormalize.pkl that was saved with the agent")
    with _damage_in_one_line(path):
        saved = load_inert(read_bytes(path, MAX_BYTES))
        state = saved.state if isinstance(saved, Inert) else None
        if not isinstance(state, dict) or not isinstance(state.get("norm_obs"), bool):
            raise ValueError("it holds something else")
    return state


@contextmanager
def _damage_in_one_line(path: Path) -> Iterator[None]:
    """Turn any exception about the file's contents into a ``RequestError`` that names the file."""
    fix = "it is no readable VecNormalize pickle; save it again with VecNormalize.save, do not trust the file"
    try:
        with refuse_damage(path, fix):
            yield
    except RequestError as error:
        raise error if str(path) in str(error) else RequestError(f"{path}: {error}") from error
