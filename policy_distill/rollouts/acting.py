"""Policies in the loops that step environments: what a row is answered depends on its own episode alone, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from policy_distill.environments.vector import GOES_ON
from policy_distill.policies.memories import Lstm
from policy_distill.policies.policy import Memoryless, Policy, State, Stateful, StatefulTeacher
from policy_distill.policies.rowwise import Layers
from policy_distill.policies.student import Student
from policy_distill.policies.views import View
from policy_distill.rollouts.numpy_policies import Labels, RecurrentActor, actor, encoder, executable, head, labeller, student_actor
from policy_distill.rollouts.random_policy import RandomPolicy
from policy_distill.support import trees
from policy_distill.support.trees import Tree
from policy_distill.teachers import RecurrentTeacher, Teacher


class OneByOne:
    """A policy of unknown code, asked about one environment at a time, with a state for each.

    Args:
        initial_state, step: of the policy; see ``policies.policy.Stateful``.
        join: makes an answer about N environments of N answers.
    """

    def __init__(self, initial_state: Callable[[int], State], step: Callable[..., tuple[Any, State]], join: Callable[[list], Any]) -> None:
        self._initial_state, self._step, self._join = initial_state, step, join

    def initial_state(self, num_envs: int) -> State:
        return [self._initial_state(1) for _ in range(num_envs)]

    def step(self, observations: Tree, state: State, starts: np.ndarray | None) -> tuple[Any, State]:
        answers = []
        for row in range(len(state)):
            own = slice(row, row + 1)
            # a copy where torch allocates it: kernels may round differently elsewhere
            seen = trees.map_leaves(lambda leaf, own=own: torch.tensor(leaf[own]).numpy(), observations)
            answer, state[row] = self._step(seen, state[row], None if starts is None else starts[own])
            answers.append(answer)
        return self._join(answers), state


class ActingRecurrent:
    """``teacher.step`` and ``teacher.label`` in exactly ``rows`` environments, a ``policies.policy.StatefulTeacher``.

    An answer depends on the row's own episode alone, bit for bit. Its values agree with the teacher's to rounding.

    Args:
        teacher: on the CPU.
        rows: N, of every call.

    Raises:
        ValueError: if the teacher is not on the CPU.
    """

    def __init__(self, teacher: RecurrentTeacher, rows: int) -> None:
        if teacher.anchor.device.type != "cpu":
            raise ValueError("the teacher is not on the CPU, where environments are stepped: move it there")
        network = teacher.network
        answer = head(network.head, rows)
        assert answer is not None, "a memory is followed by layers that were rebuilt"
        self._encode, self._features, self._answer = encoder(teacher, rows), Layers(network.features, rows), answer
        self._lstm, self._executed = Lstm(network.lstm, rows), executable(teacher.action_space, rows)

    def initial_state(self, num_envs: int) -> dict[str, np.ndarray]:
        return self._lstm.initial_state(num_envs)

    def label(self, observations: Tree, state: Any, starts: np.ndarray | None) -> tuple[Labels, dict[str, np.ndarray]]:
        """``Labels``, which the next question may overwrite, and the state; see ``StatefulTeacher.label``."""
        output, state = self._lstm(self._features(self._encode(observations)), state, None if starts is None else starts != GOES_ON)
        return self._answer(output), state

    def step(self, observations: Tree, state: Any, starts: np.ndarray | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        (_, actions), state = self.label(observations, state, starts)
        return self._executed(actions), state


@dataclass(frozen=True)
class Labelling:
    """A policy of the two functions, see ``policies.policy.Stateful``."""

    initial_state: Callable[[int], State]
    step: Callable[[Tree, State, np.ndarray | None], tuple[Any, State]]


class Viewing:
    """A student that sees its own view of the observations.

    Args:
        view: from raw observations to what it sees.
        policy: acts on what it sees.
    """

    def __init__(self, view: View, policy: Stateful) -> None:
        self._view, self._policy = view, policy

    def initial_state(self, num_envs: int) -> State:
        return self._view.initial_state(num_envs), self._policy.initial_state(num_envs)

    def step(self, observations: Tree, state: State, starts: np.ndarray | None) -> tuple[np.ndarray, State]:
        seen, viewed = self._view.step(observations, state[0], starts)
        actions, own = self._policy.step(seen, state[1], starts)
        return actions, (viewed, own)


class Player:
    """A policy that acts, or labels, in N environments, and its state there.

    Args:
        policy: see ``acting`` and ``labelling``.
        num_envs: N.
        state: with which it goes on; None: that of the beginning.
    """

    def __init__(self, policy: Stateful, num_envs: int, state: State = None) -> None:
        self._step = policy.step
        self.state = policy.initial_state(num_envs) if state is None else state

    def __call__(self, observations: Tree, starts: np.ndarray | None) -> Any:
        """Its answer to observations ``[N, ...]``; see ``policies.policy.Stateful.step``."""
        answer, self.state = self._step(observations, self.state, starts)
        return answer


def acting(policy: Policy | None, rows: int, space: gym.Space) -> Stateful:
    """``policy`` as it acts in ``rows`` environments whose actions lie in ``space``; None acts at random."""
    if policy is None:
        return RandomPolicy(space)
    if isinstance(policy, Memoryless | RandomPolicy):
        return policy
    if isinstance(policy, RecurrentTeacher):
        return ActingRecurrent(policy, rows)
    if isinstance(policy, Student):
        sees: Stateful = RecurrentActor(policy, rows) if policy.architecture.memory else Memoryless(student_actor(policy, rows))
        return sees if policy.view is None else Viewing(policy.view, sees)
    if isinstance(policy, Stateful):
        return OneByOne(policy.initial_state, policy.step, np.concatenate)
    return Memoryless(actor(policy, rows))


def labelling(teacher: Teacher | StatefulTeacher, rows: int) -> Stateful:
    """``teacher`` as it labels in ``rows`` environments; its answers are ``Labels``."""
    if isinstance(teacher, RecurrentTeacher):
        fast = ActingRecurrent(teacher, rows)
        return Labelling(fast.initial_state, fast.label)
    if isinstance(teacher, StatefulTeacher):
        return OneByOne(teacher.initial_state, teacher.label, _joined)
    return Memoryless(labeller(teacher, rows))


def _joined(told: Sequence[Any]) -> Labels:
    """``ActionTargets`` of one row each as the labels of all."""
    parameters = {name: torch.cat([targets.parameters[name] for targets in told]).numpy() for name in told[0].parameters}
    return parameters, torch.cat([targets.actions for targets in told]).numpy()
