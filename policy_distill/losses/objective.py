"""The loss of a student: its terms, weights and temperature schedule."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from policy_distill.config import LossConfig, RequestError
from policy_distill.losses.relations import RELATIONS, Projection, cosine_distance, normalized_squared_error, samples_compared
from policy_distill.policies.actions import LAYER, ActionTargets, Parameters
from policy_distill.policies.divergences import bounded_error, huber, mean_absolute, mean_squared
from policy_distill.policies.families import Family
from policy_distill.policies.families.q_values import Q_TEMPERATURES, median_action_gap, q_values_to_logits, standardize_logits
from policy_distill.support.sampling import evenly

CALIBRATION_ROWS = 65_536
"""Maximum number of rows, evenly spaced, that estimate the gap between Q-values."""
LAYER_ROWS = 8192
"""Maximum number of rows that estimate a layer's variance; a layer has a hundred times as many numbers a row."""
OUTPUT = "output"
"""Name of a network's output among its layers: logits, Q-values or means."""
REGRESSIONS = {"squared": mean_squared, "absolute": mean_absolute, "huber": huber}
_LAYER_DISTANCES = {"mse": normalized_squared_error, "cosine": cosine_distance}


class Objective:
    """A weighted sum of loss terms.

    Args:
        config: the loss's settings, with all layers named.
        family: the teacher's family of action distributions.

    Attributes:
        kind: ``kl``, ``nll`` or ``regression``.
        soft_name: name of the term that the temperature softens; only ``soft_weight`` multiplies it by ``temperature**2``.

    Raises:
        RequestError: if the loss does not suit the teacher.
    """

    def __init__(self, config: LossConfig, family: Family) -> None:
        self.config, self.family = config, family
        self.kind = resolve_kind(config, family)
        self.soft_name = {"kl": f"{config.divergence}_nats", "nll": "negative_log_likelihood_nats", "regression": "action_error"}[self.kind]
        self._set_single(config)
        # Set by ``calibrate``, and shared with copies for several members.
        self._measured = {"q_gap": 1.0}
        self._layer_variance: dict[str, float] = {}

    def _set_single(self, config: LossConfig) -> None:
        self._members: Sequence[LossConfig] = (config,)
        self.hard_weight: float | Tensor = config.hard_weight
        self._temperatures: tuple[float | Tensor, float | Tensor] = _ends_of(config)

    def for_members(self, configs: Sequence[LossConfig], device: torch.device) -> Objective:
        """The loss of K members with different temperatures and alphas; nothing else of ``configs`` is read.

        Raises:
            RequestError: if one of them does not suit the teacher.
        """
        for config in configs:
            resolve_kind(config, self.family)
        twin = copy.copy(self)
        twin._members = configs

        def column(values: Iterable[float]) -> Tensor:
            return torch.tensor(list(values), device=device)[:, None]

        twin.hard_weight = column(config.hard_weight for config in configs)
        starts, ends = zip(*map(_ends_of, configs), strict=True)
        twin._temperatures = column(starts), column(ends)
        return twin

    def of_member(self, index: int) -> Objective:
        """The loss of one member alone."""
        twin = copy.copy(self)
        twin._set_single(self._members[index % len(self._members)])
        return twin

    @property
    def q_gap(self) -> float:
        """Difference of Q-values that corresponds to one nat; set by ``calibrate``."""
        return self._measured["q_gap"]

    @q_gap.setter
    def q_gap(self, value: float) -> None:
        self._measured["q_gap"] = value

    @property
    def has_hard_labels(self) -> bool:
        """Whether the loss contains the cross-entropy of the teacher's greedy action."""
        return any(config.hard_weight > 0 for config in self._members)

    @property
    def softens(self) -> bool:
        """Whether any temperature differs from 1."""
        return any(end != 1 for config in self._members for end in _ends_of(config))

    @property
    def forgives_clipping(self) -> bool:
        """Whether differences between Gaussian means beyond the same bound count less; see ``LossConfig.beyond_bounds``."""
        return self.kind == "kl" and self.family.box is not None and self.config.beyond_bounds < 1

    @property
    def reads(self) -> set[str]:
        """Names of the targets' parameters that the terms read; a regression reads the action alone."""
        distribution = set() if self.kind == "regression" else {*self.family.names, "q_values"}
        output = {*self.family.names[:1], "q_values"} if OUTPUT in self._teacher_layers else set()
        return distribution | output | {f"{LAYER}{name}" for name in self._teacher_layers if name != OUTPUT}

    @property
    def reads_actions(self) -> bool:
        """Whether the terms read the teacher's deterministic action."""
        return self.kind == "regression" or self.has_hard_labels or OUTPUT in self._teacher_layers

    @property
    def layers_read(self) -> set[str]:
        """Names of the students' layers that hints and relations read."""
        return {layer for pairs in self._pairs for layer in pairs.values()}

    def samples_read(self, name: str, batch_size: int) -> int:
        """Number of first samples of a batch whose target ``name`` is read: all, but fewer for layers that only relations read."""
        hints, _ = self._pairs
        only_relations = name.startswith(LAYER) and name.removeprefix(LAYER) not in hints
        return min(batch_size, samples_compared(self.config.relations.kind)) if only_relations else batch_size

    @property
    def _teacher_layers(self) -> list[str]:
        """The teacher's layers that hints and relations read."""
        return [layer for pairs in self._pairs for layer in pairs]

    @property
    def _pairs(self) -> tuple[dict[str, str], dict[str, str]]:
        """Maps from the teacher's to the student's layers, for hints and for relations."""
        features, relations = self.config.features, self.config.relations
        return (features.layers or {}) if features.weight else {}, (relations.layers or {}) if relations.weight else {}

    def calibrate(self, targets: ActionTargets) -> None:
        """Estimate the gap between the best two Q-values and the variances of hinted layers from data."""
        if "q_values" in targets.parameters:
            self.q_gap = self.config.q_gap_fraction * median_action_gap(_some(targets.parameters["q_values"], CALIBRATION_ROWS))
        for name in self._pairs[0]:
            self._layer_variance[name] = max(float(_some(self._teacher_layer(targets, name), LAYER_ROWS).var(0).mean()), 1e-12)

    def temperature(self, progress: float | Tensor) -> float | Tensor:
        """Temperature at ``progress`` in [0, 1] of the training, linear from ``temperature`` to ``temperature_end``.

        Args:
            progress: a number, or ``[S, 1, 1]``.

        Returns:
            The shape of ``progress``; if members differ ``[K, 1]`` or ``[S, K, 1]``.
        """
        start, end = self._temperatures
        return start + (end - start) * progress

    def soft_weight(self, progress: float | Tensor) -> float | Tensor:
        """Weight of the term ``soft_name``, ``(1 - alpha) * T**2`` for a divergence; same shape as ``temperature``."""
        return (1 - self.hard_weight) * (self.temperature(progress) ** 2 if self.kind == "kl" else 1.0)

    def terms(
        self,
        outputs: Tensor,
        log_std: Tensor,
        targets: ActionTargets,
        *,
        progress: float = 1.0,
        draws: Tensor | None = None,
        layers: Mapping[str, Tensor] | None = None,
        projections: Sequence[Projection] = (),
    ) -> dict[str, Tensor]:
        """Each term's value per sample ``[K, B]``, unweighted; units are in the names.

        Args:
            outputs: the students' logits or means ``[K, B, outputs]``.
            log_std: ``[K, 1, action_dim]``, only read for Gaussians.
            targets: the teacher's labels, with leading ``[K, B]``.
            progress: completed share of the training, for the temperature.
            draws: uniform numbers in (0, 1) of the shape of the teacher's parameters, only read for ``nll``.
            layers: the students' hidden layers and output by name, ``[K, B, width]``; None leaves out hints and relations.
            projections: for each pair of hinted layers a weight ``[K, student's width, teacher's width]`` and a bias ``[K, 1, ...]``.
        """
        terms = self._action_terms(outputs, log_std, targets, self.temperature(progress), draws)
        if layers is not None:
            terms |= self.layer_terms(layers, targets, projections)
        return terms

    def total(self, terms: Mapping[str, Tensor], *, progress: float = 1.0) -> Tensor:
        """Weighted sum ``[K, B]``: ``alpha * CE + (1 - alpha) * T**2 * KL`` (Hinton et al. 2015, sec. 2) plus hints and relations."""
        loss = self.config
        weights: dict[str, float | Tensor] = {
            name: loss.features.weight if name.startswith("feature") else loss.relations.weight for name in terms
        }
        weights[self.soft_name] = self.soft_weight(progress)
        weights["hard_cross_entropy_nats"] = self.hard_weight
        return functools.reduce(operator.add, (weights[name] * value for name, value in terms.items()))

    def _action_terms(
        self, outputs: Tensor, log_std: Tensor, targets: ActionTargets, temperature: float | Tensor, draws: Tensor | None
    ) -> dict[str, Tensor]:
        family, config = self.family, self.config
        if self.kind == "regression":
            assert family.box is not None
            target = family.box.to_box(targets.actions)
            error = bounded_error(target, outputs, near_bound=config.near_bound, limits=family.box.limits(target))
            return {self.soft_name: REGRESSIONS[config.regression](error)}
        teacher, student = self.distribution_of(targets.parameters), family.parameters_of(outputs, log_std)
        if self.kind == "nll":
            assert draws is not None, "sampled targets need random numbers"
            return {self.soft_name: -family.log_prob(student, family.draw(teacher, draws))}
        compared = (teacher, student)
        if config.standardize_logits:
            compared = (family.standardized(teacher), family.standardized(student))
        terms = {self.soft_name: self._divergence(*compared, temperature)}
        if self.has_hard_labels:
            terms["hard_cross_entropy_nats"] = -family.log_prob(student, family.raw(targets.actions))
        return terms

    def _divergence(self, teacher: Parameters, student: Parameters, temperature: float | Tensor) -> Tensor:
        """The divergence ``[K, B]``; of clipped Gaussians the mean of those from the teacher's mean and from the nearest equal action's."""
        config, box = self.config, self.family.box
        measure = functools.partial(
            self.family.divergence, config.divergence, temperature=temperature, beta=config.jensen_shannon_beta, student=student
        )
        if not self.forgives_clipping:
            return measure(teacher=teacher)
        assert box is not None
        nearest = student["mean"] - bounded_error(teacher["mean"], student["mean"], limits=box.limits(teacher["mean"]))
        return torch.lerp(measure(teacher=teacher | {"mean": nearest}), measure(teacher=teacher), config.beyond_bounds)

    def distribution_of(self, parameters: Parameters) -> Parameters:
        """The teacher's distribution parameters ``[..., width]``; Q-values are turned into logits."""
        if "q_values" not in parameters:
            return parameters
        values, config = parameters["q_values"], self.config
        if config.q_logits == "gap":
            return {"logits": q_values_to_logits(values, self.q_gap)}
        scale = config.q_temperature or Q_TEMPERATURES[config.q_logits]
        return {"logits": (standardize_logits(values) if config.q_logits == "z_score" else values) / scale}

    def layer_terms(self, layers: Mapping[str, Tensor], targets: ActionTargets, projections: Sequence[Projection]) -> dict[str, Tensor]:
        """Hints and relations, each term's value per sample ``[K, B]``, unweighted; arguments as in ``terms``."""
        (hints, relations), terms = self._pairs, {}
        distance, relation = self.config.features.distance, self.config.relations.kind
        for (teacher, student), projection in zip(hints.items(), projections, strict=True):
            target, variance = self._teacher_layer(targets, teacher), self._layer_variance.get(teacher, 1.0)
            terms[f"feature_{distance}_{teacher}"] = _LAYER_DISTANCES[distance](target, layers[student], variance, projection)
        for teacher, student in relations.items():
            terms[f"relation_{relation}_{teacher}"] = RELATIONS[relation](self._teacher_layer(targets, teacher), layers[student])
        return terms

    def _teacher_layer(self, targets: ActionTargets, name: str) -> Tensor:
        """A layer of the teacher ``[..., width]``; ``OUTPUT`` is the first parameter of its distribution, or else its action."""
        if name != OUTPUT:
            return targets.parameters[f"{LAYER}{name}"]
        known = [targets.parameters[key] for key in (*self.family.names[:1], "q_values") if key in targets.parameters]
        return known[0] if known else targets.actions


