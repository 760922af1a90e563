"""Batches of many gradient steps at once: drawn, normalised, and laid out as a stack reads them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from policy_distill.actions import ActionTargets
from policy_distill.dataset import Dataset
from policy_distill.objective import Objective
from policy_distill.spaces import encode_observations
from policy_distill.stack import StudentStack

CHUNK_STEPS, CHUNK_BYTES = 32, 2**22
"""Batches that are drawn at once: so many at most, and of so many bytes, which the last-level cache holds."""
TABLE_BYTES = 2**28
"""Size up to which all rows are laid side by side before the first step."""
BLOCK = 65_536
"""Rows that are encoded at once."""


class Batches:
    """What a stack is trained on, chunk after chunk, in buffers that the next chunk overwrites.

    A row is what a step reads of one observation: its normalised components and the targets. Where every row will be drawn about once or
    more, all of them are laid into one table first: a draw then costs one access to memory that no cache foresaw, instead of one for
    each tensor, and nothing is normalised twice. The batches are the same either way.

    Args:
        dataset: drawn from.
        stack: says how observations are encoded and normalised.
        objective: says which targets are read.
        batch_size: B.
        generators: one a member.
        num_steps: that will be taken.

    Attributes:
        chunk_steps: S, steps that may be drawn at once.
    """

    def __init__(
        self,
        dataset: Dataset,
        stack: StudentStack,
        objective: Objective,
        batch_size: int,
        generators: Sequence[torch.Generator],
        num_steps: int,
    ) -> None:
        self._dataset, self._batch_size, self._generators = dataset, batch_size, generators
        self._space, self._mean, self._scale = stack.architecture.observation_space, stack.mean, stack.scale
        self._names: Collection[str] = objective.reads
        self._reads_actions = objective.reads_actions
        _, self._like = dataset.take(torch.zeros(1, dtype=torch.int64, device=dataset.device), self._names)
        self._widths = [len(stack.mean), *(value.shape[-1] for value in self._like.parameters.values())]
        if self._reads_actions:
            self._widths.append(self._like.actions[0].numel())
        members, row_bytes = len(generators), 4 * sum(self._widths)
        fits = CHUNK_BYTES // (row_bytes * batch_size * members)
        # With sampled targets each member's generator draws a batch and then the actions on it.
        self.chunk_steps = 1 if objective.kind == "nll" else max(1, min(CHUNK_STEPS, fits, num_steps))
        rows = dataset.num_drawn_from
        pays = rows <= num_steps * batch_size * members and rows * row_bytes <= TABLE_BYTES
        self._table = self._lay_out_all() if pays else None
        room = (self.chunk_steps, members)
        self._rows = stack.flat.new_empty(self.chunk_steps * members * batch_size, sum(self._widths))
        self._inputs = stack.flat.new_ones(*room, self._widths[0] + 1, batch_size)
        self._targets = [stack.flat.new_empty(*room, width, batch_size) for width in self._widths[1:]]

    def draw(self, num_steps: int) -> tuple[Tensor, ActionTargets]:
        """The next ``num_steps`` batches.

        Returns:
            Inputs ``[S, K, inputs + 1, B]``, normalised and the last row ones, as ``StudentStack.forward`` reads them; and those targets
            that the objective reads, ``[S, K, B, ...]``, views of tensors that lie feature after feature.

        Raises:
            ValueError: if there is no room for so many.
        """
        if num_steps > self.chunk_steps:
            raise ValueError(f"{num_steps} steps do not fit: {self.chunk_steps} may be drawn at once")
        drawn = self._dataset.draw(num_steps, self._batch_size, self._generators)
        rows = self._rows[: drawn.numel()]
        if self._table is None:
            self._lay_out(drawn.flatten(), rows)
        else:
            torch.index_select(self._table, 0, drawn.flatten(), out=rows)
        observations, *told = rows.view(*drawn.shape, -1).split(self._widths, -1)
        inputs = self._inputs[:num_steps]
        inputs[:, :, :-1].copy_(observations.transpose(2, 3))
        columns = [room[:num_steps].copy_(part.transpose(2, 3)).transpose(2, 3) for part, room in zip(told, self._targets, strict=True)]
        actions = inputs.new_empty(*drawn.shape, 0)
        if self._reads_actions:
            actions = columns.pop().to(self._like.actions.dtype).view(*drawn.shape, *self._like.actions.shape[1:])
        return inputs, ActionTargets(dict(zip(self._like.parameters, columns, strict=True)), actions)

    def _lay_out_all(self) -> Tensor:
        positions = torch.arange(self._dataset.num_drawn_from, device=self._dataset.device)
        table = self._mean.new_empty(len(positions), sum(self._widths))
        for block, rows in zip(positions.split(BLOCK), table.split(BLOCK), strict=True):
            self._lay_out(block, rows)
        return table

    def _lay_out(self, positions: Tensor, rows: Tensor) -> None:
        """Write rows at ``positions`` ``[n]`` among those that are drawn from into ``rows`` ``[n, widths]``."""
        observations, targets = self._dataset.take(positions, self._names)
        normalised = (encode_observations(self._space, observations) - self._mean) / self._scale
        actions = [targets.actions.reshape(len(positions), -1)] if self._reads_actions else []
        torch.cat([normalised, *targets.parameters.values(), *(part.float() for part in actions)], dim=1, out=rows)
