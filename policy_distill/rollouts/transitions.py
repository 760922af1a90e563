"""What collecting yields: transitions with the teacher's labels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from policy_distill.policies.actions import ActionTargets
from policy_distill.support.trees import Tree, rows

NO_EPISODE = -1
"""What a row says that belongs to no episode of the run; it is never held out."""


AUTORESET_STEP = -2
"""What a row says in whose step the environment was reset and no action was executed; it is no transition."""


@dataclass(frozen=True)
class Transitions:
    """What environments and teacher gave, flat over time and environments; row i is one observation, labelled once.

    Attributes:
        observations: ``[B, ...]`` raw.
        targets: the teacher's labels.
        rewards: ``[B]`` of the executed action.
        terminated, truncated: ``[B]`` bool, of the executed action; the next row of the same environment begins a new episode.
        episodes: ``[B]`` int64, which episode a row belongs to, unique within a run; or ``NO_EPISODE``.
        by_teacher: ``[B]`` bool, whose action was executed.
        seen: ``[B, ...]`` what the student sees; None where it sees ``observations``.
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
