"""The intermediate form of an export: a student's layers, normalisation and action rule as plain arrays.

Every format is written from a ``Folded`` alone. Its input is what the student sees (the output of its view), raw; its outputs are the
numbers of the action distribution and the action that the environment accepts. Where float32 represents the observations well
(``normalization_folds``), a format may fold the normalisation into the first layer by ``with_folded_normalization``.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import gymnasium as gym
import numpy as np
from torch import Tensor, nn

from policy_distill.config import RequestError
from policy_distill.environments.action_masks import MASK, has_mask
from policy_distill.policies.encoders import Images, Parts, Vectors
from policy_distill.policies.families import Bernoulli, Categorical, DiagGaussian, MultiCategorical
from policy_distill.policies.observations import FAR_FROM_ZERO, observation_width
from policy_distill.policies.student import Student
from policy_distill.support.trees import leaf_spaces

ALONE, MASK_NAME = "observation", "action_mask"
"""Names of an observation that is no Dict, and of a mask of forbidden actions."""
Activation: TypeAlias = Literal["relu", "tanh", "elu", "silu"]


@dataclass(frozen=True)
class Convolution:
    """A convolution without padding, followed by the activation.

    Attributes:
        weight: ``[out, in, kernel, kernel]`` float32; the first one reads raw pixels.
        bias: ``[out]`` float32.
        stride: step in both directions.
    """

    weight: np.ndarray
    bias: np.ndarray
    stride: int


@dataclass(frozen=True)
class Input:
    """One part of the observation.

    Attributes:
        name: key of the Dict, ``observation`` without one, ``MASK_NAME`` for a mask of forbidden actions.
        shape: shape of one raw observation of this part; () if it is one number.
        dtype: dtype of the raw observation.
        sizes: number of values of each discrete component, which is one-hot encoded; () for numbers, which are flattened.
        starts: lowest value of each discrete component.
        channels_first: whether an image is ``[C, H, W]``.
        convolutions: convolutions that read an image; (): the part is read as a vector. Their output is flattened as ``[H, W, C]``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    sizes: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()
    channels_first: bool = True
    convolutions: tuple[Convolution, ...] = ()

    @property
    def width(self) -> int:
        """Number of components of the part as a vector, before convolutions."""
        return sum(self.sizes) if self.sizes else int(np.prod(self.shape))


@dataclass(frozen=True)
class Normalization:
    """``(vector - mean) / scale`` of the components that a part's first layer reads.

    Attributes:
        columns: ``[n]`` components of the encoded vector that are read.
        mean, scale: ``[n]``, float32, or float64 for observations far from zero; the result is float32.
    """

    columns: np.ndarray
    mean: np.ndarray
    scale: np.ndarray


@dataclass(frozen=True)
class Gru:
    """``r, z = sigmoid(W x + b + U h)``, ``n = tanh(W x + b + r * (U h))``, state ``(1 - z) * n + z * h``.

    Attributes:
        inputs, bias: W ``[3 units, width]`` and b ``[3 units]`` float32, in the order r, z, n.
        recurrent: U ``[3 units, units]`` float32.
    """

    inputs: np.ndarray
    bias: np.ndarray
    recurrent: np.ndarray

    @property
    def units(self) -> int:
        return self.recurrent.shape[1]


@dataclass(frozen=True)
class Dense:
    """A fully connected layer: weight ``[out, in]`` and bias ``[out]``, float32."""

    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class ActionRule:
    """From the network's outputs to an action that the environment accepts.

    Attributes:
        kind: ``argmax``: for each component the index of the largest of its logits, plus its start. ``bits``: 1 where a logit is above
            zero. ``box``: ``clip(output * scale + offset, low, high)`` in float32.
        shape, dtype: of one action.
        sizes, starts: number of values and lowest value of each component (``argmax``).
        scale, offset, low, high: ``[dim]`` float32 (``box``).
        log_std: ``[dim]`` float32, log standard deviations in units of the outputs (``box``).
        masked: whether the input ``MASK_NAME`` forbids actions: ``[sum of sizes]`` (for ``bits``: off and on of each), nonzero if allowed.
            The network reads it too, as numbers. Logits are replaced as in ``Choices.masked`` and ``Bernoulli.masked``.
    """

    kind: Literal["argmax", "bits", "box"]
    shape: tuple[int, ...]
    dtype: np.dtype
    sizes: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()
    scale: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
    offset: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
    low: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
    high: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
    log_std: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
    masked: bool = False


