"""Collected transitions with the teacher's labels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from policy_distill.policies.actions import ActionTargets
from policy_distill.support.trees import Tree, rows

NO_EPISODE = -1
"""Episode number of a row that belongs to no episode of the run; such rows are never held out."""


AUTORESET_STEP = -2
"""Episode number of a row whose step reset the environment without executing an action; it is not a transition."""


@dataclass(frozen=True)
class Transitions:
    """Labelled transitions, flat over time and environments; each row is one observation.

    Attributes:
        observations: ``[B, ...]`` raw.
        targets: the teacher's labels.
        rewards: ``[B]``, after the executed action.
        terminated, truncated: ``[B]`` bool, after the executed action; the environment's next row then begins a new episode.
        episodes: ``[B]`` int64, episode numbers that are unique within a run, or ``NO_EPISODE``.
        by_teacher: ``[B]`` bool, True where the teacher acted.
        seen: ``[B, ...]``, the student's inputs; None if these are ``observations``.
    """

    observations: Tree
    targets: ActionTargets
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    episodes: Tensor
    by_teacher: Tensor
    seen: Tree = None

    def __len__(self) -> int:
        return len(self.episodes)

    def where(self, mask: Tensor) -> Transitions:
        """The rows where ``mask`` ``[B]`` is true."""
        parameters = {name: value[mask] for name, value in self.targets.parameters.items()}
        return Transitions(
            rows(self.observations, mask),
            ActionTargets(parameters, self.targets.actions[mask]),
            self.rewards[mask],
            self.terminated[mask],
            self.truncated[mask],
            self.episodes[mask],
            self.by_teacher[mask],
            None if self.seen is None else rows(self.seen, mask),
        )
