"""The LSTM on arrays against torch's, and row by row bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from policy_distill.policies.rowwise_lstm import Lstm


def run(lstm: nn.LSTM, inputs: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Outputs ``[T, B, units]`` of inputs ``[T, B, width]``, and the last state."""
    ours = Lstm(lstm, inputs.shape[1])
    state = {name: np.zeros((inputs.shape[1], lstm.num_layers, lstm.hidden_size), np.float32) for name in ("hidden", "cell")}
    outputs = []
    for values, begins in zip(inputs, starts, strict=True):
        output, state = ours(values, state, begins)
        outputs.append(output.copy())
    return np.array(outputs), state


def drawn(layers: int, bias: bool, rows: int = 7) -> tuple[nn.LSTM, np.ndarray, np.ndarray]:
    torch.manual_seed(0)
    lstm = nn.LSTM(5, 33, layers, bias=bias)
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.mul_(4)
    stream = np.random.default_rng(0)
    starts = stream.random((50, rows)) < 0.1
    return lstm, stream.normal(size=(50, rows, 5)).astype(np.float32), starts


@pytest.mark.parametrize(("layers", "bias"), [(1, True), (3, True), (2, False)])
def test_it_computes_what_torch_does(layers, bias):
    lstm, inputs, starts = drawn(layers, bias)
    outputs, state = run(lstm, inputs, starts)
    hidden, cell = (torch.zeros(layers, 7, 33) for _ in range(2))
    for values, begins, ours in zip(inputs, starts, outputs, strict=True):
        kept = torch.from_numpy(~begins).float()[None, :, None]
        with torch.no_grad():
            expected, (hidden, cell) = lstm(torch.from_numpy(values)[None], (kept * hidden, kept * cell))
        np.testing.assert_allclose(ours, expected[0].numpy(), atol=2e-5)
    np.testing.assert_allclose(state["cell"], cell.transpose(0, 1).numpy(), atol=2e-4)


def test_a_row_is_the_same_whatever_stands_beside_it():
    lstm, inputs, starts = drawn(2, True, rows=16)
    together, _ = run(lstm, inputs, starts)
    for rows in ([3], [15, 3, 8], [8, 9, 10, 3, 1]):
        apart, _ = run(lstm, inputs[:, rows], starts[:, rows])
        np.testing.assert_array_equal(apart, together[:, rows])


def test_the_state_that_was_given_is_left_alone():
    lstm, inputs, _ = drawn(1, True)
    state = {name: np.full((7, 1, 33), 0.5, np.float32) for name in ("hidden", "cell")}
    Lstm(lstm, 7)(inputs[0], state, np.array([True, *[False] * 6]))
    assert all((part == 0.5).all() for part in state.values())
