"""A short test of an environment before the work: does it run, is it reproducible by its seed, does it end its episodes?"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from policy_distill.config import EnvironmentFault, RequestError
from policy_distill.environments.border import NEVER_ENDING, Border, is_finite, not_finite, own_random_state
from policy_distill.environments.specs import LONG_EPISODE, EnvironmentSpec, make
from policy_distill.rollouts.episodes import evaluation_seeds
from policy_distill.rollouts.processes import call_apart
from policy_distill.rollouts.random_policy import random_actor
from policy_distill.support.trees import leaves, map_leaves

EPISODES, STEPS = 8, 10
"""Number of episodes started twice, and number of steps of each that are compared."""
LONG = 1000
"""Steps within which an episode of a random policy should end if there is no time limit."""
FIX = "let it draw all random numbers from self.np_random, which reset(seed) seeds"

StepResult = tuple[bytes, float, bool, bool]
"""Observation's bytes, reward, terminated, truncated."""


@dataclass(frozen=True)
class Probe:
    """Outcome of the test.

    Attributes:
        name: id of the environment.
        ignores_seed: description of the first difference between two episodes with the same seed and actions; None if there is none.
        endless: whether there is no time limit, and a random policy's episode did not end within ``LONG`` steps.
    """

    name: str
    ignores_seed: str | None = None
    endless: bool = False

    @property
    def notices(self) -> tuple[str, ...]:
        """Warnings that belong to figures of this environment."""
        notices = []
        if self.ignores_seed:
            notices.append(
                f"{self.name} does not follow its seed ({self.ignores_seed}): these returns cannot be repeated, and teacher and student do "
                f"not play the same episode on the same seed; {FIX}"
            )
        if self.endless:
            notices.append(
                f"{self.name} has no time limit, and a random policy's episode did not end within {LONG:,} steps; the work stops at an "
                f"episode of {LONG_EPISODE:,} steps during the checks, or of {NEVER_ENDING:,} later: --max-episode-steps sets a limit"
            )
        return tuple(notices)

    def require_repeatable(self) -> None:
        """Raise ``RequestError`` if a certificate could not be repeated."""
        if self.ignores_seed:
            raise RequestError(
                f"{self.name} does not follow its seed ({self.ignores_seed}), so a certificate's episodes could not be repeated; {FIX}"
            )


def probe(spec: EnvironmentSpec, step_timeout: float | None = None) -> Probe:
    """Start a few episodes of a random policy twice and compare them.

    The second time the order differs, and the global generators have another state after each reset, as with parallel episodes. An
    environment that draws from them only in ``reset`` counts as reproducible: ``Border`` seeds them there.

    Args:
        spec: the environment.
        step_timeout: time limit of a step or a reset in seconds; None or 0: no limit.

    Raises:
        RequestError: if the environment cannot be made, reset or stepped, or if its observations are invalid.
    """
    try:
        return call_apart(step_timeout, _probe, spec)
    except EnvironmentFault as error:
        raise RequestError(str(error)) from error


@own_random_state()
def _probe(spec: EnvironmentSpec) -> Probe:
    env = make(spec)
    try:
        seeds = evaluation_seeds("check", EPISODES)
        first = {seed: _begin(env, seed) for seed in seeds}
        second = {seed: _begin(env, seed, disturb=True) for seed in reversed(seeds)}
        difference = next((text for seed in seeds if (text := _difference(seed, first[seed], second[seed]))), None)
        return Probe(spec.id, difference, not env.has_time_limit and not _ends(env, seeds[0]))
    finally:
        env.close()


def _begin(env: Border, seed: int, *, disturb: bool = False) -> list[StepResult]:
    """The reset and at most ``STEPS`` first steps of a random policy's episode; ``disturb`` changes the global generators' state."""
    observation, _ = env.reset(seed=seed)
    if disturb:
        random.seed(seed + 1)
        np.random.seed(seed % 2**31 + 1)  # noqa: NPY002
        torch.default_generator.manual_seed(seed + 1)
    results: list[StepResult] = [(_checked(env, observation), 0.0, False, False)]
    act = random_actor(env.action_space, seed)
    while len(results) <= STEPS and not any(results[-1][2:]):
        action = act(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        results.append((_checked(env, observation, action), reward, terminated, truncated))
    return results


def _checked(env: Border, observation: Any, action: Any = None) -> bytes:
    if not is_finite(observation):
        raise not_finite(env, map_leaves(np.asarray, observation), action)
    return b"".join(np.asarray(leaf).tobytes() for leaf in leaves(observation))


def _difference(seed: int, first: list[StepResult], second: list[StepResult]) -> str | None:
    for step, results in enumerate(zip(first, second, strict=False)):
        for name, one, other in zip(("observation", "reward", "end", "end"), *results, strict=True):
            if one != other:
                where = "reset" if not step else f"step {step}"
                return f"seed {seed} twice, {where}: another {name}"
    return None


def _ends(env: Border, seed: int) -> bool:
    observation, _ = env.reset(seed=seed)
    act = random_actor(env.action_space, seed)
    for _ in range(LONG):
        observation, _, terminated, truncated, _ = env.step(act(observation))
        if terminated or truncated:
            return True
    return False
