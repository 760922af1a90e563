"""Families of action distributions: modes, draws, densities, and the family of each space."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, tensor
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Normal

from policy_distill.policies.actions import Box
from policy_distill.policies.families import (
    FAMILIES,
    Bernoulli,
    Categorical,
    Deterministic,
    DiagGaussian,
    Family,
    MultiCategorical,
    family_of,
)
from tests.small_worlds import generator

ASYMMETRIC = Box((-2.0, 0.0), (6.0, 1.0))
DRAWS = 20_000


def shares(draws: Tensor, values: int) -> Tensor:
    return torch.bincount(draws.reshape(-1), minlength=values) / draws.numel()


def repeated(values: list[float], count: int = DRAWS) -> Tensor:
    return tensor(values).expand(count, -1)


# Modes.


def test_the_mode_of_a_categorical_is_the_largest_logit_counted_from_start():
    logits = {"logits": tensor([[0.0, 2.0, 1.0], [-math.inf, -5.0, -6.0]])}
    assert Categorical(3).mode(logits).tolist() == [1, 1]
    assert Categorical(3, start=5).mode(logits).tolist() == [6, 6]
    assert Categorical(3, start=-1).mode({"q_values": tensor([[9.0, 2.0, 1.0]])}).tolist() == [-1]


def test_the_mode_of_a_multi_categorical_is_each_components_own():
    family = MultiCategorical((2, 3))
    assert family.width == 5
    assert family.mode({"logits": tensor([[0.0, 1.0, 3.0, 2.0, 1.0], [1.0, 0.0, 0.0, 0.0, 9.0]])}).tolist() == [[1, 0], [0, 2]]


def test_the_mode_of_a_bernoulli_is_on_above_zero():
    assert Bernoulli(3).mode({"logits": tensor([[0.1, -0.1, 0.0]])}).tolist() == [[1, 0, 0]]


def test_the_mode_of_a_gaussian_is_its_mean_clipped_in_environment_units():
    parameters = {"mean": tensor([[0.5, -2.0]]), "log_std": tensor([[3.0, 3.0]])}
    assert DiagGaussian(ASYMMETRIC).mode(parameters).tolist() == [[4.0, 0.0]]


def test_the_mode_of_a_squashed_gaussian_passes_through_tanh():
    # tanh(0.5) = 0.46211716; 0.46211716 * 4 + 2 = 3.84846863; tanh(-9) = -1 in float32 up to 3e-8
    mode = DiagGaussian(ASYMMETRIC, squashed=True).mode({"mean": tensor([[0.5, -9.0]]), "log_std": tensor([[0.0, 0.0]])})
    torch.testing.assert_close(mode, tensor([[3.84846863, 0.0]]))


# Draws. Tolerances are five standard errors: 5 * sqrt(0.25 / 20000) = 0.018.


def test_a_categorical_is_drawn_with_its_probabilities():
    probabilities = tensor([0.7, 0.2, 0.1])
    draws = Categorical(3).sample({"logits": probabilities.log().expand(DRAWS, -1) + 4}, generator())
    torch.testing.assert_close(shares(draws, 3), probabilities, atol=0.018, rtol=0)
    assert Categorical(3, start=7).sample({"logits": repeated([0.0, 0.0, 0.0])}, generator()).unique().tolist() == [7, 8, 9]


def test_a_forbidden_action_is_never_drawn():
    assert Categorical(3).sample({"logits": repeated([-math.inf, 0.0, 0.0])}, generator()).unique().tolist() == [1, 2]


def test_q_values_are_no_distribution_to_draw_from():
    assert Categorical(3).sample({"q_values": repeated([1.0, 1.1, 1.0], 50)}, generator()).unique().tolist() == [1]


def test_components_of_a_multi_categorical_are_drawn_apart():
    logits = tensor([0.9, 0.1, 0.2, 0.3, 0.5]).log().expand(DRAWS, -1)
    draws = MultiCategorical((2, 3)).sample({"logits": logits}, generator())
    torch.testing.assert_close(shares(draws[:, 0], 2), tensor([0.9, 0.1]), atol=0.018, rtol=0)
    torch.testing.assert_close(shares(draws[:, 1], 3), tensor([0.2, 0.3, 0.5]), atol=0.018, rtol=0)
    correlation = torch.corrcoef(draws.T.double())[0, 1]
    assert abs(float(correlation)) < 5 / math.sqrt(DRAWS)


def test_switches_are_on_with_the_sigmoid_of_their_logit():
    # sigmoid(ln 3) = 3 / (1 + 3) = 0.75
    draws = Bernoulli(2).sample({"logits": repeated([math.log(3), -20.0])}, generator())
    torch.testing.assert_close(draws.double().mean(0), tensor([0.75, 0.0], dtype=torch.float64), atol=0.018, rtol=0)


def test_a_gaussian_is_drawn_with_its_mean_and_standard_deviation():
    family = DiagGaussian(Box((-100.0, 0.0), (100.0, 400.0)))
    parameters = {"mean": repeated([0.1, -0.2]), "log_std": repeated([math.log(0.05), math.log(0.1)])}
    draws = family.sample(parameters, generator())
    # box 0.1 -> 10 and 0.05 -> 5 wide; box -0.2 -> 200 - 40 = 160 and 0.1 -> 20 wide
    torch.testing.assert_close(draws.mean(0), tensor([10.0, 160.0]), atol=5 * 20 / math.sqrt(DRAWS), rtol=0)
    torch.testing.assert_close(draws.std(0), tensor([5.0, 20.0]), rtol=0.03, atol=0)


def test_draws_of_a_squashed_gaussian_are_tanh_of_the_raw_ones():
    parameters = {"mean": repeated([0.3, -0.2], 100), "log_std": repeated([-0.5, 0.1], 100)}
    raw = DiagGaussian(Box((-math.inf,) * 2, (math.inf,) * 2)).sample(parameters, generator(4))
    squashed = DiagGaussian(ASYMMETRIC, squashed=True).sample(parameters, generator(4))
    torch.testing.assert_close(squashed, raw.tanh() * tensor([4.0, 0.5]) + tensor([2.0, 0.5]))


@pytest.mark.parametrize(
    ("family", "parameters"),
    [
        (Categorical(3), {"logits": torch.zeros(50, 3)}),
        (MultiCategorical((2, 3)), {"logits": torch.zeros(50, 5)}),
        (Bernoulli(4), {"logits": torch.zeros(50, 4)}),
        (DiagGaussian(ASYMMETRIC), {"mean": torch.zeros(50, 2), "log_std": torch.zeros(50, 2)}),
    ],
)
def test_draws_come_from_the_generator_alone(family, parameters):
    torch.manual_seed(1)
    first = family.sample(parameters, generator(3))
    torch.manual_seed(2)
    assert torch.equal(first, family.sample(parameters, generator(3)))
    assert not torch.equal(first, family.sample(parameters, generator(4)))


# Families of spaces.


@pytest.mark.parametrize(
    ("space", "family"),
    [
        (gym.spaces.Discrete(4), Categorical(4)),
        (gym.spaces.Discrete(4, start=-2), Categorical(4, -2)),
        (gym.spaces.MultiDiscrete([2, 5]), MultiCategorical((2, 5))),
        (gym.spaces.MultiBinary(3), Bernoulli(3)),
        (gym.spaces.Box(-2.0, 2.0, (1,)), DiagGaussian(Box((-2.0,), (2.0,)))),
    ],
)
def test_each_space_has_its_family(space, family):
    assert family_of(space) == family


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.MultiDiscrete(np.array([[2, 2], [3, 3]])),
        gym.spaces.MultiDiscrete([2, 2], start=[1, 0]),
        gym.spaces.MultiBinary(np.array([2, 2])),
        gym.spaces.Dict({"a": gym.spaces.Discrete(2)}),
        gym.spaces.Tuple([gym.spaces.Discrete(2)]),
    ],
)
def test_other_spaces_are_refused_by_name(space):
    with pytest.raises(ValueError, match="is not supported: Discrete"):
        family_of(space)


def test_a_deterministic_family_is_as_wide_as_its_box():
    assert Deterministic(ASYMMETRIC).width == DiagGaussian(ASYMMETRIC).width == 2


# Densities, against torch.distributions.

BOX = gym.spaces.Box(np.array([-2, 0], np.float32), np.array([6, 1], np.float32))
ACTED = [gym.spaces.Discrete(4), gym.spaces.Discrete(3, start=2), gym.spaces.MultiDiscrete([2, 3]), gym.spaces.MultiBinary(3), BOX]


def random_parameters(family: Family, count: int) -> dict[str, Tensor]:
    outputs, log_std = (torch.randn(count, family.width, generator=generator(seed)) for seed in (1, 2))
    return family.parameters_of(outputs, log_std / 2)


def oracle(family: Family, parameters: dict[str, Tensor]) -> list[Any]:
    """One distribution for each component."""
    if isinstance(family, DiagGaussian):
        return [Normal(*pair) for pair in zip(parameters["mean"].T, parameters["log_std"].exp().T, strict=True)]
    if isinstance(family, Bernoulli):
        return [TorchBernoulli(logits=logits) for logits in parameters["logits"].T]
    return [TorchCategorical(logits=part) for part in parameters["logits"].split(list(family.sizes), -1)]


@pytest.mark.parametrize("space", ACTED, ids=str)
def test_log_probabilities_and_entropies_are_those_of_torch(space):
    family = family_of(space)
    parameters = random_parameters(family, 50)
    raw = family.raw(family.sample(parameters, generator(3)))
    parts = oracle(family, parameters)
    expected = sum(part.log_prob(column.float()) for part, column in zip(parts, raw.T, strict=True))
    torch.testing.assert_close(family.log_prob(parameters, raw), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(family.entropy(parameters), sum(part.entropy() for part in parts), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("space", ACTED, ids=str)
def test_uniform_numbers_draw_from_the_distribution(space):
    """The negative mean log-probability of many draws is the entropy; each component has its own mean."""
    family = family_of(space)
    parameters = {name: value.expand(DRAWS, -1) for name, value in random_parameters(family, 1).items()}
    uniform = torch.rand(DRAWS, family.width, generator=generator(5)).clamp(1e-7, 1 - 1e-7)
    raw = family.draw(parameters, uniform)
    assert raw.shape == (DRAWS, math.prod(family.action_shape))
    assert float(-family.log_prob(parameters, raw).mean()) == pytest.approx(float(family.entropy(parameters)[0]), abs=0.04)
    for component, part in zip(raw.double().T, oracle(family, {name: value[:1] for name, value in parameters.items()}), strict=True):
        values = torch.arange(part.probs.shape[-1]) if isinstance(part, TorchCategorical) else None
        mean = float((part.probs * values).sum()) if values is not None else float(part.mean)
        assert float(component.mean()) == pytest.approx(mean, abs=0.05)


def test_an_agent_without_a_density_only_names_its_action():
    gaussian = DiagGaussian(ASYMMETRIC)
    assert gaussian.of_agent(density=False) == Deterministic(ASYMMETRIC)
    assert gaussian.of_agent(density=True, squashed=True) == DiagGaussian(ASYMMETRIC, squashed=True)
    assert Categorical(3).of_agent(density=False) == Categorical(3)


def test_other_units_change_the_box_alone():
    units = ((1.0, 2.0), (0.5, 0.0))
    other = Box(ASYMMETRIC.low, ASYMMETRIC.high, units)
    assert DiagGaussian(ASYMMETRIC, squashed=True).in_units(units) == DiagGaussian(other, squashed=True)
    assert Bernoulli(2).in_units(units) == Bernoulli(2)


def test_named_actions_have_nearly_all_the_probability():
    torch.testing.assert_close(Categorical(3, start=2).confident(tensor([3]))["logits"].exp(), tensor([[0.0005, 0.999, 0.0005]]))
    torch.testing.assert_close(
        MultiCategorical((2, 3)).confident(tensor([[1, 0]]))["logits"].exp(), tensor([[0.001, 0.999, 0.999, 0.0005, 0.0005]])
    )
    torch.testing.assert_close(Bernoulli(2).confident(tensor([[0, 1]]))["logits"].sigmoid(), tensor([[0.001, 0.999]]))
    with pytest.raises(ValueError, match="outside its space: it has 3 values, and the actions are -1 to -1"):
        Categorical(3, start=2).confident(tensor([1]))
    with pytest.raises(ValueError, match="values other than 0 and 1"):
        Bernoulli(1).confident(tensor([[2]]))


@pytest.mark.parametrize("space", ACTED, ids=str)
def test_the_chooser_in_numpy_is_the_mode(space):
    family = family_of(space)
    outputs = torch.randn(64, family.width, generator=generator(7))
    chosen = family.chooser(space.shape or ())(outputs.numpy())
    np.testing.assert_allclose(chosen, family.mode(family.parameters_of(outputs, torch.zeros(family.spread))).numpy(), atol=1e-6)


class Dial(gym.spaces.Discrete):
    """A space of one's own."""


def test_a_space_has_the_family_of_its_nearest_ancestor(monkeypatch):
    assert family_of(Dial(3)) == Categorical(3)
    monkeypatch.setitem(FAMILIES, Dial, lambda space: Bernoulli(int(space.n)))
    assert family_of(Dial(3)) == Bernoulli(3)
    assert family_of(gym.spaces.Discrete(3)) == Categorical(3)
