"""Encoders of images and Dicts: sizes by hand, normalisation folded into the first convolution, and what the shapes of files say."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from policy_distill.policies.encoders import (
    Images,
    Parts,
    Vectors,
    convolutions,
    encoder_of,
    encoder_shapes,
    feature_width,
    images_in,
    normalization_of,
    usual_convolutions,
)
from tests.small_worlds import SEEN, generator, random_observations


def image(*shape: int, dtype: Any = np.uint8) -> gym.spaces.Box:
    return gym.spaces.Box(0, 1 if dtype in (np.float32, bool) else 255, shape, dtype)


SPACES: dict[str, gym.Space] = {
    "MiniGrid": image(7, 7, 3),
    "MinAtar": image(10, 10, 4, dtype=bool),
    "frames": image(4, 84, 84),
    "floats": image(96, 96, 3, dtype=np.float32),
    "tiny": image(2, 3, 1),
    "Dict": gym.spaces.Dict({"a.b": image(7, 7, 3), "direction": gym.spaces.Discrete(4), "speed": SEEN}),
}


def observations(space: gym.Space, count: int) -> Any:
    """A tree of tensors ``[count, ...]``."""
    if isinstance(space, gym.spaces.Dict):
        return {key: observations(part, count) for key, part in space.items()}
    return torch.as_tensor(random_observations(space, count))


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (image(4, 84, 84), [(8, 4, 20, 20), (4, 2, 9, 9), (3, 1, 7, 7)]),  # as in Mnih et al. (2015)
        (image(96, 96, 3), [(8, 4, 23, 23), (4, 2, 10, 10), (3, 1, 8, 8)]),
        (image(10, 10, 4), [(3, 1, 8, 8), (2, 2, 4, 4), (3, 1, 2, 2)]),
        (image(11, 9, 4), [(3, 1, 9, 7), (3, 2, 4, 3), (3, 1, 2, 1)]),
        (image(12, 12, 4), [(4, 2, 5, 5), (3, 1, 3, 3)]),
        (image(7, 7, 3), [(3, 1, 5, 5), (3, 1, 3, 3)]),
        (image(2, 3, 1), [(2, 1, 1, 2), (1, 1, 1, 2)]),
        (image(36, 12, 3), [(4, 2, 17, 5), (3, 1, 15, 3)]),  # the smaller side decides
    ],
)
def test_kernels_follow_from_the_size_of_the_image(space, expected):
    layers = convolutions(space, *usual_convolutions([space], 5))
    assert [(layer.kernel, layer.stride, layer.height, layer.width) for layer in layers] == expected
    large, small = max(space.shape) >= 84, len(expected) == 3
    assert [layer.outputs for layer in layers] == ([5, 10, 10] if large else [5, 5, 5] if small else [10, 5])


@pytest.mark.parametrize("size", [8, 9, 10, 11])
def test_a_convolution_of_stride_2_reads_every_pixel_of_a_square_image(size):
    encoder = encoder_of(image(size, size, 1), (1, 1), nn.Identity, strides=(2, 1))
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.fill_(1.0)
    pixels = torch.zeros(1, size, size, 1, requires_grad=True)
    encoder(pixels).sum().backward()
    assert pixels.grad is not None
    assert torch.count_nonzero(pixels.grad) == size**2


def test_images_of_several_sizes_share_convolutions_that_suit_each():
    small, middle, large = image(10, 10, 4), image(20, 20, 4), image(84, 84, 4)
    assert usual_convolutions([small, small], 3) == ((3, 3, 3), (1, 2, 1))
    assert usual_convolutions([small, middle], 3) == ((6, 3), ())
    assert usual_convolutions([small, large], 3) == ((3, 6, 6), ())


@pytest.mark.parametrize("strides", [(), (2, 1)])
@pytest.mark.parametrize("name", SPACES)
def test_shapes_and_width_are_those_of_the_module(name, strides):
    space = SPACES[name]
    encoder = encoder_of(space, (3, 4), nn.ReLU, strides=strides)
    shapes = {key: tuple(tensor.shape) for key, tensor in encoder.state_dict().items()}
    assert encoder_shapes(space, (3, 4), strides=strides) == shapes
    features = encoder(observations(space, 5))
    assert features.shape == (5, feature_width(space, (3, 4), strides=strides))
    assert features.dtype == torch.float32


def test_channels_may_come_first_or_last():
    last, first = encoder_of(image(7, 7, 3), (3, 4), nn.ReLU), encoder_of(image(3, 7, 7), (3, 4), nn.ReLU)
    first.load_state_dict(last.state_dict())
    seen = observations(image(7, 7, 3), 5)
    torch.testing.assert_close(last(seen), first(seen.permute(0, 3, 1, 2).contiguous()), rtol=1e-5, atol=1e-4)


def test_the_features_are_those_of_scaled_images():
    """The scale is each channel's largest value in all blocks; 1 of one that was never lit, and of whatever comes later."""
    encoder = encoder_of(image(7, 7, 3), (3, 4), nn.Tanh)
    assert isinstance(encoder, Images)
    seen = observations(image(7, 7, 3), 6)
    seen[..., 0] = seen[..., 0].clamp_max(50)
    seen[3, 2, 2, 0] = 60
    seen[..., 2] = 0
    encoder.normalize(lambda: seen.split(4))
    assert encoder.scale[0] == 60
    assert encoder.scale[2] == 1
    values = (seen / encoder.scale).permute(0, 3, 1, 2)
    for layer in encoder.convolutions:
        assert isinstance(layer, nn.Conv2d)
        values = F.conv2d(values, layer.weight, layer.bias).tanh()
    torch.testing.assert_close(encoder(seen), values.permute(0, 2, 3, 1).flatten(1), rtol=1e-4, atol=1e-5)


