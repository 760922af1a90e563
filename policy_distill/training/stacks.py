"""What a trainer knows of the students that it trains, and which implementation trains which students."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from policy_distill.policies.encoders import Encoder, Vectors
from policy_distill.policies.student import Architecture, Student
from policy_distill.training.autograd_stack import AutogradStack
from policy_distill.training.recurrent_stack import RecurrentStack
from policy_distill.training.stack import StudentStack


class Pass(Protocol):
    """What a stack computes for batches of one size, overwritten by each pass.

    Attributes:
        hidden: of each hidden layer of the head ``[K, width, B]``, after its activation.
        slopes: the last is the loss's gradient with respect to the output, ``[K, outputs, B]``, written before ``Stack.backward``.
    """

    hidden: list[Tensor]
    slopes: list[Tensor]

    def named(self, output: Tensor) -> dict[str, Tensor]:
        """``hidden.0``, ``hidden.1``, ..., ``output`` as losses read them: views ``[K, B, width]``."""
        ...


class Stack(Protocol):
    """K students of one architecture, trained side by side: each row of ``flat`` is one of them, see ``flat.FlatParameters``.

    A batch goes through ``load``, ``forward`` and ``backward``, each stack's own inputs and ``Pass`` between them.
    """

    architecture: Architecture
    num_members: int
    flat: Tensor
    gradient: Tensor
    log_std: Tensor
    projections: list[tuple[Tensor, Tensor]]

    @property
    def sample_size(self) -> int:
        """Numbers of one observation as the stack reads it."""
        ...

    def inputs(self, steps: int, batch_size: int) -> Any:
        """Room for the inputs of S steps, for ``load``."""
        ...

    def load(self, observations: Any, room: Any) -> Sequence[Any]:
        """Raw observations ``[S * K * B, ...]`` as the inputs of each step."""
        ...

    def buffers(self, batch_size: int) -> Any:
        """Room for one ``Pass``."""
        ...

    def forward(self, inputs: Any, activations: Any, output: Tensor | None = None) -> Tensor:
        """Fill ``activations``; write the output ``[K, outputs, B]`` into ``output`` if given, and return it."""
        ...

    def backward(self, inputs: Any, activations: Any, hints: Sequence[Tensor | None] = ()) -> None:
        """Write the loss's gradient into ``gradient``, from ``activations.slopes[-1]`` and those of hidden layers (``hints``)."""
        ...

    def member(self, index: int, flat: Tensor | None = None) -> Student:
        """A copy of one member on the CPU; from ``flat`` ``[K, P]`` if given."""
        ...


def stack_of(
    architecture: Architecture,
    encoder: Encoder,
    *,
    generators: list[torch.Generator],
    projections: Sequence[tuple[int, int]] = (),
) -> Stack:
    """Fresh students with the normalisation of ``encoder``, on whose device they are trained: written out for vectors, else by autograd."""
    if architecture.memory:
        return RecurrentStack(architecture, encoder, generators=generators, projections=projections)
    if isinstance(encoder, Vectors):
        return StudentStack(architecture, generators=generators, mean=encoder.mean, scale=encoder.scale, projections=projections)
    return AutogradStack(architecture, encoder, generators=generators, projections=projections)
