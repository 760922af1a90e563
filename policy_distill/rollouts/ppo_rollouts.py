"""Whole rollouts for PPO, taken in this process or in several; the result is the same.

A step of an environment takes less than two processes need to agree on it. Each process therefore has a copy of the policy, and takes all
steps of a rollout with its share of the environments before it answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from typing import Any

import gymnasium as gym
import numpy as np

from policy_distill.environments.border import Border, Finite, is_finite, not_finite, own_random_state
from policy_distill.policies.student import Student
from policy_distill.rollouts.numpy_policies import outputs_of
from policy_distill.rollouts.processes import Remote
from policy_distill.support import trees
from policy_distill.support.pending import Pending


@dataclass(frozen=True)
class Ended:
    """An episode that ended within a rollout.

    Attributes:
        step, index: when, and in which environment.
        truncated: by time alone.
        observation: the last one, after which the environment was reset.
        episode_return, length: of the whole episode.
    """

    step: int
    index: int
    truncated: bool
    observation: trees.Tree
    episode_return: float
    length: int


class SharedArray:
    """Zeros that processes which are started with it see alike."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._memory = RawArray("b", math.prod(shape) * self._dtype.itemsize)

    def view(self) -> np.ndarray:
        """The array itself."""
        return np.frombuffer(self._memory, self._dtype).reshape(self._shape)


@dataclass(frozen=True)
class Steps:
    """The arrays of one rollout of T steps in N environments, shared with the processes that write them.

    Attributes:
        observations: ``[T + 1, N, ...]``; the last one is where the next rollout begins.
        starts: ``[T + 1, N]``, whether an episode begins with this observation.
        actions: ``[T, N, components]`` as drawn: in box units and not clipped where continuous.
        rewards: ``[T, N]``.
    """

    observations: trees.Tree
    starts: SharedArray
    actions: SharedArray
    rewards: SharedArray

    def views(self, columns: slice = slice(None)) -> tuple[trees.Tree, np.ndarray, np.ndarray, np.ndarray]:
        """The arrays in this order, of some environments."""
        observations, starts, actions, rewards = (
            trees.map_leaves(lambda array: array.view()[:, columns], part)
            for part in (self.observations, self.starts, self.actions, self.rewards)
        )
        return observations, starts, actions, rewards


class RolloutEnv:
    """Environments in which a student with noise takes whole rollouts. Continuous actions are in box units, and clipped to the bounds.

    Args:
        env_fns: make one environment each.
        num_steps: T, of each environment in a rollout.
        seed: of the actions' noise, of which each environment has a stream of its own, and of its first episode in environment 0; it is
            one more in each further environment.
        workers: processes that share the environments; 0: all of them are stepped here.
        step_timeout: seconds that a step or a reset may take; there is one worker at least then. None or 0: any.

    Attributes:
        observations, starts, actions, rewards: what the last rollout wrote, see ``Steps``; the next one overwrites it.
    """

    @own_random_state()
    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env]],
        num_steps: int,
        *,
        seed: int = 0,
        workers: int = 0,
        step_timeout: float | None = None,
    ) -> None:
        example = env_fns[0]()
        space, inner = example.observation_space, example.action_space
        example.close()
        self._seed, num_envs = seed, len(env_fns)
        components, count = math.prod(inner.shape or ()), min(max(workers, 1) if step_timeout else workers, num_envs)
        steps = Steps(
            trees.of_space(space, lambda part: SharedArray((num_steps + 1, num_envs, *(part.shape or ())), part.dtype)),
            SharedArray((num_steps + 1, num_envs), bool),
            SharedArray((num_steps, num_envs, components), np.float32 if isinstance(inner, gym.spaces.Box) else np.int64),
            SharedArray((num_steps, num_envs), np.float64),
        )
        self.observations, self.starts, self.actions, self.rewards = steps.views()
        self._here = None if count else _Group(env_fns, 0, seed, steps)
        shares = np.array_split(np.arange(num_envs), count) if count else []
        arguments = [(env_fns[share[0] : share[-1] + 1], int(share[0]), seed, steps) for share in shares]
        self._workers = [Remote(_Group, *each, step_timeout=step_timeout) for each in arguments]

    def reset(self) -> None:
        """Begin an episode in each environment; the last row of ``observations`` holds where the next rollout begins."""
        self._all("reset", self._seed)

    def rollout(self, student: Student) -> list[Ended]:
        """Let ``student`` take T steps in each environment, with noise of its own standard deviation or entropy.

        Returns:
            The episodes that ended, in the order of their ends.
        """
        ended = [episode for part in self._all("rollout", student) for episode in part]
        return sorted(ended, key=lambda episode: (episode.step, episode.index))

    def _all(self, method: str, argument: Any) -> list[Any]:
        if self._here is not None:
            return [getattr(self._here, method)(argument)]
        return Pending.together([worker.ask(method, argument) for worker in self._workers]).result()

    def close(self) -> None:
        """Close the environments and end the processes."""
        if self._here is not None:
            self._here.close()
        for worker in self._workers:
            worker.close()
        self._workers = []


