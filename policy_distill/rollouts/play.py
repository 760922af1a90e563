"""Whole episodes, one for each seed: the loop behind evaluation, trajectories and videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from policy_distill.environments.border import Finite, not_finite
from policy_distill.environments.specs import EnvironmentSpec, make
from policy_distill.environments.vector import GOES_ON
from policy_distill.policies.policy import Policy
from policy_distill.rollouts.acting import Player, acting
from policy_distill.support import trees
from policy_distill.support.trees import Tree

SIDE_BY_SIDE = 16
"""Default number of parallel episodes; results do not depend on it."""


class Ended(NamedTuple):
    """An episode that ended or was cut off.

    Attributes:
        slot: the environment in which it was played.
        episode: index of its seed.
        episode_return: sum of its rewards, added one after the other.
        length: in environment steps.
        observation: after the last step; the environment may overwrite it.
        terminated, truncated: how it ended; both False if it was cut off.
    """

    slot: int
    episode: int
    episode_return: float
    length: int
    observation: Any
    terminated: bool
    truncated: bool


class Recorder:
    """Callbacks of ``play``; subclasses record what they need. This class records nothing."""

    def opened(self, envs: Sequence[gym.Env]) -> None:
        """Called once, with the environments of the episodes."""

    def began(self, slot: int, episode: int) -> None:
        """Called after environment ``slot`` was reset with the seed at index ``episode``."""

    def acted(self, observations: Tree, policy_actions: Sequence[Any], running: list[int]) -> None:
        """Called before a step with observations ``[N, ...]`` and each policy's actions; the first policy's are executed in ``running``."""

    def stepped(self, rewards: list[float], running: list[int]) -> None:
        """Called after a step of the slots ``running``; ``rewards`` is ``[N]``."""

    def ended(self, end: Ended) -> None:
        """Called after an episode ended or was cut off."""


def play(
    policies: Sequence[Policy | None],
    spec: EnvironmentSpec,
    seeds: Sequence[int],
    recorder: Recorder,
    *,
    num_envs: int = SIDE_BY_SIDE,
    max_steps: int | None = None,
    envs: list[gym.Env] | None = None,
) -> None:
    """Run one episode for each seed, which the environment is reset with. Episodes do not depend on ``num_envs``.

    Args:
        policies: the first one acts, the others are evaluated on the same states; None acts at random, see ``RandomPolicy``.
        spec: the environment.
        seeds: one for each episode.
        recorder: receives the callbacks.
        num_envs: number of parallel episodes.
        max_steps: steps after which an episode is cut off; None: only the environment ends it.
        envs: environments made from ``spec`` earlier, to be reused; missing ones are made and appended. None: all are made here and
            closed at the end.

    Raises:
        EnvironmentFault: if an environment fails, does not end, or returns observations or rewards that are not finite.
    """
    made: list[gym.Env] = []
    try:
        if len(seeds):
            _play(policies, spec, seeds, recorder, min(num_envs, len(seeds)), max_steps, made if envs is None else envs)
    finally:
        for env in made:
            env.close()


def _play(
    policies: Sequence[Policy | None],
    spec: EnvironmentSpec,
    seeds: Sequence[int],
    recorder: Recorder,
    count: int,
    max_steps: int | None,
    envs: list[gym.Env],
) -> None:
    envs.extend(make(spec) for _ in range(count - len(envs)))
    recorder.opened(envs[:count])
    resets, steps = ([getattr(env, name) for env in envs[:count]] for name in ("reset", "step"))
    players = [Player(acting(policy, count, envs[0].action_space), count) for policy in policies]
    observations = trees.zeros(envs[0].observation_space, count)
    all_finite, in_parts = Finite(observations), isinstance(observations, dict)
    queue = iter(range(len(seeds)))
    episodes, began, rewards, totals = [0] * count, [0] * count, [0.0] * count, [0.0] * count
    starts: np.ndarray | None = np.full(count, GOES_ON)
    step = 0
    policy_actions: list[Any] = []

    def begin(slot: int) -> bool:
        """Start the next episode, if there is one."""
        nonlocal starts
        episode = next(queue, None)
        if episode is None:
            return False
        episodes[slot], began[slot], totals[slot] = episode, step, 0.0
        trees.write(observations, slot, resets[slot](seed=int(seeds[episode]))[0])
        starts = np.full(count, GOES_ON) if starts is None else starts
        starts[slot] = seeds[episode]
        recorder.began(slot, episode)
        return True

    running = [slot for slot in range(count) if begin(slot)]
    while running:
        if not all_finite(observations):
            slot = all_finite.first_wrong()
            raise not_finite(envs[slot], trees.rows(observations, slot), policy_actions[0][slot] if policy_actions else None)
        policy_actions = [player(observations, starts) for player in players]
        recorder.acted(observations, policy_actions, running)
        actions, starts = policy_actions[0], None
        step += 1
        over: list[tuple[int, Any, bool, bool]] = []
        for slot in running:
            observation, reward, terminated, truncated, _ = steps[slot](actions[slot])
            rewards[slot] = reward
            totals[slot] += reward
            if terminated or truncated:
                over.append((slot, observation, terminated, truncated))
            elif in_parts:
                trees.write(observations, slot, observation)
            else:  # skips a function call that costs two per cent of the loop
                observations[slot] = observation
        recorder.stepped(rewards, running)
        if max_steps is not None:
            ended = {slot for slot, *_ in over}
            cut = (slot for slot in running if step - began[slot] >= max_steps and slot not in ended)
            over += [(slot, trees.rows(observations, slot), False, False) for slot in cut]
        for slot, *how in over:
            recorder.ended(Ended(slot, episodes[slot], totals[slot], step - began[slot], *how))
            if not begin(slot):
                running.remove(slot)
