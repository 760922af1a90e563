"""Layers found in a user's own extractor compute what it does, bit for bit; whatever does more is left alone."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policy_distill.policies.rowwise import Layers
from policy_distill.teachers.networks.extractor import CustomExtractor
from policy_distill.teachers.networks.plain_layers import plain_layers
from tests.teachers.extractors import BatchNormed, Rows
from tests.teachers.extractors import Layers as OwnLayers

SPACE = gym.spaces.Box(0, 1, (8, 9, 3), np.float32)


class Grid(nn.Module):
    """Of an image ``[H, W, C]``, as MinAtar's agents read it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Linear(4 * 6 * 7, 5)

    def forward(self, observations: Tensor) -> Tensor:
        return torch.tanh(self.head(F.relu(self.conv(observations.float().permute(0, 3, 1, 2))).flatten(1)))


class Residual(Grid):
    def forward(self, observations: Tensor) -> Tensor:
        values = super().forward(observations)
        return values + values.tanh()


class Tenth(Grid):
    def forward(self, observations: Tensor) -> Tensor:
        return super().forward(observations / 10)


class Branching(Grid):
    def forward(self, observations: Tensor) -> Tensor:
        return super().forward(observations if observations.sum() > 0 else -observations)


class Elsewhere(Grid):
    """Reads something but its observation."""

    def forward(self, observations: Tensor) -> Tensor:
        return self.head(torch.ones(len(observations), 4 * 6 * 7))


def test_layers_one_after_the_other_are_found():
    torch.manual_seed(0)
    extractor = CustomExtractor(Grid().eval(), SPACE, "here")
    assert extractor.steps is not None
    assert "module.conv.0" in dict(extractor.steps)
    images = np.random.default_rng(0).random((5, 8 * 9 * 3), np.float32)
    layers = Layers(nn.Sequential(extractor), 5, name="latent", recorded={"latent.0.module.head": "head"})
    with torch.inference_mode():
        expected = extractor(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(layers(images), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.tanh(layers.seen["head"]), expected, rtol=1e-4, atol=1e-6)
    assert len(list(extractor.parameters())) == 4


@pytest.mark.parametrize("kind", [Residual, Tenth, Branching, Elsewhere])
def test_whatever_does_more_is_left_alone(kind):
    assert plain_layers(kind().eval(), SPACE.shape) is None
    assert CustomExtractor(kind().eval(), SPACE, "here").steps is None


def test_extractors_of_the_tests():
    rows, vector = gym.spaces.Box(-1, 1, (3, 2)), gym.spaces.Box(-1, 1, (4,))
    assert plain_layers(Rows(rows).eval(), (3, 2)) is None
    assert plain_layers(OwnLayers(vector).eval(), (4,)) is not None
    assert plain_layers(BatchNormed(vector).eval(), (4,)) is not None
    module, before = OwnLayers(vector).eval(), torch.get_rng_state()
    plain_layers(module, (4,))
    assert torch.equal(before, torch.get_rng_state())
