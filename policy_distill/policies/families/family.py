"""What a family of action distributions knows; everything else asks it and does not look at its class."""

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
    """A family of action distributions: a small frozen value.

    An action has two forms. ``env.step`` takes an *action*: ``[...]`` or ``[..., components]``. Densities read a *raw* action
    ``[..., components]``: counted from 0 where discrete; in box units and not clipped where continuous.

    Attributes:
        box: bounds and units of continuous actions; None where actions are integers.
        names: of the parameters, that which a network outputs first; empty where a policy only names its action.
        in_sb3: whether Stable-Baselines3's PPO has the same distribution, with the same outputs. ``noise``, ``drawn`` and ``scored`` are
            asked of these alone.
    """

    box: Box | None
    names: ClassVar[tuple[str, ...]]
    in_sb3: ClassVar[bool] = False

    @property
    @abstractmethod
    def width(self) -> int:
        """Outputs of a network."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of values of each component; empty where actions are continuous."""
        return ()

    @property
    @abstractmethod
    def action_shape(self) -> tuple[int, ...]:
        """Of one action, flattened: ``()`` or ``(components,)``."""

    @property
    def mixes(self) -> bool:
        """Whether ``mix`` gives a distribution whose mode is worth acting on."""
        return bool(self.names)

    @property
    def spread(self) -> int:
        """How many log standard deviations a student has beside its network."""
        return 0

    def in_units(self, units: Units) -> Family:
        """The same family with other units of the box; itself where actions are discrete."""
        return self if self.box is None else self.in_box(dataclasses.replace(self.box, units=units))

    def in_box(self, box: Box) -> Family:
        """The same family of continuous actions in another box."""
        return dataclasses.replace(self, box=box)  # type: ignore[type-var]

    # Losses.

    @property
    def losses(self) -> tuple[str, ...]:
        """Kinds of loss by which a teacher of this family can be distilled, the default first."""
        return ("kl", "nll")

    @property
    def divergences(self) -> tuple[str, ...]:
        """Names that ``divergence`` knows."""
        return ("forward_kl", "reverse_kl")

    @property
    def standardizes(self) -> bool:
        """Whether ``standardized`` is known."""
        return False

    def standardized(self, parameters: Parameters) -> Parameters:
        """The parameters with logits of mean 0 and standard deviation 1."""
        raise ValueError(f"{self} has no logits over several actions")

    def divergence(
        self, name: str, teacher: Parameters, student: Parameters, *, temperature: Tensor | float = 1.0, beta: float = 0.5
    ) -> Tensor:
        """A divergence of two softened distributions, in nats, one value per sample; see ``policies.divergences``.

        Args:
            name: one of ``divergences``.
            teacher, student: parameters ``[..., width]``.
            temperature: ``> 0``, a number or ``[...]``.
            beta: of ``jensen_shannon``.
        """
        raise ValueError(f"{self} has no {name}")

    # Distributions.

    def parameters_of(self, outputs: Tensor, log_std: Tensor) -> Parameters:
        """A student's outputs ``[..., width]``, and its log standard deviations where it has any, as parameters."""
        return {self.names[0]: outputs}

    @abstractmethod
    def mode(self, parameters: Parameters) -> Tensor:
        """The action that a policy takes when it does not draw."""

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        """An action, drawn."""
        raise ValueError(f"{self} has no density to draw from")

    def draw(self, parameters: Parameters, uniform: Tensor) -> Tensor:
        """The raw action that numbers in (0, 1) of the parameters' shape draw."""
        raise ValueError(f"{self} has no density to draw from")

    def log_prob(self, parameters: Parameters, raw: Tensor) -> Tensor:
        """Of a raw action, in nats, ``[...]``."""
        raise ValueError(f"{self} has no density")

    def entropy(self, parameters: Parameters) -> Tensor:
        """In nats, ``[...]``; of continuous actions in box units."""
        raise ValueError(f"{self} has no density")

    def masked(self, outputs: Outputs, mask: Outputs) -> Outputs:
        """Outputs whose distribution never draws a forbidden action, as in sb3-contrib's ``common/maskable/distributions.py``.

        Args:
            outputs: logits ``[..., width]``.
            mask: ``[..., sum of sizes]``, nonzero where a value of a component is allowed.
        """
        raise ValueError(f"{self} has no masks")

    def mix(self, members: Sequence[Parameters], weights: Sequence[float]) -> Parameters:
        """The weighted mean of distributions, as this family.

        Of independent components each is mixed by itself: their product is not the mixture, but has its marginals.

        Args:
            members: parameters ``[..., width]`` of each.
            weights: ``> 0``, sum 1.
        """
        raise ValueError(f"{self} has no density to mix")

    def box_log_std(self, parameters: Parameters) -> Tensor | None:
        """Log standard deviation of the action in box units; None where it has none."""
        return None

    def share_on_bound(self, parameters: Parameters) -> float | None:
        """Share of the components whose mean lies on a bound or past it; None where nothing is told of that."""
        return None

    # What teachers say.

    def of_agent(self, *, density: bool, squashed: bool = False) -> Family:
        """The family of an agent that acts in the same space: does it have a density, does it pass through tanh."""
        return self

    def raw(self, actions: Tensor) -> Tensor:
        """Actions as raw actions."""
        return actions.reshape(*actions.shape[: actions.ndim - len(self.action_shape)], -1).long()

    def confident(self, actions: Tensor) -> Parameters:
        """Parameters of a teacher that only names its action, ``[B, ...]``, where a distribution has to stand for it.

        Raises:
            ValueError: if an action is outside the space.
        """
        return {}

    # In numpy, where environments are stepped.

    def chooser(self, shape: tuple[int, ...]) -> Function:
        """``mode`` of outputs ``[B, width]``: fresh actions ``[B, *shape]``. What is said of a row depends on that row alone."""
        return lambda outputs: self.mode({self.names[0]: torch.from_numpy(outputs)}).numpy()

    def executable(self, space: gym.Space) -> Function:
        """From raw actions ``[B, components]`` to fresh ones ``[B, ...]`` that ``env.step`` accepts row by row."""
        shape, dtype = space.shape or (), space.dtype
        return lambda raw: raw.reshape(-1, *shape).astype(dtype)

    def noise(self, generator: np.random.Generator, num_steps: int) -> np.ndarray:
        """What decides between actions, float32 ``[T, width]``."""
        raise ValueError(f"{self} has no density to draw from")

    def drawn(self, outputs: np.ndarray, std: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """The raw action ``[B, components]`` that ``noise`` draws from a student's outputs ``[B, width]``."""
        raise ValueError(f"{self} has no density to draw from")

    def scored(self, outputs: Tensor, log_std: Tensor, raw: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The log-probability of each row's raw action, in nats, and its derivatives (the score).

        Args:
            outputs: of a student, ``[B, width]``.
            log_std: ``[spread]``.
            raw: ``[B]`` or ``[B, components]`` of any number type.

        Returns:
            The log-probability ``[B]``, its derivative by the outputs ``[B, width]``, and by ``log_std`` ``[B, spread]``; None without one.
        """
        raise ValueError(f"{self} has no density to draw from")


def weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Sum of ``tensors`` of one shape times ``weights``, which sum to 1."""
    return sum((weight * tensor for weight, tensor in zip(weights, tensors, strict=True)), torch.zeros_like(tensors[0]))
