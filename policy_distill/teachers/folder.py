"""Locating an agent: a run's folder in the RL Zoo's layout, a zip in or outside one, or an agent that ships with the project."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from policy_distill.config import RequestError
from policy_distill.environments import EnvironmentSpec, data_dir
from policy_distill.teachers.saved_config import (
    environment_kwargs,
    environment_wrappers,
    normalizes_observations,
    normalizes_rewards,
    read_yaml,
)
from policy_distill.untrusted import refuse_damage

ALGORITHMS = ("a2c", "ars", "crossq", "ddpg", "dqn", "ppo", "ppo_lstm", "ppo_mask", "qrdqn", "sac", "td3", "tqc", "trpo")


@dataclass(frozen=True)
class AgentFiles:
    """The files of one agent and what the folder around them tells."""

    zip_path: Path
    algo: str | None
    """As the folder or ``args.yml`` names it; None if neither does."""
    env: EnvironmentSpec | None
    """The environment as saved (``LunarLander-v2``), with its wrappers; None for a zip outside a run's folder."""
    normalized: bool
    """Whether the agent saw observations through VecNormalize."""
    vecnormalize_path: Path | None
    rewards_normalized: bool
    """Whether the agent's values are of rewards that VecNormalize had divided by a scale, as far as the settings tell."""
    reward_statistics_path: Path | None
    """The file that holds this scale; None where it is missing or not needed."""


def agents_dir() -> Path:
    """Folder of the agents that ship with the project."""
    return data_dir("agents")


def shipped_agents() -> list[str]:
    """Names of the agents that ship with the project, ``ALGO/ENV``."""
    folders = (path.parent for path in agents_dir().glob("*/*/*.zip"))
    return sorted({f"{folder.parent.name}/{_without_run(folder.name)}" for folder in folders})


def find_agent(name_or_path: str | Path) -> AgentFiles:
    """Locate an agent: a path, else the name of a shipped one (``ppo/LunarLander-v3``, the newest run of it).

    Raises:
        RequestError: if there is none, with the nearest names; if the folder is ambiguous; if statistics it needs are missing.
    """
    if not str(name_or_path).strip():
        raise RequestError("no teacher is named; give an agent's folder, its .zip, or a name such as ppo/LunarLander-v3")
    with refuse_damage(name_or_path, "name an agent's folder or its .zip"):
        return _find(str(name_or_path))


def _find(name: str) -> AgentFiles:
    path = Path(os.path.expanduser(name))
    if path.is_file():
        return _agent(path)
    beside = path.with_name(path.name + ".zip")
    if path.is_dir():
        zip_path = _zip_in(path)
        if zip_path is None and beside.is_file():  # ENV/ beside ENV.zip, as the zoo lays them out
            zip_path = beside
        if zip_path is None:
            raise RequestError(f"{path} is a folder without an agent's .zip; name the folder ALGO/ENV_RUN that holds ENV.zip")
        return _agent(zip_path)
    if beside.is_file():
        return _agent(beside)
    if path.suffix == ".zip":
        raise RequestError(f"{path} does not exist; name a .zip saved by Stable-Baselines3, or an agent's folder")
    return _shipped(name)


def _shipped(name: str) -> AgentFiles:
    root, parts = agents_dir(), Path(name).parts
    if len(parts) == 2 and ".." not in parts:
        algo, env = parts
        runs = [folder for folder in root.glob("*/*") if folder.parent.name == algo and env in (folder.name, _without_run(folder.name))]
        for folder in sorted(runs, key=_run_number, reverse=True):
            if zip_path := _zip_in(folder):
                return _agent(zip_path)
    known = shipped_agents()
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
    hint = f"shipped agents nearest to it: {', '.join(near)}" if near else "name an agent's folder or its .zip"
    raise RequestError(f"{name} is neither a file, a folder, nor an agent that ships with the project; {hint}")


