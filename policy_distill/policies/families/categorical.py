"""Categorical distributions (Discrete spaces)."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from policy_distill.policies.actions import Parameters
from policy_distill.policies.families.choices import Choices
from policy_distill.policies.rowwise import Function


@dataclass(frozen=True)
class Categorical(Choices):
    """One of ``num_actions`` actions, numbered from ``start`` in the environment. Parameters: ``logits``, or a teacher's ``q_values``."""

    num_actions: int
    start: int = 0

    @classmethod
    def of_space(cls, space: gym.spaces.Discrete) -> Categorical:
        return cls(int(space.n), int(space.start))

    @property
    def width(self) -> int:
        return self.num_actions

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.num_actions,)

    @property
    def action_shape(self) -> tuple[int, ...]:
        return ()

    def parts(self, logits: Tensor) -> list[Tensor]:
        return [logits]

    def raw(self, actions: Tensor) -> Tensor:
        return actions[..., None].long() - self.start

    def mode(self, parameters: Parameters) -> Tensor:
        scores = parameters["logits"] if "logits" in parameters else parameters["q_values"]
        best = scores.argmax(-1)
        return best + self.start if self.start else best

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        if "logits" not in parameters:
            return self.mode(parameters)
        return super().sample(parameters, generator)[..., 0] + self.start

    def chooser(self, shape: tuple[int, ...]) -> Function:
        start = self.start
        return lambda outputs: outputs.argmax(-1) + start

    def drawn(self, outputs: np.ndarray, std: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return (outputs + noise).argmax(-1)[:, None]
