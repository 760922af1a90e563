"""Drawing evenly from a range."""

from __future__ import annotations

import torch
from torch import Tensor


def evenly(count: int, limit: int, device: torch.device) -> Tensor:
    """At most ``limit`` of the indices below ``count``, first and last among them."""
    return torch.linspace(0, count - 1, min(limit, count), dtype=torch.float64, device=device).long()
