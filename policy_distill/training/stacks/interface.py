"""Interface between a trainer and its students."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from policy_distill.policies.architecture import Architecture
from policy_distill.policies.student import Student


class Pass(Protocol):
    """Buffers of a forward and backward pass for one batch size; each pass overwrites them.

    Attributes:
        hidden: ``[K, width, B]`` of each hidden layer of the head, after its activation.
        slopes: the last is the loss's gradient with respect to the output, ``[K, outputs, B]``; set it before ``Stack.backward``.
    """

    hidden: list[Tensor]
    slopes: list[Tensor]

    def named(self, output: Tensor) -> dict[str, Tensor]:
        """Layers ``hidden.0``, ``hidden.1``, ..., ``output`` for losses: views ``[K, B, width]``."""
        ...


class Stack(Protocol):
    """K students of one architecture, trained together; each row of ``flat`` is one student, see ``flat.FlatParameters``.

    A batch passes through ``load``, ``forward`` and ``backward``. The type of inputs and ``Pass`` depends on the stack.
    """

    architecture: Architecture
    num_members: int
    flat: Tensor
    gradient: Tensor
    zeros: float
    log_std: Tensor
    projections: list[tuple[Tensor, Tensor]]

    @property
    def sample_size(self) -> int:
        """Number of elements of one input."""
        ...

    def matrices_of(self, flat: Tensor) -> list[Tensor]:
        """Each layer's weights ``[K, m, n]`` without its biases, as views of a tensor like ``flat``."""
        ...

    def inputs(self, steps: int, batch_size: int) -> Any:
        """Buffer for the inputs of S steps, for ``load``."""
        ...

    def load(self, observations: Any, room: Any) -> Sequence[Any]:
        """Inputs of each step, from raw observations ``[S * K * B, ...]``; ``room`` is a buffer from ``inputs``."""
        ...

    def buffers(self, batch_size: int) -> Any:
        """Buffers of a ``Pass``."""
        ...

    def forward(self, inputs: Any, activations: Any, output: Tensor | None = None) -> Tensor:
        """Fill ``activations``; write the output ``[K, outputs, B]`` into ``output`` if given, and return it."""
        ...

    def backward(self, inputs: Any, activations: Any, hints: Sequence[Tensor | None] = ()) -> None:
        """Write the loss's gradient into ``gradient``; ``activations.slopes[-1]`` and ``hints`` hold those of output and hidden layers."""
        ...

    def member(self, index: int, flat: Tensor | None = None) -> Student:
        """A copy of one member on the CPU; from ``flat`` ``[K, P]`` if given."""
        ...
