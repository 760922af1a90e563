"""Losses whose gradient with respect to the students' outputs is written out: the default ones, without autograd.

A chunk of gradient steps is prepared at once: what depends on the teacher alone is computed there, and each term's value is taken there
when its steps are done. What remains in a step are four to six operations. Tensors lie feature after feature, ``[..., width, B]``.

Everything else that ``Objective`` knows goes through autograd; both ways end at the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from policy_distill.actions import ActionTargets, Bernoulli, Categorical, Deterministic, DiagGaussian, MultiCategorical
from policy_distill.losses import HUBER_DELTA
from policy_distill.objective import REGRESSIONS, Objective

Gradient: TypeAlias = "ChoiceGradient | RegressionGradient"


def written_out(objective: Objective) -> bool:
    """Whether the gradient is written out for this loss: forward KL between choices, or regression, and neither hints nor relations."""
    config = objective.config
    plain = objective.kind == "kl" and config.divergence == "forward_kl" and not config.standardize_logits
    chosen = isinstance(objective.family, (Categorical, MultiCategorical, Bernoulli)) and plain
    return not (config.features.weight or config.relations.weight) and (chosen or objective.kind == "regression")


def prepare(objective: Objective, targets: ActionTargets, progress: Sequence[float]) -> Gradient:
    """What the next steps need of their targets.

    Args:
        objective: one for which ``written_out`` is true.
        targets: with leading ``[S, K, B]``.
        progress: ``[S]``, share of the training that is done at each step.
    """
    with torch.no_grad():
        return (RegressionGradient if objective.kind == "regression" else ChoiceGradient)(objective, targets, progress)


class ChoiceGradient:
    """``(1 - alpha) * T**2 * KL(teacher || student)`` of choices softened by T, and ``alpha`` times the cross-entropy of the greedy action.

    With p and q the softened teacher and student and y the greedy action as ones and zeros, the gradient with respect to the logits is
    ``(1 - alpha) * T * (q - p) + alpha * (q at T = 1 - y)``, over the batch size.
    """

    def __init__(self, objective: Objective, targets: ActionTargets, progress: Sequence[float]) -> None:
        self._switches = isinstance(objective.family, Bernoulli)
        self._sizes = _sizes(objective)
        self._name, self._alpha = objective.soft_name, objective.config.hard_weight
        self._temperatures = [objective.temperature(share) for share in progress]
        raw = {name: _along_batch(value).transpose(-1, -2) for name, value in targets.parameters.items()}
        logits = objective.logits_of(raw).transpose(-1, -2)
        if any(temperature != 1 for temperature in self._temperatures):
            logits = logits / logits.new_tensor(self._temperatures).view(-1, 1, 1, 1)
        self._samples = logits.shape[-1]
        self._teacher_log_probs = torch.empty_like(self._paired(logits))
        _log_probs(self._paired(logits), self._sizes, self._teacher_log_probs)
        self._teacher = self._teacher_log_probs.exp()
        self._log_probs = torch.empty_like(self._teacher)
        self._scratch = torch.empty_like(self._teacher[0])
        self._hard_log_probs = self._log_probs
        if self._alpha:
            self._labels = _one_hot(objective, targets.actions, self._sizes, self._teacher)
            self._hard_log_probs, self._more = torch.empty_like(self._teacher), torch.empty_like(self._scratch)
        self._padded = torch.zeros_like(self._scratch)

    def write(self, step: int, outputs: Tensor, slope: Tensor) -> None:
        """Write the gradient of the mean over the batch with respect to ``outputs`` ``[K, width, B]`` into ``slope``, at ``step`` of S."""
        temperature = self._temperatures[step]
        logits = self._paired(outputs, self._padded)
        scaled = logits if temperature == 1 else torch.mul(logits, 1 / temperature, out=self._scratch)
        _log_probs(scaled, self._sizes, self._log_probs[step])
        found = self._scratch if self._switches else slope
        torch.exp(self._log_probs[step], out=found).sub_(self._teacher[step]).mul_((1 - self._alpha) * temperature / self._samples)
        if self._alpha:
            _log_probs(logits, self._sizes, self._hard_log_probs[step])
            torch.exp(self._hard_log_probs[step], out=self._more).sub_(self._labels[step])
            found.add_(self._more, alpha=self._alpha / self._samples)
        if self._switches:
            slope.copy_(found[:, 1::2])

    def values(self) -> dict[str, Tensor]:
        """Each term's sum over the steps of its mean over members and samples, as ``Objective.terms`` has it."""
        share = self._samples * self._teacher.shape[1]
        # 0 * -inf is no number: what the teacher forbids contributes zero
        difference = self._teacher_log_probs.clamp_min_(torch.finfo(self._teacher.dtype).min).sub_(self._log_probs)
        found = {self._name: _dot(self._teacher, difference) / share}
        if self._alpha:
            found["hard_cross_entropy_nats"] = -_dot(self._labels, self._hard_log_probs) / share
        return found

    def _paired(self, logits: Tensor, room: Tensor | None = None) -> Tensor:
        """Logits ``[..., width, B]`` with, for switches, the logit 0 of "off" before each: ``[..., 2 * width, B]``."""
        if not self._switches:
            return logits
        *lead, width, batch = logits.shape
        padded = logits.new_zeros(*lead, 2 * width, batch) if room is None else room
        padded[..., 1::2, :] = logits
        return padded


