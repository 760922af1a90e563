"""Masked logits against sb3-contrib's distributions, and by hand."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.environments.action_masks import mask_sizes
from policy_distill.policies.actions import Bernoulli, family_of
from policy_distill.policies.masks import FORBIDDEN, masked

SPACES = [gym.spaces.Discrete(5), gym.spaces.MultiDiscrete([3, 2, 4]), gym.spaces.MultiBinary(4)]


def drawn(space: gym.Space, rows: int = 200) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A policy's outputs, the logits of our family, and masks, some of which forbid all choices of a component."""
    generator = torch.Generator().manual_seed(0)
    entries = sum(mask_sizes(space))
    scores = 3 * torch.randn(rows, entries, generator=generator)
    mask = torch.rand(rows, entries, generator=generator) < 0.5
    logits = scores[:, 1::2] - scores[:, 0::2] if isinstance(space, gym.spaces.MultiBinary) else scores
    return scores, logits, mask


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_mode_and_probabilities_are_those_of_sb3_contrib(space):
    distributions = pytest.importorskip("sb3_contrib.common.maskable.distributions")
    scores, logits, mask = drawn(space)
    theirs = distributions.make_masked_proba_distribution(space).proba_distribution(scores)
    theirs.apply_masking(mask.numpy())
    family = family_of(space)
    ours = masked(family, logits, mask)  # type: ignore[arg-type]
    assert torch.equal(family.mode({"logits": ours}), theirs.mode())  # type: ignore[union-attr]
    parts = getattr(theirs, "distributions", None) or [theirs.distribution]
    if isinstance(family, Bernoulli):
        torch.testing.assert_close(ours.sigmoid(), torch.stack([part.probs[:, 1] for part in parts], 1))
    else:
        probabilities = torch.cat([part.softmax(-1) for part in ours.split(mask_sizes(space), -1)], -1)
        torch.testing.assert_close(probabilities, torch.cat([part.probs for part in parts], -1))


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_draws_are_allowed(space):
    _, logits, mask = drawn(space)
    family = family_of(space)
    ours = masked(family, logits, mask)  # type: ignore[arg-type]
    actions = torch.stack([family.sample({"logits": ours}, torch.Generator().manual_seed(seed)) for seed in range(20)])  # type: ignore[union-attr]
    actions = actions.reshape(20, len(mask), -1)
    for component, part in enumerate(mask.split(mask_sizes(space), -1)):
        free = part.any(-1)
        allowed = part[free].expand(20, -1, -1).gather(-1, actions[:, free, component, None])
        assert allowed.all()


def test_logits_by_hand():
    logits = torch.tensor([[1.0, -2.0, 3.0]])
    assert masked(family_of(gym.spaces.Discrete(3)), logits, torch.tensor([[1, 1, 0]])).tolist() == [[1.0, -2.0, FORBIDDEN]]  # type: ignore[arg-type]
    # off and on of each switch: both, on alone, off alone, none
    switches = torch.tensor([[0.5, -7.0, 7.0, 2.0]])
    mask = torch.tensor([[1, 1, 0, 1, 1, 0, 0, 0]])
    assert masked(Bernoulli(4), switches, mask).tolist() == [[0.5, -FORBIDDEN, FORBIDDEN, 0.0]]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_arrays_are_masked_as_tensors(space):
    _, logits, mask = drawn(space)
    family = family_of(space)
    arrays = masked(family, logits.numpy(), mask.numpy())  # type: ignore[arg-type]
    assert arrays.dtype == np.float32
    np.testing.assert_array_equal(arrays, masked(family, logits, mask).numpy())  # type: ignore[arg-type]