def _zip_in(folder: Path) -> Path | None:
    """The agent in a run's folder: ENV.zip, else best_model.zip, else the latest checkpoint, else the only zip."""
    zips = sorted(folder.glob("*.zip"))
    for name in (f"{_without_run(folder.name)}.zip", "best_model.zip"):
        if folder / name in zips:
            return folder / name
    checkpoints = [path for path in zips if _steps(path)]
    if checkpoints:
        return max(checkpoints, key=_steps)
    if len(zips) > 1:
        raise RequestError(f"{folder} holds {len(zips)} zips; name one of them: {', '.join(path.name for path in zips[:4])}")
    return zips[0] if zips else None


def _agent(zip_path: Path) -> AgentFiles:
    """Read what lies around the zip."""
    run = zip_path.resolve().parent
    settings = _settings_folder(zip_path, run)
    if settings is None:
        statistics = _statistics(zip_path, [run, run / zip_path.stem])
        return AgentFiles(zip_path, _algorithm(run, {}), None, statistics is not None, statistics, statistics is not None, statistics)
    config_path, arguments_path = settings / "config.yml", settings / "args.yml"
    config = read_yaml(config_path) if config_path.is_file() else {}
    arguments = read_yaml(arguments_path) if arguments_path.is_file() else {}
    name = arguments.get("env")
    spec = EnvironmentSpec(
        id=name if isinstance(name, str) else settings.name,
        kwargs=environment_kwargs(config, arguments, settings),
        wrappers=environment_wrappers(config, config_path),
    )
    normalized = normalizes_observations(config, config_path)
    found = _statistics(zip_path, [settings, run])
    statistics = found if normalized or not config else None
    if normalized and statistics is None:
        raise RequestError(
            f"{zip_path} was trained on normalised observations but their statistics are missing: put vecnormalize.pkl at "
            f"{settings / 'vecnormalize.pkl'}"
        )
    rewards = normalizes_rewards(config, config_path) if config else found is not None
    return AgentFiles(
        zip_path, _algorithm(run, arguments), spec, statistics is not None, statistics, rewards, found if rewards else None,
    )  # fmt: skip


def _settings_folder(zip_path: Path, run: Path) -> Path | None:
    """The folder with config.yml or args.yml: ENV/ beside the zip, else the only such folder there."""
    candidates = [run / zip_path.stem, run / _without_run(run.name)]
    if zip_path.stem == "best_model" or _steps(zip_path):
        candidates += sorted(path for path in run.iterdir() if path.is_dir())
    found = [path for path in candidates if (path / "config.yml").is_file() or (path / "args.yml").is_file()]
    return found[0] if found else None


def _statistics(zip_path: Path, folders: list[Path]) -> Path | None:
    """The statistics of this zip: a checkpoint's own, else ``vecnormalize.pkl`` in one of ``folders``."""
    stem = zip_path.stem
    own = zip_path.with_name(re.sub(r"_(\d+_steps)$", r"_vecnormalize_\1", stem) + ".pkl")
    names = [own, zip_path.with_name(f"{stem}_vecnormalize.pkl"), *(folder / "vecnormalize.pkl" for folder in folders)]
    return next((path for path in names if path.is_file()), None)


def _algorithm(run: Path, arguments: dict[str, object]) -> str | None:
    """Named in args.yml, else by the folder above the run's."""
    for name in (arguments.get("algo"), run.parent.name):
        if name in ALGORITHMS:
            return str(name)
    return None


def _without_run(name: str) -> str:
    """``LunarLander-v2_1`` without the number of the run."""
    return re.sub(r"_\d+$", "", name)


def _run_number(folder: Path) -> int:
    match = re.search(r"_(\d+)$", folder.name)
    return int(match.group(1)) if match else 0


def _steps(path: Path) -> int:
    match = re.fullmatch(r"rl_model_(\d+)_steps", path.stem)
    return int(match.group(1)) if match else 0
