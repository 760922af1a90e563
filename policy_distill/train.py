"""Gradient steps on a stack of students."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from policy_distill.actions import ActionTargets, DiagGaussian
from policy_distill.config import TrainConfig
from policy_distill.dataset import Dataset
from policy_distill.losses import bounded_error
from policy_distill.objective import Objective
from policy_distill.spaces import encode_observations
from policy_distill.students import Student, StudentStack

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
HELD_OUT_ROWS = 8192
"""Rows that validation losses are taken on."""


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
        return self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * self.progress))

    @property
    def progress(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        return min(self.gradient_steps / self.config.gradient_steps, 1.0)

    def run(self, dataset: Dataset, num_steps: int) -> dict[str, float]:
        """Take ``num_steps`` gradient steps and return each term's mean over the members and steps."""
        self.objective.calibrate(dataset.rows()[1])
        sums: dict[str, Tensor] = {}
        for _ in range(num_steps):
            for name, value in self._step(dataset).items():
                sums[name] = sums[name] + value if name in sums else value
        return {name: float(value) / num_steps for name, value in sums.items()}

    def _step(self, dataset: Dataset) -> dict[str, Tensor]:
        stack, objective = self.stack, self.objective
        observations, targets = dataset.sample(self.config.batch_size, self.generators, parameters=objective.reads)
        activations = stack.forward(self._encode(observations))
        reads_layers = bool(stack.projections) or objective.config.relations.weight > 0
        for layer in activations.after if reads_layers else activations.after[-1:]:
            layer.requires_grad_()
        terms = objective.terms(
            activations.after[-1],
            stack.log_std,
            targets,
            progress=self.progress,
            draws=self._draws(targets) if objective.kind == "nll" else None,
            layers=activations.named() if reads_layers else None,
            projections=stack.projections,
        )
        # Members do not share parameters: the sum over them keeps their gradients apart.
        objective.total(terms, progress=self.progress).mean(-1).sum().backward()
        stack.backward(activations, [layer.grad for layer in activations.after])
        self._update()
        return {name: value.detach().mean() for name, value in terms.items()}

    def _draws(self, targets: ActionTargets) -> Tensor:
        """Uniform numbers in (0, 1), ``[K, B, width]``, each member's from its own generator."""
        first = next(iter(targets.parameters.values()))
        draws = [torch.rand(first.shape[1:], generator=generator, device=first.device) for generator in self.generators]
        return torch.stack(draws).clamp(1e-7, 1 - 1e-7)

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
        draws = torch.full_like(outputs, 0.5) if self.objective.kind == "nll" else None  # the teacher's median action
        found = self.objective.terms(outputs, log_std, stacked, progress=self.progress, draws=draws)
        return {name: float(value.mean()) for name, value in found.items()}

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
