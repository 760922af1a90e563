"""Students: their size, their normalisation, their files, and the stack that trains K of them as one."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policy_distill.config import RequestError
from policy_distill.students import ACTIVATIONS, SMALLEST_WIDTH, Architecture, Student, StudentStack, count_parameters, hidden_sizes_for
from tests.small_worlds import generator, random_observations, random_student

SEEN = gym.spaces.Box(-1.0, 1.0, (3,))
ACTED = [
    gym.spaces.Discrete(4),
    gym.spaces.Discrete(3, start=2),
    gym.spaces.MultiDiscrete([2, 3]),
    gym.spaces.MultiBinary(3),
    gym.spaces.Box(np.array([-2, 0], np.float32), np.array([6, 1], np.float32)),
    gym.spaces.Box(-2.0, 6.0, (2, 1)),
]
sizes = st.lists(st.integers(1, 6), max_size=3).map(tuple)
pytestmark = pytest.mark.filterwarnings("ignore:grad and param do not obey the gradient layout contract")
"""Views into one flat tensor are strided where there is more than one member; torch remarks on it once."""


def stack_of(architecture: Architecture, seeds: list[int]) -> StudentStack:
    inputs = architecture.widths[0]
    mean, scale = torch.linspace(-1, 1, inputs), torch.linspace(0.5, 2, inputs)
    return StudentStack(architecture, generators=[generator(seed) for seed in seeds], mean=mean, scale=scale)


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
    mode = student.family.mode(student.parameters_of(torch.as_tensor(observations)))  # type: ignore[union-attr]
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


# Stacks.


@given(sizes, st.sampled_from(ACTED), st.sampled_from(sorted(ACTIVATIONS)))
def test_a_stack_s_forward_is_each_member_s_own(hidden_sizes, action_space, activation):
    stack = stack_of(Architecture(SEEN, action_space, hidden_sizes, activation), [0, 1, 2])
    observations = torch.randn(3, 6, 3, generator=generator(9))
    outputs = stack.forward(observations).after[-1]
    for index in range(3):
        torch.testing.assert_close(stack.member(index)(observations[index]), outputs[index], rtol=1e-5, atol=1e-5)


def test_member_k_begins_as_it_would_alone():
    architecture = Architecture(SEEN, ACTED[4], (5, 7))
    together, alone = stack_of(architecture, [3, 4, 5]), stack_of(architecture, [4])
    assert torch.equal(together.flat[1], alone.flat[0])
    assert not torch.equal(together.flat[0], together.flat[1])


def test_hidden_weights_begin_orthogonal_and_the_output_small():
    stack = stack_of(Architecture(SEEN, ACTED[0], (3, 3)), [0])
    first, second, last = (weight[0].detach() for weight in stack.weights)
    for weight in (first, second):  # gain sqrt 2: W W^T = 2 I
        torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(last @ last.T, 0.01 * torch.eye(3), rtol=0, atol=1e-6)
    assert all((bias == 0).all() for bias in stack.biases)
    assert (stack_of(Architecture(SEEN, ACTED[4], ()), [0]).log_std == -1).all()


@given(sizes, st.sampled_from(sorted(ACTIVATIONS)))
def test_the_written_out_backward_pass_is_autograd_s(hidden_sizes, activation):
    stack = stack_of(Architecture(SEEN, ACTED[0], hidden_sizes, activation), [0, 1])
    observations = torch.randn(2, 6, 3, generator=generator())
    activations = stack.forward(observations)
    draws = generator(3)
    upstream = [torch.randn(layer.shape, generator=draws) for layer in activations.after]
    stack.backward(activations, upstream)
    for index in range(2):
        oracle = stack.member(index).requires_grad_()
        hidden = (observations[index] - oracle.mean) / oracle.scale
        layers = []
        for module in oracle.network:
            hidden = module(hidden)
            layers.append(hidden)
        read = [*layers[1:-1:2], layers[-1]]
        sum((layer * weight[index]).sum() for layer, weight in zip(read, upstream, strict=True)).backward()
        pieces: list[Any] = [piece for layer in oracle.linears for piece in (layer.weight.grad.T.reshape(-1), layer.bias.grad)]  # type: ignore[union-attr]
        torch.testing.assert_close(stack.gradient[index], torch.cat(pieces), rtol=1e-4, atol=1e-5)


def test_a_hidden_layer_that_no_loss_reads_adds_nothing():
    stack = stack_of(Architecture(SEEN, ACTED[0], (4,)), [0])
    activations = stack.forward(torch.randn(1, 6, 3, generator=generator()))
    upstream = torch.ones(1, 6, 4)
    stack.backward(activations, [None, upstream])
    without = stack.gradient.clone()
    stack.backward(activations, [torch.zeros(1, 6, 4), upstream])
    assert torch.equal(stack.gradient, without)


def test_the_flat_tensor_is_what_acts_and_autograd_reaches_the_spread():
    stack = stack_of(Architecture(SEEN, ACTED[4], (4,)), [0, 1])
    observations = torch.randn(2, 6, 3, generator=generator())
    (3 * stack.log_std).sum().backward()
    activations = stack.forward(observations)
    stack.backward(activations, [None, torch.zeros_like(activations.after[-1])])
    assert (stack.gradient[:, -2:] == 3).all()
    assert (stack.gradient[:, :-2] == 0).all()
    stack.backward(activations, [None, torch.zeros_like(activations.after[-1])])
    assert (stack.gradient == 0).all()  # what no loss has read since does not stay
    before = stack.forward(observations).after[-1]
    stack.flat[1].zero_()
    assert torch.equal(stack.forward(observations).after[-1][0], before[0])
    assert (stack.forward(observations).after[-1][1] == 0).all()


def test_members_do_not_feel_each_other_s_gradients():
    stack = stack_of(Architecture(SEEN, ACTED[0], (4,)), [0, 1])
    activations = stack.forward(torch.randn(2, 6, 3, generator=generator()))
    upstream = torch.zeros(2, 6, 4)
    upstream[1] = 1
    stack.backward(activations, [None, upstream])
    assert (stack.gradient[0] == 0).all()
    assert (stack.gradient[1] != 0).any()


def test_layers_have_names_and_projections_come_last():
    stack = StudentStack(
        Architecture(SEEN, ACTED[4], (4, 5)), generators=[generator()], mean=torch.zeros(3), scale=torch.ones(3), projections=[(4, 7)]
    )
    named = stack.forward(torch.zeros(1, 2, 3)).named()
    assert {name: layer.shape[-1] for name, layer in named.items()} == {"hidden.0": 4, "hidden.1": 5, "output": 2}
    # 3 -> 4 -> 5 -> 2: 16 + 25 + 12 = 53; two spreads; 4 x 7 + 7
    assert stack.flat.shape == (1, 53 + 2 + 35)
    weight, bias = stack.projections[0]
    assert (weight.shape, bias.shape) == ((1, 4, 7), (1, 1, 7))
    stack.flat[:, -7:] = 3.0
    assert (bias == 3).all()
    assert stack.member(0).log_std.shape == (2,)


def test_a_member_is_a_copy_with_the_stack_s_normalisation():
    stack = stack_of(Architecture(SEEN, ACTED[4], (4,)), [0, 1])
    student = stack.member(1)
    assert torch.equal(student.mean, stack.mean)
    assert torch.equal(student.scale, stack.scale)
    before = [parameter.clone() for parameter in student.parameters()]
    stack.flat.zero_()
    assert all(torch.equal(one, other) for one, other in zip(before, student.parameters(), strict=True))
    other = stack.member(1, torch.ones_like(stack.flat))
    assert all((parameter == 1).all() for parameter in [*other.parameters(), other.log_std])
