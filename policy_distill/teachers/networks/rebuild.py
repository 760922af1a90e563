"""Rebuilds an agent's acting network from its weights and plain settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from policy_distill.config import RequestError
from policy_distill.policies.actions import Box
from policy_distill.policies.families import Family
from policy_distill.policies.fast_forward import lay_out
from policy_distill.policies.observations import observation_width
from policy_distill.teachers.algorithms import Keys, Layout, layout_of_weights
from policy_distill.teachers.files.archive import class_name
from policy_distill.teachers.files.errors import NotPlainError
from policy_distill.teachers.networks.acting import (
    ActionBounds,
    ConstantSpread,
    DeterministicNetwork,
    DiscreteNetwork,
    GaussianNetwork,
    LinearSpread,
    StateDependentSpread,
    SwitchLogits,
    scores_both,
)
from policy_distill.teachers.networks.counting import acting_family
from policy_distill.teachers.networks.extractor import ExtractorMaker
from policy_distill.teachers.networks.pixels import OF_NATURE, PixelReader

Reader = ExtractorMaker | PixelReader
"""Builders of the features extractor, where it does more than flatten observations."""
ActingNetwork = DiscreteNetwork | DeterministicNetwork | GaussianNetwork

HAS_MEMORY = "has a custom memory, which is not supported: only RecurrentPPO's LSTM is"

ACTIVATIONS = (
    "CELU", "ELU", "GELU", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid", "Mish", "ReLU", "ReLU6", "SELU", "SiLU",
    "Sigmoid", "Softplus", "Softsign", "Tanh", "Tanhshrink",
)  # fmt: skip
"""Supported activations: those without arguments and weights."""


def check_supported(weights: Mapping[str, Tensor], policy_kwargs: Mapping[str, Any], source: str, *, extractor_known: bool) -> None:
    """Refuse networks that cannot be rebuilt.

    Args:
        weights: weights of the whole policy.
        policy_kwargs: the user's settings, with classes as printed text.
        source: the file, for messages.
        extractor_known: whether the source of the agent's custom features extractor is available.

    Raises:
        RequestError: for an unsupported memory; ``NotPlainError`` where ``--trust`` may help.
    """
    unsupported = {
        r"^lstm_(?!actor|critic)": HAS_MEMORY,
        r"running_mean$|running_var$": "normalises inside its network, which cannot be rebuilt; --trust loads it",
    }
    rebuilt = [key for key in weights if not (extractor_known and "features_extractor." in key)]
    for pattern, problem in unsupported.items():
        if any(re.search(pattern, key) for key in rebuilt):
            # --trust can load custom networks, but it does not support custom memories
            raise (RequestError if "lstm" in pattern else NotPlainError)(f"{source} {problem}")
    if not extractor_known and (named := own_extractor_of(weights, policy_kwargs)):
        raise NotPlainError(
            f"{source} reads its observations through {named}, which cannot be rebuilt from its weights alone: "
            "name the file and class that define it (--extractor networks.py:MyExtractor), or let --trust unpickle it"
        )


def recognise_layout(state_dict: Mapping[str, Tensor], source: str) -> Layout:
    """The layout of the networks with these weights, independent of the features extractor.

    Raises:
        NotPlainError: if they are none of Stable-Baselines3's or sb3-contrib's.
    """
    layout = layout_of_weights(state_dict)
    if layout is None:
        raise NotPlainError(f"{source}'s networks are not those of a Stable-Baselines3 policy; --trust loads it with Stable-Baselines3")
    return layout


def rebuild_network(
    state_dict: Mapping[str, Tensor],
    layout: Layout,
    observation_space: gym.Space,
    action_space: gym.Space,
    policy_kwargs: Mapping[str, Any],
    source: str,
    extractor: Reader | None = None,
) -> ActingNetwork:
    """Build the acting network.

    Args:
        state_dict: weights of the whole policy.
        layout: layout of the networks.
        observation_space: space of the observations, which the network reads flattened.
        action_space: space of the actions.
        policy_kwargs: the user's settings, with classes as printed text.
        source: the file, for messages.
        extractor: builds the agent's features extractor if it is custom or reads images.

    Raises:
        RequestError: if the weights do not form the network of ``layout``.
    """
    family = acting_family(action_space, source)
    layers = Layers(state_dict, layout, policy_kwargs, source, extractor)
    bounds = ActionBounds(Box.from_space(action_space)) if isinstance(action_space, gym.spaces.Box) else None
    if bounds is None:
        network = _discrete(layers, layout, family, source)
    elif layout.scores == "q_values":
        raise RequestError(f"{source}: its network names one of several actions, but its action space does not; the file is inconsistent")
    else:
        network = _continuous(layers, layout, bounds, policy_kwargs)
        box = bounds.box
        if network.squashed and not np.isfinite(np.subtract(box.high, box.low, dtype=np.float32)).all():
            raise RequestError(
                f"{source} squashes its actions into bounds, but its action space has none or too wide ones; retrain with finite bounds"
            )
    _check_widths(network, observation_width(observation_space), source, extractor)
    return network


def _discrete(layers: Layers, layout: Layout, family: Family, source: str) -> ActingNetwork:
    if layout.scores is None:
        raise RequestError(f"{source}: its network names a continuous action, but its action space is discrete; the file is inconsistent")
    if family.action_shape and not layout.several_choices:
        raise RequestError(f"{source}: its network names one of several actions, but its action space does not; the file is inconsistent")
    body = layers.network(layout.actor)
    outputs = outputs_of(body)
    if scores_both(family, outputs):  # sb3-contrib's MaskablePPO scores off and on
        body.append(SwitchLogits())
    num_quantiles = max(outputs // family.width, 1) if layout.quantiles else 1
    return DiscreteNetwork(body, family, scores=layout.scores, num_quantiles=num_quantiles)


def _continuous(
    layers: Layers, layout: Layout, bounds: ActionBounds, policy_kwargs: Mapping[str, Any]
) -> DeterministicNetwork | GaussianNetwork:
    squashed = layout.squashes(policy_kwargs, len(layers.indices(layout.actor.head)))
    if layout.log_std is None:
        return DeterministicNetwork(layers.network(layout.actor), bounds, squashed=squashed)
    latent, renorm = layers.latent(layout.actor)
    mean = layers.stack(layout.actor.head, renorm=renorm)
    spread: nn.Module
    if layout.log_std not in layers.weights and layers.indices(layout.log_std):
        spread = LinearSpread(layers.stack(layout.log_std, renorm=renorm))
    elif (log_std := layers.take(layout.log_std)).ndim == 2:
        if renorm is not None:
            raise NotPlainError(f"{layers.source} normalises what gSDE reads, which cannot be rebuilt; --trust loads it")
        spread = layers.state_dependent(log_std, layout.sde_features, policy_kwargs)
        if f"{layout.actor.head}.0.weight" in layers.weights:  # SAC's mean is clipped before tanh where clip_mean is set
            clip_mean = _number_in(policy_kwargs, "clip_mean", 2.0, layers.source)
            mean = nn.Sequential(mean, nn.Hardtanh(-clip_mean, clip_mean))
    else:
        spread = ConstantSpread(log_std)
    return GaussianNetwork(latent, mean, spread, bounds, squashed=squashed, spread_acts=layout.spread_acts)


class Renorm(NamedTuple):
    """Batch renormalisation with its statistics of training: ``factor * x + shift``, each ``[width]`` in float64."""

    factor: Tensor
    shift: Tensor


class Layers:
    """Takes fully connected layers out of a state dict.

    Args:
        weights: weights of the whole policy.
        layout: layout of the networks.
        policy_kwargs: the user's settings, with classes as printed text.
        source: the file, for messages.
        extractor: builds the agent's features extractor if it is custom or reads images.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        layout: Layout,
        policy_kwargs: Mapping[str, Any],
        source: str,
        extractor: Reader | None = None,
    ) -> None:
        self.weights = weights
        self.activation = activation_of(policy_kwargs, layout, source)
        self.source = source
        self.extractor = extractor
        self._epsilon = _number_in(policy_kwargs, "batch_norm_eps", 0.001, source)

    def features(self, *prefixes: str) -> list[nn.Module]:
        """The features extractor, with the weights below the first of ``prefixes`` that has any; empty if it only flattens."""
        if self.extractor is None or not prefixes:
            return []
        used = [prefix for prefix in prefixes if any(key.startswith(f"{prefix}.") for key in self.weights)]
        return [self.extractor.build(self.weights, (used or prefixes)[0], self.source)]

    def take(self, key: str) -> Tensor:
        if key not in self.weights:
            raise NotPlainError(f"{self.source} lacks the weight {key!r}; it is damaged or a custom policy, which --trust loads")
        return self.weights[key].detach().float().clone()

    def indices(self, prefix: str) -> list[str]:
        """Names of the layers below ``prefix`` in order: ``prefix.0``, ``prefix.2``, ..., or ``prefix`` itself."""
        parts = {match.group(1) for key in self.weights if (match := re.fullmatch(rf"{re.escape(prefix)}\.(.+)", key))}
        if not parts:
            return []
        if parts <= {"weight", "bias"}:
            return [prefix]
        if not all(re.fullmatch(r"\d{1,4}\.(weight|bias|scale|ra_mean|ra_var|steps)", part) for part in parts):
            raise NotPlainError(f"{self.source} has layers below {prefix!r} that are not fully connected; --trust loads a custom policy")
        return [f"{prefix}.{index}" for index in sorted({int(part.split(".")[0]) for part in parts})]

    def stack(self, prefix: str, *, final_activation: bool = False, renorm: Renorm | None = None) -> nn.Sequential:
        """The layers below ``prefix`` with activations between them, and after the last one if ``final_activation``.

        Args:
            prefix: of the layers' names.
            final_activation: whether there is an activation after the last layer.
            renorm: batch renormalisation of the inputs.
        """
        modules, renorm = self._hidden([prefix], renorm)
        if renorm is not None:
            raise NotPlainError(f"{self.source} ends the layers {prefix!r} with a normalisation, which cannot be rebuilt; --trust loads it")
        if not final_activation:
            if not modules:
                raise NotPlainError(f"{self.source} lacks the layers {prefix!r}; it is damaged or a custom policy, which --trust loads")
            modules.pop()
        return nn.Sequential(*modules)

    def latent(self, keys: Keys) -> tuple[nn.Sequential, Renorm | None]:
        """The features extractor and the hidden layers of a network, and the batch renormalisation behind them."""
        hidden, renorm = self._hidden(keys.hidden)
        return nn.Sequential(*self.features(*keys.features), *hidden), renorm

    def network(self, keys: Keys) -> nn.Sequential:
        """All layers of a network."""
        latent, renorm = self.latent(keys)
        return nn.Sequential(*latent, *self.stack(keys.head, renorm=renorm))

    def _hidden(self, prefixes: Sequence[str], renorm: Renorm | None = None) -> tuple[list[nn.Module], Renorm | None]:
        """Layers with an activation after each. Batch renormalisation, as in CrossQ, becomes part of the layer behind it; the last one,
        behind which there is none, is returned."""
        modules: list[nn.Module] = []
        for name in (name for prefix in prefixes for name in self.indices(prefix)):
            if f"{name}.ra_mean" in self.weights:
                renorm = self._renorm(name)
            else:
                modules += [self._linear(name, renorm), self.activation()]
                renorm = None
        return modules, renorm

    def state_dependent(self, log_std: Tensor, features: str, policy_kwargs: Mapping[str, Any]) -> StateDependentSpread:
        """The standard deviation of gSDE, with separate latent features if ``sde_net_arch`` was set."""
        latent = self.stack(features, final_activation=True)
        is_separate = len(latent) > 0 or policy_kwargs.get("sde_net_arch") == []
        if is_separate and self.extractor is not None:
            raise NotPlainError(
                f"{self.source} has both sde_net_arch and a custom features extractor, which cannot be rebuilt; --trust loads it"
            )
        return StateDependentSpread(log_std, expln=bool(policy_kwargs.get("use_expln", False)), features=latent if is_separate else None)

    def _renorm(self, name: str) -> Renorm:
        mean, variance, scale, bias = (self.take(f"{name}.{part}").double() for part in ("ra_mean", "ra_var", "scale", "bias"))
        if mean.ndim != 1 or any(part.shape != mean.shape for part in (variance, scale, bias)):
            raise NotPlainError(f"{self.source}: the layer {name!r} is no batch renormalisation of sb3-contrib; --trust loads it")
        factor = scale / (variance + self._epsilon).sqrt()
        return Renorm(factor, bias - mean * factor)

    def _linear(self, name: str, renorm: Renorm | None = None) -> nn.Linear:
        weight = self.take(f"{name}.weight")
        bias = self.take(f"{name}.bias") if f"{name}.bias" in self.weights else None
        if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
            raise NotPlainError(f"{self.source}: the layer {name!r} is not a fully connected one; --trust loads a custom policy")
        if renorm is not None:
            if renorm.factor.shape != weight.shape[1:]:
                raise NotPlainError(f"{self.source}: the layer {name!r} does not fit its normalisation; it is damaged")
            added = weight.double() @ renorm.shift
            bias = (added if bias is None else bias + added).float()
            weight = (weight * renorm.factor).float()
        with torch.random.fork_rng(devices=[]):  # initial weights are replaced; torch's skip_init would take half a second to import
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        linear.weight.data = weight
        if bias is not None:
            linear.bias.data = bias
        return lay_out(linear)


