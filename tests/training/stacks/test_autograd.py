"""The stack by autograd: the reference of the written-out one on vectors, and checked by numeric gradients on images."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from policy_distill.config import FeatureConfig, LossConfig, MemberConfig, RelationConfig, TrainConfig
from policy_distill.losses.objective import Objective
from policy_distill.policies.actions import ActionTargets
from policy_distill.policies.architecture import ACTIVATIONS, Architecture
from policy_distill.policies.encoders import Vectors
from policy_distill.policies.families import family_of
from policy_distill.training.dataset import Dataset
from policy_distill.training.stacks import Stack, stack_of
from policy_distill.training.stacks.analytic import StudentStack
from policy_distill.training.stacks.autograd import AutogradStack
from policy_distill.training.trainer import Trainer
from tests.small_worlds import ACTED, SEEN, generator, labelled, random_transitions

SHAPE = (7, 7, 3)
IMAGE = gym.spaces.Box(0, 255, SHAPE, np.uint8)


def both(architecture: Architecture, members: int = 2, **options: Any) -> tuple[StudentStack, AutogradStack]:
    """The two stacks with the same first weights and normalisation."""
    encoder = architecture.new_encoder()
    assert isinstance(encoder, Vectors)
    encoder.normalize_by(torch.linspace(-1, 1, 3), torch.linspace(0.5, 2, 3))
    generators = [[generator(seed) for seed in range(members)] for _ in range(2)]
    fast = stack_of(architecture, encoder, generators=generators[0], **options)
    assert isinstance(fast, StudentStack)
    return fast, AutogradStack(architecture, encoder, generators=generators[1], **options)


def assert_same_members(ours: Stack, theirs: Stack, **tolerance: float) -> None:
    for index in range(ours.num_members):
        mine, other = ours.member(index).state_dict(), theirs.member(index).state_dict()
        assert mine.keys() == other.keys()
        for name, tensor in mine.items():
            torch.testing.assert_close(tensor, other[name], **(tolerance or {"rtol": 0, "atol": 0}))  # type: ignore[arg-type]


@pytest.mark.parametrize("space", [ACTED[0], ACTED[4]], ids=str)
def test_both_stacks_begin_with_the_same_students(space):
    assert_same_members(*both(Architecture(SEEN, space, (5, 7), "tanh")))


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("hidden_sizes", [(), (12, 5)])
def test_both_stacks_compute_the_same_outputs_and_gradients(hidden_sizes, activation):
    fast, slow = both(Architecture(SEEN, ACTED[0], hidden_sizes, activation))
    observations, draws = torch.randn(2 * 6, 3, generator=generator(8)), generator(3)
    stacks: list[Stack] = [fast, slow]
    passes: list[tuple[Any, Any, Tensor]] = []
    for stack in stacks:
        inputs, activations = stack.load(observations, stack.inputs(1, 6))[0], stack.buffers(6)
        passes.append((inputs, activations, stack.forward(inputs, activations)))
    (_, written_out, outputs), (_, by_autograd, expected) = passes
    torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(written_out.hidden, by_autograd.hidden, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    *hints, slope = [torch.randn(layer.shape, generator=draws) for layer in [*by_autograd.hidden, expected]]
    for stack, (inputs, activations, _) in zip(stacks, passes, strict=True):
        activations.slopes[-1].copy_(slope)
        stack.backward(inputs, activations, hints)
        torch.sub(stack.flat, stack.gradient, out=stack.flat)  # so that members can be compared
    assert_same_members(fast, slow, rtol=1e-4, atol=1e-5)


LOSSES = {
    "kl": (ACTED[0], LossConfig(temperature=2.0, hard_weight=0.3)),
    "reverse kl": (ACTED[2], LossConfig(divergence="reverse_kl")),
    "gaussian": (ACTED[4], LossConfig(kind="kl")),
    "regression": (ACTED[4], LossConfig(kind="regression")),
    "hints": (
        ACTED[0],
        LossConfig(
            features=FeatureConfig(weight=0.5, layers={"body": "hidden.1"}),
            relations=RelationConfig(weight=0.5, layers={"body": "hidden.0"}),
        ),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_training_with_either_stack_ends_at_the_same_students(name):
    """Members of different learning rates, every kind of loss: 20 steps of Adam, averaged weights."""
    space, loss = LOSSES[name]
    made = random_transitions(space, 200)
    layer = torch.randn(200, 4, generator=generator(5))
    dataset = Dataset(200, holdout=0.0, device=torch.device("cpu"))
    dataset.append(labelled(made.observations, ActionTargets({**made.targets.parameters, "layer:body": layer}, made.targets.actions)))
    config = TrainConfig(
        gradient_steps=20, batch_size=16, learning_rate=1e-3, vary=(MemberConfig(learning_rate=1e-3), MemberConfig(learning_rate=2e-3))
    )
    trainers, losses = [], []
    for stack in both(Architecture(SEEN, space, (6, 8), "tanh"), projections=[(8, 4)] if loss.features.weight else []):
        trainers.append(Trainer(stack, Objective(loss, family_of(space)), config, [generator(7), generator(8)]))
        losses.append(trainers[-1].run(dataset, 20))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-5)
    for member in range(2):
        ours, theirs = (trainer.student(member).state_dict() for trainer in trainers)
        begun = trainers[0].stack.member(member).state_dict()
        assert any(not torch.equal(ours[key], begun[key]) for key in ours)  # averaged
        for key in ours:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=2e-5)


# Images.


def image_stack(seeds: list[int]) -> AutogradStack:
    architecture = Architecture(IMAGE, ACTED[0], (6,), channels=(3, 4))
    encoder = architecture.new_encoder()
    encoder.normalize(lambda: [torch.full((1, *SHAPE), 255, dtype=torch.uint8)])
    stack = stack_of(architecture, encoder, generators=[generator(seed) for seed in seeds])
    assert isinstance(stack, AutogradStack)
    return stack


def test_a_member_of_images_is_its_row_of_the_flat_tensor():
    stack = image_stack([0, 1])
    assert stack.flat.shape == (2, stack.architecture.params)
    student = stack.member(1)
    images = torch.randint(0, 256, (2 * 5, 7, 7, 3), dtype=torch.uint8, generator=generator())
    output = stack.forward(stack.load(images, (1, 2, 5))[0], stack.buffers(5))
    torch.testing.assert_close(output[1].T, student(images[5:]), rtol=1e-5, atol=1e-5)
    averaged = stack.member(1, torch.zeros_like(stack.flat))
    assert all((parameter == 0).all() for parameter in averaged.parameters())
    assert torch.equal(image_stack([1]).flat[0], stack.flat[1])  # member k begins as it would alone


def test_the_gradient_of_images_is_the_numeric_one():
    stack = image_stack([0])
    images = torch.randint(0, 256, (4, 7, 7, 3), dtype=torch.uint8, generator=generator())
    inputs, activations = stack.load(images, (1, 1, 4))[0], stack.buffers(4)
    slope = torch.randn(1, 4, 4, generator=generator(1))
    stack.forward(inputs, activations)
    activations.slopes[-1].copy_(slope)
    stack.backward(inputs, activations)
    gradient, flat = stack.gradient.clone(), stack.flat.clone()
    direction = torch.randn(flat.shape, generator=generator(2))
    ends = []
    for step in (1e-3, -1e-3):
        stack.flat.copy_(flat + step * direction)
        ends.append(float((stack.forward(inputs, activations).double() * slope).sum()))
    assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(float((gradient * direction).sum()), rel=0.02)
