"""Recurrent layers: the students' gated recurrent unit, in torch and in numpy, and the teachers' LSTM in numpy.

The gates of a GRU are those of Cho et al. (2014, https://arxiv.org/abs/1406.1078, the variant that cuDNN computes) with one bias each:
``r, z = sigmoid(W x + b + U h)``, ``n = tanh(W x + b + r * (U h))``, and the state after a step is ``(1 - z) * n + z * h``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from policy_distill.policies.rowwise import product

HALF = np.float32(0.5)


class Gru(nn.Module):
    """A gated recurrent unit.

    Attributes:
        inputs: maps features to ``r``, ``z`` and ``n``: ``[3 * units, width]``, with bias.
        recurrent: maps the state to the same: ``[3 * units, units]``.
    """

    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(width, 3 * units)
        self.recurrent = nn.Linear(units, 3 * units, bias=False)

    def forward(self, features: Tensor, state: Tensor) -> Tensor:
        """The states ``[T, B, units]`` after each of T steps, from features ``[T, B, width]`` and the state before ``[B, units]``."""
        return scan(self.inputs(features)[:, None], self.recurrent.weight.T[None], state[None])[:, 0]


def gru_shapes(width: int, units: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of ``Gru`` by name."""
    return {"inputs.weight": (3 * units, width), "inputs.bias": (3 * units,), "recurrent.weight": (3 * units, units)}


def read_memory(saved: Any) -> int:
    """Number of units of the memory in student.json; 0 without one.

    Raises:
        ValueError: if this version does not support the memory.
    """
    if saved is None:
        return 0
    if saved["kind"] != "gru" or type(saved["size"]) is not int or saved["size"] < 1:
        raise ValueError(f"memory is {saved}")
    return int(saved["size"])


def scan(gates: Tensor, recurrent: Tensor, state: Tensor) -> Tensor:
    """The states ``[T, K, B, units]`` of K members' GRUs after each of T steps; differentiable.

    Args:
        gates: ``W x + b`` of each step, ``[T, K, B, 3 * units]``.
        recurrent: ``[K, units, 3 * units]``.
        state: state before the first step, ``[K, B, units]``; it receives no gradient.
    """
    states: Tensor = _Scan.apply(gates, recurrent, state)
    return states


