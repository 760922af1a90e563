"""Detection of the algorithm that saved an agent's zip, by the fields of its member ``data``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def algorithm_of_fields(data: Mapping[str, Any]) -> str | None:
    """Name of the algorithm that saved ``data``, for any policy class; None if unknown.

    The fields are attributes of the algorithm's class in all versions of Stable-Baselines3 and sb3-contrib. Algorithms with PPO's fields
    are distinguished by the modules of their policy and rollout buffer.
    """
    if "gae_lambda" in data:
        modules = [_module(data.get(name)) for name in ("policy_class", "rollout_buffer_class")]
        if "_last_lstm_states" in data or any(".recurrent" in module for module in modules):
            return "ppo_lstm"
        if any(".maskable" in module for module in modules):
            return "ppo_mask"
        return "trpo" if "cg_max_steps" in data else "ppo" if "clip_range" in data else "a2c"
    if "exploration_fraction" in data:
        return "qrdqn" if "n_quantiles" in data else "dqn"
    if "top_quantiles_to_drop_per_net" in data:
        return "tqc"
    if "target_entropy" in data:
        return "crossq" if "policy_delay" in data else "sac"
    if "policy_delay" in data:
        # SB3's DDPG is TD3 without its three additions; the single critic is saved with the policy's arguments.
        kwargs = data.get("policy_kwargs")
        single = isinstance(kwargs, dict) and kwargs.get("n_critics") == 1
        return "ddpg" if single and data["policy_delay"] == 1 else "td3"
    return "ars" if "n_delta" in data else None


def _module(saved: object) -> str:
    module = saved.get("__module__") if isinstance(saved, dict) else None
    return module if isinstance(module, str) and module.startswith("sb3_contrib.") else ""
