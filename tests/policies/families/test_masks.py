"""Masked logits against sb3-contrib's distributions, and by hand."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.environments.action_masks import mask_sizes
from policy_distill.policies.families import Bernoulli, Categorical, DiagGaussian, family_of
from policy_distill.policies.families.choices import FORBIDDEN

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
    ours = family.masked(logits, mask)
    assert torch.equal(family.mode({"logits": ours}), theirs.mode())
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
    ours = family.masked(logits, mask)
    actions = torch.stack([family.sample({"logits": ours}, torch.Generator().manual_seed(seed)) for seed in range(20)])
    actions = actions.reshape(20, len(mask), -1)
    for component, part in enumerate(mask.split(mask_sizes(space), -1)):
        free = part.any(-1)
        allowed = part[free].expand(20, -1, -1).gather(-1, actions[:, free, component, None])
        assert allowed.all()


def test_logits_by_hand():
    logits = torch.tensor([[1.0, -2.0, 3.0]])
    assert Categorical(3).masked(logits, torch.tensor([[1, 1, 0]])).tolist() == [[1.0, -2.0, FORBIDDEN]]
    # off and on of each switch: both, on alone, off alone, none
    switches = torch.tensor([[0.5, -7.0, 7.0, 2.0]])
    mask = torch.tensor([[1, 1, 0, 1, 1, 0, 0, 0]])
    assert Bernoulli(4).masked(switches, mask).tolist() == [[0.5, -FORBIDDEN, FORBIDDEN, 0.0]]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_arrays_are_masked_as_tensors(space):
    _, logits, mask = drawn(space)
    family = family_of(space)
    arrays = family.masked(logits.numpy(), mask.numpy())
    assert arrays.dtype == np.float32
    np.testing.assert_array_equal(arrays, family.masked(logits, mask).numpy())


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_divergences_under_a_mask_are_those_of_the_allowed_choices(space, name):
    """Finite, zero from a policy to itself, and without a slope where the mask forbids."""
    _, logits, mask = drawn(space)
    family = family_of(space)
    student = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    teacher, ours = {"logits": family.masked(logits, mask)}, {"logits": family.masked(student, mask)}
    found = family.divergence(name, teacher, ours, temperature=2.0)
    assert (found.isfinite() & (found >= -1e-6)).all()
    assert found.max() > 0.1
    torch.testing.assert_close(family.divergence(name, teacher, teacher), torch.zeros(len(mask)), atol=1e-5, rtol=0)
    found.sum().backward()
    assert student.grad is not None
    free = mask[:, 0::2] & mask[:, 1::2] if isinstance(family, Bernoulli) else mask
    assert not student.grad[~free].any()
    assert student.grad[free].any()


def test_continuous_actions_have_no_masks():
    family = family_of(gym.spaces.Box(-1, 1, (2,)))
    assert isinstance(family, DiagGaussian)
    with pytest.raises(ValueError, match="has no masks"):
        family.masked(torch.zeros(1, 2), torch.ones(1, 2))
