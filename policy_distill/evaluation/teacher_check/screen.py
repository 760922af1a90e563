"""Checks of commands that only measure an agent: whether its files were read correctly.

Whether the agent is worth distilling is checked by ``preflight`` and ``check_teacher``.
"""

from __future__ import annotations

import numpy as np

from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.evaluation.teacher_check.behaviour import judge
from policy_distill.evaluation.teacher_check.claims import training_claim
from policy_distill.evaluation.teacher_check.files import judge_files, normalization_missing, record_of
from policy_distill.evaluation.teacher_check.findings import settle
from policy_distill.evaluation.teacher_check.look import look
from policy_distill.evaluation.teacher_check.returns import against_training
from policy_distill.rollouts.episodes import evaluation_seeds
from policy_distill.teachers import Teacher

EPISODES = 4
"""Number of episodes of the agent and of a random policy."""
MISREAD = ("not_finite", "never_ends", "normalization_does_not_fit")
"""Topics of findings that make any measurement meaningless, however good the agent is."""


def screen_files(agent: Teacher, *, skip: bool = False) -> tuple[str, ...]:
    """Check the files before any episode; return the notices to print, the agent's own notes first.

    Raises:
        RequestError: for a finding that makes the result meaningless, unless ``skip``.
    """
    return (*agent.notes, *settle(judge_files(agent), skip=skip))


def screen_states(agent: Teacher, spec: EnvironmentSpec, *, skip: bool = False) -> tuple[str, ...]:
    """Play a few episodes on ``preflight``'s seeds: check for NaN, endless episodes, and statistics that do not match the observations.

    Raises:
        RequestError: for a finding that makes the result meaningless, unless ``skip``.
    """
    looked = look(agent, spec, evaluation_seeds("check", EPISODES), compare_with_idle=False)
    found = [*judge(looked.behaviour), *([looked.stop] if looked.stop else [])]
    misread = {finding.topic: finding for finding in found if finding.topic in MISREAD}
    return settle(misread.values(), skip=skip)


def screen_returns(agent: Teacher, own: np.ndarray, random: np.ndarray, *, skip: bool = False) -> tuple[str, ...]:
    """Compare measured returns ``[E]`` of agent and random policy with the training record in the agent's zip.

    Raises:
        RequestError: if normalisation is missing and the return is far below, unless ``skip``.
    """
    record = record_of(agent)
    missing = normalization_missing(agent, record)
    below = against_training(
        own, random, training_claim(record), normalization_missing=missing, returns_are_raw=record.returns_are_raw
    )  # fmt: skip
    return settle([below] if below else [], skip=skip)
