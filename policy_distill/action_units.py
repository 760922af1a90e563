"""In which units continuous actions are learnt where their bounds say nothing about their size.

Environments without natural bounds are often given wide ones, ``Box(-100, 100)`` or the largest float32, and agents act around 1 in them.
An error of a hundredth of the range is then the whole action. What the teacher does in a few episodes says in which units to measure.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from policy_distill.actions import Box, Deterministic, DiagGaussian, units_of_actions
from policy_distill.environments import EnvironmentSpec
from policy_distill.evaluate import evaluation_seeds
from policy_distill.job import Job
from policy_distill.objective import Objective
from policy_distill.processes import call_apart
from policy_distill.teachers import Teacher
from policy_distill.teachers.ensemble import Ensemble
from policy_distill.teachers.networks import ActionBounds
from policy_distill.trajectories import play

EPISODES, STEPS = 4, 500
"""Episodes that are played, and the most steps of each."""


def settle_action_units(job: Job) -> tuple[Job, int]:
    """The job in units that suit the teacher's actions, and the environment steps that it took to see them; see ``suited``."""
    teacher, env_steps = suited(job.teacher, job.spec, job.config.step_timeout)
    if teacher is job.teacher:
        return job, env_steps
    assert isinstance(teacher.family, DiagGaussian | Deterministic)
    units = teacher.family.box.units
    assert units is not None
    natural = Box.from_space(job.teacher.action_space).affine()[0]  # type: ignore[arg-type]
    wide = [index for index, (own, theirs) in enumerate(zip(units[0], natural, strict=True)) if own != theirs]
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
    return settled, env_steps


def suited(teacher: Teacher, spec: EnvironmentSpec, step_timeout: float | None = None) -> tuple[Teacher, int]:
    """The teacher in units that suit what it does in a few episodes, and their environment steps.

    It is returned as it is, and nothing is played, where all bounds are finite and no further apart than ``actions.WIDE``.

    Args:
        teacher: the agent.
        spec: the environment.
        step_timeout: seconds that a step or a reset may take; None or 0: any.
    """
    space = teacher.action_space
    if not isinstance(space, gym.spaces.Box) or not (box := Box.from_space(space)).may_be_wide.any():
        return teacher, 0
    seeds = evaluation_seeds("check", EPISODES)
    played = call_apart(step_timeout, functools.partial(play, max_steps=STEPS), teacher, spec, seeds)
    observations = np.concatenate([episode.observations for episode in played])
    with torch.inference_mode():
        targets = teacher.targets(torch.from_numpy(observations).to(teacher.anchor.device))
    units = units_of_actions(teacher.family, targets)
    return teacher if units is None else in_units(teacher, dataclasses.replace(box, units=units)), len(observations)


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
