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
        for row, generator in enumerate(streams):
            if self.action_noise and isinstance(space, gym.spaces.Box):
                if self.box is None:
                    half_range = np.where(np.isfinite(space.high) & np.isfinite(space.low), (space.high - space.low) / 2, 1.0)
                else:
                    half_range = self.box.affine()[0].reshape(space.shape)
                noise = self.action_noise * half_range * generator.standard_normal(space.shape)
                disturbed[row] = np.clip(disturbed[row] + noise, space.low, space.high)
            if self.epsilon and generator.random() < self.epsilon:
                own = None if mask is None else mask[row]
                disturbed[row] = uniform_actions(space, generator, box=self.box) if own is None else draw_allowed(space, own, generator)
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
        view: what the run's students see; None: everything.
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

        A teacher that has a state goes on with it from call to call, and so does the view of the students. A student begins each round
        with its initial state.

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
            student = student.behind(student.architecture.without_view)  # it is shown what the view shows, as the dataset is
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
        goes_on = rows.episodes == slots.episodes
        self._ages = goes_on.sum(0) + np.where(goes_on[0], self._ages, 0)
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
        """Raise for the first number among ``num_steps`` steps that should be finite and is not."""
        for name, values in [*rows.parameters.items(), ("actions", rows.actions)]:
            if values.dtype.kind == "f":
                wrong = ~np.isfinite(values[:num_steps]) if name == "actions" else np.isnan(values[:num_steps])
                if wrong.any():
                    where, what = self._place_of(wrong, rows)
                    answer = "NaN" if np.isnan(values[what]).any() else "infinity"
                    raise Fault(
                        f"the teacher answered with {answer} ({name}) {where}, to the observation "
                        f"{trees.map_leaves(np.ndarray.tolist, trees.rows(rows.observations, what))}; it may have "
                        "diverged in its training: choose another checkpoint"
                    )
        if not np.isfinite(rows.rewards[:num_steps]).all():
            where, what = self._place_of(~np.isfinite(rows.rewards[:num_steps]), rows)
            raise EnvironmentFault(f"the reward is {rows.rewards[what]} {where}")

    def _place_of(self, wrong: np.ndarray, rows: _Rows) -> tuple[str, tuple[int, int]]:
        """Where the first of ``wrong`` ``[T, N, ...]`` lies, in words and as step and slot."""
        step, slot = (int(index) for index in np.argwhere(wrong)[0][:2])
        episode = int(rows.episodes[step, slot])
        before = self._ages[slot] if episode == rows.episodes[0, slot] else 0
        in_episode = int((rows.episodes[: step + 1, slot] == episode).sum()) + before
        where = f"in {self._name}, environment {self._indices[slot]}, seed {seed_of(self._seed, episode)}, step {in_episode}"
        return where, (step, slot)


class _Rows:
    """What T steps in N environments gave, ``[T, N, ...]`` each.

    Args:
        num_steps: T.
        slots: where the environments stand.
        check: is called with these rows and how many steps they hold, before an environment is stepped with an action that is not finite.
        view: of the students.
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
        """Keep what the students saw in this step."""
        trees.write(self.seen, step, seen)

    def record(self, step: int, slots: Slots, labels: Labels) -> Results:
        parameters, actions = labels
        if step == 0:  # the teacher alone knows their shapes
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
    """The teacher's labels of raw ``observations`` ``[B, ...]`` that belong to no episode of this run: nobody acts, nothing is earned.

    A view with a history cannot be of such states.
    """
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
        seen=None if view is None else trees.to_tensors(_kept(_seen_alone(view, observations), teacher)),
    )


def _seen_alone(view: View, observations: trees.Tree) -> trees.Tree:
    """What a student sees of each of ``observations`` ``[B, ...]``, as if an episode began with it."""
    count = trees.length(observations)
    return view.step(observations, view.initial_state(count), np.arange(count))[0]


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
        seen=None if parts[0].seen is None else trees.map_leaves(lambda *leaves: join(list(leaves)), *(part.seen for part in parts)),
    )


def _kept(observations: trees.Tree, teacher: Teacher) -> trees.Tree:
    """Observations as they are stored: float64 takes twice the room, and only observations far from zero need it."""
    if teacher.needs_float64:
        return observations
    return trees.map_leaves(lambda leaf: leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf, observations)


def _flat(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.reshape(-1, *array.shape[2:]))
