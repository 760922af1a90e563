"""Where a student parts from its teacher: in which states it acts otherwise, what that costs, and in which episodes its return fell."""

from __future__ import annotations

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
from policy_distill.policies.policy import FeedForward
from policy_distill.rollouts.episodes import alike
from policy_distill.rollouts.numpy_policies import actor
from policy_distill.rollouts.trajectories import Trajectory, record
from policy_distill.support.files import write_atomically
from policy_distill.support.trees import Tree, blocks, concatenate, leaves, length, stack, to_tensors
from policy_distill.support.trees import rows as rows_of
from policy_distill.support.untrusted import read_npz, refuse_damage
from policy_distill.teachers import Teacher
from policy_distill.teachers.action_values import q_gap, why_no_action_values

COSTS = {
    "q_gap": "Q(s, teacher's action) - Q(s, student's action), by the teacher's critic",
    "advantage": "V(s) - (reward + gamma V(next s)), by the teacher's critic: one draw, noisy",
    "log_prob_gap": "log p(teacher's action) - log p(student's action), by the teacher, in nats",
    "action_distance": "distance of the two actions, in halves of the range",
}
"""What a disagreement costs, the best measure that a teacher has first."""
PARTED = 0.1
"""Share of what an episode lost in the end from which on its running reward counts as parted."""


CHUNK = 4096
"""States that are asked about in one forward pass."""
MAX_BYTES = 128 << 20
"""A file that unpacks to more is not read."""


@dataclass(frozen=True)
class Disagreements:
    """D states that the student visited and in which it acts otherwise than its teacher, the costliest first; and the E episodes.

    Two actions are the same if ``episodes.alike`` says so: equal, or every component within 5 % of its range.

    Attributes:
        environment: its id.
        cost_kind: what ``costs`` are, a key of ``COSTS``.
        states: how many states were visited, all in all.
        observations: ``[D, ...]`` raw; of a Dict by key.
        teacher_actions, student_actions: ``[D, ...]`` as ``env.step`` takes them.
        costs: ``[D]``, descending; may be below 0 where they are a critic's.
        seeds, steps: ``[D]`` the episode's seed and the step, from 0.
        episode_seeds: ``[E]``.
        student_returns, teacher_returns: ``[E]`` on the same seeds.
        student_lengths, teacher_lengths: ``[E]`` in steps.
        first_steps: ``[E]`` step of the student's first disagreement; -1 if there was none.
        parting_steps: ``[E]`` the student's step from which on its running reward stays behind its teacher's by more than ``PARTED``
            of what it lost in the end; -1 if it lost nothing.
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
        """Share of the visited states in which both act alike."""
        return 1 - len(self.costs) / self.states

    @property
    def losses(self) -> np.ndarray:
        """``[E]`` what each episode of the student earned less than its teacher's."""
        return self.teacher_returns - self.student_returns

    def worst_episodes(self) -> np.ndarray:
        """Indices of the episodes in which the return fell, those that lost most first."""
        order = np.argsort(-self.losses, kind="stable")
        return order[self.losses[order] > 0]

    def save(self, path: str | Path) -> Path:
        """Write all of it as an ``.npz`` that ``numpy.load`` reads without pickle."""
        arrays = {item.name: np.asarray(getattr(self, item.name)) for item in fields(self) if item.name != "observations"}
        parts = self.observations if isinstance(self.observations, dict) else {"": self.observations}
        arrays |= {f"observations.{key}" if key else "observations": part for key, part in parts.items()}

        def write(target: Path) -> None:
            with target.open("wb") as file:  # numpy would add .npz to another ending
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

        return write_atomically(path, write)

    @classmethod
    def load(cls, path: str | Path) -> Disagreements:
        """The inverse of ``save``."""
        found: dict[str, Any] = dict(read_npz(path, None, MAX_BYTES))
        parts = {name.removeprefix("observations."): found[name] for name in found if name.startswith("observations.")}
        if parts:
            found["observations"] = parts
        if missing := [item.name for item in fields(cls) if item.name not in found]:
            raise ValueError(f"there is no item named '{missing[0]}.npy' in it")
        found = {item.name: found[item.name] for item in fields(cls)}
        words: dict[str, Any] = {name: str(found[name]) for name in ("environment", "cost_kind")}
        return cls(**{**found, **words, "states": int(found["states"])})


