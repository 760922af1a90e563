"""Environments as data: entries of envs/ and Gymnasium ids, replacements of removed ids, and construction."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from policy_distill.config import EnvironmentOptions, RequestError
from policy_distill.config.environment import Wrapper, wrapper_options
from policy_distill.environments.border import FRAMES, Border
from policy_distill.environments.known_wrappers import STACK, asked_name, check_wrappers, effective, saved_name, trusting, wrap
from policy_distill.environments.quiet import quiet_known_warnings, quiet_missing_seaborn, quiet_mujoco
from policy_distill.environments.registration import extra_of, register_known
from policy_distill.environments.wrappers import FRESH
from policy_distill.support.untrusted import is_shallow, read_yaml, refuse_damage

NOT_HERE = {
    r"\w*Bullet(Env)?-v\d+": "it needs pybullet, whose environments do not exist for Gymnasium",
    r"(Fetch|Hand|Adroit|Franka|PointMaze|AntMaze)\w*-v\d+": "it needs gymnasium-robotics; name it as gymnasium_robotics:ID",
    r"Panda\w+-v\d+": "it needs panda-gym; name it as panda_gym:ID, with the version of today (v3)",
    r"MiniGrid-.+": "it needs minigrid; name it as minigrid:ID",
    r"(highway|intersection|merge|parking|racetrack)\w*-v\d+": "it needs highway-env; install it and name it as highway_env:ID",
}
"""Patterns of ids in the RL Zoo that cannot be run -> reason."""

DEEPEST = 20


@dataclass(frozen=True)
class EnvironmentSpec:
    """An environment as data, sufficient to construct it."""

    id: str
    """Gymnasium id; ``module:id`` names the module that registers it, see ``imports``."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of ``gymnasium.make``; ``render_mode`` is left out."""
    wrappers: tuple[Wrapper, ...] = ()
    """Names and keyword arguments of the wrappers around it, innermost first: known ones, and ``module:Class`` where a user named it."""
    max_episode_steps: int | None = None
    """Steps after which an episode is truncated. Left out: as the id is registered."""
    extra: str | None = None
    """The extra of this package that installs what the environment needs (box2d, mujoco)."""
    imports: bool = field(default=False, compare=False, kw_only=True)
    """Whether the module before the colon may be imported, which runs its code. Set only for names typed by the user, never by a file."""

    def __post_init__(self) -> None:
        if not is_shallow([self.kwargs, [kwargs for _, kwargs in self.wrappers]], DEEPEST):
            raise RequestError(f"the arguments of {self.id} are nested more than {DEEPEST} deep, which no environment takes")
        if isinstance(self.kwargs, Mapping) and "render_mode" in self.kwargs:  # what an agent's files say must not open a window
            object.__setattr__(self, "kwargs", {name: value for name, value in self.kwargs.items() if name != "render_mode"})

    def text(self) -> str:
        """All that figures depend on: ``Pendulum-v1 (g=5), RescaleAction (min_action=-1, max_action=1), episodes of 50 steps at most``."""
        registered = find_registered(self.id)
        usual = registered.max_episode_steps if registered else None
        limit = [f"episodes of {self.max_episode_steps:,} steps at most"] if self.max_episode_steps not in (None, usual) else []
        return ", ".join([*(_call(name, kwargs) for name, kwargs in ((self.id, self.kwargs), *self.wrappers)), *limit])

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON-serialisable data, without ``imports``."""
        data = {**asdict(self), "wrappers": [[name, dict(kwargs)] for name, kwargs in self.wrappers]}
        return {name: value for name, value in data.items() if name != "imports"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EnvironmentSpec:
        """The inverse of ``to_dict``, for files: a wrapper ``module:Class`` becomes ``module.Class``, which is not imported.

        Raises:
            RequestError: if they are not what ``to_dict`` writes.
        """
        with refuse_damage("the environment that the file names", "write the file again, or name the environment with --env"):
            _only_known_keys("environment", data, [item.name for item in fields(cls) if item.name != "imports"])
            wrappers = tuple((saved_name(name), dict(kwargs)) for name, kwargs in data.get("wrappers", ()))
            spec = cls(**{**data, "wrappers": wrappers})
            limit, texts = spec.max_episode_steps, [spec.id, *(name for name, _ in wrappers)]
            if not all(isinstance(text, str) for text in texts) or not isinstance(spec.extra, str | None):
                raise TypeError("id, wrappers and extra must be texts")
            if not isinstance(spec.kwargs, dict) or not (limit is None or (type(limit) is int and limit > 0)):
                raise TypeError("kwargs must be a mapping, max_episode_steps a number")
        return spec


@dataclass(frozen=True)
class Entry:
    """A file of envs/."""

    spec: EnvironmentSpec
    observation_dim: int | None
    """Length of the observation vector."""
    replaces: Mapping[str, str]
    """Ids that Gymnasium has no more and that this one stands in for -> what is different."""
    episodes: int
    """How many make a sound evaluation."""
    solved_return: float | None
    """The mean return from which Gymnasium calls the task solved."""


def data_dir(name: str) -> Path:
    """Folder of data that ship with the project (``agents``, ``envs``): in an installed package, else in the checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_data" / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise RequestError(f"the folder {name}/ is missing in this installation; install policy-distill again")


