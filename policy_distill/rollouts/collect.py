"""Step environments and label every observation once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch

from policy_distill.config import EnvironmentFault, Fault
from policy_distill.environments.action_masks import MASK, draw_allowed
from policy_distill.environments.border import Finite, own_random_state
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.environments.vector import Backend, Slots, groups_of, seed_of
from policy_distill.policies.actions import ActionTargets, Box
from policy_distill.policies.student import Student
from policy_distill.rollouts.numpy_policies import actor, labeller
from policy_distill.rollouts.random_policy import uniform_actions
from policy_distill.rollouts.transitions import AUTORESET_STEP, NO_EPISODE, Transitions
from policy_distill.support import trees
from policy_distill.teachers import Teacher

BLOCK = 4096
"""States without an episode that are labelled at once."""


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

    def disturb(
        self, actions: np.ndarray, space: gym.Space, streams: Sequence[np.random.Generator], mask: np.ndarray | None = None
    ) -> np.ndarray:
        """Actions ``[N, ...]`` as they are executed; each row draws from a stream of its own, under its ``mask`` ``[N, entries]``."""
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
                own = None if mask is None else mask[row]
                disturbed[row] = uniform_actions(space, stream, box=self.box) if own is None else draw_allowed(space, own, stream)
        return disturbed


NO_EXPLORATION = Exploration()


class Collector:
    """Some environments of a run, whose episodes go on from one call to the next.

    What is kept are observations on which an action was executed, and those alone. Gymnasium's environments are reset in the step that ends
    an episode, and each of their rows is one; a vector environment may take a step for it, whose row says so: its episode is
    ``AUTORESET_STEP``.

    Args:
        spec: the environment.
        indices: which of the run's ``num_envs`` environments these are. Seeds and random choices depend on the index alone, so that it
            does not matter how many workers share the environments.
        num_envs: of the whole run.
        seed: of the run.
        backend: see ``environments.vector``.
    """

    @own_random_state()
    def __init__(self, spec: EnvironmentSpec, *, indices: range, num_envs: int, seed: int, backend: Backend = "gymnasium") -> None:
        self._name, self._indices, self._seed = spec.id, indices, seed
        groups = groups_of(spec, backend, indices, num_envs, seed)
        self._round = -1
        self._choices: list[np.random.Generator] = []
        self._noise: list[np.random.Generator] = []
        first = trees.concatenate([group.first for _, group in groups])
        self._slots = Slots(first, np.array(indices, dtype=np.int64), np.zeros(len(indices), bool))
        self._places = [(part, group, self._slots.of(part)) for part, group in groups]
        self._all_finite = Finite(first)
        self._ages = np.zeros(len(indices), np.int64)  # steps that the present episodes have taken

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

        A round may be collected in several calls, which give the rows of one.

        Args:
            num_steps: T, of each of the N environments.
            teacher: labels.
            student: acts where the teacher does not; None lets the teacher act always.
            teacher_action_prob: DAgger's beta, drawn anew for each step and environment.
            round_index: of the run; who acts is drawn from a stream of its own for each round and environment.
            exploration: disturbs what is executed, by teacher and student.

        Returns:
            ``T * N`` rows, step after step; float64 observations are labelled as they are and kept as float32, unless the
            teacher needs them exact.

        Raises:
            EnvironmentFault: if an environment fails, or gives observations or rewards that are not finite.
            Fault: if the teacher answers with NaN.
        """
        count, action_space, slots = len(self._indices), self._places[0][1].action_space, self._slots
        shape = (num_steps, count)
        observations = trees.map_leaves(lambda leaf: np.empty((*shape, *leaf.shape[1:]), leaf.dtype), slots.observations)
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
        label, act = labeller(teacher, count), None if student is None else actor(student, count)
        parameters: dict[str, np.ndarray] = {}
        actions = np.empty(0)
        all_finite = Finite(actions)

        for step in range(num_steps):
            trees.write(observations, step, slots.observations)
            episodes[step] = slots.episodes
            episodes[step, slots.idle] = AUTORESET_STEP
            if not self._all_finite(slots.observations):
                raise self._not_finite()
            told, chosen = label(slots.observations)
            if step == 0:
                parameters = {name: np.empty((*shape, *value.shape[1:]), value.dtype) for name, value in told.items()}
                actions = np.empty((*shape, *chosen.shape[1:]), chosen.dtype)
                all_finite = Finite(actions[0])
            for name, value in told.items():
                parameters[name][step] = value
            actions[step] = chosen
            if not all_finite(chosen):  # no environment is stepped with NaN
                break
            executed = chosen.reshape(count, *(action_space.shape or ()))
            if act is not None and not by_teacher[step].all():
                mask = by_teacher[step].reshape(-1, *[1] * (executed.ndim - 1))
                executed = np.where(mask, executed, act(slots.observations))
            if exploration != NO_EXPLORATION:
                seen = slots.observations
                allowed = seen[MASK] if isinstance(seen, dict) and MASK in seen else None
                executed = exploration.disturb(executed, action_space, self._noise, allowed)
            for part, group, places in self._places:
                group.step(executed[part], places, rewards[step, part], terminated[step, part], truncated[step, part])

        for name, values in [*parameters.items(), ("actions", actions)]:
            rows = slice(step + 1)
            if values.dtype.kind == "f" and np.isnan(values[rows]).any():
                where, what = self._place_of(np.isnan(values[rows]), episodes)
                raise Fault(
                    f"the teacher answered with NaN ({name}) {where}, to the observation "
                    f"{trees.map_leaves(np.ndarray.tolist, trees.rows(observations, what))}; it may have "
                    "diverged in its training: choose another checkpoint"
                )
        if not np.isfinite(rewards).all():
            where, what = self._place_of(~np.isfinite(rewards), episodes)
            raise EnvironmentFault(f"the reward is {rewards[what]} {where}")
        goes_on = episodes == slots.episodes
        self._ages = goes_on.sum(0) + np.where(goes_on[0], self._ages, 0)
        return Transitions(
            observations=trees.map_leaves(_flat, _kept(observations, teacher)),
            targets=ActionTargets({name: _flat(rows) for name, rows in parameters.items()}, _flat(actions)),
            rewards=_flat(rewards),
            terminated=_flat(terminated),
            truncated=_flat(truncated),
            episodes=_flat(episodes),
            by_teacher=_flat(by_teacher),
        )

    def _not_finite(self) -> EnvironmentFault:
        slot = self._all_finite.first_wrong()
        part, group = next((part, group) for part, group, _ in self._places if part.start <= slot < part.stop)
        return group.not_finite(slot - part.start, trees.rows(self._slots.observations, slot))

    def _place_of(self, wrong: np.ndarray, episodes: np.ndarray) -> tuple[str, tuple[int, int]]:
        """Where the first of ``wrong`` ``[T, N, ...]`` lies, in words and as step and slot."""
        step, slot = (int(index) for index in np.argwhere(wrong)[0][:2])
        episode = int(episodes[step, slot])
        in_episode = int((episodes[: step + 1, slot] == episode).sum()) + (self._ages[slot] if episode == episodes[0, slot] else 0)
        where = f"in {self._name}, environment {self._indices[slot]}, seed {seed_of(self._seed, episode)}, step {in_episode}"
        return where, (step, slot)


