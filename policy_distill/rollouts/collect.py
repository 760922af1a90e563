"""Step environments and label every observation once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch

from policy_distill.config import EnvironmentFault, Fault
from policy_distill.environments.action_masks import draw_allowed, mask_among
from policy_distill.environments.border import Finite, own_random_state
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.environments.vector import Backend, Slots, groups_of, seed_of
from policy_distill.policies.actions import ActionTargets, Box
from policy_distill.policies.policy import State
from policy_distill.policies.student import Student
from policy_distill.policies.views import View
from policy_distill.rollouts.acting import Player, acting, labelling
from policy_distill.rollouts.numpy_policies import Labels, labeller
from policy_distill.rollouts.random_policy import uniform_actions
from policy_distill.rollouts.stream import Results, Streams, stream
from policy_distill.rollouts.transitions import AUTORESET_STEP, NO_EPISODE, Transitions
from policy_distill.support import trees
from policy_distill.teachers import Teacher

BLOCK = 4096
"""Batch size for labelling states that belong to no episode."""


@dataclass(frozen=True)
class Exploration:
    """Noise on the executed actions; labels are unaffected.

    Attributes:
        epsilon: probability that an action is replaced by one drawn uniformly from the action space.
        action_noise: standard deviation of Gaussian noise on continuous actions, in box units; the sum is clipped to the bounds.
        box: the actions' box, if its units differ from the bounds; uniform actions are then drawn from twice its range.
    """

    epsilon: float = 0.0
    action_noise: float = 0.0
    box: Box | None = None

    def disturb(
        self, actions: np.ndarray, space: gym.Space, streams: Sequence[np.random.Generator], mask: np.ndarray | None = None
    ) -> np.ndarray:
        """Executed actions ``[N, ...]``. Each row draws from its own stream, among the actions that ``mask`` ``[N, entries]`` allows."""
        disturbed = actions.copy()
        for row, generator in enumerate(streams):
            if self.action_noise and isinstance(space, gym.spaces.Box):
                if self.box is None:
                    half_range = np.where(np.isfinite(space.high) & np.isfinite(space.low), (space.high - space.low) / 2, 1.0)
                else:
                    half_range = self.box.affine()[0].reshape(space.shape)
                noise = self.action_noise * half_range * generator.standard_normal(space.shape)
                disturbed[row] = np.clip(disturbed[row] + noise, space.low, space.high)
            if self.epsilon and generator.random() < self.epsilon:
                if mask is None:
                    disturbed[row] = uniform_actions(space, generator, box=self.box)
                else:
                    disturbed[row] = draw_allowed(space, mask[row], generator)
        return disturbed


NO_EXPLORATION = Exploration()


class Collector:
    """A share of a run's environments. Their episodes continue from one call to the next.

    Only observations on which an action was executed become transitions. Gymnasium's environments are reset in the step that ends an
    episode. A vector environment may spend an extra step on the reset; that row is marked with the episode ``AUTORESET_STEP``.

    Args:
        spec: the environment.
        indices: indices of these environments among the run's ``num_envs``. Seeds and random choices depend on the index alone, so the
            number of workers does not affect them.
        num_envs: number of environments in the whole run.
        seed: the run's seed.
        backend: see ``environments.vector``.
        view: the students' view; None: students see all observations.
    """

    @own_random_state()
    def __init__(
        self,
        spec: EnvironmentSpec,
        *,
        indices: range,
        num_envs: int,
        seed: int,
        backend: Backend = "gymnasium",
        view: View | None = None,
    ) -> None:
        self._name, self._indices, self._seed = spec.id, indices, seed
        self._view = view
        self._view_state: State = None if view is None else view.initial_state(len(indices))
        self._envs = Streams(groups_of(spec, backend, indices, num_envs, seed), indices)
        self._envs.reset()
        self._round = -1
        self._choices: list[np.random.Generator] = []
        self._noise: list[np.random.Generator] = []
        self._teacher_state: State = None
        self._student_state: State = None
        self._ages = np.zeros(len(indices), np.int64)  # steps taken so far in the current episodes

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()

    @own_random_state()
    @torch.inference_mode()
    def collect(
        self,
        num_steps: int,
        teacher: Teacher,
        student: Student | None,
        teacher_action_prob: float,
        *,
        round_index: int = 0,
        exploration: Exploration = NO_EXPLORATION,
    ) -> Transitions:
        """Take ``num_steps`` steps in each environment; the teacher labels every observation and acts with the given probability.

        The states of the teacher and of the view carry over from call to call. A student starts each round in its initial state.

        A round collected in several calls yields the same rows as in one call.

        Args:
            num_steps: T, steps in each of the N environments.
            teacher: labels the observations.
            student: acts where the teacher does not; None: the teacher always acts.
            teacher_action_prob: DAgger's beta; the acting policy is drawn for each step and environment.
            round_index: index of the round; the acting policy is drawn from a separate stream for each round and environment.
            exploration: noise on the actions of teacher and student.

        Returns:
            ``T * N`` rows in time-major order. The teacher labels float64 observations at full precision; they are stored as float32
            unless the teacher needs float64.

        Raises:
            EnvironmentFault: if an environment fails, or returns observations or rewards that are not finite.
            Fault: if the teacher outputs NaN.
        """
        count, slots = len(self._indices), self._envs.slots
        if round_index != self._round:
            self._round, self._student_state = round_index, None
            self._choices, self._noise = (
                [np.random.default_rng([self._seed, stream, round_index, index]) for index in self._indices] for stream in (2, 5)
            )
        if student is None:
            by_teacher = np.ones((num_steps, count), bool)
        else:
            by_teacher = np.stack([choices.random(num_steps) < teacher_action_prob for choices in self._choices], axis=1)
        space = self._envs.action_space
        label = Player(labelling(teacher, count), count, self._teacher_state)
        if student is not None and self._view is not None:
            student = student.behind(student.architecture.without_view)  # the loop below applies the view
        act = None if student is None else Player(acting(student, count, space), count, self._student_state)

        def executed(step: int, slots: Slots, labels: Labels) -> np.ndarray:
            actions = labels[1].reshape(count, *(space.shape or ()))
            seen = slots.observations
            if self._view is not None:
                seen, self._view_state = self._view.step(slots.observations, self._view_state, slots.starts)
                rows.record_seen(step, seen)
            if act is not None and (act.state is not None or not by_teacher[step].all()):
                mask = by_teacher[step].reshape(-1, *[1] * (actions.ndim - 1))
                actions = np.where(mask, actions, act(seen, slots.starts))
            if exploration == NO_EXPLORATION:
                return actions
            return exploration.disturb(actions, space, self._noise, mask_among(slots.observations))

        rows = _Rows(num_steps, slots, self._check, self._view)
        stream(self._envs, num_steps, executed, label, rows)
        self._check(rows, num_steps)
        self._teacher_state, self._student_state = label.state, None if act is None else act.state
        unfinished = rows.episodes == slots.episodes
        self._ages = unfinished.sum(0) + np.where(unfinished[0], self._ages, 0)
        return Transitions(
            observations=trees.map_leaves(_flat, _kept(rows.observations, teacher)),
            targets=ActionTargets({name: _flat(values) for name, values in rows.parameters.items()}, _flat(rows.actions)),
            rewards=_flat(rows.rewards),
            terminated=_flat(rows.terminated),
            truncated=_flat(rows.truncated),
            episodes=_flat(rows.episodes),
            by_teacher=_flat(by_teacher),
            seen=None if self._view is None else trees.map_leaves(_flat, _kept(rows.seen, teacher)),
        )

    def _check(self, rows: _Rows, num_steps: int) -> None:
        """Raise for the first value of the first ``num_steps`` steps that should be finite and is not."""
        for name, values in [*rows.parameters.items(), ("actions", rows.actions)]:
            if values.dtype.kind == "f":
                wrong = ~np.isfinite(values[:num_steps]) if name == "actions" else np.isnan(values[:num_steps])
                if wrong.any():
                    where, index = self._place_of(wrong, rows)
                    number = "NaN" if np.isnan(values[index]).any() else "infinity"
                    raise Fault(
                        f"the teacher returned {number} ({name}) {where}, for the observation "
                        f"{trees.map_leaves(np.ndarray.tolist, trees.rows(rows.observations, index))}; it may have "
                        "diverged in its training: choose another checkpoint"
                    )
        if not np.isfinite(rows.rewards[:num_steps]).all():
            where, index = self._place_of(~np.isfinite(rows.rewards[:num_steps]), rows)
            raise EnvironmentFault(f"the reward is {rows.rewards[index]} {where}")

    def _place_of(self, wrong: np.ndarray, rows: _Rows) -> tuple[str, tuple[int, int]]:
        """The position of the first true entry of ``wrong`` ``[T, N, ...]``: a description for messages, and step and slot."""
        step, slot = (int(index) for index in np.argwhere(wrong)[0][:2])
        episode = int(rows.episodes[step, slot])
        before = self._ages[slot] if episode == rows.episodes[0, slot] else 0
        in_episode = int((rows.episodes[: step + 1, slot] == episode).sum()) + before
        where = f"in {self._name}, environment {self._indices[slot]}, seed {seed_of(self._seed, episode)}, step {in_episode}"
        return where, (step, slot)


class _Rows:
    """Buffers for T steps in N environments, ``[T, N, ...]`` each.

    Args:
        num_steps: T.
        slots: current state of the environments.
        check: called with these rows and the number of recorded steps before an action that is not finite would be executed.
        view: the students' view.
    """

    def __init__(self, num_steps: int, slots: Slots, check: Callable[[_Rows, int], None], view: View | None = None) -> None:
        self._shape = shape = (num_steps, len(slots.episodes))
        self._check = check
        self.observations = trees.map_leaves(lambda leaf: np.empty((*shape, *leaf.shape[1:]), leaf.dtype), slots.observations)
        self.seen = None if view is None else trees.zeros(view.space, *shape)
        self.rewards = np.zeros(shape, np.float32)
        self.terminated, self.truncated = np.empty(shape, bool), np.empty(shape, bool)
        self.episodes = np.empty(shape, np.int64)
        self.parameters: dict[str, np.ndarray] = {}

    def record_seen(self, step: int, seen: trees.Tree) -> None:
        """Store the students' inputs of this step."""
        trees.write(self.seen, step, seen)

    def record(self, step: int, slots: Slots, labels: Labels) -> Results:
        parameters, actions = labels
        if step == 0:  # the shapes are known only from the teacher's output
            self.parameters = {name: np.empty((*self._shape, *value.shape[1:]), value.dtype) for name, value in parameters.items()}
            self.actions = np.empty((*self._shape, *actions.shape[1:]), actions.dtype)
            self._all_finite = Finite(self.actions[0])
        trees.write(self.observations, step, slots.observations)
        self.episodes[step] = slots.episodes
        self.episodes[step, slots.idle] = AUTORESET_STEP
        for name, value in parameters.items():
            self.parameters[name][step] = value
        self.actions[step] = actions
        if not self._all_finite(actions):
            self._check(self, step + 1)
        return self.rewards[step], self.terminated[step], self.truncated[step]


