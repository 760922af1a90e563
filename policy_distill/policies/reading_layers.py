"""Layers that read observations ``[B, width]`` before the first product: pixels are scaled, and each part goes its own way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from policy_distill.policies.fast_forward import run


class Divide(nn.Module):
    """Each number divided by its own divisor.

    Attributes:
        divisor: ``[width]``.
    """

    divisor: Tensor

    def __init__(self, divisor: Tensor) -> None:
        super().__init__()
        self.register_buffer("divisor", divisor, persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        return values / self.divisor


class Permute(nn.Module):
    """The axes in another order."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, values: Tensor) -> Tensor:
        return values.permute(self.dims)


class SideBySide(nn.Module):
    """Networks that each read a part of the numbers, and their features side by side.

    Args:
        widths: of the parts, which follow each other.
        networks: one for each.
    """

    def __init__(self, widths: Sequence[int], networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.networks = nn.ModuleList(networks)

    def forward(self, values: Tensor) -> Tensor:
        parts = values.split(self.widths, dim=1)
        return torch.cat([run(network, part) for network, part in zip(self.networks, parts, strict=True)], dim=1)
