"""Policies for the loops that step environments. Each row's result depends on that row's episode alone, bit for bit."""

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
    """A policy of unknown code, called on one environment at a time with a separate state for each.

    Args:
        initial_state, step: methods of the policy; see ``policies.policy.Stateful``.
        join: concatenates the outputs of N environments.
    """

    def __init__(self, initial_state: Callable[[int], State], step: Callable[..., tuple[Any, State]], join: Callable[[list], Any]) -> None:
        self._initial_state, self._step, self._join = initial_state, step, join

    def initial_state(self, num_envs: int) -> State:
        return [self._initial_state(1) for _ in range(num_envs)]

    def step(self, observations: Tree, state: State, starts: np.ndarray | None) -> tuple[Any, State]:
        outputs = []
        for index in range(len(state)):
            row = slice(index, index + 1)
            # copied into memory that torch aligns: kernels may round differently on other alignments
            observation = trees.map_leaves(lambda leaf, row=row: torch.tensor(leaf[row]).numpy(), observations)
            output, state[index] = self._step(observation, state[index], None if starts is None else starts[row])
            outputs.append(output)
        return self._join(outputs), state


class ActingRecurrent:
    """``teacher.step`` and ``teacher.label`` for exactly ``rows`` environments; a ``policies.policy.StatefulTeacher``.

    Each row's result depends on that row's episode alone, bit for bit. Values agree with the teacher's to rounding.

    Args:
        teacher: must be on the CPU.
        rows: number of environments in every call.

    Raises:
        ValueError: if the teacher is not on the CPU.
    """

    def __init__(self, teacher: RecurrentTeacher, rows: int) -> None:
        if teacher.anchor.device.type != "cpu":
            raise ValueError("the teacher is not on the CPU, where environments are stepped: move it there")
        network = teacher.network
        label = head(network.head, rows)
        assert label is not None, "the head after the memory must be a stack of rebuilt layers"
        self._encode, self._features, self._label = encoder(teacher, rows), Layers(network.features, rows), label
        self._lstm, self._executed = Lstm(network.lstm, rows), executable(teacher.action_space, rows)

    def initial_state(self, num_envs: int) -> dict[str, np.ndarray]:
        return self._lstm.initial_state(num_envs)

    def label(self, observations: Tree, state: Any, starts: np.ndarray | None) -> tuple[Labels, dict[str, np.ndarray]]:
        """``Labels``, which the next call may overwrite, and the state; see ``StatefulTeacher.label``."""
        output, state = self._lstm(self._features(self._encode(observations)), state, None if starts is None else starts != GOES_ON)
        return self._label(output), state

    def step(self, observations: Tree, state: Any, starts: np.ndarray | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        (_, actions), state = self.label(observations, state, starts)
        return self._executed(actions), state


@dataclass(frozen=True)
class Labelling:
    """A policy defined by two functions; see ``policies.policy.Stateful``."""

    initial_state: Callable[[int], State]
    step: Callable[[Tree, State, np.ndarray | None], tuple[Any, State]]


class Viewing:
    """A student behind a view.

    Args:
        view: transforms raw observations into the student's inputs.
        policy: acts on these inputs.
    """

    def __init__(self, view: View, policy: Stateful) -> None:
        self._view, self._policy = view, policy

    def initial_state(self, num_envs: int) -> State:
        return self._view.initial_state(num_envs), self._policy.initial_state(num_envs)

    def step(self, observations: Tree, state: State, starts: np.ndarray | None) -> tuple[np.ndarray, State]:
        view_state, policy_state = state
        seen, view_state = self._view.step(observations, view_state, starts)
        actions, policy_state = self._policy.step(seen, policy_state, starts)
        return actions, (view_state, policy_state)


class Player:
    """A policy that acts or labels in N environments, together with its state.

    Args:
        policy: see ``acting`` and ``labelling``.
        num_envs: N.
        state: the state to resume from; None: the initial state.
    """

    def __init__(self, policy: Stateful, num_envs: int, state: State = None) -> None:
        self._step = policy.step
        self.state = policy.initial_state(num_envs) if state is None else state

    def __call__(self, observations: Tree, starts: np.ndarray | None) -> Any:
        """Actions or labels for observations ``[N, ...]``; see ``policies.policy.Stateful.step``."""
        output, self.state = self._step(observations, self.state, starts)
        return output


def acting(policy: Policy | None, rows: int, space: gym.Space) -> Stateful:
    """``policy`` prepared to act in ``rows`` environments with the action space ``space``; None acts at random."""
    if policy is None:
        return RandomPolicy(space)
    if isinstance(policy, Memoryless | RandomPolicy):
        return policy
    if isinstance(policy, RecurrentTeacher):
        return ActingRecurrent(policy, rows)
    if isinstance(policy, Student):
        student: Stateful = RecurrentActor(policy, rows) if policy.architecture.memory else Memoryless(student_actor(policy, rows))
        return student if policy.view is None else Viewing(policy.view, student)
    if isinstance(policy, Stateful):
        return OneByOne(policy.initial_state, policy.step, np.concatenate)
    return Memoryless(actor(policy, rows))


def labelling(teacher: Teacher | StatefulTeacher, rows: int) -> Stateful:
    """``teacher`` prepared to label in ``rows`` environments; its outputs are ``Labels``."""
    if isinstance(teacher, RecurrentTeacher):
        fast = ActingRecurrent(teacher, rows)
        return Labelling(fast.initial_state, fast.label)
    if isinstance(teacher, StatefulTeacher):
        return OneByOne(teacher.initial_state, teacher.label, _joined)
    return Memoryless(labeller(teacher, rows))


def _joined(targets: Sequence[Any]) -> Labels:
    """``ActionTargets`` of single rows, concatenated."""
    parameters = {name: torch.cat([row.parameters[name] for row in targets]).numpy() for name in targets[0].parameters}
    return parameters, torch.cat([row.actions for row in targets]).numpy()
