"""Features extractors as users write them; the tests also name this file as a user names theirs."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor


def numbers_read(space: gym.Space) -> int:
    """Of one observation after Stable-Baselines3's preprocessing."""
    match space:
        case gym.spaces.Discrete():
            return int(space.n)
        case gym.spaces.MultiDiscrete():
            return int(space.nvec.sum())
    return int(np.prod(space.shape or ()))


class Layers(BaseFeaturesExtractor):
    """Layers with weights and an argument."""

    def __init__(self, observation_space: gym.Space, width: int = 6) -> None:
        super().__init__(observation_space, width)
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(numbers_read(observation_space), width), torch.nn.ELU())

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.net(observations)


class Tenth(BaseFeaturesExtractor):
    """No weights: divides by ten."""

    def __init__(self, observation_space: gym.Space) -> None:
        super().__init__(observation_space, numbers_read(observation_space))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return observations.flatten(1) / 10


class Rows(BaseFeaturesExtractor):
    """Reads observations ``[B, rows, columns]`` row after row, with a memory inside one observation."""

    def __init__(self, observation_space: gym.spaces.Box, hidden: int = 5) -> None:
        super().__init__(observation_space, hidden)
        self.lstm = torch.nn.LSTM(observation_space.shape[1], hidden, batch_first=True)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.lstm(observations)[1][0][-1]


class ByKey(BaseFeaturesExtractor):
    """Reads a Dict: one layer with weights for each key, the last key first."""

    def __init__(self, observation_space: gym.spaces.Dict, width: int = 3) -> None:
        super().__init__(observation_space, width * len(observation_space.spaces))
        self.layers = torch.nn.ModuleDict({key: Layers(space, width) for key, space in observation_space.items()})

    def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([layer(observations[key]) for key, layer in reversed(list(self.layers.items()))], dim=1)


class BatchNormed(BaseFeaturesExtractor):
    """Running statistics and dropout: right in eval mode alone."""

    def __init__(self, observation_space: gym.Space) -> None:
        width = numbers_read(observation_space)
        super().__init__(observation_space, width)
        self.net = torch.nn.Sequential(torch.nn.BatchNorm1d(width), torch.nn.Dropout(0.5))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.net(observations.flatten(1))


class Plain(torch.nn.Module):
    """No BaseFeaturesExtractor; it only says how many features it returns."""

    def __init__(self, observation_space: gym.Space, **arguments: Any) -> None:
        super().__init__()
        self.features_dim = int(arguments.get("width", 3))
        self.linear = torch.nn.Linear(numbers_read(observation_space), self.features_dim)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.linear(observations.flatten(1)).tanh()
