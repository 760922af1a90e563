"""A gradient step of one student, against common loops: a DataLoader, and random indices with torch's fused Adam.

All variants use the same rows and the same loss. This package's step also draws batches, transposes rows, averages the weights, decays
the learning rate and reports the mean loss. A second benchmark compares a step with each other loss to one with the default loss.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from policy_distill.config import FeatureConfig, LossConfig, RelationConfig, TrainConfig
from policy_distill.losses.objective import Objective
from policy_distill.policies.actions import LAYER, ActionTargets, Parameters
from policy_distill.policies.architecture import ACTIVATIONS, Architecture
from policy_distill.policies.families import family_of
from policy_distill.rollouts.transitions import Transitions
from policy_distill.studies.benchmark import train_kinds
from policy_distill.studies.benchmark.interleave import Ratio, interleave
from policy_distill.studies.benchmark.result import Result
from policy_distill.training.dataset import Dataset
from policy_distill.training.stacks.analytic import StudentStack
from policy_distill.training.trainer import Trainer

STEPS = 2000
"""Gradient steps per turn: half of a default round."""
NAIVE_STEPS = 300
ROWS = 100_000
MATRIX = 768
"""Size of the square matrices whose product measures the multiplication rate of a core."""
LOSS_STEPS = 1000
"""Gradient steps of each loss per turn."""
LAYER_WIDTH = 256
"""Width of the teacher's layer for hints and relations."""
BOUND = 15
"""Allowed ratio of the time of a step with any loss to one with the default loss."""


