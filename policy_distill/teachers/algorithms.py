"""Records of algorithms: how a zip is recognised, where its networks are in the state dict, and what they output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Keys:
    """Prefixes of a network in the state dict of a policy.

    Attributes:
        head: prefix of the last layers; for numbered critics without the number.
        hidden: prefixes of the layers before, each followed by an activation; prefixes without weights are skipped.
        features: prefixes of a custom features extractor; the first with weights is used.
    """

    head: str
    hidden: tuple[str, ...] = ()
    features: tuple[str, ...] = ()


def _always(policy_kwargs: Mapping[str, Any], num_layers: int) -> bool:
    return True


def _if_asked(policy_kwargs: Mapping[str, Any], num_layers: int) -> bool:
    return bool(policy_kwargs.get("squash_output", False))


def _unless_linear(policy_kwargs: Mapping[str, Any], num_layers: int) -> bool:
    """For ARS: the linear policy clips its actions; an MlpPolicy of one layer has an (empty) net_arch."""
    return bool(policy_kwargs.get("squash_output", num_layers > 1 or "net_arch" in policy_kwargs))


@dataclass(frozen=True)
class Layout:
    """Structure of a policy's networks, which several algorithms may share.

    Attributes:
        signs: prefixes of weights; any of them identifies this layout.
        actor: the acting network.
        activation: default activation between layers, a name in ``torch.nn``.
        scores: the actor's outputs for discrete actions, ``logits`` or ``q_values``; None if only continuous actions are supported.
        several_choices: whether MultiDiscrete and MultiBinary action spaces are supported.
        quantiles: whether each score is the mean of several outputs.
        squashes: whether continuous actions pass through tanh, from the policy's arguments and the number of the head's layers.
        log_std: a Gaussian's log standard deviation: a tensor, or the prefix of a layer; None: actions are deterministic.
        sde_features: prefix of gSDE's separate latent layers.
        spread_acts: whether ``log_std`` counts among the acting parameters.
        value: the critic of states, V(s).
        action_values: the critics of actions, Q(s, a), numbered from 0.
    """

    signs: tuple[str, ...]
    actor: Keys
    activation: str = "ReLU"
    scores: str | None = None
    several_choices: bool = False
    quantiles: bool = False
    squashes: Callable[[Mapping[str, Any], int], bool] = _always
    log_std: str | None = None
    sde_features: str = ""
    spread_acts: bool = False
    value: Keys | None = None
    action_values: Keys | None = None

    @property
    def has_critic(self) -> bool:
        """Whether there is a critic for states or actions."""
        return self.value is not None or self.values_actions

    @property
    def values_actions(self) -> bool:
        """Whether there are Q-values of single actions."""
        return self.action_values is not None or self.scores == "q_values"


@dataclass(frozen=True)
class Algorithm:
    """One algorithm of Stable-Baselines3 or sb3-contrib.

    Attributes:
        name: its name in the RL Zoo.
        sb3_class: package and name of its class.
        fields: keys of the zip's member ``data`` that all versions of this algorithm save.
        layout: structure of its networks; None if they cannot be rebuilt.
        tells: an additional condition on ``data``.
        averages_critics: whether an action's value is the mean of all critics' outputs, instead of their minimum.
        has_memory: whether its policy has a state.
        masks: whether it uses the environment's action masks.
    """

    name: str
    sb3_class: str
    fields: tuple[str, ...]
    layout: Layout | None
    tells: Callable[[Mapping[str, Any]], bool] = lambda data: True
    averages_critics: bool = False
    has_memory: bool = False
    masks: bool = False


ON_POLICY = Layout(
    signs=("mlp_extractor.", "value_net."),
    # shared_net: until SB3 1.8
    actor=Keys("action_net", ("mlp_extractor.shared_net", "mlp_extractor.policy_net"), ("pi_features_extractor", "features_extractor")),
    activation="Tanh",
    scores="logits",
    several_choices=True,
    squashes=_if_asked,
    log_std="log_std",
    sde_features="sde_features_extractor",
    value=Keys("value_net", ("mlp_extractor.shared_net", "mlp_extractor.value_net"), ("vf_features_extractor", "features_extractor")),
)
RECURRENT = replace(ON_POLICY, signs=("lstm_actor.",), actor=replace(ON_POLICY.actor, features=()), value=None)
"""The LSTM is between the features extractor and the remaining layers."""
CRITICS = Keys("critic.qf", (), ("critic.features_extractor",))
SAC = Layout(
    signs=("actor.latent_pi.", "actor.log_std"),  # without hidden layers there is no latent_pi
    actor=Keys("actor.mu", ("actor.latent_pi",), ("actor.features_extractor",)),
    log_std="actor.log_std",
    sde_features="actor.sde_features_extractor",
    spread_acts=True,
    action_values=CRITICS,
)
TD3 = Layout(signs=("actor.mu.",), actor=Keys("actor.mu", (), ("actor.features_extractor",)), action_values=CRITICS)
DQN = Layout(signs=("q_net.q_net.",), actor=Keys("q_net.q_net", (), ("q_net.features_extractor",)), scores="q_values")
QRDQN = Layout(
    signs=("quantile_net.quantile_net.",),
    actor=Keys("quantile_net.quantile_net", (), ("quantile_net.features_extractor",)),
    scores="q_values",
    quantiles=True,
)
ARS = Layout(signs=("action_net.",), actor=Keys("action_net"), scores="logits", squashes=_unless_linear)


def _module_says(word: str, data: Mapping[str, Any]) -> bool:
    """Whether the policy's or the rollout buffer's class is from a module of sb3-contrib whose name contains ``word``."""
    saved = [data.get(name) for name in ("policy_class", "rollout_buffer_class")]
    modules = [one.get("__module__") for one in saved if isinstance(one, dict)]
    return any(isinstance(module, str) and module.startswith("sb3_contrib.") and word in module for module in modules)


def _is_recurrent(data: Mapping[str, Any]) -> bool:
    return "_last_lstm_states" in data or _module_says(".recurrent", data)


def _is_maskable(data: Mapping[str, Any]) -> bool:
    return _module_says(".maskable", data)


def _has_one_critic(data: Mapping[str, Any]) -> bool:
    """Whether this is DDPG: SB3 saves it as TD3 with one critic among the policy's arguments."""
    kwargs = data.get("policy_kwargs")
    return isinstance(kwargs, dict) and kwargs.get("n_critics") == 1 and data["policy_delay"] == 1


