"""Divergences and errors between student and targets: pure functions of tensors that return one value per sample.

Weights and the factor ``temperature**2`` are applied once, in ``losses.objective``; averaging happens where the gradient is taken.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

HUBER_DELTA = 0.1
"""Threshold of the Huber loss between quadratic and linear, in box units."""


def forward_kl(teacher_logits: Tensor, student_logits: Tensor, *, temperature: Tensor | float = 1.0) -> Tensor:
    r"""KL(teacher || student) of two categorical policies softened by ``temperature``, in nats, one value per sample.

    Not multiplied by ``temperature**2``: the trainer does that, once (Hinton et al. 2015, https://arxiv.org/abs/1503.02531, sec. 2).

    Args:
        teacher_logits: ``[..., num_actions]``; ``-inf`` forbids an action, which then contributes zero.
        student_logits: same shape.
        temperature: ``> 0``, a number or ``[...]``; above 1 softens, below 1 sharpens.

    Returns:
        ``[...]``, ``>= 0``; ``+inf`` where the teacher allows what the student forbids.

    Raises:
        ValueError: if the shapes differ or ``temperature <= 0``.
    """
    check_same_shape(teacher_logits, student_logits)
    scale = _check_temperature(temperature, student_logits)
    teacher_log_probs = F.log_softmax(teacher_logits / scale, dim=-1)
    student_log_probs = F.log_softmax(student_logits / scale, dim=-1)
    return _relative_entropy(teacher_log_probs, student_log_probs)


def reverse_kl(teacher_logits: Tensor, student_logits: Tensor, *, temperature: Tensor | float = 1.0) -> Tensor:
    r"""KL(student || teacher) of two categorical policies softened by ``temperature``, in nats, one value per sample.

    It seeks a mode where ``forward_kl`` covers all of them. Not multiplied by ``temperature**2``: the trainer does that, once.

    Args:
        teacher_logits: ``[..., num_actions]``.
        student_logits: same shape; ``-inf`` forbids an action, which then contributes zero.
        temperature: ``> 0``, a number or ``[...]``.

    Returns:
        ``[...]``, ``>= 0``; ``+inf`` where the student allows what the teacher forbids.

    Raises:
        ValueError: if the shapes differ or ``temperature <= 0``.
    """
    check_same_shape(teacher_logits, student_logits)
    return forward_kl(student_logits, teacher_logits, temperature=temperature)


def jensen_shannon(teacher_logits: Tensor, student_logits: Tensor, *, beta: float = 0.5, temperature: Tensor | float = 1.0) -> Tensor:
    r"""Generalised Jensen-Shannon divergence ``beta * KL(p || m) + (1 - beta) * KL(q || m)`` with ``m = beta * p + (1 - beta) * q``.

    ``p`` is the softened teacher, ``q`` the softened student; in nats, one value per sample. Divided by ``beta`` it tends to the forward
    KL as beta falls to 0, divided by ``1 - beta`` to the reverse KL as beta rises to 1 (Agarwal et al. 2024,
    https://arxiv.org/abs/2306.13649, sec. 2, whose p and q these are). Not multiplied by ``temperature**2``.

    Args:
        teacher_logits: ``[..., num_actions]``; ``-inf`` forbids an action.
        student_logits: same shape.
        beta: in (0, 1), the teacher's share of the mixture.
        temperature: ``> 0``, a number or ``[...]``.

    Returns:
        ``[...]``, in ``[0, log 2]`` for beta 0.5, always finite.

    Raises:
        ValueError: if the shapes differ, ``temperature <= 0`` or beta is outside (0, 1).
    """
    check_same_shape(teacher_logits, student_logits)
    if not 0 < beta < 1:
        raise ValueError(f"beta is {beta}; it must be in (0, 1)")
    scale = _check_temperature(temperature, student_logits)
    teacher, student = F.log_softmax(teacher_logits / scale, dim=-1), F.log_softmax(student_logits / scale, dim=-1)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * _relative_entropy(teacher, mixture) + (1 - beta) * _relative_entropy(student, mixture)


def gaussian_forward_kl(
    teacher_mean: Tensor, teacher_log_std: Tensor, student_mean: Tensor, student_log_std: Tensor, *, temperature: Tensor | float = 1.0
) -> Tensor:
    r"""KL(teacher || student) of two diagonal Gaussians, summed over dimensions, in nats, one value per sample.

    Softening divides both log-densities by ``temperature``, which multiplies both variances by it: the difference of the means counts
    ``1 / temperature`` as much and the term in the standard deviations stays. The KL of two tanh-squashed Gaussians is that of the
    Gaussians before tanh, so pre-tanh parameters may be given (KL is invariant under a bijection).

    Args:
        teacher_mean, teacher_log_std, student_mean, student_log_std: ``[..., action_dim]``, broadcast against each other.
        temperature: ``> 0``, a number or ``[...]``.

    Returns:
        ``[...]``, ``>= 0``.

    Raises:
        ValueError: if the means' shapes differ or ``temperature <= 0``.
    """
    check_same_shape(teacher_mean, student_mean)
    scale = _check_temperature(temperature, student_mean)
    log_ratio = student_log_std - teacher_log_std
    distance = (teacher_mean - student_mean).square() / scale
    terms = log_ratio + 0.5 * ((-2 * log_ratio).exp() + distance * (-2 * student_log_std).exp()) - 0.5
    return terms.sum(-1)


def gaussian_reverse_kl(
    teacher_mean: Tensor, teacher_log_std: Tensor, student_mean: Tensor, student_log_std: Tensor, *, temperature: Tensor | float = 1.0
) -> Tensor:
    """KL(student || teacher) of two diagonal Gaussians, summed over dimensions, in nats; arguments as in ``gaussian_forward_kl``."""
    return gaussian_forward_kl(student_mean, student_log_std, teacher_mean, teacher_log_std, temperature=temperature)


def gaussian_negative_log_likelihood(actions: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Negative log-density of ``actions`` under a diagonal Gaussian, summed over dimensions, in nats.

    Args:
        actions, mean, log_std: ``[..., action_dim]``, broadcast against each other.

    Returns:
        ``[...]``; below zero where the density exceeds 1.
    """
    squared = ((actions - mean) * (-log_std).exp()).square()
    return (0.5 * squared + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)


def hard_label_cross_entropy(teacher_actions: Tensor, student_logits: Tensor) -> Tensor:
    """Negative log-probability of the teacher's greedy action under the student, in nats, one value per sample.

    Args:
        teacher_actions: ``[...]``, indices counted from 0.
        student_logits: ``[..., num_actions]``.

    Returns:
        ``[...]``, ``>= 0``.
    """
    return -F.log_softmax(student_logits, dim=-1).gather(-1, teacher_actions.unsqueeze(-1)).squeeze(-1)


def bounded_error(
    target: Tensor, prediction: Tensor, *, near_bound: float = 1.0, limits: tuple[Tensor | float, Tensor | float] = (-1.0, 1.0)
) -> Tensor:
    """``prediction - target`` in box units, with zero error for predictions beyond a target near its bound.

    The environment clips actions to the bound, and a tanh-squashed teacher never reaches it. If ``|target| >= near_bound``, a prediction
    beyond the target on the same side has zero error and gradient. Unlike the difference of clipped values, a wrong prediction always has
    a gradient.

    Args:
        target: ``[..., action_dim]``; values outside the bounds are taken as the bound.
        prediction: same shape, unclipped.
        near_bound: in (0, 1]; at 1 only targets on the bound itself are near it, and the error is zero exactly where the clipped values
            agree and the prediction is within the bounds or past the target's own.
        limits: the bounds in box units, numbers or ``[action_dim]``; infinite where there are none.

    Returns:
        ``[..., action_dim]``, signed.

    Raises:
        ValueError: if the shapes differ.
    """
    check_same_shape(target, prediction)
    low, high = limits
    lower = torch.where(target <= near_bound * low, 0.0, -torch.inf)
    upper = torch.where(target >= near_bound * high, 0.0, torch.inf)
    # Both limits are numbers, or both are tensors; the stubs have an overload for each, and none for the union.
    within = torch.clamp(target, low, high)  # type: ignore[arg-type]
    return torch.clamp(prediction - within, lower, upper)


def mean_squared(error: Tensor) -> Tensor:
    """Mean of squares over the last dimension: ``[..., action_dim]`` to ``[...]``."""
    return error.square().mean(-1)


def mean_absolute(error: Tensor) -> Tensor:
    """Mean of absolute values over the last dimension: ``[..., action_dim]`` to ``[...]``."""
    return error.abs().mean(-1)


def huber(error: Tensor, *, delta: float = HUBER_DELTA) -> Tensor:
    """Mean over the last dimension of ``error**2 / (2 delta)`` up to ``delta`` and ``|error| - delta / 2`` beyond (Huber 1964, slope 1).

    Args:
        error: ``[..., action_dim]``.
        delta: ``> 0``, threshold between quadratic and linear, in the units of ``error``.

    Raises:
        ValueError: if ``delta <= 0``.
    """
    if not delta > 0:
        raise ValueError(f"delta is {delta}; it must be > 0")
    return F.smooth_l1_loss(error, torch.zeros_like(error), beta=delta, reduction="none").mean(-1)


def _relative_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities ``[..., num_actions]``; actions that p forbids contribute zero, to the gradient too."""
    allowed = log_p > -torch.inf
    difference = torch.where(allowed, log_p, 0.0) - torch.where(allowed, log_q, 0.0)
    return torch.where(allowed, log_p, -torch.inf).exp().mul(difference).sum(-1)


def check_same_shape(first: Tensor, second: Tensor) -> None:
    """Refuse tensors of different shapes.

    Raises:
        ValueError: if they differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"shapes differ: {tuple(first.shape)} and {tuple(second.shape)}")


def _check_temperature(temperature: Tensor | float, like: Tensor) -> Tensor:
    """Return the temperature with a trailing axis; a tensor is trusted, so that nothing waits for the device."""
    if isinstance(temperature, Tensor):
        return temperature.unsqueeze(-1)
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature is {temperature}; it must be > 0")
    return like.new_tensor(temperature)
