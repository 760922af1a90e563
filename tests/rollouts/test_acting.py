"""RecurrentPPO's agents in the loops: their answers are the network's, and a row's are the same, bit for bit, whatever stands beside it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.environments.vector import GOES_ON
from policy_distill.rollouts.acting import acting, labelling
from policy_distill.support import trees
from policy_distill.teachers import RecurrentTeacher, Teacher
from tests.teachers.test_recurrent import PARTS, model_of, tiny

SPACES = gym.spaces
VECTOR = SPACES.Box(-5, 5, (4,), np.float32)
BOX = SPACES.Box(np.array([-2, 0], np.float32), np.array([1, 5], np.float32))
CASES: dict[str, tuple[gym.Space, gym.Space, dict[str, Any]]] = {
    "discrete": (VECTOR, SPACES.Discrete(4), {}),
    "two layers": (VECTOR, SPACES.Discrete(3), {"n_lstm_layers": 2}),
    "dict": (PARTS, SPACES.MultiDiscrete([3, 2]), {}),
    "switches": (VECTOR, SPACES.MultiBinary(3), {"net_arch": []}),
    "box": (VECTOR, BOX, {}),
    "box of integers": (VECTOR, SPACES.Box(-3, 3, (2,), np.int32), {}),
    "gsde": (PARTS, BOX, {"use_sde": True, "squash_output": True}),
}


def drawn(space: gym.Space, steps: int, rows: int) -> tuple[list[Any], list[np.ndarray | None]]:
    """Observations of each step, and where episodes begin: None where all go on."""
    space.seed(0)
    stream = np.random.default_rng(0)
    observations = [trees.stack([space.sample() for _ in range(rows)]) for _ in range(steps)]
    starts = [np.where(stream.random(rows) < (1 if step == 0 else 0.2), 7, GOES_ON) for step in range(steps)]
    return observations, [None if (part == GOES_ON).all() else part for part in starts]


@pytest.mark.parametrize("case", CASES)
def test_answers_are_those_of_the_network_and_depend_on_their_row_alone(case):
    observed, actions, settings = CASES[case]
    teacher = Teacher.from_sb3(model_of(tiny(observed, actions), **settings))
    assert isinstance(teacher, RecurrentTeacher)
    rows, alone = 6, [4, 1]
    together, apart, acts = labelling(teacher, rows), labelling(teacher, 2), acting(teacher, rows, actions)
    states = [together.initial_state(rows), apart.initial_state(2), acts.initial_state(rows), teacher.initial_state(rows)]
    named = []
    for observations, starts in zip(*drawn(observed, 40, rows), strict=True):
        (parameters, labels), states[0] = together.step(observations, states[0], starts)
        parameters, labels = {name: values.copy() for name, values in parameters.items()}, labels.copy()
        few = trees.rows(observations, alone)
        (own, own_labels), states[1] = apart.step(few, states[1], None if starts is None else starts[alone])
        np.testing.assert_array_equal(own_labels, labels[alone])
        for name, values in own.items():
            np.testing.assert_array_equal(values, parameters[name][alone])
        expected, _ = teacher.step(observations, states[3], starts)
        targets, states[3] = teacher.label(observations, states[3], starts)
        assert targets.parameters.keys() == parameters.keys()
        for name, tensor in targets.parameters.items():
            torch.testing.assert_close(torch.from_numpy(parameters[name]), tensor, atol=2e-5, rtol=2e-5)
        done, states[2] = acts.step(observations, states[2], starts)
        assert (done.shape, done.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(done.reshape(labels.shape), labels)
        named.append(labels)
    assert len(np.unique(np.concatenate(named).reshape(40 * rows, -1), axis=0)) > 2


def test_a_teacher_elsewhere_is_not_asked():
    teacher = Teacher.from_sb3(model_of(tiny(VECTOR, SPACES.Discrete(4)))).to("meta")
    with pytest.raises(ValueError, match="not on the CPU"):
        labelling(teacher, 1)
