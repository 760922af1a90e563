"""The short form of the examination, before a job: it refuses what would make hours of work worthless."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policy_distill.check.behaviour import judge
from policy_distill.check.claims import training_claim
from policy_distill.check.files import judge_files, normalization_missing, record_of
from policy_distill.check.findings import Finding
from policy_distill.check.look import look
from policy_distill.check.returns import SETTLING_EPISODES, against_training, stand
from policy_distill.config import RequestError
from policy_distill.environments import EnvironmentSpec
from policy_distill.evaluate import SIDE_BY_SIDE, Episodes, evaluation_seeds
from policy_distill.processes import call_apart
from policy_distill.teachers import Teacher
from policy_distill.workers import Rollouts

EPISODES = 10
"""Played by teacher and random policy; only where they leave it open whether the teacher is the better one, it is more."""


@dataclass(frozen=True)
class Preflight:
    """What a person should know before the work, and the environment steps that it took to find out."""

    notices: tuple[str, ...]
    env_steps: int


def preflight(teacher: Teacher, spec: EnvironmentSpec, *, workers: int | None = None, step_timeout: float | None = None) -> Preflight:
    """Look at a teacher where it is to be distilled; seconds, unless it looks no better than chance.

    The seeds are neither those that choose a student nor those of the final figure.

    Raises:
        RequestError: for a finding of severity ``stop``: no better than a random policy, NaN, missing normalisation, endless episodes.
    """
    record = record_of(teacher)
    findings = judge_files(teacher, record)
    _refuse(findings)
    seeds = evaluation_seeds("check", SETTLING_EPISODES)
    looked = call_apart(step_timeout, look, teacher, spec, seeds[:EPISODES])
    _refuse([looked.stop] if looked.stop else [])
    findings += judge(looked.behaviour)
    own, random, env_steps = looked.own.returns, looked.random.returns, looked.env_steps
    trained = training_claim(record)
    missing = normalization_missing(teacher, record)
    if below := against_training(own, random, trained, normalization_missing=missing):
        findings.append(below)
    _refuse(findings)

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
    _refuse(findings)
    return Preflight(tuple(finding.line() for finding in findings if finding.severity == "warn"), env_steps)


def _refuse(findings: list[Finding]) -> None:
    """Raise the first finding that stops a run."""
    for finding in findings:
        if finding.severity == "stop":
            raise RequestError(f"{finding.line()}; to go on all the same: --check.skip true")
