"""Writing a trained teacher: a folder in the RL Zoo's layout, with a slim zip and a card with the agent's return."""

from __future__ import annotations

import importlib
import json
import platform
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from policy_distill.environments.specs import EnvironmentSpec, registered
from policy_distill.support.figures import spread_text

SCHEDULES = ("clip_range", "clip_range_vf", "learning_rate")
"""Hyper-parameters with schedules: saved as their initial value, since a schedule is code."""


def save_slim(model: Any, path: Path) -> None:
    """Save a model for inference: its class can ``load`` it, but it has no optimiser state, buffers, last observations or paths.

    These are removed from the model itself, which must not be trained further.
    """
    for name in SCHEDULES:
        if callable(value := vars(model).get(name)):
            setattr(model, name, float(value(1.0)))
    for owner in (model, model.policy, getattr(model, "actor", None), getattr(model, "critic", None)):
        for value in vars(owner).values() if owner is not None else ():
            if isinstance(value, torch.optim.Optimizer):
                value.state = defaultdict(dict)
    vars(model).update(tensorboard_log=None, ep_info_buffer=None, ep_success_buffer=None)
    transient = ("_last_obs", "_last_original_obs", "_last_episode_starts", "action_noise", "lr_schedule", "exploration_schedule")
    model.save(path, exclude=transient)
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    system = members["system_info.txt"].decode().splitlines(keepends=True)
    members["system_info.txt"] = "".join(line for line in system if not line.startswith("- OS:")).encode()
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            # A bare ZipInfo has a fixed date instead of today's, so that the zip is reproducible.
            file.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


def next_folder(folder: Path, env: str) -> Path:
    """Make the folder ENV_N with the first free number N."""
    run = 1
    while True:
        path = folder / f"{env}_{run}"
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            run += 1


def write_agent(
    folder: Path, model: Any, statistics: Any, spec: EnvironmentSpec, settings: Mapping[str, Any], run: Mapping[str, Any]
) -> None:
    """Write ENV.zip and, in the folder ENV/ beside it, the RL Zoo's files: config.yml, args.yml, vecnormalize.pkl.

    Args:
        folder: ENV_RUN.
        model: the agent; it is modified, see ``save_slim``.
        statistics: the ``VecNormalize`` that the model was trained with, or None.
        spec: the environment.
        settings: the recipe.
        run: the other arguments of the training (algo, seed, ...).
    """
    name = folder.name.rpartition("_")[0]
    inner = folder / name
    inner.mkdir()
    save_slim(model, folder / f"{name}.zip")
    if statistics is not None:
        statistics.save(str(inner / "vecnormalize.pkl"))
    wrappers = [{wrapper: dict(kwargs)} if kwargs else wrapper for wrapper, kwargs in spec.wrappers]
    config = {**settings, "env_wrapper": wrappers} if wrappers else dict(settings)
    kwargs = dict(spec.kwargs)
    if spec.max_episode_steps not in (None, registered(spec.id).max_episode_steps):
        kwargs["max_episode_steps"] = spec.max_episode_steps  # an argument of gymnasium.make
    arguments = {**run, "env": spec.id, **({"env_kwargs": kwargs} if kwargs else {})}
    for file, content in (("config.yml", config), ("args.yml", arguments)):
        (inner / file).write_text(yaml.safe_dump(content), encoding="utf-8")


def write_card(folder: Path, card: Mapping[str, Any], package: str) -> None:
    """Write card.json, and its contents as README.md.

    Args:
        folder: ENV_RUN.
        card: ``algo, env, return_mean, return_std, episodes, first_seed, env_steps, kept_at_env_step, command``.
        package: package that trained the agent; its version is added to the card.
    """
    packages = sorted({"gymnasium", "numpy", "stable_baselines3", "torch", package})
    versions = {"python": platform.python_version(), **{name: str(importlib.import_module(name).__version__) for name in packages}}
    (folder / "card.json").write_text(json.dumps({**card, "versions": versions}, indent=2) + "\n", encoding="utf-8")
    last_seed = card["first_seed"] + card["episodes"] - 1
    text = f"""# {card["algo"].upper()} on {card["env"]}

| | |
|---|---|
| return | {spread_text(card["return_mean"], card["return_std"])} (mean and standard deviation) |
| measured on | {card["episodes"]} deterministic episodes, seeds {card["first_seed"]} to {last_seed}, none of them used in training |
| trained for | {card["env_steps"]:,} environment steps; kept is step {card["kept_at_env_step"]:,}, the best on validation seeds |
| versions | {", ".join(f"{name} {version}" for name, version in versions.items())} |

To train it again:

```
{card["command"]}
```
"""
    (folder / "README.md").write_text(text, encoding="utf-8")
