"""From an agent's weights and plain settings to its acting network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from policy_distill.config import RequestError
from policy_distill.policies.actions import Bernoulli, Box, Categorical, Family
from policy_distill.policies.fast_forward import lay_out
from policy_distill.policies.observations import observation_width
from policy_distill.teachers.files.archive import class_name
from policy_distill.teachers.files.errors import NotPlainError
from policy_distill.teachers.files.saved_algorithm import algorithm_of_fields
from policy_distill.teachers.networks.acting import (
    ActionBounds,
    ConstantSpread,
    DeterministicNetwork,
    DiscreteNetwork,
    GaussianNetwork,
    LinearSpread,
    StateDependentSpread,
    SwitchLogits,
)
from policy_distill.teachers.networks.counting import acting_family
from policy_distill.teachers.networks.extractor import ExtractorMaker

ActingNetwork = DiscreteNetwork | DeterministicNetwork | GaussianNetwork

KINDS = {
    "a2c": "on_policy", "ppo": "on_policy", "trpo": "on_policy", "ppo_mask": "on_policy",
    "sac": "sac", "tqc": "sac", "td3": "td3", "ddpg": "td3", "dqn": "dqn", "qrdqn": "qrdqn", "ars": "ars",
}  # fmt: skip
"""Which algorithms act with the same kind of network."""

HAS_MEMORY = "has a memory (LSTM, RecurrentPPO), which is not supported: agents that act on the last observation alone are"

ACTIVATIONS = (
    "CELU", "ELU", "GELU", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid", "Mish", "ReLU", "ReLU6", "SELU", "SiLU",
    "Sigmoid", "Softplus", "Softsign", "Tanh", "Tanhshrink",
)  # fmt: skip
"""Activations without arguments or weights of their own."""


def check_supported(weights: Mapping[str, Tensor], policy_kwargs: Mapping[str, Any], source: str, *, extractor_known: bool) -> None:
    """Refuse networks that cannot be rebuilt.

    Args:
        weights: of the whole policy.
        policy_kwargs: the user's settings, classes as printed text.
        source: the file, for messages.
        extractor_known: whether the source of the agent's own features extractor is at hand.

    Raises:
        RequestError: for a memory; ``NotPlainError`` where ``--trust`` might help.
    """
    unsupported = {
        r"^lstm_": HAS_MEMORY,
        r"running_mean$|running_var$|ra_mean$": "normalises inside its network (as CrossQ does), which cannot be rebuilt; --trust loads it",
    }
    rebuilt = [key for key in weights if not (extractor_known and "features_extractor." in key)]
    for pattern, problem in unsupported.items():
        if any(re.search(pattern, key) for key in rebuilt):
            # A network without memory may be custom; trust gives no one a memory.
            raise (RequestError if "lstm" in pattern else NotPlainError)(f"{source} {problem}")
    if not extractor_known and (named := own_extractor_of(weights, policy_kwargs)):
        raise NotPlainError(
            f"{source} reads its observations through {named}, which cannot be rebuilt from its weights alone: "
            "name the file and class that define it (--extractor networks.py:MyExtractor), or let --trust unpickle it"
        )


def recognise_kind(state_dict: Mapping[str, Tensor], source: str) -> str:
    """Say which kind of acting network the weights are, whatever reads the observations.

    Raises:
        NotPlainError: if they are none of Stable-Baselines3's or sb3-contrib's.
    """
    signs = {
        "quantile_net.quantile_net.": "qrdqn", "q_net.q_net.": "dqn", "actor.latent_pi.": "sac", "actor.mu.": "td3",
        "mlp_extractor.": "on_policy", "value_net.": "on_policy", "action_net.": "ars",
    }  # fmt: skip
    for prefix, kind in signs.items():
        if any(key.startswith(prefix) for key in state_dict):
            # A SAC actor without hidden layers has no latent_pi, but always a log_std.
            return "sac" if kind == "td3" and any(key.startswith("actor.log_std") for key in state_dict) else kind
    raise NotPlainError(f"{source}'s networks are not those of a Stable-Baselines3 policy; --trust loads it with Stable-Baselines3")


def recognise_algorithm(kind: str, data: Mapping[str, Any]) -> str:
    """Name the algorithm by the fields that it saved, where these go with ``kind``, else by the simplest one that acts so."""
    told = algorithm_of_fields(data)
    return told if told is not None and KINDS.get(told) == kind else "a2c" if kind == "on_policy" else kind


def rebuild_network(
    state_dict: Mapping[str, Tensor],
    kind: str,
    observation_space: gym.Space,
    action_space: gym.Space,
    policy_kwargs: Mapping[str, Any],
    source: str,
    extractor: ExtractorMaker | None = None,
) -> ActingNetwork:
    """Build the network that acts.

    Args:
        state_dict: of the whole policy.
        kind: a value of ``KINDS``.
        observation_space: what the network reads, flattened.
        action_space: what it acts in.
        policy_kwargs: the user's settings, classes as printed text.
        source: the file, for messages.
        extractor: what makes the agent's features extractor, where it has one of its own.

    Raises:
        RequestError: if the weights do not form the network that ``kind`` names.
    """
    family = acting_family(action_space, source)
    layers = Layers(state_dict, activation_of(policy_kwargs, kind, source), source, extractor)
    bounds = ActionBounds(Box.from_space(action_space)) if isinstance(action_space, gym.spaces.Box) else None
    network: ActingNetwork
    match kind:
        case "dqn":
            body = nn.Sequential(*layers.features("q_net.features_extractor"), *layers.stack("q_net.q_net"))
            network = DiscreteNetwork(body, _discrete(family, source), scores="q_values")
        case "qrdqn":
            chosen = _discrete(family, source)
            body = nn.Sequential(*layers.features("quantile_net.features_extractor"), *layers.stack("quantile_net.quantile_net"))
            network = DiscreteNetwork(body, chosen, scores="q_values", num_quantiles=max(_outputs(body) // chosen.width, 1))
        case "td3":
            body = nn.Sequential(*layers.features("actor.features_extractor"), *layers.stack("actor.mu"))
            network = DeterministicNetwork(body, _required(bounds, source), squashed=True)
        case "ars":
            single = len(layers.indices("action_net")) <= 1
            body = layers.stack("action_net")
            if bounds is None:
                network = DiscreteNetwork(body, _discrete(family, source), scores="logits")
            else:  # the linear policy clips; an MlpPolicy of one layer names its empty net_arch
                squashed = policy_kwargs.get("squash_output", not single or "net_arch" in policy_kwargs)
                network = DeterministicNetwork(body, bounds, squashed=bool(squashed))
        case "sac":
            network = _sac(layers, _required(bounds, source), policy_kwargs)
        case _:
            network = _on_policy(layers, family, bounds, policy_kwargs)
    box = None if isinstance(network, DiscreteNetwork) or not network.squashed else network.bounds.box
    if box is not None and not np.isfinite(np.subtract(box.high, box.low, dtype=np.float32)).all():
        raise RequestError(
            f"{source} squashes its actions into bounds, but its action space has none or too wide ones; retrain with finite bounds"
        )
    _check_widths(network, observation_width(observation_space), source, extractor)
    return network


def _sac(layers: Layers, bounds: ActionBounds, policy_kwargs: Mapping[str, Any]) -> GaussianNetwork:
    latent = nn.Sequential(*layers.features("actor.features_extractor"), *layers.stack("actor.latent_pi", final_activation=True))
    gsde = "actor.log_std" in layers.weights
    mean: nn.Module = layers.stack("actor.mu")
    spread: nn.Module
    if gsde:
        if "actor.mu.0.weight" in layers.weights:  # the mean is clipped before tanh where clip_mean is set
            clip_mean = float(policy_kwargs.get("clip_mean", 2.0))
            mean = nn.Sequential(mean, nn.Hardtanh(-clip_mean, clip_mean))
        spread = layers.state_dependent("actor.log_std", "actor.sde_features_extractor", policy_kwargs)
    else:
        spread = LinearSpread(layers.stack("actor.log_std"))
    return GaussianNetwork(latent, mean, spread, bounds, squashed=True, spread_acts=True)


def _on_policy(layers: Layers, family: Family, bounds: ActionBounds | None, policy_kwargs: Mapping[str, Any]) -> ActingNetwork:
    shared = layers.stack("mlp_extractor.shared_net", final_activation=True)  # until SB3 1.8
    own = layers.stack("mlp_extractor.policy_net", final_activation=True)
    latent = nn.Sequential(*layers.features("pi_features_extractor", "features_extractor"), *shared, *own)
    head = layers.stack("action_net")
    if isinstance(family, Bernoulli) and _outputs(head) == 2 * family.num_bits:  # sb3-contrib's MaskablePPO scores off and on
        head.append(SwitchLogits())
    if bounds is None:
        return DiscreteNetwork(nn.Sequential(*latent, *head), family, scores="logits")  # type: ignore[arg-type]
    log_std = layers.take("log_std")
    gsde = log_std.ndim == 2
    spread = layers.state_dependent("log_std", "sde_features_extractor", policy_kwargs) if gsde else ConstantSpread(log_std)
    squashed = bool(policy_kwargs.get("squash_output", False))
    return GaussianNetwork(latent, head, spread, bounds, squashed=squashed, spread_acts=False)


class Layers:
    """Takes fully connected layers out of a state dict.

    Args:
        weights: of the whole policy.
        activation: between the layers.
        source: the file, for messages.
        extractor: what makes the agent's own features extractor.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], activation: type[nn.Module], source: str, extractor: ExtractorMaker | None = None
    ) -> None:
        self.weights = weights
        self.activation = activation
        self.source = source
        self.extractor = extractor

    def features(self, *prefixes: str) -> list[nn.Module]:
        """The agent's own features extractor with the weights below the first of ``prefixes`` that has any; none where it has none."""
        if self.extractor is None:
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
        if not all(re.fullmatch(r"\d{1,4}\.(weight|bias)", part) for part in parts):
            raise NotPlainError(f"{self.source} has layers below {prefix!r} that are not fully connected; --trust loads a custom policy")
        return [f"{prefix}.{index}" for index in sorted({int(part.split(".")[0]) for part in parts})]

    def stack(self, prefix: str, *, final_activation: bool = False) -> nn.Sequential:
        """The layers below ``prefix`` with activations between them, and after the last one where ``final_activation``."""
        modules: list[nn.Module] = []
        for name in self.indices(prefix):
            modules += [self._linear(name), self.activation()]
        if not final_activation:
            if not modules:
                raise NotPlainError(f"{self.source} lacks the layers {prefix!r}; it is damaged or a custom policy, which --trust loads")
            modules.pop()
        return nn.Sequential(*modules)

    def state_dependent(self, key: str, features: str, policy_kwargs: Mapping[str, Any]) -> StateDependentSpread:
        """The spread of gSDE, with a latent of its own where ``sde_net_arch`` was set."""
        own = self.stack(features, final_activation=True)
        has_own = len(own) > 0 or policy_kwargs.get("sde_net_arch") == []
        if has_own and self.extractor is not None:
            raise NotPlainError(
                f"{self.source} has both sde_net_arch and a features extractor of its own, which cannot be rebuilt; --trust loads it"
            )
        return StateDependentSpread(self.take(key), expln=bool(policy_kwargs.get("use_expln", False)), features=own if has_own else None)

    def _linear(self, name: str) -> nn.Linear:
        weight = self.take(f"{name}.weight")
        bias = self.take(f"{name}.bias") if f"{name}.bias" in self.weights else None
        if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
            raise NotPlainError(f"{self.source}: the layer {name!r} is not a fully connected one; --trust loads a custom policy")
        with torch.random.fork_rng(devices=[]):  # it draws weights, which nobody needs; torch's way around that imports for half a second
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        linear.weight.data = weight
        if bias is not None:
            linear.bias.data = bias
        return lay_out(linear)


