"""Students of every kind that an export has to express."""

from __future__ import annotations

from collections import OrderedDict

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from policy_distill.environments.action_masks import with_mask
from policy_distill.policies.architecture import Architecture
from policy_distill.policies.encoders import Images, Parts, Vectors
from policy_distill.policies.student import Student
from policy_distill.support.trees import Tree, stack, to_tensors
from tests.small_worlds import generator

VECTOR = spaces.Box(-5.0, 5.0, (4,))
IMAGE = spaces.Box(0, 255, (3, 14, 16), np.uint8)
PARTS = spaces.Dict(
    OrderedDict(place=spaces.Box(-5.0, 5.0, (2, 2), np.float64), kind=spaces.Discrete(3, start=1), flags=spaces.MultiBinary(2))
)
WITH_IMAGE = spaces.Dict(OrderedDict(picture=spaces.Box(0, 255, (14, 12, 2), np.uint8), place=VECTOR))
SOME = spaces.Discrete(3, start=2)
CHOICES, BITS = spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)
BOX = spaces.Box(np.array([-2, 0], np.float32), np.array([6, 1], np.float32))
UNBOUNDED = spaces.Box(-np.inf, np.inf, (2, 1))

ARCHITECTURES: dict[str, Architecture] = {
    "vector": Architecture(VECTOR, SOME, (8, 6)),
    "tanh": Architecture(VECTOR, BOX, (8, 6), "tanh"),
    "elu": Architecture(VECTOR, BOX, (8,), "elu"),
    "silu": Architecture(VECTOR, UNBOUNDED, (8,), "silu"),
    "linear": Architecture(VECTOR, SOME, ()),
    "units": Architecture(VECTOR, UNBOUNDED, (8,), action_units=((0.5, 3.0), (1.0, -2.0))),
    "columns": Architecture(VECTOR, CHOICES, (8,), columns=(0, 3)),
    "parts": Architecture(PARTS, BITS, (8, 6)),
    "some_parts": Architecture(PARTS, BOX, (8, 6), columns=(1, 2, 5, 8)),
    "discrete": Architecture(spaces.MultiDiscrete([3, 4], start=[1, 0]), SOME, (8,)),
    "image": Architecture(IMAGE, SOME, (8,), channels=(4, 3)),
    "image_strided": Architecture(spaces.Box(0, 255, (10, 10, 3), np.uint8), SOME, (8,), channels=(4, 3), strides=(2, 1)),
    "image_in_parts": Architecture(WITH_IMAGE, BOX, (8,), "tanh", channels=(4, 3)),
    "memory": Architecture(VECTOR, SOME, (6,), memory=5),
    "memory_only": Architecture(PARTS, BOX, (), memory=5),
    "image_memory": Architecture(IMAGE, CHOICES, (6,), channels=(3,), memory=5),
    "masks": Architecture(with_mask(VECTOR, SOME), SOME, (8,)),
    "masked_choices": Architecture(with_mask(PARTS, CHOICES), CHOICES, (8,)),
    "masked_bits": Architecture(with_mask(VECTOR, BITS), BITS, (8,), memory=4),
    "far": Architecture(spaces.Box(-np.inf, np.inf, (3,), np.float64), BOX, (8,)),
}
"""Architectures by a name for each; ``far`` needs float64, its observations lie around 1e7."""


def student_of(name: str, seed: int = 0) -> Student:
    """A student with drawn weights and a normalisation that is not trivial."""
    student, draws = Student(ARCHITECTURES[name]), generator(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws) / max(parameter[0].numel(), 1) ** 0.5)
        student.log_std.copy_(-torch.rand(student.log_std.shape, generator=draws))
        encoder = student.encoder
        for part in encoder.parts if isinstance(encoder, Parts) else [encoder]:
            if isinstance(part, Images):
                part.scale.copy_(100.0 + 100 * torch.rand(part.scale.shape, generator=draws))
            elif isinstance(part, Vectors):
                mean, scale = torch.randn(part.mean.shape, generator=draws), 0.5 + torch.rand(part.scale.shape, generator=draws)
                part.normalize_by(mean.double() + 1e7, scale.double()) if name == "far" else part.normalize_by(mean, scale)
        outputs, last = _outputs(student), student.linears[-1]
        spread = outputs.std(0)
        spread[spread == 0] = 1  # all of a narrow layer can be dead
        last.bias.sub_(outputs.mean(0)).div_(spread)
        last.weight.div_(spread[:, None])
    return student.eval().requires_grad_(False)


def _outputs(student: Student) -> torch.Tensor:
    """Outputs ``[B, width]`` in drawn observations, before a mask."""
    features = student.encoder.forward(to_tensors(observations_of(student.architecture.seen_space, 64)))
    if student.memory is not None:
        features = student.memory(features[None], torch.zeros(len(features), student.architecture.memory))[0]
    outputs: torch.Tensor = student.network(features)
    return outputs


def observations_of(space: gym.Space, count: int, seed: int = 0) -> Tree:
    """Drawn observations ``[count, ...]``; an unbounded space's lie around 1e7."""
    space.seed(seed)
    drawn = stack([space.sample() for _ in range(count)])
    return drawn + 1e7 if isinstance(space, gym.spaces.Box) and not space.is_bounded() else drawn
