"""Stacks: K students that are trained together, as rows of one flat tensor; and the choice of their implementation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from policy_distill.policies.architecture import Architecture
from policy_distill.policies.encoders import Encoder, Vectors
from policy_distill.training.stacks.analytic import StudentStack
from policy_distill.training.stacks.autograd import AutogradStack
from policy_distill.training.stacks.interface import Pass, Stack
from policy_distill.training.stacks.recurrent import RecurrentStack

__all__ = ["AutogradStack", "Pass", "RecurrentStack", "Stack", "StudentStack", "stack_of"]


def stack_of(
    architecture: Architecture,
    encoder: Encoder,
    *,
    generators: list[torch.Generator],
    projections: Sequence[tuple[int, int]] = (),
) -> Stack:
    """New students with the normalisation and device of ``encoder``: an analytic backward pass for vectors, else autograd."""
    if architecture.memory:
        return RecurrentStack(architecture, encoder, generators=generators, projections=projections)
    if isinstance(encoder, Vectors):
        return StudentStack(architecture, generators=generators, mean=encoder.mean, scale=encoder.scale, projections=projections)
    return AutogradStack(architecture, encoder, generators=generators, projections=projections)
