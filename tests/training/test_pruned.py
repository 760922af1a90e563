"""Pruned students: passes read zeros, students have them, and steps change the weights behind them."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import pytest
import torch

from policy_distill.config import LossConfig, TrainConfig
from policy_distill.losses.objective import Objective
from policy_distill.policies.architecture import Architecture
from policy_distill.policies.families import family_of
from policy_distill.policies.quantization import rounded_weight
from policy_distill.support.trees import map_leaves, to_tensors
from policy_distill.training.stacks import stack_of
from policy_distill.training.stacks.analytic import StudentStack
from policy_distill.training.stacks.flat import pruned, share_at
from policy_distill.training.trainer import Trainer
from tests.export.kinds import ARCHITECTURES, observations_of
from tests.training.test_quantized import BATCH, MEMBERS, outputs_of
from tests.training.test_trainer import SEEN, dataset_of


def new_stack(name: str, **changes: Any):
    architecture = dataclasses.replace(ARCHITECTURES[name], **changes)
    return stack_of(architecture, architecture.new_encoder(), generators=[torch.Generator().manual_seed(seed) for seed in range(MEMBERS)])


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("name", ["vector", "image", "parts", "memory"])
def test_a_student_has_as_many_zeros_and_its_rounding(name, bits):
    sparse, dense = (new_stack(name, bits=bits, pruning=share) for share in (0.6, None))
    for one, other in zip(sparse.member(1).parameters(), new_stack(name).member(1).parameters(), strict=True):
        if one.ndim > 1:
            assert torch.equal(one, rounded_weight(pruned(other, 0.6), bits))
            assert int((one == 0).sum()) >= round(0.6 * one.numel())
        else:
            assert torch.equal(one, other)
    assert torch.equal(sparse.flat, dense.flat)  # the weights behind


@pytest.mark.parametrize("name", ["vector", "image", "parts"])
def test_a_pass_and_its_gradient_are_those_of_the_share_so_far(name):
    stack, then = new_stack(name, pruning=0.8), new_stack(name, pruning=0.4)
    stack.zeros = 0.4
    output = outputs_of(stack, name)
    observations = to_tensors(observations_of(ARCHITECTURES[name].seen_space, MEMBERS * BATCH))
    for index in range(MEMBERS):
        own, window = then.member(index), slice(index * BATCH, (index + 1) * BATCH)
        rows = map_leaves(lambda leaf, window=window: leaf[window], observations)
        torch.testing.assert_close(output[index].T, own(rows), rtol=1e-5, atol=1e-5)
        own.requires_grad_(True)
        own(rows).sum().backward()
        expected = torch.cat([parameter.grad.flatten().sort().values for parameter in own.parameters()])
        torch.testing.assert_close(stack.gradient[index, : own.params].sort().values, expected.sort().values, rtol=1e-4, atol=1e-4)


def test_training_prunes_more_and_more_and_goes_on_with_the_rest():
    space = gym.spaces.Discrete(3)
    dataset = dataset_of(space)
    architecture = Architecture(SEEN, space, (8, 8), pruning=0.75)
    stack = stack_of(architecture, architecture.new_encoder(), generators=[torch.Generator().manual_seed(0)])
    objective = Objective(LossConfig(), family_of(space))
    trainer = Trainer(stack, objective, TrainConfig(gradient_steps=40, batch_size=8), [torch.Generator()])
    seen, before = [], stack.flat.clone()
    for _ in range(4):
        trainer.run(dataset, 10)
        seen.append(stack.zeros)
    assert seen[0] == pytest.approx(share_at(9 / 40, 0.75))
    assert seen[1] == pytest.approx(share_at(19 / 40, 0.75))
    assert seen[2:] == [0.75, 0.75]
    assert (stack.flat != before).float().mean() > 0.9  # pruned weights, too
    for layer in trainer.student().linears:
        assert int((layer.weight == 0).sum()) == round(0.75 * layer.weight.numel())


def test_members_of_other_widths_are_refused():
    architecture = dataclasses.replace(ARCHITECTURES["vector"], pruning=0.5)
    with pytest.raises(ValueError, match="would count as zeros"):
        StudentStack(architecture, generators=[torch.Generator()], mean=torch.zeros(4), scale=torch.ones(4), hidden_sizes=[(4, 4)])


def test_the_smallest_weights_of_a_layer_are_zero():
    # by hand: half of six, whatever their sign and row
    weight = torch.tensor([[0.1, -0.4, 0.2], [0.3, -0.15, 0.5]])
    assert pruned(weight, 0.5).tolist() == torch.tensor([[0.0, -0.4, 0.0], [0.3, 0.0, 0.5]]).tolist()
    assert pruned(weight, 0.0) is weight


def test_each_member_and_each_layer_loses_its_own():
    together = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    together[1] *= 100
    for one, alone in zip(pruned(together, 0.35), together, strict=True):
        assert torch.equal(one, pruned(alone, 0.35))
        assert int((one == 0).sum()) == 7
    kernels = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    assert int((pruned(kernels, 0.75) == 0).sum()) == 36


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_pruning_again_changes_nothing(share):
    once = pruned(torch.randn(7, 9, generator=torch.Generator().manual_seed(2)), share)
    assert torch.equal(pruned(once, share), once)
    assert int((once == 0).sum()) == round(share * 63)


def test_the_share_grows_with_a_cube_until_the_middle():
    # 1 - (1 - t / 0.5)**3 of the final share
    assert [share_at(progress, 0.8) for progress in (0.0, 0.5, 0.7, 1.0)] == [0.0, 0.8, 0.8, 0.8]
    assert share_at(0.25, 0.8) == pytest.approx(0.8 * 0.875)
    assert share_at(0.1, 0.8) == pytest.approx(0.8 * (1 - 0.8**3))