def entries() -> Mapping[str, Entry]:
    """Name -> entry, of every file in envs/."""
    return _read_folder(data_dir("envs"))


def resolve(name: str) -> EnvironmentSpec:
    """The environment of this name: an entry of envs/, a YAML file like them, a registered Gymnasium id, or a renamed one.

    Raises:
        RequestError: if there is none, with the nearest names or a reason.
    """
    if name.endswith((".yaml", ".yml")):
        return _read_entry(Path(name)).spec
    if name in entries():
        return entries()[name].spec
    if (stand_in := _stand_in(name)) is not None:
        return stand_in.spec
    spec = EnvironmentSpec(id=name, imports=True)
    check_registered(spec)
    return spec


def named_again(saved: EnvironmentSpec, name: str | None) -> EnvironmentSpec | None:
    """The saved environment, with its import allowed if the user names the same ``module:id``; other settings are the file's.

    Returns:
        None if ``name`` is another environment, or one without a module.
    """
    return replace(saved, imports=True) if name == saved.id and ":" in saved.id else None


def for_worker(spec: EnvironmentSpec) -> EnvironmentSpec:
    """The spec for a worker process, which may import modules that are already registered here."""
    return replace(spec, imports=spec.imports or spec.id.rpartition(":")[2] in gym.registry)


def named(asked: EnvironmentOptions) -> EnvironmentSpec:
    """The environment ``asked.env``, with only the arguments, wrappers, frame stack and episode length in ``asked``.

    A wrapper ``module:Class`` in a YAML file is imported if the user also names it, with the file's arguments.

    Raises:
        RequestError: as ``resolve``; if a wrapper's name stands for none; if a file names one that the user does not.
    """
    assert asked.env is not None
    spec = resolve(asked.env)
    own = effective((asked_name(name), kwargs) for name, kwargs in asked.wrappers or ())
    inner = trusting(spec.wrappers, own)
    for name, _ in inner:
        if "." in name and ":" not in name:
            typed = wrapper_options([(asked_name(name), {})])
            raise RequestError(f"{asked.env} names the wrapper {name}, and importing it runs its code: give {typed} if you trust it")
    allowed = {name for name, _ in inner if ":" in name}
    own = tuple(wrapper for wrapper in own if wrapper[0] not in allowed)
    stack = ((STACK, {"n_stack": asked.frame_stack}),) if (asked.frame_stack or 1) > 1 else ()
    return replace(
        spec,
        kwargs={**spec.kwargs, **asked.env_kwargs},
        wrappers=(*inner, *own, *stack),
        max_episode_steps=asked.max_episode_steps or spec.max_episode_steps,
    )


def modernize(spec: EnvironmentSpec, observation_dim: int | None = None) -> tuple[EnvironmentSpec, tuple[str, ...]]:
    """The installed environment that matches an agent's training environment, with notices about differences.

    Args:
        spec: the saved environment, with its wrappers.
        observation_dim: length of the agent's observation vector, after wrappers; None if observations are not vectors.

    Returns:
        ``spec`` itself and no notices if Gymnasium still has it.

    Raises:
        RequestError: if nothing matches.
    """
    check_wrappers(spec.wrappers)
    entry = _stand_in(spec.id)
    if entry is None:
        check_registered(spec)
        return spec, paths_among(spec)
    modern = replace(
        entry.spec,
        kwargs={**entry.spec.kwargs, **spec.kwargs},
        wrappers=entry.spec.wrappers + spec.wrappers,
        max_episode_steps=spec.max_episode_steps or entry.spec.max_episode_steps,
    )
    dim = entry.observation_dim
    for name, kwargs in spec.wrappers:
        known, frames = name in ("TimeFeatureWrapper", STACK), kwargs.get("n_stack", 1)
        if type(frames) is not int:
            raise RequestError(f"the wrapper {name} does not take the arguments {dict(kwargs)}: n_stack must be a whole number")
        dim = None if dim is None or not known else dim + 1 if name == "TimeFeatureWrapper" else dim * frames
    if dim is not None and observation_dim is not None and dim != observation_dim:
        raise RequestError(
            f"the agent from {spec.id} reads {observation_dim} numbers, but {modern.id} in its place gives {dim}; name another with --env"
        )
    return modern, (f"trained on {spec.id}; run here on {modern.id}, {entry.replaces[spec.id]}; override with --env", *paths_among(spec))


