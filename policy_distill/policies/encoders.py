"""Encoders: the part of a student that maps observations to the features that its head reads.

Each encoder holds its normalisation: affine, without clipping, estimated from observations (``normalize``). Vectors are shifted and scaled
by component. Images are divided by the largest value of each channel in the data (usually 255). This factor is folded into the first
convolution, so that no scaled copy of an image is made.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policy_distill.policies.observations import encode_observations, observation_width
from policy_distill.support.images import is_image
from policy_distill.support.trees import Tree, leaf_spaces

LARGE, MIDDLE = 36, 12
"""Thresholds of an input's smaller side, in pixels: from ``LARGE`` on, a convolution has kernel 8 and stride 4, from ``MIDDLE`` on kernel 4
and stride 2, else kernel 3 and stride 1. Three layers on 84x84 pixels give the convolutions of Mnih et al. (2015)."""
SMALL = 8
"""Smaller side of the smallest images whose default convolutions have strides of their own; see ``usual_convolutions``."""


class Vectors(nn.Module):
    """Observations as one normalised vector.

    Args:
        space: space of the observations.
        columns: components of the vector that are read; None: all of them.

    Attributes:
        mean, scale: ``[width]``; features are ``(vector - mean) / scale``, computed in their dtype. Data far from zero needs float64.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, space: gym.Space, columns: Sequence[int] | None = None) -> None:
        super().__init__()
        self.space, self.columns = space, None if columns is None else list(columns)
        width = observation_width(space) if columns is None else len(columns)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def forward(self, observations: Tree) -> Tensor:
        """Features ``[B, width]`` in float32, from observations ``[B, ...]``."""
        return ((self.encode(observations, self.mean.dtype) - self.mean) / self.scale).float()

    def encode(self, observations: Tree, dtype: torch.dtype) -> Tensor:
        """The components ``[B, width]`` of observations ``[B, ...]`` that are read, before normalisation."""
        encoded = encode_observations(self.space, observations, dtype)
        return encoded if self.columns is None else encoded[:, self.columns]

    def normalize_by(self, mean: Tensor, scale: Tensor) -> None:
        """Set the normalisation and its dtype."""
        self.mean, self.scale = (tensor.detach().to(self.mean.device, copy=True) for tensor in (mean, scale))

    def normalize(self, blocks: Callable[[], Iterable[Tree]], dtype: torch.dtype = torch.float32) -> None:
        """Estimate the normalisation from observations, given in blocks."""
        self.normalize_by(*normalization_of((self.encode(block, dtype) for block in blocks()), dtype))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        """Adopts the dtype of the loaded tensors."""
        self.normalize_by(*(state_dict.get(prefix + name, getattr(self, name)) for name in ("mean", "scale")))
        super()._load_from_state_dict(state_dict, prefix, *rest)


