"""Students: their size, their normalisation and their files."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policy_distill.config import RequestError, TrainingFault
from policy_distill.policies.student import ACTIVATIONS, SMALLEST_WIDTH, Architecture, Student, count_parameters, hidden_sizes_for
from tests.small_worlds import ACTED, SEEN, generator, random_observations, random_student

sizes = st.lists(st.integers(1, 6), max_size=3).map(tuple)


# Size.


def test_parameters_by_hand():
    # 3 -> 8 -> 8 -> 4: 4 * 8 + 9 * 8 + 9 * 4 = 140; linear: 4 * 4 = 16
    assert count_parameters((3, 8, 8, 4)) == 140
    assert Architecture(SEEN, ACTED[0], (8, 8)).params == 140
    assert Architecture(SEEN, ACTED[0], ()).params == 16


@given(sizes, st.sampled_from(ACTED))
def test_the_count_is_that_of_the_network(hidden_sizes, action_space):
    student = Student(Architecture(SEEN, action_space, hidden_sizes))
    assert student.params == sum(parameter.numel() for parameter in student.parameters())


@given(st.floats(1, 300), st.integers(200, 100_000), st.integers(1, 60), st.integers(1, 20))
def test_the_widths_use_the_budget_and_do_not_pass_it(compression, teacher_params, inputs, outputs):
    width, other = hidden_sizes_for(compression, teacher_params, inputs, outputs)
    assert width == other >= SMALLEST_WIDTH
    budget = teacher_params / compression
    assert count_parameters((inputs, width, width, outputs)) <= budget or width == SMALLEST_WIDTH
    assert count_parameters((inputs, width + 1, width + 1, outputs)) > budget


# Acting.


def test_observations_are_normalised_without_clipping():
    student = random_student(SEEN, ACTED[0])
    raw = 100 * torch.randn(5, 3, generator=generator())
    expected = student.network((raw - student.mean) / student.scale)
    torch.testing.assert_close(student(raw), expected)
    student.mean.zero_()
    student.scale.fill_(1.0)
    assert not torch.allclose(student(raw), expected)


@pytest.mark.parametrize("space", ACTED, ids=str)
def test_actions_are_in_the_action_space_and_are_the_mode(space):
    student = random_student(SEEN, space)
    observations = 2 * random_observations(SEEN, 50)
    actions = student.act(observations)
    assert all(space.contains(action if isinstance(action, np.ndarray) else int(action)) for action in actions)
    mode = student.family.mode(student.parameters_of(torch.as_tensor(observations)))
    np.testing.assert_array_equal(actions.reshape(mode.shape), mode.numpy())


@pytest.mark.parametrize("space", ACTED, ids=str)
def test_a_generator_makes_the_actions_draws(space):
    student = random_student(SEEN, space)
    observations = random_observations(SEEN, 200)
    drawn, again, other = (student.act(observations, generator=generator(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(drawn, again)
    assert (drawn != other).any()
    assert drawn.shape == student.act(observations).shape


def test_continuous_outputs_come_with_the_student_s_standard_deviation():
    student = random_student(SEEN, ACTED[4])
    parameters = student.parameters_of(torch.zeros(5, 3))
    assert parameters["mean"].shape == parameters["log_std"].shape == (5, 2)
    assert torch.equal(parameters["log_std"][3], student.log_std)
    assert student.log_std.shape == (2,)
    assert random_student(SEEN, ACTED[0]).log_std.shape == (0,)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_activation_lies_between_the_layers(name):
    student = Student(Architecture(SEEN, ACTED[0], (4, 4), name))
    kinds = [type(layer) for layer in student.network]
    assert kinds == [torch.nn.Linear, ACTIVATIONS[name]] * 2 + [torch.nn.Linear]


# Files.


@pytest.mark.parametrize("space", ACTED, ids=str)
def test_a_student_comes_back_from_its_files_bit_for_bit(space, tmp_path):
    student = random_student(gym.spaces.Box(-np.inf, np.inf, (3,)), space, hidden_sizes=(5, 7), activation="tanh")
    again = Student.load(student.save(tmp_path / "deep" / "student"))
    assert again.architecture == student.architecture
    assert again.state_dict().keys() == student.state_dict().keys()
    assert all(torch.equal(tensor, student.state_dict()[name]) for name, tensor in again.state_dict().items())
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_the_description_says_what_the_student_is(tmp_path):
    random_student(SEEN, ACTED[1], hidden_sizes=(5,)).save(tmp_path, extra={"environment": {"id": "X-v0"}})
    described = json.loads((tmp_path / "student.json").read_text())
    assert described["hidden_sizes"] == [5]
    assert described["params"] == 4 * 5 + 6 * 3
    assert described["action_space"] == {"type": "Discrete", "n": 3, "start": 2}
    assert described["environment"] == {"id": "X-v0"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student.json", "student.safetensors"]


def test_a_folder_without_a_student_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"holds no student\.json: name the folder"):
        Student.load(tmp_path)


@pytest.mark.parametrize("damage", ["no json", "other widths", "no weights", "half the weights", "no key", "unknown activation"])
def test_a_damaged_student_is_refused_in_one_line(damage, tmp_path):
    random_student(SEEN, ACTED[0]).save(tmp_path)
    description, weights = tmp_path / "student.json", tmp_path / "student.safetensors"
    data = json.loads(description.read_text())
    match damage:
        case "no json":
            description.write_text("{")
        case "other widths":
            description.write_text(json.dumps({**data, "hidden_sizes": [9]}))
        case "no key":
            description.write_text(json.dumps({"format": 1}))
        case "unknown activation":
            description.write_text(json.dumps({**data, "activation": "gelu"}))
        case "no weights":
            weights.unlink()
        case "half the weights":
            weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(RequestError, match="again") as caught:
        Student.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["network.0.weight", "mean", "log_std"])
def test_a_student_with_numbers_that_are_not_finite_is_neither_saved_nor_read(value, name, tmp_path, monkeypatch):
    student = random_student(SEEN, ACTED[-1])
    {student.architecture.written(key): tensor for key, tensor in student.state_dict().items()}[name].fill_(value)
    with pytest.raises(TrainingFault, match=rf"the student's {name} holds NaN or infinity, and it is not saved"):
        student.save(tmp_path)
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(Student, "not_finite", lambda self: None)
        student.save(tmp_path)
    with pytest.raises(RequestError, match=rf"the tensor {name} holds NaN or infinity\): it holds no readable student; write it again"):
        Student.load(tmp_path)
