"""K students on vectors as rows of one flat tensor, with an explicit forward and backward pass that allocate nothing."""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from policy_distill.environments.action_masks import mask_sizes
from policy_distill.policies.architecture import Architecture, layer_names
from policy_distill.policies.observations import encode_observations
from policy_distill.policies.student import Student
from policy_distill.training.stacks.flat import HIDDEN_GAIN, OUTPUT_GAIN, FlatParameters, orthogonal

NARROW = 10
"""Maximum number of rows for which MKL has a fast kernel over a long batch; one more row takes up to ten times as long."""
SPLIT = 40
"""Maximum number of rows for which parts of ``NARROW`` rows are faster than one product."""
Factors: TypeAlias = tuple[Tensor, Tensor]
"""``[K, rows, B]`` and ``[K, B, columns]``."""


@dataclass(frozen=True)
class Activations:
    """Buffers of a stack's passes for one batch size; each pass overwrites them.

    They are feature-major: softmax, activations and sums run along the batch, and a last row of ones makes the bias one more weight.

    Attributes:
        before: ``[K, width, B]`` of each layer, before its activation; the last is the output, which has no activation.
        after: ``[K, width + 1, B]`` of each hidden layer, after its activation; the last row is ones.
        hidden: ``[K, width, B]`` of each hidden layer, ``after`` without the ones.
        slopes: ``[K, width, B]`` of each layer, the loss's gradient with respect to ``before``.
        upwards: operands of ``forward`` for each hidden layer: its transposed weights, ``before``, ``hidden`` and ``after``.
        downwards: operands of ``backward`` from the last hidden layer to the first: index, the next layer's weights and slope, its own
            slope, ``before`` and ``hidden``.
        multiplied: factors and result of the weights' gradients, for all layers but the first, whose input changes.
        first_turned: the first layer's slope ``[K, B, width]``.
        first_products: results of the first layer's weights' gradient.
        copies: views of the stack's gradient, and the results to be copied there because they are not such views.
    """

    before: list[Tensor]
    after: list[Tensor]
    hidden: list[Tensor]
    slopes: list[Tensor]
    upwards: list[tuple[Tensor, Tensor, Tensor, Tensor]]
    downwards: list[tuple[int, Tensor, Tensor, Tensor, Tensor, Tensor]]
    multiplied: list[tuple[Tensor, Tensor, Tensor]]
    first_turned: Tensor
    first_products: list[Tensor]
    copies: list[tuple[Tensor, Tensor]]

    @property
    def output(self) -> Tensor:
        """Logits or means ``[K, outputs, B]``."""
        return self.before[-1]

    def named(self, output: Tensor | None = None) -> dict[str, Tensor]:
        """Layers ``hidden.0``, ``hidden.1``, ..., ``output`` for losses: views ``[K, B, width]``.

        Args:
            output: ``[K, outputs, B]``, if ``forward`` wrote the output to another tensor.
        """
        layers = [*self.hidden, self.output if output is None else output]
        return {name: layer.transpose(1, 2) for name, layer in zip(layer_names(len(self.after)), layers, strict=True)}