class RegressionGradient:
    """Squared, absolute or Huber's error in box units, mean over the components; beyond a bound a prediction is no error.

    The gradient with respect to the prediction is the error between bounds: those of the target (``losses.bounded_error``), and for
    Huber's loss those where the square turns into a line.
    """

    def __init__(self, objective: Objective, targets: ActionTargets, progress: Sequence[float]) -> None:
        assert isinstance(objective.family, (DiagGaussian, Deterministic))
        kind = objective.config.regression
        self._name, self._loss, self._signs = objective.soft_name, REGRESSIONS[kind], kind == "absolute"
        target = _along_batch(objective.family.box.to_box(targets.actions))
        self._lower = torch.where(target <= -1, 0.0, -torch.inf).to(target.dtype)
        self._upper = torch.where(target >= 1, 0.0, torch.inf).to(target.dtype)
        self._target = target.clamp_(-1, 1)
        self._least, self._most, self._factor = self._lower, self._upper, 1.0
        if kind == "huber":
            self._least, self._most = self._lower.clamp_min(-HUBER_DELTA), self._upper.clamp_max(HUBER_DELTA)
            self._factor = 1 / HUBER_DELTA
        elif kind == "squared":
            self._factor = 2.0
        self._factor /= target.shape[-1] * target.shape[-2]
        self._error = torch.empty_like(target)

    def write(self, step: int, outputs: Tensor, slope: Tensor) -> None:
        """Write the gradient of the mean over the batch with respect to ``outputs`` ``[K, width, B]`` into ``slope``, at ``step`` of S."""
        error = torch.sub(outputs, self._target[step], out=self._error[step])
        torch.clamp(error, self._least[step], self._most[step], out=slope)
        if self._signs:
            slope.sign_()
        slope.mul_(self._factor)

    def values(self) -> dict[str, Tensor]:
        """Each term's sum over the steps of its mean over members and samples, as ``Objective.terms`` has it."""
        error = torch.clamp(self._error, self._lower, self._upper, out=self._error)
        return {self._name: self._loss(error.transpose(-1, -2)).mean() * len(error)}


def _along_batch(values: Tensor) -> Tensor:
    """``[..., B, width]`` copied to ``[..., width, B]``."""
    return values.transpose(-1, -2).contiguous()


def _sizes(objective: Objective) -> tuple[int, ...]:
    """The number of choices of each component; a switch has two."""
    match objective.family:
        case Categorical(num_actions=count):
            return (count,)
        case MultiCategorical(nvec=nvec):
            return nvec
        case Bernoulli(num_bits=bits):
            return (2,) * bits
    raise AssertionError(f"{objective.family} does not choose")


def _log_probs(logits: Tensor, sizes: tuple[int, ...], out: Tensor) -> None:
    """Log-softmax over each component of ``[..., width, B]``."""
    if len(set(sizes)) == 1:  # one operation for all of them
        shape = (len(sizes), sizes[0])
        torch.log_softmax(logits.unflatten(-2, shape), -2, out=out.unflatten(-2, shape))
        return
    for part, room in zip(logits.split(sizes, -2), out.split(sizes, -2), strict=True):
        room.copy_(torch.log_softmax(part, -2))


def _one_hot(objective: Objective, actions: Tensor, sizes: tuple[int, ...], like: Tensor) -> Tensor:
    """Greedy actions ``[S, K, B]`` or ``[S, K, B, components]`` as ones among zeros, ``[S, K, width, B]``."""
    indices = actions[..., None] - objective.family.start if isinstance(objective.family, Categorical) else actions
    first = indices.new_tensor([sum(sizes[:component]) for component in range(len(sizes))])
    return torch.zeros_like(like).scatter_(-2, (indices + first).transpose(-1, -2).long(), 1.0)


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return torch.dot(first.flatten(), second.flatten())
