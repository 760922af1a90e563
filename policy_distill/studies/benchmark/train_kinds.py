"""A gradient step of students that read images or have a memory, against common loops.

All variants train networks of the same size on the same rows with the same loss. The loops hold whole observations (stacks with each
frame as often as it is seen), divide images by 255, keep channels first, and read sequences with torch's own GRU. This package's step also
averages the weights, decays the learning rate and reports the mean loss.
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

from policy_distill.config import LossConfig, TrainConfig
from policy_distill.environments.frame_stacks import StackOf
from policy_distill.losses.objective import Objective
from policy_distill.policies.actions import ActionTargets
from policy_distill.policies.architecture import ACTIVATIONS, Architecture
from policy_distill.policies.encoders import convolutions
from policy_distill.policies.families import family_of
from policy_distill.policies.student import Student
from policy_distill.rollouts.transitions import Transitions
from policy_distill.studies.benchmark.interleave import Ratio, Timing, interleave
from policy_distill.studies.benchmark.result import Result
from policy_distill.training.dataset import Dataset
from policy_distill.training.stacks import stack_of
from policy_distill.training.trainer import Trainer

EPISODE = 200
"""Steps of each episode."""
ACTIONS = 6
MATRIX = 768
"""Size of the square matrices whose product measures the processor's rate; on a GPU ten times as large."""
SEQUENCE, BURN_IN = TrainConfig.sequence_length, TrainConfig.burn_in


