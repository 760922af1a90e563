"""Image inputs of Stable-Baselines3: bytes are divided by 255, then read by NatureCNN or flattened.

CnnPolicy has one NatureCNN, MultiInputPolicy one for each image of a Dict. The networks of ``common/torch_layers.py`` are rebuilt from the
weights. They read flat observations with channel-first images, as in the agent's saved space.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from policy_distill.policies.observations import observation_width
from policy_distill.policies.reading_layers import Divide, SideBySide
from policy_distill.support.images import is_image
from policy_distill.support.trees import leaf_spaces
from policy_distill.teachers.files.errors import NotPlainError

NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Outputs, kernel and stride of NatureCNN's convolutions (Mnih et al. 2015), each followed by a ReLU."""
OF_NATURE = r"(cnn\.[024]|linear\.0)\.(weight|bias)"
"""Pattern of the names of NatureCNN's weights."""


def scaling(space: gym.Space, policy_kwargs: Mapping[str, Any]) -> Divide | None:
    """A layer that divides the images in flat observations by 255; None without images or with ``normalize_images=False``."""
    parts = leaf_spaces(space).values()
    if not policy_kwargs.get("normalize_images", True) or not any(map(is_image, parts)):
        return None
    return Divide(torch.cat([torch.full((observation_width(part),), 255.0 if is_image(part) else 1.0) for part in parts]))


def pixel_reader(space: gym.Space, weights: Collection[str], policy_kwargs: Mapping[str, Any]) -> PixelReader | None:
    """The builder of the networks that read an agent's images; None if it reads none.

    Args:
        space: space of the observations.
        weights: names of all weights of the policy.
        policy_kwargs: the agent's settings.
    """
    divide = scaling(space, policy_kwargs)
    reads = any(re.search(rf"features_extractor\.(extractors\.[^.]+\.)?{OF_NATURE}$", key) for key in weights)
    return PixelReader(space, divide) if reads or divide is not None else None


@dataclass(frozen=True)
class PixelReader:
    """Builds the networks that read one agent's images; actor and critic may have separate weights."""

    space: gym.Space
    divide: Divide | None

    def build(self, weights: Mapping[str, Tensor], prefix: str, source: str) -> nn.Sequential:
        """A network from flat observations to features: the division by 255, and NatureCNN with the weights below ``prefix``.

        Raises:
            NotPlainError: if the weights are not those of NatureCNN on this space.
        """
        selected = {key.removeprefix(f"{prefix}."): tensor for key, tensor in weights.items() if key.startswith(f"{prefix}.")}
        layers: list[nn.Module] = [] if self.divide is None else [self.divide]
        if any(key.startswith("cnn.") for key in selected):
            layers += nature(selected, self.space, source)
        elif selected:
            if not isinstance(self.space, gym.spaces.Dict):
                raise NotPlainError(f"{source}: its weights below {prefix!r} are for a Dict, which {self.space} is not; --trust loads it")
            networks = []
            for key, part in self.space.items():
                start = f"extractors.{key}."
                part_weights = {name.removeprefix(start): tensor for name, tensor in selected.items() if name.startswith(start)}
                networks.append(nature(part_weights, part, source) if part_weights else nn.Sequential())
            layers.append(SideBySide([observation_width(part) for part in self.space.values()], networks))
        return nn.Sequential(*layers)


def nature(weights: Mapping[str, Tensor], space: gym.Space, source: str) -> nn.Sequential:
    """NatureCNN with these weights.

    Args:
        weights: ``cnn.0.weight`` to ``linear.0.bias``.
        space: space of images ``[C, H, W]``; the network reads them flattened.
        source: the file, for messages.

    Raises:
        NotPlainError: if the weights are not those of NatureCNN on this space.
    """
    shape = space.shape or ()
    wrong = NotPlainError(f"{source}: its convolutions are not those of Stable-Baselines3's NatureCNN on images {shape}; --trust loads it")
    if len(shape) != 3:
        raise wrong
    layers: list[nn.Module] = [nn.Unflatten(1, shape)]
    channels, *sides = shape
    with torch.random.fork_rng(devices=[]):  # layers draw initial weights, which are replaced
        for index, (outputs, kernel, stride) in enumerate(NATURE):
            sides = [(side - kernel) // stride + 1 for side in sides]
            layers += [_filled(nn.Conv2d(channels, outputs, kernel, stride), weights, f"cnn.{2 * index}", wrong), nn.ReLU()]
            channels = outputs
        features = len(weights.get("linear.0.weight", ()))
        linear = nn.Linear(channels * math.prod(sides), features) if min(sides) > 0 and features else None
    if linear is None or len(weights) != 2 * (len(NATURE) + 1):
        raise wrong
    return nn.Sequential(*layers, nn.Flatten(), _filled(linear, weights, "linear.0", wrong), nn.ReLU())


def _filled(module: Any, weights: Mapping[str, Tensor], name: str, wrong: NotPlainError) -> nn.Module:
    """The module with the weights of this name."""
    for part in ("weight", "bias"):
        tensor = weights.get(f"{name}.{part}")
        if tensor is None or tensor.shape != getattr(module, part).shape:
            raise wrong
        getattr(module, part).data = tensor.detach().float().clone()
    return module
