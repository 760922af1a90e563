"""Feature and relational distillation losses between intermediate layers: pure functions, one value per sample.

Hints compare a student's layer, projected to the teacher's width, with the teacher's (FitNets, Romero et al. 2015,
https://arxiv.org/abs/1412.6550). Relations compare distances, angles or similarities of a batch's samples, which needs no projection.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from policy_distill.policies.divergences import check_same_shape

Projection: TypeAlias = tuple[Tensor, Tensor]
"""Projections of K students: weight ``[K, width, teacher's width]`` and bias ``[K, 1, teacher's width]``."""
PAIR_SAMPLES = 48
"""Number of samples, the first of a batch, that form pairs. Batches are in random order, so these are a random subset. All pairs of 512
samples would take a hundred times as long."""
ANGLE_SAMPLES = 20
"""Number of samples, the first of a batch, that form triplets; the number of triplets is its cube."""
SHORTEST = 1e-8
"""Minimum norm of a layer, so that the cosine with a layer of zeros is 0."""
SAME = 1e-13
"""Relative tolerance: two samples are equal if their squared distance is below this fraction of their squares (float32 precision)."""


def normalized_squared_error(teacher: Tensor, student: Tensor, variance: float = 1.0, projection: Projection | None = None) -> Tensor:
    """Mean over the layer of ``(teacher - student)**2``, divided by ``variance``, one value per sample.

    Args:
        teacher: ``[..., width]``.
        student: same shape; with a projection ``[K, B, any width]``, and the teacher's is ``[K, B, width]``.
        variance: ``> 0``, of the teacher's layer over the data; a student that predicts the mean then has a loss near 1.
        projection: weight ``[K, student's width, width]`` and bias ``[K, 1, width]`` that bring the student's layer to the teacher's width.

    Returns:
        ``[...]``, ``>= 0``.

    Raises:
        ValueError: if the shapes differ.
    """
    if projection is not None:
        return _ProjectedSquares.apply(teacher, student, *projection) / (teacher.shape[-1] * variance)
    check_same_shape(teacher, student)
    return (teacher - student).square().mean(-1) / variance


def cosine_distance(teacher: Tensor, student: Tensor, variance: float = 1.0, projection: Projection | None = None) -> Tensor:
    """One minus the cosine of the angle between the two layers, one value per sample.

    Args:
        teacher, student, projection: as in ``normalized_squared_error``.
        variance: unused, since a cosine has no scale.

    Returns:
        ``[...]``, in [0, 2]; 1 where either is zero.

    Raises:
        ValueError: if the shapes differ.
    """
    if projection is not None:
        return _ProjectedCosine.apply(teacher, student, *projection)
    check_same_shape(teacher, student)
    return 1 - F.cosine_similarity(teacher, student, dim=-1)


def distance_relation(teacher: Tensor, student: Tensor) -> Tensor:
    """Huber loss between the two layers' distances from a sample to the others of its batch, mean over the others (RKD-D).

    The distances of each layer are divided by their mean over the batch, so that neither scale nor width matters (Park et al. 2019,
    https://arxiv.org/abs/1904.05068, sec. 3.2.1). Only the first ``PAIR_SAMPLES`` samples of the batch form pairs; for the others the
    value is that of the mean, so that the batch's mean is that of the pairs.

    Args:
        teacher: ``[..., B, width]``, or only those samples that form pairs.
        student: ``[..., B, any width]``.

    Returns:
        ``[..., B]``, ``>= 0``; zeros for a batch of one.

    Raises:
        ValueError: if the batches differ.
    """
    of_teacher, of_student = (_distances(layer) for layer in _first(PAIR_SAMPLES, teacher, student))
    values = F.huber_loss(of_student, of_teacher, reduction="none").sum(-1) / max(of_student.shape[-1] - 1, 1)
    return _for_all(values, student)


def angle_relation(teacher: Tensor, student: Tensor) -> Tensor:
    """Huber loss between the cosines of the angles that a sample forms with pairs of others, mean over the pairs (RKD-A).

    Park et al. 2019, sec. 3.2.2. Only the first ``ANGLE_SAMPLES`` samples of the batch form triplets; for the others the value is that
    of the mean.

    Args:
        teacher: ``[..., B, width]``, or only those samples that form triplets.
        student: ``[..., B, any width]``.

    Returns:
        ``[..., B]``, ``>= 0``.

    Raises:
        ValueError: if the batches differ.
    """
    of_teacher, of_student = (_angles(layer) for layer in _first(ANGLE_SAMPLES, teacher, student))
    return _for_all(F.huber_loss(of_student, of_teacher, reduction="none").mean((-2, -1)), student)


def similarity_relation(teacher: Tensor, student: Tensor) -> Tensor:
    """Sum over the others of squared differences between the rows of the two layers' similarity matrices (Tung & Mori 2019).

    The similarities ``A A^T`` of each layer are divided row by row by their length (https://arxiv.org/abs/1907.09682, sec. 3). Only the
    first ``PAIR_SAMPLES`` samples of the batch form pairs; for the others the value is that of the mean.

    Args:
        teacher: ``[..., B, width]``, or only those samples that form pairs.
        student: ``[..., B, any width]``.

    Returns:
        ``[..., B]``, in [0, 4].

    Raises:
        ValueError: if the batches differ.
    """
    of_teacher, of_student = (F.normalize(layer @ layer.mT, dim=-1) for layer in _first(PAIR_SAMPLES, teacher, student))
    return _for_all((of_teacher - of_student).square().sum(-1), student)


RELATIONS = {"distance": distance_relation, "angle": angle_relation, "similarity": similarity_relation}


def samples_compared(kind: str) -> int:
    """Maximum number of samples of a batch that the relation of this name compares."""
    return ANGLE_SAMPLES if kind == "angle" else PAIR_SAMPLES


def _first(count: int, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """The first ``count`` samples of both layers in float64, which absorbs cancellation in the products of differences.

    Raises:
        ValueError: if the batches differ.
    """
    few = (..., slice(count), slice(None))
    if teacher[few].shape[:-1] != student[few].shape[:-1]:
        raise ValueError(f"batches differ: {tuple(teacher.shape[:-1])} and {tuple(student.shape[:-1])}")
    return teacher[few].double(), student[few].double()


def _for_all(values: Tensor, student: Tensor) -> Tensor:
    """The values ``[..., b]`` of the first samples, and their mean for the others: ``[..., B]``, of the layer's own type."""
    values, rest = values.to(student.dtype), student.shape[-2] - values.shape[-1]
    return torch.cat([values, values.mean(-1, keepdim=True).expand(*values.shape[:-1], rest)], dim=-1) if rest else values


def _squared_distances(layer: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances between all samples ``[..., B, B]``, zero for equal samples; and a mask of those that differ."""
    centred = layer - layer.mean(-2, keepdim=True)  # loses fewer digits below
    gram = centred @ centred.mT
    own = gram.diagonal(dim1=-2, dim2=-1)
    both = own.unsqueeze(-1) + own.unsqueeze(-2)
    squares = both - 2 * gram
    apart = squares > SAME * both
    return torch.where(apart, squares, 0.0), apart


def _distances(layer: Tensor) -> Tensor:
    """Distances between all samples ``[..., B, B]``, divided by the mean of those that are not zero."""
    squares, apart = _squared_distances(layer)
    distances = torch.where(apart, squares, 1.0).sqrt() * apart  # the root has no gradient at zero
    mean = distances.sum((-2, -1), keepdim=True) / apart.sum((-2, -1), keepdim=True).clamp_min(1)
    return distances / mean.clamp_min(1e-12)


def _angles(layer: Tensor) -> Tensor:
    """Cosine of the angle at each sample between each two others, ``[..., B, B, B]``; 0 where one of them is the sample itself.

    By the law of cosines from the three distances.
    """
    squares, apart = _squared_distances(layer)
    inverse = torch.where(apart, squares, 1.0).rsqrt() * apart
    twice = squares.unsqueeze(-1) + squares.unsqueeze(-2) - squares.unsqueeze(-3)
    return twice * (0.5 * inverse).unsqueeze(-1) * inverse.unsqueeze(-2)


class _ProjectedSquares(torch.autograd.Function):
    """Sum of squares of the projected layer minus the teacher's, ``[K, B]``.

    Forward and backward are written out so that only matrix products access the wide tensors; plain autograd takes twice as long.
    """

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, layer: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        inputs, matrix = _with_ones(layer), torch.cat([weight, bias], dim=1)
        error = torch.baddbmm(teacher, inputs.mT, matrix, beta=-1)
        ctx.save_for_backward(inputs, matrix, error)
        return torch.linalg.vector_norm(error, dim=-1).square()  # no temporary of the error's size

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, matrix, error = ctx.saved_tensors
        twice = 2 * grad.unsqueeze(1)
        of_layer, of_matrix = torch.bmm(matrix[:, :-1], error.mT) * twice, torch.bmm(inputs * twice, error)
        return None, of_layer.mT, of_matrix[:, :-1], of_matrix[:, -1:]


class _ProjectedCosine(torch.autograd.Function):
    """One minus the cosine between the projected layer and the teacher's, ``[K, B]``; the projected layer is never materialised.

    With inputs h (a one at their end) and the projection's matrix W, the projected layer is p = W' h: its product with the teacher's
    layer t is h' (W t), and its square h' (W W') h. The gradient with respect to p is ``cosine * p / |p|**2 - t / (|t| |p|)``.
    """

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, layer: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        inputs, matrix = _with_ones(layer), torch.cat([weight, bias], dim=1)
        with_teacher, with_itself = torch.bmm(matrix, teacher.mT), torch.bmm(torch.bmm(matrix, matrix.mT), inputs)
        length = (inputs * with_itself).sum(1).clamp_min(0).sqrt().clamp_min(SHORTEST)
        product = length * torch.linalg.vector_norm(teacher, dim=-1).clamp_min(SHORTEST)
        cosine = (inputs * with_teacher).sum(1) / product
        ctx.save_for_backward(teacher, inputs, matrix, with_teacher, with_itself, 1 / product, cosine / length.square())
        return 1 - cosine

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        teacher, inputs, matrix, with_teacher, with_itself, share, own_share = ctx.saved_tensors
        share, own_share = (-grad * share).unsqueeze(1), (grad * own_share).unsqueeze(1)
        of_layer = (share * with_teacher + own_share * with_itself)[:, :-1]
        of_matrix = torch.bmm(inputs * share, teacher) + torch.bmm(torch.bmm(inputs * own_share, inputs.mT), matrix)
        return None, of_layer.mT, of_matrix[:, :-1], of_matrix[:, -1:]


def _with_ones(layer: Tensor) -> Tensor:
    """``[K, B, width]`` turned, with a row of ones for the bias: ``[K, width + 1, B]``."""
    return torch.cat([layer.mT, layer.new_ones(len(layer), 1, layer.shape[1])], dim=1)
