"""In numpy as in torch: every kind of teacher and student says what its modules say."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.rollouts.numpy_policies import actor, labeller, outputs_of
from policy_distill.teachers import Teacher
from policy_distill.teachers.files.normalization import ObservationNormalization
from tests.small_worlds import image_student, random_observations, random_student
from tests.teachers.conftest import LOPSIDED, THREE, VECTOR, build

ROWS = 6
OBSERVATIONS = np.random.default_rng(0).normal(0, 2, (ROWS, 3)).astype(np.float32)
SYMMETRIC = gym.spaces.Box(-1, 1, (2,), np.float32)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "ppo, discrete": ("PPO", {"action_space": THREE}),
    "ppo, dials": ("PPO", {"action_space": gym.spaces.MultiDiscrete([2, 3])}),
    "ppo, switches": ("PPO", {"action_space": gym.spaces.MultiBinary(3)}),
    "ppo, bounds that are not symmetric": ("PPO", {"action_space": LOPSIDED}),
    "a2c, the box": ("A2C", {"action_space": SYMMETRIC}),
    "a2c, gSDE": ("A2C", {"action_space": LOPSIDED, "use_sde": True}),
    "a2c, gSDE, expln": ("A2C", {"action_space": LOPSIDED, "use_sde": True, "policy_kwargs": {"use_expln": True}}),
    "a2c, elu": ("A2C", {"action_space": LOPSIDED, "policy_kwargs": {"activation_fn": torch.nn.ELU}}),
    "sac": ("SAC", {}),
    "sac, gSDE": ("SAC", {"use_sde": True}),
    "td3": ("TD3", {}),
    "dqn": ("DQN", {"action_space": THREE}),
    "qrdqn": ("QRDQN", {"action_space": THREE}),
    "tqc": ("TQC", {}),
    "large": ("PPO", {"action_space": LOPSIDED, "policy_kwargs": {"net_arch": [256, 256]}}),
}


def teacher_of(kind: str, *, normalized: bool = False) -> Teacher:
    algo, options = KINDS[kind]
    teacher = Teacher.from_sb3(build(algo, **{**options, "policy_kwargs": dict(options.get("policy_kwargs", {}))}))
    if not normalized:
        return teacher
    statistics = ObservationNormalization(np.array([0.5, -1.0, 2.0]), np.array([4.0, 0.01, 1.0]), 1e-8, 3.0)
    return Teacher(teacher.network, teacher.observation_space, teacher.action_space, algo=teacher.algo, normalization=statistics)


def assert_says_the_same(teacher: Teacher, observations: np.ndarray) -> None:
    expected = teacher.targets(torch.tensor(observations))
    parameters, actions = labeller(teacher, ROWS)(observations)
    assert parameters.keys() == expected.parameters.keys()
    for name, value in parameters.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, expected.parameters[name].numpy(), rtol=2e-5, atol=2e-5, err_msg=name)
    assert actions.dtype == expected.actions.numpy().dtype
    np.testing.assert_allclose(actions, expected.actions.numpy(), rtol=2e-5, atol=2e-5)
    acted = actor(teacher, ROWS)(observations)
    assert acted.dtype == teacher.act(observations).dtype
    np.testing.assert_allclose(acted, teacher.act(observations), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalized", [False, True])
def test_labels_are_the_teacher_s_targets(kind, normalized):
    teacher = teacher_of(kind, normalized=normalized)
    assert_says_the_same(teacher, OBSERVATIONS)
    assert_says_the_same(teacher, OBSERVATIONS.astype(np.float64))


def test_observations_stay_as_they_are_and_clipping_is_reached():
    teacher, before = teacher_of("sac", normalized=True), OBSERVATIONS.copy()
    label = labeller(teacher, ROWS)
    first = label(OBSERVATIONS)[1].copy()
    np.testing.assert_array_equal(label(OBSERVATIONS)[1], first)
    np.testing.assert_array_equal(OBSERVATIONS, before)
    far = OBSERVATIONS * 1e6
    np.testing.assert_array_equal(label(far)[1], label(far * 10)[1])


def test_recorded_layers_are_among_the_labels():
    teacher = teacher_of("ppo, discrete")
    layer = next(iter(teacher.layers()))
    parameters, _ = labeller(teacher.recording([layer]), ROWS)(OBSERVATIONS)
    assert set(parameters) == {"logits", f"layer:{layer}"}


def test_ensembles_and_callables_are_asked_as_they_are():
    team = Teacher.ensemble([teacher_of("sac"), teacher_of("td3")])
    by_value = Teacher.ensemble([teacher_of("sac"), teacher_of("td3")], combine="value")
    gaussians = Teacher.ensemble([teacher_of("a2c, gSDE"), teacher_of("large")], weights=[1, 3])
    function = Teacher.from_callable(lambda seen: seen[:, :2], VECTOR, LOPSIDED)
    for teacher in (team, by_value, gaussians, function):
        assert_says_the_same(teacher, OBSERVATIONS)


@pytest.mark.parametrize(
    ("space", "activation"),
    [
        (THREE, "relu"),
        (gym.spaces.Discrete(3, start=5), "tanh"),
        (LOPSIDED, "silu"),
        (SYMMETRIC, "elu"),
        (gym.spaces.MultiBinary(2), "relu"),
    ],
    ids=str,
)
def test_a_student_acts_as_its_modules_do(space, activation):
    student = random_student(VECTOR, space, hidden_sizes=(9, 5), activation=activation)
    student.mean.copy_(torch.tensor([0.5, -1.0, 2.0]))
    student.scale.copy_(torch.tensor([2.0, 0.1, 1.0]))
    for observations in (OBSERVATIONS, OBSERVATIONS.astype(np.float64)):
        expected, found = student.act(observations), actor(student, ROWS)(observations)
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_discrete_observations_are_left_to_the_student_itself():
    student = random_student(gym.spaces.Discrete(4), THREE)
    numbers = np.array([0, 3, 1])
    np.testing.assert_array_equal(actor(student, 3)(numbers), student.act(numbers))


def test_anything_else_acts_itself():
    class Own:
        def act(self, observations: np.ndarray) -> np.ndarray:
            return observations + 1

    np.testing.assert_array_equal(actor(Own(), ROWS)(OBSERVATIONS), OBSERVATIONS + 1)


def test_a_student_of_images_acts_on_a_row_as_on_that_row_alone():
    """At every place in the batch, beside whatever, and as its modules do."""
    student = image_student(gym.spaces.Box(0, 255, (10, 10, 4), np.uint8), gym.spaces.Box(-1.0, 1.0, (2,)), channels=(8, 16))
    images = random_observations(student.observation_space, 12)
    together = outputs_of(student, 12)(images)
    for row in range(12):
        np.testing.assert_array_equal(outputs_of(student, 1)(images[row : row + 1])[0], together[row])
    np.testing.assert_array_equal(outputs_of(student, 12)(images[::-1].copy()), together[::-1])
    np.testing.assert_allclose(together, student(torch.as_tensor(images)).numpy(), rtol=1e-4, atol=1e-5)
    assert len(np.unique(together, axis=0)) == 12
    np.testing.assert_allclose(actor(student, 12)(images), student.act(images), rtol=1e-4, atol=1e-5)
