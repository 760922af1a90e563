"""Layers between flat observations ``[B, width]`` and the first matrix product: they scale, permute and split inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from policy_distill.policies.fast_forward import run


class Divide(nn.Module):
    """Elementwise division by a constant vector.

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
    """Permutation of the axes."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, values: Tensor) -> Tensor:
        return values.permute(self.dims)


class SideBySide(nn.Module):
    """Networks that read consecutive parts of the input; their features are concatenated.

    Args:
        widths: widths of the parts.
        networks: one for each part.
    """

    def __init__(self, widths: Sequence[int], networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.networks = nn.ModuleList(networks)

    def forward(self, values: Tensor) -> Tensor:
        parts = values.split(self.widths, dim=1)
        return torch.cat([run(network, part) for network, part in zip(self.networks, parts, strict=True)], dim=1)