def own_extractor_of(weights: Mapping[str, Tensor], policy_kwargs: Mapping[str, Any]) -> str | None:
    """Name of the agent's custom features extractor; None for Stable-Baselines3's FlattenExtractor, NatureCNN and CombinedExtractor.

    Returns:
        The class's name, or "a custom extractor" if the file does not contain it.
    """
    named = policy_kwargs.get("features_extractor_class")
    name = class_name(named)
    shipped = name in ("FlattenExtractor", "CombinedExtractor", "NatureCNN") and "'stable_baselines3." in str(named)
    if name is not None and not shipped:
        return name
    foreign = re.compile(rf".*(?<!sde_)features_extractor\.(?!(extractors\.[^.]+\.)?{OF_NATURE}$)")
    has_weights = any(map(foreign.match, weights))
    unnamed = name is None and named is not None
    return "a custom extractor" if has_weights or unnamed else None


def activation_of(policy_kwargs: Mapping[str, Any], layout: Layout, source: str) -> type[nn.Module]:
    """The activation between a policy's layers: from the agent's settings, else the layout's default.

    Raises:
        NotPlainError: for an activation that is not in ``ACTIVATIONS``.
    """
    chosen = policy_kwargs.get("activation_fn")
    if chosen is None:
        return getattr(nn, layout.activation)
    name = class_name(chosen)
    if name not in ACTIVATIONS or "'torch.nn." not in str(chosen):
        known = ", ".join(ACTIVATIONS)
        raise NotPlainError(f"{source}: the activation {str(chosen)[:80]!r} cannot be rebuilt ({known} can); --trust loads it")
    return getattr(nn, name)


