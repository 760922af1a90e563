"""Analytic gradients of the default losses on actions with respect to the students' outputs.

Each object handles a chunk of gradient steps: ``load`` computes everything that depends only on the teacher, ``values`` computes the terms
after the last step. A single step takes four to six operations. Tensors are feature-major, ``[..., width, B]``.

All other losses of ``Objective`` use autograd (``autograd_gradients``); where both exist they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from policy_distill.losses.autograd_gradients import AutogradGradient
from policy_distill.losses.objective import REGRESSIONS, Objective
from policy_distill.policies.actions import ActionTargets, Box
from policy_distill.policies.divergences import HUBER_DELTA
from policy_distill.policies.families import Choices, DiagGaussian

BOUNDLESS = 1e38
"""Times the smallest nonzero float32 difference of values near 1, it still exceeds any error."""
Gradient: TypeAlias = "ChoiceGradient | GaussianGradient | RegressionGradient | AutogradGradient"


def written_out(objective: Objective) -> bool:
    """Whether the loss on actions has an analytic gradient here: forward KL of choices and Gaussians, or regression."""
    config = objective.config
    plain = objective.kind == "kl" and config.divergence == "forward_kl" and not config.standardize_logits
    return (plain and isinstance(objective.family, Choices | DiagGaussian)) or objective.kind == "regression"


def gradient_of(objective: Objective, inputs: Tensor, log_std: Tensor, generators: Sequence[torch.Generator] = ()) -> Gradient:
    """The gradient of the loss on actions, with buffers for chunks of the shape of ``inputs``, ``[S, K, inputs, B]``.

    Args:
        objective: the loss.
        inputs: only its shape, dtype and device are read.
        log_std: ``[K, 1, action_dim]``, the students', a leaf tensor; a loss that reads it writes its ``grad``.
        generators: one for each member, for a loss that samples the teacher's actions.
    """
    steps, members, _, batch = inputs.shape
    like = inputs.new_zeros(steps, members, objective.family.width, batch)
    if not written_out(objective):
        return AutogradGradient(objective, like, log_std, generators)
    if objective.kind == "regression":
        return RegressionGradient(objective, like)
    return GaussianGradient(objective, like, log_std) if isinstance(objective.family, DiagGaussian) else ChoiceGradient(objective, like)


class ChoiceGradient:
    """``(1 - alpha) * T**2 * KL(teacher || student)`` of choices softened by T, and ``alpha`` times the cross-entropy of the greedy action.

    With p and q the softened teacher and student and y the greedy action as ones and zeros, the gradient with respect to the logits is
    ``(1 - alpha) * T * (q - p) + alpha * (q at T = 1 - y)``, over the batch size.

    Args:
        objective: the loss.
        like: ``[S, K, width, B]``.

    Attributes:
        outputs: for each step a buffer ``[K, width, B]``, to be filled with the students' outputs before ``write``, which keeps it.
        divisor: ``write`` writes the gradient times this number.
    """

    def __init__(self, objective: Objective, like: Tensor) -> None:
        self._objective = objective
        self._sizes = objective.family.sizes
        self._switches = sum(self._sizes) != objective.family.width
        self._softens, self._labelled = objective.softens, objective.has_hard_labels
        self._alpha = _each(objective.hard_weight, like)
        self.num_steps, self._members, _, self._samples = like.shape
        self.divisor = float(self._samples)
        self._temperatures, self._shares = _schedules(objective, [1.0] * self.num_steps, like)
        self._outputs = torch.empty_like(like)
        self.outputs = self._outputs.unbind(0)
        self._logits = like.new_zeros(*like.shape[:2], sum(self._sizes), like.shape[-1])
        self._teacher_log_probs, self._teacher, self._log_probs = (torch.empty_like(self._logits) for _ in range(3))
        self._padded, self._scaled, self._difference = (torch.zeros_like(self._logits[0]) for _ in range(3))
        self._teachers = self._teacher.unbind(0)
        if self._labelled:
            self._labels = torch.empty_like(self._logits)

    def load(self, targets: ActionTargets, progress: Sequence[float]) -> None:
        """Set the teacher's targets of the next S steps.

        Args:
            targets: with leading ``[S, K, B]``.
            progress: ``[S]``, completed share of the training at each step.
        """
        logits = self._pair(self._objective.distribution_of(targets.parameters)["logits"].transpose(-1, -2), self._logits)
        if self._softens:
            self._temperatures, self._shares = _schedules(self._objective, progress, logits)
            logits = torch.div(logits, self._temperatures, out=self._logits)
        _over_choices(torch.log_softmax, logits, self._sizes, self._teacher_log_probs)
        torch.exp(self._teacher_log_probs, out=self._teacher)
        if self._labelled:
            indices = self._objective.family.raw(targets.actions)
            first = indices.new_tensor([sum(self._sizes[:component]) for component in range(len(self._sizes))])
            self._labels.zero_().scatter_(-2, (indices + first).transpose(-1, -2), 1.0)

    def write(self, step: int, slope: Tensor) -> None:
        """Write the gradient of the mean over the batch with respect to ``outputs[step]``, times ``divisor``, into ``slope``."""
        logits = self._pair(self.outputs[step], self._padded) if self._switches else self.outputs[step]
        scaled = torch.div(logits, self._temperatures[step], out=self._scaled) if self._softens else logits
        gradient = self._difference if self._switches else slope
        _over_choices(torch.softmax, scaled, self._sizes, gradient)
        gradient.sub_(self._teachers[step])
        if self._softens or self._labelled:
            gradient.mul_(self._shares[step])
        if self._labelled:
            _over_choices(torch.softmax, logits, self._sizes, self._scaled)
            gradient.add_(self._scaled.sub_(self._labels[step]).mul_(self._alpha))
        if self._switches:
            slope.copy_(gradient[:, 1::2])

    def values(self) -> dict[str, Tensor]:
        """Sum over the steps of each term's mean over members and samples (``Objective.terms``); call it once for each ``load``."""
        count = self._samples * self._members
        logits = self._pair(self._outputs, self._logits)
        hard = {}
        if self._labelled:
            _over_choices(torch.log_softmax, logits, self._sizes, self._log_probs)
            hard["hard_cross_entropy_nats"] = -_dot(self._labels, self._log_probs) / count
        if self._softens:
            logits = torch.div(logits, self._temperatures, out=self._logits)
        _over_choices(torch.log_softmax, logits, self._sizes, self._log_probs)
        # An action that the teacher forbids contributes zero; the clamp avoids 0 * -inf.
        difference = self._teacher_log_probs.clamp_min_(torch.finfo(self._teacher.dtype).min).sub_(self._log_probs)
        return {self._objective.soft_name: _dot(self._teacher, difference) / count} | hard

    def _pair(self, logits: Tensor, buffer: Tensor) -> Tensor:
        """Logits ``[..., width, B]``; for Bernoulli families in ``buffer``, each after the logit 0 of "off": ``[..., 2 * width, B]``."""
        if not self._switches:
            return logits
        buffer[..., ::2, :] = 0.0
        buffer[..., 1::2, :] = logits
        return buffer


