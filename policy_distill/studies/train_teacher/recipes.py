"""Recipes in agents/ALGO.yml: the settings of a training, and the untrained model of Stable-Baselines3."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import yaml

from policy_distill.config import EnvironmentOptions, RequestError
from policy_distill.config.environment import Arguments, WrapperRequest
from policy_distill.environments import specs as environments
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.studies.train_teacher.publish import SCHEDULES
from policy_distill.teachers.networks.extractor import extractor_class

ALGORITHMS = {
    **dict.fromkeys(("a2c", "ddpg", "dqn", "ppo", "sac", "td3"), "stable_baselines3"),
    **dict.fromkeys(("ars", "ppo_lstm", "ppo_mask", "qrdqn", "tqc", "trpo"), "sb3_contrib"),
}
"""Algorithm -> the package that trains it."""

CLASS_NAMES = {"ppo_lstm": "RecurrentPPO", "ppo_mask": "MaskablePPO"}
"""Algorithm -> its class, where that is not the same name in capitals."""

ACTIVATIONS = {"elu": "ELU", "gelu": "GELU", "leaky_relu": "LeakyReLU", "relu": "ReLU", "silu": "SiLU", "tanh": "Tanh"}
"""Name in a recipe -> class of ``torch.nn``."""

RECIPE_KEYS = ("n_envs", "n_timesteps", "noise_std", "noise_type", "normalize", "policy", "policy_kwargs")
"""Keys of a recipe besides the arguments of the algorithm's class."""


@dataclass(frozen=True)
class TrainTeacherConfig:
    """Settings for training a teacher."""

    algo: str = ""
    """a2c, ars, ddpg, dqn, ppo, ppo_lstm, ppo_mask, qrdqn, sac, td3, tqc or trpo."""
    env: str = ""
    """A Gymnasium id or an entry of envs/."""
    env_kwargs: Arguments = field(default_factory=dict)
    """Keyword arguments of the environment."""
    wrapper: tuple[WrapperRequest, ...] | None = None
    """Wrappers around the environment, innermost first: a known name or module:Class; '{"NAME": {"argument": 1}}' with arguments."""
    frame_stack: int | None = None
    """Number of observations to stack, outside the wrappers and inside the normalisation."""
    max_episode_steps: int | None = None
    """Truncate episodes after this many steps, instead of the limit that the environment is registered with."""
    extractor: str | None = None
    """Read observations through a features extractor of your own, file.py:Class (policy_kwargs.features_extractor_kwargs)."""
    output: str = "agents"
    """Folder in which the agent's folder ALGO/ENV_RUN is created."""
    seed: int = 0
    """Random seed of the networks, the environments and the exploration."""
    n_timesteps: int | None = None
    """Environment steps. Left out: the recipe's."""
    n_envs: int | None = None
    """Number of parallel environments. Left out: the recipe's."""
    hyperparams: Mapping[str, Any] = field(default_factory=dict)
    """Hyper-parameters that replace or extend the recipe's."""
    eval_episodes: int = 100
    """Number of episodes for the return on the agent's card, on separate seeds."""
    validation_episodes: int = 50
    """Number of episodes of each periodic evaluation, on separate seeds; the best policy is kept."""
    eval_freq: int = 25_000
    """Environment steps between two periodic evaluations; reduced in short trainings so that there are at least twenty."""
    device: str = "cpu"
    """Device for training: cpu, cuda, auto. Small networks are fastest on the CPU."""
    run_folder: str | None = None
    """Folder of working files: checkpoint and TensorBoard log. Left out: runs/train_teacher/ALGO-ENV-SEED."""
    tensorboard: bool = True
    """Write a TensorBoard log."""

    def __post_init__(self) -> None:
        if self.algo not in ALGORITHMS:
            raise RequestError(f"algo is {self.algo!r}; it must be one of {', '.join(sorted(ALGORITHMS))}{_nearest(self.algo, ALGORITHMS)}")
        if not self.env:
            raise RequestError("env is ''; it must be a Gymnasium id or an entry of envs/")
        if self.device not in ("cpu", "cuda", "auto"):
            raise RequestError(f"device is {self.device!r}; it must be cpu, cuda or auto")
        lowest = {"seed": 0, "n_timesteps": 1, "n_envs": 1, "eval_episodes": 2, "validation_episodes": 1, "eval_freq": 1}
        for name, limit in lowest.items():
            value = getattr(self, name)
            if value is not None and value < limit:
                raise RequestError(f"{name} is {value!r}; it must be >= {limit}")
        _ = self.environment  # checks it

    @property
    def environment(self) -> EnvironmentOptions:
        """The environment's settings."""
        return EnvironmentOptions(self.env, self.env_kwargs, self.wrapper, self.frame_stack, self.max_episode_steps)

    def command(self) -> str:
        """The command that trains this agent again."""
        names = ("n_timesteps", "n_envs", "eval_episodes", "validation_episodes", "eval_freq")
        default = TrainTeacherConfig(algo=self.algo, env=self.env)
        changed = [f"--{name} {getattr(self, name)}" for name in names if getattr(self, name) != getattr(default, name)]
        if options := self.environment.options():
            changed.append(options)
        if self.extractor:
            changed.append(f"--extractor {shlex.quote(self.extractor)}")
        if self.hyperparams:
            changed.append(f"--hyperparams {shlex.quote(json.dumps(dict(self.hyperparams)))}")
        return " ".join([f"python scripts/train_teacher.py --algo {self.algo} --env {self.env} --seed {self.seed}", *changed])


