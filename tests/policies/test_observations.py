"""Observations as vectors, as Stable-Baselines3 makes them, and spaces as plain data."""

from __future__ import annotations

import json
from collections import OrderedDict

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, preprocess_obs

from policy_distill.policies.observations import encode_observations, observation_width, parts_of, space_from_dict, space_to_dict
from policy_distill.support.trees import leaf_spaces, leaves, to_tensors
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
    gym.spaces.Dict({"b": gym.spaces.Discrete(2), "a": gym.spaces.Box(-1.0, 1.0, (2,))}),
    gym.spaces.Dict(
        OrderedDict(z=gym.spaces.MultiDiscrete([2, 3]), a=gym.spaces.MultiBinary([2, 2]), m=gym.spaces.Box(0, 3, (2, 2), np.int8))
    ),
]
UNSUPPORTED = [
    gym.spaces.Dict({"a": gym.spaces.Tuple([gym.spaces.Discrete(2)])}),
    gym.spaces.Tuple([gym.spaces.Discrete(2)]),
    gym.spaces.Text(3),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_observations_are_encoded_as_stable_baselines3_does(space):
    batch = to_tensors(random_observations(space, 7))
    encoded = encode_observations(space, batch)
    assert encoded.dtype == torch.float32
    assert encoded.shape == (7, observation_width(space)) == (7, sum(map(get_flattened_obs_dim, leaf_spaces(space).values())))
    theirs = preprocess_obs(batch, space, normalize_images=False)
    assert torch.equal(encoded, torch.cat([part.flatten(1) for part in leaves(theirs)], dim=1))  # as CombinedExtractor does
    assert all(torch.equal(part, their) for part, their in zip(leaves(parts_of(space, encoded)), leaves(theirs), strict=True))


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
    assert {key: part.dtype for key, part in leaf_spaces(again).items()} == {key: part.dtype for key, part in leaf_spaces(space).items()}
    assert list(leaf_spaces(again)) == list(leaf_spaces(space))  # == does not look at the order of a Dict's keys


@pytest.mark.parametrize("space", UNSUPPORTED, ids=str)
def test_spaces_that_are_no_vector_are_refused_by_name(space):
    with pytest.raises(ValueError, match=r"is not supported|is no array and no Dict of arrays"):
        observation_width(space)
    with pytest.raises(ValueError, match=r"is not supported|is no array and no Dict of arrays"):
        space_to_dict(space)


def test_an_unknown_type_of_space_is_refused_by_name():
    with pytest.raises(ValueError, match="'Graph' is not known"):
        space_from_dict({"type": "Graph"})
