"""The features extractor of the agents for MinAtar, for ``--extractor agents/minatar.py:MinAtarNetwork``."""

from __future__ import annotations

import gymnasium as gym
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn


class MinAtarNetwork(BaseFeaturesExtractor):
    """One convolution and one fully connected layer (Young and Tian 2019, arXiv 1903.03176, sec. 3).

    Args:
        observation_space: grids ``[10, 10, channels]``.
        features_dim: width of the fully connected layer.
        filters: of the convolution, 3x3 each.
    """

    def __init__(self, observation_space: gym.spaces.Box, features_dim: int = 128, filters: int = 16) -> None:
        super().__init__(observation_space, features_dim)
        height, width, channels = observation_space.shape
        self.layers = nn.Sequential(
            nn.Conv2d(channels, filters, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear((height - 2) * (width - 2) * filters, features_dim),
            nn.ReLU(),
        )

    def forward(self, observations: Tensor) -> Tensor:
        return self.layers(observations.permute(0, 3, 1, 2))
