"""Deterministic continuous actions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from policy_distill.policies.actions import Parameters
from policy_distill.policies.families.continuous import Continuous


@dataclass(frozen=True)
class Deterministic(Continuous):
    """A deterministic teacher: TD3, DDPG, ARS, any callable."""

    names = ()

    @property
    def losses(self) -> tuple[str, ...]:
        return ("regression",)

    def mode(self, parameters: Parameters) -> Tensor:
        raise ValueError(f"{self} has no parameters: the teacher returns actions")
