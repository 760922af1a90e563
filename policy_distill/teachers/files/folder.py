"""Locating an agent: a run's folder in the RL Zoo's layout, a zip in or outside one, or an agent that ships with the project."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policy_distill.config import RequestError
from policy_distill.environments.specs import EnvironmentSpec, data_dir
from policy_distill.support.untrusted import refuse_damage, sha256
from policy_distill.teachers.algorithms import ALGORITHMS
from policy_distill.teachers.files.not_agents import holds_agent, what_the_folder_is
from policy_distill.teachers.files.saved_config import (
    environment_kwargs,
    environment_wrappers,
    normalizes_observations,
    normalizes_rewards,
    read_yaml,
)
from policy_distill.teachers.files.statistics_files import Choice, choose_statistics

NO_NORMALIZATION = "none"
"""Value of ``normalization`` for an agent that was trained on raw observations."""
TRAINING_LOGS = "train_eval_metrics.zip"
"""Files that the RL Zoo uploads beside an agent."""


@dataclass(frozen=True)
class AgentFiles:
    """The files of one agent, and settings from its folder."""

    zip_path: Path
    algo: str | None
    """Algorithm named by the folder or ``args.yml``; None if neither names it."""
    env: EnvironmentSpec | None
    """The environment as saved (``LunarLander-v2``), with its wrappers; None for a zip outside a run's folder."""
    normalized: bool
    """Whether there is a file of statistics; it may still specify ``norm_obs=False``."""
    vecnormalize_path: Path | None
    rewards_normalized: bool | None
    """Whether VecNormalize scaled the rewards in training, and hence the agent's values; None if unknown."""
    reward_statistics_path: Path | None
    """File with the reward scale; None if missing or not needed."""
    normalization_source: str | None
    """Source of the normalisation: a file of statistics, config.yml, or ``none`` (by the user); None if there is no information."""
    notes: tuple[str, ...] = ()
    """Notes for the user about the choice of the statistics."""


def agents_dir() -> Path:
    """Folder of the agents that ship with the project."""
    return data_dir("agents")


def shipped_agents() -> list[str]:
    """Names of the agents that ship with the project, ``ALGO/ENV``."""
    folders = (path.parent for path in agents_dir().glob("*/*/*.zip"))
    return sorted({f"{folder.parent.name}/{_without_run(folder.name)}" for folder in folders})


def shipped_name(path: str | Path | None) -> str | None:
    """The name by which a shipped agent's zip, or its copy in folders of the same names, is found on every machine; None of any other."""
    zip_path = Path(path or "").resolve()
    if not zip_path.is_file() or len(zip_path.parts) < 4:
        return None
    algo, run = zip_path.parts[-3:-1]
    for name in (f"{algo}/{_without_run(run)}", f"{algo}/{run}"):
        found = _shipped_zip(name)
        if found is not None and found.name == zip_path.name and sha256(found) == sha256(zip_path):
            return name
    return None


def find_agent(name_or_path: str | Path, *, normalization: str | None = None) -> AgentFiles:
    """Locate an agent: a path, else the name of a shipped one (``ppo/LunarLander-v3``, the newest run of it).

    Args:
        name_or_path: a run's folder, a folder as the RL Zoo uploads it, or a zip.
        normalization: file of its statistics, or ``none`` for an agent trained on raw observations; left out: search, see
            ``choose_statistics``.

    Raises:
        RequestError: if there is no such agent (with the nearest names); if the folder is ambiguous; if required statistics are missing,
            ambiguous or another agent's.
    """
    if not str(name_or_path).strip():
        raise RequestError("no agent is named; give an agent's folder, its .zip, or a name such as ppo/LunarLander-v3")
    with refuse_damage(name_or_path, "name an agent's folder or its .zip"):
        return _find(str(name_or_path), normalization)


def _find(name: str, normalization: str | None) -> AgentFiles:
    path = Path(os.path.expanduser(name))
    if path.is_file():
        return _agent(path, normalization)
    beside = path.with_name(path.name + ".zip")
    if path.is_dir():
        zip_path = _zip_in(path)
        if zip_path is None and beside.is_file():  # ENV/ beside ENV.zip, as the zoo lays them out
            zip_path = beside
        if zip_path is None:
            raise RequestError(what_the_folder_is(path))
        return _agent(zip_path, normalization)
    if beside.is_file():
        return _agent(beside, normalization)
    if path.suffix == ".zip":
        raise RequestError(f"{path} does not exist; name a .zip saved by Stable-Baselines3, or an agent's folder")
    return _shipped(name, normalization)


def _shipped(name: str, normalization: str | None) -> AgentFiles:
    if zip_path := _shipped_zip(name):
        return _agent(zip_path, normalization)
    known = shipped_agents()
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
    hint = f"shipped agents nearest to it: {', '.join(near)}" if near else "name an agent's folder or its .zip"
    raise RequestError(f"{name} is neither a file, a folder, nor an agent that ships with the project; {hint}")


def _shipped_zip(name: str) -> Path | None:
    """The zip of the shipped agent ``ALGO/ENV``, of its newest run, or of ``ALGO/ENV_1``."""
    parts = Path(name).parts
    if len(parts) != 2 or ".." in parts:
        return None
    algo, env = parts
    runs = [folder for folder in agents_dir().glob("*/*") if folder.parent.name == algo and env in (folder.name, _without_run(folder.name))]
    return next((found for folder in sorted(runs, key=_run_number, reverse=True) if (found := _zip_in(folder))), None)