@dataclass(frozen=True)
class Folded:
    """A student as plain arrays.

    Features are the parts' features in the order of ``inputs``, concatenated: a normalised vector, or the flattened output of convolutions.
    They go through ``memory``, if there is one, and ``layers``, with ``activation`` between the layers (and after each convolution).

    Attributes:
        inputs: the parts of the observation; a mask is the last.
        normalizations: of each of ``inputs``; None for images.
        activation: the activation.
        memory: the recurrent layer.
        layers: fully connected layers; the last has no activation.
        rule: the action rule.
    """

    inputs: tuple[Input, ...]
    normalizations: tuple[Normalization | None, ...]
    activation: Activation
    memory: Gru | None
    layers: tuple[Dense, ...]
    rule: ActionRule

    @property
    def outputs(self) -> int:
        """Number of outputs of the network."""
        return len(self.layers[-1].bias)

    @property
    def params(self) -> int:
        """Number of weights and biases."""
        return sum(array.size for array in self._arrays)

    @property
    def nonzero_params(self) -> int:
        """Number of weights that are not zero, and biases."""
        return sum(int(np.count_nonzero(array)) if array.ndim > 1 else array.size for array in self._arrays)

    @property
    def _arrays(self) -> list[np.ndarray]:
        arrays = [array for layer in self.layers for array in (layer.weight, layer.bias)]
        arrays += [array for part in self.inputs for layer in part.convolutions for array in (layer.weight, layer.bias)]
        if self.memory is not None:
            arrays += [self.memory.inputs, self.memory.bias, self.memory.recurrent]
        return arrays

    def weight_bytes(self, bits: int | None) -> int:
        """Bytes of weights and biases: 4 for each, or ``bits`` bits for each weight and 4 bytes for each bias and each output's scale."""
        if bits is None:
            return 4 * self.params
        weights = [array for array in self._arrays if array.ndim > 1]
        outputs, biases = sum(len(array) for array in weights), sum(array.size for array in self._arrays if array.ndim == 1)
        return sum(-(-array.size * bits // 8) for array in weights) + 4 * (outputs + biases)

    @property
    def multiply_adds(self) -> int:
        """Multiplications of a weight by a value in one decision."""
        count = sum(layer.weight.size for layer in self.layers)
        if self.memory is not None:
            count += self.memory.inputs.size + self.memory.recurrent.size
        for part in filter(lambda part: part.convolutions, self.inputs):
            for layer, (_, height, width) in zip(part.convolutions, image_shapes(part)[1:], strict=True):
                count += layer.weight.size * height * width
        return count

    @property
    def normalization_folds(self) -> bool:
        """Whether the normalisation folds into the first layer in float32 without loss; see ``FAR_FROM_ZERO``."""
        parts = [part for part in self.normalizations if part is not None and len(part.mean)]
        return not self._convolves and all((np.abs(part.mean) / part.scale).max() <= FAR_FROM_ZERO for part in parts)

    @property
    def _convolves(self) -> bool:
        return any(part.convolutions for part in self.inputs)

    def with_folded_normalization(self) -> Folded:
        """The same network whose first layer reads raw values; computed in float64.

        Raises:
            ValueError: if float32 does not represent the observations well, or convolutions come first.
        """
        if not self.normalization_folds:
            raise ValueError("the normalisation does not fold into the first layer")
        parts = [part for part in self.normalizations if part is not None]
        mean, scale = (np.concatenate([getattr(part, name) for part in parts]).astype(np.float64) for name in ("mean", "scale"))
        neutral = tuple(
            Normalization(part.columns, np.zeros(len(part.mean), np.float32), np.ones(len(part.mean), np.float32)) for part in parts
        )
        weight, bias = (self.memory.inputs, self.memory.bias) if self.memory else (self.layers[0].weight, self.layers[0].bias)
        weight = weight.astype(np.float64) / scale
        # fsum, since a matrix product would round differently on other processors, and artefacts are compared byte for byte
        shifts = np.array([math.fsum(row) for row in weight * mean])
        first = weight.astype(np.float32), (bias - shifts).astype(np.float32)
        if self.memory:
            return dataclasses.replace(self, normalizations=neutral, memory=Gru(*first, self.memory.recurrent))
        return dataclasses.replace(self, normalizations=neutral, layers=(Dense(*first), *self.layers[1:]))


def fold_student(student: Student) -> Folded:
    """The plain form of a student.

    Raises:
        RequestError: if its family of actions is not one of this package, and no format could express its action rule; or if a part of a
            masked Dict has the name of the mask.
    """
    memory, spaces = student.memory, leaf_spaces(student.architecture.seen_space)
    if {MASK, MASK_NAME} <= spaces.keys():
        raise RequestError(f"the observation has a part {MASK_NAME!r}, which is the name of the mask in an export: rename it")
    parts = [_part(key, space, encoder) for (key, space), encoder in zip(spaces.items(), _encoders(student, spaces), strict=True)]
    return Folded(
        tuple(part for part, _ in parts),
        tuple(normalization for _, normalization in parts),
        student.architecture.activation,  # type: ignore[arg-type]
        None if memory is None else Gru(*map(_array, (memory.inputs.weight, memory.inputs.bias, memory.recurrent.weight))),
        tuple(Dense(_array(layer.weight), _array(layer.bias)) for layer in student.linears),
        _rule(student),
    )


def image_shapes(part: Input) -> list[tuple[int, int, int]]:
    """``(C, H, W)`` of an image and of the output of each of its convolutions."""
    channels, height, width = part.shape if part.channels_first else (part.shape[2], *part.shape[:2])
    shapes = [(channels, height, width)]
    for layer in part.convolutions:
        outputs, _, kernel, _ = layer.weight.shape
        height, width = ((size - kernel) // layer.stride + 1 for size in (height, width))
        shapes.append((outputs, height, width))
    return shapes


def _encoders(student: Student, spaces: dict[str, gym.Space]) -> list[Images | Normalization]:
    """For each part of the observation its convolutions, or its share of the vector's normalisation."""
    encoder = student.encoder
    if isinstance(encoder, Images):
        return [encoder]
    if isinstance(encoder, Parts):
        by_key = dict(zip(encoder.keys, encoder.parts, strict=True))
        return [part if isinstance(part, Images) else _normalization(part) for part in map(by_key.__getitem__, spaces)]  # type: ignore[arg-type]
    whole = _normalization(encoder)
    ends = np.cumsum([observation_width(space) for space in spaces.values()])
    found: list[Images | Normalization] = []
    for first, end in zip([0, *ends[:-1]], ends, strict=True):
        here = (first <= whole.columns) & (whole.columns < end)
        found.append(Normalization(whole.columns[here] - first, whole.mean[here], whole.scale[here]))
    return found


def _normalization(encoder: Vectors) -> Normalization:
    mean, scale = _array(encoder.mean), _array(encoder.scale)
    return Normalization(np.arange(len(mean)) if encoder.columns is None else np.array(encoder.columns, np.int64), mean, scale)


def _part(key: str, space: gym.Space, encoder: Images | Normalization) -> tuple[Input, Normalization | None]:
    name = {"": ALONE, MASK: MASK_NAME}.get(key, key)
    shape, dtype = tuple(space.shape or ()), np.dtype(space.dtype)
    match space:
        case gym.spaces.Discrete():
            part = Input(name, shape, dtype, (int(space.n),), (int(space.start),))
        case gym.spaces.MultiDiscrete():
            part = Input(name, shape, dtype, tuple(map(int, space.nvec.ravel())), tuple(map(int, space.start.ravel())))
        case _:
            part = Input(name, shape, dtype)
    if isinstance(encoder, Normalization):
        return part, encoder
    convolutions = []
    for layer in encoder.plain():
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            convolutions.append(Convolution(_array(layer.weight), _array(layer.bias), int(layer.stride[0])))
    return dataclasses.replace(part, channels_first=encoder.channels_first, convolutions=tuple(convolutions)), None


def _rule(student: Student) -> ActionRule:
    space, family = student.action_space, student.family
    shape, dtype, masked = tuple(space.shape or ()), np.dtype(space.dtype), has_mask(student.observation_space)
    if isinstance(family, DiagGaussian):
        scale, offset = (array.astype(np.float32) for array in family.box.affine())
        low, high = (np.array(bounds, np.float32) for bounds in (family.box.low, family.box.high))
        executed = dtype if dtype.kind == "f" else np.dtype(np.float32)  # as a student acts; the environment casts
        return ActionRule(
            "box", shape, executed, scale=scale, offset=offset, low=low, high=high, log_std=_array(student.log_std), masked=masked
        )
    if not isinstance(family, Categorical | MultiCategorical | Bernoulli):
        raise RequestError(f"actions of {type(family).__name__} in {space} cannot be exported: no format has a rule for them")
    if isinstance(family, Bernoulli):
        return ActionRule("bits", shape, dtype, sizes=family.sizes, masked=masked)
    starts = tuple(map(int, np.ravel(getattr(space, "start", np.zeros(len(family.sizes))))))
    return ActionRule("argmax", shape, dtype, sizes=family.sizes, starts=starts, masked=masked)


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())
