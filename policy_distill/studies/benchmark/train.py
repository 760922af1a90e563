"""A gradient step on one student, beside the loops a user would write: a DataLoader, and random indices with torch's own Adam.

Both sides see the same rows and take the same loss; ours also draws its batches, lays its rows out, keeps a moving average of the
weights, lets the learning rate fall and reports the mean loss. And a step of a default job's stack with each other loss, beside that with
the default loss.
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
from policy_distill.policies.families import family_of
from policy_distill.policies.student import ACTIVATIONS, Architecture
from policy_distill.rollouts.transitions import Transitions
from policy_distill.studies.benchmark.interleave import Ratio, interleave
from policy_distill.studies.benchmark.result import Result
from policy_distill.training.dataset import Dataset
from policy_distill.training.stack import StudentStack
from policy_distill.training.trainer import Trainer

STEPS = 2000
"""Gradient steps of ours in a turn: half of a default round."""
NAIVE_STEPS = 300
ROWS = 100_000
MATRIX = 768
"""Rows and columns of the product that says how fast a core multiplies."""
LOSS_STEPS = 1000
"""Gradient steps of each loss in a turn."""
LAYER_WIDTH = 256
"""Of the teacher's layer that hints and relations read."""
BOUND = 15
"""Greatest ratio between the time of a step with any loss and one with the default loss."""


@dataclass(frozen=True)
class Task:
    """What is learnt, and by which students.

    Attributes:
        inputs, outputs: components of an observation; actions to choose among, or components of a continuous action.
        discrete: forward KL between choices, else Huber's error.
        hidden_sizes, batch_size: of each student.
        activation: between its layers.
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
        """Of one step of one student: per weight and sample two forward, two for its gradient, two for the layer below, save the first."""
        weights = [above * below for above, below in itertools.pairwise(self.architecture.widths)]
        return (6 * sum(weights) - 2 * weights[0]) * self.batch_size

    def rows(self) -> tuple[Tensor, Tensor]:
        """Observations ``[ROWS, inputs]``, and logits or actions ``[ROWS, outputs]`` of a linear teacher."""
        generator = torch.Generator().manual_seed(0)
        observations = torch.randn(ROWS, self.inputs, generator=generator)
        said = observations @ torch.randn(self.inputs, self.outputs, generator=generator)
        return observations, said if self.discrete else (0.5 * said).clamp(-1, 1)

    def loss(self, outputs: Tensor, said: Tensor) -> Tensor:
        """As a user would write it."""
        if self.discrete:
            return F.kl_div(F.log_softmax(outputs, -1), F.log_softmax(said, -1), log_target=True, reduction="batchmean")
        return F.smooth_l1_loss(outputs, said, beta=0.1)

    def module(self) -> nn.Sequential:
        """A student as a user would write it."""
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(self.architecture.widths):
            layers += [nn.Linear(width_in, width_out), ACTIVATIONS[self.activation]()]
        return nn.Sequential(*layers[:-1])


CASES = (Task(8, 4, True, (64, 64), 256), Task(17, 6, False, (64, 64), 256))
LAYERS = {"body": "hidden.1"}
CHOOSING = {
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
"""Losses of a student that chooses among three actions, as DQN's does."""
PUSHING = {
    "forward_kl of Gaussians": LossConfig(kind="kl"),
    "reverse_kl of Gaussians": LossConfig(kind="kl", divergence="reverse_kl"),
    "nll of Gaussians": LossConfig(kind="nll"),
    "regression, huber": LossConfig(kind="regression"),
    "regression, squared": LossConfig(kind="regression", regression="squared"),
    "regression, absolute": LossConfig(kind="regression", regression="absolute"),
}
"""Losses of one with three continuous actions."""
STACK = (4, (8, 8), 512)
"""Members, widths and batch size of the students on which losses are compared."""


def run(turns: int) -> list[Result]:
    """Time a step of one student, CPU time of one core, and a step of a stack with each loss."""
    return [*(result for task in CASES for result in one_student(task, turns)), *each_loss(turns)]


