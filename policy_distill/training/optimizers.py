"""Optimisers of the flat parameters of a stack: Adam, and Muon for weight matrices."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from policy_distill.training.stacks import Stack

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial of degree 5 that brings singular values in (0, 1] near 1 when it is iterated (Jordan et al. 2024)."""
ITERATIONS = 5
STEP_SIZE = 2.0
"""Singular values of a Muon step with learning rate 1, so that the usual rate of Adam, 0.01, gives 0.02; 0.02 and 0.04 trained students of
MinAtar's games equally well, and 0.01 less well."""


class Optimizer(Protocol):
    """Steps on a stack's ``flat`` from its ``gradient``."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """State that later steps depend on, by name."""
        ...

    def step(self, number: int, learning_rate: float, divisor: float) -> None:
        """Take a step.

        Args:
            number: number of this step, from 1.
            learning_rate: learning rate of this step.
            divisor: ratio of the stack's gradient to the loss's gradient, the same in all steps.
        """
        ...


class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1).

    Args:
        stack: the students.
        learning_rate: initial learning rate.
        rates: ``[K, 1]``, the members' initial learning rates if they differ.
    """

    def __init__(self, stack: Stack, learning_rate: float, rates: Tensor | None = None) -> None:
        self._stack, self._learning_rate, self._rates = stack, learning_rate, rates
        self._first_moment = torch.zeros_like(stack.flat)
        self._second_moment = torch.zeros_like(stack.flat)
        self._change = torch.zeros_like(stack.flat) if rates is not None else stack.flat.new_empty(0)
        self._number = torch.zeros((), device=stack.flat.device)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Adam's moments."""
        return {"first_moment": self._first_moment, "second_moment": self._second_moment}

    def step(self, number: int, learning_rate: float, divisor: float) -> None:
        """Take a step. It does not depend on the gradient's scale, since epsilon is scaled too; see ``Optimizer``."""
        # If learning rates differ, the step is taken from zero with learning rate 1, and scaled for each member.
        target = self._stack.flat if self._rates is None else self._change.zero_()
        torch._fused_adam_(
            [target], [self._stack.gradient], [self._first_moment], [self._second_moment], [], [self._number.fill_(number)],
            lr=learning_rate if self._rates is None else 1.0, beta1=BETA1, beta2=BETA2, weight_decay=0.0, eps=EPSILON * divisor,
            amsgrad=False, maximize=False,
        )  # fmt: skip
        if self._rates is not None:
            self._stack.flat.addcmul_(self._change, self._rates, value=learning_rate / self._learning_rate)


class Muon:
    """Muon for weight matrices (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), Adam for all other parameters.

    A matrix moves along its momentum, whose singular values are replaced by ones. A convolution is a matrix with a row for each output.

    Args:
        stack: the students.
        learning_rate: initial learning rate.
        rates: ``[K, 1]``, the members' initial learning rates if they differ.
    """

    def __init__(self, stack: Stack, learning_rate: float, rates: Tensor | None = None) -> None:
        self._adam = Adam(stack, learning_rate, rates)
        self._learning_rate, self._rates = learning_rate, rates
        self._momentum = torch.zeros_like(stack.flat)
        self._layers = list(zip(*map(stack.matrices_of, (stack.flat, stack.gradient, self._momentum)), strict=True))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Momentum of the matrices, and Adam's moments of the rest."""
        return {"momentum": self._momentum, **self._adam.tensors}

    def step(self, number: int, learning_rate: float, divisor: float) -> None:
        """Take a step; see ``Optimizer``. The gradients of matrices become zero, so that Adam leaves them as they are."""
        rate: float | Tensor = learning_rate
        if self._rates is not None:
            rate = self._rates[..., None] * (learning_rate / self._learning_rate)
        for weights, gradient, momentum in self._layers:
            momentum.lerp_(gradient, 1 - MOMENTUM)
            direction = orthogonalized(torch.lerp(gradient, momentum, MOMENTUM))
            weights.sub_(direction.mul_(rate).mul_(STEP_SIZE))
            gradient.zero_()
        self._adam.step(number, learning_rate, divisor)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Matrices ``[K, m, n]`` with the same singular vectors and singular values near 1, between about 0.7 and 1.2; zeros stay zero."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    wide = matrices.mT if is_tall else matrices
    wide = wide / wide.flatten(1).norm(dim=1).clamp_min(1e-30)[:, None, None]
    first, third, fifth = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth), wide, beta=first)
    return wide.mT if is_tall else wide
