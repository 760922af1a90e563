"""What an exported policy is compared with: the student, on independent rows."""

from __future__ import annotations

import numpy as np
import torch

from policy_distill.environments.action_masks import MASK
from policy_distill.export.folded import ALONE, MASK_NAME, ActionRule, fold_student
from policy_distill.export.runner import Runner, Seen, Visited
from policy_distill.policies.student import Student
from policy_distill.support.trees import Tree, map_leaves, to_tensors
from tests.export.kinds import observations_of

Decisions = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Actions, outputs and states after the step."""
TIE = 1e-5
"""Difference of logits below which rounding may decide."""


def seen_of(observations: Tree) -> Seen:
    """Observations by the names of ``Folded.inputs``."""
    if not isinstance(observations, dict):
        return {ALONE: observations}
    return {MASK_NAME if key == MASK else key: leaf for key, leaf in observations.items()}


def rows_for(student: Student, count: int, seed: int = 0) -> tuple[Tree, Visited]:
    """Drawn observations and recurrent states: as the student takes them, and as a runner does."""
    observations = observations_of(student.architecture.seen_space, count, seed)
    states = np.tanh(np.random.default_rng(seed).normal(size=(count, student.architecture.memory))).astype(np.float32)
    return observations, Visited(seen_of(observations), states)


@torch.inference_mode()
def decisions_of(student: Student, observations: Tree, states: np.ndarray) -> Decisions:
    """The student's decisions on independent rows; without a memory the actions are those of ``Student.act``."""
    seen = to_tensors(observations)
    if student.memory is None:
        return student.act(observations), student(seen).numpy(), states
    sequence, after = student.unroll(map_leaves(lambda leaf: leaf[None], seen), torch.from_numpy(states))
    actions = student.family.mode(student.distribution(sequence[0])).numpy()
    return actions.reshape(len(states), *student.action_space.shape), sequence[0].numpy(), after.numpy()  # type: ignore[misc]


def assert_alike(student: Student, found: Decisions, expected: Decisions) -> None:
    """Equal within float32 rounding; discrete actions are equal unless two logits are."""
    rule = fold_student(student).rule
    (actions, outputs, after), (expected_actions, expected_outputs, expected_after) = found, expected
    assert len(np.unique(expected_actions, axis=0)) > 1
    np.testing.assert_allclose(outputs, expected_outputs, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(after, expected_after, rtol=1e-4, atol=2e-5)
    assert actions.dtype == rule.dtype
    assert actions.shape == expected_actions.shape
    if rule.kind == "box":
        np.testing.assert_allclose(actions, expected_actions, rtol=1e-4, atol=1e-4)
        return
    clear = ~tied(rule, expected_outputs)
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(actions[clear], expected_actions[clear])


def tied(rule: ActionRule, outputs: np.ndarray, margin: float = TIE) -> np.ndarray:
    """``[B]`` bool: whether some component is decided by less than ``margin``; logits of forbidden actions are equal and do not round."""
    if rule.kind == "bits":
        margins = np.abs(outputs)
    else:
        ordered = [np.sort(part, axis=1) for part in np.split(outputs, np.cumsum(rule.sizes)[:-1], axis=1)]
        margins = np.stack([part[:, -1] - part[:, -2] for part in ordered], axis=1)
    return ((margins > 0) & (margins < margin)).any(1)


def in_batches(runner: Runner, rows: Visited, size: int) -> Decisions:
    """A runner's decisions, ``size`` rows at a time."""
    parts = [runner(part.seen, part.states) for part in (rows.rows(slice(first, first + size)) for first in range(0, len(rows), size))]
    actions, outputs, after = (np.concatenate(column) for column in zip(*parts, strict=True))
    return actions, outputs, after