def substitution(name: str) -> tuple[str, ...]:
    """A notice if ``resolve`` replaces this id, which Gymnasium no longer has, by another environment."""
    entry = None if name in entries() else _stand_in(name)
    return () if entry is None else (f"{name} is run as {entry.spec.id} here, {entry.replaces[name]}",)


def paths_among(spec: EnvironmentSpec) -> tuple[str, ...]:
    """A notice for each argument that looks like a file name, since the environment may open it."""
    texts = {name: value for name, value in spec.kwargs.items() if isinstance(value, str) and re.search(r"[/\\]|\.\w+$", value)}
    return tuple(f"the agent's files give {spec.id} the argument {name} = {value!r}, which it may open" for name, value in texts.items())


def make(spec: EnvironmentSpec, *, render_mode: str | None = None) -> Border:
    """Make the environment with its wrappers; the outermost is a ``Border``. Nothing is written to the terminal.

    Raises:
        RequestError: if the id, a wrapper or a keyword argument is not known, a package is missing, or the environment cannot be made.
    """
    options: dict[str, Any] = {} if spec.max_episode_steps is None else {"max_episode_steps": spec.max_episode_steps}
    if render_mode is not None:
        options["render_mode"] = render_mode
    check_registered(spec)
    known = dataclasses.replace(registered(spec.id), order_enforce=False)
    entry_point = str(known.entry_point)
    extra = spec.extra or extra_of(entry_point)
    try:
        with quiet_known_warnings(), quiet_mujoco(extra == "mujoco"), quiet_missing_seaborn():
            # Its wrapper that watches the order of calls costs a step of CartPole 7 %; here they are always in order.
            env = gym.make(known, disable_env_checker=True, **options, **spec.kwargs)
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        fix = f'pip install "policy-distill[{extra}]"' if extra else " ".join(str(error).split())
        raise RequestError(f"{spec.id} needs a package that is not installed: {fix}") from error
    except Exception as error:  # whatever its constructor raises
        text = " ".join(str(error).split()).partition(" was raised from the environment creator")[0]
        if isinstance(error, TypeError) and (
            missing := re.search(r"missing \d+ required (?:positional|keyword-only) arguments?: (.+)", text)
        ):
            example = json.dumps(dict.fromkeys(re.findall(r"'(\w+)'", missing[1]), "..."))
            raise RequestError(f"{spec.id} cannot be made without its argument {missing[1]}: give --env-kwargs '{example}'") from error
        if isinstance(error, TypeError | AssertionError) and spec.kwargs:
            raise RequestError(f"{spec.id} does not take the arguments {spec.kwargs} (see --env-kwargs): {text}") from error
        raise RequestError(f"{spec.id} cannot be made: its constructor raised {type(error).__name__}: {text}") from error
    for beginning, fresh in FRESH.items():
        if entry_point.startswith(beginning):
            env = fresh(env)
    with quiet_known_warnings():
        for name, kwargs in spec.wrappers:
            env = wrap(env, name, kwargs)
    return Border(env, spec.id)


def registered(name: str) -> EnvSpec:
    """Gymnasium's specification of a registered id, with or without a module before a colon."""
    return gym.registry[name.rpartition(":")[2]]


def find_registered(name: str) -> EnvSpec | None:
    """``registered``; None if the id is not registered, or not yet."""
    return gym.registry.get(name.rpartition(":")[2])


LONG_EPISODE = 10_000
"""Steps after which an episode without a time limit is taken for one that does not end; fewer than ``border.NEVER_ENDING``, since every
step of several episodes is kept."""


def time_limit(spec: EnvironmentSpec) -> int | None:
    """Steps after which an episode is truncated; None if neither the request, nor the registration, nor a wrapper names any."""
    known = find_registered(spec.id)
    limits = [spec.max_episode_steps or (known.max_episode_steps if known else None)]
    limits += [kwargs.get("max_episode_steps") for name, kwargs in spec.wrappers if name == "TimeLimit"]
    return min((limit for limit in limits if limit), default=None)


