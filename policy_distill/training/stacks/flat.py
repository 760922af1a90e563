"""The parameters of K students as rows of one flat tensor, so that Adam and averaging take a few operations for any K."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from policy_distill.policies.architecture import Architecture
from policy_distill.policies.quantization import rounded_weight

HIDDEN_GAIN, OUTPUT_GAIN = math.sqrt(2), 0.1
"""Gains of the orthogonal initialisation: hidden layers and convolutions; last layer."""
RAMP = 0.5
"""Share of the training after which all weights that will be zero are; the rest trains on what is left."""


class FlatParameters:
    """Parameters as views into a flat tensor, with gradients as views into another.

    Args:
        architecture: each member's architecture.
        members: number of members K.
        device: training device.
        projections: for each hint the student's and the teacher's width; trained, but not part of ``member``.

    Attributes:
        flat: ``[K, P]``, each member's parameters, ``log_std`` for continuous actions, and projections.
        gradient: ``[K, P]``; backward passes write it.
        zeros: share of each layer's weights that passes read as zero: ``architecture.pruning``, less while a trainer goes there.
        log_std: ``[K, 1, action_dim]``, or ``[K, 1, 0]``; a leaf tensor, like ``projections``.
        projections: weights ``[K, student's width, teacher's width]`` and biases ``[K, 1, teacher's width]`` of each hint.
    """

    log_std: Tensor
    projections: list[tuple[Tensor, Tensor]]

    def __init__(self, architecture: Architecture, members: int, device: torch.device, projections: Sequence[tuple[int, int]]) -> None:
        self.architecture, self.num_members = architecture, members
        self._spread = architecture.family.spread
        size = architecture.params + self._spread + sum((width_in + 1) * width_out for width_in, width_out in projections)
        self.flat = torch.zeros(members, size, device=device)
        self.gradient = torch.zeros_like(self.flat)
        self._offset = 0
        self._leaves: list[tuple[Tensor, Tensor]] = []
        self.zeros = architecture.pruning or 0.0
        self._reads_others = architecture.bits is not None or architecture.pruning is not None
        self._read_as: list[tuple[Tensor, Tensor]] = []
        self._layout: list[tuple[int, int, int]] = []
        """Rows and columns of each window that is not a leaf, and its number of rows that are weights; the others are biases."""

    def matrices_of(self, flat: Tensor) -> list[Tensor]:
        """Each layer's weights ``[K, m, n]`` without its biases, as views of a tensor like ``flat``."""
        windows = flat.split([rows * columns for rows, columns, _ in self._layout] + [flat.shape[1] - self.architecture.params], dim=1)
        return [
            window.unflatten(1, (rows, columns))[:, :weights]
            for window, (rows, columns, weights) in zip(windows, self._layout, strict=False)
            if weights
        ]

    def _windows(self, *shape: int) -> tuple[Tensor, Tensor]:
        """The next views ``[K, *shape]`` into ``flat`` and ``gradient``."""
        window = slice(self._offset, self._offset + math.prod(shape))
        self._offset = window.stop
        return self.flat[:, window].unflatten(1, shape), self.gradient[:, window].unflatten(1, shape)

    def _as_read(self, weight: Tensor, read: Tensor) -> None:
        """Register a weight (see ``_deployed``) and the tensor that passes read in its place."""
        self._read_as.append((weight, read))

    @torch.no_grad()
    def _refresh(self) -> None:
        """Prune and round the weights for the next pass.

        The gradient with respect to a pruned or rounded weight is taken as that of the weight itself (the straight-through estimator;
        Bengio et al. 2013, https://arxiv.org/abs/1308.3432). Small steps thus add up until a weight rounds to another value, and a weight
        that was pruned too early grows until it returns (Lin et al. 2020, https://arxiv.org/abs/2006.07253).
        """
        for weight, read in self._read_as:
            read.copy_(self._deployed(weight, self.zeros))

    def _deployed(self, weight: Tensor, zeros: float) -> Tensor:
        """A weight (see ``pruned`` and ``rounded_weight``) as a student has it."""
        return rounded_weight(pruned(weight, zeros), self.architecture.bits)

    def _of_student(self, weight: Tensor) -> Tensor:
        """A weight as a finished student has it."""
        return self._deployed(weight, self.architecture.pruning or 0.0)

    def _make_leaves(self, projections: Sequence[tuple[int, int]]) -> None:
        """Create ``log_std`` and the projections as the last windows."""
        self.log_std = self._leaf(1, self._spread)
        self.projections = [(self._leaf(width_in, width_out), self._leaf(1, width_out)) for width_in, width_out in projections]

    def _leaf(self, rows: int, columns: int) -> Tensor:
        """The next window as a leaf tensor; ``_take_over_leaves`` copies its gradient."""
        window, gradient = self._windows(rows, columns)
        leaf = window.detach().requires_grad_()
        self._leaves.append((leaf, gradient))
        return leaf

    @torch.no_grad()
    def _initialize_leaves(self, generators: Sequence[torch.Generator]) -> None:
        """Set standard deviations to exp(-1) and projections to orthogonal weights."""
        self.log_std.fill_(-1.0)
        for weight, _ in self.projections:
            for member, generator in enumerate(generators):
                weight[member].copy_(orthogonal(tuple(weight.shape[1:]), 1.0, generator))

    def _take_over_leaves(self) -> None:
        """Move autograd's gradients of ``log_std`` and projections into ``gradient``."""
        for leaf, window in self._leaves:
            if leaf.grad is None:
                window.zero_()
            else:
                window.copy_(leaf.grad)
                leaf.grad = None


def orthogonal(shape: tuple[int, ...], gain: float, generator: torch.Generator) -> Tensor:
    """Orthogonal initial weights of this shape, on the CPU."""
    return nn.init.orthogonal_(torch.empty(shape), gain, generator=generator)


def pruned(weight: Tensor, share: float) -> Tensor:
    """The weight with the share of smallest absolute values of each layer replaced by zero; pruning again changes nothing.

    Args:
        weight: a layer's ``[outputs, inputs]`` or ``[outputs, inputs, kernel, kernel]``, or K of them as ``[K, outputs, inputs]``.
        share: of the weights, from 0 to below 1; their number is rounded.
    """
    layers = weight.flatten(1) if weight.ndim == 3 else weight.reshape(1, -1)
    count = round(share * layers.shape[1])
    if not count:
        return weight
    sizes = layers.abs()
    largest = sizes.kthvalue(count, dim=1, keepdim=True).values
    return torch.where(sizes > largest, layers, 0.0).reshape(weight.shape)


def share_at(progress: float, final: float) -> float:
    """The share of zeros at a point of the training: the cubic schedule of Zhu and Gupta (2017, https://arxiv.org/abs/1710.01878, eq. 1).

    Args:
        progress: completed share of the training, in [0, 1].
        final: the share from ``RAMP`` on.
    """
    return final * (1 - max(1 - progress / RAMP, 0.0) ** 3)
