"""What must be known of an agent before a figure about it is printed: whether its files are read as they were meant.

Whether it is worth distilling is another question, which ``preflight`` and ``check_teacher`` ask.
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
"""Played by the agent and at random, where states are needed."""
MISREAD = ("not_finite", "never_ends", "normalization_does_not_fit")
"""Topics of a look that say that a figure would mean nothing, whatever the agent is worth."""


def screen_files(agent: Teacher, *, skip: bool = False) -> tuple[str, ...]:
    """Judge the files before anything is played; what is to be told beside the figure, the agent's own notes first.

    Raises:
        RequestError: for what makes a figure meaningless, unless ``skip``.
    """
    return (*agent.notes, *settle(judge_files(agent), skip=skip))


def screen_states(agent: Teacher, spec: EnvironmentSpec, *, skip: bool = False) -> tuple[str, ...]:
    """Play a few episodes: are its answers numbers, do episodes end, are its observations those that its statistics are of?

    The seeds are those of ``preflight``.

    Raises:
        RequestError: for what makes a figure meaningless, unless ``skip``.
    """
    looked = look(agent, spec, evaluation_seeds("check", EPISODES), compare_with_idle=False)
    found = [*judge(looked.behaviour), *([looked.stop] if looked.stop else [])]
    misread = {finding.topic: finding for finding in found if finding.topic in MISREAD}
    return settle(misread.values(), skip=skip)


def screen_returns(agent: Teacher, own: np.ndarray, random: np.ndarray, *, skip: bool = False) -> tuple[str, ...]:
    """Compare returns that were played anyway, ``[E]`` of the agent and at random, with what its zip remembers of its training.

    Raises:
        RequestError: if normalisation is missing and the return is far below, unless ``skip``.
    """
    record = record_of(agent)
    missing = normalization_missing(agent, record)
    below = against_training(
        own, random, training_claim(record), normalization_missing=missing, returns_are_raw=record.returns_are_raw
    )  # fmt: skip
    return settle([below] if below else [], skip=skip)