def longest_episode(spec: EnvironmentSpec) -> int | None:
    """Upper bound of an episode's steps: the time limit, or a game of Atari's number of frames; None if none is known."""
    limit, known = time_limit(spec), find_registered(spec.id)
    if limit is not None or known is None or extra_of(str(known.entry_point)) != "atari":
        return limit
    frames = {**known.kwargs, **spec.kwargs}.get(FRAMES)
    return frames + 1 if isinstance(frames, int) and frames > 0 else None


def endless(spec: EnvironmentSpec, who: str, steps: int) -> tuple[str, str]:
    """Problem and fix for an environment in which an episode of ``who`` did not end within ``steps`` steps."""
    what = f"{spec.id} has no time limit, and an episode of {who} went on for {steps:,} steps without an end"
    return what, "give --max-episode-steps 1000, or how many the task takes"


def _stand_in(old_id: str) -> Entry | None:
    return next((entry for entry in entries().values() if old_id in entry.replaces), None)


def check_registered(spec: EnvironmentSpec) -> None:
    """Register the environment with Gymnasium; a module before a colon is imported where the spec allows it.

    Raises:
        RequestError: if there is no such environment, or its module may not be imported.
    """
    name = spec.id
    module, _, gym_id = name.rpartition(":")
    if module and spec.imports:
        try:
            importlib.import_module(module)
        except (ImportError, ValueError) as error:
            raise RequestError(f"the module {module} of the environment {name} cannot be imported: {error}") from error
    register_known(gym_id)
    if gym_id in gym.registry:
        return
    if module and not spec.imports:
        raise RequestError(
            f"the files name the environment {name}, and importing {module} runs its code: give --env {name} if you trust it"
        )
    for pattern, reason in NOT_HERE.items():
        if re.fullmatch(pattern, gym_id):
            raise RequestError(f"{name} cannot be run here: {reason}")
    near = difflib.get_close_matches(gym_id, {*entries(), *gym.registry}, n=3, cutoff=0.5)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise RequestError(f"{name or repr(name)} is neither an entry of envs/ nor a registered Gymnasium id{hint}; name your own as module:ID")


@functools.cache
def _read_folder(folder: Path) -> Mapping[str, Entry]:
    return {path.stem: _read_entry(path) for path in sorted(folder.glob("*.yaml"))}


def _read_entry(path: Path) -> Entry:
    with refuse_damage(path, "it must be YAML like the files of envs/"):
        return _entry(path, read_yaml(path, "it must be YAML like the files of envs/"))


def _entry(path: Path, data: Any) -> Entry:
    if not isinstance(data, dict) or not isinstance(data.get("id"), str):
        raise RequestError(f"{path}: id is missing; it must name a Gymnasium id")
    _only_known_keys(str(path), data, ["id", "kwargs", "wrappers", "extra", "observation_dim", "replaces", "evaluation"])
    for key, kind in {"kwargs": dict, "wrappers": list, "replaces": dict, "evaluation": dict}.items():
        if not isinstance(data.get(key, kind()), kind):
            raise RequestError(f"{path}: {key} is {data[key]!r}; it must be a {'list' if kind is list else 'mapping'}")
    evaluation = data.get("evaluation", {})
    _only_known_keys(f"{path}: evaluation", evaluation, ["episodes", "max_episode_steps", "solved_return"])
    wrappers = []
    for wrapper in data.get("wrappers", ()):
        name, kwargs = next(iter(wrapper.items())) if isinstance(wrapper, dict) and len(wrapper) == 1 else (wrapper, {})
        if not isinstance(name, str) or not isinstance(kwargs, dict):
            raise RequestError(f"{path}: a wrapper is {wrapper!r}; it must be NAME or {{NAME: {{argument: value}}}}")
        asked_name(name)  # refuses what cannot be made
        wrappers.append((saved_name(name), kwargs))
    spec = EnvironmentSpec(data["id"], data.get("kwargs", {}), effective(wrappers), evaluation.get("max_episode_steps"), data.get("extra"))
    replaces, episodes = data.get("replaces", {}), evaluation.get("episodes", 100)
    return Entry(spec, data.get("observation_dim"), replaces, episodes, evaluation.get("solved_return"))


def _only_known_keys(where: str, data: Mapping[str, Any], known: list[str]) -> None:
    unknown = [key for key in data if key not in known]
    if unknown:
        raise RequestError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(known)}")


def _call(name: str, kwargs: Mapping[str, Any]) -> str:
    return f"{name} ({', '.join(f'{key}={value!r}' for key, value in kwargs.items())})" if kwargs else name
