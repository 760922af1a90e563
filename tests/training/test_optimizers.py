"""Steps of Adam and Muon on the flat parameters of a stack."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.config import TrainConfig
from policy_distill.policies.architecture import Architecture
from policy_distill.training.optimizers import Adam, Muon, orthogonalized
from policy_distill.training.stacks import AutogradStack, Stack, StudentStack
from tests.small_worlds import generator

VECTORS = gym.spaces.Box(-1, 1, (7,), np.float32)
IMAGES = gym.spaces.Box(0, 255, (10, 10, 3), np.uint8)


def stack_of_vectors(members: int = 2) -> StudentStack:
    architecture = Architecture(VECTORS, gym.spaces.Discrete(3), (6, 5))
    generators = [generator(seed) for seed in range(members)]
    return StudentStack(architecture, generators=generators, mean=torch.zeros(7), scale=torch.ones(7))


def stack_of_images(members: int = 2) -> AutogradStack:
    architecture = Architecture(IMAGES, gym.spaces.Discrete(3), (6,), "silu", channels=(4, 5))
    return AutogradStack(architecture, architecture.new_encoder(), generators=[generator(seed) for seed in range(members)])


STACKS: dict[str, Callable[[], Stack]] = {"vectors": stack_of_vectors, "images": stack_of_images}


@pytest.mark.parametrize("shape", [(3, 4, 9), (2, 9, 4), (1, 5, 5), (2, 1, 6)])
def test_orthogonalized_matrices_keep_their_singular_vectors_and_have_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=generator(0), dtype=torch.float64)
    _left, values, _right = torch.linalg.svd(orthogonalized(matrices), full_matrices=False)
    assert values.min() > 0.6
    assert values.max() < 1.3
    expected_left, _, expected_right = torch.linalg.svd(matrices, full_matrices=False)
    projected = expected_left.mT @ orthogonalized(matrices) @ expected_right.mT
    torch.testing.assert_close(projected, torch.diag_embed(projected.diagonal(dim1=1, dim2=2)), atol=1e-6, rtol=0)


def test_orthogonalized_zeros_are_zeros():
    assert not orthogonalized(torch.zeros(2, 3, 4)).any()


@pytest.mark.parametrize("kind", STACKS)
def test_the_matrices_of_a_stack_are_all_its_weights_but_the_biases(kind):
    stack = STACKS[kind]()
    marked = torch.zeros_like(stack.flat)
    for matrices in stack.matrices_of(marked):
        assert matrices.shape[0] == 2
        matrices.add_(1)
    student = stack.member(1, marked)
    for parameter in student.parameters():
        assert (parameter == (1 if parameter.ndim > 1 else 0)).all()


@pytest.mark.parametrize("kind", STACKS)
def test_a_step_on_matrices_is_that_of_torch(kind):
    """torch.optim.Muon computes in bfloat16, so its steps have a relative error of about one percent."""
    stack = STACKS[kind]()
    optimizer = Muon(stack, 0.01)
    ours = [wide(weights[0]) for weights in stack.matrices_of(stack.flat)]
    theirs = [torch.nn.Parameter(weights.clone()) for weights in ours]
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.0)
    for number in range(1, 4):
        stack.gradient.normal_(generator=generator(number))
        for parameter, gradient in zip(theirs, stack.matrices_of(stack.gradient), strict=True):
            parameter.grad = wide(gradient[0]).clone()
        before = [weights.clone() for weights in ours]
        reference.step()
        optimizer.step(number, 0.01, 1.0)
        for weights, old, expected in zip(ours, before, theirs, strict=True):
            step, wanted = weights - old, expected.detach() - old
            assert (step - wanted).norm() < 0.05 * wanted.norm()
            expected.data.copy_(weights)


def wide(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix or its transpose, with at least as many columns as rows; torch takes longer steps on matrices with more rows."""
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix


def test_biases_take_adam_s_step_and_adam_moves_no_matrix():
    muon, adam = stack_of_images(), stack_of_images()
    first, second = Muon(muon, 0.01), Adam(adam, 0.01)
    for number in range(1, 4):
        muon.gradient.normal_(generator=generator(number))
        adam.gradient.copy_(muon.gradient)
        first.step(number, 0.01, 1.0)
        second.step(number, 0.01, 1.0)
    students = [stack.member(0) for stack in (muon, adam)]
    for ours, theirs in zip(*(student.parameters() for student in students), strict=True):
        assert torch.equal(ours, theirs) == (ours.ndim == 1)
    momenta = torch.cat([matrices.flatten() for matrices in muon.matrices_of(first.tensors["first_moment"])])
    assert not momenta.any()


@pytest.mark.parametrize("optimizer", [Adam, Muon])
def test_a_member_with_a_rate_of_its_own_steps_as_alone(optimizer):
    together, alone = stack_of_images(), stack_of_images()
    first = optimizer(together, 0.01, torch.tensor([[0.01], [0.03]]))
    second = optimizer(alone, 0.03)
    for number in range(1, 4):
        together.gradient.normal_(generator=generator(number))
        alone.gradient.copy_(together.gradient)
        first.step(number, 0.005, 1.0)
        second.step(number, 0.015, 1.0)
    torch.testing.assert_close(together.flat[1], alone.flat[1], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(together.flat[0], alone.flat[0])


def test_a_state_continues_bit_for_bit():
    ours, theirs = stack_of_images(), stack_of_images()
    first, second = Muon(ours, 0.01), Muon(theirs, 0.01)
    for number in range(1, 3):
        ours.gradient.normal_(generator=generator(number))
        first.step(number, 0.01, 1.0)
    theirs.flat.copy_(ours.flat)
    for name, tensor in second.tensors.items():
        tensor.copy_(first.tensors[name])
    for stack, optimizer in ((ours, first), (theirs, second)):
        stack.gradient.normal_(generator=generator(9))
        optimizer.step(3, 0.01, 1.0)
    assert torch.equal(ours.flat, theirs.flat)


def test_muon_is_the_default_of_images_alone():
    assert TrainConfig().optimizer_of(single_images=True) == "muon"
    assert TrainConfig().optimizer_of(single_images=False) == "adam"
    assert TrainConfig(optimizer="adam").optimizer_of(single_images=True) == "adam"
