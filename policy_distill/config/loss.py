"""The training objective of the student."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from policy_distill.config.checks import require, require_choice


@dataclass(frozen=True)
class FeatureConfig:
    """Feature distillation (hints): the student's layers, through a learned projection, regress on the teacher's layers."""

    weight: float = 0.0
    """Weight of this term beside the loss on actions; 0: no hints."""
    layers: dict[str, str] | None = None
    """Teacher's layer -> student's layer. ``check_teacher`` lists the teacher's names; the student's are hidden.0, hidden.1, ... and
    output. Left out: the last hidden layer of each."""
    distance: Literal["mse", "cosine"] = "mse"
    """Mean squared error divided by the layer's variance, or one minus the cosine."""

    def __post_init__(self) -> None:
        require(self.weight >= 0 and math.isfinite(self.weight), "loss.features.weight", self.weight, ">= 0")
        require(self.layers is None or len(self.layers) > 0, "loss.features.layers", self.layers, "left out, or name at least one pair")
        require_choice(type(self), "loss.features", "distance", self.distance)


@dataclass(frozen=True)
class RelationConfig:
    """Relational distillation: the student's layer reproduces the relations between a batch's samples in the teacher's layer."""

    weight: float = 0.0
    """Weight of this term beside the loss on actions; 0: no relations."""
    kind: Literal["distance", "angle", "similarity"] = "distance"
    """Distances of pairs, angles of triplets (both Park et al. 2019), or similarities (Tung & Mori 2019), among the first 48 samples of
    each batch (angles: the first 20)."""
    layers: dict[str, str] | None = None
    """Teacher's layer -> student's layer, as in ``features.layers``; ``output`` is a layer too."""

    def __post_init__(self) -> None:
        require(self.weight >= 0 and math.isfinite(self.weight), "loss.relations.weight", self.weight, ">= 0")
        require(self.layers is None or len(self.layers) > 0, "loss.relations.layers", self.layers, "left out, or name at least one pair")
        require_choice(type(self), "loss.relations", "kind", self.kind)


@dataclass(frozen=True)
class LossConfig:
    """The training objective: a weighted sum of terms."""

    kind: Literal["auto", "kl", "nll", "regression"] = "auto"
    """``kl``: a divergence of action distributions; ``nll``: negative log-likelihood of actions sampled from the teacher; ``regression``:
    error of the action that the environment receives. ``auto``: regression for deterministic (td3, ddpg, ars) and tanh-squashed (sac,
    tqc) teachers, else KL."""
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon"] = "forward_kl"
    """The divergence used by ``kl``: KL(teacher || student), KL(student || teacher), or the generalised Jensen-Shannon divergence."""
    jensen_shannon_beta: float = 0.5
    """Weight of the teacher in the mixture of the Jensen-Shannon divergence, in (0, 1)."""
    regression: Literal["squared", "absolute", "huber"] = "huber"
    """Error averaged over the components of a continuous action; Huber's threshold is 0.1 of half the action range."""
    near_bound: float = 0.8
    """In units of half the action range. Where a teacher's action is at least this far from the middle of its range, a prediction between
    it and the bound has no regression error, because a squashed teacher never reaches the bound. 1: only at the bound itself."""
    beyond_bounds: float = 0.2
    """Weight, in the divergence of Gaussians (ppo, a2c, trpo), of differences between means that the environment clips to the same action.
    1: the divergence as it is, in which a mean far beyond its bound costs a small student more than an action that is wrong; 0: such
    differences count nothing."""
    temperature: float = 1.0
    """Divides the logits of teacher and student; the loss is multiplied by its square (Hinton et al. 2015). Above 1 softens. For
    Gaussians it multiplies both variances."""
    temperature_end: float | None = None
    """Final temperature, reached linearly over the training. Left out: constant temperature."""
    standardize_logits: bool = False
    """Standardise the logits of teacher and student to mean 0 and standard deviation 1 in each state, before the temperature is applied
    (Sun et al. 2024)."""
    hard_weight: float = 0.0
    """Alpha of ``alpha * cross-entropy(teacher's greedy action) + (1 - alpha) * KL(softened)``, in [0, 1]."""
    q_logits: Literal["gap", "z_score", "raw"] = "gap"
    """How Q-values become logits. ``gap``: ``(Q - max Q) / (q_gap_fraction * median gap)``; ``z_score``: the z-score over the actions
    divided by ``q_temperature``; ``raw``: the Q-values divided by ``q_temperature``."""
    q_gap_fraction: float = 0.1
    """Fraction of the median gap between the two best actions that corresponds to one nat."""
    q_temperature: float | None = None
    """Temperature of ``z_score`` and ``raw``. Left out: 0.5 for ``z_score``, 0.01 for ``raw`` (Rusu et al. 2016)."""
    features: FeatureConfig = field(default_factory=FeatureConfig)
    relations: RelationConfig = field(default_factory=RelationConfig)

    def __post_init__(self) -> None:
        for name in ("kind", "divergence", "regression", "q_logits"):
            require_choice(type(self), "loss", name, getattr(self, name))
        require(0 < self.near_bound <= 1, "loss.near_bound", self.near_bound, "in (0, 1]")
        require(0 <= self.beyond_bounds <= 1, "loss.beyond_bounds", self.beyond_bounds, "in [0, 1]")
        require(0 < self.jensen_shannon_beta < 1, "loss.jensen_shannon_beta", self.jensen_shannon_beta, "in (0, 1)")
        for name in ("temperature", "temperature_end", "q_gap_fraction", "q_temperature"):
            value = getattr(self, name)
            optional = name in ("temperature_end", "q_temperature")
            require((value is None and optional) or (value > 0 and math.isfinite(value)), f"loss.{name}", value, "> 0")
        require(0 <= self.hard_weight <= 1, "loss.hard_weight", self.hard_weight, "in [0, 1]")
