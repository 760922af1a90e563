"""Disagreements of a student and its teacher: the states in which their actions differ, the cost, and the episodes that lost return."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from policy_distill.config import RequestError
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.policies.actions import ActionTargets
from policy_distill.policies.policy import Policy
from policy_distill.rollouts.episodes import alike
from policy_distill.rollouts.numpy_policies import actor, executable
from policy_distill.rollouts.trajectories import Trajectory, episodes_at_once, labels_along, record
from policy_distill.support.files import write_atomically
from policy_distill.support.trees import Tree, concatenate, leaves, length, passes, stack, to_tensors
from policy_distill.support.trees import rows as rows_of
from policy_distill.support.untrusted import read_npz, refuse_damage
from policy_distill.teachers import RecurrentTeacher, Teacher
from policy_distill.teachers.action_values import q_gap, why_no_action_values

COSTS = {
    "q_gap": "Q(s, teacher's action) - Q(s, student's action), by the teacher's critic",
    "advantage": "V(s) - (reward + gamma V(next s)), by the teacher's critic: one draw, noisy",
    "log_prob_gap": "log p(teacher's action) - log p(student's action), by the teacher, in nats",
    "action_distance": "distance of the two actions, in halves of the range",
}
"""Measures of a disagreement's cost, the most informative first."""
PARTED = 0.1
"""Share of an episode's final loss above which its running loss counts as parted."""
MAX_BYTES = 128 << 20
"""Maximum unpacked size of a file."""
MAX_OBSERVATION_BYTES = 96 << 20
"""Maximum size of the observations in it."""


@dataclass(frozen=True)
class Disagreements:
    """D states that the student visited and in which its action differs from its teacher's, costliest first; and the E episodes.

    Two actions agree as ``episodes.alike`` defines it: they are equal, or every component is within 5 % of its range.

    Attributes:
        environment: id of the environment.
        cost_kind: the measure of ``costs``, a key of ``COSTS``.
        states: total number of visited states.
        observations: ``[D, ...]`` raw; a dict by key for a Dict space. Those of images may be fewer: the costliest ones that need at most
            ``MAX_OBSERVATION_BYTES``.
        teacher_actions, student_actions: ``[D, ...]`` as ``env.step`` takes them.
        costs: ``[D]``, descending; may be negative if estimated by a critic.
        seeds, steps: ``[D]`` the episode's seed and the step, from 0.
        episode_seeds: ``[E]``.
        student_returns, teacher_returns: ``[E]`` on the same seeds.
        student_lengths, teacher_lengths: ``[E]`` in steps.
        first_steps: ``[E]`` step of the student's first disagreement; -1 if there is none.
        parting_steps: ``[E]`` see ``parting_step``; -1 if the student lost nothing.
    """

    environment: str
    cost_kind: str
    states: int
    observations: Tree
    teacher_actions: np.ndarray
    student_actions: np.ndarray
    costs: np.ndarray
    seeds: np.ndarray
    steps: np.ndarray
    episode_seeds: np.ndarray
    student_returns: np.ndarray
    teacher_returns: np.ndarray
    student_lengths: np.ndarray
    teacher_lengths: np.ndarray
    first_steps: np.ndarray
    parting_steps: np.ndarray

    @property
    def agreement(self) -> float:
        """Share of the visited states in which both actions agree."""
        return 1 - len(self.costs) / self.states

    @property
    def with_observation(self) -> int:
        """Number of the costliest states whose observations are kept."""
        return length(self.observations)

    @property
    def losses(self) -> np.ndarray:
        """``[E]`` the teacher's return minus the student's, for each episode."""
        return self.teacher_returns - self.student_returns

    def worst_episodes(self) -> np.ndarray:
        """Indices of the episodes that lost return, largest loss first."""
        order = np.argsort(-self.losses, kind="stable")
        return order[self.losses[order] > 0]

    def save(self, path: str | Path) -> Path:
        """Write all fields to an ``.npz`` file that ``numpy.load`` reads without pickle."""
        arrays = {item.name: np.asarray(getattr(self, item.name)) for item in fields(self) if item.name != "observations"}
        parts = self.observations if isinstance(self.observations, dict) else {"": self.observations}
        arrays |= {f"observations.{key}" if key else "observations": part for key, part in parts.items()}

        def write(target: Path) -> None:
            with target.open("wb") as file:  # given a path, numpy would append .npz
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

        return write_atomically(path, write)

    @classmethod
    def load(cls, path: str | Path) -> Disagreements:
        """The inverse of ``save``."""
        arrays: dict[str, Any] = dict(read_npz(path, None, MAX_BYTES))
        parts = {name.removeprefix("observations."): arrays[name] for name in arrays if name.startswith("observations.")}
        if parts:
            arrays["observations"] = parts
        if missing := [item.name for item in fields(cls) if item.name not in arrays]:
            raise ValueError(f"there is no item named '{missing[0]}.npy' in it")
        values = {item.name: arrays[item.name] for item in fields(cls)}
        texts: dict[str, Any] = {name: str(values[name]) for name in ("environment", "cost_kind")}
        return cls(**{**values, **texts, "states": int(values["states"])})


