"""Distances between intermediate layers, and between the relations that samples have in them: pure functions, one value per sample.

Hints compare a student's layer, projected to the teacher's width, with the teacher's (FitNets, Romero et al. 2015,
https://arxiv.org/abs/1412.6550). Relations compare what samples of one batch are to each other, which needs no projection.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ANGLE_SAMPLES = 32
"""Samples of a batch whose triplets are compared by angle: there are as many triplets as their cube."""


def normalized_squared_error(teacher: Tensor, student: Tensor, variance: float = 1.0) -> Tensor:
    """Mean over the layer of ``(teacher - student)**2``, divided by ``variance``, one value per sample.

    Args:
        teacher: ``[..., width]``.
        student: same shape: already projected.
        variance: ``> 0``, of the teacher's layer over the data; a student that predicts the mean then has a loss near 1.

    Returns:
        ``[...]``, ``>= 0``.

    Raises:
        ValueError: if the shapes differ.
    """
    _check_same_shape(teacher, student)
    return (teacher - student).square().mean(-1) / variance


def cosine_distance(teacher: Tensor, student: Tensor, variance: float = 1.0) -> Tensor:
    """One minus the cosine of the angle between the two layers, one value per sample.

    Args:
        teacher: ``[..., width]``.
        student: same shape: already projected.
        variance: not read; a cosine has no scale.

    Returns:
        ``[...]``, in [0, 2]; 1 where either is zero.

    Raises:
        ValueError: if the shapes differ.
    """
    _check_same_shape(teacher, student)
    return 1 - F.cosine_similarity(teacher, student, dim=-1)


def distance_relation(teacher: Tensor, student: Tensor) -> Tensor:
    """Huber loss between the two layers' distances from a sample to the others of its batch, mean over the others (RKD-D).

    The distances of each layer are divided by their mean over the batch, so that neither scale nor width matters (Park et al. 2019,
    https://arxiv.org/abs/1904.05068, sec. 3.2.1).

    Args:
        teacher: ``[..., B, width]``.
        student: ``[..., B, any width]``.

    Returns:
        ``[..., B]``, ``>= 0``; zeros for a batch of one.

    Raises:
        ValueError: if the batches differ.
    """
    _check_same_batch(teacher, student)
    return _mean_over_others(F.huber_loss(_distances(student), _distances(teacher), reduction="none"))


def angle_relation(teacher: Tensor, student: Tensor) -> Tensor:
    """Huber loss between the cosines of the angles that a sample forms with pairs of others, mean over the pairs (RKD-A).

    Park et al. 2019, sec. 3.2.2. Only the first ``ANGLE_SAMPLES`` samples of the batch form triplets; for the others the value is that
    of the mean, so that the batch's mean is that of the triplets.

    Args:
        teacher: ``[..., B, width]``.
        student: ``[..., B, any width]``.

    Returns:
        ``[..., B]``, ``>= 0``.

    Raises:
        ValueError: if the batches differ.
    """
    _check_same_batch(teacher, student)
    few = (..., slice(ANGLE_SAMPLES), slice(None))
    values = F.huber_loss(_angles(student[few]), _angles(teacher[few]), reduction="none").mean((-2, -1))
    rest = student.shape[-2] - values.shape[-1]
    return torch.cat([values, values.mean(-1, keepdim=True).expand(*values.shape[:-1], rest)], dim=-1) if rest else values


def similarity_relation(teacher: Tensor, student: Tensor) -> Tensor:
    """Sum over the others of squared differences between the rows of the two layers' similarity matrices (Tung & Mori 2019).

    The similarities ``A A^T`` of each layer are divided row by row by their length (https://arxiv.org/abs/1907.09682, sec. 3).

    Args:
        teacher: ``[..., B, width]``.
        student: ``[..., B, any width]``.

    Returns:
        ``[..., B]``, in [0, 4].

    Raises:
        ValueError: if the batches differ.
    """
    _check_same_batch(teacher, student)
    rows = [F.normalize(layer @ layer.transpose(-1, -2), dim=-1) for layer in (teacher, student)]
    return (rows[0] - rows[1]).square().sum(-1)


RELATIONS = {"distance": distance_relation, "angle": angle_relation, "similarity": similarity_relation}


def _distances(layer: Tensor) -> Tensor:
    """Distances between all samples ``[..., B, B]``, divided by the mean of those that are not zero."""
    distances = torch.cdist(layer, layer, compute_mode="donot_use_mm_for_euclid_dist")  # the other mode cancels digits of near ones
    mean = distances.sum((-2, -1), keepdim=True) / (distances > 0).sum((-2, -1), keepdim=True).clamp_min(1)
    return distances / mean.clamp_min(1e-12)


def _angles(layer: Tensor) -> Tensor:
    """Cosine of the angle at each sample between each two others, ``[..., B, B, B]``; 0 where one of them is the sample itself."""
    centred = layer - layer.mean(-2, keepdim=True)  # loses fewer digits below
    gram = centred @ centred.transpose(-1, -2)
    own = gram.diagonal(dim1=-2, dim2=-1)[..., :, None, None]
    inner = gram.unsqueeze(-3) - gram.unsqueeze(-1) - gram.unsqueeze(-2) + own  # <x_j - x_i, x_k - x_i>
    lengths = torch.cdist(layer, layer, compute_mode="donot_use_mm_for_euclid_dist")
    product = lengths.unsqueeze(-1) * lengths.unsqueeze(-2)
    apart = product > 1e-12
    return torch.where(apart, inner, 0.0) / torch.where(apart, product, 1.0)


def _mean_over_others(matrix: Tensor) -> Tensor:
    return matrix.sum(-1) / max(matrix.shape[-1] - 1, 1)


def _check_same_shape(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(f"shapes differ: {tuple(first.shape)} and {tuple(second.shape)}")


def _check_same_batch(first: Tensor, second: Tensor) -> None:
    if first.shape[:-1] != second.shape[:-1]:
        raise ValueError(f"batches differ: {tuple(first.shape[:-1])} and {tuple(second.shape[:-1])}")
