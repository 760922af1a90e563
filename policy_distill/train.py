"""Gradient steps on a stack of students."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from policy_distill.actions import ActionTargets, Bernoulli, Categorical, Deterministic, DiagGaussian, Family, MultiCategorical
from policy_distill.config import LossConfig, RequestError, TrainConfig
from policy_distill.dataset import Dataset
from policy_distill.losses import (
    bernoulli_forward_kl,
    bounded_error,
    forward_kl,
    gaussian_forward_kl,
    hard_label_cross_entropy,
    huber,
    mean_absolute,
    mean_squared,
    median_action_gap,
    q_values_to_logits,
)
from policy_distill.spaces import encode_observations
from policy_distill.students import Student, StudentStack

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
HELD_OUT_ROWS = 8192
"""Rows that validation losses are taken on."""
_REGRESSIONS = {"squared": mean_squared, "absolute": mean_absolute, "huber": huber}


class Objective:
    """Which loss terms a student of this teacher has, and with which weights.

    Args:
        config: as asked for.
        family: of the teacher.

    Raises:
        RequestError: if the loss does not suit the teacher.
    """

    def __init__(self, config: LossConfig, family: Family) -> None:
        self.family = family
        self.kind = _resolve_kind(config, family)
        self.temperature = config.temperature
        self.hard_weight = config.hard_weight
        self.q_gap_fraction = config.q_gap_fraction
        self.regression = _REGRESSIONS[config.regression]
        self.q_gap = 1.0
        """Difference in Q that becomes one nat; ``calibrate`` sets it from the data."""

    def calibrate(self, targets: ActionTargets) -> None:
        """Set the scale of Q-values from the gaps between the best two actions."""
        if "q_values" in targets.parameters:
            self.q_gap = self.q_gap_fraction * median_action_gap(targets.parameters["q_values"])

    def terms(self, outputs: Tensor, log_std: Tensor, targets: ActionTargets) -> dict[str, Tensor]:
        """Each term's value per sample ``[K, B]``, unweighted; units are in the names.

        Args:
            outputs: the students' logits or means ``[K, B, outputs]``.
            log_std: ``[K, 1, action_dim]``, read for Gaussian KL alone.
            targets: with leading ``[K, B]``.
        """
        parameters = targets.parameters
        if self.kind == "regression":
            assert isinstance(self.family, (DiagGaussian, Deterministic))
            return {"action_error": self.regression(bounded_error(self.family.box.to_box(targets.actions), outputs))}
        match self.family:
            case Categorical():
                logits = parameters["logits"] if "logits" in parameters else q_values_to_logits(parameters["q_values"], self.q_gap)
                terms = {"forward_kl_nats": forward_kl(logits, outputs, temperature=self.temperature)}
                if self.hard_weight:
                    terms["hard_cross_entropy_nats"] = hard_label_cross_entropy(targets.actions - self.family.start, outputs)
                return terms
            case MultiCategorical(nvec=nvec):
                pairs = list(zip(parameters["logits"].split(nvec, -1), outputs.split(nvec, -1), strict=True))
                terms = {
                    "forward_kl_nats": sum_of(forward_kl(teacher, student, temperature=self.temperature) for teacher, student in pairs)
                }
                if self.hard_weight:
                    labels = targets.actions.unbind(-1)
                    terms["hard_cross_entropy_nats"] = sum_of(
                        hard_label_cross_entropy(label, student) for label, (_, student) in zip(labels, pairs, strict=True)
                    )
                return terms
            case Bernoulli():
                terms = {"forward_kl_nats": bernoulli_forward_kl(parameters["logits"], outputs, temperature=self.temperature)}
                if self.hard_weight:
                    two_way = torch.stack([torch.zeros_like(outputs), outputs], dim=-1)
                    terms["hard_cross_entropy_nats"] = hard_label_cross_entropy(targets.actions, two_way).sum(-1)
                return terms
            case _:
                kl = gaussian_forward_kl(parameters["mean"], parameters["log_std"], outputs, log_std, temperature=self.temperature)
                return {"forward_kl_nats": kl}

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """``alpha * CE + (1 - alpha) * T**2 * KL`` (Hinton et al. 2015), or the regression alone; ``[K, B]``."""
        if self.kind == "regression":
            return terms["action_error"]
        soft = self.temperature**2 * terms["forward_kl_nats"]
        if not self.hard_weight:
            return soft
        return self.hard_weight * terms["hard_cross_entropy_nats"] + (1 - self.hard_weight) * soft


class Trainer:
    """Adam on the flat parameters of a stack, with a cosine learning rate and an exponential moving average of the weights.

    Args:
        stack: the students, trained in place.
        objective: their loss.
        config: batch size, learning rate, averaging.
        generators: one a member, on the dataset's device: each draws its own batches, so that a member does not depend on the others.
    """

    def __init__(self, stack: StudentStack, objective: Objective, config: TrainConfig, generators: Sequence[torch.Generator]) -> None:
        self.stack, self.objective, self.config = stack, objective, config
        self.generators = generators
        self.gradient_steps = 0
        self.averaged = stack.flat.clone()
        self._first_moment = torch.zeros_like(stack.flat)
        self._second_moment = torch.zeros_like(stack.flat)

    @property
    def learning_rate(self) -> float:
        """Of the next step: half a cosine from ``config.learning_rate`` to zero over ``config.gradient_steps``."""
        progress = min(self.gradient_steps / self.config.gradient_steps, 1.0)
        return self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))

    def run(self, dataset: Dataset, num_steps: int) -> dict[str, float]:
        """Take ``num_steps`` gradient steps and return each term's mean over the members and steps."""
        self.objective.calibrate(dataset.rows()[1])
        sums: dict[str, Tensor] = {}
        for _ in range(num_steps):
            for name, value in self._step(dataset).items():
                sums[name] = sums[name] + value if name in sums else value
        return {name: float(value) / num_steps for name, value in sums.items()}

    def _step(self, dataset: Dataset) -> dict[str, Tensor]:
        stack = self.stack
        observations, targets = dataset.sample(self.config.batch_size, self.generators)
        terms = self.objective.terms(stack.forward(self._encode(observations)), stack.log_std, targets)
        stack.gradient.zero_()
        self.objective.total(terms).mean(-1).sum().backward()  # members do not share parameters: the sum keeps their gradients apart
        self._update()
        return {name: value.detach().mean() for name, value in terms.items()}

    @torch.no_grad()
    def _update(self) -> None:
        """Adam (Kingma & Ba 2015, algorithm 1) on the flat tensors, then the moving average."""
        gradient, learning_rate = self.stack.gradient, self.learning_rate
        self.gradient_steps += 1
        self._first_moment.lerp_(gradient, 1 - BETA1)
        self._second_moment.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        unbias = math.sqrt(1 - BETA2**self.gradient_steps)
        step_size = learning_rate * unbias / (1 - BETA1**self.gradient_steps)
        self.stack.flat.addcdiv_(self._first_moment, self._second_moment.sqrt().add_(EPSILON * unbias), value=-step_size)
        decay = min(self.config.average_decay, (1 + self.gradient_steps) / (10 + self.gradient_steps))
        self.averaged.lerp_(self.stack.flat, 1 - decay)

    def student(self, member: int = 0) -> Student:
        """The averaged weights of one member as a student of its own."""
        return self.stack.member(member, self.averaged if self.config.average_decay else None)

    @torch.no_grad()
    def validate(self, dataset: Dataset, student: Student) -> dict[str, float]:
        """Mean of each term over held-out rows; empty as long as no episode was held out."""
        held_out = dataset.held_out(HELD_OUT_ROWS)
        if held_out is None:
            return {}
        observations, targets = held_out
        outputs = student(observations.cpu())[None].to(self.stack.flat.device)
        stacked = ActionTargets({name: value[None] for name, value in targets.parameters.items()}, targets.actions[None])
        log_std = student.log_std[None, None].to(outputs.device)
        return {name: float(value.mean()) for name, value in self.objective.terms(outputs, log_std, stacked).items()}

    @torch.no_grad()
    def fit_log_std(self, student: Student, dataset: Dataset) -> None:
        """Set the standard deviation of a student that was trained by regression.

        It is ``E[teacher's variance + squared error]``, where the forward KL is smallest as long as no action is clipped; the teacher's
        variance is zero where it has none in box units (deterministic and squashed teachers).
        """
        if not isinstance(student.family, DiagGaussian) or self.objective.kind != "regression":
            return
        observations, targets = dataset.spread(HELD_OUT_ROWS)
        error = bounded_error(student.family.box.to_box(targets.actions.cpu()), student(observations.cpu()))
        variance = error.square().mean(0)
        family = self.objective.family
        if isinstance(family, DiagGaussian) and not family.squashed:
            variance = variance + (2 * targets.parameters["log_std"].cpu()).exp().mean(0)
        student.log_std.copy_(0.5 * variance.clamp_min(1e-6).log())

    def _encode(self, observations: Tensor) -> Tensor:
        members, batch = observations.shape[:2]
        return encode_observations(self.stack.architecture.observation_space, observations.flatten(0, 1)).unflatten(0, (members, batch))


def sum_of(values: object) -> Tensor:
    """Sum tensors of one shape."""
    return torch.stack(list(values)).sum(0)  # type: ignore[call-overload]


def _resolve_kind(config: LossConfig, family: Family) -> str:
    discrete = isinstance(family, (Categorical, MultiCategorical, Bernoulli))
    kind = ("kl" if discrete else "regression") if config.kind == "auto" else config.kind
    if kind == "regression" and discrete:
        raise RequestError("loss.kind is 'regression', but the teacher's actions are discrete: use 'kl'")
    if kind == "kl" and (isinstance(family, Deterministic) or (isinstance(family, DiagGaussian) and family.squashed)):
        raise RequestError("loss.kind is 'kl', but this teacher's actions have no density a clipped Gaussian could match: use 'regression'")
    if config.hard_weight and (kind == "regression" or not discrete):
        raise RequestError(f"loss.hard_weight is {config.hard_weight}, but hard labels exist for discrete actions alone: set it to 0")
    return kind
