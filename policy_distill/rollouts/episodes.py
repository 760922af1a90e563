"""The return of a policy over episodes with one seed each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from policy_distill.environments.border import own_random_state
from policy_distill.environments.specs import EnvironmentSpec, resolve
from policy_distill.policies.actions import Box
from policy_distill.policies.policy import Policy
from policy_distill.rollouts.play import SIDE_BY_SIDE, Ended, Recorder, play
from policy_distill.support.trees import Tree

_FIRST_SEEDS = {"final": 1_000_000, "validation": 2_000_000, "check": 3_000_000, "comparison": 4_000_000, "certificate": 5_000_000}


def evaluation_seeds(purpose: str, episodes: int) -> list[int]:
    """Seeds that the round is chosen on ("validation"), that the figure is taken on ("final"), that the teacher is looked at on before the
    work ("check"), that states for further training may be taken from ("comparison"), and for certificates ("certificate"); no two share
    a seed, all are the same in every run."""
    first = _FIRST_SEEDS[purpose]
    return list(range(first, first + episodes))


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


class Returns(Recorder):
    """Return and length of each of E episodes.

    Attributes:
        returns, lengths: ``[E]``.
        over: ``[E]``, False where an episode was cut off.
    """

    def __init__(self, episodes: int) -> None:
        self.returns, self.lengths, self.over = np.zeros(episodes), np.zeros(episodes, np.int64), np.zeros(episodes, bool)

    def ended(self, end: Ended) -> None:
        self.returns[end.episode], self.lengths[end.episode] = end.episode_return, end.length
        self.over[end.episode] = end.terminated or end.truncated


class _Agreement(Returns):
    """And in how many states two policies act alike."""

    def __init__(self, episodes: int, policies: Sequence[Policy | None]) -> None:
        super().__init__(episodes)
        self._policies, self.agreed = policies, 0

    def opened(self, envs: Sequence[gym.Env]) -> None:
        self._margin = _margin(envs[0].action_space, *self._policies)

    def acted(self, observations: Tree, answers: Sequence[Any], running: list[int]) -> None:
        self.agreed += int(_alike_within(self._margin, *answers)[running].sum())


@own_random_state()
def evaluate(
    policy: Policy | None,
    spec: EnvironmentSpec | str,
    seeds: Sequence[int],
    *,
    num_envs: int = SIDE_BY_SIDE,
    reference: Policy | None = None,
    envs: list[gym.Env] | None = None,
) -> Episodes:
    """Run one episode for each seed and return what it earned; see ``play``.

    Args:
        policy: acts; None acts at random, see ``RandomPolicy``.
        spec: the environment; a Gymnasium id or an entry of envs/ will do.
        seeds: one for each episode.
        num_envs: episodes run side by side; the returns do not depend on it.
        reference: a second policy that is asked about the same states, for ``agreement``: equal actions in a discrete space, every
            component within 5 % of its range in a continuous one; see ``alike``.
        envs: made from ``spec`` before, to be used again; a list that is too short is filled up.

    Raises:
        EnvironmentFault: if an environment fails, does not end, or gives observations or rewards that are not finite.
    """
    spec = resolve(spec) if isinstance(spec, str) else spec
    asked = [policy] if policy is None or reference is None else [policy, reference]
    recorder = Returns(len(seeds)) if len(asked) == 1 else _Agreement(len(seeds), asked)
    play(asked, spec, seeds, recorder, num_envs=num_envs, envs=envs)
    agreement = recorder.agreed / int(recorder.lengths.sum()) if isinstance(recorder, _Agreement) and len(seeds) else None
    return Episodes(np.asarray(seeds, np.int64), recorder.returns, recorder.lengths, agreement)


def alike(first: np.ndarray, second: np.ndarray, space: gym.Space, *policies: object) -> np.ndarray:
    """Which rows of two batches of actions ``[B, ...]`` are the same decision: equal, or within 5 % of the range in each component.

    The range is that of the box units of the first of ``policies`` that has units of its own, else that of the bounds.
    """
    return _alike_within(_margin(space, *policies), first, second)


def _margin(space: gym.Space, *policies: object) -> np.ndarray | None:
    """How far apart two equal components may be; None where they must be the same."""
    if not isinstance(space, gym.spaces.Box):
        return None
    for policy in policies:
        box = getattr(getattr(policy, "family", None), "box", None)
        if isinstance(box, Box) and box.units is not None:
            return 0.1 * box.affine()[0].reshape(space.shape)
    with np.errstate(over="ignore", invalid="ignore"):  # where the range is beyond float32, or there is none
        between = space.high - space.low
    between = np.where(np.isinf(between), space.high.astype(np.float64) - space.low, between) if np.isinf(between).any() else between
    return 0.05 * np.where(np.isfinite(between), between, 2.0)


def _alike_within(margin: np.ndarray | None, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    same = first == second if margin is None else np.abs(first - second) <= margin
    return same if same.ndim == 1 else same.reshape(len(same), -1).all(axis=1)


def merge(parts: Sequence[Episodes]) -> Episodes:
    """Join episodes that were run apart, weighing agreement by steps, and sort them by seed."""
    order = np.argsort(np.concatenate([part.seeds for part in parts]), kind="stable")
    seeds, returns, lengths = (np.concatenate([getattr(part, name) for part in parts])[order] for name in ("seeds", "returns", "lengths"))
    known = [(part.agreement, part.env_steps) for part in parts if part.agreement is not None]
    total = sum(steps for _, steps in known)
    return Episodes(seeds, returns, lengths, sum(share * steps for share, steps in known) / total if total else None)