class GaussianGradient:
    """``T**2 * KL(teacher || student)`` of diagonal Gaussians softened by T, which multiplies the variances.

    With means m and standard deviations s, and the teacher's in capitals, the gradient with respect to m is ``T * (m - M) / s**2``, and
    with respect to log s ``T**2 * (1 - (S**2 + (M - m)**2 / T) / s**2)``, the former over the batch size. ``m - M`` and its square are
    weighted with those of ``divergences.bounded_error``, see ``LossConfig.beyond_bounds``.

    Args:
        objective: the loss.
        like: ``[S, K, action_dim, B]``.
        log_std: ``[K, 1, action_dim]``, the students', read at each step; ``write`` sets its ``grad``.

    Attributes:
        outputs: for each step a buffer ``[K, width, B]``, to be filled with the students' outputs before ``write``, which keeps it.
        divisor: ``write`` writes the gradient times this number.
    """

    def __init__(self, objective: Objective, like: Tensor, log_std: Tensor) -> None:
        self._objective, self._log_std = objective, log_std
        self.num_steps, self._members, _, self._samples = like.shape
        self.divisor = float(self._samples)
        self.outputs = torch.empty_like(like).unbind(0)
        self._mean, self._error, self._squared = torch.empty_like(like), torch.empty_like(like), torch.empty_like(like[0])
        # The teacher's variance and log standard deviation, means over the batch, and the students' log standard deviations at each step.
        self._variance, self._teacher_log_std, self._log_stds = (like.new_empty(*like.shape[:3], 1) for _ in range(3))
        self._steps = list(zip(*(part.unbind(0) for part in (self._mean, self._variance, self._error, self._log_stds)), strict=True))
        self._clipped: _ClippedError | None = None
        if objective.forgives_clipping:
            assert objective.family.box is not None
            self._clipped, self._other = _ClippedError(objective.family.box, like, near_bound=1.0), torch.empty_like(like[0])

    def load(self, targets: ActionTargets, progress: Sequence[float]) -> None:
        """Set the teacher's targets of the next S steps.

        Args:
            targets: with leading ``[S, K, B]``.
            progress: ``[S]``, completed share of the training at each step.
        """
        self._temperatures, self._shares = _schedules(self._objective, progress, self._mean)
        self._mean.copy_(targets.parameters["mean"].transpose(-1, -2))
        if self._clipped is not None:
            self._clipped.load(self._mean)
        log_std = targets.parameters["log_std"].transpose(-1, -2)
        torch.mean(log_std, -1, keepdim=True, out=self._teacher_log_std)
        torch.mean((2 * log_std).exp_(), -1, keepdim=True, out=self._variance)

    @torch.no_grad()
    def write(self, step: int, slope: Tensor) -> None:
        """Write the gradient of the mean over the batch with respect to ``outputs[step]``, times ``divisor``, into ``slope``."""
        temperature, share = self._temperatures[step], self._shares[step]
        mean, variance, error, log_std = self._steps[step]
        log_std.copy_(self._log_std.transpose(1, 2))
        precision = (-2 * log_std).exp_()  # [K, action_dim, 1]
        torch.sub(self.outputs[step], mean, out=error)
        torch.mul(error, error, out=self._squared)
        if self._clipped is None:
            torch.mul(error, precision * share, out=slope)
        else:
            weight, clipped = self._objective.config.beyond_bounds, self._clipped.write(step, self.outputs[step])
            torch.lerp(clipped, error, weight, out=slope).mul_(precision * share)
            torch.lerp(torch.mul(clipped, clipped, out=self._other), self._squared, weight, out=self._squared)
        distance = variance + self._squared.mean(-1, keepdim=True) / temperature
        self._log_std.grad = (1 - distance * precision).mul_(self._samples * share * temperature).transpose(1, 2)

    def values(self) -> dict[str, Tensor]:
        """Sum over the steps of the term's mean over members and samples (``Objective.terms``); call it once for each ``load``."""
        precision = (-2 * self._log_stds).exp()
        log_ratio = self._log_stds - self._teacher_log_std
        squared = self._error.square_()
        if self._clipped is not None:
            torch.lerp(self._clipped.error.square_(), squared, self._objective.config.beyond_bounds, out=squared)
        distance = self._variance + squared.mean(-1, keepdim=True) / self._temperatures
        terms = log_ratio + (distance * precision - 1) / 2  # [S, K, action_dim, 1]
        return {self._objective.soft_name: terms.sum() / self._members}