@dataclass(frozen=True)
class Recipe:
    """What a training follows from.

    Attributes:
        name: of the environment, in file names.
        spec: the environment.
        settings: hyper-parameters of agents/ALGO.yml with the user's.
    """

    name: str
    spec: EnvironmentSpec
    settings: dict[str, Any]

    @property
    def n_timesteps(self) -> int:
        """Environment steps of the training."""
        return int(self.settings["n_timesteps"])


def recipe_for(config: TrainTeacherConfig) -> Recipe:
    """The recipe of a training.

    Raises:
        RequestError: if there is none, or a hyper-parameter is wrong.
    """
    spec = environments.named(config.environment)
    name = (config.env if config.env in environments.entries() else spec.id).replace("/", "-").replace(":", "-")
    given = {"n_envs": config.n_envs, "n_timesteps": config.n_timesteps}
    settings = {"policy": "MlpPolicy", **read_recipe(config.algo, name), **config.hyperparams}
    settings.update({key: value for key, value in given.items() if value is not None})
    _check_recipe(config.algo, name, _algorithm(config.algo), settings)
    return Recipe(name, spec, settings)


def read_recipe(algo: str, env: str) -> dict[str, Any]:
    """Hyper-parameters for ``env`` in ``agents/ALGO.yml``, else those of its entry ``default``, else none."""
    path = environments.data_dir("agents") / f"{algo}.yml"
    recipes = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return dict(recipes.get(env) or recipes.get("default") or {})


