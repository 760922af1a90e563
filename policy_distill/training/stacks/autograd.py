"""K students with any encoder as rows of one flat tensor, trained by autograd.

It is slower than the analytic stack for vectors, serves as its reference in tests, and trains all other students.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from policy_distill.environments.action_masks import MASK
from policy_distill.policies.architecture import Architecture, layer_names
from policy_distill.policies.encoders import Encoder
from policy_distill.policies.student import Student
from policy_distill.support.trees import Tree, leaf_spaces, map_leaves, rows
from policy_distill.training.stacks.flat import HIDDEN_GAIN, OUTPUT_GAIN, FlatParameters, orthogonal


@dataclass
class Pass:
    """One pass over a batch; see ``stacks.Pass``.

    Attributes:
        hidden: activations of each hidden layer of the head, ``[K, width, B]``.
        slopes: one tensor ``[K, outputs, B]``, the loss's gradient with respect to the output.
        output: logits or means ``[K, outputs, B]``.
        outputs: each member's output ``[B, outputs]``, with its autograd graph.
        layers: each member's hidden activations ``[B, width]``, with their autograd graph.
    """

    hidden: list[Tensor]
    slopes: list[Tensor]
    output: Tensor
    outputs: list[Tensor]
    layers: list[list[Tensor]]

    def named(self, output: Tensor) -> dict[str, Tensor]:
        """Layers ``hidden.0``, ``hidden.1``, ..., ``output`` for losses: views ``[K, B, width]``."""
        names = layer_names(len(self.hidden))
        return {name: layer.transpose(1, 2) for name, layer in zip(names, [*self.hidden, output], strict=True)}


class AutogradStack(FlatParameters):
    """K students, each a module whose parameters and gradients are views of ``flat`` and ``gradient``. See ``stacks.Stack``.

    Args:
        architecture: architecture of each member.
        encoder: an encoder of that architecture on the training device; members copy its normalisation.
        generators: one per member, for weight initialisation.
        projections: the student's and the teacher's width for each hint.
    """

    def __init__(
        self,
        architecture: Architecture,
        encoder: Encoder,
        *,
        generators: Sequence[torch.Generator],
        projections: Sequence[tuple[int, int]] = (),
    ) -> None:
        device = next(encoder.buffers()).device
        super().__init__(architecture, len(generators), device, projections)
        self._encoder = encoder
        self._students = [self._new_student().to(device) for _ in generators]
        parameters, self._slopes = (tensor[:, : architecture.params] for tensor in (self.flat, self.gradient))
        self._offset = architecture.params
        self._layout = [_layout(parameter) for parameter in self._students[0].parameters()]
        self._make_leaves(projections)
        for index, (student, generator) in enumerate(zip(self._students, generators, strict=True)):
            last, memory = student.linears[-1].weight, set(map(id, student.memory.parameters() if student.memory else ()))
            windows, gradients = _views(student, parameters[index]), _views(student, self._slopes[index])
            for parameter, window, gradient in zip(student.parameters(), windows, gradients, strict=True):
                if id(parameter) in memory and parameter.ndim > 1:
                    window.copy_(torch.cat([_first_weights(gate, 1.0, generator) for gate in parameter.chunk(3)]))
                elif parameter.ndim > 1:  # biases stay zero
                    window.copy_(_first_weights(parameter, OUTPUT_GAIN if parameter is last else HIDDEN_GAIN, generator))
                parameter.data, parameter.grad = window, gradient
                if self._reads_others and parameter.ndim > 1:
                    parameter.data = torch.empty_like(window)
                    self._as_read(window, parameter.data)
        self._initialize_leaves(generators)

    def _new_student(self) -> Student:
        student = Student(self.architecture)
        student.encoder = copy.deepcopy(self._encoder)
        return student

    @property
    def sample_size(self) -> int:
        """Number of elements of one input."""
        return sum(math.prod(part.shape or ()) for part in leaf_spaces(self.architecture.seen_space).values())

    def inputs(self, steps: int, batch_size: int) -> tuple[int, int, int]:
        """Leading shape ``(S, K, B)`` for ``load``. Raw observations need no buffer."""
        return steps, self.num_members, batch_size

    def load(self, observations: Tree, room: tuple[int, int, int]) -> list[Tree]:
        """Inputs ``[K, B, ...]`` of each step, from raw observations ``[S * K * B, ...]``."""
        laid_out = map_leaves(lambda leaf: leaf.unflatten(0, room), observations)
        return [rows(laid_out, step) for step in range(room[0])]

    def buffers(self, batch_size: int) -> Pass:
        """Buffers for one pass over ``batch_size`` samples per member."""
        hidden = [self.flat.new_empty(self.num_members, width, batch_size) for width in self.architecture.widths[1:]]
        return Pass(hidden[:-1], [torch.empty_like(hidden[-1])], hidden[-1], [], [])

    @torch.inference_mode(False)
    @torch.enable_grad()
    def forward(self, inputs: Tree, activations: Pass, output: Tensor | None = None) -> Tensor:
        """Fill ``activations`` and return the output ``[K, outputs, B]``.

        Args:
            inputs: raw observations ``[K, B, ...]``.
            activations: buffers of this batch size.
            output: receives the output instead of ``activations.output``.
        """
        self._refresh()
        output = activations.output if output is None else output
        activations.outputs, activations.layers = [], []
        for index, (student, values) in enumerate(zip(self._students, self._read(inputs), strict=True)):
            layers = []
            for module in student.network:
                values = module(values)
                if not isinstance(module, nn.Linear):
                    layers.append(values)
            if self.architecture.is_masked:
                values = student.family.masked(values, self._mask(inputs, index))
            activations.outputs.append(values)
            activations.layers.append(layers)
            for buffer, layer in zip([*activations.hidden, output], [*layers, values], strict=True):
                buffer[index].copy_(layer.detach().T)
        return output

    def _read(self, inputs: Tree) -> Iterator[Tensor]:
        """The input ``[B, width]`` of each member's head."""
        for index, student in enumerate(self._students):
            yield student.encoder(rows(inputs, index))

    def _mask(self, inputs: Tree, index: int) -> Tensor:
        """A member's action masks ``[B, ...]``."""
        return rows(inputs[MASK], index)

    @torch.inference_mode(False)
    def backward(self, inputs: Tree, activations: Pass, hints: Sequence[Tensor | None] = ()) -> None:
        """Write the loss's gradient with respect to all parameters into ``gradient``.

        Args:
            inputs: the inputs of ``forward``.
            activations: filled by ``forward``; the last of ``slopes`` holds the loss's gradient with respect to the output.
            hints: gradients with respect to each hidden layer's activations, ``[K, width, B]``; None where the loss does not use the layer.
        """
        self._take_over_leaves()
        self._slopes.zero_()
        roots, upstream = list(activations.outputs), [slope.T for slope in activations.slopes[-1]]
        for number, hint in enumerate(hints):
            if hint is not None:
                roots += [layers[number] for layers in activations.layers]
                upstream += [slope.T for slope in hint]
        torch.autograd.backward(roots, upstream)

    @torch.no_grad()
    def adopt(self, student: Student) -> None:
        """Give every member the weights of ``student``."""
        for row in self.flat:
            for mine, given in zip(_views(student, row[: self.architecture.params]), student.parameters(), strict=True):
                mine.copy_(given)
        self.log_std.copy_(student.log_std)

    def live(self, index: int) -> Student:
        """Member ``index`` with its present weights, until they change."""
        self._refresh()
        return self._students[index]

    @torch.no_grad()
    def member(self, index: int, flat: Tensor | None = None) -> Student:
        """A copy of member ``index`` as a ``Student`` on the CPU; from ``flat`` ``[K, P]`` if given (averaged weights)."""
        source = (self.flat if flat is None else flat)[index].cpu()
        student = self._new_student().cpu()
        for parameter, window in zip(student.parameters(), _views(student, source[: self.architecture.params]), strict=True):
            parameter.copy_(self._of_student(window) if parameter.ndim > 1 else window)
        student.log_std.copy_(source[self.architecture.params :][: len(student.log_std)])
        return student.eval().requires_grad_(False)


def _views(student: Student, row: Tensor) -> Iterator[Tensor]:
    """Views of ``row`` ``[P]`` in the shapes of the student's parameters, each in the memory format that is fastest for its layer."""
    for parameter, window in zip(student.parameters(), row.split([one.numel() for one in student.parameters()]), strict=True):
        shape = parameter.shape
        if len(shape) == 4:  # channels last
            yield window.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
        else:
            yield window.view(shape[::-1]).mT if len(shape) == 2 else window


def _layout(parameter: Tensor) -> tuple[int, int, int]:
    """Rows and columns of the parameter's window, see ``_views``, and its number of rows that are weights."""
    rows = parameter.shape[0 if parameter.ndim == 4 else -1]
    return rows, parameter.numel() // rows, rows if parameter.ndim > 1 else 0


def _first_weights(like: Tensor, gain: float, generator: torch.Generator) -> Tensor:
    """Orthogonal initial weights; a matrix ``[out, in]`` is drawn as ``[in, out]``, as in the analytic stack."""
    return orthogonal(tuple(like.shape[::-1]), gain, generator).T if like.ndim == 2 else orthogonal(tuple(like.shape), gain, generator)
