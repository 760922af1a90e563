"""Gradients of losses by autograd, with respect to the students' outputs and layers; the stack's backward pass continues from there.

Hints and relations are separate from the loss on actions, which may have an analytic gradient (``analytic_gradients``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from policy_distill.losses.objective import Objective
from policy_distill.losses.relations import Projection
from policy_distill.policies.actions import ActionTargets


class AutogradGradient:
    """Gradient of any loss on actions with respect to the outputs, by autograd.

    Args:
        objective: the loss.
        like: ``[S, K, width, B]``.
        log_std: ``[K, 1, action_dim]``, the students', read at each step; ``write`` sets its ``grad``.
        generators: one for each member, for a loss that samples the teacher's actions.

    Attributes:
        outputs: for each step a buffer ``[K, width, B]``, to be filled with the students' outputs before ``write``, which keeps it.
        divisor: ``write`` writes the gradient times this number.
    """

    def __init__(self, objective: Objective, like: Tensor, log_std: Tensor, generators: Sequence[torch.Generator]) -> None:
        self._objective, self._log_std, self._generators = objective, log_std, generators
        self.num_steps, self.divisor = len(like), 1.0
        self.outputs = torch.empty_like(like).unbind(0)

    def load(self, targets: ActionTargets, progress: Sequence[float]) -> None:
        """Set the teacher's targets of the next S steps.

        Args:
            targets: with leading ``[S, K, B]``.
            progress: ``[S]``, completed share of the training at each step.
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
        # Members share no parameters, so the sum over them keeps their gradients separate.
        objective.total(terms, progress=progress).mean(-1).sum().backward()
        assert output.grad is not None, "every loss reads the output"
        slope.copy_(output.grad.transpose(1, 2))
        _add(self._values, terms)

    def values(self) -> dict[str, Tensor]:
        """Sum over the steps of each term's mean over members and samples (``Objective.terms``); call it once for each ``load``."""
        return self._values

    def _draws(self, output: Tensor) -> Tensor:
        """Uniform numbers in (0, 1), ``[K, B, width]``, from each member's generator."""
        draws = [torch.rand(output.shape[1:], generator=generator, device=output.device) for generator in self._generators]
        return torch.stack(draws).clamp(1e-7, 1 - 1e-7)


class LayerGradient:
    """Gradients of hints and relations with respect to the students' layers and the projections, by autograd.

    Args:
        objective: the loss.
        projections: see ``Objective.terms``; leaf tensors, whose ``grad`` is written.
        divisor: factor on the gradients.
    """

    def __init__(self, objective: Objective, projections: Sequence[Projection], divisor: float) -> None:
        self._objective, self._projections, self._divisor = objective, projections, divisor

    def load(self, targets: ActionTargets) -> None:
        """Set the teacher's layers of the next S steps, with leading ``[S, K, B]``."""
        self._targets = targets
        self._values: dict[str, Tensor] = {}

    @torch.inference_mode(False)
    def write(self, step: int, layers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradients ``[K, width, B]`` of the mean over the batch, with respect to those of ``layers`` ``[K, B, width]`` that terms read."""
        objective = self._objective
        read = {name: layer.detach().requires_grad_() for name, layer in layers.items() if name in objective.layers_read}
        terms = objective.layer_terms(read, _at(step, self._targets), self._projections)
        (objective.total(terms).mean(-1).sum() * self._divisor).backward()
        _add(self._values, terms)
        return {name: layer.grad.transpose(1, 2) for name, layer in read.items() if layer.grad is not None}

    def values(self) -> dict[str, Tensor]:
        """Sum over the steps of each term's mean over members and samples; call it once for each ``load``."""
        return self._values


def _at(step: int, targets: ActionTargets) -> ActionTargets:
    """The targets of one step of a chunk."""
    return ActionTargets({name: value[step] for name, value in targets.parameters.items()}, targets.actions[step])


def _add(sums: dict[str, Tensor], terms: Mapping[str, Tensor]) -> None:
    """Add each term's mean to its sum."""
    for name, value in terms.items():
        mean = value.detach().mean()
        sums[name] = sums[name] + mean if name in sums else mean
