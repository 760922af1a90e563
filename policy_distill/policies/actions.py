"""Families of action distributions: what a policy's output tensors mean.

A family is a small frozen value that knows how wide a policy's output is, which action is its mode, how to draw from it, how to
soften it, and how to turn a raw action into what ``env.step`` accepts. Parameters are plain tensors in a dict, so that they can be
stored, indexed and sent as they are.

Continuous parameters live in *box units*: the environment's ``[low, high]`` is mapped to ``[-1, 1]`` (a dimension without finite
bounds keeps its own units), unless a ``Box`` was told other units. ``Box`` does the mapping.
"""

from __future__ import annotations

import functools
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
"""Bounds say nothing about the size of an action where they are further apart than this, and than this many times the actions."""
LAYER = "layer:"
"""Prefix of a teacher's intermediate layers among the parameters of ``ActionTargets``."""


@dataclass(frozen=True)
class ActionTargets:
    """What a teacher says about a batch of observations; each observation is labelled once.

    Attributes:
        parameters: of the teacher's family, each ``[B, width]``: ``logits`` or ``q_values``; ``mean`` and ``log_std`` in box units
            (before tanh where the family is squashed); empty for a deterministic teacher. Layers that the teacher was told to record stand
            beside them as ``layer:NAME``.
        actions: the deterministic action as ``env.step`` takes it, after clipping or unscaling: ``[B]`` or ``[B, components]`` integers,
            or ``[B, action_dim]`` floats.
    """

    parameters: Parameters
    actions: Tensor


@dataclass(frozen=True)
class Box:
    """The bounds of a continuous action space, flattened: environment units to box units and back.

    Attributes:
        low, high: the bounds.
        units: of the box, where they are not those of the bounds: bounds may be far wider than the actions that matter.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    units: Units | None = None

    @classmethod
    def from_space(cls, space: gym.spaces.Box) -> Box:
        """Take the bounds of ``space``."""
        return cls(tuple(map(float, space.low.ravel())), tuple(map(float, space.high.ravel())))

    @property
    def dim(self) -> int:
        return len(self.low)

    @functools.cache  # noqa: B019  (frozen, hashable and few)
    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Return ``(scale, offset)``, each ``[dim]``, with ``environment = box * scale + offset``.

        Without ``units`` the scale is 1 where a bound is infinite or both are the same number, the offset 0 where a bound is infinite.
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
        """``[dim]`` bool: components whose bounds are infinite or so far apart that they may say nothing about the size of an action."""
        return ~(np.subtract(self.high, self.low) <= WIDE)

    def limits(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """The bounds in box units: -1 and 1, or ``[dim]`` where some differ or are infinite."""
        ordinary = self.units is None and bool(np.isfinite([self.low, self.high]).all())
        return (-1.0, 1.0) if ordinary else _limit_tensors(self, like.dtype, like.device)

    def _tensors(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _affine_tensors(self, like.dtype, like.device)

    def to_box(self, actions: Tensor) -> Tensor:
        """Environment units to box units, ``[..., dim]``."""
        scale, offset, _, _ = self._tensors(actions)
        return (actions - offset) / scale

    def to_environment(self, actions: Tensor) -> Tensor:
        """Box units to environment units, clipped to the bounds, ``[..., dim]``."""
        scale, offset, low, high = self._tensors(actions)
        return torch.clamp(actions * scale + offset, low, high)


@functools.cache
def _affine_tensors(box: Box, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``Box.affine`` and the bounds as tensors, made once: they are read in every gradient step and for every action."""
    with torch.inference_mode(False):
        scale, offset, low, high = (torch.as_tensor(array, dtype=dtype, device=device) for array in (*box.affine(), box.low, box.high))
    return scale, offset, low, high


