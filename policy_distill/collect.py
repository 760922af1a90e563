"""Step environments and label every observation once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch

from policy_distill.acting import Labels, actor, labeller
from policy_distill.actions import ActionTargets, Box
from policy_distill.backends import Backend, Slots, groups_of
from policy_distill.dataset import NO_EPISODE, NOTHING_DONE, Transitions
from policy_distill.environments import EnvironmentSpec
from policy_distill.evaluate import BATCH, act_in_batches, whole_batches
from policy_distill.students import Student
from policy_distill.teachers import Teacher


@dataclass(frozen=True)
class Exploration:
    """Disturbances of what is executed; labels are not touched.

    Attributes:
        epsilon: probability of an action drawn uniformly from the action space.
        action_noise: standard deviation of Gaussian noise on continuous actions, in box units; the sum is clipped to the bounds.
        box: of the actions, where its units are not those of the bounds; uniform ones are then drawn from twice its range.
    """

    epsilon: float = 0.0
    action_noise: float = 0.0
    box: Box | None = None

    def disturb(self, actions: np.ndarray, space: gym.Space, streams: Sequence[np.random.Generator]) -> np.ndarray:
        """Actions ``[N, ...]`` as they are executed; each row draws from a stream of its own."""
        disturbed = actions.copy()
        for row, stream in enumerate(streams):
            if self.action_noise and isinstance(space, gym.spaces.Box):
                if self.box is None:
                    half_range = np.where(np.isfinite(space.high) & np.isfinite(space.low), (space.high - space.low) / 2, 1.0)
                else:
                    half_range = self.box.affine()[0].reshape(space.shape)
                noise = self.action_noise * half_range * stream.standard_normal(space.shape)
                disturbed[row] = np.clip(disturbed[row] + noise, space.low, space.high)
            if self.epsilon and stream.random() < self.epsilon:
                disturbed[row] = random_action(space, stream, self.box)
        return disturbed


NO_EXPLORATION = Exploration()


def random_action(space: gym.Space, stream: np.random.Generator, box: Box | None = None) -> np.ndarray | int:
    """Draw uniformly from a space that a student can act in, or, within its bounds, from twice the range of ``box``'s units."""
    match space:
        case gym.spaces.Discrete():
            return int(stream.integers(space.n) + space.start)
        case gym.spaces.MultiDiscrete():
            return stream.integers(space.nvec)
        case gym.spaces.MultiBinary():
            return stream.integers(2, size=space.shape)
    assert isinstance(space, gym.spaces.Box)
    if box is None:
        return stream.uniform(space.low, space.high)
    scale, offset = (part.reshape(space.shape) for part in box.affine())
    return stream.uniform(offset - 2 * scale, offset + 2 * scale).clip(space.low, space.high)