@dataclass(frozen=True)
class Convolution:
    """Sizes of a convolution: input and output channels, kernel and stride, and height and width of the output."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    height: int
    width: int


def convolutions(space: gym.Space, channels: Sequence[int], strides: Sequence[int] = ()) -> list[Convolution]:
    """Convolutions without padding for images of ``space``.

    Args:
        space: the images.
        channels: output channels of each convolution.
        strides: 1 or 2 for each convolution; (): kernels and strides follow from its input's size, see ``LARGE``. A convolution of stride 1
            has kernel 3. One of stride 2 has kernel 2 or 3, so that it reads the last row of an even or odd number of rows.
    """
    inputs, height, width = image_sizes(space)
    layers = []
    for index, outputs in enumerate(channels):
        side = min(height, width)
        if strides:
            stride = strides[index]
            kernel = min(3 if stride == 1 else 2 + side % 2, side)
        else:
            kernel, stride = (8, 4) if side >= LARGE else (4, 2) if side >= MIDDLE else (min(3, side), 1)
        height, width = ((size - kernel) // stride + 1 for size in (height, width))
        layers.append(Convolution(inputs, outputs, kernel, stride, height, width))
        inputs = outputs
    return layers


def image_sizes(space: gym.Space) -> tuple[int, int, int]:
    """Channels, height and width of images ``[C, H, W]`` or ``[H, W, C]``."""
    first, second, third = space.shape or ()
    return (first, second, third) if channels_first(space) else (third, first, second)


def channels_first(space: gym.Space) -> bool:
    """Whether the first axis holds the channels: if only the last two axes are equal, or else if the first is shorter than the last."""
    first, second, third = space.shape or ()
    if (first == second) != (second == third):  # exactly one of the two layouts has square images
        return second == third
    return first < third


class Images(nn.Module):
    """Convolutions for images, each followed by the activation; the last output is flattened.

    Attributes:
        scale: ``[channels]``, the divisor of the pixels; it is applied to the first convolution's weights.
    """

    scale: Tensor

    def __init__(self, space: gym.Space, channels: Sequence[int], activation: type[nn.Module], strides: Sequence[int] = ()) -> None:
        super().__init__()
        self.channels_first, self.activation = channels_first(space), activation()
        layers = convolutions(space, channels, strides)
        self.convolutions = nn.ModuleList(nn.Conv2d(layer.inputs, layer.outputs, layer.kernel, layer.stride) for layer in layers)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.register_buffer("scale", torch.ones(layers[0].inputs))

    def forward(self, observations: Tensor) -> Tensor:
        """Features ``[B, width]``, ordered by pixel, from images ``[B, ...]`` of any dtype."""
        values = self._arranged(observations).to(torch.float32, memory_format=torch.channels_last)
        for index, layer in enumerate(self.convolutions):
            assert isinstance(layer, nn.Conv2d)
            weight = layer.weight if index else layer.weight / self.scale[:, None, None]
            values = self.activation(F.conv2d(values, weight, layer.bias, layer.stride))
        return values.permute(0, 2, 3, 1).flatten(1)

    @torch.no_grad()
    def plain(self) -> nn.Sequential:
        """Convolutions and activations with the scale folded in, from images ``[B, C, H, W]`` to ``[B, C', H', W']``."""
        layers: list[nn.Module] = []
        for index, layer in enumerate(self.convolutions):
            folded = copy.deepcopy(layer)
            assert isinstance(folded, nn.Conv2d)
            if not index:
                folded.weight.div_(self.scale[:, None, None])
            layers += [folded, self.activation]
        return nn.Sequential(*layers)

    def normalize(self, blocks: Callable[[], Iterable[Tree]], dtype: torch.dtype = torch.float32) -> None:
        """Set the scale to each channel's largest absolute value in the images of all blocks; 1 if all are 0."""
        largest = torch.stack([self._arranged(block).float().abs().amax((0, 2, 3)) for block in blocks()]).amax(0)
        self.scale = torch.where(largest > 0, largest, 1.0).to(self.scale.device)

    def _arranged(self, observations: Tensor) -> Tensor:
        """Images ``[B, C, H, W]``."""
        return observations if self.channels_first else observations.permute(0, 3, 1, 2)


class Parts(nn.Module):
    """One encoder for each part of a Dict; their features are concatenated."""

    def __init__(self, parts: dict[str, Vectors | Images]) -> None:
        super().__init__()
        self.keys = tuple(parts)
        self.parts = nn.ModuleList(parts.values())  # a list, because keys may contain characters that module names may not

    def forward(self, observations: Tree) -> Tensor:
        """Features ``[B, width]``, from observations ``[B, ...]``."""
        return torch.cat([part(observations[key]) for key, part in zip(self.keys, self.parts, strict=True)], dim=1)

    def normalize(self, blocks: Callable[[], Iterable[Tree]], dtype: torch.dtype = torch.float32) -> None:
        """Estimate each part's normalisation from observations, given in blocks."""
        for key, part in zip(self.keys, self.parts, strict=True):
            assert isinstance(part, Vectors | Images)
            part.normalize(lambda key=key: (block[key] for block in blocks()), dtype)  # type: ignore[misc]


Encoder: TypeAlias = Vectors | Images | Parts


def encoder_of(
    space: gym.Space,
    channels: Sequence[int],
    activation: type[nn.Module],
    columns: Sequence[int] | None = None,
    strides: Sequence[int] = (),
) -> Encoder:
    """A new encoder.

    Args:
        space: space of the observations.
        channels: output channels of the convolutions for each image; (): everything is read as vectors.
        activation: activation after each convolution.
        columns: components of vectors that are read; None: all of them.
        strides: strides of the convolutions; see ``convolutions``.
    """
    if not channels:
        return Vectors(space, columns)
    parts = {
        key: Images(part, channels, activation, strides) if may_be_image(part) else Vectors(part)
        for key, part in leaf_spaces(space).items()
    }
    return Parts(parts) if isinstance(space, gym.spaces.Dict) else parts[""]


def encoder_shapes(
    space: gym.Space, channels: Sequence[int], columns: Sequence[int] | None = None, strides: Sequence[int] = ()
) -> dict[str, tuple[int, ...]]:
    """Shapes of an encoder's tensors by name; allocates nothing."""
    if isinstance(space, gym.spaces.Dict) and channels:
        parts = enumerate(leaf_spaces(space).values())
        shapes_of = {index: encoder_shapes(part, channels, strides=strides) for index, part in parts}
        return {f"parts.{index}.{name}": shape for index, part_shapes in shapes_of.items() for name, shape in part_shapes.items()}
    if not channels or not may_be_image(space):
        width = feature_width(space, (), columns)
        return {"mean": (width,), "scale": (width,)}
    shapes: dict[str, tuple[int, ...]] = {"scale": (image_sizes(space)[0],)}
    for index, layer in enumerate(convolutions(space, channels, strides)):
        name = f"convolutions.{index}"
        shapes |= {f"{name}.weight": (layer.outputs, layer.inputs, layer.kernel, layer.kernel), f"{name}.bias": (layer.outputs,)}
    return shapes


def feature_width(space: gym.Space, channels: Sequence[int], columns: Sequence[int] | None = None, strides: Sequence[int] = ()) -> int:
    """Number of features of an encoder."""
    if not channels:
        return observation_width(space) if columns is None else len(columns)
    widths = []
    for part in leaf_spaces(space).values():
        last = convolutions(part, channels, strides)[-1] if may_be_image(part) else None
        widths.append(last.outputs * last.height * last.width if last else observation_width(part))
    return sum(widths)


def may_be_image(space: gym.Space) -> bool:
    """Whether convolutions can read the space: a Box with three axes."""
    return isinstance(space, gym.spaces.Box) and len(space.shape) == 3


def images_in(space: gym.Space, *, convolved: bool | None = None) -> list[gym.Space]:
    """The parts that convolutions read by default.

    Args:
        space: space of the observations.
        convolved: True if the teacher has convolutions: every Box with three axes is an image; False: none is. None if unknown: images are
            those that Stable-Baselines3 recognises; see ``support.images``.
    """
    if convolved is None:
        return [part for part in leaf_spaces(space).values() if is_image(part)]
    return [part for part in leaf_spaces(space).values() if convolved and may_be_image(part)]


def usual_convolutions(images: Sequence[gym.Space], unit: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Default channels and strides of the convolutions.

    Images of ``LARGE`` pixels and more have three layers of ``unit``, ``2 unit`` and ``2 unit`` channels. Those below ``MIDDLE`` have three
    of ``unit`` channels, the second with stride 2: with stride 1 alone, most of a student's parameters would be the head's weights, one
    for each pixel and channel, and the student would learn the same thing anew at each place.
    """
    sides = [min(image_sizes(image)[1:]) for image in images]
    if max(sides, default=0) >= LARGE:
        return (unit, 2 * unit, 2 * unit), ()
    if all(SMALL <= side < MIDDLE for side in sides):
        return (unit, unit, unit), (1, 2, 1)
    return (2 * unit, unit), ()


def normalization_of(blocks: Iterable[Tensor], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Mean and scale ``[inputs]`` of encoded observations, given in blocks ``[b, inputs]``; in ``dtype``.

    A constant component has mean 0 and scale 1, and so have all components of a single row. Blocks are combined by the formulas of Chan,
    Golub & LeVeque (1983).
    """
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for block in blocks:
        values, rows = block.to(torch.float64, copy=True), len(block)
        block_mean = values.mean(0)
        delta = block_mean - mean
        squares = squares + values.sub_(block_mean).square_().sum(0) + delta.square() * (count * rows / (count + rows))
        mean = mean + delta * (rows / (count + rows))
        count += rows
    std = (squares / max(count - 1, 1)).sqrt()
    constant = std < (1e-6 if dtype == torch.float32 else 1e-14) * (1 + mean.abs())
    return torch.where(constant, 0.0, mean).to(dtype), torch.where(constant, 1.0, std).to(dtype)


def parameter_count(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> int:
    """Number of weights and biases among tensors of these names and shapes; normalisation is not counted."""
    return sum(math.prod(shape) for name, shape in shapes if name.endswith(("weight", "bias")))
