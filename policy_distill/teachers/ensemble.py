"""An ensemble of several agents as one acting network; ``Teacher.ensemble`` makes a teacher of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import gymnasium as gym
import torch
from torch import Tensor, nn

from policy_distill.config import RequestError
from policy_distill.environments.matching import first_difference
from policy_distill.policies.actions import ActionTargets, Box, Parameters
from policy_distill.policies.families import Family, weighted_mean
from policy_distill.policies.families.q_values import Q_TEMPERATURES, standardize_logits
from policy_distill.support.trees import Tree
from policy_distill.teachers.algorithms import ALGORITHMS
from policy_distill.teachers.networks.acting import ActionBounds


class Member(Protocol):
    """Interface of an ensemble's members, which are teachers and modules."""

    algo: str
    path: str | None
    observation_space: gym.Space
    action_space: gym.Space

    @property
    def family(self) -> Family: ...
    @property
    def params(self) -> int: ...
    def why_no_values(self) -> str | None: ...
    def targets(self, observations: Tree) -> ActionTargets: ...
    def values(self, observations: Tree) -> Tensor: ...


class Ensemble(nn.Module):
    """Several teachers of one task; each reads raw observations through its own normalisation.

    Args:
        members: at least two, with the same spaces.
        weights: ``> 0``, one for each member; only their ratios matter. None: equal.
        combine: ``mean``: the weighted mean of the distributions. Probabilities are averaged, after Q-values are turned into
            probabilities; a mixture of clipped Gaussians keeps its first two moments; other continuous teachers' actions are averaged.
            ``value``: in each state the targets of the member whose critic gives the highest value.

    Attributes:
        family: family of the targets.
        acting_params: number of parameters of all members; 0 if one's is unknown.

    Raises:
        RequestError: if the members' spaces or critics do not suit, or the weights are invalid.
    """

    reads_raw = True

    def __init__(self, members: Sequence[Member], weights: Sequence[float] | None, combine: Literal["mean", "value"]) -> None:
        super().__init__()
        _check_members(members, combine)
        self.members = nn.ModuleList(members)  # type: ignore[arg-type]
        self.weights = _shares(weights, len(members), combine)
        self.combine = combine
        first, *further = (member.family for member in members)
        same = all(family == first for family in further) and (combine == "value" or first.mixes)
        self.family: Family = first if same else first.of_agent(density=False)
        self.bounds = ActionBounds(Box.from_space(space)) if isinstance(space := members[0].action_space, gym.spaces.Box) else None
        sizes = [member.params for member in members]
        self.acting_params = sum(sizes) if all(sizes) else 0

    def forward(self, observations: Tree) -> ActionTargets:
        member_targets = [member.targets(observations) for member in self.members]  # type: ignore[operator]
        if self.combine == "value":
            return self._of_highest_value(member_targets, self.member_values(observations))
        return self.mixed(member_targets)

    def mixed(self, member_targets: Sequence[ActionTargets]) -> ActionTargets:
        """Weighted mean of the members' targets, row by row, for ``combine="mean"``."""
        if not self.family.names:
            assert self.bounds is not None
            return ActionTargets({}, self.bounds.clip(weighted_mean([targets.actions for targets in member_targets], self.weights)))
        mixed = self.family.mix([_as_logits(targets.parameters) for targets in member_targets], self.weights)
        return ActionTargets(mixed, self.family.mode(mixed))

    def member_values(self, observations: Tree) -> Tensor:
        """Values ``[M, B]`` of raw observations by each member's critic."""
        return torch.stack([member.values(observations) for member in self.members])  # type: ignore[operator]

    def _of_highest_value(self, member_targets: Sequence[ActionTargets], values: Tensor) -> ActionTargets:
        """In each row the targets of the member with the highest of ``values`` ``[M, B]``, the first of equals."""
        best, rows = values.argmax(0), torch.arange(values.shape[1], device=values.device)

        def chosen(tensors: Sequence[Tensor]) -> Tensor:
            return torch.stack(list(tensors))[best, rows]

        actions = chosen([targets.actions for targets in member_targets])
        if not self.family.names:
            return ActionTargets({}, actions)
        parameters = [targets.parameters for targets in member_targets]
        if not all("q_values" in one for one in parameters):
            parameters = [_as_logits(one) for one in parameters]
        names = [name for name in (*self.family.names, "q_values") if name in parameters[0]]
        return ActionTargets({name: chosen([one[name] for one in parameters]) for name in names}, actions)


class HighestValue(nn.Module):
    """The critic of an ensemble with ``combine="value"``: the highest of its members' values, ``[B]``."""

    def forward(self, observations: Tensor, network: nn.Module) -> Tensor:
        assert isinstance(network, Ensemble)
        return network.member_values(observations).amax(0)


def name_of(member: Member) -> str:
    """A member's path or algorithm, for messages."""
    return member.path or f"the {member.algo} agent"


def _as_logits(parameters: Parameters) -> Parameters:
    """Logits of Q-values: their z-scores over the actions, divided by a temperature; other parameters are unchanged."""
    if "q_values" not in parameters:
        return parameters
    return {"logits": standardize_logits(parameters["q_values"]) / Q_TEMPERATURES["z_score"]}


def _check_members(members: Sequence[Member], combine: str) -> None:
    if combine not in ("mean", "value"):
        raise RequestError(f"combine is {combine!r}; it must be mean or value")
    if len(members) < 2:
        raise RequestError(f"an ensemble of {len(members)} teachers is none: name at least two")
    for member in members:
        if member.algo in ALGORITHMS and ALGORITHMS[member.algo].has_memory:
            raise RequestError(f"{name_of(member)} has a memory, and teachers with one cannot be combined: leave it out")
    first, *further = members
    for number, member in enumerate(further, 2):
        spaces = (first.observation_space, first.action_space), (member.observation_space, member.action_space)
        if difference := first_difference(*spaces):
            role, of_first, of_member = difference
            raise RequestError(
                f"teachers of one ensemble must have the same spaces, but the {role} of teacher 1 ({name_of(first)}) are {of_first}, "
                f"those of teacher {number} ({name_of(member)}) are {of_member}: leave one of the two out"
            )
    if combine == "value":
        for member in members:
            if reason := member.why_no_values():
                raise RequestError(f"combine is 'value', but {reason}; or combine by 'mean'")


def _shares(weights: Sequence[float] | None, count: int, combine: str) -> tuple[float, ...]:
    """Normalised weights, with sum 1."""
    if weights is None:
        return (1 / count,) * count
    if combine == "value":
        raise RequestError(f"weights are {tuple(weights)}, but combine is 'value', which follows one member at a time: leave them out")
    if len(weights) != count:
        raise RequestError(f"weights are {tuple(weights)}; they must be one for each of the {count} teachers")
    if not all(weight > 0 and math.isfinite(weight) for weight in weights):
        raise RequestError(f"weights are {tuple(weights)}; they must be > 0: leave out a teacher that should not count")
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)