class _ClippedError:
    """``divergences.bounded_error`` of chunks of steps: the error of the action that the environment receives.

    Args:
        box: the bounds.
        like: ``[S, K, action_dim, B]``.
        near_bound: as in ``bounded_error``.

    Attributes:
        target, error: ``[S, K, action_dim, B]``, the teacher's actions in box units, within the bounds, and the errors that were written.
        lower, upper: bounds of the error: zero on the far side of a target near its bound, else larger than any error.
    """

    def __init__(self, box: Box, like: Tensor, *, near_bound: float) -> None:
        low, high = (limit[:, None] if isinstance(limit, Tensor) else limit for limit in box.limits(like))
        self._limits, self._near = (low, high), (near_bound * low, near_bound * high)
        self.target, self.lower, self.upper, self.error = (torch.empty_like(like) for _ in range(4))

    def load(self, actions: Tensor) -> None:
        """Set the teacher's actions ``[S, K, action_dim, B]`` of the next S steps, in box units and before clipping."""
        # Both limits are numbers, or both are tensors; the stubs have an overload for each, and none for the union.
        target = torch.clamp(actions, *self._limits, out=self.target)  # type: ignore[arg-type]
        # ``torch.where`` takes thirty times as long.
        torch.sub(target, self._near[0], out=self.lower).clamp_min_(0).mul_(-BOUNDLESS)
        torch.sub(self._near[1], target, out=self.upper).clamp_min_(0).mul_(BOUNDLESS)

    def write(self, step: int, outputs: Tensor) -> Tensor:
        """Write the error of ``outputs`` ``[K, action_dim, B]`` at a step, and return it."""
        error = torch.sub(outputs, self.target[step], out=self.error[step])
        return torch.clamp(error, self.lower[step], self.upper[step], out=error)


