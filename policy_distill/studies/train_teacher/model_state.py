"""What a Stable-Baselines3 model needs to be trained further, as plain data: nothing of it has to be unpickled."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

COUNTERS = ("num_timesteps", "_episode_num", "_n_updates", "_n_calls", "exploration_rate", "_current_progress_remaining")
"""Attributes of models that count; not every algorithm has each."""
EPISODES = ("ep_info_buffer", "ep_success_buffer")
"""The last episodes in training, of which logs show the mean."""


def agent_of(model: Any) -> dict[str, Any]:
    """A copy of what a model acts with, and how far it is trained: tensors, statistics of ``VecNormalize`` and counters."""
    _, variables = model._get_torch_save_params()
    return _copied(
        {
            "policy": model.policy.state_dict(),
            "variables": {name: getattr(model, name).detach() for name in variables if getattr(model, name) is not None},
            "counters": {name: vars(model)[name] for name in COUNTERS if name in vars(model)},
            "statistics": {
                name: {"mean": np.asarray(part.mean), "var": np.asarray(part.var), "count": float(part.count)}
                for name, part in _statistics(model).items()
            },
        }
    )


def restore_agent(model: Any, agent: Mapping[str, Any]) -> None:
    """Put ``agent_of`` into a model of the same recipe.

    Raises:
        Exception: of any kind, if it is of another model.
    """
    model.policy.load_state_dict(agent["policy"])
    for name, value in agent["variables"].items():
        getattr(model, name).data.copy_(value)
    for name in agent["counters"].keys() & set(COUNTERS):
        setattr(model, name, agent["counters"][name])
    for name, part in _statistics(model).items():
        saved = agent["statistics"][name]
        if saved["mean"].shape != np.shape(part.mean):
            raise ValueError(f"the statistics of {name} are of shape {saved['mean'].shape}")
        part.mean, part.var, part.count = saved["mean"], saved["var"], saved["count"]
    if hasattr(model, "weights"):  # ARS moves this vector, and copies it into the policy
        model.weights = torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach()


def training_of(model: Any) -> dict[str, Any]:
    """What a model's training needs besides ``agent_of`` and a replay buffer: optimisers, random generators and the last episodes."""
    names, _ = model._get_torch_save_params()
    return {
        "optimizers": {name: state for name, state in model.get_parameters().items() if name in names and name != "policy"},
        "episodes": {name: list(getattr(model, name) or ()) for name in EPISODES},
        "generators": {
            "python": random.getstate(),
            "numpy": np.random.get_state(legacy=False),  # noqa: NPY002 - Stable-Baselines3 draws from it
            "torch": torch.get_rng_state(),
            "device": torch.cuda.get_rng_state(model.device) if model.device.type == "cuda" else None,
            "actions": model.action_space.np_random.bit_generator.state,
        },
    }


def restore_training(model: Any, training: Mapping[str, Any]) -> None:
    """Put ``training_of`` into a model of the same recipe, but for the global random generators, see ``restore_generators``."""
    for name, state in training["optimizers"].items():
        if name not in model._get_torch_save_params()[0]:
            raise ValueError(f"{name} is no part of the model")
        owner, _, attribute = name.rpartition(".")
        getattr(getattr(model, owner) if owner else model, attribute).load_state_dict(state)
    for name in EPISODES:
        setattr(model, name, deque(training["episodes"][name], maxlen=model._stats_window_size))
    model.action_space.np_random.bit_generator.state = training["generators"]["actions"]


def restore_generators(model: Any, training: Mapping[str, Any]) -> None:
    """Set the global random generators. Environments set them when they are reset with a seed, so this comes after it."""
    generators = training["generators"]
    random.setstate(generators["python"])
    np.random.set_state(generators["numpy"])  # noqa: NPY002
    torch.set_rng_state(generators["torch"])
    if generators["device"] is not None and model.device.type == "cuda":
        torch.cuda.set_rng_state(generators["device"], model.device)


def described(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """``value``, which is made of mappings, sequences, arrays and numbers, as JSON; its arrays are added to ``arrays`` under ``name``."""
    match value:
        case Tensor() | np.ndarray():
            arrays[name] = np.array(value.detach().cpu().numpy() if isinstance(value, Tensor) else value, order="C")
            return {"tensor" if isinstance(value, Tensor) else "array": name}
        case np.generic():
            return value.item()
        case Mapping():
            return {"mapping": [[key, described(item, f"{name}/{key}", arrays)] for key, item in value.items()]}
        case list() | tuple():
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [described(item, f"{name}/{index}", arrays) for index, item in enumerate(value)]}
        case None | bool() | int() | float() | str():
            return value
    raise TypeError(f"{name} is a {type(value).__name__}, which is not saved")


def restored(data: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The value that ``described`` described."""
    if not isinstance(data, dict):
        return data
    ((kind, content),) = data.items()
    match kind:
        case "tensor":
            return torch.from_numpy(arrays[content].copy())
        case "array":
            return arrays[content].copy()
        case "mapping":
            return {key: restored(item, arrays) for key, item in content}
        case "list":
            return [restored(item, arrays) for item in content]
        case "tuple":
            return tuple(restored(item, arrays) for item in content)
    raise ValueError(f"{kind} is no kind of value")


def _statistics(model: Any) -> dict[str, Any]:
    """The running means of a model's ``VecNormalize``: of the returns, and of the observations or their parts."""
    normalize = model.get_vec_normalize_env()
    if normalize is None:
        return {}
    seen = getattr(normalize, "obs_rms", {})
    parts = {f"observations {key}": part for key, part in seen.items()} if isinstance(seen, dict) else {"observations": seen}
    return {"returns": normalize.ret_rms, **parts}


def _copied(value: Any) -> Any:
    """A copy on the CPU, which further training does not change."""
    match value:
        case Tensor():
            return value.detach().cpu().clone()
        case np.ndarray():
            return value.copy()
        case Mapping():
            return {key: _copied(item) for key, item in value.items()}
    return value
