"""An LSTM whose result for a row depends on that row alone, for the loops that step environments; see ``rowwise``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from policy_distill.policies.rowwise import product

HALF = np.float32(0.5)


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
