"""The architecture of a student, and the choice of an architecture for a parameter budget."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass

import gymnasium as gym
from torch import nn

from policy_distill.environments.action_masks import has_mask
from policy_distill.policies.actions import Units
from policy_distill.policies.encoders import (
    MIDDLE,
    Encoder,
    encoder_of,
    encoder_shapes,
    feature_width,
    image_sizes,
    may_be_image,
    parameter_count,
    usual_convolutions,
)
from policy_distill.policies.families import Family, family_of
from policy_distill.policies.memories import gru_shapes
from policy_distill.policies.views import View
from policy_distill.support.trees import leaf_spaces

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU, "silu": nn.SiLU}
SMALLEST_WIDTH = 4
"""Minimum width of a chosen hidden layer: a bottleneck of one or two units loses the policy and saves almost nothing."""
SMALLEST_UNIT = 2
"""Minimum ``unit`` of ``usual_convolutions``; see ``image_student_for``."""
HEAD, STRIDED_HEAD, LARGE_HEAD = 3, 2, 8
"""Minimum width of an image student's hidden layer, as a multiple of ``unit``: if all convolutions have stride 1, if one has stride 2, and
for large images, whose convolutions take most of the time."""


@dataclass(frozen=True)
class Architecture:
    """The architecture of a student: its spaces, layers, view and memory."""

    observation_space: gym.Space
    action_space: gym.Space
    hidden_sizes: tuple[int, ...]
    activation: str = "relu"
    action_units: Units | None = None
    """Units of continuous outputs; None: units from the action space's bounds."""
    channels: tuple[int, ...] = ()
    """Output channels of the convolutions for each image; (): observations are read as vectors."""
    memory: int = 0
    """Units of the GRU between encoder and head; 0: the student has no memory."""
    view: View | None = None
    """The student's view of ``observation_space``; None: it sees all observations."""
    columns: tuple[int, ...] | None = None
    """Components of the input vector that the first layer reads, ascending; None: all. The others never vary."""
    bits: int | None = None
    """Bits of a weight, to which training rounds; see ``quantization``. None: float32. Biases and activations are not rounded."""
    strides: tuple[int, ...] = ()
    """Strides of the convolutions; (): they follow from the images' sizes. See ``encoders.convolutions``."""
    pruning: float | None = None
    """Share of each layer's weights that training makes zero; see ``training.flat``. None: none. Not known of a student that was loaded."""

    @property
    def seen_space(self) -> gym.Space:
        """Space of the encoder's inputs."""
        return self.observation_space if self.view is None else self.view.space

    @property
    def without_view(self) -> Architecture:
        """The same networks for an environment that already returns the view's output."""
        return dataclasses.replace(self, observation_space=self.seen_space, view=None)

    @property
    def reads_single_images(self) -> bool:
        """Whether the student has convolutions and no memory."""
        return bool(self.channels) and not self.memory

    @property
    def reads_small_images(self) -> bool:
        """Whether the student reads single images, all of them smaller than ``MIDDLE``."""
        images = [part for part in leaf_spaces(self.seen_space).values() if may_be_image(part)]
        return self.reads_single_images and all(min(image_sizes(part)[1:]) < MIDDLE for part in images)

    @property
    def family(self) -> Family:
        family = family_of(self.action_space)
        return family if self.action_units is None else family.in_units(self.action_units)

    @property
    def is_masked(self) -> bool:
        """Whether the outputs are logits under the action mask that is a part of the observations."""
        return has_mask(self.observation_space) and self.family.box is None

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the head: its input (features, or the recurrent state), hidden layers and outputs."""
        return (self.memory or self.features, *self.hidden_sizes, self.family.width)

    @property
    def features(self) -> int:
        """Number of features from the encoder."""
        return feature_width(self.seen_space, self.channels, self.columns, self.strides)

    @property
    def params(self) -> int:
        """Number of parameters of encoder, memory and head. Normalisation folds into the next layer and adds none."""
        shapes = encoder_shapes(self.seen_space, self.channels, strides=self.strides) if self.channels else {}
        encoder = parameter_count(shapes.items())
        return encoder + parameter_count(self._memory_shapes().items()) + count_parameters(self.widths)

    def _memory_shapes(self) -> dict[str, tuple[int, ...]]:
        return gru_shapes(self.features, self.memory) if self.memory else {}

    def new_encoder(self) -> Encoder:
        """A new encoder with identity normalisation."""
        return encoder_of(self.seen_space, self.channels, ACTIVATIONS[self.activation], self.columns, self.strides)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the student's tensors by their names in student.safetensors; allocates nothing."""
        widths = self.widths
        encoder = encoder_shapes(self.seen_space, self.channels, self.columns, self.strides)
        shapes = {self.written(f"encoder.{name}"): shape for name, shape in encoder.items()}
        shapes |= {f"memory.{name}": shape for name, shape in self._memory_shapes().items()}
        shapes["log_std"] = (self.family.spread,)
        for index, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
            shapes |= {f"network.{2 * index}.weight": (width_out, width_in), f"network.{2 * index}.bias": (width_out,)}
        return shapes

    def convolutions_to_dict(self) -> dict[str, list[int]]:
        """The convolutions as in student.json."""
        return {"channels": list(self.channels), **({"strides": list(self.strides)} if self.strides else {})}

    def written(self, name: str) -> str:
        """A tensor's name in student.safetensors: vector encoders store ``mean`` and ``scale`` without the prefix ``encoder.``."""
        return name if self.channels else name.removeprefix("encoder.")