@torch.inference_mode()
def label_states(teacher: Teacher, observations: trees.Tree, view: View | None = None) -> Transitions:
    """The teacher's labels of raw ``observations`` ``[B, ...]`` that belong to no episode of this run.

    No action is executed and rewards are 0. A view with a history is not supported.
    """
    count = trees.length(observations)
    parts = [labeller(teacher, trees.length(part))(part) for part in trees.blocks(observations, BLOCK)]
    parameters = {name: torch.from_numpy(np.concatenate([values[name] for values, _ in parts])) for name in parts[0][0]}
    actions = torch.from_numpy(np.concatenate([actions for _, actions in parts]))
    false = torch.zeros(count, dtype=torch.bool)
    return Transitions(
        observations=trees.to_tensors(_kept(observations, teacher)),
        targets=ActionTargets(parameters, actions),
        rewards=torch.zeros(count),
        terminated=false,
        truncated=false,
        episodes=torch.full((count,), NO_EPISODE),
        by_teacher=false,
        seen=None if view is None else trees.to_tensors(_kept(_seen_alone(view, observations), teacher)),
    )


def _seen_alone(view: View, observations: trees.Tree) -> trees.Tree:
    """The student's inputs for ``observations`` ``[B, ...]``, each taken as the first of an episode."""
    count = trees.length(observations)
    return view.step(observations, view.initial_state(count), np.arange(count))[0]


