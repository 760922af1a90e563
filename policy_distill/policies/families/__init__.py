"""Families of action distributions: one class each, found by the action space."""

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
"""Action space -> what makes the family of a policy that acts in it, or None if the family does not fit that space."""


def family_of(space: gym.Space) -> Family:
    """The family of a policy that acts in ``space``, by its class or the nearest ancestor in ``FAMILIES``.

    Raises:
        ValueError: for a space that no student can act in.
    """
    for kind in type(space).__mro__:
        if kind in FAMILIES and (family := FAMILIES[kind](space)) is not None:
            return family
    raise ValueError(
        f"action space {space} is not supported: Discrete, MultiBinary and MultiDiscrete (one-dimensional, from 0 on), and Box are"
    )