def new_model(config: TrainTeacherConfig, recipe: Recipe, log: str | None) -> Any:
    """An untrained model with its environments.

    Args:
        config, recipe: what is to be trained.
        log: folder of the TensorBoard log; None: none is written.

    Raises:
        RequestError: if the algorithm does not fit the environment or a hyper-parameter.
    """
    from stable_baselines3.common.vec_env import VecNormalize

    settings = recipe.settings
    vec_env = _vector_environment(recipe.spec, int(settings.get("n_envs", 1)))
    if normalize := settings.get("normalize"):
        given = dict(normalize) if isinstance(normalize, Mapping) else {}
        vec_env = VecNormalize(vec_env, **{"gamma": settings.get("gamma", 0.99), **given})
    arguments = _arguments(settings, vec_env.action_space)
    if config.extractor:
        arguments["policy_kwargs"]["features_extractor_class"] = extractor_class(config.extractor)
    try:
        return _algorithm(config.algo)(env=vec_env, seed=config.seed, device=config.device, tensorboard_log=log, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise RequestError(f"{config.algo} cannot be trained on {recipe.name} with this recipe: {' '.join(str(error).split())}") from error


def _algorithm(algo: str) -> Any:
    try:
        return getattr(importlib.import_module(ALGORITHMS[algo]), CLASS_NAMES.get(algo, algo.upper()))
    except ModuleNotFoundError as error:
        raise RequestError(f'{algo} needs sb3-contrib: pip install "policy-distill[contrib]"') from error


def _check_recipe(algo: str, env: str, algorithm: Any, recipe: Mapping[str, Any]) -> None:
    reserved = {"self", "env", "seed", "device", "tensorboard_log", "verbose", "_init_setup_model"}
    allowed = sorted({*inspect.signature(algorithm.__init__).parameters, *RECIPE_KEYS} - reserved)
    for name in recipe:
        if name not in allowed:
            raise RequestError(f"{name!r} is not a hyper-parameter of {algo}{_nearest(name, allowed) or '; known: ' + ', '.join(allowed)}")
    for name in ("n_timesteps", "n_envs"):
        value = recipe.get(name, 1 if name == "n_envs" else None)
        if value is None:
            raise RequestError(f"agents/{algo}.yml has no recipe for {env} and no default; pass n_timesteps, and hyperparams if need be")
        if not isinstance(value, (int, float)) or value < 1 or value != int(value):
            raise RequestError(f"{name} is {value!r}; it must be a whole number >= 1")


def _arguments(recipe: Mapping[str, Any], action_space: gym.Space) -> dict[str, Any]:
    """Arguments of the algorithm's class: the recipe with names and schedules replaced by objects."""
    arguments = {name: value for name, value in recipe.items() if name not in RECIPE_KEYS}
    for name in SCHEDULES:
        if isinstance(arguments.get(name), str):
            arguments[name] = _schedule(name, arguments[name])
    if isinstance(arguments.get("train_freq"), list):
        arguments["train_freq"] = tuple(arguments["train_freq"])
    if "noise_type" in recipe:
        arguments["action_noise"] = _noise(recipe["noise_type"], float(recipe.get("noise_std", 0.1)), action_space)
    policy_kwargs = recipe.get("policy_kwargs") or {}
    if not isinstance(policy_kwargs, Mapping):
        raise RequestError(f"policy_kwargs is {policy_kwargs!r}; it must be plain data such as {{net_arch: [64, 64], activation_fn: relu}}")
    if "activation_fn" in policy_kwargs:
        if policy_kwargs["activation_fn"] not in ACTIVATIONS:
            raise RequestError(
                f"policy_kwargs.activation_fn is {policy_kwargs['activation_fn']!r}; it must be one of {', '.join(ACTIVATIONS)}"
            )
        policy_kwargs = {**policy_kwargs, "activation_fn": getattr(torch.nn, ACTIVATIONS[policy_kwargs["activation_fn"]])}
    return {**arguments, "policy": recipe.get("policy", "MlpPolicy"), "policy_kwargs": dict(policy_kwargs)}


def _schedule(name: str, text: str) -> Callable[[float], float]:
    try:
        start = float(text.removeprefix("lin_"))
    except ValueError as error:
        raise RequestError(f"{name} is {text!r}; it must be a number, or lin_NUMBER (linear decay to zero)") from error
    return (lambda progress_remaining: start * progress_remaining) if text.startswith("lin_") else (lambda progress_remaining: start)


def _noise(kind: str, std: float, action_space: gym.Space) -> Any:
    from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise

    kinds = {"normal": NormalActionNoise, "ornstein-uhlenbeck": OrnsteinUhlenbeckActionNoise}
    if kind not in kinds:
        raise RequestError(f"noise_type is {kind!r}; it must be one of {', '.join(kinds)}")
    return kinds[kind](mean=np.zeros(action_space.shape or ()), sigma=np.full(action_space.shape or (), std))


def _vector_environment(spec: EnvironmentSpec, num_envs: int) -> Any:
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv

    return DummyVecEnv([lambda: Monitor(environments.make(spec))] * num_envs)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