@functools.cache
def _limit_tensors(box: Box, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    scale, offset = box.affine()
    ends = []
    for bound, end in ((box.low, -1.0), (box.high, 1.0)):
        # Exactly -1 and 1 where the units are those of the bounds; bounds that meet are no reason to stop a prediction.
        own = np.full(box.dim, end) if box.units is None else (np.asarray(bound) - offset) / scale
        ends.append(np.where(np.isfinite(bound), own, np.inf * end))
    with torch.inference_mode(False):
        low, high = (torch.as_tensor(array, dtype=dtype, device=device) for array in ends)
    return low, high


@dataclass(frozen=True)
class Categorical:
    """One action out of ``num_actions``; environment actions begin at ``start``."""

    num_actions: int
    start: int = 0

    @property
    def width(self) -> int:
        return self.num_actions

    def mode(self, parameters: Parameters) -> Tensor:
        scores = parameters["logits"] if "logits" in parameters else parameters["q_values"]
        best = scores.argmax(-1)
        return best + self.start if self.start else best

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        if "logits" not in parameters:
            return self.mode(parameters)
        return _draw(parameters["logits"], generator) + self.start


@dataclass(frozen=True)
class MultiCategorical:
    """Several independent categorical components, ``nvec[i]`` choices each; logits are concatenated."""

    nvec: tuple[int, ...]

    @property
    def width(self) -> int:
        return sum(self.nvec)

    def mode(self, parameters: Parameters) -> Tensor:
        return torch.stack([part.argmax(-1) for part in parameters["logits"].split(self.nvec, dim=-1)], dim=-1)

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        return torch.stack([_draw(part, generator) for part in parameters["logits"].split(self.nvec, dim=-1)], dim=-1)


@dataclass(frozen=True)
class Bernoulli:
    """``num_bits`` independent switches; a logit above zero means on."""

    num_bits: int

    @property
    def width(self) -> int:
        return self.num_bits

    def mode(self, parameters: Parameters) -> Tensor:
        return (parameters["logits"] > 0).long()

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        probabilities = parameters["logits"].sigmoid()
        return (torch.rand(probabilities.shape, generator=generator, device=probabilities.device) < probabilities).long()


@dataclass(frozen=True)
class DiagGaussian:
    """Independent normal components in box units; ``squashed`` ones pass through tanh (SAC, TQC), others are clipped (PPO, A2C, TRPO)."""

    box: Box
    squashed: bool = False

    @property
    def width(self) -> int:
        return self.box.dim

    def _to_environment(self, raw: Tensor) -> Tensor:
        if self.squashed:  # tanh reaches from bound to bound, whatever the units are
            return Box(self.box.low, self.box.high).to_environment(raw.tanh())
        return self.box.to_environment(raw)

    def mode(self, parameters: Parameters) -> Tensor:
        return self._to_environment(parameters["mean"])

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        mean, log_std = parameters["mean"], parameters["log_std"]
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return self._to_environment(mean + log_std.exp() * noise)


@dataclass(frozen=True)
class Deterministic:
    """A teacher that only names the action: TD3, DDPG, ARS, any callable."""

    box: Box

    @property
    def width(self) -> int:
        return self.box.dim


Family: TypeAlias = Categorical | MultiCategorical | Bernoulli | DiagGaussian | Deterministic


def family_of(space: gym.Space) -> Family:
    """Return the family of a policy that acts in ``space``: categorical, multi-categorical, Bernoulli or Gaussian.

    Raises:
        ValueError: for a space that no student can act in.
    """
    match space:
        case gym.spaces.Discrete():
            return Categorical(int(space.n), int(space.start))
        case gym.spaces.MultiDiscrete() if space.nvec.ndim == 1 and not np.any(space.start):
            return MultiCategorical(tuple(map(int, space.nvec)))
        case gym.spaces.MultiBinary() if isinstance(space.n, (int, np.integer)):
            return Bernoulli(int(space.n))
        case gym.spaces.Box():
            return DiagGaussian(Box.from_space(space))
    raise ValueError(
        f"action space {space} is not supported: Discrete, MultiBinary and MultiDiscrete (one-dimensional, from 0 on), and Box are"
    )


def units_of_actions(family: Family, targets: ActionTargets) -> Units | None:
    """Box units that suit a policy's actions where the bounds are far wider; None where all of them are those of the bounds.

    Args:
        family: of the policy, with the units of its bounds.
        targets: what it does in states that it visits, ``[B, dim]``.

    Returns:
        Of a component whose range is ``WIDE`` times that of its actions, and wider than ``WIDE``: half the actions' range, at least their
        standard deviation when they are drawn, and the middle of the range. Of the others scale and offset of the bounds.
    """
    if not isinstance(family, DiagGaussian | Deterministic):
        return None
    scale, offset = family.box.affine()
    actions = targets.actions.double().cpu().numpy().reshape(-1, family.width)
    low, high = actions.min(0), actions.max(0)
    wide = family.box.may_be_wide & (np.subtract(family.box.high, family.box.low) > WIDE * (high - low))
    if not wide.any():
        return None
    spread = np.zeros(family.width)
    if isinstance(family, DiagGaussian) and not family.squashed:
        spread = targets.parameters["log_std"].double().exp().mean(0).cpu().numpy() * scale
    middle, half = (low + high) / 2, np.maximum((high - low) / 2, spread)
    half = np.where(half > 0, half, np.maximum(np.abs(middle), 1.0))
    return tuple(np.where(wide, half, scale).tolist()), tuple(np.where(wide, middle, offset).tolist())


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one index a row by the Gumbel trick."""
    uniform = torch.rand(logits.shape, generator=generator, device=logits.device).clamp_min(1e-20)
    return (logits - (-uniform.log()).log()).argmax(-1)