def find(student: Policy, teacher: Teacher, spec: EnvironmentSpec, seeds: Sequence[int]) -> Disagreements:
    """Play one episode of each policy on each seed, and compute the teacher's action in every state that the student visited.

    Args:
        student: any policy.
        teacher: an agent of the same spaces; one with a memory labels along the student's episodes.
        spec: the environment, which must end its episodes.
        seeds: one for each episode; ``evaluation_seeds("comparison", E)`` may also be used for training.
    """
    count = episodes_at_once(spec, teacher.observation_space)
    parts = [_find(student, teacher, spec, seeds[first : first + count]) for first in range(0, len(seeds), count)]
    costs = np.concatenate([part.costs for part in parts])
    order = np.argsort(-costs, kind="stable")
    # The costliest of all are among the costliest of each part.
    has_observation = np.concatenate([np.arange(len(part.costs)) < length(part.observations) for part in parts])
    position = np.cumsum(has_observation) - 1
    with_observation = order[: _limit(parts[0].observations)]
    joined = {
        item.name: np.concatenate([getattr(part, item.name) for part in parts])
        for item in fields(Disagreements)
        if item.name not in ("environment", "cost_kind", "states", "observations")
    }
    joined |= {name: joined[name][order] for name in ("teacher_actions", "student_actions", "costs", "seeds", "steps")}
    return Disagreements(
        spec.id,
        parts[0].cost_kind,
        sum(part.states for part in parts),
        rows_of(concatenate([part.observations for part in parts]), position[with_observation]),
        **joined,
    )


def _limit(observations: Tree) -> int:
    """Maximum number of observations that are kept."""
    return MAX_OBSERVATION_BYTES // max(sum(math.prod(leaf.shape[1:]) * leaf.itemsize for leaf in leaves(observations)), 1)


def _find(student: Policy, teacher: Teacher, spec: EnvironmentSpec, seeds: Sequence[int]) -> Disagreements:
    """``find`` for episodes that fit into memory together."""
    student_episodes, teacher_episodes = record(student, spec, seeds), record(teacher, spec, seeds)
    observations = concatenate([episode.observations for episode in student_episodes])
    actions = concatenate([episode.actions for episode in student_episodes])
    labels = labels_along(teacher, student_episodes) if isinstance(teacher, RecurrentTeacher) else None
    teacher_actions = _actions_of(teacher, observations) if labels is None else _executed(teacher, labels)
    lengths = np.array([len(episode.rewards) for episode in student_episodes])
    episodes = np.repeat(np.arange(len(student_episodes)), lengths)
    steps = np.concatenate([np.arange(length) for length in lengths])
    differ = ~alike(actions, teacher_actions, teacher.action_space, student, teacher)
    kind, costs = _cost(teacher, student_episodes, observations, actions, teacher_actions, labels)
    rows = np.flatnonzero(differ)
    rows = rows[np.argsort(-costs[rows], kind="stable")]
    first = np.full(len(student_episodes), -1)
    for row in np.flatnonzero(differ)[::-1]:  # backwards, so that the first is written last
        first[episodes[row]] = steps[row]
    return Disagreements(
        environment=spec.id,
        cost_kind=kind,
        states=length(observations),
        observations=rows_of(observations, rows[: _limit(observations)]),
        teacher_actions=teacher_actions[rows],
        student_actions=actions[rows],
        costs=costs[rows],
        seeds=np.asarray(seeds, np.int64)[episodes[rows]],
        steps=steps[rows],
        episode_seeds=np.asarray(seeds, np.int64),
        student_returns=np.array([episode.episode_return for episode in student_episodes]),
        teacher_returns=np.array([episode.episode_return for episode in teacher_episodes]),
        student_lengths=lengths,
        teacher_lengths=np.array([len(episode.rewards) for episode in teacher_episodes]),
        first_steps=first,
        parting_steps=np.array(
            [
                parting_step(of_student.rewards, of_teacher.rewards)
                for of_student, of_teacher in zip(student_episodes, teacher_episodes, strict=True)
            ]
        ),
    )


