"""Networks run as they would if they were called."""

from __future__ import annotations

import torch
from torch import nn

from policy_distill.policies.fast_forward import lay_out, run

INPUTS = torch.linspace(-2, 2, 15).reshape(5, 3)


def test_a_stack_of_layers_returns_what_its_call_returns():
    nested = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Sequential(nn.Linear(8, 2), nn.Hardtanh(-0.1, 0.1)))
    assert torch.equal(run(nested, INPUTS), nested(INPUTS))
    assert not torch.equal(run(nested, INPUTS), run(nested[:2], INPUTS)[:, :2])


def test_an_empty_stack_and_a_single_layer_are_networks_too():
    layer = nn.Linear(3, 4)
    assert torch.equal(run(nn.Sequential(), INPUTS), INPUTS)
    assert torch.equal(run(layer, INPUTS), layer(INPUTS))


def test_forward_hooks_see_what_passes_and_may_replace_it():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    seen: list[torch.Tensor] = []
    network[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    network[1].register_forward_hook(lambda module, inputs, output: output + 1)
    found = run(network, INPUTS)
    assert torch.equal(seen[0], network[0](INPUTS))
    assert torch.equal(found, torch.relu(seen[0]) + 1)


def test_laying_out_changes_neither_shape_nor_values_and_lets_the_product_read_in_order():
    layer = nn.Linear(3, 4)
    before, expected = layer.weight.detach().clone(), layer(INPUTS)
    assert lay_out(layer) is layer
    assert torch.equal(layer.weight, before)
    assert layer.weight.t().is_contiguous()
    assert isinstance(layer.weight, nn.Parameter)
    torch.testing.assert_close(layer(INPUTS), expected)