def test_a_dict_is_read_part_by_part():
    space = SPACES["Dict"]
    encoder = encoder_of(space, (3, 4), nn.ReLU)
    assert isinstance(encoder, Parts)
    assert [type(part) for part in encoder.parts] == [Images, Vectors, Vectors]
    seen = observations(space, 20)
    encoder.normalize(lambda: [seen], torch.float64)
    features = encoder(seen)
    for part, key, columns in zip(encoder.parts, encoder.keys, features.split([36, 4, 3], dim=1), strict=True):
        torch.testing.assert_close(columns, part(seen[key]))
    torch.testing.assert_close(features[:, -3:].mean(0), torch.zeros(3), atol=1e-5, rtol=0)  # each part has its own normalisation
    again = encoder_of(space, (3, 4), nn.ReLU)
    again.load_state_dict(encoder.state_dict())  # float64 stays float64
    assert torch.equal(again(seen), features)
    assert again.state_dict()["parts.2.mean"].dtype == torch.float64


def test_without_channels_everything_is_a_vector():
    encoder = encoder_of(image(7, 7, 3), (), nn.ReLU)
    assert isinstance(encoder, Vectors)
    assert encoder(observations(image(7, 7, 3), 2)).shape == (2, 147)
    assert feature_width(image(7, 7, 3), ()) == 147


def test_images_are_bytes_from_0_to_255_unless_the_user_says_otherwise():
    assert images_in(SPACES["Dict"]) == [image(7, 7, 3)]
    assert images_in(SPACES["MinAtar"]) == []
    assert images_in(SPACES["floats"]) == []
    assert images_in(SEEN) == []


def test_gradients_reach_every_layer():
    encoder = encoder_of(SPACES["Dict"], (3, 4), nn.Tanh)
    seen = observations(SPACES["Dict"], 4)
    (encoder(seen) * torch.randn(4, 43, generator=generator())).sum().backward()
    assert all(parameter.grad is not None and (parameter.grad != 0).any() for parameter in encoder.parameters())


def test_a_single_row_is_not_normalised() -> None:
    """One row has no standard deviation, so each component counts as constant: mean 0 and scale 1."""
    mean, scale = normalization_of([torch.tensor([[3.0, -2.0]])])
    assert mean.tolist() == [0.0, 0.0]
    assert scale.tolist() == [1.0, 1.0]