def worst_states(found: Disagreements, count: int) -> Tree:
    """Raw observations ``[<= count, ...]`` of the costliest disagreements, without duplicates."""
    if not length(found.observations):
        return found.observations
    flat = np.concatenate([part.reshape(len(part), -1) for part in leaves(found.observations)], axis=1)
    _, distinct = np.unique(flat, axis=0, return_index=True)
    return rows_of(found.observations, np.sort(distinct)[:count])


def read_worst_states(path: str | Path, space: gym.Space, count: int) -> tuple[Tree, str]:
    """``worst_states`` of a file that ``Disagreements.save`` wrote, and the id of their environment.

    The file is data: nothing in it is executed.

    Args:
        path: the file.
        space: observation space that the states must belong to.
        count: maximum number of states.

    Raises:
        RequestError: in one line, if the file is missing or damaged, holds no state, or holds states of another observation space.
    """
    fix = "name the disagreements.npz that compare_policies writes"
    if not os.path.isfile(path):
        raise RequestError(f"there is no file {path}: {fix}")
    with refuse_damage(path, f"{fix}, with fewer --episodes if it is too large"):
        found = Disagreements.load(path)
        states = worst_states(found, count)
    if not length(states):
        raise RequestError(f"{path} holds no states: the student acted as its teacher in all {found.states:,} of them; leave it out")
    if reason := _why_not_of(space, states):
        raise RequestError(f"{path} holds states of {found.environment}, which are not observations of the teacher: {reason}")
    return states, found.environment


def _why_not_of(space: gym.Space, observations: Tree) -> str | None:
    """Why ``observations`` ``[B, ...]`` do not belong to ``space``; None if they do. The bounds of a Box are not checked."""
    if isinstance(space, gym.spaces.Dict) or isinstance(observations, dict):
        parts = space.spaces if isinstance(space, gym.spaces.Dict) else {}
        keys = list(observations) if isinstance(observations, dict) else []
        if set(keys) != set(parts):
            return f"their keys are {keys}, those of its observations {list(parts)}"
        return next((f"{key}: {why}" for key, part in parts.items() if (why := _why_not_of(part, observations[key]))), None)
    if observations.shape[1:] != (space.shape or ()):
        return f"they are of shape {observations.shape[1:]}, its observations of {space.shape or ()}"
    if isinstance(space, gym.spaces.Box):
        if observations.dtype not in (np.float32, np.float64, space.dtype):
            return f"they are {observations.dtype}, its observations {space.dtype}"
        return None if np.isfinite(observations).all() else "some are not finite"
    if observations.dtype.kind not in "iu" or not all(space.contains(observation) for observation in observations):
        return f"some are not in {space}"
    return None


