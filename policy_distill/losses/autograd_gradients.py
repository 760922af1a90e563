"""Losses whose gradient autograd finds: it goes through the loss alone, from what it reads of the students.

The stack's backward pass takes it from there. Hints and relations are kept apart from the loss on actions, whose gradient may be written
out (``analytic_gradients``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from policy_distill.losses.objective import Objective
from policy_distill.losses.relations import Projection
from policy_distill.policies.actions import ActionTargets


class AutogradGradient:
    """Any other loss on actions: autograd goes through the loss alone, from the output.

    Args:
        objective: the loss.
        like: ``[S, K, width, B]``.
        log_std: ``[K, 1, action_dim]``, the students' as it is at each step; its gradient is written to it.
        generators: one a member, for a loss that draws the teacher's actions.

    Attributes:
        outputs: of each step ``[K, width, B]``, where the students' outputs belong before ``write``; they are left as they are.
        divisor: what ``write`` writes is the gradient times this number.
    """

    def __init__(self, objective: Objective, like: Tensor, log_std: Tensor, generators: Sequence[torch.Generator]) -> None:
        self._objective, self._log_std, self._generators = objective, log_std, generators
        self.num_steps, self.divisor = len(like), 1.0
        self.outputs = torch.empty_like(like).unbind(0)

    def load(self, targets: ActionTargets, progress: Sequence[float]) -> None:
        """Take in what the next steps' teacher says.

        Args:
            targets: with leading ``[S, K, B]``.
            progress: ``[S]``, share of the training that is done at each step.
        """
        self._targets, self._progress = targets, progress
        self._values: dict[str, Tensor] = {}

    @torch.inference_mode(False)
    def write(self, step: int, slope: Tensor) -> None:
        """Write the gradient of the mean over the batch with respect to ``outputs[step]`` into ``slope``."""
        objective, progress = self._objective, self._progress[step]
        output = self.outputs[step].transpose(1, 2).detach().requires_grad_()
        draws = self._draws(output) if objective.kind == "nll" else None
        terms = objective.terms(output, self._log_std, _at(step, self._targets), progress=progress, draws=draws)
        # Members do not share parameters: the sum over them keeps their gradients apart.
        objective.total(terms, progress=progress).mean(-1).sum().backward()
        assert output.grad is not None, "every loss reads the output"
        slope.copy_(output.grad.transpose(1, 2))
        _add(self._values, terms)

    def values(self) -> dict[str, Tensor]:
        """Each term's sum over the steps of its mean over members and samples, as ``Objective.terms`` has it; once for each ``load``."""
        return self._values

    def _draws(self, output: Tensor) -> Tensor:
        """Uniform numbers in (0, 1), ``[K, B, width]``, each member's from its own generator."""
        draws = [torch.rand(output.shape[1:], generator=generator, device=output.device) for generator in self._generators]
        return torch.stack(draws).clamp(1e-7, 1 - 1e-7)


class LayerGradient:
    """Hints and relations: autograd goes through these terms alone, from the students' layers and the projections.

    Args:
        objective: the loss.
        projections: see ``Objective.terms``; leaves of autograd's, to which their gradients are written.
        divisor: what ``write`` writes is the gradient times this number.
    """

    def __init__(self, objective: Objective, projections: Sequence[Projection], divisor: float) -> None:
        self._objective, self._projections, self._divisor = objective, projections, divisor

    def load(self, targets: ActionTargets) -> None:
        """Take in the teacher's layers at the next steps, with leading ``[S, K, B]``."""
        self._targets = targets
        self._values: dict[str, Tensor] = {}

    @torch.inference_mode(False)
    def write(self, step: int, layers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gradient of the mean over the batch, ``[K, width, B]``, with respect to each of ``layers`` ``[K, B, width]`` that is read."""
        objective = self._objective
        read = {name: layer.detach().requires_grad_() for name, layer in layers.items() if name in objective.layers_read}
        terms = objective.layer_terms(read, _at(step, self._targets), self._projections)
        (objective.total(terms).mean(-1).sum() * self._divisor).backward()
        _add(self._values, terms)
        return {name: layer.grad.transpose(1, 2) for name, layer in read.items() if layer.grad is not None}

    def values(self) -> dict[str, Tensor]:
        """Each term's sum over the steps of its mean over members and samples; once for each ``load``."""
        return self._values


def _at(step: int, targets: ActionTargets) -> ActionTargets:
    """The targets of one step of a chunk."""
    return ActionTargets({name: value[step] for name, value in targets.parameters.items()}, targets.actions[step])


def _add(sums: dict[str, Tensor], terms: Mapping[str, Tensor]) -> None:
    """Add each term's mean to its sum."""
    for name, value in terms.items():
        mean = value.detach().mean()
        sums[name] = sums[name] + mean if name in sums else mean
