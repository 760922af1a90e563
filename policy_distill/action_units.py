"""In which units continuous actions are learnt where their bounds say nothing about their size.

Environments without natural bounds are often given wide ones, ``Box(-100, 100)`` or the largest float32, and agents act around 1 in them.
An error of a hundredth of the range is then the whole action. What the teacher does in a few episodes says in which units to measure.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from policy_distill.actions import Box, Deterministic, DiagGaussian, units_of_actions
from policy_distill.evaluate import evaluation_seeds
from policy_distill.job import Job
from policy_distill.objective import Objective
from policy_distill.teachers import Teacher
from policy_distill.teachers.ensemble import Ensemble
from policy_distill.teachers.networks import ActionBounds
from policy_distill.trajectories import play

EPISODES, STEPS = 4, 500
"""What is looked at, and at most so many steps of each episode."""


def settle_action_units(job: Job) -> tuple[Job, int]:
    """The job in units that suit the teacher's actions, and the environment steps that it took to see them.

    Nothing changes, and nothing is played, where all bounds are finite and no further apart than ``actions.WIDE``.
    """
    space = job.teacher.action_space
    if not isinstance(space, gym.spaces.Box) or not (box := Box.from_space(space)).may_be_wide.any():
        return job, 0
    played = play(job.teacher, job.spec, evaluation_seeds("check", EPISODES), max_steps=STEPS)
    observations = np.concatenate([episode.observations for episode in played])
    with torch.inference_mode():
        targets = job.teacher.targets(torch.from_numpy(observations).to(job.teacher.anchor.device))
    units = units_of_actions(job.teacher.family, targets)
    if units is None:
        return job, len(observations)
    teacher = in_units(job.teacher, dataclasses.replace(box, units=units))
    wide = [index for index, (own, theirs) in enumerate(zip(units[0], box.affine()[0], strict=True)) if own != theirs]
    notice = (
        f"the bounds of the action's components {wide} are far wider than what the teacher does: "
        "errors, agreement and noise are measured in units of its own actions"
    )
    settled = dataclasses.replace(
        job,
        teacher=teacher,
        architecture=dataclasses.replace(job.architecture, action_units=units),
        objective=Objective(job.objective.config, teacher.family),
        notices=(*job.notices, notice),
    )
    return settled, len(observations)


def in_units(teacher: Teacher, box: Box) -> Teacher:
    """The same teacher, which shares its weights, with a distribution in the units of ``box``; its actions stay what they are."""
    twin = _shallow(teacher)
    network = teacher.network
    if isinstance(network, Ensemble):
        weights = network.weights if network.combine == "mean" else None
        twin.network = Ensemble([in_units(member, box) for member in network.members], weights, network.combine)  # type: ignore[arg-type]
        return twin
    twin.network = _shallow(network)
    family: Any = network.family
    assert isinstance(family, DiagGaussian | Deterministic)
    twin.network.family = dataclasses.replace(family, box=box)
    twin.network.bounds = ActionBounds(box).to(teacher.anchor.device)
    return twin


def _shallow(module: Any) -> Any:
    """A copy with a list of parts of its own; the parts are shared."""
    twin = copy.copy(module)
    assert isinstance(twin, nn.Module)
    twin._modules = dict(twin._modules)
    return twin