def parting_step(student_rewards: np.ndarray, teacher_rewards: np.ndarray) -> int:
    """The student's first step after which its running loss always exceeds ``PARTED`` of its final loss; -1 if it lost nothing.

    The loss is the teacher's sum of rewards minus the student's. After an episode's end its sum is constant, so a student that fails early
    parts at its episode's end at the latest.

    Args:
        student_rewards, teacher_rewards: ``[T]`` of two episodes, which may be of different lengths.
    """
    longest = max(len(student_rewards), len(teacher_rewards))
    running = [np.cumsum(np.pad(rewards, (0, longest - len(rewards)))) for rewards in (student_rewards, teacher_rewards)]
    behind = running[1] - running[0]
    if behind[-1] <= 0:
        return -1
    level = np.flatnonzero(behind <= PARTED * behind[-1])
    return int(min(level[-1] + 1 if len(level) else 0, len(student_rewards) - 1))


def _actions_of(teacher: Teacher, observations: Tree) -> np.ndarray:
    """The actions of a teacher without a memory for ``observations`` ``[B, ...]``, the same as in ``evaluate``."""
    return np.concatenate([actor(teacher, length(part))(part) for part in passes(observations)])


def _executed(teacher: Teacher, labels: ActionTargets) -> np.ndarray:
    """Labelled actions ``[B, ...]`` as ``env.step`` takes them."""
    actions = labels.actions.numpy()
    return executable(teacher.action_space, len(actions))(actions)


def _cost(
    teacher: Teacher,
    episodes: list[Trajectory],
    observations: Tree,
    actions: np.ndarray,
    teacher_actions: np.ndarray,
    labels: ActionTargets | None,
) -> tuple[str, np.ndarray]:
    """The most informative measure of ``COSTS`` that the teacher supports, and the cost ``[B]`` of the student's actions ``[B, ...]``.

    ``labels`` are those of a teacher with a memory, which is not asked about single observations.
    """
    if why_no_action_values(teacher) is None:
        return "q_gap", _by_chunks(functools.partial(q_gap, teacher), observations, actions)
    gamma = teacher.facts.get("gamma")
    if teacher.has_values and isinstance(gamma, int | float):
        return "advantage", np.concatenate([_shortfall(teacher, episode, float(gamma)) for episode in episodes])
    if teacher.family.box is None and labels is not None:
        return "log_prob_gap", _gap_of(teacher, labels, torch.from_numpy(actions)).double().numpy()
    if teacher.family.box is None:
        return "log_prob_gap", _by_chunks(functools.partial(_log_prob_gap, teacher), observations, actions)
    scale, _ = teacher.family.box.affine()
    return "action_distance", np.linalg.norm(((actions - teacher_actions).reshape(len(actions), -1)) / scale, axis=1)


def _by_chunks(cost: Callable[[Tree, Tensor], Tensor], observations: Tree, actions: np.ndarray) -> np.ndarray:
    parts = list(passes(to_tensors(observations)))
    actions_of_parts = torch.from_numpy(actions).split([length(part) for part in parts])
    return torch.cat([cost(*part) for part in zip(parts, actions_of_parts, strict=True)]).double().numpy()


@torch.inference_mode()
def _shortfall(teacher: Teacher, episode: Trajectory, gamma: float) -> np.ndarray:
    """``V(s) - (reward + gamma V(next s))`` ``[T]``: minus the one-step estimate of the advantage (Schulman et al. 2016, sec. 3)."""
    states = concatenate([episode.observations, stack([episode.last_observation])])
    values = torch.cat([teacher.values(part) for part in passes(to_tensors(states))]).double().numpy()
    if episode.terminated:  # after truncation the last state keeps its value
        values[-1] = 0.0
    return values[:-1] - (episode.rewards + gamma * values[1:])


@torch.inference_mode()
def _log_prob_gap(teacher: Teacher, observations: Tree, actions: Tensor) -> Tensor:
    return _gap_of(teacher, teacher.targets(observations), actions)


def _gap_of(teacher: Teacher, targets: ActionTargets, actions: Tensor) -> Tensor:
    family, parameters = teacher.family, targets.parameters
    if "q_values" in parameters:
        parameters = {"logits": parameters["q_values"]}
    of_teacher, of_student = (family.log_prob(parameters, family.raw(chosen)) for chosen in (targets.actions, actions))
    return of_teacher - of_student