@dataclass(frozen=True)
class Task:
    """A student of one kind, and random rows for it.

    Attributes:
        name: name in the table.
        architecture: of the student.
        frames: number of frames that an observation stacks along its first axis; 1: no stack.
        rows: number of rows, in episodes of ``EPISODE`` steps.
        steps: gradient steps in a turn.
    """

    name: str
    architecture: Architecture
    frames: int
    rows: int
    steps: int

    @property
    def batch_size(self) -> int:
        return TrainConfig().batch_size_of(single_images=self.architecture.reads_single_images)

    def observations(self) -> Tensor:
        """Whole observations ``[rows, ...]``: random frames, stacked as they follow each other, or random vectors."""
        space, draws = self.architecture.observation_space, torch.Generator().manual_seed(0)
        assert isinstance(space, gym.spaces.Box)
        if space.dtype != np.uint8:
            return torch.randn(self.rows, *space.shape, generator=draws)
        singles = torch.randint(0, 256, (self.rows, space.shape[0] // self.frames, *space.shape[1:]), dtype=torch.uint8, generator=draws)
        steps = torch.arange(self.rows) % EPISODE
        ages = reversed(range(self.frames))
        return torch.cat([singles[torch.arange(self.rows) - torch.minimum(steps, torch.tensor(age))] for age in ages], dim=1)

    def labels(self) -> Tensor:
        """Logits ``[rows, ACTIONS]``."""
        return 3 * torch.randn(self.rows, ACTIONS, generator=torch.Generator().manual_seed(1))

    @property
    def flops(self) -> int:
        """FLOPs of a step's multiplications: per weight and place 2 forward and 4 backward, but 2 for the layer that reads observations.

        A burn-in has the forward pass alone.
        """
        architecture, features = self.architecture, self.architecture.features
        layers = []
        if architecture.channels:
            found = convolutions(architecture.seen_space, architecture.channels, architecture.strides)
            layers = [layer.inputs * layer.outputs * layer.kernel**2 * layer.height * layer.width for layer in found]
        memory = [features * 3 * architecture.memory, 3 * architecture.memory**2] if architecture.memory else []
        head = [above * below for above, below in itertools.pairwise(architecture.widths)]
        first, *others = [*layers, *memory, *head]
        burn_in = 2 * sum(memory) * self.batch_size * BURN_IN // SEQUENCE
        return (4 * first + 6 * sum(others)) * self.batch_size + burn_in


def image(side: int, channels: int) -> gym.spaces.Box:
    return gym.spaces.Box(0, 255, (channels, side, side), np.uint8)


CHOICE = gym.spaces.Discrete(ACTIONS)
TASKS = (
    Task("4x10x10 grid", Architecture(image(10, 4), CHOICE, (16,), "relu", channels=(8, 8, 8), strides=(1, 2, 1)), 1, 20_000, 30),
    Task("4x84x84 pixels", Architecture(image(84, 4), CHOICE, (48,), "relu", channels=(12, 24, 24)), 4, 2_000, 2),
    Task("GRU of 22 units", Architecture(gym.spaces.Box(-1, 1, (4,)), CHOICE, (22,), "tanh", memory=22), 1, 20_000, 20),
)


def run(turns: int, device: str = "cpu") -> list[Result]:
    """Time of a gradient step of one student: CPU time on one core, or wall time on ``device``."""
    return [result for task in TASKS for result in one_task(task, turns, torch.device(device))]


def one_task(task: Task, turns: int, device: torch.device) -> list[Result]:
    """This package's step against a DataLoader and a loop that draws indices."""
    naive = "nn.GRU" if task.architecture.memory else "nn.Conv2d"
    others = {f"DataLoader, {naive}, Adam": by_data_loader, f"index, {naive}, fused Adam": by_index}
    variants = {name: finished(make(task, device), device) for name, make in {"measured": by_trainer, **others}.items()}
    timings = interleave({**variants, "flop": finished(product(device), device)}, turns=turns)

    def seconds(timing: Timing) -> np.ndarray:
        return timing.cpu_seconds if device.type == "cpu" else timing.wall_seconds

    spent, limit = seconds(timings["measured"]), float(np.median(seconds(timings["flop"]))) * task.flops
    kind = "CPU time" if device.type == "cpu" else f"wall time on {device.type}"
    note = f"{kind} of a step of {task.batch_size} samples, student of {task.architecture.params:,} parameters; "
    note += f"limit: its {task.flops / 1e6:,.0f} MFLOP at the rate of one large product"
    case = task.name if device.type == "cpu" else f"{task.name}, {device.type}"
    return [
        Result(
            "train", case, name, Ratio.between(seconds(timings[name]), spent), float(np.median(spent)) * 1e6, limit * 1e6, note
        )
        for name in others
    ]  # fmt: skip


def finished(work: Callable[[], int], device: torch.device) -> Callable[[], int]:
    """``work``, and the device's part of it."""

    def waited() -> int:
        units = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return units

    return waited


def by_trainer(task: Task, device: torch.device) -> Callable[[], int]:
    """This package's training."""
    observations, labels, architecture = task.observations(), task.labels(), task.architecture
    stacks = {"observations": {"": StackOf(task.frames, 0)}} if task.frames > 1 else None
    dataset = Dataset(task.rows, holdout=0.0, device=device, sequences=bool(architecture.memory), stacks=stacks)
    zeros, steps = torch.zeros(task.rows), torch.arange(task.rows)
    ends = steps % EPISODE == EPISODE - 1
    targets = ActionTargets({"logits": labels}, labels.argmax(-1))
    dataset.append(Transitions(observations, targets, zeros, ends, zeros > 0, steps // EPISODE, zeros > 0))
    encoder = architecture.new_encoder()
    encoder.normalize(lambda: (blocks for blocks, _ in dataset.blocks()))
    stack = stack_of(architecture, encoder.to(device), generators=[torch.Generator().manual_seed(0)])
    objective = Objective(LossConfig(kind="kl"), family_of(architecture.action_space))
    config = TrainConfig(gradient_steps=1_000_000, learning_rate=1e-3)
    trainer = Trainer(stack, objective, config, [torch.Generator(device).manual_seed(0)])

    def work() -> int:
        trainer.run(dataset, task.steps)
        return task.steps

    return work


class Plain(nn.Module):
    """The student in plain torch: logits ``[B, ACTIONS]`` of observations ``[B, ...]``, or of sequences ``[B, T, ...]`` after a burn-in."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if architecture.channels:
            for layer in convolutions(architecture.seen_space, architecture.channels, architecture.strides):
                layers += [nn.Conv2d(layer.inputs, layer.outputs, layer.kernel, layer.stride), ACTIVATIONS[architecture.activation]()]
            layers.append(nn.Flatten())
        self.convolutions = nn.Sequential(*layers)
        self.head = Student(architecture).network
        self.memory = nn.GRU(architecture.features, architecture.memory, batch_first=True) if architecture.memory else None

    def forward(self, observations: Tensor) -> Tensor:
        if self.memory is None:
            return self.head(self.convolutions(observations.float() / 255))
        with torch.no_grad():
            _, state = self.memory(observations[:, :BURN_IN])
        return self.head(self.memory(observations[:, BURN_IN:], state)[0].flatten(0, 1))


class Samples(TensorDataset):
    """The rows of a task as samples: single observations, or the sequences that ``Plain`` reads."""

    def __init__(self, task: Task, device: torch.device) -> None:
        observations, labels = task.observations().to(device), task.labels().to(device)
        if task.architecture.memory:
            length = BURN_IN + SEQUENCE
            observations, labels = (rows.unflatten(0, (-1, EPISODE))[:, :length] for rows in (observations, labels))
            labels = labels[:, BURN_IN:]
        super().__init__(observations, labels)
        self.per_batch = task.batch_size // SEQUENCE if task.architecture.memory else task.batch_size


def by_data_loader(task: Task, device: torch.device) -> Callable[[], int]:
    """A loop that takes each sample by itself and joins them."""
    module, samples = Plain(task.architecture).to(device), Samples(task, device)
    adam = torch.optim.Adam(module.parameters(), lr=1e-3)
    loader = DataLoader(samples, batch_size=samples.per_batch, shuffle=True)

    def work() -> int:
        count = 0
        for inputs, labels in itertools.islice(loader, task.steps):
            step(module, adam, inputs, labels)
            count += 1
        return count

    return work


def by_index(task: Task, device: torch.device) -> Callable[[], int]:
    """A loop that draws indices of whole observations."""
    module, samples = Plain(task.architecture).to(device), Samples(task, device)
    adam = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)

    def work() -> int:
        for _ in range(task.steps):
            drawn = torch.randint(len(samples), (samples.per_batch,), device=device)
            step(module, adam, *samples[drawn])
        return task.steps

    return work


def step(module: nn.Module, adam: torch.optim.Adam, inputs: Tensor, labels: Tensor) -> None:
    """A gradient step on the forward KL divergence."""
    log_probs, wanted = F.log_softmax(module(inputs), -1), F.log_softmax(labels.flatten(0, -2), -1)
    loss = F.kl_div(log_probs, wanted, log_target=True, reduction="batchmean")
    adam.zero_grad()
    loss.backward()
    adam.step()


def product(device: torch.device) -> Callable[[], int]:
    """Products of large matrices; the unit is a floating-point operation. On a GPU in TF32, as its convolutions are by default."""
    size = MATRIX if device.type == "cpu" else 10 * MATRIX
    square = torch.ones(size, size, device=device)

    def work() -> int:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = device.type != "cpu"
        try:
            for _ in range(10):
                square @ square
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
        return 10 * 2 * size**3

    return work
