"""Whole episodes step by step: what was seen, done and earned. ``evaluate`` keeps the sums alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from policy_distill.config import RequestError
from policy_distill.environments.border import Border, Finite, not_finite, own_random_state
from policy_distill.environments.specs import LONG_EPISODE, EnvironmentSpec, endless, make, time_limit
from policy_distill.rollouts.episodes import SIDE_BY_SIDE, Policy, evaluation_seeds, random_actions
from policy_distill.rollouts.numpy_policies import actor
from policy_distill.support import trees


@dataclass(frozen=True)
class Trajectory:
    """One episode of T steps.

    Attributes:
        seed: of the episode.
        observations: ``[T, ...]``, on each of which an action was taken.
        actions: ``[T, ...]`` as the environment received them.
        rewards: ``[T]``, float64.
        last_observation: ``[...]``, after the last step.
        terminated, truncated: how it ended; neither, if it was cut off.
    """

    seed: int
    observations: trees.Tree
    actions: np.ndarray
    rewards: np.ndarray
    last_observation: trees.Tree
    terminated: bool
    truncated: bool

    @property
    def episode_return(self) -> float:
        """Sum of the rewards, added one after the other as ``evaluate`` does: in another order the last bit would be another.

        ``sum`` will not do: from Python 3.12 on it carries what rounding loses.
        """
        return float(np.cumsum(self.rewards)[-1]) if len(self.rewards) else 0.0

    @property
    def ended(self) -> bool:
        """False if the episode was still going on when ``max_steps`` cut it off."""
        return self.terminated or self.truncated


@own_random_state()
def play(policy: Policy | None, spec: EnvironmentSpec, seeds: Sequence[int], *, max_steps: int | None = None) -> list[Trajectory]:
    """Run one episode for each seed, ``SIDE_BY_SIDE`` at a time, and keep every step.

    The episodes are those of ``evaluate``: same seeds, same returns.

    Args:
        policy: acts; None acts uniformly at random, as in ``evaluate``.
        spec: the environment.
        seeds: one for each episode.
        max_steps: steps after which an episode is cut off; None: only the environment ends it.

    Returns:
        the episodes in the order of ``seeds``.

    Raises:
        EnvironmentFault: as ``evaluate``.
    """
    envs = [make(spec) for _ in range(min(SIDE_BY_SIDE, len(seeds)))]
    try:
        groups = [seeds[start : start + SIDE_BY_SIDE] for start in range(0, len(seeds), SIDE_BY_SIDE)]
        return [episode for group in groups for episode in _play_side_by_side(policy, envs, group, max_steps)]
    finally:
        for env in envs:
            env.close()


def check_ends(spec: EnvironmentSpec, policies: Mapping[str, Policy | None]) -> None:
    """Play an episode of each policy where no time limit is known.

    Args:
        spec: the environment.
        policies: by who they are, in words; None acts at random.

    Raises:
        RequestError: if one does not end in ``LONG_EPISODE`` steps.
    """
    if time_limit(spec) is not None:
        return
    for who, policy in policies.items():
        if not play(policy, spec, evaluation_seeds("check", 1), max_steps=LONG_EPISODE)[0].ended:
            raise RequestError("; ".join(endless(spec, who, LONG_EPISODE)))


class _Recording:
    """An episode that is going on."""

    def __init__(self, env: Border, seed: int) -> None:
        self.env, self.seed = env, seed
        observation, _ = env.reset(seed=seed)
        self.chance = random_actions(env.action_space, seed)
        self.observation = trees.map_leaves(np.asarray, observation)
        self.observations: list[trees.Tree] = []
        self.actions: list[np.ndarray] = []
        self.rewards: list[float] = []
        self.terminated = self.truncated = False

    def step(self, action: np.ndarray | None) -> bool:
        """Take one step, with an action drawn at random for None; say whether the episode goes on."""
        executed = next(self.chance) if action is None else action
        self.observations.append(trees.copied(self.observation))
        self.actions.append(np.array(executed))
        observation, reward, self.terminated, self.truncated, _ = self.env.step(executed)
        self.observation = trees.map_leaves(np.asarray, observation)
        self.rewards.append(float(reward))
        return not (self.terminated or self.truncated)

    def done(self) -> Trajectory:
        arrays = trees.stack(self.observations), np.stack(self.actions), np.array(self.rewards)
        return Trajectory(self.seed, *arrays, trees.copied(self.observation), bool(self.terminated), bool(self.truncated))


def _play_side_by_side(policy: Policy | None, envs: list[Border], seeds: Sequence[int], max_steps: int | None) -> list[Trajectory]:
    recordings = [_Recording(env, int(seed)) for env, seed in zip(envs, seeds, strict=False)]
    batch = trees.stack([recording.observation for recording in recordings])
    all_finite = Finite(batch)
    act = None if policy is None else actor(policy, len(recordings))
    going = list(range(len(recordings)))
    while going:
        for slot in going:
            trees.write(batch, slot, recordings[slot].observation)
        if not all_finite(batch):
            wrong = recordings[all_finite.first_wrong()]
            raise not_finite(wrong.env, wrong.observation, wrong.actions[-1] if wrong.actions else None)
        actions = None if act is None else act(batch)
        going = [
            slot
            for slot in going
            if recordings[slot].step(None if actions is None else actions[slot])
            and (max_steps is None or len(recordings[slot].rewards) < max_steps)
        ]
    return [recording.done() for recording in recordings]