class Collector:
    """Some environments of a run, whose episodes go on from one call to the next.

    What is kept are observations on which an action was executed, and those alone. Gymnasium's environments are reset in the step that ends
    an episode, and each of their rows is one; a vector environment may take a step for it, whose row says so: its episode is
    ``NOTHING_DONE``.

    Args:
        spec: the environment.
        indices: which of the run's ``num_envs`` environments these are. Seeds and random choices depend on the index alone, so that it
            does not matter how many workers share the environments.
        num_envs: of the whole run.
        seed: of the run.
        backend: see ``backends``.
    """

    def __init__(self, spec: EnvironmentSpec, *, indices: range, num_envs: int, seed: int, backend: Backend = "gymnasium") -> None:
        self._indices, self._seed = indices, seed
        groups = groups_of(spec, backend, indices, num_envs, seed)
        self._round = -1
        self._choices: list[np.random.Generator] = []
        self._noise: list[np.random.Generator] = []
        first = np.concatenate([group.first for _, group in groups])
        # What the policies are asked: whole batches, whose last rows only fill them up and must be valid.
        self._batch = np.repeat(first[:1], -(-len(indices) // BATCH) * BATCH, axis=0)
        self._batch[: len(indices)] = first
        self._slots = Slots(self._batch[: len(indices)], np.array(indices, dtype=np.int64), np.zeros(len(indices), bool))
        self._places = [(part, group, self._slots.of(part)) for part, group in groups]

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

        A round may be collected in several calls, which give the rows of one.

        Args:
            num_steps: T, of each of the N environments.
            teacher: labels.
            student: acts where the teacher does not; None lets the teacher act always.
            teacher_action_prob: DAgger's beta, drawn anew for each step and environment.
            round_index: of the run; who acts is drawn from a stream of its own for each round and environment.
            exploration: disturbs what is executed, whoever acts.

        Returns:
            ``T * N`` rows, step after step; float64 observations are labelled as they are and kept as float32, unless the
            teacher needs them exact.
        """
        count, action_space, slots = len(self._indices), self._places[0][1].action_space, self._slots
        shape = (num_steps, count)
        observations = np.empty((*shape, *slots.observations.shape[1:]), slots.observations.dtype)
        rewards = np.empty(shape, np.float32)
        terminated, truncated = np.empty(shape, bool), np.empty(shape, bool)
        episodes = np.empty(shape, np.int64)
        if round_index != self._round:
            self._round = round_index
            self._choices, self._noise = (
                [np.random.default_rng([self._seed, stream, round_index, index]) for index in self._indices] for stream in (2, 5)
            )
        if student is None:
            by_teacher = np.ones(shape, bool)
        else:
            by_teacher = np.stack([choices.random(num_steps) < teacher_action_prob for choices in self._choices], axis=1)
        label, act = labeller(teacher, BATCH), None if student is None else actor(student, BATCH)
        parameters: dict[str, np.ndarray] = {}
        actions = np.empty(0)

        for step in range(num_steps):
            observations[step] = slots.observations
            episodes[step] = slots.episodes
            episodes[step, slots.idle] = NOTHING_DONE
            told, chosen = label_in_batches(label, self._batch)
            if step == 0:
                parameters = {name: np.empty((*shape, *value.shape[1:]), value.dtype) for name, value in told.items()}
                actions = np.empty((*shape, *chosen.shape[1:]), chosen.dtype)
            for name, value in told.items():
                parameters[name][step] = value[:count]
            actions[step] = chosen = chosen[:count]
            executed = chosen.reshape(count, *(action_space.shape or ()))
            if act is not None and not by_teacher[step].all():
                mask = by_teacher[step].reshape(-1, *[1] * (executed.ndim - 1))
                executed = np.where(mask, executed, act_in_batches(act, self._batch)[:count])
            if exploration != NO_EXPLORATION:
                executed = exploration.disturb(executed, action_space, self._noise)
            for part, group, places in self._places:
                group.step(executed[part], places, rewards[step, part], terminated[step, part], truncated[step, part])

        return Transitions(
            observations=_flat(_kept(observations, teacher)),
            targets=ActionTargets({name: _flat(rows) for name, rows in parameters.items()}, _flat(actions)),
            rewards=_flat(rewards),
            terminated=_flat(terminated),
            truncated=_flat(truncated),
            episodes=_flat(episodes),
            by_teacher=_flat(by_teacher),
        )


@torch.inference_mode()
def label_states(teacher: Teacher, observations: np.ndarray) -> Transitions:
    """The teacher's word on raw ``observations`` ``[B, ...]`` that belong to no episode of this run: nobody acts, nothing is earned."""
    parameters, actions = label_in_batches(labeller(teacher, BATCH), whole_batches(observations))
    count = len(observations)
    no = torch.zeros(count, dtype=torch.bool)
    return Transitions(
        observations=torch.from_numpy(_kept(observations, teacher)),
        targets=ActionTargets(
            {name: torch.from_numpy(rows[:count]) for name, rows in parameters.items()}, torch.from_numpy(actions[:count])
        ),
        rewards=torch.zeros(count),
        terminated=no,
        truncated=no,
        episodes=torch.full((count,), NO_EPISODE),
        by_teacher=no,
    )


def executed(rows: Transitions) -> Transitions:
    """The rows on which an action was executed."""
    done = rows.episodes != NOTHING_DONE
    return rows if done.all() else rows.where(done)


def concatenate(parts: list[Transitions], num_steps: int) -> Transitions:
    """Join what collectors of the same run took in ``num_steps`` steps each, as if one collector had held all their environments."""

    def join(tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([tensor.unflatten(0, (num_steps, -1)) for tensor in tensors], dim=1).flatten(0, 1)

    first = parts[0].targets.parameters
    return Transitions(
        observations=join([part.observations for part in parts]),
        targets=ActionTargets(
            {name: join([part.targets.parameters[name] for part in parts]) for name in first},
            join([part.targets.actions for part in parts]),
        ),
        rewards=join([part.rewards for part in parts]),
        terminated=join([part.terminated for part in parts]),
        truncated=join([part.truncated for part in parts]),
        episodes=join([part.episodes for part in parts]),
        by_teacher=join([part.by_teacher for part in parts]),
    )


def label_in_batches(label: Callable[[np.ndarray], Labels], observations: np.ndarray) -> Labels:
    """Ask about ``observations`` ``[n * BATCH, ...]``, ``BATCH`` rows at a time."""
    if len(observations) == BATCH:
        return label(observations)
    parts = []
    for start in range(0, len(observations), BATCH):
        parameters, actions = label(observations[start : start + BATCH])
        parts.append(({name: value.copy() for name, value in parameters.items()}, actions.copy()))
    return {name: np.concatenate([part[0][name] for part in parts]) for name in parts[0][0]}, np.concatenate([part[1] for part in parts])


def _kept(observations: np.ndarray, teacher: Teacher) -> np.ndarray:
    """Observations as they are stored: float64 takes twice the room, and only observations far from zero need it."""
    return observations.astype(np.float32) if observations.dtype == np.float64 and not teacher.needs_float64 else observations


def _flat(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.reshape(-1, *array.shape[2:]))
