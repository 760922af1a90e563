"""A few steps in an environment before the work: can it be run at all, does it follow its seed, and does it end its episodes?"""

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
"""Episodes that are begun twice, and the steps of each that are compared."""
LONG = 1000
"""Steps within which an episode of a random policy should end where there is no time limit."""
FIX = "let it draw all random numbers from self.np_random, which reset(seed) seeds"

Answer = tuple[bytes, float, bool, bool]


@dataclass(frozen=True)
class Probe:
    """What was found.

    Attributes:
        ignores_seed: which answers differed though seed and actions were the same, in words; None if none did.
        endless: whether there is no time limit, and an episode at random did not end within ``LONG`` steps.
        name: of the environment.
    """

    name: str
    ignores_seed: str | None = None
    endless: bool = False

    @property
    def notices(self) -> tuple[str, ...]:
        """What must be said where figures of this environment are printed."""
        found = []
        if self.ignores_seed:
            found.append(
                f"{self.name} does not follow its seed ({self.ignores_seed}): these returns cannot be repeated, and teacher and student do "
                f"not play the same episode on the same seed; {FIX}"
            )
        if self.endless:
            found.append(
                f"{self.name} has no time limit, and an episode at random did not end within {LONG:,} steps; the work stops at one that "
                f"goes on for {LONG_EPISODE:,} steps while it is tried, or {NEVER_ENDING:,} later: --max-episode-steps gives it a limit"
            )
        return tuple(found)

    def require_repeatable(self) -> None:
        """Raise ``RequestError`` where a certificate could not be repeated."""
        if self.ignores_seed:
            raise RequestError(
                f"{self.name} does not follow its seed ({self.ignores_seed}), so a certificate's episodes could not be repeated; {FIX}"
            )


def probe(spec: EnvironmentSpec, step_timeout: float | None = None) -> Probe:
    """Begin a few episodes at random, twice, and compare; seconds at most.

    The second time their order is another, and the global generators are in another state after each reset, as they are where other
    episodes run beside. An environment that draws from them in ``reset`` alone is found to be repeatable: ``Border`` seeds them there.

    Args:
        spec: the environment.
        step_timeout: seconds that a step or a reset may take; None or 0: any.

    Raises:
        RequestError: if the environment cannot be made, reset or stepped, or answers with what no agent can be asked about.
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
        again = {seed: _begin(env, seed, disturb=True) for seed in reversed(seeds)}
        differing = next((text for seed in seeds if (text := _difference(seed, first[seed], again[seed]))), None)
        return Probe(spec.id, differing, not env.has_time_limit and not _ends(env, seeds[0]))
    finally:
        env.close()


def _begin(env: Border, seed: int, *, disturb: bool = False) -> list[Answer]:
    """The first answers of an episode at random: the reset's, then those of at most ``STEPS`` steps."""
    observation, _ = env.reset(seed=seed)
    if disturb:
        random.seed(seed + 1)
        np.random.seed(seed % 2**31 + 1)  # noqa: NPY002
        torch.default_generator.manual_seed(seed + 1)
    answers: list[Answer] = [(_checked(env, observation), 0.0, False, False)]
    act = random_actor(env.action_space, seed)
    while len(answers) <= STEPS and not any(answers[-1][2:]):
        action = act(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        answers.append((_checked(env, observation, action), reward, terminated, truncated))
    return answers


def _checked(env: Border, observation: Any, action: Any = None) -> bytes:
    if not is_finite(observation):
        raise not_finite(env, map_leaves(np.asarray, observation), action)
    return b"".join(np.asarray(leaf).tobytes() for leaf in leaves(observation))


def _difference(seed: int, first: list[Answer], again: list[Answer]) -> str | None:
    for step, (one, other) in enumerate(zip(first, again, strict=False)):
        for what, mine, theirs in zip(("observation", "reward", "end", "end"), one, other, strict=True):
            if mine != theirs:
                where = "reset" if not step else f"step {step}"
                return f"seed {seed} twice, {where}: another {what}"
    return None


def _ends(env: Border, seed: int) -> bool:
    observation, _ = env.reset(seed=seed)
    act = random_actor(env.action_space, seed)
    for _ in range(LONG):
        observation, _, terminated, truncated, _ = env.step(act(observation))
        if terminated or truncated:
            return True
    return False
