"""Diagonal Gaussians of continuous actions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from policy_distill.policies.actions import Box, Parameters
from policy_distill.policies.divergences import gaussian_forward_kl, gaussian_negative_log_likelihood, gaussian_reverse_kl
from policy_distill.policies.families.continuous import Continuous
from policy_distill.policies.families.deterministic import Deterministic
from policy_distill.policies.families.family import Family, weighted_mean
from policy_distill.policies.rowwise import Function

SATURATED = 0.99
"""A squashed mean counts as on its bound from this absolute value on."""


@dataclass(frozen=True)
class DiagGaussian(Continuous):
    """Independent normal components in box units; ``squashed`` ones pass through tanh (SAC, TQC), others are clipped (PPO, A2C, TRPO).

    Parameters: ``mean`` and ``log_std``, before tanh if squashed. A squashed density is not a target of a loss, since its support differs.
    """

    squashed: bool = False
    names = ("mean", "log_std")
    in_sb3 = True

    @classmethod
    def of_space(cls, space: gym.spaces.Box) -> DiagGaussian:
        return cls(Box.from_space(space))

    @property
    def spread(self) -> int:
        return self.box.dim

    @property
    def mixes(self) -> bool:
        return not self.squashed  # a mixture of squashed Gaussians is not close to one

    @property
    def losses(self) -> tuple[str, ...]:
        return ("regression",) if self.squashed else ("kl", "nll", "regression")

    def divergence(
        self, name: str, teacher: Parameters, student: Parameters, *, temperature: Tensor | float = 1.0, beta: float = 0.5
    ) -> Tensor:
        measure = {"forward_kl": gaussian_forward_kl, "reverse_kl": gaussian_reverse_kl}[name]
        return measure(teacher["mean"], teacher["log_std"], student["mean"], student["log_std"], temperature=temperature)

    def parameters_of(self, outputs: Tensor, log_std: Tensor) -> Parameters:
        return {"mean": outputs, "log_std": log_std}

    def _to_environment(self, raw: Tensor) -> Tensor:
        if self.squashed:  # tanh maps to the bounds, regardless of the units
            return Box(self.box.low, self.box.high).to_environment(raw.tanh())
        return self.box.to_environment(raw)

    def mode(self, parameters: Parameters) -> Tensor:
        return self._to_environment(parameters["mean"])

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        mean, log_std = parameters["mean"], parameters["log_std"]
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return self._to_environment(mean + log_std.exp() * noise)

    def draw(self, parameters: Parameters, uniform: Tensor) -> Tensor:
        return parameters["mean"] + parameters["log_std"].exp() * torch.special.ndtri(uniform)

    def log_prob(self, parameters: Parameters, raw: Tensor) -> Tensor:
        return -gaussian_negative_log_likelihood(raw, parameters["mean"], parameters["log_std"])

    def entropy(self, parameters: Parameters) -> Tensor:
        return (parameters["log_std"] + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def mix(self, members: Sequence[Parameters], weights: Sequence[float]) -> Parameters:
        """The Gaussian with the mixture's mean and variance: the mean of the variances plus the variance of the means."""
        means, log_stds = [member["mean"] for member in members], [member["log_std"] for member in members]
        mean = weighted_mean(means, weights)
        within = weighted_mean([(2 * log_std).exp() for log_std in log_stds], weights)
        between = weighted_mean([(centre - mean).square() for centre in means], weights)
        return {"mean": mean, "log_std": 0.5 * (within + between).log()}

    def box_log_std(self, parameters: Parameters) -> Tensor | None:
        return None if self.squashed else parameters["log_std"]

    def share_on_bound(self, parameters: Parameters) -> float | None:
        mean = parameters["mean"]
        outside = mean.tanh().abs() >= SATURATED if self.squashed else mean.abs() >= 1
        return float(outside.float().mean())

    def of_agent(self, *, density: bool, squashed: bool = False) -> Family:
        return DiagGaussian(self.box, squashed=squashed) if density else Deterministic(self.box)

    def chooser(self, shape: tuple[int, ...]) -> Function:
        return _to_environment(self.box, shape)

    def executable(self, space: gym.Space) -> Function:
        assert isinstance(space, gym.spaces.Box)
        finish, dtype = _to_environment(dataclasses.replace(Box.from_space(space), units=self.box.units), space.shape), space.dtype
        return lambda raw: finish(raw).astype(dtype, copy=False)

    def noise(self, generator: np.random.Generator, num_steps: int) -> np.ndarray:
        return generator.standard_normal((num_steps, self.width), np.float32)

    def drawn(self, outputs: np.ndarray, std: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return outputs + std * noise

    def scored(self, outputs: Tensor, log_std: Tensor, raw: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        inverse = (-log_std).exp()
        distance = (raw.view_as(outputs) - outputs) * inverse
        squared = distance.square()
        log_prob = squared.sum(-1) / -2 - (log_std.sum() + self.box.dim * math.log(2 * math.pi) / 2)
        return log_prob, distance * inverse, squared - 1


def _to_environment(box: Box, shape: tuple[int, ...]) -> Function:
    """Function from raw actions ``[B, dim]`` to new arrays of actions ``[B, *shape]`` in environment units.

    Clipping is the last operation, so that rounding cannot exceed the bounds.
    """
    unit, offset = (values.astype(np.float32) for values in box.affine())
    low, high = (np.array(bounds, np.float32) for bounds in (box.low, box.high))
    return lambda values: (values * unit + offset).clip(low, high).reshape(-1, *shape)
