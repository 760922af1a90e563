"""Memories: the gated recurrent unit of students, in training and on arrays, and the LSTM of teachers on arrays.

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
    """The weights.

    Attributes:
        inputs: from features to ``r``, ``z`` and ``n``, ``[3 * units, width]`` with bias.
        recurrent: from the state to the same, ``[3 * units, units]``.
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
    """Units of the memory that student.json describes; 0 where it has none.

    Raises:
        ValueError: if it is no memory that this version knows.
    """
    if saved is None:
        return 0
    if saved["kind"] != "gru" or type(saved["size"]) is not int or saved["size"] < 1:
        raise ValueError(f"memory is {saved}")
    return int(saved["size"])


def scan(gates: Tensor, recurrent: Tensor, state: Tensor) -> Tensor:
    """The states ``[T, K, B, units]`` of K units after each of T steps; differentiable.

    Args:
        gates: ``W x + b`` of each step, ``[T, K, B, 3 * units]``.
        recurrent: ``[K, units, 3 * units]``.
        state: before the first step, ``[K, B, units]``; no gradient goes there.
    """
    found: Tensor = _Scan.apply(gates, recurrent, state)
    return found


class _Scan(torch.autograd.Function):
    """All steps of all members, with a backward pass that is written out: autograd's bookkeeping for each step takes longer."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, recurrent: Tensor, state: Tensor) -> Tensor:
        units = state.shape[-1]
        own = gates.clone()
        own[..., 2 * units :] = 0.0
        reset, update, held = own.chunk(3, -1)
        new, states = torch.empty_like(held), torch.empty_like(held)
        before = state
        arrays = own, own[..., : 2 * units], reset, update, held, gates[..., 2 * units :], new, states
        for row, switches, let_in, keep, holds, gate, fresh, after in zip(*(array.unbind(0) for array in arrays), strict=True):
            torch.baddbmm(row, before, recurrent, out=row)
            switches.sigmoid_()
            torch.addcmul(gate, let_in, holds, out=fresh).tanh_()
            before = torch.lerp(fresh, before, keep, out=after)
        ctx.save_for_backward(own, new, states, recurrent, state)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, Tensor, None]:
        own, new, states, recurrent, state = ctx.saved_tensors
        reset, update, held = own.chunk(3, -1)
        before = torch.cat([state[None], states[:-1]])
        # d gates / d state after the step, gate by gate: what does not depend on later steps is computed for all of them at once
        inner = (1 - update) * (1 - new.square())
        factors = torch.stack([inner * held * reset * (1 - reset), (before - new) * update * (1 - update), inner * reset], -2)
        of_gates, of_states = torch.empty_like(factors), torch.empty_like(states)
        later, turned = torch.zeros_like(state), recurrent.mT
        arrays = slopes, of_states, of_gates, of_gates.flatten(-2), factors, update
        for direct, slope, gates, flat, factor, keep in zip(*(array.unbind(0)[::-1] for array in arrays), strict=True):
            torch.add(direct, later, out=slope)
            torch.mul(slope[..., None, :], factor, out=gates)
            later = torch.baddbmm(slope * keep, flat, turned)
        of_gates = of_gates.flatten(-2)
        of_recurrent = torch.einsum("tkbu,tkbg->kug", before, of_gates)
        of_gates[..., 2 * state.shape[-1] :] = of_states * inner  # the state's part of n goes through r, that of the features does not
        return of_gates, of_recurrent, None


class RowwiseGru:
    """``Gru``, one step at a time, on arrays: the result for a row depends on that row alone; see ``rowwise``.

    Args:
        gru: whose weights are read once.
        rows: B, of every call.
    """

    def __init__(self, gru: Gru, rows: int) -> None:
        self.units = gru.recurrent.in_features
        self._of_values = product(gru.inputs.weight.t(), gru.inputs.bias, rows)
        self._of_state = product(gru.recurrent.weight.t(), None, rows)

    def __call__(self, values: np.ndarray, state: np.ndarray) -> np.ndarray:
        """The state ``[B, units]`` after the step, from features ``[B, width]`` and the state before, which is left as it is."""
        switch = 2 * self.units
        gates, own = self._of_values(values), self._of_state(state)
        switches = _sigmoid(gates[:, :switch] + own[:, :switch])
        reset, update = switches[:, : self.units], switches[:, self.units :]
        new = np.tanh(gates[:, switch:] + reset * own[:, switch:])
        found: np.ndarray = new + update * (state - new)
        return found


class Lstm:
    """``nn.LSTM`` of layers in one direction, one step at a time, on arrays.

    Args:
        lstm: whose weights are read once.
        rows: B, of every call.
    """

    def __init__(self, lstm: nn.LSTM, rows: int) -> None:
        self.units, self.num_layers = lstm.hidden_size, lstm.num_layers
        weights = lstm.state_dict()
        self._products = [
            [product(weights[f"weight_{side}_l{layer}"].t(), weights.get(f"bias_{side}_l{layer}"), rows) for side in ("ih", "hh")]
            for layer in range(lstm.num_layers)
        ]

    def initial_state(self, rows: int) -> dict[str, np.ndarray]:
        """The state of ``rows`` episodes that begin: zeros."""
        return {name: np.zeros((rows, self.num_layers, self.units), np.float32) for name in ("hidden", "cell")}

    def __call__(
        self, values: np.ndarray, state: Mapping[str, np.ndarray], starts: np.ndarray | None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Output ``[B, units]``, which the next call leaves alone, and the state after it.

        Args:
            values: ``[B, inputs]`` float32.
            state: ``hidden`` and ``cell`` ``[B, layers, units]``, which are left as they are.
            starts: ``[B]`` bool, where the state is taken for zeros; None: nowhere.
        """
        after = {name: part.copy() for name, part in state.items()}
        if starts is not None:
            for part in after.values():
                part[starts] = 0
        for layer, (of_values, of_hidden) in enumerate(self._products):
            gates = of_values(values) + of_hidden(np.ascontiguousarray(after["hidden"][:, layer]))
            keep = _sigmoid(gates[:, : 2 * self.units])
            let_in, forget = keep[:, : self.units], keep[:, self.units :]
            new, out = np.tanh(gates[:, 2 * self.units : 3 * self.units]), _sigmoid(gates[:, 3 * self.units :])
            cell = forget * after["cell"][:, layer] + let_in * new
            values = out * np.tanh(cell)
            after["hidden"][:, layer], after["cell"][:, layer] = values, cell
        return values, after


def _sigmoid(values: np.ndarray) -> np.ndarray:
    """Without an exponential that overflows."""
    return HALF * (1 + np.tanh(HALF * values))
