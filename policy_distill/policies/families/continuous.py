"""What families of continuous actions share: the box of the action space."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from policy_distill.policies.actions import Box
from policy_distill.policies.families.family import Family


@dataclass(frozen=True)
class Continuous(Family):
    """A family of actions in a box, with one component for each dimension."""

    box: Box

    @property
    def width(self) -> int:
        return self.box.dim

    @property
    def action_shape(self) -> tuple[int, ...]:
        return (self.box.dim,)

    def raw(self, actions: Tensor) -> Tensor:
        return self.box.to_box(actions)
