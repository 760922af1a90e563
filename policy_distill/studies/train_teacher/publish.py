"""Writing a trained teacher: a folder in the RL Zoo's layout, with a slim zip and a card with the agent's return."""

from __future__ import annotations

import importlib
import itertools
import json
import platform
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from policy_distill.environments.specs import EnvironmentSpec, registered
from policy_distill.support.figures import spread_text
from policy_distill.support.files import sync_folder

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


def publish(folder: Path, env: str, write: Callable[[Path], object]) -> Path:
    """Write a new folder with ``write`` and name it ENV_N, with the first free number N; it appears whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{env}.") as temporary:
        made = Path(temporary, env)
        made.mkdir()
        write(made)
        for number in itertools.count(1):
            path = folder / f"{env}_{number}"
            try:
                made.rename(path)
            except OSError:
                if not path.exists():
                    raise
                continue
            sync_folder(folder)
            return path
    raise AssertionError("unreachable")


def write_agent(
    folder: Path, model: Any, statistics: Any, spec: EnvironmentSpec, settings: Mapping[str, Any], run: Mapping[str, Any]
) -> None:
    """Write ENV.zip and, in the folder ENV/ beside it, the RL Zoo's files: config.yml, args.yml, vecnormalize.pkl.

    Args:
        folder: an empty one with the name ENV.
        model: the agent; it is modified, see ``save_slim``.
        statistics: the ``VecNormalize`` that the model was trained with, or None.
        spec: the environment.
        settings: the recipe.
        run: the other arguments of the training (algo, seed, ...).
    """
    name = folder.name
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
        folder: the agent's.
        card: ``algo, env, return_mean, return_std, episodes, first_seed, env_steps, kept_at_env_step, command``; of a training that was
            interrupted also ``resumed_at_env_steps``, where environments began new episodes.
        package: package that trained the agent; its version is added to the card.
    """
    packages = sorted({"gymnasium", "numpy", "stable_baselines3", "torch", package})
    versions = {"python": platform.python_version(), **{name: str(importlib.import_module(name).__version__) for name in packages}}
    (folder / "card.json").write_text(json.dumps({**card, "versions": versions}, indent=2) + "\n", encoding="utf-8")
    resumed = ", ".join(f"{step:,}" for step in card.get("resumed_at_env_steps", ()))
    interrupted = f"| interrupted, and resumed at | environment steps {resumed}, with new episodes |\n" if resumed else ""
    last_seed = card["first_seed"] + card["episodes"] - 1
    text = f"""# {card["algo"].upper()} on {card["env"]}

| | |
|---|---|
| return | {spread_text(card["return_mean"], card["return_std"])} (mean and standard deviation) |
| measured on | {card["episodes"]} deterministic episodes, seeds {card["first_seed"]} to {last_seed}, none of them used in training |
| trained for | {card["env_steps"]:,} environment steps; kept is step {card["kept_at_env_step"]:,}, the best on validation seeds |
{interrupted}| versions | {", ".join(f"{name} {version}" for name, version in versions.items())} |

To train it again{", without interruption and so not with the same weights" if resumed else ""}:

```
{card["command"]}
```
"""
    (folder / "README.md").write_text(text, encoding="utf-8")
