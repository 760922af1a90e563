"""Teachers and students as a few numpy operations, for the loops that step environments.

Between two steps of an environment the caches are cold, and a tensor operation costs several times what it does in a loop of its own;
numpy's are a third of that. Values agree with those of the torch modules to rounding; they depend on the observations alone, since the
number of rows is fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from policy_distill.actions import Box, Categorical, DiagGaussian
from policy_distill.students import Student
from policy_distill.teachers import Teacher
from policy_distill.teachers.networks import (
    ActionBounds,
    ConstantSpread,
    DeterministicNetwork,
    DiscreteNetwork,
    GaussianNetwork,
    LinearSpread,
    StateDependentSpread,
)

Labels: TypeAlias = tuple[dict[str, np.ndarray], np.ndarray]
"""The parameters and actions of ``ActionTargets`` as arrays; the next question may overwrite them."""
Act: TypeAlias = Callable[[np.ndarray], np.ndarray]

ONE_THREAD = 65536 * 4
"""OpenBLAS multiplies matrices with one thread up to so many multiplications (``interface/gemm.c``); with more it wakes threads of its own,
which on a busy machine are waited for a hundred times as long as the product takes. Larger products are torch's."""


def labeller(teacher: Teacher, rows: int) -> Callable[[np.ndarray], Labels]:
    """``teacher.targets`` for batches of exactly ``rows`` raw observations, one forward pass a question.

    Networks that are not plain stacks of layers, and teachers that record layers, are asked as they are.
    """
    network = teacher.network
    if isinstance(teacher.observation_space, gym.spaces.Box) and not teacher.recorded and teacher.anchor.device.type == "cpu":
        match network:
            case DiscreteNetwork() if isinstance(network.family, Categorical):
                return _discrete(network, _encoder(teacher, rows), rows)
            case DeterministicNetwork():
                return _deterministic(network, _encoder(teacher, rows), rows)
            case GaussianNetwork() if not (isinstance(network.spread, StateDependentSpread) and network.spread.features is not None):
                return _gaussian(network, _encoder(teacher, rows), rows)

    def ask(observations: np.ndarray) -> Labels:
        with torch.inference_mode():
            targets = teacher.targets(torch.from_numpy(observations))
        return {name: value.numpy() for name, value in targets.parameters.items()}, targets.actions.numpy()

    return ask if teacher.anchor.device.type == "cpu" else _refuse_device


def actor(policy: Any, rows: int) -> Act:
    """``policy.act`` for batches of exactly ``rows`` raw observations; anything but a teacher or a student is asked as it is."""
    if isinstance(policy, Teacher) and policy.anchor.device.type == "cpu":
        return _teacher_actor(policy, rows)
    if isinstance(policy, Student) and isinstance(policy.observation_space, gym.spaces.Box):
        return _student_actor(policy, rows)
    return policy.act


def _refuse_device(observations: np.ndarray) -> Labels:
    raise ValueError("the teacher is not on the CPU, where environments are stepped: move it there")


def _teacher_actor(teacher: Teacher, rows: int) -> Act:
    label, space = labeller(teacher, rows), teacher.action_space
    if not isinstance(space, gym.spaces.Box):
        return lambda observations: label(observations)[1]
    shape, dtype = (rows, *space.shape), space.dtype if space.dtype.kind == "f" else np.dtype(np.float32)
    return lambda observations: label(observations)[1].reshape(shape).astype(dtype, copy=False)


def outputs_of(student: Student, rows: int) -> Act:
    """The student's logits or means in box units ``[B, outputs]`` for batches of exactly ``rows`` raw observations.

    The next question may overwrite them.
    """
    if not isinstance(student.observation_space, gym.spaces.Box):
        return lambda observations: _ask(student, observations)
    layers = Layers(student.network, rows)
    mean, scale = student.mean.numpy(), student.scale.numpy()
    encoded = np.empty((rows, len(mean)), np.float32)

    def outputs(observations: np.ndarray) -> np.ndarray:
        np.subtract(observations.reshape(rows, -1), mean, out=encoded, casting="same_kind")
        return layers(np.divide(encoded, scale, out=encoded))

    return outputs


@torch.inference_mode()
def _ask(student: Student, observations: np.ndarray) -> np.ndarray:
    answer: np.ndarray = student(torch.from_numpy(observations)).numpy()
    return answer


def _student_actor(student: Student, rows: int) -> Act:
    outputs = outputs_of(student, rows)
    match student.family:
        case Categorical(start=start):
            return lambda observations: outputs(observations).argmax(-1) + start
        case DiagGaussian(box=box):
            finish = to_environment(box, student.action_space.shape or ())
            return lambda observations: finish(outputs(observations))
    return student.act


def to_environment(box: Box, shape: tuple[int, ...]) -> Act:
    """From means or draws in box units ``[B, dim]`` to fresh actions ``[B, *shape]`` in the environment's units.

    They are clipped last: rounding takes none of them past the bounds.
    """
    unit, offset = (values.astype(np.float32) for values in box.affine())
    low, high = (np.array(bounds, np.float32) for bounds in (box.low, box.high))
    return lambda values: (values * unit + offset).clip(low, high).reshape(-1, *shape)


