"""Interface of a family of action distributions; other modules do not depend on the concrete class."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from policy_distill.policies.actions import Box, Parameters, Units
from policy_distill.policies.rowwise import Function

Outputs = TypeVar("Outputs", Tensor, np.ndarray)


class Family(ABC):
    """A family of action distributions; instances are frozen values.

    An action has two forms. ``env.step`` takes an *action*: ``[...]`` or ``[..., components]``. Densities take a *raw* action
    ``[..., components]``: counted from 0 if discrete; in box units and unclipped if continuous.

    Attributes:
        box: bounds and units of continuous actions; None for discrete actions.
        names: names of the parameters, first the one that a network outputs; empty for deterministic policies.
        in_sb3: whether Stable-Baselines3's PPO has the same distribution with the same outputs.
    """

    box: Box | None
    names: ClassVar[tuple[str, ...]]
    in_sb3: ClassVar[bool] = False

    @property
    @abstractmethod
    def width(self) -> int:
        """Number of network outputs."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of values of each component; empty for continuous actions."""
        return ()

    @property
    @abstractmethod
    def action_shape(self) -> tuple[int, ...]:
        """Shape of one flattened action: ``()`` or ``(components,)``."""

    @property
    def mixes(self) -> bool:
        """Whether ``mix`` gives a distribution whose mode is a sensible action."""
        return bool(self.names)

    @property
    def spread(self) -> int:
        """Number of a student's log standard deviations, which are not network outputs."""
        return 0

    def in_units(self, units: Units) -> Family:
        """The family with other box units; unchanged for discrete actions."""
        return self if self.box is None else self.in_box(dataclasses.replace(self.box, units=units))

    def in_box(self, box: Box) -> Family:
        """The family of continuous actions with another box."""
        return dataclasses.replace(self, box=box)  # type: ignore[type-var]

    @property
    def has_density(self) -> bool:
        """Whether actions can be drawn and have a log-probability, as training by reward needs."""
        return type(self).draw is not Family.draw and type(self).log_prob is not Family.log_prob

    # Losses.

    @property
    def losses(self) -> tuple[str, ...]:
        """Kinds of loss that suit a teacher of this family, the default first."""
        return ("kl", "nll")

    @property
    def divergences(self) -> tuple[str, ...]:
        """Names that ``divergence`` accepts."""
        return ("forward_kl", "reverse_kl")

    @property
    def standardizes(self) -> bool:
        """Whether ``standardized`` is supported."""
        return False

    def standardized(self, parameters: Parameters) -> Parameters:
        """The parameters with logits of mean 0 and standard deviation 1."""
        raise ValueError(f"{self} has no logits over several actions")

    def divergence(
        self, name: str, teacher: Parameters, student: Parameters, *, temperature: Tensor | float = 1.0, beta: float = 0.5
    ) -> Tensor:
        """Divergence between two softened distributions, in nats, one value per sample; see ``policies.divergences``.

        Args:
            name: one of ``divergences``.
            teacher, student: parameters ``[..., width]``.
            temperature: ``> 0``, a number or ``[...]``.
            beta: parameter of ``jensen_shannon``.
        """
        raise ValueError(f"{self} has no {name}")

    # Distributions.

    def parameters_of(self, outputs: Tensor, log_std: Tensor) -> Parameters:
        """Parameters of a student's distribution, from its outputs ``[..., width]`` and its log standard deviations, if any."""
        return {self.names[0]: outputs}

    @abstractmethod
    def mode(self, parameters: Parameters) -> Tensor:
        """The deterministic action."""

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        """A sampled action."""
        raise ValueError(f"{self} has no density to draw from")

    def draw(self, parameters: Parameters, uniform: Tensor) -> Tensor:
        """A raw action sampled with uniform numbers in (0, 1) of the parameters' shape."""
        raise ValueError(f"{self} has no density to draw from")

    def log_prob(self, parameters: Parameters, raw: Tensor) -> Tensor:
        """Log-probability or log-density of a raw action, in nats, ``[...]``."""
        raise ValueError(f"{self} has no density")

    def entropy(self, parameters: Parameters) -> Tensor:
        """Entropy in nats, ``[...]``; for continuous actions in box units."""
        raise ValueError(f"{self} has no density")

    def masked(self, outputs: Outputs, mask: Outputs) -> Outputs:
        """Outputs that give forbidden actions probability 0, as in sb3-contrib's ``common/maskable/distributions.py``.

        Args:
            outputs: logits ``[..., width]``.
            mask: ``[..., sum of sizes]``, nonzero if a component's value is allowed.
        """
        raise ValueError(f"{self} has no masks")

    def mix(self, members: Sequence[Parameters], weights: Sequence[float]) -> Parameters:
        """Approximation of a mixture of distributions within this family.

        Each independent component is mixed on its own: the result has the mixture's marginals, but is not the mixture.

        Args:
            members: parameters ``[..., width]`` of each distribution.
            weights: ``> 0``, sum 1.
        """
        raise ValueError(f"{self} has no density to mix")

    def box_log_std(self, parameters: Parameters) -> Tensor | None:
        """Log standard deviation of the action in box units; None if the family has none."""
        return None

    def share_on_bound(self, parameters: Parameters) -> float | None:
        """Share of the components whose mean lies on or beyond a bound; None if the parameters contain no mean."""
        return None

    # Teachers.

    def of_agent(self, *, density: bool, squashed: bool = False) -> Family:
        """The family of an agent in the same space, which has a density or not, and is squashed by tanh or not."""
        return self

    def raw(self, actions: Tensor) -> Tensor:
        """Raw actions of ``actions``."""
        return actions.reshape(*actions.shape[: actions.ndim - len(self.action_shape)], -1).long()

    def confident(self, actions: Tensor) -> Parameters:
        """Parameters of a distribution with almost all probability on ``actions`` ``[B, ...]``, for a teacher that returns only actions.

        Raises:
            ValueError: if an action is outside the space.
        """
        return {}

    # numpy operations, for stepping environments.

    def chooser(self, shape: tuple[int, ...]) -> Function:
        """Function from outputs ``[B, width]`` to new arrays of deterministic actions ``[B, *shape]``; each row depends only on its row."""
        return lambda outputs: self.mode({self.names[0]: torch.from_numpy(outputs)}).numpy()

    def executable(self, space: gym.Space) -> Function:
        """Function from raw actions ``[B, components]`` to new arrays ``[B, ...]``, whose rows ``env.step`` accepts."""
        shape, dtype = space.shape or (), space.dtype
        start = getattr(space, "start", 0)
        if not np.any(start):
            return lambda raw: raw.reshape(-1, *shape).astype(dtype)
        return lambda raw: (raw.reshape(-1, *shape) + start).astype(dtype)

    def noise(self, generator: np.random.Generator, num_steps: int) -> np.ndarray:
        """Noise for ``drawn``, float32 ``[T, width]``; by default the uniform numbers of ``draw``."""
        self._check_density()
        return generator.random((num_steps, self.width), np.float32).clip(1e-7, 1 - 1e-7)

    def drawn(self, outputs: np.ndarray, std: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Raw actions ``[B, components]`` sampled with ``noise`` from a student's outputs ``[B, width]``; each depends on its row alone."""
        self._check_density()
        log_std = torch.from_numpy(np.log(std))[None]
        pairs = (torch.from_numpy(values).split(1) for values in (outputs, noise))
        draws = [self.draw(self.parameters_of(output, log_std), uniform) for output, uniform in zip(*pairs, strict=True)]
        return torch.cat(draws).numpy()

    def scored(self, outputs: Tensor, log_std: Tensor, raw: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probability of each row's raw action, in nats, and its gradients (the score); by default those of autograd.

        Args:
            outputs: a student's outputs ``[B, width]``.
            log_std: ``[spread]``.
            raw: ``[B]`` or ``[B, components]`` of any number type.

        Returns:
            The log-probability ``[B]``, and its gradients with respect to the outputs, ``[B, width]``, and to ``log_std``, ``[B, spread]``
            or None.
        """
        self._check_density()
        raw = raw.reshape(len(outputs), -1)
        with torch.enable_grad():
            leaves = [outputs.detach().requires_grad_(), log_std.detach().expand(len(outputs), -1).clone().requires_grad_()]
            log_prob = self.log_prob(self.parameters_of(*leaves), raw.long() if self.box is None else raw)
            by_outputs, by_log_std = torch.autograd.grad(log_prob.sum(), leaves, materialize_grads=True)
        return log_prob.detach(), by_outputs, by_log_std if self.spread else None

    def _check_density(self) -> None:
        if not self.has_density:
            raise ValueError(f"{self} has no density to draw from")


def weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted mean of ``tensors`` of one shape; ``weights`` sum to 1."""
    return sum((weight * tensor for weight, tensor in zip(weights, tensors, strict=True)), torch.zeros_like(tensors[0]))
