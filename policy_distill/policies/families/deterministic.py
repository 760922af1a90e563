"""Deterministic continuous actions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from policy_distill.policies.actions import Box, Parameters
from policy_distill.policies.families.family import Family


@dataclass(frozen=True)
class Deterministic(Family):
    """A deterministic teacher: TD3, DDPG, ARS, any callable."""

    box: Box
    names = ()

    @property
    def width(self) -> int:
        return self.box.dim

    @property
    def action_shape(self) -> tuple[int, ...]:
        return (self.box.dim,)

    @property
    def losses(self) -> tuple[str, ...]:
        return ("regression",)

    def raw(self, actions: Tensor) -> Tensor:
        return self.box.to_box(actions)

    def mode(self, parameters: Parameters) -> Tensor:
        raise ValueError(f"{self} has no parameters: the teacher returns actions")