def executed(rows: Transitions) -> Transitions:
    """The rows on which an action was executed."""
    done = rows.episodes != AUTORESET_STEP
    return rows if done.all() else rows.where(done)


def concatenate(parts: list[Transitions], num_steps: int) -> Transitions:
    """Join the transitions of collectors of one run, ``num_steps`` steps each, as if one collector had held all environments."""

    def join(tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([tensor.unflatten(0, (num_steps, -1)) for tensor in tensors], dim=1).flatten(0, 1)

    first = parts[0].targets.parameters
    return Transitions(
        observations=trees.map_leaves(lambda *leaves: join(list(leaves)), *(part.observations for part in parts)),
        targets=ActionTargets(
            {name: join([part.targets.parameters[name] for part in parts]) for name in first},
            join([part.targets.actions for part in parts]),
        ),
        rewards=join([part.rewards for part in parts]),
        terminated=join([part.terminated for part in parts]),
        truncated=join([part.truncated for part in parts]),
        episodes=join([part.episodes for part in parts]),
        by_teacher=join([part.by_teacher for part in parts]),
        seen=None if parts[0].seen is None else trees.map_leaves(lambda *leaves: join(list(leaves)), *(part.seen for part in parts)),
    )


def _kept(observations: trees.Tree, teacher: Teacher) -> trees.Tree:
    """Observations as stored: in float32 unless the teacher needs float64, which takes twice the memory."""
    if teacher.needs_float64:
        return observations
    return trees.map_leaves(lambda leaf: leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf, observations)


def _flat(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.reshape(-1, *array.shape[2:]))
