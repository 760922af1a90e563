"""The short check before a job, which refuses teachers that would make the job worthless."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.evaluation.teacher_check.behaviour import judge
from policy_distill.evaluation.teacher_check.claims import training_claim
from policy_distill.evaluation.teacher_check.files import judge_files, normalization_missing, record_of
from policy_distill.evaluation.teacher_check.findings import settle
from policy_distill.evaluation.teacher_check.look import look
from policy_distill.evaluation.teacher_check.returns import SETTLING_EPISODES, against_training, stand
from policy_distill.rollouts.episodes import Episodes, evaluation_seeds
from policy_distill.rollouts.play import SIDE_BY_SIDE
from policy_distill.rollouts.processes import call_apart
from policy_distill.rollouts.workers import Rollouts
from policy_distill.teachers import Teacher

EPISODES = 10
"""Number of episodes of teacher and random policy; more are played only if it is unclear whether the teacher is better."""


@dataclass(frozen=True)
class Preflight:
    """Warnings of the check, and its environment steps."""

    notices: tuple[str, ...]
    env_steps: int


def preflight(
    teacher: Teacher, spec: EnvironmentSpec, *, workers: int | None = None, step_timeout: float | None = None, skip: bool = False
) -> Preflight:
    """Check a teacher in its environment. This takes seconds, unless the teacher appears no better than a random policy.

    The seeds are separate from those of validation and evaluation.

    Args:
        teacher: the agent.
        spec: the environment.
        workers: number of processes; None: one per core.
        skip: check only the files, play no episodes, and treat findings of severity ``stop`` as warnings.

    Raises:
        RequestError: for a finding of severity ``stop``: no better than a random policy, NaN, missing normalisation, endless episodes.
    """
    record = record_of(teacher)
    findings = judge_files(teacher, record)
    notices = settle(findings, skip=skip)
    if skip:
        return Preflight(notices, 0)
    seeds = evaluation_seeds("check", SETTLING_EPISODES)
    looked = call_apart(step_timeout, look, teacher, spec, seeds[:EPISODES])
    settle([looked.stop] if looked.stop else [])
    findings += [*judge(looked.behaviour), *([looked.warning] if looked.warning else [])]
    own, random, env_steps = looked.own.returns, looked.random.returns, looked.env_steps
    trained = training_claim(record)
    missing = normalization_missing(teacher, record)
    if below := against_training(own, random, trained, normalization_missing=missing, returns_are_raw=record.returns_are_raw):
        findings.append(below)
    settle(findings)

    def more(episodes: int) -> tuple[np.ndarray, np.ndarray]:
        nonlocal env_steps
        with Rollouts(spec, teacher, num_envs=SIDE_BY_SIDE, seed=0, workers=workers, step_timeout=step_timeout) as rollouts:
            parts: list[Episodes] = [
                rollouts.evaluate(who, seeds[EPISODES:][:episodes], num_envs=SIDE_BY_SIDE) for who in ("teacher", "random")
            ]
        env_steps += sum(part.env_steps for part in parts)
        return parts[0].returns, parts[1].returns

    if hardly := stand(own, random, more).finding():
        findings.append(hardly)
    return Preflight(settle(findings), env_steps)