class _Scan(torch.autograd.Function):
    """All steps of all members with an analytic backward pass, which avoids autograd's overhead per step."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, recurrent: Tensor, state: Tensor) -> Tensor:
        units = state.shape[-1]
        gate_values = gates.clone()  # r and z after the loop, and U h for n
        gate_values[..., 2 * units :] = 0.0
        reset, update, recurrent_new = gate_values.chunk(3, -1)
        new, states = torch.empty_like(recurrent_new), torch.empty_like(recurrent_new)
        before = state
        arrays = gate_values, gate_values[..., : 2 * units], reset, update, recurrent_new, gates[..., 2 * units :], new, states
        for values, r_and_z, r, z, recurrent_n, input_n, n, after in zip(*(array.unbind(0) for array in arrays), strict=True):
            torch.baddbmm(values, before, recurrent, out=values)
            r_and_z.sigmoid_()
            torch.addcmul(input_n, r, recurrent_n, out=n).tanh_()
            before = torch.lerp(n, before, z, out=after)
        ctx.save_for_backward(gate_values, new, states, recurrent, state)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_grads: Tensor) -> tuple[Tensor, Tensor, None]:
        gate_values, new, states, recurrent, state = ctx.saved_tensors
        reset, update, recurrent_new = gate_values.chunk(3, -1)
        before = torch.cat([state[None], states[:-1]])
        # d state / d gates, for each gate: factors that do not depend on later steps are computed for all steps at once
        inner = (1 - update) * (1 - new.square())
        factors = torch.stack([inner * recurrent_new * reset * (1 - reset), (before - new) * update * (1 - update), inner * reset], -2)
        gate_grads, state_grads = torch.empty_like(factors), torch.empty_like(states)
        from_later, transposed = torch.zeros_like(state), recurrent.mT
        arrays = output_grads, state_grads, gate_grads, gate_grads.flatten(-2), factors, update
        for output_grad, state_grad, gate_grad, flat, factor, z in zip(*(array.unbind(0)[::-1] for array in arrays), strict=True):
            torch.add(output_grad, from_later, out=state_grad)
            torch.mul(state_grad[..., None, :], factor, out=gate_grad)
            from_later = torch.baddbmm(state_grad * z, flat, transposed)
        gate_grads = gate_grads.flatten(-2)
        recurrent_grad = torch.einsum("tkbu,tkbg->kug", before, gate_grads)
        gate_grads[..., 2 * state.shape[-1] :] = state_grads * inner  # r scales the recurrent part of n, but not the input's part
        return gate_grads, recurrent_grad, None


class RowwiseGru:
    """``Gru``, one step at a time, on arrays: the result for a row depends on that row alone; see ``rowwise``.

    Args:
        gru: its weights are copied once.
        rows: batch size of every call.
    """

    def __init__(self, gru: Gru, rows: int) -> None:
        self.units = gru.recurrent.in_features
        self._of_values = product(gru.inputs.weight.t(), gru.inputs.bias, rows)
        self._of_state = product(gru.recurrent.weight.t(), None, rows)

    def __call__(self, values: np.ndarray, state: np.ndarray) -> np.ndarray:
        """The state ``[B, units]`` after the step, from features ``[B, width]`` and the state before, which is not changed."""
        split = 2 * self.units
        inputs, recurrent = self._of_values(values), self._of_state(state)
        reset_and_update = _sigmoid(inputs[:, :split] + recurrent[:, :split])
        reset, update = reset_and_update[:, : self.units], reset_and_update[:, self.units :]
        new = np.tanh(inputs[:, split:] + reset * recurrent[:, split:])
        after: np.ndarray = new + update * (state - new)
        return after


class Lstm:
    """A unidirectional ``nn.LSTM``, one step at a time, on arrays.

    Args:
        lstm: its weights are copied once.
        rows: batch size of every call.
    """

    def __init__(self, lstm: nn.LSTM, rows: int) -> None:
        self.units, self.num_layers = lstm.hidden_size, lstm.num_layers
        weights = lstm.state_dict()
        self._products = [
            [product(weights[f"weight_{side}_l{layer}"].t(), weights.get(f"bias_{side}_l{layer}"), rows) for side in ("ih", "hh")]
            for layer in range(lstm.num_layers)
        ]

    def initial_state(self, rows: int) -> dict[str, np.ndarray]:
        """The initial state of ``rows`` episodes: zeros."""
        return {name: np.zeros((rows, self.num_layers, self.units), np.float32) for name in ("hidden", "cell")}

    def __call__(
        self, values: np.ndarray, state: Mapping[str, np.ndarray], starts: np.ndarray | None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Output ``[B, units]``, which later calls do not overwrite, and the state after the step.

        Args:
            values: ``[B, inputs]`` float32.
            state: ``hidden`` and ``cell`` ``[B, layers, units]``; they are not changed.
            starts: ``[B]`` bool, True where the state is reset to zeros; None: nowhere.
        """
        after = {name: part.copy() for name, part in state.items()}
        if starts is not None:
            for part in after.values():
                part[starts] = 0
        for layer, (of_values, of_hidden) in enumerate(self._products):
            gates = of_values(values) + of_hidden(np.ascontiguousarray(after["hidden"][:, layer]))
            input_and_forget = _sigmoid(gates[:, : 2 * self.units])
            input_gate, forget_gate = input_and_forget[:, : self.units], input_and_forget[:, self.units :]
            new, output_gate = np.tanh(gates[:, 2 * self.units : 3 * self.units]), _sigmoid(gates[:, 3 * self.units :])
            cell = forget_gate * after["cell"][:, layer] + input_gate * new
            values = output_gate * np.tanh(cell)
            after["hidden"][:, layer], after["cell"][:, layer] = values, cell
        return values, after


def _sigmoid(values: np.ndarray) -> np.ndarray:
    """The logistic function, by tanh, so that no exponential overflows."""
    return HALF * (1 + np.tanh(HALF * values))
