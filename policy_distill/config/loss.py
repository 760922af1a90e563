"""What the student is asked to match."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from policy_distill.config.checks import require, require_choice


@dataclass(frozen=True)
class FeatureConfig:
    """Hints: what the teacher's intermediate layers say, asked of the student's through a learned projection."""

    weight: float = 0.0
    """Beside the loss on actions; 0: no hints."""
    layers: dict[str, str] | None = None
    """Teacher's layer -> student's layer. ``check_teacher`` lists the teacher's names; the student's are hidden.0, hidden.1, ... and
    output. Left out: the last hidden layer of each."""
    distance: Literal["mse", "cosine"] = "mse"
    """Mean square divided by the layer's variance, or one minus the cosine."""

    def __post_init__(self) -> None:
        require(self.weight >= 0 and math.isfinite(self.weight), "loss.features.weight", self.weight, ">= 0")
        require(self.layers is None or len(self.layers) > 0, "loss.features.layers", self.layers, "left out, or name at least one pair")
        require_choice(type(self), "loss.features", "distance", self.distance)


@dataclass(frozen=True)
class RelationConfig:
    """What the samples of a batch are to each other in a layer of the teacher, asked of a layer of the student."""

    weight: float = 0.0
    """Beside the loss on actions; 0: no relations."""
    kind: Literal["distance", "angle", "similarity"] = "distance"
    """Distances between pairs, angles between triplets (both Park et al. 2019), or similarities (Tung & Mori 2019): among the first 48
    samples of each batch, for angles the first 20."""
    layers: dict[str, str] | None = None
    """Teacher's layer -> student's layer, as in ``features.layers``; ``output`` is a layer too."""

    def __post_init__(self) -> None:
        require(self.weight >= 0 and math.isfinite(self.weight), "loss.relations.weight", self.weight, ">= 0")
        require(self.layers is None or len(self.layers) > 0, "loss.relations.layers", self.layers, "left out, or name at least one pair")
        require_choice(type(self), "loss.relations", "kind", self.kind)


@dataclass(frozen=True)
class LossConfig:
    """What the student is asked to match. Terms add up, each with its weight."""

    kind: Literal["auto", "kl", "nll", "regression"] = "auto"
    """``kl``: a divergence of action distributions; ``nll``: negative log-likelihood of actions drawn from the teacher; ``regression``:
    the action that the environment receives. ``auto``: KL where the teacher has a distribution that a student can match, regression where
    it only names an action (td3, ddpg, ars) or squashes it (sac, tqc)."""
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon"] = "forward_kl"
    """Which one ``kl`` means: KL(teacher || student), KL(student || teacher), or the generalised Jensen-Shannon divergence."""
    jensen_shannon_beta: float = 0.5
    """The teacher's share of the mixture, in (0, 1)."""
    regression: Literal["squared", "absolute", "huber"] = "huber"
    """What is averaged over the components of a continuous action: squares, absolute values, or squares up to 0.1 of half the range."""
    near_bound: float = 0.8
    """An action so far from the middle of its range, in half ranges, is meant for the bound, which a squashed teacher never reaches: a
    regression asks nothing of a student that goes further. 1: only the bound itself is."""
    temperature: float = 1.0
    """Both sides' logits are divided by it and the loss is multiplied by its square (Hinton et al. 2015); above 1 softens. Of Gaussians
    it multiplies both variances."""
    temperature_end: float | None = None
    """The temperature moves along a line to this one over the training. Left out: it stays."""
    standardize_logits: bool = False
    """Give both sides' logits mean 0 and standard deviation 1 in each state before the temperature (Sun et al. 2024)."""
    hard_weight: float = 0.0
    """Alpha of ``alpha * cross-entropy(teacher's greedy action) + (1 - alpha) * KL(softened)``, in [0, 1]."""
    q_logits: Literal["gap", "z_score", "raw"] = "gap"
    """How Q-values become logits: ``(Q - max Q) / (q_gap_fraction * median gap)``, their z-score over the actions divided by
    ``q_temperature``, or themselves divided by it."""
    q_gap_fraction: float = 0.1
    """Share of the median gap between the best two actions that becomes one nat."""
    q_temperature: float | None = None
    """Left out: 0.5 for z-scores, 0.01 for raw values (Rusu et al. 2016)."""
    features: FeatureConfig = field(default_factory=FeatureConfig)
    relations: RelationConfig = field(default_factory=RelationConfig)

    def __post_init__(self) -> None:
        for name in ("kind", "divergence", "regression", "q_logits"):
            require_choice(type(self), "loss", name, getattr(self, name))
        require(0 < self.near_bound <= 1, "loss.near_bound", self.near_bound, "in (0, 1]")
        require(0 < self.jensen_shannon_beta < 1, "loss.jensen_shannon_beta", self.jensen_shannon_beta, "in (0, 1)")
        for name in ("temperature", "temperature_end", "q_gap_fraction", "q_temperature"):
            value = getattr(self, name)
            optional = name in ("temperature_end", "q_temperature")
            require((value is None and optional) or (value > 0 and math.isfinite(value)), f"loss.{name}", value, "> 0")
        require(0 <= self.hard_weight <= 1, "loss.hard_weight", self.hard_weight, "in [0, 1]")
