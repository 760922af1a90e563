"""Training a teacher with Stable-Baselines3 from a recipe in agents/ALGO.yml, into a folder in the RL Zoo's layout."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import platform
import shlex
import sys
import zipfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import yaml

from policy_distill import environments
from policy_distill.config import RequestError

ALGORITHMS = {
    **dict.fromkeys(("a2c", "ddpg", "dqn", "ppo", "sac", "td3"), "stable_baselines3"),
    **dict.fromkeys(("ars", "qrdqn", "tqc", "trpo"), "sb3_contrib"),
}
"""Algorithm -> the package that trains it; the class bears the same name in capitals."""

ACTIVATIONS = {"relu": "ReLU", "tanh": "Tanh", "elu": "ELU", "silu": "SiLU", "leaky_relu": "LeakyReLU", "gelu": "GELU"}
"""Name in a recipe -> class of ``torch.nn``."""

RECIPE_KEYS = ("n_envs", "n_timesteps", "policy", "policy_kwargs", "normalize", "noise_type", "noise_std")
"""What a recipe may hold besides the arguments of the algorithm's class."""

SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf")
"""Hyper-parameters that may fall along a line to zero: ``lin_0.001``."""

FINAL_SEED, VALIDATION_SEED = 1_000_000, 2_000_000
"""First seeds of the final and of the periodic evaluation, far from those of training, which are the run's own and the next few."""