def _zip_in(folder: Path) -> Path | None:
    """The agent in a run's folder: ENV.zip, else best_model.zip, else the latest checkpoint, else the only zip."""
    zips = sorted(path for path in folder.glob("*.zip") if path.name != TRAINING_LOGS)
    for name in (f"{_without_run(folder.name)}.zip", "best_model.zip"):
        if folder / name in zips:
            return folder / name
    checkpoints = [path for path in zips if _steps(path)]
    if checkpoints:
        return max(checkpoints, key=_steps)
    zips = [path for path in zips if holds_agent(path)] or zips
    if len(zips) > 1:
        raise RequestError(f"{folder} holds {len(zips)} zips; name one of them: {', '.join(path.name for path in zips[:4])}")
    return zips[0] if zips else None


def _agent(zip_path: Path, normalization: str | None) -> AgentFiles:
    """Read the files around the zip; for a symbolic link, around the link and its target."""
    # the first as the user names it, so that what is recorded of a relative path is relative
    runs = dict.fromkeys([zip_path.parent, zip_path.absolute().parent, zip_path.resolve().parent])
    run, settings = next(((run, found) for run in runs if (found := _settings_folder(zip_path, run))), (next(iter(runs)), None))
    places = [run / zip_path.stem, *([settings] if settings else [])]
    if settings is None:
        statistics = _statistics(zip_path, places, normalization)
        return AgentFiles(
            zip_path, _algorithm(runs, {}), None, statistics.path is not None, statistics.path, None, statistics.path,
            _source(statistics, normalization), statistics.notes,
        )  # fmt: skip
    config_path, arguments_path = settings / "config.yml", settings / "args.yml"
    config = read_yaml(config_path) if config_path.is_file() else {}
    arguments = read_yaml(arguments_path) if arguments_path.is_file() else {}
    normalized = normalizes_observations(config, config_path)
    rewards = normalizes_rewards(config, config_path) if config else None
    needed = normalized or rewards is not False or normalization is not None
    statistics = _statistics(zip_path, places, normalization) if needed else Choice(None)
    if normalized and statistics.path is None and normalization is None:
        raise RequestError(
            f"{zip_path} was trained on normalised observations but their statistics are missing: put vecnormalize.pkl at "
            f"{settings / 'vecnormalize.pkl'}, or name the file with --normalization PATH"
        )
    path = statistics.path if normalized or not config or normalization is not None else None
    return AgentFiles(
        zip_path,
        _algorithm(runs, arguments),
        _environment(settings, run, config, arguments),
        path is not None,
        path,
        rewards,
        statistics.path if rewards is not False else None,
        _source(Choice(path), normalization) or (str(config_path) if config else None),
        statistics.notes,
    )


def _environment(settings: Path, run: Path, config: dict[str, Any], arguments: dict[str, Any]) -> EnvironmentSpec | None:
    """The environment as saved; None if the files do not name it."""
    name = arguments.get("env")
    if not isinstance(name, str):
        if settings == run:
            return None
        name = settings.name
    uploaded = settings / "env_kwargs.yml"  # beside a zip that the zoo uploaded
    kwargs = environment_kwargs(config, arguments, settings, {"env_kwargs": read_yaml(uploaded)} if uploaded.is_file() else {})
    limit = kwargs.pop("max_episode_steps", None)  # an argument of gymnasium.make, not of the environment
    return EnvironmentSpec(
        id=name,
        kwargs=kwargs,
        wrappers=environment_wrappers(config, settings / "config.yml"),
        max_episode_steps=limit if isinstance(limit, int) and limit > 0 else None,
    )


def _settings_folder(zip_path: Path, run: Path) -> Path | None:
    """The folder with config.yml or args.yml: ENV/ beside the zip, else the only such folder there, else, where both lie flat beside the
    zip as the zoo uploads them, the zip's own."""
    candidates = [run / zip_path.stem, run / _without_run(run.name)]
    if zip_path.stem == "best_model" or _steps(zip_path):
        candidates += sorted(path for path in run.iterdir() if path.is_dir())
    found = [path for path in candidates if (path / "config.yml").is_file() or (path / "args.yml").is_file()]
    flat = (run / "config.yml").is_file() and (run / "args.yml").is_file()
    return found[0] if found else run if flat else None


def _statistics(zip_path: Path, places: list[Path], normalization: str | None) -> Choice:
    """The file that the user names, else the one that is found."""
    if normalization is None:
        return choose_statistics(zip_path, places)
    if normalization == NO_NORMALIZATION:
        return Choice(None)
    path = Path(normalization).expanduser()
    if not path.is_file():
        raise RequestError(f"normalization is {normalization!r}; it must be a file that VecNormalize.save wrote, or none")
    return Choice(path)


def _source(statistics: Choice, normalization: str | None) -> str | None:
    return str(statistics.path) if statistics.path is not None else normalization


def _algorithm(runs: Iterable[Path], arguments: dict[str, object]) -> str | None:
    """Named in args.yml, else by the folder above the run's."""
    for name in (arguments.get("algo"), *(run.parent.name for run in runs)):
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
