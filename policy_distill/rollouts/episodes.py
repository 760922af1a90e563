"""The return of a policy over episodes with one seed each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from policy_distill.config.stages import MAX_EPISODES
from policy_distill.environments.border import own_random_state
from policy_distill.environments.specs import EnvironmentSpec, resolve
from policy_distill.policies.actions import Box
from policy_distill.policies.policy import Policy
from policy_distill.rollouts.play import SIDE_BY_SIDE, Ended, Recorder, play
from policy_distill.support.trees import Tree

_FIRST_SEEDS = {"final": 1_000_000, "validation": 2_000_000, "check": 3_000_000, "comparison": 4_000_000, "certificate": 5_000_000}


def evaluation_seeds(purpose: str, episodes: int) -> list[int]:
    """Evaluation seeds, the same in every run and disjoint between purposes.

    Args:
        purpose: "validation" selects the round, "final" measures the reported return, "check" evaluates the teacher before training,
            "comparison" provides states for further training, "certificate" is for certificates.
        episodes: number of seeds.

    Raises:
        ValueError: for more than ``MAX_EPISODES``.
    """
    if episodes > MAX_EPISODES:
        raise ValueError(f"there are {MAX_EPISODES:,} seeds for {purpose}, not {episodes:,}")
    first = _FIRST_SEEDS[purpose]
    return list(range(first, first + episodes))


@dataclass(frozen=True)
class Episodes:
    """Returns of episodes, in the order of their seeds.

    Attributes:
        seeds: ``[E]``.
        returns: ``[E]`` sum of the rewards, undiscounted.
        lengths: ``[E]`` in environment steps.
        agreement: fraction of the visited states in which ``reference`` takes the same action; None without a reference.
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
    """Returns, and the number of states in which two policies take the same action."""

    def __init__(self, episodes: int, policies: Sequence[Policy | None]) -> None:
        super().__init__(episodes)
        self._policies, self.agreed = policies, 0

    def opened(self, envs: Sequence[gym.Env]) -> None:
        self._margin = _margin(envs[0].action_space, *self._policies)

    def acted(self, observations: Tree, policy_actions: Sequence[Any], running: list[int]) -> None:
        self.agreed += int(_alike_within(self._margin, *policy_actions)[running].sum())


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
    """Returns of one episode for each seed; see ``play``.

    Args:
        policy: the acting policy; None acts at random, see ``RandomPolicy``.
        spec: the environment: a spec, a Gymnasium id or an entry of envs/.
        seeds: one for each episode.
        num_envs: number of parallel episodes; the returns do not depend on it.
        reference: a second policy evaluated on the same states, for ``agreement``: actions agree if they are equal in a discrete space,
            or if every component is within 5 % of its range in a continuous one; see ``alike``.
        envs: environments made from ``spec`` earlier, to be reused; missing ones are made and appended.

    Raises:
        EnvironmentFault: if an environment fails, does not end, or returns observations or rewards that are not finite.
    """
    spec = resolve(spec) if isinstance(spec, str) else spec
    policies = [policy] if policy is None or reference is None else [policy, reference]
    recorder = Returns(len(seeds)) if len(policies) == 1 else _Agreement(len(seeds), policies)
    play(policies, spec, seeds, recorder, num_envs=num_envs, envs=envs)
    agreement = recorder.agreed / int(recorder.lengths.sum()) if isinstance(recorder, _Agreement) and len(seeds) else None
    return Episodes(np.asarray(seeds, np.int64), recorder.returns, recorder.lengths, agreement)


def alike(first: np.ndarray, second: np.ndarray, space: gym.Space, *policies: object) -> np.ndarray:
    """Mask ``[B]`` of the rows in which two batches of actions agree: equal, or within 5 % of the range in each component.

    The range is taken from the box units of the first of ``policies`` that has custom units, else from the bounds.
    """
    return _alike_within(_margin(space, *policies), first, second)


def _margin(space: gym.Space, *policies: object) -> np.ndarray | None:
    """The largest difference at which components of actions agree; None where actions must be equal."""
    if not isinstance(space, gym.spaces.Box):
        return None
    for policy in policies:
        box = getattr(getattr(policy, "family", None), "box", None)
        if isinstance(box, Box) and box.units is not None:
            return 0.1 * box.affine()[0].reshape(space.shape)
    with np.errstate(over="ignore", invalid="ignore"):  # bounds may be infinite, or their difference beyond float32
        span = space.high - space.low
    span = np.where(np.isinf(span), space.high.astype(np.float64) - space.low, span) if np.isinf(span).any() else span
    return 0.05 * np.where(np.isfinite(span), span, 2.0)


def _alike_within(margin: np.ndarray | None, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    same = first == second if margin is None else np.abs(first - second) <= margin
    return same if same.ndim == 1 else same.reshape(len(same), -1).all(axis=1)


def merge(parts: Sequence[Episodes]) -> Episodes:
    """Join the episodes of several workers and sort them by seed; agreement is weighted by steps.

    All figures are those of one worker that played all episodes, bit for bit.
    """
    order = np.argsort(np.concatenate([part.seeds for part in parts]), kind="stable")
    seeds, returns, lengths = (np.concatenate([getattr(part, name) for part in parts])[order] for name in ("seeds", "returns", "lengths"))
    known = [(part.agreement, part.env_steps) for part in parts if part.agreement is not None]
    agreed, total = sum(round(share * steps) for share, steps in known), sum(steps for _, steps in known)
    return Episodes(seeds, returns, lengths, agreed / total if total else None)