def _ends_of(config: LossConfig) -> tuple[float, float]:
    """Temperatures at the start and at the end of training."""
    return config.temperature, config.temperature if config.temperature_end is None else config.temperature_end


def _some(rows: Tensor, limit: int) -> Tensor:
    return rows[evenly(len(rows), limit, rows.device)]


def resolve_kind(config: LossConfig, family: Family) -> str:
    """The kind of loss; ``auto`` is the default of the teacher's family.

    Raises:
        RequestError: if the loss does not suit the teacher.
    """
    discrete = family.box is None
    kind = family.losses[0] if config.kind == "auto" else config.kind
    if kind == "regression" and discrete:
        raise RequestError("loss.kind is 'regression', but the teacher's actions are discrete: use 'kl'")
    if kind not in family.losses:
        raise RequestError(
            f"loss.kind is {kind!r}, but this teacher's actions have no density a clipped Gaussian could match: use 'regression'"
        )
    if config.hard_weight and (kind != "kl" or not discrete):
        raise RequestError(
            f"loss.hard_weight is {config.hard_weight}, but hard labels go with the divergence of discrete actions alone: set it to 0"
        )
    if kind == "kl" and config.divergence not in family.divergences:
        raise RequestError(
            f"loss.divergence is {config.divergence!r}, which has no closed form between two of {type(family).__name__}: "
            f"use {' or '.join(map(repr, family.divergences))}"
        )
    if config.standardize_logits and not family.standardizes:
        raise RequestError("loss.standardize_logits is true, but this teacher has no logits over several actions: set it to false")
    return kind