def count_parameters(widths: tuple[int, ...]) -> int:
    """Weights and biases of fully connected layers between ``widths``."""
    return sum((width_in + 1) * width_out for width_in, width_out in itertools.pairwise(widths))


def hidden_sizes_for(compression: float, teacher_params: int, inputs: int, outputs: int) -> tuple[int, int]:
    """Two equal hidden layers, as wide as ``teacher_params / compression`` parameters allow, but at least ``SMALLEST_WIDTH``."""
    budget = teacher_params / compression
    linear_term = inputs + outputs + 2
    width = math.floor((-linear_term + math.sqrt(max(linear_term**2 + 4 * (budget - outputs), 0.0))) / 2)
    width = max(width, SMALLEST_WIDTH)
    return (width, width)


def image_student_for(compression: float, teacher_params: int, architecture: Architecture) -> Architecture:
    """An image student with at most ``teacher_params / compression`` parameters, unless the smallest one has more.

    The convolutions are ``usual_convolutions`` of the largest ``unit`` that leaves room for one hidden layer of ``HEAD * unit`` units
    (``STRIDED_HEAD`` or ``LARGE_HEAD``, see there). That layer is then widened as far as the budget allows; a memory has the same width.
    With convolutions of ``SMALLEST_UNIT`` it may have to be narrower, but has at least ``SMALLEST_WIDTH`` units.
    """
    images = [part for part in leaf_spaces(architecture.seen_space).values() if may_be_image(part)]
    budget = teacher_params / compression
    channels, strides = usual_convolutions(images, 1)
    head = STRIDED_HEAD if strides else LARGE_HEAD if len(channels) == 3 else HEAD

    def sized(unit: int, width: int) -> Architecture:
        channels, strides = usual_convolutions(images, unit)
        memory = width if architecture.memory else 0
        return dataclasses.replace(architecture, channels=channels, strides=strides, hidden_sizes=(width,), memory=memory)

    unit = SMALLEST_UNIT
    while sized(unit + 1, head * (unit + 1)).params <= budget:
        unit += 1
    width = head * unit
    while sized(unit, width + 1).params <= budget:
        width += 1
    while width > SMALLEST_WIDTH and sized(unit, width).params > budget:
        width -= 1
    return sized(unit, width)


def layer_names(num_hidden: int) -> list[str]:
    """Names of a student's layers, as used by hints and relations."""
    return [*(f"hidden.{index}" for index in range(num_hidden)), "output"]
