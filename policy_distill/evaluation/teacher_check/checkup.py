"""The full check of a teacher: ``policy-distill check_teacher``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.evaluation.teacher_check.behaviour import Behaviour, has_distribution, judge
from policy_distill.evaluation.teacher_check.claims import Claim, find_claim, training_claim
from policy_distill.evaluation.teacher_check.files import judge_files, normalization_missing, record_of
from policy_distill.evaluation.teacher_check.findings import Finding, by_severity
from policy_distill.evaluation.teacher_check.look import judge_lengths, look
from policy_distill.evaluation.teacher_check.returns import against_claim, against_drawn, against_training, stand
from policy_distill.evaluation.teacher_check.versions import look_elsewhere
from policy_distill.rollouts.episodes import Episodes, evaluate, evaluation_seeds
from policy_distill.rollouts.play import SIDE_BY_SIDE
from policy_distill.rollouts.processes import call_apart
from policy_distill.rollouts.stochastic import Drawing
from policy_distill.rollouts.workers import Rollouts
from policy_distill.support.figures import return_text
from policy_distill.teachers import Teacher

LOOK_EPISODES = SIDE_BY_SIDE
"""Maximum number of episodes that are recorded step by step, and number of episodes with sampled actions."""


@dataclass(frozen=True)
class Checkup:
    """Result of the full check of a teacher.

    Attributes:
        facts: facts from its files.
        episodes: episodes of the teacher.
        random_episodes: episodes of a random policy on the same seeds.
        claim: what its folder says, if it says anything.
        trained: the last episodes of its training, if recorded in its zip.
        behaviour: figures of how it acts; None where nothing was played.
        drawn: episodes with drawn actions on the first seeds; None for a teacher without a distribution of its own.
        findings: worst first.
    """

    facts: dict[str, Any]
    episodes: Episodes
    random_episodes: Episodes
    claim: Claim | None
    trained: Claim | None = None
    behaviour: Behaviour | None = None
    drawn: Episodes | None = None
    findings: tuple[Finding, ...] = field(default=())

    @property
    def verdict(self) -> str:
        """One sentence: whether the return agrees with the claim, and whether the agent beats a random policy."""
        if not len(self.episodes.returns):
            return "not measured: its actions are not finite"
        mean, error = _mean_and_error(self.episodes.returns)
        random_mean, random_error = _mean_and_error(self.random_episodes.returns)
        if mean - random_mean <= 2 * np.hypot(error, random_error):
            return "no better than a random policy here: wrong environment, missing normalisation, or untrained"
        if self.claim is None:
            return "better than a random policy; its folder claims no return to compare with"
        spread = np.hypot(error, self.claim.error)
        if abs(mean - self.claim.mean) <= 3 * spread + 1e-9:
            return f"agrees with {self.claim.source} within noise"
        word = "below" if mean < self.claim.mean else "above"
        return f"{word} what {self.claim.source} says by {return_text(abs(mean - self.claim.mean))}, which is more than noise"

    def summary(self) -> dict[str, Any]:
        """Findings and the underlying data, for JSON."""
        return {
            "trained": dataclasses.asdict(self.trained) if self.trained else None,
            "behaviour": dataclasses.asdict(self.behaviour) if self.behaviour else None,
            "drawn_return_mean": float(self.drawn.returns.mean()) if self.drawn else None,
            "findings": [finding.summary() for finding in self.findings],
        }


def check_teacher(
    teacher: Teacher, spec: EnvironmentSpec, *, episodes: int, workers: int | None = None, step_timeout: float | None = None
) -> Checkup:
    """Measure a teacher in its environment, compare its return with claims in its files, and analyse its actions.

    An agent that returns NaN, or whose episodes do not end, is not measured further; ``episodes`` are then the first few.
    """
    claim = find_claim(Path(teacher.path)) if teacher.path else None
    record = record_of(teacher)
    trained = training_claim(record)
    found: list[Finding | None] = [*judge_files(teacher, record)]
    seeds = evaluation_seeds("final", episodes)
    looked = call_apart(step_timeout, look, teacher, spec, seeds[:LOOK_EPISODES])
    found += [*judge(looked.behaviour), looked.warning] if looked.stop is None else [looked.stop]

    def checkup(own: Episodes, random: Episodes, drawn: Episodes | None) -> Checkup:
        findings = by_severity(finding for finding in found if finding is not None)
        return Checkup(teacher.describe(), own, random, claim, trained, looked.behaviour, drawn, findings)

    if looked.stop is not None:
        return checkup(looked.own, looked.random, None)
    with Rollouts(spec, teacher, num_envs=SIDE_BY_SIDE, seed=0, workers=workers, step_timeout=step_timeout) as rollouts:

        def measure(some_seeds: list[int]) -> tuple[Episodes, Episodes]:
            own, random = (rollouts.evaluate(who, some_seeds, num_envs=SIDE_BY_SIDE) for who in ("teacher", "random"))
            return own, random

        def more(count: int) -> tuple[np.ndarray, np.ndarray]:
            further = measure(evaluation_seeds("final", episodes + count)[episodes:])
            return further[0].returns, further[1].returns

        own, random = measure(seeds)
        found += [*judge_lengths(own.lengths), stand(own.returns, random.returns, more).finding()]
    below = against_claim(own.returns, claim)
    missing = normalization_missing(teacher, record)
    raw = record.returns_are_raw
    found += [below, against_training(own.returns, random.returns, trained, normalization_missing=missing, returns_are_raw=raw)]
    if below and claim:
        found.append(call_apart(step_timeout, look_elsewhere, teacher, spec, own.returns, claim, seeds))
    drawn = None
    if has_distribution(teacher):
        drawn = call_apart(step_timeout, evaluate, Drawing(teacher), spec, seeds[:LOOK_EPISODES])
    if drawn:
        found.append(against_drawn(own.returns[: len(drawn.returns)], drawn.returns, random.returns))
    return checkup(own, random, drawn)


def _mean_and_error(returns: np.ndarray) -> tuple[float, float]:
    return float(returns.mean()), float(returns.std(ddof=1) / np.sqrt(len(returns))) if len(returns) > 1 else 0.0
