"""Comparison of an exported policy with its student: on the states that the student visits, and by their returns."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.export.artefact import by_name
from policy_distill.export.runner import Runner, Visited
from policy_distill.policies.student import Student
from policy_distill.rollouts.episodes import evaluation_seeds
from policy_distill.rollouts.trajectories import episodes_at_once, record
from policy_distill.support import trees

STATES = 10_000
"""Minimum number of states for a comparison."""
AT_ONCE, MAX_EPISODES = 16, 4096
"""Episodes that are recorded together, and their maximum number in total."""


@dataclass(frozen=True)
class Decisions:
    """A student's own decisions in visited states.

    Attributes:
        whole: the environment's observations.
        visited: what the student sees of them.
        actions: ``[S, ...]``.
        outputs: ``[S, outputs]``.
        after: recurrent state after each decision, ``[S, units]``.
    """

    whole: Visited
    visited: Visited
    actions: np.ndarray
    outputs: np.ndarray
    after: np.ndarray


@dataclass(frozen=True)
class Parity:
    """How far an exported policy's decisions are from its student's, state by state.

    Attributes:
        states: number of states.
        equal_actions: share of the states with the same action (discrete), or with actions within 1 % of the range (continuous).
        largest_difference: of continuous actions or of logits, see ``unit``.
        mean_difference: mean of the same.
        largest_state_difference: of the units of the recurrent state after the step; 0 without a memory.
        unit: ``of half the range`` (continuous actions) or ``of the logits``.
    """

    states: int
    equal_actions: float
    largest_difference: float
    mean_difference: float
    largest_state_difference: float
    unit: str


@torch.inference_mode()
def decisions_of(student: Student, spec: EnvironmentSpec, states: int = STATES) -> Decisions:
    """The student's decisions along its own episodes on the comparison seeds: at least ``states``. No episode counts for more."""
    parts: list[Decisions] = []
    count, played = 0, 0
    at_once = min(AT_ONCE, episodes_at_once(spec, student.observation_space))
    while count < states and played < MAX_EPISODES:
        seeds = evaluation_seeds("comparison", played + at_once)[played:]
        for episode in record(student, spec, seeds, max_steps=states):
            parts.append(_decide(student, episode.observations, episode.seed))
            count += len(parts[-1].visited)
        played += at_once
    joined = [np.concatenate([getattr(part, name) for part in parts]) for name in ("actions", "outputs", "after")]
    visited = _joined([part.visited for part in parts])
    return Decisions(visited if student.view is None else _joined([part.whole for part in parts]), visited, *joined)


def _decide(student: Student, observations: trees.Tree, seed: int) -> Decisions:
    """The decisions along one episode ``[T, ...]``."""
    steps, seen = trees.length(observations), observations
    if student.view is not None:
        state, rows = student.view.initial_state(1), []
        for step, observation in enumerate(trees.blocks(observations, 1)):
            row, state = student.view.step(observation, state, np.array([seed]) if step == 0 else None)
            rows.append(trees.copied(row))
        seen = trees.concatenate(rows)
    tensors = trees.to_tensors(seen)
    if student.memory is None:
        outputs, after = torch.cat([student(part) for part in trees.passes(tensors)]), torch.zeros(steps, 0)
        before = after
    else:
        outputs, after = _along(student, tensors)
        before = torch.cat([torch.zeros(1, after.shape[1]), after[:-1]])
    actions = student.for_environment(student.family.mode(student.distribution(outputs)))
    memory = before.numpy()
    return Decisions(Visited(by_name(observations), memory), Visited(by_name(seen), memory), actions, outputs.numpy(), after.numpy())


def _along(student: Student, seen: trees.Tree) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and recurrent states ``[T, ...]`` after each step of one episode."""
    outputs, states, memory = [], [], None
    for row in trees.blocks(seen, 1):
        output, memory = student.unroll(trees.map_leaves(lambda leaf: leaf[None], row), memory)
        outputs.append(output[0])
        states.append(memory)
    return torch.cat(outputs), torch.cat(states)


def _joined(parts: list[Visited]) -> Visited:
    seen = {name: np.concatenate([part.seen[name] for part in parts]) for name in parts[0].seen}
    return Visited(seen, np.concatenate([part.states for part in parts]))


def compare(run: Runner, visited: Visited, student: Student, decisions: Decisions, *, rows: int = 256) -> Parity:
    """The decisions of ``run`` in ``visited`` next to the student's, in batches of ``rows``."""
    starts = range(0, len(visited), rows)
    parts = [visited.rows(slice(start, start + rows)) for start in starts]
    actions, outputs, after = (np.concatenate(arrays) for arrays in zip(*(run(part.seen, part.states) for part in parts), strict=True))
    count = len(actions)
    if student.family.box is None:
        equal = (actions == decisions.actions).reshape(count, -1).all(1)
        differences, unit = np.abs(outputs - decisions.outputs).max(1), "of the logits"
    else:
        scale = student.family.box.affine()[0]
        differences = (np.abs(actions.astype(np.float64) - decisions.actions).reshape(count, -1) / scale).max(1)
        equal, unit = differences <= 0.02, "of half the range"
    of_states = float(np.abs(after - decisions.after).max(initial=0.0))
    return Parity(count, float(equal.mean()), float(differences.max()), float(differences.mean()), of_states, unit)


def microseconds(run: Runner, visited: Visited, calls: int = 2000) -> float:
    """Time of one decision for one state, as the median over blocks of a hundred calls."""
    rows = [visited.rows(slice(index, index + 1)) for index in range(min(100, len(visited)))]
    blocks = []
    for _ in range(max(calls // len(rows), 1)):
        began = time.perf_counter()
        for row in rows:
            run(row.seen, row.states)
        blocks.append((time.perf_counter() - began) / len(rows))
    return float(np.median(blocks) * 1e6)
