"""Interface of exported policies: what computes their decisions, and on which states they are calibrated and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

Seen: TypeAlias = dict[str, np.ndarray]
"""Raw inputs ``[B, ...]`` by the names of ``Folded.inputs``."""


class Runner(Protocol):
    """An exported policy, executed: onnxruntime, compiled C, numpy, ..."""

    def __call__(self, seen: Seen, state: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One decision for each of B rows, which do not influence each other.

        Args:
            seen: see ``Seen``.
            state: recurrent state ``[B, units]`` float32; ``[B, 0]`` without a memory.

        Returns:
            Actions ``[B, *shape]`` that the environment accepts, the network's outputs ``[B, outputs]`` float32 (logits, or means before
            ``ActionRule.scale``), and the state after the step.
        """
        ...


@dataclass(frozen=True)
class Visited:
    """States that the student visits.

    Attributes:
        seen: ``[S, ...]``.
        states: recurrent state before each of them, ``[S, units]``.
    """

    seen: Seen
    states: np.ndarray

    def __len__(self) -> int:
        return len(self.states)

    def rows(self, index: slice | np.ndarray) -> Visited:
        """Some of the states."""
        return Visited({name: leaf[index] for name, leaf in self.seen.items()}, self.states[index])
