"""The machine's limits: bare loops of the policy's forward passes and environment steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from policy_distill.environments.specs import EnvironmentSpec, make
from policy_distill.policies.policy import FeedForward
from policy_distill.rollouts.numpy_policies import actor


class Recording:
    """Recorded actions of a policy in a few environments, to be replayed by a minimal loop.

    Args:
        policy: the acting policy.
        spec: the environment.
        num_envs: N, stepped in turn as in a collector, so that CPU caches behave alike.
        num_steps: T, steps of each environment.
    """

    def __init__(self, policy: FeedForward, spec: EnvironmentSpec, *, num_envs: int, num_steps: int) -> None:
        self._act = actor(policy, num_envs)
        self._envs = [make(spec) for _ in range(num_envs)]
        self._rows: list[tuple[Sequence[Any], list[int]]] = []
        self._observations = observations = np.stack([env.reset(seed=slot)[0] for slot, env in enumerate(self._envs)])
        for _ in range(num_steps):
            actions = list(self._act(observations).copy())
            ended = []
            for slot, env in enumerate(self._envs):
                observations[slot], _, terminated, truncated, _ = env.step(actions[slot])
                if terminated or truncated:
                    ended.append(slot)
                    observations[slot], _ = env.reset(seed=slot)
            self._rows.append((actions, ended))

    def replay(self, *, with_policy: bool = True) -> int:
        """Replay the recorded actions and return the number of environment steps.

        Args:
            with_policy: also run the policy's forward pass on N rows before each step of all environments.
        """
        for slot, env in enumerate(self._envs):
            env.reset(seed=slot)
        steps = [env.step for env in self._envs]
        for actions, ended in self._rows:
            if with_policy:
                self._act(self._observations)
            for step, action in zip(steps, actions, strict=True):
                step(action)
            for slot in ended:
                self._envs[slot].reset(seed=slot)
        return len(self._rows) * len(self._envs)


class BareLoop:
    """A minimal loop of a policy and a vector environment.

    Args:
        policy: the acting policy.
        envs: a vector environment of ``environments.vector.make_vector`` or ``make_envpool``.
        num_envs: N, number of its environments.
        num_steps: T, steps of each environment.
    """

    def __init__(self, policy: FeedForward, envs: Any, *, num_envs: int, num_steps: int) -> None:
        self._act, self._envs, self._num_steps, self._num_envs = actor(policy, num_envs), envs, num_steps, num_envs
        self._observations = np.array(envs.reset()[0])

    def run(self) -> int:
        """Act and step, and return the number of environment steps."""
        for _ in range(self._num_steps):
            self._observations = self._envs.step(self._act(self._observations))[0]
        return self._num_steps * self._num_envs
