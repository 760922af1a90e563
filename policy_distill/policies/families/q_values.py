"""Q-values as logits, scaled by the gaps between actions."""

from __future__ import annotations

import math

from torch import Tensor

Q_TEMPERATURES = {"raw": 0.01, "z_score": 0.5}
"""Default divisor of Q-values; ``raw`` as in Rusu et al. 2016 (https://arxiv.org/abs/1511.06295)."""


def standardize_logits(logits: Tensor) -> Tensor:
    """Logits with mean 0 and standard deviation 1 over the actions (Sun et al. 2024, https://arxiv.org/abs/2403.01427).

    Args:
        logits: ``[..., num_actions]``, finite.

    Returns:
        ``[..., num_actions]``; zeros without a gradient if all logits are equal, as those of a student whose hidden units are all off.
    """
    centred = logits - logits.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    equal = variance == 0  # where the root has an infinite slope
    return (centred / (variance.masked_fill(equal, 1.0).sqrt() + 1e-6)).masked_fill(equal, 0.0)


def q_values_to_logits(q_values: Tensor, gap: float) -> Tensor:
    """Logits ``(Q - max Q) / gap``; the division removes the reward's scale.

    Args:
        q_values: ``[..., num_actions]``.
        gap: ``> 0``, the difference of Q-values that corresponds to one nat.

    Returns:
        ``[..., num_actions]``, ``<= 0``.

    Raises:
        ValueError: if ``gap <= 0`` or not finite.
    """
    if not (gap > 0 and math.isfinite(gap)):
        raise ValueError(f"gap is {gap}; it must be > 0")
    return (q_values - q_values.amax(-1, keepdim=True)) / gap


def median_action_gap(q_values: Tensor) -> float:
    """Median over ``[B, num_actions]`` of the difference between the best and the second-best Q-value; 1 for a single action."""
    if q_values.shape[-1] < 2:
        return 1.0
    best = q_values.topk(2, dim=-1).values
    return max(float((best[..., 0] - best[..., 1]).median()), 1e-12)
