"""Gradient steps on a stack of students."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from policy_distill.config import LossConfig, MemberConfig, TrainConfig, TrainingFault
from policy_distill.losses.analytic_gradients import Gradient, gradient_of
from policy_distill.losses.autograd_gradients import LayerGradient
from policy_distill.losses.objective import Objective
from policy_distill.policies.actions import ActionTargets
from policy_distill.policies.architecture import layer_names
from policy_distill.policies.divergences import bounded_error
from policy_distill.policies.student import Student
from policy_distill.training.dataset import Dataset
from policy_distill.training.optimizers import Adam, Muon, Optimizer
from policy_distill.training.sequences import batches_of, sampled_outputs
from policy_distill.training.stacks import Pass, Stack
from policy_distill.training.stacks.flat import share_at

HELD_OUT_ROWS, HELD_OUT_NUMBERS = 8192, 2**25
"""Maximum number of rows for validation losses, and maximum number of elements of their observations."""
REPORTS = 20
"""Number of reports in a call of ``Trainer.run``, at most one for each chunk of steps."""


@dataclass(frozen=True)
class TrainingReport:
    """Progress of a training.

    Attributes:
        gradient_steps: number of the trainer's steps so far.
        num_steps: number of steps since the last report.
        losses: each term's mean over the members and the steps since the last report.
        learning_rate: learning rate of the next step.
    """

    gradient_steps: int
    num_steps: int
    losses: dict[str, float]
    learning_rate: float


class Trainer:
    """Gradient steps on the flat parameters of a stack, with a cosine learning rate and an exponential moving average of the weights.

    Args:
        stack: the students, trained in place.
        objective: their loss.
        config: batch size, learning rate, averaging, and the settings in which members differ.
        generators: one for each member's batches, on the dataset's device, so that a member does not depend on the other members.
    """

    def __init__(self, stack: Stack, objective: Objective, config: TrainConfig, generators: Sequence[torch.Generator]) -> None:
        varied = [config.vary[member % len(config.vary)] for member in range(len(generators))] if config.vary else []
        if varied:
            objective = objective.for_members([_loss_of(objective.config, member) for member in varied], stack.flat.device)
        self.stack, self.objective, self.config = stack, objective, config
        self.generators = generators
        rates = [member.learning_rate or config.learning_rate for member in varied]
        differ = stack.flat.new_tensor(rates)[:, None] if any(rate != config.learning_rate for rate in rates) else None
        kind = config.optimizer_of(single_images=stack.architecture.reads_single_images)
        self._optimizer: Optimizer = (Muon if kind == "muon" else Adam)(stack, config.learning_rate, differ)
        self.gradient_steps = 0
        self._segment = (0, 0.0, config.gradient_steps_of(small_images=stack.architecture.reads_small_images))
        """Step and progress at the start of the schedules' current segment, and its number of steps; see ``finish_in``."""
        self.averaged = stack.flat.clone()
        self._batch_size = config.batch_size_of(single_images=stack.architecture.reads_single_images)
        self._activations: Pass = stack.buffers(self._batch_size)

    def state_dict(self) -> dict[str, Tensor]:
        """All that later steps depend on, besides the arguments: weights, averages, the optimiser's state, generators and schedule."""
        return {
            **self._tensors,
            "generators": torch.stack([generator.get_state() for generator in self.generators]),
            "schedule": torch.tensor([self.gradient_steps, *self._segment], dtype=torch.float64),
        }

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Continue from the state of a trainer with the same arguments.

        Raises:
            ValueError, KeyError, RuntimeError: if it is not such a state.
        """
        for name, tensor in self._tensors.items():
            if saved[name].shape != tensor.shape:
                raise ValueError(f"{name} is {tuple(saved[name].shape)}, it must be {tuple(tensor.shape)}")
            tensor.copy_(saved[name])
        for generator, state in zip(self.generators, saved["generators"], strict=True):
            generator.set_state(state.clone())  # it reads a view from the beginning of its storage
        steps, start, progress, length = saved["schedule"].tolist()
        self.gradient_steps, self._segment = int(steps), (int(start), progress, int(length))

    @property
    def _tensors(self) -> dict[str, Tensor]:
        return {"weights": self.stack.flat.detach(), "averaged": self.averaged, **self._optimizer.tensors}

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step: half a cosine from ``config.learning_rate`` to zero over ``config.gradient_steps``."""
        return self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * self.progress))

    @property
    def progress(self) -> float:
        """Completed share of the training, in [0, 1]."""
        return self._progress_after(0)

    def _progress_after(self, steps: int) -> float:
        start, progress, length = self._segment
        return min(progress + (1 - progress) * (self.gradient_steps + steps - start) / length, 1.0)

    def finish_in(self, num_steps: int) -> None:
        """Compress the remaining schedules of learning rate and temperature into ``num_steps`` further steps."""
        self._segment = (self.gradient_steps, self.progress, max(num_steps, 1))

    def run(self, dataset: Dataset, num_steps: int, report: Callable[[TrainingReport], object] | None = None) -> dict[str, float]:
        """Take ``num_steps`` gradient steps and return each term's mean over the members and steps.

        Args:
            dataset: the training data.
            num_steps: number of gradient steps.
            report: called about ``REPORTS`` times, the last time at the end.

        Raises:
            TrainingFault: if a loss or a weight is no longer finite.
        """
        self.objective.calibrate(dataset.training_targets())
        batches = batches_of(dataset, self.stack, self.objective, self.config, self.generators, num_steps)
        totals: dict[str, float] = {}
        sums: dict[str, Tensor] = {}
        reported = 0
        gradient: Gradient | None = None
        for first in range(0, num_steps, batches.chunk_steps):
            count = min(batches.chunk_steps, num_steps - first)
            inputs, targets = batches.draw(count)
            if gradient is None or gradient.num_steps != count:
                like = self.stack.flat.new_empty(1).expand(count, self.stack.num_members, 1, self._batch_size)
                gradient = gradient_of(self.objective, like, self.stack.log_std, self.generators)
            for name, value in self._take(inputs, targets, gradient).items():
                sums[name] = sums[name] + value if name in sums else value
            done = first + count
            if done * REPORTS // num_steps > reported * REPORTS // num_steps:
                values = {name: float(value) for name, value in sums.items()}  # the only synchronisation with the device
                self._check_finite(values, done - reported)
                totals = {name: totals.get(name, 0.0) + value for name, value in values.items()}
                if report is not None:
                    losses = {name: value / (done - reported) for name, value in values.items()}
                    report(TrainingReport(self.gradient_steps, done - reported, losses, self.learning_rate))
                sums, reported = {}, done
        return {name: value / num_steps for name, value in totals.items()}

    def _check_finite(self, losses: Mapping[str, float], num_steps: int) -> None:
        faults = [f"the loss {name} became {value}" for name, value in losses.items() if not math.isfinite(value)]
        if not faults and not (torch.isfinite(self.stack.flat).all() and torch.isfinite(self.averaged).all()):
            faults = ["weights became NaN or infinite, while no loss did"]
        if faults:
            raise TrainingFault(
                f"training diverged: {' and '.join(faults)} in gradient steps {self.gradient_steps - num_steps} to {self.gradient_steps}; "
                f"lower train.learning_rate (it is {self.config.learning_rate:g}), or the weight of that loss"
            )

    @torch.inference_mode()
    def _take(self, inputs: Sequence[Any], targets: ActionTargets, gradient: Gradient) -> dict[str, Tensor]:
        """Take a chunk's S gradient steps; return the sum over the steps of each term's mean over members and samples.

        Args:
            inputs: the stack's inputs for each step.
            targets: the teacher's labels, with leading ``[S, K, B]``.
            gradient: the gradient of the loss on actions.
        """
        stack, activations = self.stack, self._activations
        gradient.load(targets, [self._progress_after(step) for step in range(len(inputs))])
        of_layers = LayerGradient(self.objective, stack.projections, gradient.divisor) if self.objective.layers_read else None
        if of_layers:
            of_layers.load(targets)
        for step, batch in enumerate(inputs):
            if stack.architecture.pruning is not None:
                stack.zeros = share_at(self.progress, stack.architecture.pruning)
            stack.forward(batch, activations, gradient.outputs[step])
            gradient.write(step, activations.slopes[-1])
            hints: list[Tensor | None] = []
            if of_layers:
                by_layer = of_layers.write(step, activations.named(gradient.outputs[step]))
                *hints, of_output = map(by_layer.get, layer_names(len(activations.hidden)))
                if of_output is not None:
                    activations.slopes[-1].add_(of_output)
            stack.backward(batch, activations, hints)
            self._update(gradient.divisor)
        return {**gradient.values(), **(of_layers.values() if of_layers else {})}

    def _update(self, divisor: float = 1.0) -> None:
        """A step of the optimiser (see ``Optimizer`` for ``divisor``), then of the moving average."""
        learning_rate = self.learning_rate
        self.gradient_steps += 1
        self._optimizer.step(self.gradient_steps, learning_rate, divisor)
        decay = min(self.config.average_decay, (1 + self.gradient_steps) / (10 + self.gradient_steps))
        self.averaged.lerp_(self.stack.flat, 1 - decay)

    def student(self, member: int = 0) -> Student:
        """A student with the averaged weights of one member."""
        return self.stack.member(member, self.averaged if self.config.average_decay else None)

    def students(self, dataset: Dataset) -> list[Student]:
        """The students of all members, each with its standard deviation fitted to ``dataset``."""
        students = [self.student(member) for member in range(len(self.generators))]
        for student in students:
            self.fit_log_std(student, dataset)
        return students

    @property
    def _rows_at_once(self) -> int:
        return max(1, min(HELD_OUT_ROWS, HELD_OUT_NUMBERS // self.stack.sample_size))

    @torch.no_grad()
    def validate(self, dataset: Dataset, student: Student, member: int = 0) -> dict[str, float]:
        """Mean of each term of a member's loss over held-out rows; empty if no episode is held out."""
        held_out = sampled_outputs(student, dataset, self._rows_at_once, held_out=True)
        if held_out is None:
            return {}
        outputs, targets = held_out[0][None].to(self.stack.flat.device), held_out[1]
        stacked = ActionTargets({name: value[None] for name, value in targets.parameters.items()}, targets.actions[None])
        log_std = student.log_std[None, None].to(outputs.device)
        draws = torch.full_like(outputs, 0.5) if self.objective.kind == "nll" else None  # the teacher's median action
        objective = self.objective.of_member(member)
        terms = objective.terms(outputs, log_std, stacked, progress=self.progress, draws=draws)
        return {name: float(value.mean()) for name, value in terms.items()}

    @torch.no_grad()
    def fit_log_std(self, student: Student, dataset: Dataset) -> None:
        """Set the standard deviation of a student that was trained by regression.

        The variance is ``E[teacher's variance + squared error]``, which minimises the forward KL if no action is clipped. The teacher's
        variance counts as zero for deterministic and squashed teachers.
        """
        if not student.family.spread or self.objective.kind != "regression":
            return
        assert student.family.box is not None
        answered = sampled_outputs(student, dataset, self._rows_at_once)
        assert answered is not None, "the dataset is empty"
        outputs, targets = answered
        target = student.family.box.to_box(targets.actions.cpu())
        near_bound, limits = self.objective.config.near_bound, student.family.box.limits(target)
        error = bounded_error(target, outputs, near_bound=near_bound, limits=limits)
        variance = error.square().mean(0)
        log_std = self.objective.family.box_log_std(targets.parameters)
        if log_std is not None:
            variance = variance + (2 * log_std.cpu()).exp().mean(0)
        student.log_std.copy_(0.5 * variance.clamp_min(1e-6).log())


def _loss_of(config: LossConfig, member: MemberConfig) -> LossConfig:
    """The loss with a member's own settings."""
    return dataclasses.replace(
        config,
        temperature=config.temperature if member.temperature is None else member.temperature,
        hard_weight=config.hard_weight if member.hard_weight is None else member.hard_weight,
    )