class StudentStack(FlatParameters):
    """K students of one architecture on vectors; implements ``stacks.Stack``.

    The backward pass is explicit: for networks this small autograd's bookkeeping costs more than its arithmetic.

    Args:
        architecture: each member's architecture.
        generators: one for each member's initial weights.
        mean, scale: ``[inputs]`` of the normalisation, on the training device; they determine its precision.
        projections: for each hint the student's and the teacher's width; trained, but not part of ``member``.
        hidden_sizes: each member's sizes, if they are narrower than ``architecture``'s. Weights from and to missing units start at zero
            and stay there: all activations are zero at zero, and so is every gradient.

    Attributes:
        flat: weights and biases layer by layer, then ``log_std`` for continuous actions, then the projections.
        weights: ``[K, width in + 1, width out]`` of each layer, views into ``flat``; the last row is the bias.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        generators: list[torch.Generator],
        mean: Tensor,
        scale: Tensor,
        projections: Sequence[tuple[int, int]] = (),
        hidden_sizes: Sequence[tuple[int, ...]] | None = None,
    ) -> None:
        self.architecture = architecture
        member_sizes = hidden_sizes or [architecture.hidden_sizes] * len(generators)
        self._architectures = [dataclasses.replace(architecture, hidden_sizes=sizes) for sizes in member_sizes]
        for member in self._architectures:
            if len(member.widths) != len(architecture.widths) or any(map(operator.gt, member.widths, architecture.widths)):
                raise ValueError(f"hidden_sizes {member.hidden_sizes} do not fit into {architecture.hidden_sizes}")
        if hidden_sizes and architecture.pruning is not None:
            raise ValueError("weights that a narrower member does not have would count as zeros")
        if hidden_sizes and projections:
            raise ValueError("members of different widths have no hints in common")
        self.mean, self.scale = mean, scale
        self._mask_above: Tensor | None = None
        if architecture.is_masked:
            entries = sum(mask_sizes(architecture.action_space))
            self._mask_above = ((0.5 - mean) / scale)[-entries:, None].float()
        widths = architecture.widths
        super().__init__(architecture, len(generators), mean.device, projections)
        layers = [self._windows(width_in + 1, width_out) for width_in, width_out in itertools.pairwise(widths)]
        self._layout = [(width_in + 1, width_out, width_in) for width_in, width_out in itertools.pairwise(widths)]
        self.weights = [window for window, _ in layers]
        read, self._biases = self.weights, []
        if self._reads_others:
            read = [torch.zeros_like(window) for window in self.weights]
            for window, other in zip(self.weights, read, strict=True):
                self._as_read(window[:, :-1].mT, other[:, :-1].mT)
            self._biases = [(other[:, -1], window[:, -1]) for other, window in zip(read, self.weights, strict=True)]
        self._sinks = [window.transpose(1, 2) for window in read]
        self._sources = [window[:, :-1] for window in read]
        self._parts = [_parts(gradient) for _, gradient in layers]
        self._make_leaves(projections)
        self._initialize(generators)

    @torch.no_grad()
    def _initialize(self, generators: list[torch.Generator]) -> None:
        """Initialise with orthogonal weights (``flat.orthogonal``) and zero biases."""
        for member, generator in enumerate(generators):
            widths = self._architectures[member].widths
            for index, (weight, (width_in, width_out)) in enumerate(zip(self.weights, itertools.pairwise(widths), strict=True)):
                initial = orthogonal((width_in, width_out), HIDDEN_GAIN if index + 2 < len(widths) else OUTPUT_GAIN, generator)
                weight[member, :width_in, :width_out].copy_(initial)
        self._initialize_leaves(generators)

    @property
    def sample_size(self) -> int:
        """Number of elements of one input."""
        return len(self.mean)

    def inputs(self, steps: int, batch_size: int) -> Tensor:
        """Buffer for ``load``: ``[S, K, inputs + 1, B]``, the last row ones."""
        return self.flat.new_ones(steps, self.num_members, len(self.mean) + 1, batch_size)

    def load(self, observations: Tensor, room: Tensor) -> Sequence[Tensor]:
        """Encode and normalise raw observations ``[S * K * B, ...]`` into the buffer ``room``; return the inputs of each step."""
        steps, members, _, batch_size = room.shape
        encoded = encode_observations(self.architecture.seen_space, observations, self.mean.dtype)
        if self.architecture.columns is not None:
            encoded = encoded[:, list(self.architecture.columns)]
        turned = encoded.reshape(steps, members, batch_size, -1).transpose(2, 3)
        torch.sub(turned, self.mean[:, None], out=room[:, :, :-1]).div_(self.scale[:, None])
        return room.unbind(0)

    def buffers(self, batch_size: int) -> Activations:
        """Buffers of a pass over ``batch_size`` samples for each member."""
        widths = self.architecture.widths

        def buffer(width: int) -> Tensor:
            return self.flat.new_empty(self.num_members, width, batch_size)

        before, slopes = [buffer(width) for width in widths[1:]], [buffer(width) for width in widths[1:]]
        after = [torch.ones_like(buffer(width + 1)) for width in widths[1:-1]]
        hidden = [layer[:, :-1] for layer in after]
        # A product is written directly into a contiguous view of the gradient, as in a stack of one; else it is copied there.
        products = [[part if part.is_contiguous() else torch.empty_like(part.contiguous()) for part in layer] for layer in self._parts]
        copies = [
            (part, product)
            for parts, layer in zip(self._parts, products, strict=True)
            for part, product in zip(parts, layer, strict=True)
            if part is not product
        ]
        multiplied = [
            (left, right, product)
            for below, slope, layer in zip(after, slopes[1:], products[1:], strict=True)
            for (left, right), product in zip(_factors(below, slope, slope.transpose(1, 2)), layer, strict=True)
        ]
        return Activations(
            before,
            after,
            hidden,
            slopes,
            upwards=list(zip(self._sinks[:-1], before[:-1], hidden, after, strict=True)),
            downwards=[
                (index, self._sources[index + 1], slopes[index + 1], slopes[index], before[index], hidden[index])
                for index in reversed(range(len(hidden)))
            ],
            multiplied=multiplied,
            first_turned=slopes[0].transpose(1, 2),
            first_products=products[0],
            copies=copies,
        )

    def forward(self, inputs: Tensor, activations: Activations, output: Tensor | None = None) -> Tensor:
        """Fill ``activations`` and return the output ``[K, outputs, B]``.

        Args:
            inputs: normalised observations ``[K, inputs + 1, B]``, the last row ones.
            activations: buffers of this batch size.
            output: receives the output instead of ``activations``.
        """
        if self._reads_others:
            self._refresh()
            for read, bias in self._biases:
                read.copy_(bias)
        below, (activate, _) = inputs, _FUNCTIONS[self.architecture.activation]
        for sink, before, hidden, after in activations.upwards:
            torch.bmm(sink, below, out=before)
            activate(before, hidden)
            below = after
        output = torch.bmm(self._sinks[-1], below, out=activations.output if output is None else output)
        if self._mask_above is not None:
            output.copy_(self._masked(output, inputs, self._mask_above))
        return output

    def _masked(self, output: Tensor, inputs: Tensor, above: Tensor) -> Tensor:
        """The output under the mask, which is the last part of an observation."""
        mask = inputs[:, -1 - len(above) : -1] > above
        return self.architecture.family.masked(output.mT, mask.mT).mT

    def backward(self, inputs: Tensor, activations: Activations, hints: Sequence[Tensor | None] = ()) -> None:
        """Write the loss's gradient with respect to all parameters into ``gradient``.

        Args:
            inputs: the inputs of ``forward``.
            activations: filled by ``forward``; the last of ``slopes`` holds the loss's gradient with respect to the output.
            hints: the gradient with respect to each hidden layer after its activation, ``[K, width, B]``; None if the loss does not read
                that layer.
        """
        self._take_over_leaves()
        if self._mask_above is not None:  # a masked output does not depend on the network
            slope = activations.slopes[-1]
            slope.mul_(self._masked(torch.ones_like(slope), inputs, self._mask_above) == 1)
        _, derive = _FUNCTIONS[self.architecture.activation]
        for index, source, above, slope, before, hidden in activations.downwards:
            torch.bmm(source, above, out=slope)
            if hints and (hint := hints[index]) is not None:
                slope += hint
            derive(slope, before, hidden)
        for left, right, product in activations.multiplied:
            torch.bmm(left, right, out=product)
        factors = _factors(inputs, activations.slopes[0], activations.first_turned)
        for (left, right), product in zip(factors, activations.first_products, strict=True):
            torch.bmm(left, right, out=product)
        for part, product in activations.copies:
            part.copy_(product)

    @torch.no_grad()
    def member(self, index: int, flat: Tensor | None = None) -> Student:
        """A copy of member ``index`` as a ``Student`` on the CPU; from ``flat`` ``[K, P]`` if given (averaged weights)."""
        source = (self.flat if flat is None else flat)[index].cpu()
        student = Student(self._architectures[index])
        offset = 0
        for layer, (width_in, width_out) in zip(student.linears, itertools.pairwise(self.architecture.widths), strict=True):
            count = (width_in + 1) * width_out
            window = source[offset : offset + count].view(width_in + 1, width_out)
            weight = window[: layer.in_features, : layer.out_features].T
            layer.weight.copy_(self._of_student(weight))
            layer.bias.copy_(window[-1, : layer.out_features])
            offset += count
        student.vectors.normalize_by(self.mean, self.scale)
        student.log_std.copy_(source[offset : offset + len(student.log_std)])
        return student.eval().requires_grad_(False)


def _cuts(rows: int, columns: int, device: torch.device) -> int:
    """Number of parts into which the product for a weight gradient is split by rows; 0: its transpose is computed.

    The thresholds were measured on CPUs; other devices do not split.
    """
    if device.type != "cpu" or rows <= NARROW:
        return 1
    if columns <= NARROW:
        return 0
    return math.ceil(rows / NARROW) if rows <= SPLIT else 1


def _factors(below: Tensor, slope: Tensor, right: Tensor) -> list[Factors]:
    """Factors of the products that form a weight gradient ``[K, rows, columns]``, one pair for each part.

    Args:
        below: ``[K, rows, B]``.
        slope, right: ``[K, columns, B]`` and its transpose.
    """
    cuts = _cuts(below.shape[1], slope.shape[1], slope.device)
    if cuts == 0:
        return [(slope, below.transpose(1, 2))]
    return [(left, right) for left in (below.tensor_split(cuts, 1) if cuts > 1 else (below,))]


def _parts(gradient: Tensor) -> Sequence[Tensor]:
    """The views of ``[K, rows, columns]`` that receive the products of ``_factors``."""
    cuts = _cuts(gradient.shape[1], gradient.shape[2], gradient.device)
    return gradient.tensor_split(cuts, 1) if cuts else (gradient.transpose(1, 2),)


_aten = torch.ops.aten
Derive: TypeAlias = Callable[[Tensor, Tensor, Tensor], object]
_FUNCTIONS: dict[str, tuple[Callable[[Tensor, Tensor], object], Derive]] = {
    "relu": (
        lambda before, after: torch.clamp_min(before, 0, out=after),
        lambda slope, before, after: _aten.threshold_backward.grad_input(slope, after, 0, grad_input=slope),
    ),
    "tanh": (
        lambda before, after: torch.tanh(before, out=after),
        lambda slope, before, after: _aten.tanh_backward.grad_input(slope, after, grad_input=slope),
    ),
    "elu": (
        lambda before, after: _aten.elu.out(before, out=after),
        lambda slope, before, after: _aten.elu_backward.grad_input(slope, 1.0, 1.0, 1.0, True, after, grad_input=slope),
    ),
    "silu": (
        lambda before, after: _aten.silu.out(before, out=after),
        lambda slope, before, after: _aten.silu_backward.grad_input(slope, before, grad_input=slope),
    ),
}
"""Each activation, written into ``after``, and its backward pass, which turns the gradient ``slope`` after it into that before it."""
