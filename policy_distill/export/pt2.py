"""The format ``pt2``: a student as ``policy.pt2``, a program of ``torch.export`` that runs without this package.

``torch.export.load("policy.pt2").module()`` takes the parts of the observation ``[B, ...]`` in the order of ``Folded.inputs``, then the
recurrent state, if there is one, and returns the action, the network's outputs and the state after the step. B may be any number.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from policy_distill.export.folded import MASK_NAME, ActionRule, Dense, Folded, Input, Normalization
from policy_distill.export.runner import Seen, Visited
from policy_distill.policies.architecture import ACTIVATIONS
from policy_distill.policies.families.choices import FORBIDDEN
from policy_distill.support.files import write_atomically
from policy_distill.support.untrusted import read_bytes, refuse_damage

FILE = "policy.pt2"
MAX_BYTES = 256 << 20
"""Limit for reading."""


def write(folded: Folded, folder: Path, visited: Visited | None = None) -> None:
    """Write ``policy.pt2``. The normalisation is folded into the first layer where float32 allows it.

    The same student gives the same bytes with the same version of torch.
    """
    module = Policy(folded.with_folded_normalization() if folded.normalization_folds else folded)
    shapes = [(part.shape, part.dtype) for part in folded.inputs]
    shapes += [] if folded.memory is None else [((folded.memory.units,), np.dtype(np.float32))]
    example = tuple(torch.from_numpy(np.ones((2, *shape), dtype)) for shape, dtype in shapes)  # two: a batch of one would stay one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
        batch = {0: torch.export.Dim("batch", min=1)}
        program = torch.export.export(module, example, dynamic_shapes=((batch,) * len(example),))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of the machine that writes
        buffer = io.BytesIO()  # in a file, the archive would name the file
        torch.export.save(program, buffer)
    write_atomically(folder / FILE, lambda target: target.write_bytes(buffer.getvalue()))


def load(folder: Path, folded: Folded) -> Pt2Runner:
    """The policy of ``policy.pt2``; ``folded`` gives its inputs.

    ``torch.export.load`` unpickles parts of the file, which can run any code: only files that are trusted may be loaded.

    Raises:
        RequestError: if the file is damaged.
    """
    path = folder / FILE
    with refuse_damage(path, "export the student again"):
        program: Any = torch.export.load(io.BytesIO(read_bytes(path, MAX_BYTES)))
        return Pt2Runner(program.module(), folded)


class Pt2Runner:
    """A ``Runner`` of a torch program. Each row is a call of its own: kernels for larger batches round differently."""

    def __init__(self, module: nn.Module, folded: Folded) -> None:
        self._module, self._names, self._has_state = module, [part.name for part in folded.inputs], folded.memory is not None

    @torch.inference_mode()
    def __call__(self, seen: Seen, state: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inputs = [torch.from_numpy(np.ascontiguousarray(seen[name])) for name in self._names]
        inputs += [torch.from_numpy(state)] if self._has_state else []
        rows = [self._module(*(tensor[row : row + 1] for tensor in inputs)) for row in range(len(state))]
        action, outputs, *after = (torch.cat(parts).numpy() for parts in zip(*rows, strict=True))
        return action, outputs, after[0] if after else state


class Policy(nn.Module):
    """``Folded`` as a torch module."""

    def __init__(self, folded: Folded) -> None:
        super().__init__()
        self._folded, self._activation, memory = folded, ACTIVATIONS[folded.activation](), folded.memory
        self._read, self.parts = [], nn.ModuleList()
        for index, (part, normalization) in enumerate(zip(folded.inputs, folded.normalizations, strict=True)):
            if normalization is None or len(normalization.columns):
                self._read.append(index)
                self.parts.append(_Image(part, self._activation) if normalization is None else _Vector(part, normalization))
        self.memory = None if memory is None else _dense(Dense(memory.inputs, memory.bias))
        self.recurrent = None if memory is None else nn.Parameter(torch.from_numpy(memory.recurrent.copy()))
        self.layers = nn.ModuleList(map(_dense, folded.layers))
        self.rule = _Rule(folded.rule)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values = torch.cat([part(inputs[index]) for index, part in zip(self._read, self.parts, strict=True)], dim=1)
        states = []
        if self.memory is not None and self.recurrent is not None:
            values = _step(self.memory(values), nn.functional.linear(inputs[-1], self.recurrent), inputs[-1])
            states = [values]
        *hidden, last = self.layers
        for layer in hidden:
            values = self._activation(layer(values))
        outputs = last(values)
        if self._folded.rule.masked:
            names = [part.name for part in self._folded.inputs]
            outputs = _masked(self._folded.rule, outputs, inputs[names.index(MASK_NAME)])
        return (self.rule(outputs), outputs, *states)


class _Vector(nn.Module):
    """Features of a part that is read as a vector; a discrete component is compared with the value of each of its columns."""

    values: Tensor
    columns: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, part: Input, normalization: Normalization) -> None:
        super().__init__()
        columns, mean, scale = normalization.columns, normalization.mean, normalization.scale
        self._is_discrete, self._width = bool(part.sizes), int(np.prod(part.shape))
        if part.sizes:
            values = np.concatenate([start + np.arange(size) for size, start in zip(part.sizes, part.starts, strict=True)])
            self.register_buffer("values", torch.from_numpy(values[columns]))
            columns = np.repeat(np.arange(len(part.sizes)), part.sizes)[columns]
        self._selects, self._normalizes = not np.array_equal(columns, np.arange(self._width)), bool(mean.any() or (scale != 1).any())
        self._dtype = torch.from_numpy(mean).dtype
        if self._selects:
            self.register_buffer("columns", torch.from_numpy(columns))
        if self._normalizes:
            self.register_buffer("mean", torch.from_numpy(mean.copy()))
            self.register_buffer("scale", torch.from_numpy(scale.copy()))

    def forward(self, values: Tensor) -> Tensor:
        vectors = values.reshape(values.shape[0], self._width)
        vectors = vectors[:, self.columns] if self._selects else vectors
        vectors = (vectors == self.values if self._is_discrete else vectors).to(self._dtype)
        return ((vectors - self.mean) / self.scale if self._normalizes else vectors).float()


class _Image(nn.Module):
    """Features of a part that convolutions read."""

    def __init__(self, part: Input, activation: nn.Module) -> None:
        super().__init__()
        self._channels_first, self._activation = part.channels_first, activation
        self.convolutions = nn.ModuleList()
        for layer in part.convolutions:
            outputs, inputs, kernel, _ = layer.weight.shape
            module = nn.utils.skip_init(nn.Conv2d, inputs, outputs, kernel, layer.stride)
            self.convolutions.append(_filled(module, layer.weight, layer.bias))

    def forward(self, values: Tensor) -> Tensor:
        images = (values if self._channels_first else values.permute(0, 3, 1, 2)).float()
        for convolution in self.convolutions:
            images = self._activation(convolution(images))
        return images.permute(0, 2, 3, 1).flatten(1)


class _Rule(nn.Module):
    """Actions from outputs; see ``ActionRule``."""

    scale: Tensor
    offset: Tensor
    low: Tensor
    high: Tensor
    starts: Tensor

    def __init__(self, rule: ActionRule) -> None:
        super().__init__()
        self._rule, self._dtype = rule, torch.from_numpy(np.zeros(0, rule.dtype)).dtype
        for name in ("scale", "offset", "low", "high") if rule.kind == "box" else ():
            self.register_buffer(name, torch.from_numpy(getattr(rule, name).copy()))
        if rule.kind == "argmax":
            self.register_buffer("starts", torch.tensor(rule.starts))

    def forward(self, outputs: Tensor) -> Tensor:
        match self._rule.kind:
            case "box":
                actions = torch.clamp(outputs * self.scale + self.offset, self.low, self.high)
            case "bits":
                actions = outputs > 0
            case "argmax":
                actions = torch.stack([part.argmax(1) for part in outputs.split(self._rule.sizes, dim=1)], dim=1) + self.starts
        return actions.reshape(outputs.shape[0], *self._rule.shape).to(self._dtype)


def _step(inputs: Tensor, recurrent: Tensor, state: Tensor) -> Tensor:
    """The state after the step; see ``Gru``."""
    (input_reset, input_update, input_new), (reset, update, new) = inputs.chunk(3, 1), recurrent.chunk(3, 1)
    candidate = torch.tanh(input_new + torch.sigmoid(input_reset + reset) * new)
    return candidate + torch.sigmoid(input_update + update) * (state - candidate)


def _masked(rule: ActionRule, logits: Tensor, mask: Tensor) -> Tensor:
    """Logits with those of forbidden actions replaced; see ``Choices.masked`` and ``Bernoulli.masked``."""
    allowed = mask.reshape(mask.shape[0], -1) != 0
    if rule.kind == "argmax":
        return torch.where(allowed, logits, FORBIDDEN)
    off, on = allowed[:, 0::2], allowed[:, 1::2]  # logit 0 where neither is allowed
    return torch.where(on, torch.where(off, logits, -FORBIDDEN), torch.where(off, FORBIDDEN, torch.zeros_like(logits)))


def _dense(layer: Dense) -> nn.Module:
    outputs, inputs = layer.weight.shape
    return _filled(nn.utils.skip_init(nn.Linear, inputs, outputs), layer.weight, layer.bias)


def _filled(module: nn.Module, weight: np.ndarray, bias: np.ndarray) -> nn.Module:
    module.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    return module.requires_grad_(False)
