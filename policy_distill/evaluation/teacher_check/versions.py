"""Comparison of an agent's return in other versions of its environment with its claimed return."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import gymnasium as gym
import numpy as np

from policy_distill.config import RequestError
from policy_distill.environments.matching import check_fits
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.evaluation.statistics import shows_positive_mean
from policy_distill.evaluation.teacher_check.claims import Claim
from policy_distill.evaluation.teacher_check.findings import Finding
from policy_distill.rollouts.episodes import evaluate
from policy_distill.support.figures import return_text
from policy_distill.teachers import Teacher

EPISODES = 10
"""Number of episodes in each other version."""


def other_versions(spec: EnvironmentSpec, teacher: Teacher) -> list[EnvironmentSpec]:
    """Installed versions of the environment with the teacher's spaces, newest first."""
    module, colon, gym_id = spec.id.rpartition(":")
    found = re.fullmatch(r"(.+)-v(\d+)", gym_id)
    if found is None:
        return []
    versions = sorted(
        (int(match[1]) for other in gym.registry if (match := re.fullmatch(rf"{re.escape(found[1])}-v(\d+)", other))), reverse=True
    )
    fitting = []
    for version in versions:
        other = replace(spec, id=f"{module}{colon}{found[1]}-v{version}")
        if version == int(found[2]):
            continue
        try:
            check_fits(other, (teacher.observation_space, teacher.action_space))
        except (RequestError, gym.error.Error):  # gone, not installed, or another environment
            continue
        fitting.append(other)
    return fitting


def look_elsewhere(teacher: Teacher, spec: EnvironmentSpec, own: np.ndarray, claim: Claim, seeds: Sequence[int]) -> Finding | None:
    """Play the other versions; name the one that comes nearest to the claim, if it is clearly better than this one.

    Args:
        teacher: the agent.
        spec: the environment in which ``own`` was measured.
        own: the agent's returns ``[E]``, below ``claim``.
        claim: the claimed return.
        seeds: seeds of the episodes to play.
    """
    best: tuple[float, EnvironmentSpec, np.ndarray] | None = None
    for other in other_versions(spec, teacher):
        returns = evaluate(teacher, other, seeds[:EPISODES]).returns
        distance = abs(returns.mean() - claim.mean)
        if best is None or distance < best[0]:
            best = distance, other, returns
    if best is None or best[0] >= abs(own.mean() - claim.mean):
        return None
    _, other, returns = best
    count = min(len(returns), len(own))
    if not shows_positive_mean(returns[:count] - own[:count], 0.95):
        return None
    what = f"in {other.id} the agent earns {return_text(returns.mean())} over {len(returns)} episodes, nearer to what {claim.source} says"
    return Finding("warn", "other_version_fits_better", what, f"give --env {other.id}")
