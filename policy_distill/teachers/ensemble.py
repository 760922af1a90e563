"""Several agents of one task as one acting network; ``Teacher.ensemble`` makes a teacher of it."""

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
from policy_distill.policies.q_values import Q_TEMPERATURES, standardize_logits
from policy_distill.support.trees import Tree
from policy_distill.teachers.algorithms import ALGORITHMS
from policy_distill.teachers.networks.acting import ActionBounds


class Member(Protocol):
    """What an ensemble asks of a teacher, which is a module too."""

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
        weights: ``> 0``, one for each member; only their ratios count. Left out: equal.
        combine: ``mean``: the weighted mean of the distributions. Probabilities are averaged, Q-values made probabilities before that;
            of clipped Gaussians the first two moments of the mixture are kept; of other continuous teachers the actions are averaged.
            ``value``: in each state the targets of the member that promises most, by its own critic.

    Attributes:
        family: of the targets.
        acting_params: of all members together, for all of them act; 0 if one's are unknown.

    Raises:
        RequestError: if the members do not go together, or the weights do not fit them.
    """

    reads_raw = True

    def __init__(self, members: Sequence[Member], weights: Sequence[float] | None, combine: Literal["mean", "value"]) -> None:
        super().__init__()
        _check_members(members, combine)
        self.members = nn.ModuleList(members)  # type: ignore[arg-type]
        self.weights = _shares(weights, len(members), combine)
        self.combine = combine
        first, *others = (member.family for member in members)
        alike = all(other == first for other in others) and (combine == "value" or first.mixes)
        self.family: Family = first if alike else first.of_agent(density=False)
        self.bounds = ActionBounds(Box.from_space(space)) if isinstance(space := members[0].action_space, gym.spaces.Box) else None
        sizes = [member.params for member in members]
        self.acting_params = sum(sizes) if all(sizes) else 0

    def forward(self, observations: Tree) -> ActionTargets:
        told = [member.targets(observations) for member in self.members]  # type: ignore[operator]
        if self.combine == "value":
            return self._of_the_most_promising(told, self.member_values(observations))
        return self.mixed(told)

    def mixed(self, told: Sequence[ActionTargets]) -> ActionTargets:
        """The weighted mean of what the members say, row by row; of an ensemble that combines by ``mean``."""
        if not self.family.names:
            assert self.bounds is not None
            return ActionTargets({}, self.bounds.clip(weighted_mean([targets.actions for targets in told], self.weights)))
        mixed = self.family.mix([_as_logits(targets.parameters) for targets in told], self.weights)
        return ActionTargets(mixed, self.family.mode(mixed))

    def member_values(self, observations: Tree) -> Tensor:
        """Each member's values ``[M, B]`` of raw observations."""
        return torch.stack([member.values(observations) for member in self.members])  # type: ignore[operator]

    def _of_the_most_promising(self, told: Sequence[ActionTargets], values: Tensor) -> ActionTargets:
        """In each row the targets of the member with the highest of ``values`` ``[M, B]``, the first of equals."""
        best, rows = values.argmax(0), torch.arange(values.shape[1], device=values.device)

        def chosen(tensors: Sequence[Tensor]) -> Tensor:
            return torch.stack(list(tensors))[best, rows]

        actions = chosen([targets.actions for targets in told])
        if not self.family.names:
            return ActionTargets({}, actions)
        parameters = [targets.parameters for targets in told]
        if not all("q_values" in one for one in parameters):
            parameters = [_as_logits(one) for one in parameters]
        names = [name for name in (*self.family.names, "q_values") if name in parameters[0]]
        return ActionTargets({name: chosen([one[name] for one in parameters]) for name in names}, actions)


class HighestValue(nn.Module):
    """The critic of an ensemble that follows the most promising member: what that one promises, ``[B]``."""

    def forward(self, observations: Tensor, network: nn.Module) -> Tensor:
        assert isinstance(network, Ensemble)
        return network.member_values(observations).amax(0)


def name_of(member: Member) -> str:
    """Where it comes from, for messages."""
    return member.path or f"the {member.algo} agent"


def _as_logits(parameters: Parameters) -> Parameters:
    """Q-values as logits: their z-scores over the actions, divided by a temperature; other parameters as they are."""
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
    first, *others = members
    for number, other in enumerate(others, 2):
        spaces = (first.observation_space, first.action_space), (other.observation_space, other.action_space)
        if difference := first_difference(*spaces):
            role, mine, theirs = difference
            raise RequestError(
                f"teachers of one ensemble must have the same spaces, but the {role} of teacher 1 ({name_of(first)}) are {mine}, those of "
                f"teacher {number} ({name_of(other)}) are {theirs}: leave one of the two out"
            )
    if combine == "value":
        for member in members:
            if reason := member.why_no_values():
                raise RequestError(f"combine is 'value', but {reason}; or combine by 'mean'")


def _shares(weights: Sequence[float] | None, count: int, combine: str) -> tuple[float, ...]:
    """Weights that sum to 1."""
    if weights is None:
        return (1 / count,) * count
    if combine == "value":
        raise RequestError(f"weights are {tuple(weights)}, but combine is 'value', which follows one member at a time: leave them out")
    if len(weights) != count:
        raise RequestError(f"weights are {tuple(weights)}; they must be one for each of the {count} teachers")
    if not all(weight > 0 and math.isfinite(weight) for weight in weights):
        raise RequestError(f"weights are {tuple(weights)}; they must be > 0: leave a teacher out that should not count")
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)
