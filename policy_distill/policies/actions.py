"""A teacher's labels, and the units of continuous actions.

Parameters of distributions are plain tensors in a dict, which can be stored, indexed and sent; ``families`` defines their meaning.
Continuous parameters are in *box units*: ``Box`` maps the environment's ``[low, high]`` to ``[-1, 1]``, unless it has other ``units``. A
dimension without finite bounds keeps the environment's units.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

Parameters: TypeAlias = dict[str, Tensor]
Units: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
"""Scale and offset of each component, with ``environment = box * scale + offset``."""
WIDE = 20.0
"""Bounds do not determine the units if they are further apart than this, and than this many times the range of the actions."""
LAYER = "layer:"
"""Prefix of a teacher's intermediate layers among the parameters of ``ActionTargets``."""


@dataclass(frozen=True)
class ActionTargets:
    """A teacher's labels for a batch of observations; each observation is labelled once.

    Attributes:
        parameters: parameters of the teacher's family, each ``[B, width]``: ``logits`` or ``q_values``; ``mean`` and ``log_std`` in box
            units (before tanh if squashed); none for a deterministic teacher. Recorded layers are added as ``layer:NAME``.
        actions: the deterministic action as ``env.step`` takes it, after clipping or unscaling: ``[B]`` or ``[B, components]`` integers,
            or ``[B, action_dim]`` floats.
    """

    parameters: Parameters
    actions: Tensor


def joined(parts: Sequence[ActionTargets]) -> ActionTargets:
    """The labels of several batches, concatenated."""
    parameters = {name: torch.cat([part.parameters[name] for part in parts]) for name in parts[0].parameters}
    return ActionTargets(parameters, torch.cat([part.actions for part in parts]))


@dataclass(frozen=True)
class Box:
    """Bounds of a flattened continuous action space, and the conversion between environment units and box units.

    Attributes:
        low, high: the bounds.
        units: scale and offset; None: those of the bounds. Bounds may be far wider than the actions.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    units: Units | None = None

    @classmethod
    def from_space(cls, space: gym.spaces.Box) -> Box:
        """The box with the bounds of ``space``."""
        return cls(tuple(map(float, space.low.ravel())), tuple(map(float, space.high.ravel())))

    @property
    def dim(self) -> int:
        return len(self.low)

    @functools.cache  # noqa: B019  (frozen, hashable and few)
    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        """``(scale, offset)``, each ``[dim]``, with ``environment = box * scale + offset``.

        Without ``units`` the scale is 1 if a bound is infinite or both are equal, and the offset is 0 if a bound is infinite.
        """
        if self.units is not None:
            return np.asarray(self.units[0]), np.asarray(self.units[1])
        low, high = np.asarray(self.low), np.asarray(self.high)
        bounded = np.isfinite(low) & np.isfinite(high)
        scale = np.where(bounded, (np.where(bounded, high, 1.0) - np.where(bounded, low, -1.0)) / 2, 1.0)
        scale = np.where(scale == 0, 1.0, scale)
        offset = np.where(bounded, (np.where(bounded, high, 0.0) + np.where(bounded, low, 0.0)) / 2, 0.0)
        return scale, offset

    @property
    def may_be_wide(self) -> np.ndarray:
        """``[dim]`` bool: components whose bounds are infinite or further apart than ``WIDE``."""
        return ~(np.subtract(self.high, self.low) <= WIDE)

    def limits(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """The bounds in box units: -1 and 1, or ``[dim]`` if some differ or are infinite."""
        ordinary = self.units is None and bool(np.isfinite([self.low, self.high]).all())
        return (-1.0, 1.0) if ordinary else _limit_tensors(self, like.dtype, like.device)

    def _tensors(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _affine_tensors(self, like.dtype, like.device)

    def to_box(self, actions: Tensor) -> Tensor:
        """Actions ``[..., dim]`` in box units, from environment units."""
        scale, offset, _, _ = self._tensors(actions)
        return (actions - offset) / scale

    def to_environment(self, actions: Tensor) -> Tensor:
        """Actions ``[..., dim]`` in environment units, clipped to the bounds, from box units."""
        scale, offset, low, high = self._tensors(actions)
        return torch.clamp(actions * scale + offset, low, high)


@functools.cache
def _affine_tensors(box: Box, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``Box.affine`` and the bounds as tensors; cached, since every gradient step and every action reads them."""
    with torch.inference_mode(False):
        scale, offset, low, high = (torch.as_tensor(array, dtype=dtype, device=device) for array in (*box.affine(), box.low, box.high))
    return scale, offset, low, high


@functools.cache
def _limit_tensors(box: Box, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    scale, offset = box.affine()
    ends = []
    for bound, end in ((box.low, -1.0), (box.high, 1.0)):
        # Exactly -1 and 1 if the units are those of the bounds, even if both bounds are equal.
        limit = np.full(box.dim, end) if box.units is None else (np.asarray(bound) - offset) / scale
        ends.append(np.where(np.isfinite(bound), limit, np.inf * end))
    with torch.inference_mode(False):
        low, high = (torch.as_tensor(array, dtype=dtype, device=device) for array in ends)
    return low, high
