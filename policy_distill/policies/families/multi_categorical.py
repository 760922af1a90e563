"""Several independent categorical distributions (MultiDiscrete spaces)."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from policy_distill.policies.actions import Parameters
from policy_distill.policies.families.choices import Choices


@dataclass(frozen=True)
class MultiCategorical(Choices):
    """Several independent categorical components, ``nvec[i]`` choices each. Parameters: ``logits``."""

    nvec: tuple[int, ...]

    @classmethod
    def of_space(cls, space: gym.spaces.MultiDiscrete) -> MultiCategorical | None:
        return cls(tuple(map(int, space.nvec))) if space.nvec.ndim == 1 and not np.any(space.start) else None

    @property
    def width(self) -> int:
        return sum(self.nvec)

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.nvec

    @property
    def action_shape(self) -> tuple[int, ...]:
        return (len(self.nvec),)

    def parts(self, logits: Tensor) -> list[Tensor]:
        return list(logits.split(self.nvec, dim=-1))

    def mode(self, parameters: Parameters) -> Tensor:
        return torch.stack([part.argmax(-1) for part in self.parts(parameters["logits"])], dim=-1)

    def drawn(self, outputs: np.ndarray, std: np.ndarray, noise: np.ndarray) -> np.ndarray:
        parts = np.split(outputs + noise, np.cumsum(self.nvec)[:-1], axis=-1)
        return np.stack([part.argmax(-1) for part in parts], axis=-1)
