"""Quantisation-aware training: passes read rounded weights, steps change the weights behind them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from policy_distill.policies.quantization import quantize, rounded
from policy_distill.support.trees import to_tensors
from policy_distill.training.stacks import stack_of
from tests.export.kinds import ARCHITECTURES, observations_of

MEMBERS, BATCH = 2, 16


def new_stack(name: str, bits: int | None):
    architecture = dataclasses.replace(ARCHITECTURES[name], bits=bits)
    return stack_of(architecture, architecture.new_encoder(), generators=[torch.Generator().manual_seed(seed) for seed in range(MEMBERS)])


def outputs_of(stack, name: str) -> torch.Tensor:
    """The stack's output ``[K, outputs, B]`` after a backward pass of slopes of ones."""
    observations = to_tensors(observations_of(ARCHITECTURES[name].seen_space, MEMBERS * BATCH))
    room, activations = stack.inputs(1, BATCH), stack.buffers(BATCH)
    inputs = stack.load(observations, room)[0]
    output = stack.forward(inputs, activations).clone()
    activations.slopes[-1].fill_(1.0)
    stack.backward(inputs, activations)
    return output


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("name", ["vector", "image", "parts"])
def test_a_pass_and_its_gradient_are_those_of_the_rounded_weights(name, bits):
    quantized, plain = new_stack(name, bits), new_stack(name, None)
    output = outputs_of(quantized, name)
    # a stack without rounding whose weights were rounded by hand
    for index in range(MEMBERS):
        own = plain.member(index)
        for parameter in own.parameters():
            if parameter.ndim > 1:
                parameter.data = rounded(parameter.flatten(1).contiguous(), bits).view(parameter.shape)
        for theirs, mine in zip(quantized.member(index).parameters(), own.parameters(), strict=True):
            torch.testing.assert_close(theirs, mine, rtol=0, atol=0)
        observations = to_tensors(observations_of(ARCHITECTURES[name].seen_space, MEMBERS * BATCH))
        rows = {key: leaf[index * BATCH :][:BATCH] for key, leaf in observations.items()} if isinstance(observations, dict) else (
            observations[index * BATCH :][:BATCH]
        )  # fmt: skip
        torch.testing.assert_close(output[index].T, own(rows), rtol=1e-5, atol=1e-5)
        own.requires_grad_(True)
        own(rows).sum().backward()
        expected = torch.cat([parameter.grad.flatten().sort().values for parameter in own.parameters()])
        of_member = quantized.gradient[index, : own.params]
        torch.testing.assert_close(of_member.sort().values, expected.sort().values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["vector", "memory", "image_memory"])
def test_a_member_s_weights_have_few_values_and_small_steps_add_up(name):
    stack = new_stack(name, 2)
    before = stack.member(0)
    for parameter in before.parameters():
        if parameter.ndim > 1:
            codes, scale = quantize(parameter.flatten(1), 2)
            assert set(codes.unique().tolist()) <= {-1.0, 0.0, 1.0}
            torch.testing.assert_close(codes * scale, parameter.flatten(1), rtol=0, atol=0)
    changed = []
    for _ in range(50):
        stack.flat.add_(0.004 * torch.randn(stack.flat.shape, generator=torch.Generator().manual_seed(1)).sign())
        changed.append(any(not torch.equal(old.sign(), new.sign()) for old, new in zip(before.parameters(), stack.member(0).parameters(),
                                                                                    strict=True)))  # fmt: skip
    assert not changed[0] or changed[-1]
    assert changed[-1]


def test_without_bits_nothing_is_copied():
    stack = new_stack("vector", None)
    assert stack.weights[0].data_ptr() == stack._sinks[0].data_ptr()
