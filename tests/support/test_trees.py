"""Trees of arrays: an array or a dict of arrays goes through the same functions."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.support import trees

BOX = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
PARTS = gym.spaces.Dict({"position": BOX, "count": gym.spaces.Discrete(5), "frame": gym.spaces.Box(0, 255, (2, 2), np.uint8)})


def test_dtype_and_shape_come_from_the_space():
    made = trees.zeros(PARTS, 4, 2)

    assert {key: (leaf.shape, leaf.dtype) for key, leaf in made.items()} == {
        "count": ((4, 2), np.dtype(np.int64)),
        "frame": ((4, 2, 2, 2), np.dtype(np.uint8)),
        "position": ((4, 2, 3), np.dtype(np.float32)),
    }
    assert trees.zeros(BOX, 4).shape == (4, 3)
    assert trees.row_bytes(PARTS) == 3 * 4 + 8 + 4


@pytest.mark.parametrize("space", [BOX, PARTS], ids=["array", "dict"])
def test_rows_that_were_written_are_read_again(space):
    space.seed(0)
    written = [space.sample() for _ in range(3)]
    table = trees.zeros(space, 3)

    for index, observation in enumerate(written):
        trees.write(table, index, observation)

    for stacked in (table, trees.stack(written), trees.concatenate([trees.rows(table, slice(0, 1)), trees.rows(table, slice(1, 3))])):
        assert trees.length(stacked) == 3
        for index, observation in enumerate(written):
            row = trees.rows(stacked, index)
            assert all(np.array_equal(ours, theirs) for ours, theirs in zip(trees.leaves(row), trees.leaves(observation), strict=True))


def test_tensors_share_memory_and_are_joined_as_arrays_are():
    table = trees.zeros(PARTS, 2)
    tensors = trees.to_tensors(table)
    table["count"][1] = 4

    assert tensors["count"][1] == 4
    joined = trees.concatenate([tensors, tensors])
    assert isinstance(joined["count"], torch.Tensor)
    assert joined["count"].tolist() == [0, 4, 0, 4]
    assert trees.to_arrays(joined)["count"].tolist() == [0, 4, 0, 4]


@pytest.mark.parametrize(
    "space",
    [gym.spaces.Tuple([BOX]), gym.spaces.Text(3), gym.spaces.Dict({"inner": gym.spaces.Dict({"x": BOX})})],
    ids=["tuple", "text", "nested"],
)
def test_spaces_that_are_no_trees_are_refused(space):
    with pytest.raises(ValueError, match="no array and no Dict of arrays"):
        trees.zeros(space)
