"""Mixtures of distributions: values by hand, and what must not change them."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.distributions import Categorical as TorchCategorical

from policy_distill.policies.actions import Box
from policy_distill.policies.families import Bernoulli, Categorical, DiagGaussian, MultiCategorical, family_of, weighted_mean
from tests.small_worlds import random_transitions

BOX = gym.spaces.Box(np.array([-2, 0], np.float32), np.array([6, 1], np.float32))
SPACES = [gym.spaces.Discrete(4), gym.spaces.MultiDiscrete([2, 3]), gym.spaces.MultiBinary(3), BOX]


def logits(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def test_probabilities_are_averaged():
    # 0.25 * (0.8, 0.1, 0.1) + 0.75 * (0.2, 0.6, 0.2) = (0.35, 0.475, 0.175); shifted logits are the same distribution
    members = [{"logits": logits(0.8, 0.1, 0.1) + 5.0}, {"logits": logits(0.2, 0.6, 0.2)}]
    mixed = Categorical(3).mix(members, [0.25, 0.75])["logits"]
    torch.testing.assert_close(mixed.exp(), torch.tensor([[0.35, 0.475, 0.175]]))


def test_each_component_is_averaged_by_itself():
    members = [
        {"logits": torch.cat([logits(0.5, 0.5), logits(0.2, 0.8)], -1)},
        {"logits": torch.cat([logits(0.1, 0.9), logits(0.6, 0.4)], -1)},
    ]
    mixed = MultiCategorical((2, 2)).mix(members, [0.5, 0.5])["logits"]
    torch.testing.assert_close(mixed.exp(), torch.tensor([[0.3, 0.7, 0.4, 0.6]]))


def test_switches_are_averaged_as_probabilities_of_being_on():
    # 0.5 * 0.9 + 0.5 * 0.3 = 0.6, whose logit is log(0.6 / 0.4)
    members = [{"logits": torch.logit(torch.tensor([[0.9]]))}, {"logits": torch.logit(torch.tensor([[0.3]]))}]
    mixed = Bernoulli(1).mix(members, [0.5, 0.5])["logits"]
    assert mixed.item() == pytest.approx(math.log(0.6 / 0.4))


def test_the_moments_of_a_mixture_of_gaussians():
    # means 1 and 5, variances 4 and 9, weights 1/4 and 3/4: mean 4, variance (4 + 27) / 4 + (9 + 3) / 4 = 10.75
    family = DiagGaussian(Box((-1.0,), (1.0,)))
    members = [{"mean": torch.tensor([[mean]]), "log_std": torch.tensor([[math.log(std)]])} for mean, std in ((1.0, 2.0), (5.0, 3.0))]
    mixed = family.mix(members, [0.25, 0.75])
    assert mixed["mean"].item() == pytest.approx(4.0)
    assert mixed["log_std"].item() == pytest.approx(0.5 * math.log(10.75))


def test_the_moments_are_those_of_samples():
    generator = torch.Generator().manual_seed(0)
    means, stds, weights = torch.tensor([-1.0, 0.5, 2.0]), torch.tensor([0.3, 1.0, 0.1]), torch.tensor([0.2, 0.5, 0.3])
    which = torch.multinomial(weights, 200_000, replacement=True, generator=generator)
    samples = means[which] + stds[which] * torch.randn(len(which), generator=generator)
    members = [{"mean": mean, "log_std": std.log()} for mean, std in zip(means[:, None], stds[:, None], strict=True)]
    found = DiagGaussian(Box((-1.0,), (1.0,))).mix(members, weights.tolist())
    assert found["mean"].item() == pytest.approx(samples.mean().item(), abs=0.01)
    assert found["log_std"].exp().item() == pytest.approx(samples.std().item(), abs=0.01)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_mixture_of_one_distribution_with_itself_is_that_distribution(space):
    parameters = random_transitions(space, 16).targets.parameters
    family = family_of(space)
    mixed = family.mix([parameters] * 3, [0.2, 0.5, 0.3])
    if isinstance(family, Categorical):
        parameters = {"logits": TorchCategorical(logits=parameters["logits"]).logits}
    if isinstance(family, MultiCategorical):
        parameters = {"logits": torch.cat([part.log_softmax(-1) for part in parameters["logits"].split(family.nvec, -1)], -1)}
    for name, value in parameters.items():
        torch.testing.assert_close(mixed[name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_the_order_of_the_members_does_not_matter(space):
    members = [random_transitions(space, 16, seed=seed).targets.parameters for seed in range(3)]
    weights = [0.2, 0.5, 0.3]
    one, other = family_of(space).mix(members, weights), family_of(space).mix(members[::-1], weights[::-1])
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-5, rtol=1e-5)


def test_certainty_stays_finite():
    # exp(-200) underflows in float32, its logarithm does not; a forbidden action of one member is allowed by the other's share
    certain, forbidden = torch.tensor([[0.0, -200.0]]), torch.tensor([[0.0, -torch.inf]])
    mixed = Categorical(2).mix([{"logits": certain}, {"logits": certain}], [0.5, 0.5])["logits"]
    torch.testing.assert_close(mixed, certain)
    mixed = Categorical(2).mix([{"logits": certain}, {"logits": forbidden}], [0.5, 0.5])["logits"]
    assert mixed[0, 1].item() == pytest.approx(-200 + math.log(0.5))
    switches = Bernoulli(1).mix([{"logits": torch.tensor([[200.0]])}] * 2, [0.5, 0.5])["logits"]
    assert switches.item() == pytest.approx(200.0)


def test_a_weighted_mean_by_hand():
    assert weighted_mean([torch.tensor([1.0, 2.0]), torch.tensor([5.0, 6.0])], [0.25, 0.75]).tolist() == [4.0, 5.0]
