"""The stack that trains K students as one, against each member as an ordinary module under autograd."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from policy_distill.policies.architecture import ACTIVATIONS, Architecture
from policy_distill.training.stacks.analytic import NARROW, SPLIT, Activations, StudentStack
from tests.small_worlds import ACTED, SEEN, generator

sizes = st.lists(st.integers(1, 6), max_size=3).map(tuple)


def stack_of(architecture: Architecture, seeds: list[int]) -> StudentStack:
    inputs = architecture.widths[0]
    mean, scale = torch.linspace(-1, 1, inputs), torch.linspace(0.5, 2, inputs)
    return StudentStack(architecture, generators=[generator(seed) for seed in seeds], mean=mean, scale=scale)


def passed(stack: StudentStack, observations: Tensor) -> tuple[Tensor, Activations]:
    """Inputs and activations of one forward pass over ``[K, B, inputs]``."""
    normalised = (observations - stack.mean) / stack.scale
    inputs = torch.cat([normalised, torch.ones_like(normalised[..., :1])], dim=-1).transpose(1, 2).contiguous()
    activations = stack.buffers(observations.shape[1])
    stack.forward(inputs, activations)
    return inputs, activations


def outputs_of(stack: StudentStack, observations: Tensor) -> Tensor:
    """``[K, B, outputs]``."""
    return passed(stack, observations)[1].named()["output"]


# Stacks.


@given(sizes, st.sampled_from(ACTED), st.sampled_from(sorted(ACTIVATIONS)))
def test_a_stack_s_forward_is_each_member_s_own(hidden_sizes, action_space, activation):
    stack = stack_of(Architecture(SEEN, action_space, hidden_sizes, activation), [0, 1, 2])
    observations = torch.randn(3, 6, 3, generator=generator(9))
    outputs = outputs_of(stack, observations)
    for index in range(3):
        torch.testing.assert_close(stack.member(index)(observations[index]), outputs[index], rtol=1e-5, atol=1e-5)


def test_member_k_begins_as_it_would_alone():
    architecture = Architecture(SEEN, ACTED[4], (5, 7))
    together, alone = stack_of(architecture, [3, 4, 5]), stack_of(architecture, [4])
    assert torch.equal(together.flat[1], alone.flat[0])
    assert not torch.equal(together.flat[0], together.flat[1])


# Members of different widths.

NARROWER = [(6, 5), (2, 5), (6, 1), (3, 3)]


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_a_narrower_member_trains_as_alone(activation):
    """Ten steps of Adam on made-up slopes: units that a member does not have never wake up."""
    wide = Architecture(SEEN, ACTED[4], (6, 5), activation)
    stack = StudentStack(
        wide, generators=[generator(seed) for seed in range(4)], mean=torch.zeros(3), scale=torch.ones(3), hidden_sizes=NARROWER
    )
    alone = [stack_of(dataclasses.replace(wide, hidden_sizes=sizes), [seed]) for seed, sizes in enumerate(NARROWER)]
    observations, slopes = (torch.randn(10, 4, 6, width, generator=generator(8)) for width in (3, stack.architecture.widths[-1]))
    for one in alone:
        one.mean, one.scale = stack.mean, stack.scale
    whole = [stack, *alone]
    adams = [torch.optim.Adam([trained.flat], lr=0.05) for trained in whole]
    for step in range(10):
        for number, (trained, adam) in enumerate(zip(whole, adams, strict=True)):
            rows = slice(None) if number == 0 else slice(number - 1, number)
            inputs, activations = passed(trained, observations[step, rows])
            activations.slopes[-1].copy_(slopes[step, rows].mT)
            trained.backward(inputs, activations)
            trained.flat.grad = trained.gradient
            adam.step()
    for index, one in enumerate(alone):
        mine, theirs = stack.member(index), one.member(0)
        assert mine.architecture.hidden_sizes == NARROWER[index]
        for own, expected in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
    lacking = [stack.weights[0][1, :, 2:], stack.weights[1][1, 2:-1], stack.weights[1][2, :, 1:], stack.weights[2][2, 1:-1]]
    assert all((weights == 0).all() for weights in lacking)


@pytest.mark.parametrize("sizes", [(7, 5), (6,), (6, 5, 1)])
def test_members_must_fit_into_the_stack(sizes):
    with pytest.raises(ValueError, match=r"do not fit into \(6, 5\)"):
        StudentStack(
            Architecture(SEEN, ACTED[0], (6, 5)), generators=[generator()], mean=torch.zeros(3), scale=torch.ones(3), hidden_sizes=[sizes]
        )


def test_hidden_weights_begin_orthogonal_and_the_output_small():
    stack = stack_of(Architecture(SEEN, ACTED[0], (3, 3)), [0])
    first, second, last = (weight[0, :-1] for weight in stack.weights)
    for weight in (first, second):  # gain sqrt 2: W W^T = 2 I
        torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(last @ last.T, 0.01 * torch.eye(3), rtol=0, atol=1e-6)
    assert all((weight[:, -1] == 0).all() for weight in stack.weights)
    assert (stack_of(Architecture(SEEN, ACTED[4], ()), [0]).log_std == -1).all()


def check_backward(hidden_sizes: tuple[int, ...], activation: str, action_space: gym.Space, members: int) -> None:
    stack = stack_of(Architecture(SEEN, action_space, hidden_sizes, activation), list(range(members)))
    observations = torch.randn(members, 6, 3, generator=generator())
    inputs, activations = passed(stack, observations)
    draws = generator(3)
    *hints, slope = [torch.randn(layer.shape, generator=draws) for layer in activations.before]
    activations.slopes[-1].copy_(slope)
    stack.backward(inputs, activations, hints)
    for index in range(members):
        oracle = stack.member(index).requires_grad_()
        hidden = (observations[index] - oracle.mean) / oracle.scale
        layers = []
        for module in oracle.network:
            hidden = module(hidden)
            layers.append(hidden)
        read = [*layers[1:-1:2], layers[-1]]
        sum((layer * weight[index].T).sum() for layer, weight in zip(read, [*hints, slope], strict=True)).backward()
        pieces: list[Any] = [piece for layer in oracle.linears for piece in (layer.weight.grad.T.reshape(-1), layer.bias.grad)]  # type: ignore[union-attr]
        expected = torch.cat(pieces)
        torch.testing.assert_close(stack.gradient[index, : len(expected)], expected, rtol=1e-4, atol=2e-5)


@given(sizes, st.sampled_from(sorted(ACTIVATIONS)))
def test_the_written_out_backward_pass_is_autograd_s(hidden_sizes, activation):
    check_backward(hidden_sizes, activation, ACTED[0], 2)


@pytest.mark.parametrize("width", [NARROW - 1, NARROW, NARROW + 1, 2 * NARROW, SPLIT - 1, SPLIT])
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("outputs", [2, NARROW + 1])
def test_the_gradient_is_the_same_however_its_products_are_cut(width, members, outputs):
    check_backward((width, width), "tanh", gym.spaces.Discrete(outputs), members)


def test_a_hidden_layer_that_no_loss_reads_adds_nothing():
    stack = stack_of(Architecture(SEEN, ACTED[0], (4,)), [0])
    inputs, activations = passed(stack, torch.randn(1, 6, 3, generator=generator()))
    activations.slopes[-1].fill_(1.0)
    gradients = []
    for hints in ([], [None], [torch.zeros(1, 4, 6)], [torch.ones(1, 4, 6)]):
        stack.backward(inputs, activations, hints)
        gradients.append(stack.gradient.clone())
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])
    assert not torch.equal(gradients[0], gradients[3])


def test_the_flat_tensor_is_what_acts_and_autograd_reaches_the_spread():
    stack = stack_of(Architecture(SEEN, ACTED[4], (4,)), [0, 1])
    observations = torch.randn(2, 6, 3, generator=generator())
    (3 * stack.log_std).sum().backward()
    inputs, activations = passed(stack, observations)
    activations.slopes[-1].zero_()
    stack.backward(inputs, activations)
    assert (stack.gradient[:, -2:] == 3).all()
    assert (stack.gradient[:, :-2] == 0).all()
    stack.backward(inputs, activations)
    assert (stack.gradient == 0).all()  # what no loss has read since does not stay
    before = outputs_of(stack, observations)
    stack.flat[1].zero_()
    assert torch.equal(outputs_of(stack, observations)[0], before[0])
    assert (outputs_of(stack, observations)[1] == 0).all()


def test_members_do_not_feel_each_other_s_gradients():
    stack = stack_of(Architecture(SEEN, ACTED[0], (4,)), [0, 1])
    inputs, activations = passed(stack, torch.randn(2, 6, 3, generator=generator()))
    activations.slopes[-1].zero_()
    activations.slopes[-1][1] = 1
    stack.backward(inputs, activations)
    assert (stack.gradient[0] == 0).all()
    assert (stack.gradient[1] != 0).any()


def test_layers_have_names_and_projections_come_last():
    stack = StudentStack(
        Architecture(SEEN, ACTED[4], (4, 5)), generators=[generator()], mean=torch.zeros(3), scale=torch.ones(3), projections=[(4, 7)]
    )
    named = passed(stack, torch.zeros(1, 2, 3))[1].named()
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