def _number_in(policy_kwargs: Mapping[str, Any], name: str, usual: float, source: str) -> float:
    """A setting that is a number of at least 0."""
    value = policy_kwargs.get(name, usual)
    if type(value) not in (int, float) or not value >= 0:
        raise NotPlainError(f"{source} has the {name} {str(value)[:80]!r}, which is no number >= 0; it is damaged or a custom policy")
    return float(value)


def outputs_of(body: nn.Module) -> int:
    """Width of the last fully connected layer."""
    return [module for module in body.modules() if isinstance(module, nn.Linear)][-1].out_features


def _check_widths(network: ActingNetwork, width: int, source: str, extractor: Reader | None) -> None:
    """Run one zero observation through the network, so that inconsistent weights fail at loading and not during a job."""
    try:
        with torch.no_grad():
            targets = network(torch.zeros(1, width))
    except RuntimeError as error:
        if isinstance(extractor, ExtractorMaker):
            raise RequestError(
                f"{source}: its layers do not fit the features of {extractor.text}; name the class that it was trained with"
            ) from error
        problem = f"its weights do not fit observations of {width} numbers; it is damaged or a custom policy, which --trust loads"
        raise NotPlainError(f"{source}: {problem}") from error
    expected = network.family.width
    shapes = [value.shape[-1] for value in targets.parameters.values()]
    if any(size != expected for size in shapes) or (not shapes and targets.actions.shape[-1] != expected):
        raise NotPlainError(
            f"{source}: its weights do not fit its action space of width {expected}; it is damaged or a custom policy, which --trust loads"
        )
