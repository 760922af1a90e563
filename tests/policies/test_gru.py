"""A GRU: its scan against single steps by hand, its gradient against numeric ones, and its twin on arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from policy_distill.policies.gru import Gru, RowwiseGru, gru_shapes, scan
from tests.policies.test_rowwise import depends_on_more_than_its_row
from tests.small_worlds import generator


def by_hand(gates: Tensor, recurrent: Tensor, state: Tensor) -> Tensor:
    """The equations of Cho et al. (2014), step by step."""
    states = []
    for gate in gates:
        of_reset, of_update, of_new = gate.chunk(3, -1)
        reset_own, update_own, new_own = (state @ recurrent).chunk(3, -1)
        reset, update = torch.sigmoid(of_reset + reset_own), torch.sigmoid(of_update + update_own)
        new = torch.tanh(of_new + reset * new_own)
        state = (1 - update) * new + update * state
        states.append(state)
    return torch.stack(states)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def test_a_scan_is_the_steps_one_after_the_other():
    gates, recurrent, state = draws(5, 2, 3, 12), draws(2, 4, 12, seed=1), draws(2, 3, 4, seed=2)
    given = gates.clone()
    torch.testing.assert_close(scan(gates, recurrent, state), by_hand(gates, recurrent, state))
    assert torch.equal(gates, given)
    halves = scan(gates[:2], recurrent, state)
    torch.testing.assert_close(scan(gates[2:], recurrent, halves[-1]), by_hand(gates, recurrent, state)[2:])


@pytest.mark.parametrize("steps", [1, 4])
def test_the_gradient_of_a_scan_is_the_numeric_one(steps):
    state = draws(2, 3, 4, seed=2)
    inputs = draws(steps, 2, 3, 12).requires_grad_(), draws(2, 4, 12, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda gates, recurrent: scan(gates, recurrent, state), inputs)
    torch.testing.assert_close(
        torch.autograd.grad(scan(*inputs, state).square().sum(), inputs),
        torch.autograd.grad(by_hand(*inputs, state).square().sum(), inputs),
    )


def test_one_unit_by_hand():
    """All weights 0 but those of n: r = z = 1/2; from 0.8 and x = 1 with W_n = 2, U_n = 3: n = tanh(2 + 1.2), h = (n + 0.8) / 2."""
    gru = Gru(1, 1)
    with torch.no_grad():
        for parameter in gru.parameters():
            parameter.zero_()
        gru.inputs.weight[2], gru.recurrent.weight[2] = 2.0, 3.0
        found = gru(torch.ones(1, 1, 1), torch.full((1, 1), 0.8))
    assert float(found) == pytest.approx((np.tanh(3.2) + 0.8) / 2)
    assert {name: tuple(tensor.shape) for name, tensor in gru.state_dict().items()} == gru_shapes(1, 1)


def test_the_twin_on_arrays_gives_the_same_states():
    torch.manual_seed(0)
    gru = Gru(3, 7)
    values, state = torch.randn(4, 5, 3), torch.randn(5, 7)
    twin, own = RowwiseGru(gru, 5), state.numpy().copy()
    for step, expected in enumerate(gru(values, state).detach()):
        before = own.copy()
        after = twin(values[step].numpy(), own)
        np.testing.assert_array_equal(own, before)
        np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)
        own = after
    huge = twin(np.full((5, 3), 1e6, np.float32), own)
    assert np.isfinite(huge).all()


@pytest.mark.parametrize(("width", "units"), [(1, 1), (3, 7), (4, 38), (17, 64), (64, 129)])
def test_the_state_of_a_row_depends_on_that_row_alone(width, units):
    gru = Gru(width, units)

    def stepping(rows: int):
        twin = RowwiseGru(gru, rows)
        return lambda both: twin(np.ascontiguousarray(both[:, :width]), np.ascontiguousarray(both[:, width:]))

    assert not depends_on_more_than_its_row(stepping, width + units)