@dataclass(frozen=True)
class TrainTeacherConfig:
    """One training of a teacher."""

    algo: str = ""
    """a2c, ars, ddpg, dqn, ppo, qrdqn, sac, td3, tqc or trpo."""
    env: str = ""
    """A Gymnasium id or an entry of envs/."""
    output: str = "agents"
    """Where the agent's folder ALGO/ENV_RUN is made."""
    seed: int = 0
    """Of the networks, the environments and the exploration."""
    n_timesteps: int | None = None
    """Environment steps. Left out: the recipe's."""
    n_envs: int | None = None
    """Environments stepped side by side. Left out: the recipe's."""
    hyperparams: Mapping[str, Any] = field(default_factory=dict)
    """Replace or add to the recipe's hyper-parameters."""
    eval_episodes: int = 100
    """Episodes behind the return that is published on the agent's card, on seeds of their own."""
    validation_episodes: int = 50
    """Episodes, on other seeds, behind each figure that decides which policy is kept."""
    eval_freq: int = 25_000
    """Environment steps between these figures."""
    device: str = "cpu"
    """Where the networks are trained; small ones are fastest on the CPU."""
    run_folder: str | None = None
    """Working files: TensorBoard's log and the best policy so far. Left out: runs/train_teacher/ALGO-ENV-SEED."""
    tensorboard: bool = True
    """Write TensorBoard's log."""
    progress: bool = True
    """Show a progress bar where the output is a terminal."""

    def __post_init__(self) -> None:
        if self.algo not in ALGORITHMS:
            raise RequestError(f"algo is {self.algo!r}; it must be {', '.join(sorted(ALGORITHMS))}{_nearest(self.algo, ALGORITHMS)}")
        if not self.env:
            raise RequestError("env is ''; name a Gymnasium id or an entry of envs/")
        for name, lowest in {"seed": 0, "eval_episodes": 2, "validation_episodes": 1, "eval_freq": 1}.items():
            if getattr(self, name) < lowest:
                raise RequestError(f"{name} is {getattr(self, name)!r}; it must be >= {lowest}")
        for name in ("n_timesteps", "n_envs"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise RequestError(f"{name} is {getattr(self, name)!r}; it must be >= 1")

    def command(self) -> str:
        """The command that trains this agent again."""
        parts = ["python scripts/train_teacher.py", f"--algo {self.algo}", f"--env {self.env}", f"--seed {self.seed}"]
        default = TrainTeacherConfig(algo=self.algo, env=self.env)
        for name in ("n_timesteps", "n_envs", "eval_episodes", "validation_episodes", "eval_freq"):
            if getattr(self, name) != getattr(default, name):
                parts.append(f"--{name} {getattr(self, name)}")
        if self.hyperparams:
            parts.append(f"--hyperparams {shlex.quote(json.dumps(dict(self.hyperparams)))}")
        return " ".join(parts)


@dataclass(frozen=True)
class TrainedTeacher:
    """An agent's folder and what the agent earned."""

    path: Path
    """Folder ALGO/ENV_RUN."""
    mean: float
    """Of the return over ``episodes`` deterministic episodes, one seed each."""
    std: float
    """Of the same returns."""
    episodes: int
    """How many there were."""
    steps: int
    """Environment steps of the whole training; the policy that is kept may be an earlier one."""


def train_teacher(config: TrainTeacherConfig) -> TrainedTeacher:
    """Train an agent, keep its best policy, measure it on fresh seeds and write its folder with a card.

    Raises:
        RequestError: in one line, if the environment, the algorithm or a hyper-parameter cannot be used.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on networks of this size more threads only wait for each other
    try:
        return _train(config)
    finally:
        torch.set_num_threads(threads)


def read_recipe(algo: str, env: str) -> dict[str, Any]:
    """Hyper-parameters of ``agents/ALGO.yml`` for ``env``, or those of its entry ``default``."""
    path = environments.data_dir("agents") / f"{algo}.yml"
    recipes = yaml.safe_load(path.read_text()) if path.is_file() else {}
    if env not in recipes and "default" not in recipes:
        raise RequestError(f"there is no recipe for {env} in agents/{algo}.yml and no default; pass the hyper-parameters")
    return dict(recipes.get(env, recipes.get("default")))


def _train(config: TrainTeacherConfig) -> TrainedTeacher:
    from stable_baselines3.common.callbacks import CallbackList
    from stable_baselines3.common.vec_env import VecNormalize

    spec = environments.resolve(config.env)
    algorithm = _algorithm(config.algo)
    recipe = {**read_recipe(config.algo, config.env), **config.hyperparams}
    if config.n_envs is not None:
        recipe["n_envs"] = config.n_envs
    if config.n_timesteps is not None:
        recipe["n_timesteps"] = config.n_timesteps
    _check_recipe(config.algo, algorithm, recipe)

    run_folder = Path(config.run_folder or f"runs/train_teacher/{config.algo}-{config.env.replace('/', '-')}-{config.seed}")
    run_folder.mkdir(parents=True, exist_ok=True)
    n_envs, n_timesteps = int(recipe.get("n_envs", 1)), int(recipe["n_timesteps"])
    vec_env = _vector_environment(spec, n_envs)
    normalize = recipe.get("normalize", False)
    if normalize:
        vec_env = VecNormalize(vec_env, gamma=recipe.get("gamma", 0.99), **(normalize if isinstance(normalize, Mapping) else {}))
    try:
        model = algorithm(
            env=vec_env,
            seed=config.seed,
            device=config.device,
            tensorboard_log=str(run_folder / "tensorboard") if config.tensorboard else None,
            **_arguments(recipe, vec_env.action_space),
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise RequestError(f"{config.algo} cannot be trained on {config.env}: {' '.join(str(error).split())}") from error
    keep_best = _keep_best(config, spec, run_folder)
    model.learn(n_timesteps, callback=CallbackList([keep_best]), progress_bar=config.progress and sys.stderr.isatty(), tb_log_name="run")
    steps = model.num_timesteps

    best = algorithm.load(run_folder / "best.zip", device=config.device, **_small_buffers(algorithm))
    statistics = VecNormalize.load(str(run_folder / "best.pkl"), _vector_environment(spec, 1)) if normalize else None
    seeds = range(FINAL_SEED, FINAL_SEED + config.eval_episodes)
    returns = evaluate_model(best, spec, seeds, statistics)
    vec_env.close()
    trained = TrainedTeacher(
        path=_next_folder(Path(config.output) / config.algo, config.env.replace("/", "-")),
        mean=float(returns.mean()),
        std=float(returns.std()),
        episodes=len(returns),
        steps=steps,
    )
    _write_agent(config, spec, recipe, best, statistics, trained, keep_best.best_steps)
    return trained


def evaluate_model(model: Any, spec: environments.EnvironmentSpec, seeds: range, statistics: Any = None) -> np.ndarray:
    """Returns ``[len(seeds)]`` of a model's deterministic policy, one episode a seed.

    Args:
        model: anything with ``predict``.
        spec: the environment.
        seeds: of the episodes.
        statistics: the ``VecNormalize`` that the model was trained behind.
    """
    num_envs = min(16, len(seeds))
    waiting = list(reversed(list(enumerate(seeds))))
    envs = [environments.make(spec) for _ in range(num_envs)]
    episodes = [waiting.pop() for _ in envs]
    observations = [env.reset(seed=seed)[0] for env, (_, seed) in zip(envs, episodes, strict=True)]
    returns = np.zeros(len(seeds))
    while envs:
        batch = np.stack(observations)
        actions, _ = model.predict(batch if statistics is None else statistics.normalize_obs(batch), deterministic=True)
        for place in reversed(range(len(envs))):
            index = episodes[place][0]
            observations[place], reward, terminated, truncated, _ = envs[place].step(actions[place])
            returns[index] += float(reward)
            if (terminated or truncated) and waiting:
                episodes[place] = waiting.pop()
                observations[place], _ = envs[place].reset(seed=episodes[place][1])
            elif terminated or truncated:
                envs.pop(place).close()
                episodes.pop(place)
                observations.pop(place)
    return returns


def _keep_best(config: TrainTeacherConfig, spec: environments.EnvironmentSpec, run_folder: Path) -> Any:
    """A callback that measures the policy every ``eval_freq`` steps and keeps the best."""
    from stable_baselines3.common.callbacks import BaseCallback

    class KeepBest(BaseCallback):
        """Each figure is taken on the same seeds, so that policies are compared on the same episodes."""

        best_mean = -np.inf
        best_steps = 0
        next_at = config.eval_freq

        def _on_step(self) -> bool:
            if self.num_timesteps >= self.next_at:
                self.next_at += config.eval_freq
                self._measure()
            return True

        def _on_training_end(self) -> None:
            self._measure()

        def _measure(self) -> None:
            statistics = self.model.get_vec_normalize_env()
            seeds = range(VALIDATION_SEED, VALIDATION_SEED + config.validation_episodes)
            returns = evaluate_model(self.model, spec, seeds, statistics)
            self.logger.record("eval/mean_return", float(returns.mean()))
            self.logger.record("eval/std_return", float(returns.std()))
            self.logger.dump(self.num_timesteps)
            if returns.mean() >= self.best_mean:
                self.best_mean, self.best_steps = float(returns.mean()), self.num_timesteps
                self.model.save(run_folder / "best.zip")
                if statistics is not None:
                    statistics.save(str(run_folder / "best.pkl"))

    return KeepBest()


def _algorithm(algo: str) -> Any:
    try:
        return getattr(importlib.import_module(ALGORITHMS[algo]), algo.upper())
    except ModuleNotFoundError as error:
        raise RequestError(f'{algo} needs sb3-contrib: pip install "policy-distill[contrib]"') from error


def _check_recipe(algo: str, algorithm: Any, recipe: Mapping[str, Any]) -> None:
    ours = {"self", "env", "seed", "device", "tensorboard_log", "verbose", "_init_setup_model"}
    allowed = sorted({*inspect.signature(algorithm.__init__).parameters, *RECIPE_KEYS} - ours)
    for name in recipe:
        if name not in allowed:
            raise RequestError(f"{name!r} is no hyper-parameter of {algo}{_nearest(name, allowed) or '; known: ' + ', '.join(allowed)}")
    if "n_timesteps" not in recipe:
        raise RequestError(f"n_timesteps is missing in the recipe of {algo}; pass --n_timesteps")


def _arguments(recipe: Mapping[str, Any], action_space: gym.Space) -> dict[str, Any]:
    """What the algorithm's class takes: the recipe with its names and schedules turned into objects."""
    arguments = {name: value for name, value in recipe.items() if name not in RECIPE_KEYS}
    for name in SCHEDULES:
        if isinstance(arguments.get(name), str):
            arguments[name] = _schedule(name, arguments[name])
    if isinstance(arguments.get("train_freq"), list):
        arguments["train_freq"] = tuple(arguments["train_freq"])
    arguments["policy"] = recipe.get("policy", "MlpPolicy")
    arguments["policy_kwargs"] = _policy_kwargs(recipe.get("policy_kwargs") or {})
    if "noise_type" in recipe:
        arguments["action_noise"] = _noise(recipe["noise_type"], float(recipe.get("noise_std", 0.1)), action_space)
    return arguments


def _policy_kwargs(values: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise RequestError(f"policy_kwargs is {values!r}; it must be plain data like {{net_arch: [64, 64], activation_fn: relu}}")
    result = dict(values)
    if "activation_fn" in result:
        if result["activation_fn"] not in ACTIVATIONS:
            raise RequestError(f"policy_kwargs.activation_fn is {result['activation_fn']!r}; it must be {', '.join(ACTIVATIONS)}")
        result["activation_fn"] = getattr(torch.nn, ACTIVATIONS[result["activation_fn"]])
    return result


def _schedule(name: str, text: str) -> Callable[[float], float]:
    start = text.removeprefix("lin_")
    try:
        value = float(start)
    except ValueError as error:
        raise RequestError(f"{name} is {text!r}; it must be a number or lin_NUMBER (falls along a line to zero)") from error
    return lambda progress_remaining: value * (progress_remaining if text.startswith("lin_") else 1.0)


def _noise(kind: str, std: float, action_space: gym.Space) -> Any:
    from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise

    kinds = {"normal": NormalActionNoise, "ornstein-uhlenbeck": OrnsteinUhlenbeckActionNoise}
    if kind not in kinds:
        raise RequestError(f"noise_type is {kind!r}; it must be {' or '.join(kinds)}")
    size = action_space.shape
    return kinds[kind](mean=np.zeros(size), sigma=np.full(size, std))


def _vector_environment(spec: environments.EnvironmentSpec, num_envs: int) -> Any:
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv

    return DummyVecEnv([lambda: Monitor(environments.make(spec))] * num_envs)


def _small_buffers(algorithm: Any) -> dict[str, Any]:
    """An off-policy model allocates its whole replay buffer when it is loaded, unless told otherwise."""
    return {"buffer_size": 1} if "buffer_size" in inspect.signature(algorithm.__init__).parameters else {}


def _next_folder(folder: Path, env: str) -> Path:
    """Make the folder ENV_1, or the first number that is free."""
    for run in range(1, 10_000):
        path = folder / f"{env}_{run}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise RequestError(f"{folder} holds 9999 runs of {env}; choose another output")


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def save_slim(model: Any, path: Path) -> None:
    """Save a model for acting: ``load`` opens it as any other, but it holds no optimiser's moments, buffers, last observations or paths."""
    data = model.__dict__
    for name in SCHEDULES:
        if callable(data.get(name)):
            data[name] = float(data[name](1.0))
    for optimizer in _optimizers(model):
        optimizer.state = defaultdict(dict)
    data.update(tensorboard_log=None, ep_info_buffer=None, ep_success_buffer=None, verbose=0)
    exclude = ("_last_obs", "_last_original_obs", "_last_episode_starts", "lr_schedule", "exploration_schedule", "action_noise", "_stats_window_size")
    model.save(path, exclude=exclude)
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    info = members["system_info.txt"].decode().splitlines(keepends=True)
    members["system_info.txt"] = "".join(line for line in info if not line.startswith("- OS:")).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


def _optimizers(model: Any) -> list[torch.optim.Optimizer]:
    owners = [model, model.policy, *(getattr(model, name, None) for name in ("actor", "critic"))]
    found = [value for owner in owners if owner is not None for value in vars(owner).values()]
    return [value for value in found if isinstance(value, torch.optim.Optimizer)]


def _write_agent(
    config: TrainTeacherConfig,
    spec: environments.EnvironmentSpec,
    recipe: Mapping[str, Any],
    model: Any,
    statistics: Any,
    trained: TrainedTeacher,
    best_steps: int,
) -> None:
    name = trained.path.name.rpartition("_")[0]
    inner = trained.path / name
    inner.mkdir()
    save_slim(model, trained.path / f"{name}.zip")
    if statistics is not None:
        statistics.save(str(inner / "vecnormalize.pkl"))
    settings = dict(recipe)
    if spec.wrappers:
        settings["env_wrapper"] = [{wrapper: dict(kwargs)} if kwargs else wrapper for wrapper, kwargs in spec.wrappers]
    arguments = {
        "algo": config.algo,
        "env": spec.id,
        "env_kwargs": dict(spec.kwargs) or None,
        "seed": config.seed,
        "n_timesteps": int(recipe["n_timesteps"]),
        "eval_freq": config.eval_freq,
        "eval_episodes": config.eval_episodes,
        "validation_episodes": config.validation_episodes,
    }
    (inner / "config.yml").write_text(yaml.safe_dump(settings))
    (inner / "args.yml").write_text(yaml.safe_dump(arguments, sort_keys=False))
    card = {
        "algo": config.algo,
        "env": spec.id,
        "return_mean": round(trained.mean, 3),
        "return_std": round(trained.std, 3),
        "episodes": trained.episodes,
        "seeds": [FINAL_SEED, FINAL_SEED + trained.episodes - 1],
        "env_steps": trained.steps,
        "kept_at_env_step": best_steps,
        "command": config.command(),
        "versions": _versions(config.algo),
    }
    (trained.path / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    (trained.path / "README.md").write_text(_card_text(card))


def _versions(algo: str) -> dict[str, str]:
    names = {"stable_baselines3", ALGORITHMS[algo], "torch", "gymnasium", "numpy"}
    return {"python": platform.python_version(), **{name: str(importlib.import_module(name).__version__) for name in sorted(names)}}


def _card_text(card: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    return f"""# {card["algo"].upper()} on {card["env"]}

| | |
|---|---|
| return | {card["return_mean"]:.1f} ± {card["return_std"]:.1f} (mean and standard deviation) |
| measured on | {card["episodes"]} deterministic episodes, one seed each ({card["seeds"][0]} to {card["seeds"][1]}), none of them seen in training |
| trained for | {card["env_steps"]:,} environment steps; the policy of step {card["kept_at_env_step"]:,} was the best on validation seeds and is kept |
| versions | {versions} |

Trained again with:

```
{card["command"]}
```
"""