class _Group:
    """Environments stepped one after the other, which write their columns of arrays that hold those of all.

    Args:
        env_fns: make one environment each.
        first: column of the first of them.
        seed: of the noise.
        steps: what is written to.
    """

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env]], first: int, seed: int, steps: Steps) -> None:
        made = [make() for make in env_fns]
        self._envs = [env if isinstance(env, Border) else Border(env, str(env)) for env in made]
        self._columns = range(first, first + len(self._envs))
        self._streams = [np.random.default_rng([seed, 6, column]) for column in self._columns]
        self._observations, self._starts, self._actions, self._rewards = steps.views(slice(first, first + len(self._envs)))
        self._returns, self._lengths = [0.0] * len(self._envs), [0] * len(self._envs)

    @own_random_state()
    def reset(self, seed: int) -> None:
        self._returns, self._lengths = [0.0] * len(self._envs), [0] * len(self._envs)
        self._starts[-1] = True
        for row, env in enumerate(self._envs):
            trees.write(self._observations, (-1, row), env.reset(seed=seed + self._columns[row])[0])

    @own_random_state()
    def rollout(self, student: Student) -> list[Ended]:
        """T steps in each environment."""
        ended: list[Ended] = []
        trees.write(self._observations, 0, trees.rows(self._observations, -1))
        self._starts[0] = self._starts[-1]
        family, num_steps, count = student.family, len(self._rewards), len(self._envs)
        outputs, std = outputs_of(student, count), student.log_std.exp().numpy()
        executable = family.executable(self._envs[0].action_space)
        # An environment's draws do not depend on what shares its process.
        noise = np.stack([family.noise(stream, num_steps) for stream in self._streams], axis=1)
        all_finite = Finite(trees.rows(self._observations, 0))
        for step in range(num_steps):
            observations = trees.rows(self._observations, step)
            if not all_finite(observations):
                row = all_finite.first_wrong()
                raise not_finite(self._envs[row], trees.rows(observations, row))
            self._actions[step] = family.drawn(outputs(observations), std, noise[step])
            actions = executable(self._actions[step])
            for row, env in enumerate(self._envs):
                observation, reward, terminated, truncated, _ = env.step(actions[row])
                self._rewards[step, row] = reward
                self._returns[row] += float(reward)
                self._lengths[row] += 1
                over = terminated or truncated
                if over:
                    last = trees.copied(observation)  # the environment may write the next one into the same array
                    by_time = truncated and not terminated
                    if by_time and not is_finite(last):  # its value is asked for
                        raise not_finite(env, last)
                    ended.append(Ended(step, self._columns[row], by_time, last, self._returns[row], self._lengths[row]))
                    self._returns[row], self._lengths[row] = 0.0, 0
                    observation, _ = env.reset()
                trees.write(self._observations, (step + 1, row), observation)
                self._starts[step + 1, row] = over
        return ended

    def close(self) -> None:
        for env in self._envs:
            env.close()
