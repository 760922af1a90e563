"""What action masks do to logits, as in sb3-contrib's ``common/maskable/distributions.py``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from policy_distill.policies.actions import Bernoulli, Categorical, MultiCategorical

FORBIDDEN = -1e8
"""Logit of a forbidden choice: its probability is exactly 0, and where nothing is allowed all are equal."""


def masked(family: Categorical | MultiCategorical | Bernoulli, logits: Any, mask: Any) -> Any:
    """Logits ``[..., width]`` with those of forbidden choices set to ``FORBIDDEN``; of tensors or of numpy arrays alike.

    Args:
        family: of the actions.
        logits: ``[..., width]``; of ``Bernoulli`` that of on against off, which becomes ``-FORBIDDEN`` where off is forbidden.
        mask: ``[..., entries]``, nonzero where allowed.
    """
    allowed = mask != 0
    where: Any = torch.where if isinstance(logits, Tensor) else np.where
    if not isinstance(family, Bernoulli):
        return where(allowed, logits, FORBIDDEN)
    off, on = allowed[..., 0::2], allowed[..., 1::2]
    return where(on, where(off, logits, -FORBIDDEN), where(off, FORBIDDEN, 0 * logits))  # equal where neither is allowed