class Layers:
    """Fully connected layers and activations on preallocated arrays.

    Args:
        network: of ``nn.Linear`` and modules without weights, which may be nested.
        rows: B, of every call.
    """

    def __init__(self, network: nn.Module, rows: int) -> None:
        modules = list(_inside(network))
        self._steps = [
            _product(module.weight.t(), module.bias, rows) if isinstance(module, nn.Linear) else _activation(module) for module in modules
        ]

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """``[B, inputs]`` float32, which stay as they are, to ``[B, outputs]``, which the next call overwrites."""
        for step in self._steps:
            values = step(values)
        return values


def _inside(network: nn.Module) -> Iterator[nn.Module]:
    """What is applied one after the other: nested ``nn.Sequential`` are opened, other modules are not."""
    if isinstance(network, nn.Sequential):
        for part in network:
            yield from _inside(part)
    else:
        yield network


def _product(weight: torch.Tensor, bias: torch.Tensor | None, rows: int) -> Act:
    """From ``[B, inputs]`` to ``[B, outputs]``, in an array of its own; ``weight`` is ``[inputs, outputs]``."""
    with torch.inference_mode():
        weight = weight.contiguous()
    bias = torch.zeros(weight.shape[1]) if bias is None else bias.detach()
    output = torch.empty(rows, weight.shape[1])
    weight_array, bias_array, output_array = weight.detach().numpy(), bias.numpy(), output.numpy()

    def small(values: np.ndarray) -> np.ndarray:
        np.matmul(values, weight_array, out=output_array)
        return np.add(output_array, bias_array, out=output_array)

    def large(values: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            torch.addmm(bias, torch.from_numpy(values), weight, out=output)
        return output_array

    return small if rows * weight.numel() <= ONE_THREAD else large


def _activation(module: nn.Module) -> Act:
    """In place where numpy has it: what it is applied to is a product's own array."""
    match module:
        case nn.Tanh():
            return lambda values: np.tanh(values, out=values)
        case nn.ReLU():
            return lambda values: np.maximum(values, 0.0, out=values)
    return lambda values: module(torch.from_numpy(values)).numpy()


def _encoder(teacher: Teacher, rows: int) -> Act:
    """Raw observations as ``[B, inputs]`` float32, normalised in float64 and rounded once, as VecNormalize does."""
    known = teacher.normalization
    if known is None:
        return lambda observations: observations.reshape(rows, -1).astype(np.float32)
    mean, scale, clip = teacher.mean.numpy().ravel(), teacher.scale.numpy().ravel(), known.clip
    exact = np.empty((rows, teacher.obs_dim), np.float64)

    def encode(observations: np.ndarray) -> np.ndarray:
        np.subtract(observations.reshape(rows, -1), mean, out=exact)
        np.divide(exact, scale, out=exact)
        return exact.clip(-clip, clip, out=exact).astype(np.float32)

    return encode


def _discrete(network: DiscreteNetwork, encode: Act, rows: int) -> Callable[[np.ndarray], Labels]:
    body, name, quantiles = Layers(network.body, rows), network.scores, network.num_quantiles

    def ask(observations: np.ndarray) -> Labels:
        scores = body(encode(observations))
        if quantiles > 1:
            scores = scores.reshape(rows, quantiles, -1).mean(1)
        return {name: scores}, scores.argmax(-1)

    return ask


def _deterministic(network: DeterministicNetwork, encode: Act, rows: int) -> Callable[[np.ndarray], Labels]:
    body, finish = Layers(network.body, rows), _to_environment(network.bounds, squashed=network.squashed)
    return lambda observations: ({}, finish(body(encode(observations))))


def _gaussian(network: GaussianNetwork, encode: Act, rows: int) -> Callable[[np.ndarray], Labels]:
    latent, head, spread = Layers(network.latent, rows), Layers(network.mean, rows), _spread(network, rows)
    bounds, finish = network.bounds, _to_environment(network.bounds, squashed=network.squashed)
    scale, offset = bounds.scale.numpy(), bounds.offset.numpy()

    def ask(observations: np.ndarray) -> Labels:
        hidden = latent(encode(observations))
        mean = head(hidden)
        actions = finish(mean)
        if not network.squashed:
            mean = (mean - offset) / scale
        return {"mean": mean, "log_std": spread(hidden)}, actions

    return ask


def _spread(network: GaussianNetwork, rows: int) -> Act:
    """The log standard deviation, in box units where the family's is."""
    shift = np.zeros(1, np.float32) if network.squashed else network.bounds.log_scale.numpy()
    match network.spread:
        case ConstantSpread(log_std=log_std):
            constant = np.broadcast_to(log_std.detach().numpy() - shift, (rows, network.family.width))
            return lambda hidden: constant
        case LinearSpread(head=head):
            layers = Layers(head, rows)
            return lambda hidden: layers(hidden).clip(-20.0, 2.0) - shift
        case StateDependentSpread(variance=variance):
            product = _product(variance, None, rows)
            return lambda hidden: 0.5 * np.log(product(np.square(hidden)) + np.float32(1e-6)) - shift
    raise TypeError(f"{type(network.spread).__name__} is no spread")


def _to_environment(bounds: ActionBounds, *, squashed: bool) -> Act:
    low, high = bounds.low.numpy(), bounds.high.numpy()
    if not squashed:
        return lambda raw: raw.clip(low, high)
    span, half = high - low, np.float32(0.5)
    return lambda raw: low + half * (np.tanh(raw) + 1.0) * span