def find(student: FeedForward, teacher: Teacher, spec: EnvironmentSpec, seeds: Sequence[int]) -> Disagreements:
    """Let both play one episode a seed, and ask the teacher about every state that the student visited.

    Args:
        student: anything that acts.
        teacher: of the same spaces.
        spec: the environment, which must end its episodes.
        seeds: one for each episode; ``evaluation_seeds("comparison", E)`` are free for training on what is found.
    """
    played, taught = record(student, spec, seeds), record(teacher, spec, seeds)
    observations, actions = (concatenate([getattr(episode, name) for episode in played]) for name in ("observations", "actions"))
    advised = _ask(teacher, observations)
    lengths = np.array([len(episode.rewards) for episode in played])
    episodes = np.repeat(np.arange(len(played)), lengths)
    steps = np.concatenate([np.arange(length) for length in lengths])
    differ = ~alike(actions, advised, teacher.action_space, student, teacher)
    kind, costs = _cost(teacher, played, observations, actions, advised)
    rows = np.flatnonzero(differ)
    rows = rows[np.argsort(-costs[rows], kind="stable")]
    first = np.full(len(played), -1)
    for row in np.flatnonzero(differ)[::-1]:  # backwards, so that the first is written last
        first[episodes[row]] = steps[row]
    return Disagreements(
        environment=spec.id,
        cost_kind=kind,
        states=length(observations),
        observations=rows_of(observations, rows),
        teacher_actions=advised[rows],
        student_actions=actions[rows],
        costs=costs[rows],
        seeds=np.asarray(seeds, np.int64)[episodes[rows]],
        steps=steps[rows],
        episode_seeds=np.asarray(seeds, np.int64),
        student_returns=np.array([episode.episode_return for episode in played]),
        teacher_returns=np.array([episode.episode_return for episode in taught]),
        student_lengths=lengths,
        teacher_lengths=np.array([len(episode.rewards) for episode in taught]),
        first_steps=first,
        parting_steps=np.array([parting_step(own.rewards, best.rewards) for own, best in zip(played, taught, strict=True)]),
    )


def worst_states(found: Disagreements, count: int) -> Tree:
    """Raw observations ``[<= count, ...]`` of the costliest disagreements, each state once: where a student has most to learn."""
    if not length(found.observations):
        return found.observations
    flat = np.concatenate([part.reshape(len(part), -1) for part in leaves(found.observations)], axis=1)
    _, distinct = np.unique(flat, axis=0, return_index=True)
    return rows_of(found.observations, np.sort(distinct)[:count])


def read_worst_states(path: str | Path, space: gym.Space, count: int) -> tuple[Tree, str]:
    """``worst_states`` of a file that ``Disagreements.save`` wrote, for who sees ``space``, and the id of the environment they lie in.

    The file is data: nothing in it is executed.

    Raises:
        RequestError: in one line, if it is not there, is damaged, holds no state, or states of another observation space.
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
        raise RequestError(f"{path} holds states of {found.environment}, which the teacher cannot be asked about: {reason}")
    return states, found.environment


def _why_not_of(space: gym.Space, observations: Tree) -> str | None:
    """Why ``observations`` ``[B, ...]`` are none of ``space``; None if they are. Bounds of a box are not looked at."""
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
    """The student's step from which on it stays behind by more than ``PARTED`` of what it lost in the end; -1 if it lost nothing.

    Of an episode that is over, the running reward stays what it was. A student that fails early parts where its episode ends.

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


def _ask(policy: FeedForward, observations: Tree) -> np.ndarray:
    """Actions in all of ``observations`` ``[B, ...]``, those that ``evaluate`` would take."""
    return np.concatenate([actor(policy, length(part))(part) for part in blocks(observations, CHUNK)])


def _cost(
    teacher: Teacher, played: list[Trajectory], observations: Tree, actions: np.ndarray, advised: np.ndarray
) -> tuple[str, np.ndarray]:
    """What each of the student's actions ``[B, ...]`` costs, by the best measure that the teacher has, and its name."""
    if why_no_action_values(teacher) is None:
        return "q_gap", _by_chunks(lambda seen, done: q_gap(teacher, seen, done), observations, actions)
    gamma = teacher.facts.get("gamma")
    if teacher.has_values and isinstance(gamma, int | float):
        return "advantage", np.concatenate([_shortfall(teacher, episode, float(gamma)) for episode in played])
    if teacher.family.box is None:
        return "log_prob_gap", _by_chunks(lambda seen, done: _log_prob_gap(teacher, seen, done), observations, actions)
    scale, _ = teacher.family.box.affine()
    return "action_distance", np.linalg.norm(((actions - advised).reshape(len(actions), -1)) / scale, axis=1)


def _by_chunks(cost: Callable[[Tree, Tensor], Tensor], observations: Tree, actions: np.ndarray) -> np.ndarray:
    both = blocks(to_tensors(observations), CHUNK), torch.from_numpy(actions).split(CHUNK)
    return torch.cat([cost(*part) for part in zip(*both, strict=True)]).double().numpy()


@torch.inference_mode()
def _shortfall(teacher: Teacher, episode: Trajectory, gamma: float) -> np.ndarray:
    """``V(s) - (reward + gamma V(next s))`` ``[T]``: minus the one-step estimate of the advantage (Schulman et al. 2016, sec. 3)."""
    states = concatenate([episode.observations, stack([episode.last_observation])])
    values = teacher.values(to_tensors(states)).double().numpy()
    if episode.terminated:  # a truncated episode would have gone on
        values[-1] = 0.0
    return values[:-1] - (episode.rewards + gamma * values[1:])


@torch.inference_mode()
def _log_prob_gap(teacher: Teacher, observations: Tree, actions: Tensor) -> Tensor:
    targets: ActionTargets = teacher.targets(observations)
    family, parameters = teacher.family, targets.parameters
    if "q_values" in parameters:
        parameters = {"logits": parameters["q_values"]}
    own, others = (family.log_prob(parameters, family.raw(chosen)) for chosen in (targets.actions, actions))
    return own - others
