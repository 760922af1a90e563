"""Families of action distributions, one class for each, and the choice by action space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym

from policy_distill.policies.families.bernoulli import Bernoulli
from policy_distill.policies.families.categorical import Categorical
from policy_distill.policies.families.choices import Choices
from policy_distill.policies.families.deterministic import Deterministic
from policy_distill.policies.families.family import Family, weighted_mean
from policy_distill.policies.families.gaussian import DiagGaussian
from policy_distill.policies.families.multi_categorical import MultiCategorical

__all__ = [
    "FAMILIES",
    "Bernoulli",
    "Categorical",
    "Choices",
    "Deterministic",
    "DiagGaussian",
    "Family",
    "MultiCategorical",
    "family_of",
    "weighted_mean",
]

FAMILIES: dict[type[gym.Space], Callable[[Any], Family | None]] = {
    gym.spaces.Discrete: Categorical.of_space,
    gym.spaces.MultiDiscrete: MultiCategorical.of_space,
    gym.spaces.MultiBinary: Bernoulli.of_space,
    gym.spaces.Box: DiagGaussian.of_space,
}
"""Constructor of the family for each class of action space; it returns None for a space that the family does not support."""


def family_of(space: gym.Space) -> Family:
    """The family for ``space``, by its class or the nearest base class in ``FAMILIES``.

    Raises:
        ValueError: if no family supports the space.
    """
    for kind in type(space).__mro__:
        if kind in FAMILIES and (family := FAMILIES[kind](space)) is not None:
            return family
    raise ValueError(
        f"action space {space} is not supported: Discrete, MultiBinary and MultiDiscrete (one-dimensional, from 0 on), and Box are"
    )