@dataclass(frozen=True)
class Task:
    """A supervised task and the students' architecture.

    Attributes:
        inputs, outputs: size of an observation; number of discrete actions, or size of a continuous action.
        discrete: whether actions are discrete (forward KL) or continuous (Huber loss).
        hidden_sizes, batch_size: hidden layers and batch size of each student.
        activation: activation function between its layers.
    """

    inputs: int
    outputs: int
    discrete: bool
    hidden_sizes: tuple[int, ...]
    batch_size: int
    activation: str = "tanh"

    @property
    def name(self) -> str:
        layers = "x".join(map(str, self.hidden_sizes))
        return f"{self.inputs} inputs, {layers}, batch {self.batch_size}, {'forward KL' if self.discrete else 'Huber'}"

    @property
    def architecture(self) -> Architecture:
        seen = gym.spaces.Box(-np.inf, np.inf, (self.inputs,))
        acted = gym.spaces.Discrete(self.outputs) if self.discrete else gym.spaces.Box(-1.0, 1.0, (self.outputs,))
        return Architecture(seen, acted, self.hidden_sizes, self.activation)

    @property
    def flops(self) -> int:
        """FLOPs of a step of one student: per weight and sample 2 forward, 2 for its gradient, 2 for the layer below (not the first)."""
        weights = [above * below for above, below in itertools.pairwise(self.architecture.widths)]
        return (6 * sum(weights) - 2 * weights[0]) * self.batch_size

    def rows(self) -> tuple[Tensor, Tensor]:
        """Observations ``[ROWS, inputs]``, and logits or actions ``[ROWS, outputs]`` of a linear teacher."""
        generator = torch.Generator().manual_seed(0)
        observations = torch.randn(ROWS, self.inputs, generator=generator)
        labels = observations @ torch.randn(self.inputs, self.outputs, generator=generator)
        return observations, labels if self.discrete else (0.5 * labels).clamp(-1, 1)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss in plain torch."""
        if self.discrete:
            return F.kl_div(F.log_softmax(outputs, -1), F.log_softmax(labels, -1), log_target=True, reduction="batchmean")
        return F.smooth_l1_loss(outputs, labels, beta=0.1)

    def module(self) -> nn.Sequential:
        """A student in plain torch."""
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(self.architecture.widths):
            layers += [nn.Linear(width_in, width_out), ACTIVATIONS[self.activation]()]
        return nn.Sequential(*layers[:-1])


CASES = (Task(8, 4, True, (64, 64), 256), Task(17, 6, False, (64, 64), 256))
LAYERS = {"body": "hidden.1"}
DISCRETE_LOSSES = {
    "default": LossConfig(),
    "temperature and hard labels": LossConfig(temperature=2.0, hard_weight=0.3),
    "reverse_kl": LossConfig(divergence="reverse_kl"),
    "jensen_shannon": LossConfig(divergence="jensen_shannon"),
    "standardize_logits": LossConfig(standardize_logits=True),
    "nll": LossConfig(kind="nll"),
    "hints, mse": LossConfig(features=FeatureConfig(weight=0.1, layers=LAYERS)),
    "hints, cosine": LossConfig(features=FeatureConfig(weight=0.1, layers=LAYERS, distance="cosine")),
    "relations, distance": LossConfig(relations=RelationConfig(weight=0.1, layers=LAYERS, kind="distance")),
    "relations, angle": LossConfig(relations=RelationConfig(weight=0.1, layers=LAYERS, kind="angle")),
    "relations, similarity": LossConfig(relations=RelationConfig(weight=0.1, layers=LAYERS, kind="similarity")),
}
"""Losses of a student with three discrete actions and a DQN teacher."""
CONTINUOUS_LOSSES = {
    "forward_kl of Gaussians": LossConfig(kind="kl"),
    "reverse_kl of Gaussians": LossConfig(kind="kl", divergence="reverse_kl"),
    "nll of Gaussians": LossConfig(kind="nll"),
    "regression, huber": LossConfig(kind="regression"),
    "regression, squared": LossConfig(kind="regression", regression="squared"),
    "regression, absolute": LossConfig(kind="regression", regression="absolute"),
}
"""Losses of a student with three continuous actions."""
STACK = (4, (8, 8), 512)
"""Members, hidden sizes and batch size of the students for the comparison of losses."""


def run(turns: int, device: str = "cpu") -> list[Result]:
    """CPU time of a step of one student, and of a step of a stack with each loss, on one core.

    On another device only students that read images or have a memory are timed.
    """
    kinds = train_kinds.run(turns, device)
    if device != "cpu":
        return kinds
    return [*(result for task in CASES for result in one_student(task, turns)), *kinds, *each_loss(turns)]


def each_loss(turns: int) -> list[Result]:
    """A step of a stack with each loss, relative to one with the default loss."""
    members, widths, batch_size = STACK
    variants: dict[str, Callable[[], int]] = {}
    for discrete, group in ((True, DISCRETE_LOSSES), (False, CONTINUOUS_LOSSES)):
        task = Task(2, 3, discrete, widths, batch_size, "relu")
        rows = task.rows()
        variants |= {name: train_stack(task, *rows, members=members, steps=LOSS_STEPS, loss=loss) for name, loss in group.items()}
    spent = {name: timing.cpu_seconds for name, timing in interleave(variants, turns=turns).items()}
    results = []
    for name, seconds in spent.items():
        times = Ratio.between(seconds, spent["default"])
        within = "within" if times.median <= BOUND else "ABOVE"
        note = f"{times.median:.1f} times the default loss's step ({times.low:.1f}-{times.high:.1f}), {within} the bound of {BOUND}"
        results.append(Result("train", f"loss: {name}", "", None, float(np.median(seconds)) * 1e6, None, note, times))
    return results


def one_student(task: Task, turns: int) -> list[Result]:
    """A stack of one against both loops."""
    observations, labels = task.rows()
    seconds = interleave(
        {
            "stack": train_stack(task, observations, labels, members=1, steps=STEPS),
            "loader": by_data_loader(task, observations, labels),
            "index": by_index(task, observations, labels, students=1),
            "flop": multiply,
        },
        turns=turns,
    )
    spent, limit = seconds["stack"].cpu_seconds, float(np.median(seconds["flop"].cpu_seconds)) * task.flops
    note = "CPU time of a gradient step; limit: its multiplications at the rate of one large product"
    return [
        Result(
            "train", task.name, baseline, Ratio.between(seconds[name].cpu_seconds, spent), float(np.median(spent)) * 1e6, limit * 1e6, note
        )
        for name, baseline in (("loader", "Dataset, DataLoader, nn.Sequential, Adam"), ("index", "random index, nn.Sequential, fused Adam"))
    ]


def train_stack(
    task: Task, observations: Tensor, labels: Tensor, *, members: int, steps: int, loss: LossConfig | None = None
) -> Callable[[], int]:
    """Training of ``members`` students as one stack; the unit is a step of all of them.

    Args:
        task: the task.
        observations, labels: its rows.
        members: K.
        steps: gradient steps in each call of the returned function.
        loss: settings of the loss; left out: the task's. Hints and relations use a teacher's layer named "body".
    """
    loss = loss or LossConfig(kind="kl" if task.discrete else "regression")
    dataset = Dataset(len(observations), holdout=0.0, device=observations.device)
    parameters: Parameters = {"logits": labels} if task.discrete else {"mean": labels, "log_std": torch.zeros_like(labels)}
    if loss.features.weight or loss.relations.weight:
        weights = torch.randn(task.inputs, LAYER_WIDTH, generator=torch.Generator().manual_seed(1))
        parameters[f"{LAYER}body"] = (observations @ weights).relu()
    targets = ActionTargets(parameters, labels.argmax(-1) if task.discrete else labels)
    zeros = torch.zeros(len(observations))
    dataset.append(Transitions(observations, targets, zeros, zeros > 0, zeros > 0, zeros.long(), zeros > 0))
    architecture = task.architecture
    stack = StudentStack(
        architecture,
        generators=[torch.Generator().manual_seed(member) for member in range(members)],
        mean=observations.mean(0),
        scale=observations.std(0),
        projections=[(task.hidden_sizes[-1], LAYER_WIDTH)] if loss.features.weight else [],
    )
    objective = Objective(loss, family_of(architecture.action_space))
    config = TrainConfig(gradient_steps=1_000_000, batch_size=task.batch_size, learning_rate=1e-3)
    trainer = Trainer(stack, objective, config, [torch.Generator().manual_seed(member) for member in range(members)])

    def work() -> int:
        trainer.run(dataset, steps)
        return steps

    return work


def by_data_loader(task: Task, observations: Tensor, labels: Tensor) -> Callable[[], int]:
    """The textbook loop with a DataLoader; the unit is a step."""
    student = task.module()
    adam = torch.optim.Adam(student.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(observations, labels), batch_size=task.batch_size, shuffle=True)

    def work() -> int:
        count = 0
        for inputs, labels_batch in itertools.islice(loader, NAIVE_STEPS):
            loss = task.loss(student(inputs), labels_batch)
            adam.zero_grad()
            loss.backward()
            adam.step()
            count += 1
        return count

    return work


def by_index(task: Task, observations: Tensor, labels: Tensor, *, students: int) -> Callable[[], int]:
    """An optimised plain loop, one student after the other; the unit is a step of all of them."""
    modules = [task.module() for _ in range(students)]
    adams = [torch.optim.Adam(module.parameters(), lr=1e-3, fused=True) for module in modules]
    steps = max(NAIVE_STEPS // students, 1)

    def work() -> int:
        for student, adam in zip(modules, adams, strict=True):
            for _ in range(steps):
                drawn = torch.randint(len(observations), (task.batch_size,))
                loss = task.loss(student(observations[drawn]), labels[drawn])
                adam.zero_grad()
                loss.backward()
                adam.step()
        return steps

    return work


def multiply() -> int:
    """Multiply large matrices and return the number of floating-point operations."""
    square = torch.ones(MATRIX, MATRIX)
    for _ in range(10):
        square @ square
    return 10 * 2 * MATRIX**3
