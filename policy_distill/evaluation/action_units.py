"""Units of continuous actions whose bounds are far wider than the actions.

Environments without natural bounds are often given wide ones, ``Box(-100, 100)`` or the largest float32, while agents act around 1.
An error of a hundredth of the range is then as large as the action. Here the units follow from the teacher's actions in a few episodes.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import gymnasium as gym
import numpy as np
from torch import nn

from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.policies.actions import WIDE, ActionTargets, Box, Units
from policy_distill.policies.families import Family
from policy_distill.rollouts.episodes import evaluation_seeds
from policy_distill.rollouts.processes import call_apart
from policy_distill.rollouts.trajectories import labels_along, labels_of, record
from policy_distill.support.trees import concatenate, length
from policy_distill.teachers import RecurrentTeacher, Teacher
from policy_distill.teachers.ensemble import Ensemble
from policy_distill.teachers.networks.acting import ActionBounds
from policy_distill.teachers.networks.recurrent import RecurrentNetwork

EPISODES, STEPS = 4, 500
"""Number of episodes played, and maximum steps of each."""


def suited(teacher: Teacher, spec: EnvironmentSpec, step_timeout: float | None = None) -> tuple[Teacher, int]:
    """The teacher with action units that suit its actions in a few episodes, and the environment steps of these episodes.

    If all bounds are finite and no further apart than ``actions.WIDE``, nothing is played and the teacher is returned unchanged.

    Args:
        teacher: the agent.
        spec: the environment.
        step_timeout: time limit of a step or a reset in seconds; None or 0: no limit.
    """
    space = teacher.action_space
    if not isinstance(space, gym.spaces.Box) or not (box := Box.from_space(space)).may_be_wide.any():
        return teacher, 0
    seeds = evaluation_seeds("check", EPISODES)
    played = call_apart(step_timeout, functools.partial(record, max_steps=STEPS), teacher, spec, seeds)
    observations = concatenate([episode.observations for episode in played])
    targets = labels_along(teacher, played) if isinstance(teacher, RecurrentTeacher) else labels_of(teacher, observations)
    units = units_of_actions(teacher.family, targets)
    return teacher if units is None else in_units(teacher, dataclasses.replace(box, units=units)), length(observations)


def in_units(teacher: Teacher, box: Box) -> Teacher:
    """A teacher with the same weights, whose distribution is in the units of ``box``; its actions do not change."""
    twin = _shallow(teacher)
    network = teacher.network
    if isinstance(network, Ensemble):
        weights = network.weights if network.combine == "mean" else None
        twin.network = Ensemble([in_units(member, box) for member in network.members], weights, network.combine)  # type: ignore[arg-type]
        return twin
    twin.network = _shallow(network)
    acting = twin.network
    if isinstance(network, RecurrentNetwork):
        acting = twin.network.head = _shallow(network.head)
    acting.family = twin.network.family = teacher.family.in_box(box)
    acting.bounds = ActionBounds(box).to(teacher.anchor.device)
    return twin


def _shallow(module: Any) -> Any:
    """A copy of a module with its own dict of submodules; the submodules are shared."""
    twin = copy.copy(module)
    assert isinstance(twin, nn.Module)
    twin._modules = dict(twin._modules)
    return twin


def units_of_actions(family: Family, targets: ActionTargets) -> Units | None:
    """Box units that suit a policy's actions; None if the units of the bounds suit every component.

    Args:
        family: the policy's family, with the units of its bounds.
        targets: the policy's actions ``[B, dim]`` and distributions in states that it visits.

    Returns:
        Scale and offset of each component. If its range exceeds both ``WIDE`` and ``WIDE`` times the range of the actions: half the
        actions' range, but at least the mean standard deviation of sampled actions, and the middle of their range. Otherwise those of
        the bounds.
    """
    if family.box is None:
        return None
    scale, offset = family.box.affine()
    actions = targets.actions.double().cpu().numpy().reshape(-1, family.box.dim)
    low, high = actions.min(0), actions.max(0)
    wide = family.box.may_be_wide & (np.subtract(family.box.high, family.box.low) > WIDE * (high - low))
    if not wide.any():
        return None
    log_std = family.box_log_std(targets.parameters)
    spread = np.zeros(family.box.dim) if log_std is None else log_std.double().exp().mean(0).cpu().numpy() * scale
    middle, half = (low + high) / 2, np.maximum((high - low) / 2, spread)
    half = np.where(half > 0, half, np.maximum(np.abs(middle), 1.0))
    return tuple(np.where(wide, half, scale).tolist()), tuple(np.where(wide, middle, offset).tolist())