@torch.inference_mode()
def label_states(teacher: Teacher, observations: trees.Tree) -> Transitions:
    """The teacher's labels of raw ``observations`` ``[B, ...]`` that belong to no episode of this run: nobody acts, nothing is earned."""
    count = trees.length(observations)
    parts = [labeller(teacher, trees.length(part))(part) for part in trees.blocks(observations, BLOCK)]
    parameters = {name: torch.from_numpy(np.concatenate([told[name] for told, _ in parts])) for name in parts[0][0]}
    actions = torch.from_numpy(np.concatenate([chosen for _, chosen in parts]))
    no = torch.zeros(count, dtype=torch.bool)
    return Transitions(
        observations=trees.to_tensors(_kept(observations, teacher)),
        targets=ActionTargets(parameters, actions),
        rewards=torch.zeros(count),
        terminated=no,
        truncated=no,
        episodes=torch.full((count,), NO_EPISODE),
        by_teacher=no,
    )


def executed(rows: Transitions) -> Transitions:
    """The rows on which an action was executed."""
    done = rows.episodes != AUTORESET_STEP
    return rows if done.all() else rows.where(done)


def concatenate(parts: list[Transitions], num_steps: int) -> Transitions:
    """Join what collectors of the same run took in ``num_steps`` steps each, as if one collector had held all their environments."""

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
    )


def _kept(observations: trees.Tree, teacher: Teacher) -> trees.Tree:
    """Observations as they are stored: float64 takes twice the room, and only observations far from zero need it."""
    if teacher.needs_float64:
        return observations
    return trees.map_leaves(lambda leaf: leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf, observations)


def _flat(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.reshape(-1, *array.shape[2:]))