def each_loss(turns: int) -> list[Result]:
    """A step of a stack with each loss, beside one with the default loss."""
    members, widths, batch_size = STACK
    variants: dict[str, Callable[[], int]] = {}
    for discrete, group in ((True, CHOOSING), (False, PUSHING)):
        task = Task(2, 3, discrete, widths, batch_size, "relu")
        rows = task.rows()
        variants |= {name: ours(task, *rows, members=members, steps=LOSS_STEPS, loss=loss) for name, loss in group.items()}
    spent = {name: timing.cpu_seconds for name, timing in interleave(variants, turns=turns).items()}
    results = []
    for name, seconds in spent.items():
        times = Ratio.between(seconds, spent["default"])
        within = "within" if times.median <= BOUND else "ABOVE"
        note = f"{times.median:.1f} times the default loss's step ({times.low:.1f}-{times.high:.1f}), {within} the bound of {BOUND}"
        results.append(Result("train", f"loss: {name}", "", None, float(np.median(seconds)) * 1e6, None, note, times))
    return results


def one_student(task: Task, turns: int) -> list[Result]:
    """A stack of one beside both loops."""
    observations, said = task.rows()
    seconds = interleave(
        {
            "ours": ours(task, observations, said, members=1, steps=STEPS),
            "loader": by_data_loader(task, observations, said),
            "index": by_index(task, observations, said, students=1),
            "flop": multiply,
        },
        turns=turns,
    )
    spent, limit = seconds["ours"].cpu_seconds, float(np.median(seconds["flop"].cpu_seconds)) * task.flops
    note = "CPU time of a gradient step; limit: its multiplications at the rate of one large product"
    return [
        Result(
            "train", task.name, baseline, Ratio.between(seconds[name].cpu_seconds, spent), float(np.median(spent)) * 1e6, limit * 1e6, note
        )
        for name, baseline in (("loader", "Dataset, DataLoader, nn.Sequential, Adam"), ("index", "random index, nn.Sequential, fused Adam"))
    ]


def ours(task: Task, observations: Tensor, said: Tensor, *, members: int, steps: int, loss: LossConfig | None = None) -> Callable[[], int]:
    """Training ``members`` students as one stack; a unit is a step of all of them.

    Args:
        task: what is learnt.
        observations, said: its rows.
        members: K.
        steps: in each call of what is returned.
        loss: if left out, that of the task; hints and relations are to a teacher's layer named "body".
    """
    loss = loss or LossConfig(kind="kl" if task.discrete else "regression")
    dataset = Dataset(len(observations), holdout=0.0, device=observations.device)
    parameters: Parameters = {"logits": said} if task.discrete else {"mean": said, "log_std": torch.zeros_like(said)}
    if loss.features.weight or loss.relations.weight:
        weights = torch.randn(task.inputs, LAYER_WIDTH, generator=torch.Generator().manual_seed(1))
        parameters[f"{LAYER}body"] = (observations @ weights).relu()
    targets = ActionTargets(parameters, said.argmax(-1) if task.discrete else said)
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


def by_data_loader(task: Task, observations: Tensor, said: Tensor) -> Callable[[], int]:
    """The textbook's loop; a unit is a step."""
    student = task.module()
    adam = torch.optim.Adam(student.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(observations, said), batch_size=task.batch_size, shuffle=True)

    def work() -> int:
        count = 0
        for seen, told in itertools.islice(loader, NAIVE_STEPS):
            loss = task.loss(student(seen), told)
            adam.zero_grad()
            loss.backward()
            adam.step()
            count += 1
        return count

    return work


def by_index(task: Task, observations: Tensor, said: Tensor, *, students: int) -> Callable[[], int]:
    """What a careful user writes, one student after the other; a unit is a step of all of them."""
    modules = [task.module() for _ in range(students)]
    adams = [torch.optim.Adam(module.parameters(), lr=1e-3, fused=True) for module in modules]
    steps = max(NAIVE_STEPS // students, 1)

    def work() -> int:
        for student, adam in zip(modules, adams, strict=True):
            for _ in range(steps):
                drawn = torch.randint(len(observations), (task.batch_size,))
                loss = task.loss(student(observations[drawn]), said[drawn])
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