ALGORITHMS = {
    algorithm.name: algorithm
    for algorithm in (
        Algorithm("ppo_lstm", "sb3_contrib.RecurrentPPO", ("gae_lambda",), RECURRENT, _is_recurrent, has_memory=True),
        Algorithm("ppo_mask", "sb3_contrib.MaskablePPO", ("gae_lambda",), ON_POLICY, _is_maskable, masks=True),
        Algorithm("trpo", "sb3_contrib.TRPO", ("gae_lambda", "cg_max_steps"), ON_POLICY),
        Algorithm("ppo", "stable_baselines3.PPO", ("gae_lambda", "clip_range"), ON_POLICY),
        Algorithm("a2c", "stable_baselines3.A2C", ("gae_lambda",), ON_POLICY),
        Algorithm("qrdqn", "sb3_contrib.QRDQN", ("exploration_fraction", "n_quantiles"), QRDQN),
        Algorithm("dqn", "stable_baselines3.DQN", ("exploration_fraction",), DQN),
        Algorithm("tqc", "sb3_contrib.TQC", ("top_quantiles_to_drop_per_net",), SAC, averages_critics=True),
        Algorithm("crossq", "sb3_contrib.CrossQ", ("target_entropy", "policy_delay"), SAC),
        Algorithm("sac", "stable_baselines3.SAC", ("target_entropy",), SAC),
        Algorithm("ddpg", "stable_baselines3.DDPG", ("policy_delay",), TD3, _has_one_critic),
        Algorithm("td3", "stable_baselines3.TD3", ("policy_delay",), TD3),
        Algorithm("ars", "sb3_contrib.ARS", ("n_delta",), ARS),
    )
}  # fmt: skip
"""Algorithms by name. The first match identifies a zip; among those with the same layout the last is the simplest."""


def layout_of(name: str | None) -> Layout | None:
    """Layout of an algorithm's networks; None if the algorithm is unknown or they cannot be rebuilt."""
    return ALGORITHMS[name].layout if name in ALGORITHMS else None


def algorithms_with(trait: Callable[[Layout], bool]) -> str:
    """Names of the algorithms whose networks have ``trait``, for messages."""
    return ", ".join(sorted(name for name, one in ALGORITHMS.items() if one.layout is not None and trait(one.layout)))


def layout_of_weights(keys: Mapping[str, Any]) -> Layout | None:
    """The layout of a state dict with these keys; None if it is unknown."""
    layouts = [algorithm.layout for algorithm in ALGORITHMS.values() if algorithm.layout is not None]
    return next((layout for layout in layouts if any(key.startswith(layout.signs) for key in keys)), None)


def algorithm_of_fields(data: Mapping[str, Any]) -> str | None:
    """Name of the algorithm that saved ``data``, regardless of its policy's class; None if it is unknown."""
    matches = (one.name for one in ALGORITHMS.values() if all(field in data for field in one.fields) and one.tells(data))
    return next(matches, None)


def algorithm_of_networks(layout: Layout, data: Mapping[str, Any]) -> str:
    """Name of the algorithm by its saved fields, if they agree with the layout, else the simplest algorithm of the layout."""
    name = algorithm_of_fields(data)
    if name is not None and layout_of(name) is layout:
        return name
    return [algorithm.name for algorithm in ALGORITHMS.values() if algorithm.layout is layout][-1]
