"""Whole rollouts for PPO, in this process or in a job's workers, with the same results.

An environment step is faster than a message between processes. Each process therefore has a copy of the policy and takes all steps of a
rollout in its share of the environments before it sends the results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from policy_distill.environments.border import Border, is_finite, not_finite, own_random_state
from policy_distill.environments.vector import GOES_ON, SequentialEnvs, Slots
from policy_distill.policies.policy import Memoryless, State
from policy_distill.policies.student import Student
from policy_distill.rollouts.acting import Player, labelling
from policy_distill.rollouts.numpy_policies import Labels, RecurrentOutputs, outputs_of
from policy_distill.rollouts.processes import Host, Local, Site
from policy_distill.rollouts.stream import Results, Streams, stream
from policy_distill.support import trees
from policy_distill.support.pending import Pending
from policy_distill.support.trees import Tree
from policy_distill.teachers import RecurrentTeacher


@dataclass(frozen=True)
class Ended:
    """An episode that ended within a rollout.

    Attributes:
        step, index: step of the rollout and environment.
        truncated: True if only a time limit ended the episode.
        observation: the last observation before the reset.
        episode_return, length: return and steps of the whole episode.
    """

    step: int
    index: int
    truncated: bool
    observation: Tree
    episode_return: float
    length: int


@dataclass(frozen=True)
class Steps:
    """One rollout of T steps in N environments.

    Attributes:
        observations: ``[T + 1, N, ...]``; the last one is where the next rollout begins.
        starts: ``[T + 1, N]``, True where an episode begins with this observation.
        actions: ``[T, N, components]`` as sampled; continuous ones are in box units and not clipped.
        rewards: ``[T, N]``, float64.
        ended: the episodes that ended.
        labels: ``actions`` and parameters of a recurrent teacher, ``[T, N, ...]``; empty without one.
    """

    observations: Tree
    starts: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    ended: list[Ended]
    labels: dict[str, np.ndarray]


class RolloutEnv:
    """Environments for whole rollouts of a student that samples its actions. Continuous actions are in box units, clipped to the bounds.

    Args:
        env_fns: make one environment each; they are pickled to be sent to a process.
        num_steps: T, steps of each environment in a rollout.
        seed: seeds the action noise, with a separate stream for each environment, and the first episodes: environment i begins with
            ``seed + i``.
        teacher: labels the student's episodes; None: no labels.
        sites: processes, each with a ``Host``, that share the environments; empty: all run in this process.

    Attributes:
        observations, starts, actions, rewards, labels: the last rollout; see ``Steps``.
    """

    observations: Tree
    starts: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    labels: dict[str, np.ndarray]

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env]],
        num_steps: int,
        *,
        seed: int = 0,
        teacher: RecurrentTeacher | None = None,
        sites: Sequence[Site] = (),
    ) -> None:
        num_envs = len(env_fns)
        self._sites = list(sites or [Local(Host())])[:num_envs]
        shares = np.array_split(np.arange(num_envs), len(self._sites))
        arguments = [(env_fns[share[0] : share[-1] + 1], int(share[0]), num_envs, num_steps, seed, teacher) for share in shares]
        hosted = [site.submit("host", _NAME, _Group, *each, changes=_NAME) for site, each in zip(self._sites, arguments, strict=True)]
        Pending.together(hosted).result()

    def reset(self) -> Tree:
        """Begin an episode in each environment and return the first observations ``[N, ...]``."""
        return trees.concatenate(self._all("reset"))

    def rollout(self, student: Student) -> list[Ended]:
        """Take T steps in each environment with actions sampled from ``student``'s distribution.

        The state of a student with a memory goes on from one rollout to the next.

        Returns:
            The episodes that ended, in the order of their ends.
        """
        parts: list[Steps] = self._all("rollout", student)
        self.observations = trees.concatenate([part.observations for part in parts], axis=1)
        self.starts, self.actions, self.rewards = (
            np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("starts", "actions", "rewards")
        )
        self.labels = {name: np.concatenate([part.labels[name] for part in parts], axis=1) for name in parts[0].labels}
        return sorted((episode for part in parts for episode in part.ended), key=lambda episode: (episode.step, episode.index))

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        return Pending.together([site.submit("call", _NAME, method, *arguments, changes=_NAME) for site in self._sites]).result()

    def close(self) -> None:
        """Close the environments."""
        for site in self._sites:
            site.forget(_NAME)
        Pending.together([site.submit("release", _NAME) for site in self._sites]).result()


_NAME = "rollouts of PPO"
"""Name of the environments in a ``Host``."""


class _Group:
    """Environments stepped one after the other.

    Args:
        env_fns: make one environment each.
        first: column of the first environment.
        num_envs: number of environments in all groups.
        num_steps: T.
        seed: seeds the noise and the first episodes.
        teacher: labels the episodes; None: no labels.
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env]],
        first: int,
        num_envs: int,
        num_steps: int,
        seed: int,
        teacher: RecurrentTeacher | None = None,
    ) -> None:
        made = [make() for make in env_fns]
        self._envs = [env if isinstance(env, Border) else Border(env, str(env)) for env in made]
        self._columns, self._num_steps = range(first, first + len(made)), num_steps
        group = SequentialEnvs(self._envs, num_envs, lambda episode: seed + episode if episode < num_envs else None, self._end)
        self._streams = Streams([(slice(0, len(made)), group)], self._columns)
        self._labelling = None if teacher is None else labelling(teacher, len(made))
        self._generators = [np.random.default_rng([seed, 6, column]) for column in self._columns]

    @own_random_state()
    def reset(self) -> Tree:
        self._memory: State = None
        self._returns, self._lengths = np.zeros(len(self._envs)), np.zeros(len(self._envs), np.int64)
        self._labeller = None if self._labelling is None else Player(self._labelling, len(self._envs))
        self._streams.reset()
        return self._streams.slots.observations

    @own_random_state()
    def rollout(self, student: Student) -> Steps:
        """T steps in each environment."""
        family, num_steps, count, slots = student.family, self._num_steps, len(self._envs), self._streams.slots
        space = self._streams.action_space
        self._observations = trees.map_leaves(lambda leaf: np.empty((num_steps + 1, *leaf.shape), leaf.dtype), slots.observations)
        self._starts, self._rewards = np.empty((num_steps + 1, count), bool), np.empty((num_steps, count))
        self._terminated, self._truncated = np.empty((num_steps, count), bool), np.empty((num_steps, count), bool)
        actions = np.empty((num_steps, count, math.prod(space.shape or ())), np.float32 if isinstance(space, gym.spaces.Box) else np.int64)
        std, executable = student.log_std.exp().numpy(), family.executable(space)
        policy = RecurrentOutputs(student, count) if student.architecture.memory else Memoryless(outputs_of(student, count))
        outputs = Player(policy, count, self._memory)
        # An environment's noise does not depend on the other environments of its process.
        noise = np.stack([family.noise(generator, num_steps) for generator in self._generators], axis=1)
        self._labels: dict[str, np.ndarray] = {}
        self._last: list[list[tuple[bool, Tree]]] = [[] for _ in self._envs]

        def act(step: int, slots: Slots, labels: Labels | None) -> np.ndarray:
            actions[step] = family.drawn(outputs(slots.observations, slots.starts), std, noise[step])
            return executable(actions[step])

        stream(self._streams, num_steps, act, self._labeller, self)
        self._note(num_steps, slots)
        self._memory = outputs.state
        return Steps(self._observations, self._starts, actions, self._rewards, self._ended(), self._labels)

    def record(self, step: int, slots: Slots, labels: Labels | None) -> Results:
        self._note(step, slots)
        if labels is not None:
            for name, values in {**labels[0], "actions": labels[1]}.items():
                if name not in self._labels:
                    self._labels[name] = np.empty((self._num_steps, *values.shape), values.dtype)
                self._labels[name][step] = values
        return self._rewards[step], self._terminated[step], self._truncated[step]

    def _note(self, step: int, slots: Slots) -> None:
        trees.write(self._observations, step, slots.observations)
        np.not_equal(slots.starts, GOES_ON, out=self._starts[step])

    def _end(self, row: int, observation: Tree, by_time: bool) -> None:
        last = trees.copied(observation)  # the environment may write the next one into the same array
        if by_time and not is_finite(last):  # PPO bootstraps from its value
            raise not_finite(self._envs[row], last)
        self._last[row].append((by_time, last))

    def _ended(self) -> list[Ended]:
        """The episodes that ended in this rollout; returns and lengths of the others carry over to the next."""
        ended, over = [], self._terminated | self._truncated
        for row, column in enumerate(self._columns):
            begin = 0
            for end, (by_time, last) in zip([*np.flatnonzero(over[:, row]), len(over) - 1], [*self._last[row], (False, None)], strict=True):
                rewards = self._rewards[begin : end + 1, row]
                # sequential, as in evaluation: numpy's sum adds in another order
                self._returns[row] = np.append(self._returns[row], rewards).cumsum()[-1]
                self._lengths[row] += len(rewards)
                begin = end + 1
                if last is not None:
                    ended.append(Ended(int(end), column, by_time, last, float(self._returns[row]), int(self._lengths[row])))
                    self._returns[row] = self._lengths[row] = 0
        return ended

    def close(self) -> None:
        self._streams.close()
