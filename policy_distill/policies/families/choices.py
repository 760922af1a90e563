"""Base class of the discrete families: independent categorical components."""

from __future__ import annotations

import functools
import operator
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policy_distill.policies.actions import Parameters
from policy_distill.policies.divergences import forward_kl, hard_label_cross_entropy, jensen_shannon, reverse_kl
from policy_distill.policies.families.family import Family, Outputs
from policy_distill.policies.families.q_values import standardize_logits

CONFIDENCE = 0.999
"""Probability of the chosen action if a teacher returns only actions; below 1, so that the KL stays finite."""
FORBIDDEN = -1e8
"""Logit of a forbidden action, as in sb3-contrib: its probability is exactly 0; if all are forbidden, all are equally likely."""


class Choices(Family):
    """One or several independent categorical components, whose logits are concatenated."""

    box = None
    names = ("logits",)
    in_sb3 = True

    @abstractmethod
    def parts(self, logits: Tensor) -> list[Tensor]:
        """The logits of each component, ``[..., number of values]``."""

    def total(self, values: Iterable[Tensor]) -> Tensor:
        """Sum over the components of values ``[...]``."""
        return functools.reduce(operator.add, values)

    def of_choices(self, raw: Tensor) -> list[Tensor]:
        """A raw action as one tensor of indices for each of ``parts``."""
        return list(raw.unbind(-1))

    @property
    def divergences(self) -> tuple[str, ...]:
        return ("forward_kl", "reverse_kl", "jensen_shannon")

    @property
    def standardizes(self) -> bool:
        return True

    def standardized(self, parameters: Parameters) -> Parameters:
        return {"logits": torch.cat([standardize_logits(part) for part in self.parts(parameters["logits"])], dim=-1)}

    def divergence(
        self, name: str, teacher: Parameters, student: Parameters, *, temperature: Tensor | float = 1.0, beta: float = 0.5
    ) -> Tensor:
        measure = functools.partial(jensen_shannon, beta=beta) if name == "jensen_shannon" else _KL[name]
        pairs = zip(self.parts(teacher["logits"]), self.parts(student["logits"]), strict=True)
        return self.total(measure(*pair, temperature=temperature) for pair in pairs)

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        draws = [_draw(part, generator) for part in self.parts(parameters["logits"])]
        return torch.stack(draws, dim=-1)

    def draw(self, parameters: Parameters, uniform: Tensor) -> Tensor:
        return torch.stack([part.argmax(-1) for part in self.parts(parameters["logits"] - (-uniform.log()).log())], dim=-1)

    def log_prob(self, parameters: Parameters, raw: Tensor) -> Tensor:
        return -self.total(map(hard_label_cross_entropy, self.of_choices(raw), self.parts(parameters["logits"])))

    def entropy(self, parameters: Parameters) -> Tensor:
        parts = self.parts(parameters["logits"])
        return self.total(torch.distributions.Categorical(logits=part, validate_args=False).entropy() for part in parts)

    def masked(self, outputs: Outputs, mask: Outputs) -> Outputs:
        return where_of(outputs)(mask != 0, outputs, FORBIDDEN)

    def mix(self, members: Sequence[Parameters], weights: Sequence[float]) -> Parameters:
        parts = self.parts(torch.stack([member["logits"] for member in members]))
        return {"logits": torch.cat([log_of_mean(part.log_softmax(-1), weights) for part in parts], dim=-1)}

    def confident(self, actions: Tensor) -> Parameters:
        parts = []
        for column, size in zip(self.raw(actions).unbind(-1), self.sizes, strict=True):
            if not bool(((column >= 0) & (column < size)).all()):
                found = f"{int(column.min())} to {int(column.max())}"
                raise ValueError(f"an action is outside its space: it has {size} values, and the actions are {found}, counted from 0")
            chosen = torch.nn.functional.one_hot(column, size).float()
            rest = (1 - CONFIDENCE) / max(size - 1, 1)
            parts.append((chosen * CONFIDENCE + (1 - chosen) * rest).log())
        return {"logits": torch.cat(parts, dim=-1)}

    def noise(self, generator: np.random.Generator, num_steps: int) -> np.ndarray:
        """Gumbel noise: the argmax of logits plus noise is a sample from their softmax (Maddison et al. 2014, arXiv 1411.0030)."""
        return generator.gumbel(size=(num_steps, self.width)).astype(np.float32)

    def scored(self, outputs: Tensor, log_std: Tensor, raw: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        chosen = raw.reshape(len(outputs), -1).split(1, -1)
        log_probs, scores = zip(*map(_scored, self.parts(outputs), chosen), strict=True)
        return torch.stack(log_probs).sum(0), torch.cat(scores, -1), None


_KL = {"forward_kl": forward_kl, "reverse_kl": reverse_kl}


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Sample one index for each row by the Gumbel-max trick."""
    uniform = torch.rand(logits.shape, generator=generator, device=logits.device).clamp_min(1e-20)
    return (logits - (-uniform.log()).log()).argmax(-1)


def where_of(values: Tensor | np.ndarray) -> Callable[..., Any]:
    """``where`` of torch or numpy."""
    return torch.where if isinstance(values, Tensor) else np.where


def log_of_mean(log_probs: Tensor, weights: Sequence[float]) -> Tensor:
    """``log(sum_m weights[m] * exp(log_probs[m]))`` for ``[M, ...]``; stable if a probability underflows."""
    log_weights = log_probs.new_tensor(weights).log().reshape(-1, *[1] * (log_probs.ndim - 1))
    return (log_probs + log_weights).logsumexp(0)


def _scored(logits: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability ``[B]`` of ``chosen`` ``[B, 1]``, and its gradient with respect to the logits ``[B, n]``: one-hot minus softmax."""
    log_probs, chosen = logits.log_softmax(-1), chosen.long()
    return log_probs.gather(-1, chosen)[:, 0], (-log_probs.exp()).scatter_add(-1, chosen, torch.ones_like(log_probs[:, :1]))
