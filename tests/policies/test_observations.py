"""Observations as vectors, as Stable-Baselines3 makes them, and spaces as plain data."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, preprocess_obs

from policy_distill.policies.observations import encode_observations, observation_width, space_from_dict, space_to_dict
from tests.small_worlds import random_observations

SPACES = [
    gym.spaces.Box(-1.0, 1.0, (3,)),
    gym.spaces.Box(-np.inf, np.inf, (2, 3), np.float64),
    gym.spaces.Box(0, 255, (4,), np.uint8),
    gym.spaces.Box(np.array([-2, -np.inf], np.float32), np.array([np.inf, 6], np.float32)),
    gym.spaces.Discrete(5),
    gym.spaces.MultiDiscrete([2, 4]),
    gym.spaces.MultiBinary(3),
    gym.spaces.MultiBinary([2, 2]),
]
UNSUPPORTED = [gym.spaces.Dict({"a": gym.spaces.Discrete(2)}), gym.spaces.Tuple([gym.spaces.Discrete(2)]), gym.spaces.Text(3)]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_observations_are_encoded_as_stable_baselines3_does(space):
    batch = torch.as_tensor(random_observations(space, 7))
    encoded = encode_observations(space, batch)
    assert encoded.dtype == torch.float32
    assert encoded.shape == (7, observation_width(space)) == (7, get_flattened_obs_dim(space))
    theirs = preprocess_obs(batch, space, normalize_images=False)
    assert isinstance(theirs, torch.Tensor)
    assert torch.equal(encoded, theirs.flatten(1))


def test_a_discrete_observation_is_one_hot_from_start():
    space = gym.spaces.Discrete(3, start=5)
    assert encode_observations(space, torch.tensor([5, 7])).tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


def test_multi_discrete_components_lie_side_by_side():
    # 1 of 2 -> 0 1; 2 of 3 -> 0 0 1
    assert encode_observations(gym.spaces.MultiDiscrete([2, 3]), torch.tensor([[1, 2]])).tolist() == [[0.0, 1.0, 0.0, 0.0, 1.0]]


def test_multi_discrete_components_are_counted_from_their_start():
    space = gym.spaces.MultiDiscrete([2, 3], start=[4, -1])
    assert encode_observations(space, torch.tensor([[5, 1]])).tolist() == [[0.0, 1.0, 0.0, 0.0, 1.0]]


@pytest.mark.parametrize("space", [*SPACES, gym.spaces.Discrete(3, start=5), gym.spaces.MultiDiscrete([2, 3], start=[4, -1])], ids=str)
def test_a_space_comes_back_from_json_as_it_was(space):
    again = space_from_dict(json.loads(json.dumps(space_to_dict(space), allow_nan=False)))
    assert again == space
    assert again.dtype == space.dtype


@pytest.mark.parametrize("space", UNSUPPORTED, ids=str)
def test_spaces_that_are_no_vector_are_refused_by_name(space):
    with pytest.raises(ValueError, match="is not supported"):
        observation_width(space)
    with pytest.raises(ValueError, match="is not supported"):
        space_to_dict(space)


def test_an_unknown_type_of_space_is_refused_by_name():
    with pytest.raises(ValueError, match="'Graph' is not known"):
        space_from_dict({"type": "Graph"})
