"""Evenly spaced indices."""

from __future__ import annotations

import torch
from torch import Tensor


def evenly(count: int, limit: int, device: torch.device) -> Tensor:
    """Up to ``limit`` evenly spaced indices below ``count``, including the first and the last."""
    return torch.linspace(0, count - 1, min(limit, count), dtype=torch.float64, device=device).long()
