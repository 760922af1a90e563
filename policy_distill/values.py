"""What the teacher's own critic expects, learnt by a small value network: a start for those who train student.zip on by reward."""

from __future__ import annotations

import math
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from policy_distill.config import TrainConfig, ValueConfig
from policy_distill.dataset import Dataset
from policy_distill.spaces import encode_observations
from policy_distill.stack import StudentStack
from policy_distill.students import Architecture, Student
from policy_distill.teachers import Teacher

BLOCK = 8192
"""Observations that the critic is asked about at once."""
HELD_OUT_ROWS = 8192


@dataclass(frozen=True)
class DistilledValues:
    """A value network.

    Attributes:
        layers: linear layers on the student's normalised observations, with its activation between them; they give the discounted return
            in the environment's rewards.
        explained_variance: of the critic's values on held-out rows, on training rows as long as none were held out; 1 is all of it.
    """

    layers: list[nn.Linear]
    explained_variance: float


def fit_values(
    teacher: Teacher, dataset: Dataset, student: Student, config: ValueConfig, train: TrainConfig, *, seed: int
) -> DistilledValues:
    """Fit a network to ``teacher.values`` in the states of ``dataset``, by squared error with Adam and a cosine learning rate.

    Args:
        teacher: has a critic; see ``Teacher.has_values``.
        dataset: what was collected.
        student: whose normalisation and activation the network shares.
        config: its size and its gradient steps.
        train: batch size and learning rate.
        seed: of the first weights and of the batches.
    """
    assert config.hidden_sizes is not None
    observations, _ = dataset.training_rows()
    values = _values(teacher, observations)
    centre, spread = float(values.mean()), max(float(values.std()), 1e-6)
    scaled = (values - centre) / spread
    space = student.observation_space
    one_number = gym.spaces.Box(-np.inf, np.inf, (1,))
    architecture = Architecture(space, one_number, config.hidden_sizes, student.architecture.activation)
    generator = torch.Generator().manual_seed(seed)
    stack = StudentStack(architecture, generators=[generator], mean=student.mean, scale=student.scale)
    room = stack.buffers(train.batch_size)
    stack.flat.grad = stack.gradient
    adam = torch.optim.Adam([stack.flat], fused=True)
    inputs = torch.ones(1, len(student.mean) + 1, train.batch_size)
    for step in range(config.gradient_steps):
        adam.param_groups[0]["lr"] = train.learning_rate * 0.5 * (1 + math.cos(math.pi * step / config.gradient_steps))
        rows = torch.randint(len(values), (train.batch_size,), generator=generator)
        inputs[0, :-1] = ((encode_observations(space, observations[rows].cpu()) - student.mean) / student.scale).T
        error = stack.forward(inputs, room)[0, 0] - scaled[rows]
        room.slopes[-1][0, 0] = 2 / train.batch_size * error
        stack.backward(inputs, room)
        adam.step()
    network = stack.member(0)
    held_out = dataset.held_out(HELD_OUT_ROWS) or dataset.spread(HELD_OUT_ROWS)
    expected = (_values(teacher, held_out[0]) - centre) / spread
    residual = expected - network(held_out[0].cpu())[:, 0]
    explained = 1 - float(residual.var() / expected.var().clamp_min(1e-12))
    with torch.no_grad():
        network.linears[-1].weight.mul_(spread)
        network.linears[-1].bias.mul_(spread).add_(centre)
    return DistilledValues(network.linears, explained)


@torch.no_grad()
def _values(teacher: Teacher, observations: Tensor) -> Tensor:
    return torch.cat([teacher.values(block.cpu()) for block in observations.split(BLOCK)])
