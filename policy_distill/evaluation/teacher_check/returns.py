"""Findings from returns: compared with a random policy, with claims, with training, with sampled actions, and with an idle policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import gymnasium as gym
import numpy as np

from policy_distill.evaluation.statistics import shows_positive_mean
from policy_distill.evaluation.teacher_check.claims import Claim
from policy_distill.evaluation.teacher_check.findings import Finding
from policy_distill.support.figures import return_text
from policy_distill.support.trees import Tree, length

SETTLING_EPISODES = 200
"""Total number of episodes if fewer do not show that the teacher is better than a random policy."""
GIVE_STATISTICS = "put vecnormalize.pkl beside the zip or give --normalization PATH; --normalization none if rewards alone were normalised"
FAR_BELOW = 0.5
"""Fraction of an agent's gain over a random policy in training."""


@dataclass(frozen=True)
class Standing:
    """Result of comparing a teacher with a random policy.

    Attributes:
        word: ``better``: shown; ``no better``: not even a hint over ``SETTLING_EPISODES``, or shown to be worse; ``unclear``: else.
        own, random: ``[E]`` returns on the same seeds.
    """

    word: Literal["better", "unclear", "no better"]
    own: np.ndarray
    random: np.ndarray

    def finding(self) -> Finding | None:
        """The finding if the teacher was not shown to be better."""
        figures = f"{return_text(self.own.mean())} against {return_text(self.random.mean())} over {len(self.own)} episodes"
        if self.word == "no better":
            fix = "look for another environment version, missing normalisation or wrappers; else it is untrained"
            return Finding("stop", "no_better_than_random", f"the agent earns no more here than a random policy, {figures}", fix)
        if self.word == "unclear":
            what = f"whether the agent earns more here than a random policy is unclear, {figures}"
            return Finding("warn", "hardly_better_than_random", what, "a student's retention cannot be measured then: train it longer")
        return None


def stand(own: np.ndarray, random: np.ndarray, more: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> Standing:
    """Compare a teacher with a random policy; further episodes are played only if the first ones are inconclusive.

    A weak teacher must not be refused: one that is 0.3 standard deviations of the paired difference better is called ``no better``
    in 1 case of 1000 (t is about 4.2, the limit 0.84); where success is rare but real, at 5 % of the episodes, in fewer.

    Args:
        own, random: ``[E]`` returns on the same seeds.
        more: plays a number of further episodes and returns both returns.
    """
    if shows_positive_mean(own - random, 0.975):
        return Standing("better", own, random)
    if not shows_positive_mean(random - own, 0.999) and len(own) < SETTLING_EPISODES:
        further = more(SETTLING_EPISODES - len(own))
        own, random = np.concatenate([own, further[0]]), np.concatenate([random, further[1]])
    gain = own - random
    if shows_positive_mean(gain, 0.975):
        return Standing("better", own, random)
    return Standing("unclear" if shows_positive_mean(gain, 0.8) else "no better", own, random)


def against_claim(own: np.ndarray, claim: Claim | None) -> Finding | None:
    """A return that is below the claim by more than three standard errors."""
    if claim is None:
        return None
    error = own.std(ddof=1) / np.sqrt(len(own)) if len(own) > 1 else 0.0
    lost = claim.mean - own.mean()
    if lost <= 3 * np.hypot(error, claim.error) + 1e-9:
        return None
    what = f"the agent earns {return_text(own.mean())} here, {return_text(lost)} less than {claim.source} says"
    fix = "look for another environment version (--env), missing normalisation or wrappers"
    return Finding("warn", "return_below_claim", what, fix)


def against_training(
    own: np.ndarray, random: np.ndarray, trained: Claim | None, *, normalization_missing: bool, returns_are_raw: bool = True
) -> Finding | None:
    """A return far below that of the last training episodes, which explored and should have earned less.

    Args:
        own, random: ``[E]`` returns here.
        trained: claim from the last training episodes in the zip.
        normalization_missing: whether VecNormalize was used in training and its statistics are missing.
        returns_are_raw: ``trained`` is surely in the environment's rewards; else a difference may be one of units, no reason to stop.
    """
    if trained is None or trained.mean <= random.mean():
        return None
    missing = random.mean() + FAR_BELOW * (trained.mean - random.mean()) - own
    if not shows_positive_mean(missing, 0.999):
        return None
    what = (
        f"the agent earns {return_text(own.mean())} here, but {return_text(trained.mean)} in its last {trained.episodes} training episodes"
    )
    if not returns_are_raw:
        what += " (in normalised rewards, if VecMonitor stood outside VecNormalize, and then the two are not comparable)"
    if normalization_missing:
        what += ", which it read through a VecNormalize that is missing here"
        return Finding("stop" if returns_are_raw else "warn", "normalization_missing", what, GIVE_STATISTICS)
    fix = "look for another environment version (--env), missing normalisation or wrappers"
    return Finding("warn", "return_below_training", what, fix)


def against_drawn(own: np.ndarray, drawn: np.ndarray, random: np.ndarray) -> Finding | None:
    """A finding if the deterministic policy is clearly worse than sampled actions."""
    gain = drawn - own
    if not shows_positive_mean(gain, 0.99) or gain.mean() < 0.05 * abs(drawn.mean() - random.mean()):
        return None
    what = f"the agent earns {return_text(own.mean())} with deterministic actions, but {return_text(drawn.mean())} with sampled ones"
    fix = "the student acts deterministically and inherits this loss; train the agent until its deterministic actions are as good"
    return Finding("warn", "best_action_worse", what, fix)


def against_idle(own: np.ndarray, idle: np.ndarray, random: np.ndarray) -> Finding | None:
    """A finding about an agent that hardly reacts to observations, from returns ``[E]`` on the same seeds.

    If random actions cost reward, an untrained network beats the random policy by doing nothing. The agent must be better than the idle
    policy by a tenth of the standard deviation of the idle returns, or the run stops. If the agent is not better by a tenth of the gap
    between idle and random policy either, it gets a warning only, because the random policy's return depends on the action bounds.
    """
    apart = 0.1 * abs(idle.mean() - random.mean())
    little = min(0.1 * float(idle.std()), apart)
    what = (
        f"the agent hardly reacts to its observations and earns {return_text(own.mean())} here, an idle policy {return_text(idle.mean())}"
    )
    fix = "check whether it was trained, and for missing normalisation"
    if not shows_positive_mean(own - idle - little, 0.975):
        return Finding("stop", "no_better_than_idle", what, fix)
    if not shows_positive_mean(own - idle - apart, 0.975):
        return Finding("warn", "hardly_better_than_idle", f"{what}, a random policy {return_text(random.mean())}", fix)
    return None


@dataclass(frozen=True)
class Idle:
    """An idle policy, which always takes the action nearest to zero in a box."""

    space: gym.spaces.Box

    def act(self, observations: Tree) -> np.ndarray:
        """The same ``[B, ...]`` always."""
        action = np.clip(np.zeros(self.space.shape, self.space.dtype), self.space.low, self.space.high)
        return np.repeat(action[None], length(observations), axis=0)
