"""The return of a policy over episodes with one seed each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import gymnasium as gym
import numpy as np

from policy_distill.environments import EnvironmentSpec, make, resolve

BATCH = 16
"""Observations go through a policy in batches of exactly this many rows (filled up with copies): matrix kernels round differently for
different batch shapes, and an episode's return must not depend on how many others run beside it."""


_FIRST_SEEDS = {"final": 1_000_000, "validation": 2_000_000, "check": 3_000_000, "comparison": 4_000_000}


def evaluation_seeds(purpose: str, episodes: int) -> list[int]:
    """Seeds that the round is chosen on ("validation"), that the figure is taken on ("final"), that the teacher is looked at on before the
    work ("check"), and that states for further training may be taken from ("comparison"); no two share a seed, all are the same in every
    run."""
    first = _FIRST_SEEDS[purpose]
    return list(range(first, first + episodes))


class Policy(Protocol):
    """Anything that acts: teacher, student, an exported file."""

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Raw observations ``[B, ...]`` to actions that ``env.step`` accepts."""
        ...


@dataclass(frozen=True)
class Episodes:
    """Returns of episodes, in the order of their seeds.

    Attributes:
        seeds: ``[E]``.
        returns: ``[E]`` sum of the rewards, undiscounted.
        lengths: ``[E]`` in environment steps.
        agreement: share of the visited states in which ``reference`` acts alike; None without a reference.
    """

    seeds: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray
    agreement: float | None = None

    @property
    def env_steps(self) -> int:
        return int(self.lengths.sum())


def evaluate(
    policy: Policy | None,
    spec: EnvironmentSpec | str,
    seeds: Sequence[int],
    *,
    num_envs: int = BATCH,
    reference: Policy | None = None,
    envs: list[gym.Env] | None = None,
) -> Episodes:
    """Run one episode for each seed and return what it earned.

    The environment is reset with the episode's seed, its action space with one derived from it: with the same seed both would draw the
    same numbers, and "random" actions would follow what the environment drew. The returns do not depend on ``num_envs``.

    Args:
        policy: acts deterministically; None acts uniformly at random, drawing from the environment's action space.
        spec: the environment; a Gymnasium id or an entry of envs/ will do.
        seeds: one for each episode.
        num_envs: episodes run side by side.
        reference: a second policy that is asked about the same states, for ``agreement``: equal actions in a discrete space, every
            component within 5 % of its range in a continuous one.
        envs: made from ``spec`` before, to be used again; a list that is too short is filled up.
    """
    spec = resolve(spec) if isinstance(spec, str) else spec
    envs = [] if envs is None else envs
    count = min(num_envs, len(seeds))
    envs.extend(make(spec) for _ in range(count - len(envs)))
    envs = envs[:count]
    space = envs[0].action_space
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), np.int64)
    queue = iter(range(len(seeds)))
    running: list[int | None] = [None] * len(envs)
    observations: np.ndarray | None = None
    agreed = asked = 0

    def begin(slot: int) -> None:
        nonlocal observations
        running[slot] = episode = next(queue, None)
        if episode is None:
            return
        seed = int(seeds[episode])
        observation, _ = envs[slot].reset(seed=seed)
        envs[slot].action_space.seed(int(np.random.SeedSequence([seed, 1]).generate_state(1)[0]))
        if observations is None:
            rows = -(-len(envs) // BATCH) * BATCH
            observations = np.repeat(np.asarray(observation)[None], rows, axis=0)
        observations[slot] = observation

    for slot in range(len(envs)):
        begin(slot)
    while any(episode is not None for episode in running):
        assert observations is not None
        actions = None if policy is None else act_in_batches(policy, observations)
        if actions is not None and reference is not None:
            busy = [slot for slot, episode in enumerate(running) if episode is not None]
            agreed += int(alike(actions, act_in_batches(reference, observations), space)[busy].sum())
            asked += len(busy)
        for slot, episode in enumerate(running):
            if episode is None:
                continue
            env = envs[slot]
            action = env.action_space.sample() if actions is None else actions[slot]
            observation, reward, terminated, truncated, _ = env.step(action)
            returns[episode] += float(reward)
            lengths[episode] += 1
            if terminated or truncated:
                begin(slot)
            else:
                observations[slot] = observation
    return Episodes(np.asarray(seeds, np.int64), returns, lengths, agreed / asked if asked else None)


def act_in_batches(policy: Policy, observations: np.ndarray) -> np.ndarray:
    """Ask ``policy`` about ``observations`` ``[n * BATCH, ...]``, ``BATCH`` rows at a time."""
    if len(observations) == BATCH:
        return policy.act(observations)
    return np.concatenate([policy.act(observations[start : start + BATCH]) for start in range(0, len(observations), BATCH)])


def alike(first: np.ndarray, second: np.ndarray, space: gym.Space) -> np.ndarray:
    """Which rows of two batches of actions ``[B, ...]`` are the same decision: equal, or within 5 % of the range in each component."""
    if not isinstance(space, gym.spaces.Box):
        same = first == second
    else:
        span = np.where(np.isfinite(space.high) & np.isfinite(space.low), space.high - space.low, 2.0)
        same = np.abs(first - second) <= 0.05 * span
    return same.reshape(len(first), -1).all(axis=1)


def merge(parts: Sequence[Episodes]) -> Episodes:
    """Join episodes that were run apart, weighing agreement by steps, and sort them by seed."""
    order = np.argsort(np.concatenate([part.seeds for part in parts]), kind="stable")
    seeds, returns, lengths = (np.concatenate([getattr(part, name) for part in parts])[order] for name in ("seeds", "returns", "lengths"))
    known = [(part.agreement, part.env_steps) for part in parts if part.agreement is not None]
    total = sum(steps for _, steps in known)
    return Episodes(seeds, returns, lengths, sum(share * steps for share, steps in known) / total if total else None)