class RegressionGradient:
    """Squared, absolute or Huber error in box units, mean over the components; see ``divergences.bounded_error``.

    The gradient with respect to the prediction is the error clamped twice: as in ``divergences.bounded_error``, and for the Huber loss to
    its threshold.

    Args:
        objective: the loss.
        like: ``[S, K, action_dim, B]``.

    Attributes:
        outputs: for each step a buffer ``[K, width, B]``, to be filled with the students' outputs before ``write``, which keeps it.
        divisor: ``write`` writes the gradient times this number.
    """

    def __init__(self, objective: Objective, like: Tensor) -> None:
        assert objective.family.box is not None
        self._box, self._name, self._kind = objective.family.box, objective.soft_name, objective.config.regression
        self._clipped = clipped = _ClippedError(self._box, like, near_bound=objective.config.near_bound)
        self.num_steps, _, components, samples = like.shape
        self._least, self._most = clipped.lower, clipped.upper
        if self._kind == "huber":
            self._least, self._most = torch.empty_like(like), torch.empty_like(like)
        self.divisor = components * samples * {"huber": HUBER_DELTA, "squared": 0.5, "absolute": 1.0}[self._kind]
        self.outputs = torch.empty_like(like).unbind(0)
        parts = (clipped.target, self._least, self._most, clipped.error)
        self._steps = list(zip(*(part.unbind(0) for part in parts), strict=True))

    def load(self, targets: ActionTargets, progress: Sequence[float]) -> None:
        """Set the teacher's targets of the next S steps.

        Args:
            targets: with leading ``[S, K, B]``.
            progress: ``[S]``; unused, since a regression has no schedule.
        """
        self._clipped.load(self._box.to_box(targets.actions).transpose(-1, -2))
        if self._kind == "huber":
            torch.clamp_min(self._clipped.lower, -HUBER_DELTA, out=self._least)
            torch.clamp_max(self._clipped.upper, HUBER_DELTA, out=self._most)

    def write(self, step: int, slope: Tensor) -> None:
        """Write the gradient of the mean over the batch with respect to ``outputs[step]``, times ``divisor``, into ``slope``."""
        target, least, most, error = self._steps[step]
        torch.clamp(torch.sub(self.outputs[step], target, out=error), least, most, out=slope)
        if self._kind == "absolute":
            slope.sign_()

    def values(self) -> dict[str, Tensor]:
        """Sum over the steps of the term's mean over members and samples (``Objective.terms``); call it once for each ``load``."""
        error = self._clipped.error
        torch.clamp(error, self._clipped.lower, self._clipped.upper, out=error)
        return {self._name: REGRESSIONS[self._kind](error.transpose(-1, -2)).mean() * self.num_steps}


def _schedules(objective: Objective, progress: Sequence[float], like: Tensor) -> tuple[Tensor, Tensor]:
    """The temperature at each step, and the soft term's weight divided by it: ``[S, 1 or K, 1, 1]``.

    Outputs are divided by the temperature, so their gradient has the weight divided by it.
    """
    shares = like.new_tensor(progress).view(-1, 1, 1)
    temperature, weight = (
        torch.as_tensor(value, dtype=like.dtype, device=like.device).expand(len(progress), -1, 1)[..., None]
        for value in (objective.temperature(shares), objective.soft_weight(shares))
    )
    return temperature, weight / temperature


def _each(value: float | Tensor, like: Tensor) -> Tensor:
    """A number for all members, or ``[K, 1]``, as ``[1 or K, 1, 1]``."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).view(-1, 1, 1)


def _over_choices(function: Callable[..., Tensor], logits: Tensor, sizes: tuple[int, ...], out: Tensor) -> None:
    """Softmax or log-softmax over each component of ``[..., width, B]``."""
    if len(sizes) == 1:
        function(logits, -2, out=out)
    elif len(set(sizes)) == 1:  # one operation for all of them
        shape = (len(sizes), sizes[0])
        function(logits.unflatten(-2, shape), -2, out=out.unflatten(-2, shape))
    else:
        for part, result in zip(logits.split(sizes, -2), out.split(sizes, -2), strict=True):
            result.copy_(function(part, -2))


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return torch.dot(first.flatten(), second.flatten())
