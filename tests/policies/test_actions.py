"""Families of action distributions: mode, draws, softening, and the way to the environment's units."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, tensor

from policy_distill.policies.actions import Box

ASYMMETRIC = Box((-2.0, 0.0), (6.0, 1.0))
DRAWS = 20_000


def shares(draws: Tensor, values: int) -> Tensor:
    return torch.bincount(draws.reshape(-1), minlength=values) / draws.numel()


def repeated(values: list[float], count: int = DRAWS) -> Tensor:
    return tensor(values).expand(count, -1)


# Box: environment units to [-1, 1] and back.


def test_the_bounds_are_minus_one_and_one_in_box_units():
    # (6 - 2) / 2 = 2 is the middle of [-2, 6], so that -2 -> -1, 2 -> 0, 4 -> 0.5, 6 -> 1
    actions = tensor([[-2.0, 0.0], [2.0, 0.5], [4.0, 0.75], [6.0, 1.0]])
    assert torch.equal(ASYMMETRIC.to_box(actions), tensor([[-1.0, -1.0], [0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]))


def test_scale_and_offset_are_half_the_range_and_the_middle():
    scale, offset = ASYMMETRIC.affine()
    assert scale.tolist() == [4.0, 0.5]
    assert offset.tolist() == [2.0, 0.5]


def test_actions_past_a_bound_become_the_bound():
    assert torch.equal(ASYMMETRIC.to_environment(tensor([[-3.0, 1.5], [9.0, -9.0]])), tensor([[-2.0, 1.0], [6.0, 0.0]]))


@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(0.01, 100), st.floats(0, 1)), min_size=1, max_size=4))
def test_there_and_back_is_the_same_action(dimensions):
    box = Box(tuple(low for low, _, _ in dimensions), tuple(low + span for low, span, _ in dimensions))
    actions = tensor([[low + span * share for low, span, share in dimensions]], dtype=torch.float64)
    torch.testing.assert_close(box.to_environment(box.to_box(actions)), actions, rtol=1e-9, atol=1e-9)


def test_a_dimension_without_two_finite_bounds_keeps_its_units_and_its_one_bound():
    box = Box((-math.inf, -3.0, -1.0), (math.inf, math.inf, 3.0))
    assert box.affine()[0].tolist() == [1.0, 1.0, 2.0]
    assert box.affine()[1].tolist() == [0.0, 0.0, 1.0]
    assert torch.equal(box.to_environment(tensor([[50.0, -50.0, 50.0]])), tensor([[50.0, -3.0, 3.0]]))


def test_a_box_takes_the_bounds_of_a_space_flattened():
    space = gym.spaces.Box(np.array([[-2, 0], [1, -1]], np.float32), np.array([[6, 1], [2, 5]], np.float32))
    assert Box.from_space(space) == Box((-2.0, 0.0, 1.0, -1.0), (6.0, 1.0, 2.0, 5.0))
    assert Box.from_space(space).dim == 4
