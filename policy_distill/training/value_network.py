"""A small value network distilled from the teacher's critic, as a start for further RL training of student.zip."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import gymnasium as gym
import torch
from torch import Tensor, nn

from policy_distill.config import LossConfig, TrainConfig, ValueConfig
from policy_distill.losses.objective import Objective
from policy_distill.policies.actions import ActionTargets, Box
from policy_distill.policies.families import Deterministic
from policy_distill.policies.student import Student
from policy_distill.support.trees import Tree, blocks, leaves, on_cpu
from policy_distill.teachers import Teacher
from policy_distill.training.dataset import Dataset
from policy_distill.training.stacks.analytic import StudentStack
from policy_distill.training.trainer import HELD_OUT_ROWS, Trainer

CHUNK = 8192
"""Observations in one forward pass of the critic."""
MARGIN = 0.05
"""Margin of the box around the values, relative to their range: a prediction beyond a target at the bound would have no error."""


@dataclass(frozen=True)
class DistilledValues:
    """A distilled value network.

    Attributes:
        layers: linear layers on the student's normalised observations, with its activation between them; the output is the discounted
            return in the environment's rewards.
        explained_variance: share of the variance of the critic's values, ``<= 1``, on held-out rows, or training rows if there are none.
    """

    layers: list[nn.Linear]
    explained_variance: float


def fit_values(
    teacher: Teacher, dataset: Dataset, student: Student, config: ValueConfig, train: TrainConfig, *, seed: int
) -> DistilledValues:
    """Fit a network to ``teacher.values`` on the dataset's states by squared error, trained like a student whose action is the value.

    Args:
        teacher: a teacher with a critic; see ``Teacher.has_values``.
        dataset: the collected data.
        student: its normalisation and activation are used.
        config: sizes and gradient steps of the network.
        train: the other training settings.
        seed: seed of initial weights and batches.
    """
    assert config.hidden_sizes is not None
    valued = dataset.relabelled(lambda _, observations, __: ActionTargets({}, _values(teacher, observations)), raw=True)
    low, high = (float(end) for end in valued.training_targets().actions.aminmax())
    margin = MARGIN * (high - low) + 1e-3
    space = gym.spaces.Box(low - margin, high + margin, (1,))
    box = Box.from_space(space)
    stack = StudentStack(
        dataclasses.replace(
            student.architecture, action_space=space, hidden_sizes=config.hidden_sizes, action_units=None, bits=None, pruning=None
        ),
        generators=[torch.Generator().manual_seed(seed)],
        mean=student.mean.to(dataset.device),
        scale=student.scale.to(dataset.device),
    )
    objective = Objective(LossConfig(kind="regression", regression="squared", near_bound=1.0), Deterministic(box))
    settings = dataclasses.replace(train, gradient_steps=config.gradient_steps, vary=())
    trainer = Trainer(stack, objective, settings, [torch.Generator(dataset.device).manual_seed(seed)])
    trainer.run(valued, config.gradient_steps)
    network = trainer.student()
    observations, targets = valued.held_out(HELD_OUT_ROWS) or valued.spread(HELD_OUT_ROWS)
    expected = box.to_box(targets.actions.cpu())
    residual = expected - network(on_cpu(observations))
    scale, offset = box.affine()
    with torch.no_grad():
        network.linears[-1].weight.mul_(float(scale[0]))
        network.linears[-1].bias.mul_(float(scale[0])).add_(float(offset[0]))
    return DistilledValues(network.linears, 1 - float(residual.var() / expected.var().clamp_min(1e-12)))


@torch.no_grad()
def _values(teacher: Teacher, observations: Tree) -> Tensor:
    """The critic's values ``[B, 1]``."""
    values = [teacher.values(on_cpu(rows)) for rows in blocks(observations, CHUNK)]
    return torch.cat(values)[:, None].to(leaves(observations)[0].device)