def own_extractor_of(weights: Mapping[str, Tensor], policy_kwargs: Mapping[str, Any]) -> str | None:
    """What reads the agent's observations, where it is not Stable-Baselines3's FlattenExtractor, or CombinedExtractor of vectors.

    Returns:
        The class's name, if the file tells it.
    """
    name = class_name(policy_kwargs.get("features_extractor_class"))
    if name not in (None, "FlattenExtractor", "CombinedExtractor"):
        return name
    has_weights = any("features_extractor." in key and "sde_features_extractor." not in key for key in weights)
    unnamed = name is None and policy_kwargs.get("features_extractor_class") is not None
    return "a custom extractor" if has_weights or unnamed else None


def activation_of(policy_kwargs: Mapping[str, Any], kind: str, source: str) -> type[nn.Module]:
    """The activation between a policy's layers: the user's choice, else that of the kind of network.

    Raises:
        NotPlainError: for one that is not among ``ACTIVATIONS``.
    """
    chosen = policy_kwargs.get("activation_fn")
    if chosen is None:
        return nn.Tanh if kind == "on_policy" else nn.ReLU
    name = class_name(chosen)
    if name not in ACTIVATIONS or "'torch.nn." not in str(chosen):
        known = ", ".join(ACTIVATIONS)
        raise NotPlainError(f"{source}: the activation {str(chosen)[:80]!r} cannot be rebuilt ({known} can); --trust loads it")
    return getattr(nn, name)


def _discrete(family: Family, source: str) -> Categorical:
    if not isinstance(family, Categorical):
        raise RequestError(f"{source}: its network names one of several actions, but its action space does not; the file is inconsistent")
    return family


def _required(bounds: ActionBounds | None, source: str) -> ActionBounds:
    if bounds is None:
        raise RequestError(f"{source}: its network names a continuous action, but its action space is discrete; the file is inconsistent")
    return bounds


def _outputs(body: nn.Module) -> int:
    return [module for module in body.modules() if isinstance(module, nn.Linear)][-1].out_features


def _check_widths(network: ActingNetwork, width: int, source: str, extractor: ExtractorMaker | None) -> None:
    """Run one zero observation through, so that weights that do not fit are found here and not in the middle of a job."""
    try:
        with torch.no_grad():
            targets = network(torch.zeros(1, width))
    except RuntimeError as error:
        if extractor is not None:
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
