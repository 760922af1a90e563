"""Independent binary actions (MultiBinary spaces)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from policy_distill.policies.actions import Parameters
from policy_distill.policies.families.choices import CONFIDENCE, FORBIDDEN, Choices, log_of_mean, where_of
from policy_distill.policies.families.family import Outputs


@dataclass(frozen=True)
class Bernoulli(Choices):
    """``num_bits`` independent binary components; a logit above zero means 1. Parameters: ``logits``."""

    num_bits: int

    @classmethod
    def of_space(cls, space: gym.spaces.MultiBinary) -> Bernoulli | None:
        return cls(int(space.n)) if isinstance(space.n, int | np.integer) else None

    @property
    def width(self) -> int:
        return self.num_bits

    @property
    def sizes(self) -> tuple[int, ...]:
        return (2,) * self.num_bits

    @property
    def action_shape(self) -> tuple[int, ...]:
        return (self.num_bits,)

    @property
    def standardizes(self) -> bool:
        return False

    # All components form one part ``[..., num_bits, 2]``: the logit of "off" is 0.

    def parts(self, logits: Tensor) -> list[Tensor]:
        return [torch.stack([torch.zeros_like(logits), logits], dim=-1)]

    def total(self, values: Iterable[Tensor]) -> Tensor:
        return super().total(values).sum(-1)

    def of_choices(self, raw: Tensor) -> list[Tensor]:
        return [raw]

    def divergence(
        self, name: str, teacher: Parameters, student: Parameters, *, temperature: Tensor | float = 1.0, beta: float = 0.5
    ) -> Tensor:
        of_each = temperature[..., None] if isinstance(temperature, Tensor) else temperature
        return super().divergence(name, teacher, student, temperature=of_each, beta=beta)

    def mode(self, parameters: Parameters) -> Tensor:
        return (parameters["logits"] > 0).long()

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        probabilities = parameters["logits"].sigmoid()
        return (torch.rand(probabilities.shape, generator=generator, device=probabilities.device) < probabilities).long()

    def draw(self, parameters: Parameters, uniform: Tensor) -> Tensor:
        return (parameters["logits"] + uniform.logit() > 0).long()

    def masked(self, outputs: Outputs, mask: Outputs) -> Outputs:
        where, off, on = where_of(outputs), mask[..., 0::2] != 0, mask[..., 1::2] != 0
        return where(on, where(off, outputs, -FORBIDDEN), where(off, FORBIDDEN, 0 * outputs))  # logit 0 where neither is allowed

    def mix(self, members: Sequence[Parameters], weights: Sequence[float]) -> Parameters:
        logits = torch.stack([member["logits"] for member in members])
        return {"logits": log_of_mean(F.logsigmoid(logits), weights) - log_of_mean(F.logsigmoid(-logits), weights)}

    def confident(self, actions: Tensor) -> Parameters:
        if not bool(((actions == 0) | (actions == 1)).all()):
            raise ValueError("the callable returned values other than 0 and 1")
        return {"logits": (2.0 * actions.float() - 1.0) * float(np.log(CONFIDENCE / (1 - CONFIDENCE)))}

    def noise(self, generator: np.random.Generator, num_steps: int) -> np.ndarray:
        return generator.logistic(size=(num_steps, self.width)).astype(np.float32)

    def drawn(self, outputs: np.ndarray, std: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return outputs + noise > 0

    def scored(self, outputs: Tensor, log_std: Tensor, raw: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        return (raw * outputs - F.softplus(outputs)).sum(-1), raw - outputs.sigmoid(), None
