"""What several policies say together, as one distribution of the same family: pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from policy_distill.policies.actions import Bernoulli, DiagGaussian, Family, MultiCategorical, Parameters


def mix_parameters(family: Family, members: Sequence[Parameters], weights: Sequence[float]) -> Parameters:
    """The weighted mean of distributions of one family, as that family.

    Of independent components each is mixed by itself: their product is not the mixture, but has its marginals.

    Args:
        family: of all members; not deterministic.
        members: parameters ``[..., width]`` of each: ``logits``, or ``mean`` and ``log_std``.
        weights: ``> 0``, sum 1.
    """
    if isinstance(family, DiagGaussian):
        return match_moments([member["mean"] for member in members], [member["log_std"] for member in members], weights)
    logits = torch.stack([member["logits"] for member in members])
    if isinstance(family, Bernoulli):
        return {"logits": _log_of_mean(F.logsigmoid(logits), weights) - _log_of_mean(F.logsigmoid(-logits), weights)}
    parts = logits.split(family.nvec, dim=-1) if isinstance(family, MultiCategorical) else [logits]
    return {"logits": torch.cat([_log_of_mean(part.log_softmax(-1), weights) for part in parts], dim=-1)}


def match_moments(means: Sequence[Tensor], log_stds: Sequence[Tensor], weights: Sequence[float]) -> Parameters:
    """The Gaussian with the mean and the variance of a mixture: the mean of the variances plus the variance of the means.

    Args:
        means: ``[..., action_dim]`` of each member.
        log_stds: same shapes.
        weights: ``> 0``, sum 1.

    Returns:
        ``mean`` and ``log_std``, ``[..., action_dim]``.
    """
    mean = weighted_mean(means, weights)
    within = weighted_mean([(2 * log_std).exp() for log_std in log_stds], weights)
    between = weighted_mean([(centre - mean).square() for centre in means], weights)
    return {"mean": mean, "log_std": 0.5 * (within + between).log()}


def weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Sum of ``tensors`` of one shape times ``weights``, which sum to 1."""
    return sum((weight * tensor for weight, tensor in zip(weights, tensors, strict=True)), torch.zeros_like(tensors[0]))


def _log_of_mean(log_probs: Tensor, weights: Sequence[float]) -> Tensor:
    """``log(sum_m weights[m] * exp(log_probs[m]))`` of ``[M, ...]``; a probability that underflows keeps its logarithm."""
    shares = log_probs.new_tensor(weights).log().reshape(-1, *[1] * (log_probs.ndim - 1))
    return (log_probs + shares).logsumexp(0)
