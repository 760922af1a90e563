"""From an entry of envs/ or a Gymnasium id to an environment; from an id that is no more to the one that stands in for it."""

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
import numpy as np
from gymnasium.envs.registration import EnvSpec

from policy_distill.border import Border
from policy_distill.config import EnvironmentOptions, RequestError
from policy_distill.config.environment import Wrapper, wrapper_options
from policy_distill.known_wrappers import PADDING, STACK, asked_name, check_wrappers, effective, saved_name, wrap
from policy_distill.quiet import quiet_known_warnings, quiet_mujoco
from policy_distill.untrusted import read_yaml, refuse_damage
from policy_distill.wrappers import FreshWorld

NOT_HERE = {
    r"\w*Bullet(Env)?-v\d+": "it needs pybullet, whose environments do not exist for Gymnasium",
    r"\w+(NoFrameskip|Deterministic)-v\d+|ALE/.+": "its observations are images; agents on vectors are supported",
    r"(Fetch|Hand|Adroit|Franka|PointMaze|AntMaze)\w*-v\d+": "it needs gymnasium-robotics, and its observations are dictionaries",
    r"Panda\w+-v\d+": "it needs panda-gym, and its observations are dictionaries",
    r"MiniGrid-.+": "it needs minigrid, and its observations are dictionaries with images",
    r"(highway|intersection|merge|parking|racetrack)\w*-v\d+": "it needs highway-env; install it and name it as highway_env:ID",
    r"\w+NoVel-v\d+": "its observations hide the velocities; it is for recurrent policies, which are not supported",
}
"""Families of ids that agents in the RL Zoo were trained on and that cannot be had -> why not."""

DEEPEST = 20


@dataclass(frozen=True)
class EnvironmentSpec:
    """An environment as data: enough to make it again."""

    id: str
    """Gymnasium id; ``module:id`` names the module that registers it, see ``imports``."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of ``gymnasium.make``."""
    wrappers: tuple[Wrapper, ...] = ()
    """Names and keyword arguments of the wrappers around it, innermost first: known ones, and ``module:Class`` where a user named it."""
    max_episode_steps: int | None = None
    """After so many steps an episode is truncated. Left out: as the id is registered."""
    extra: str | None = None
    """The extra of this package that installs what the environment needs (box2d, mujoco)."""
    imports: bool = field(default=False, compare=False, kw_only=True)
    """Whether the module before the colon may be imported, which runs its code: only what the user typed says so, never a file."""

    def __post_init__(self) -> None:
        if not _is_shallow([self.kwargs, [kwargs for _, kwargs in self.wrappers]], DEEPEST):
            raise RequestError(f"the arguments of {self.id} are nested more than {DEEPEST} deep, which no environment takes")

    @property
    def arguments(self) -> dict[str, Any]:
        """``kwargs`` without ``render_mode``: what an agent's files say must not open a window."""
        return {name: value for name, value in self.kwargs.items() if name != "render_mode"}

    def text(self) -> str:
        """All that figures depend on: ``Pendulum-v1 (g=5), RescaleAction (min_action=-1, max_action=1), episodes of 50 steps at most``."""
        registered = gym.registry.get(self.id.rpartition(":")[2])
        usual = registered.max_episode_steps if registered else None
        limit = [f"episodes of {self.max_episode_steps:,} steps at most"] if self.max_episode_steps not in (None, usual) else []
        return ", ".join([*(_call(name, kwargs) for name, kwargs in ((self.id, self.kwargs), *self.wrappers)), *limit])

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON-able data, without ``imports``."""
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
    package = Path(__file__).resolve().parent
    for folder in (package / "_data" / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise RequestError(f"the folder {name}/ is missing in this installation; install policy-distill again")


def entries() -> Mapping[str, Entry]:
    """Name -> entry, of every file in envs/."""
    return _read_folder(data_dir("envs"))


def resolve(name: str) -> EnvironmentSpec:
    """The environment that a person names: an entry of envs/, a file like them, a registered Gymnasium id, or one that was renamed.

    Raises:
        RequestError: if there is none, with the nearest names or the reason why there cannot be.
    """
    if name.endswith((".yaml", ".yml")):
        return _read_entry(Path(name)).spec
    if name in entries():
        return entries()[name].spec
    if (stand_in := _stand_in(name)) is not None:
        return stand_in.spec
    spec = EnvironmentSpec(id=name, imports=True)
    _check_registered(spec)
    return spec


def named_again(saved: EnvironmentSpec, name: str | None) -> EnvironmentSpec | None:
    """The environment of a file whose module the user allows to be imported by naming the same ``module:id``; the rest is the file's.

    Returns:
        None if ``name`` is another environment, or one without a module.
    """
    return replace(saved, imports=True) if name == saved.id and ":" in saved.id else None


def for_worker(spec: EnvironmentSpec) -> EnvironmentSpec:
    """The same for a process of our own: what is registered here may be imported there."""
    return replace(spec, imports=spec.imports or spec.id.rpartition(":")[2] in gym.registry)


def named(asked: EnvironmentOptions) -> EnvironmentSpec:
    """The environment that a user names with ``env``, with the arguments, wrappers, stack and length that the user asks for, and no others.

    Raises:
        RequestError: as ``resolve``; if a wrapper's name stands for none.
    """
    assert asked.env is not None
    spec = resolve(asked.env)
    own = effective((asked_name(name), kwargs) for name, kwargs in asked.wrappers or ())
    stack = ((STACK, {"n_stack": asked.frame_stack}),) if (asked.frame_stack or 1) > 1 else ()
    return replace(
        spec,
        kwargs={**spec.kwargs, **asked.env_kwargs},
        wrappers=(*spec.wrappers, *own, *stack),
        max_episode_steps=asked.max_episode_steps or spec.max_episode_steps,
    )


def modernize(spec: EnvironmentSpec, observation_dim: int | None = None) -> tuple[EnvironmentSpec, tuple[str, ...]]:
    """The environment here that matches the one an agent was trained in, with what the user should know about the difference.

    Args:
        spec: as the agent was saved, with its wrappers.
        observation_dim: length of the vector that the agent reads, wrappers included; None where it is no vector.

    Returns:
        ``spec`` itself and no notices if Gymnasium still has it.

    Raises:
        RequestError: if nothing matches.
    """
    check_wrappers(spec.wrappers)
    entry = _stand_in(spec.id)
    if entry is None:
        _check_registered(spec)
        return spec, paths_among(spec)
    modern = replace(entry.spec, kwargs={**entry.spec.kwargs, **spec.kwargs}, wrappers=entry.spec.wrappers + spec.wrappers)
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
    """A notice if ``resolve`` answers this id, which Gymnasium does not have any more, with another environment."""
    entry = None if name in entries() else _stand_in(name)
    return () if entry is None else (f"{name} is run as {entry.spec.id} here, {entry.replaces[name]}",)


def paths_among(spec: EnvironmentSpec) -> tuple[str, ...]:
    """A notice for each argument that looks like a file's name: the environment may open what an agent's files name."""
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
    _check_registered(spec)
    known = dataclasses.replace(registered(spec.id), order_enforce=False)
    entry_point = str(known.entry_point)
    shipped = re.match(r"gymnasium\.envs\.(box2d|mujoco)\.", entry_point)
    extra = spec.extra or (shipped[1] if shipped else None)
    try:
        with quiet_known_warnings(), quiet_mujoco(extra == "mujoco"):
            # Its wrapper that watches the order of calls costs a step of CartPole 7 %; here they are always in order.
            env = gym.make(known, disable_env_checker=True, **options, **spec.arguments)
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        mend = f'pip install "policy-distill[{extra}]"' if extra else " ".join(str(error).split())
        raise RequestError(f"{spec.id} needs a package that is not installed: {mend}") from error
    except Exception as error:  # whatever its constructor raises
        text = " ".join(str(error).split()).partition(" was raised from the environment creator")[0]
        if isinstance(error, TypeError) and (
            missing := re.search(r"missing \d+ required (?:positional|keyword-only) arguments?: (.+)", text)
        ):
            example = json.dumps(dict.fromkeys(re.findall(r"'(\w+)'", missing[1]), "..."))
            raise RequestError(f"{spec.id} cannot be made without its argument {missing[1]}: give --env-kwargs '{example}'") from error
        if isinstance(error, TypeError | AssertionError) and spec.arguments:
            raise RequestError(f"{spec.id} does not take the arguments {spec.arguments} (see --env-kwargs): {text}") from error
        raise RequestError(f"{spec.id} cannot be made: its constructor raised {type(error).__name__}: {text}") from error
    if entry_point.startswith("gymnasium.envs.box2d.bipedal_walker:"):
        env = FreshWorld(env)
    with quiet_known_warnings():
        for name, kwargs in spec.wrappers:
            env = wrap(env, name, kwargs)
    return Border(env, spec.id)


def registered(name: str) -> EnvSpec:
    """What Gymnasium knows of a registered id, with or without the module before a colon."""
    return gym.registry[name.rpartition(":")[2]]


LONG_EPISODE = 10_000
"""Steps after which an episode without a time limit is taken for one that does not end; fewer than ``border.NEVER_ENDING``, since every
step of several episodes is kept."""


def time_limit(spec: EnvironmentSpec) -> int | None:
    """Steps after which an episode is truncated; None if neither the request, nor the registration, nor a wrapper names any."""
    known = gym.registry.get(spec.id.rpartition(":")[2])
    limits = [spec.max_episode_steps or (known.max_episode_steps if known else None)]
    limits += [kwargs.get("max_episode_steps") for name, kwargs in spec.wrappers if name == "TimeLimit"]
    return min((limit for limit in limits if limit), default=None)


def endless(spec: EnvironmentSpec, who: str, steps: int) -> tuple[str, str]:
    """What is wrong with an environment in which an episode of ``who`` did not end in so many steps, and how to go on."""
    what = f"{spec.id} has no time limit, and an episode of {who} went on for {steps:,} steps without an end"
    return what, "give --max-episode-steps 1000, or how many the task takes"


def check_fits(spec: EnvironmentSpec, *spaces: tuple[gym.Space, gym.Space]) -> None:
    """Make the environment once and refuse each pair of observation and action space that is not its own; see ``check_matches``."""
    env = make(spec)
    try:
        for observation_space, action_space in spaces:
            check_matches(spec, env, observation_space, action_space)
    finally:
        env.close()


def check_matches(spec: EnvironmentSpec, env: gym.Env, observation_space: gym.Space, action_space: gym.Space) -> None:
    """Refuse an agent whose spaces are not the environment's. Element types, and bounds of observations, may differ.

    Raises:
        RequestError: in one line, naming both.
    """
    if difference := first_difference((observation_space, action_space), (env.observation_space, env.action_space)):
        role, mine, theirs = difference
        mend = "name the environment it was trained in with --env"
        bounds = _rescaling_that_fits(action_space, env.action_space)
        fitting = wrapper_that_fits(observation_space, env.observation_space) if role == "observations" else None
        wrapper = ("RescaleAction", bounds) if role == "actions" and bounds else fitting
        if wrapper is not None:
            inner = [(name, kwargs) for name, kwargs in spec.wrappers if name not in (STACK, PADDING)]
            option = f"--frame-stack {wrapper[1]['n_stack']}" if wrapper[0] == STACK else wrapper_options([*inner, wrapper])
            mend += f", or give {option} if it was trained with {wrapper[0]}"
        raise RequestError(f"the agent's {role} are {mine}, those of {spec.id} are {theirs}; {mend}")


def wrapper_that_fits(mine: gym.Space, theirs: gym.Space) -> tuple[str, Mapping[str, Any]] | None:
    """Name a wrapper, and its arguments, that makes of the observations ``theirs`` vectors as long as ``mine``; None if none would."""
    if not isinstance(mine, gym.spaces.Box) or len(mine.shape) != 1:
        return None
    length, here = mine.shape[0], theirs.shape
    if not isinstance(theirs, gym.spaces.Box) or here is None or len(here) != 1:
        flat = theirs.is_np_flattenable and gym.spaces.flatdim(theirs) == length
        return ("FlattenObservation", {}) if flat else None
    if length == here[0] + 1:
        return "TimeFeatureWrapper", {}
    if here[0] and length % here[0] == 0 and length > here[0]:
        return STACK, {"n_stack": length // here[0]}
    return None


def _rescaling_that_fits(mine: gym.Space, theirs: gym.Space) -> Mapping[str, Any] | None:
    """The bounds of ``mine``, where they alone differ from those of ``theirs``, as RescaleAction takes them."""
    if not (isinstance(mine, gym.spaces.Box) and isinstance(theirs, gym.spaces.Box) and mine.shape == theirs.shape):
        return None
    if not (mine.is_bounded() and theirs.is_bounded()):
        return None
    bounds = {"min_action": mine.low, "max_action": mine.high}
    return {name: float(value.flat[0]) if (value == value.flat[0]).all() else value.tolist() for name, value in bounds.items()}


def first_difference(mine: tuple[gym.Space, gym.Space], theirs: tuple[gym.Space, gym.Space]) -> tuple[str, str, str] | None:
    """Compare two pairs of observation and action space: ``observations`` or ``actions`` and what they are here and there, in words.

    Returns:
        None if who acts in the one pair can act in the other. Element types, and bounds of observations, may differ.
    """
    for role, one, other in zip(("observations", "actions"), mine, theirs, strict=True):
        if _kind(one, role) != _kind(other, role):
            return role, _words(one, role), _words(other, role)
    return None


def _stand_in(old_id: str) -> Entry | None:
    return next((entry for entry in entries().values() if old_id in entry.replaces), None)


def _check_registered(spec: EnvironmentSpec) -> None:
    """Raise if Gymnasium cannot make ``spec``; a module before a colon is imported where the spec allows it."""
    name = spec.id
    module, _, gym_id = name.rpartition(":")
    if module and spec.imports:
        try:
            importlib.import_module(module)
        except (ImportError, ValueError) as error:
            raise RequestError(f"the module {module} of the environment {name} cannot be imported: {error}") from error
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
    raise RequestError(f"{name} is neither an entry of envs/ nor a registered Gymnasium id{hint}; name your own as module:ID")


@functools.cache
def _read_folder(folder: Path) -> Mapping[str, Entry]:
    return {path.stem: _read_entry(path) for path in sorted(folder.glob("*.yaml"))}


def _read_entry(path: Path) -> Entry:
    data = read_yaml(path, "it must be YAML like the files of envs/")
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
        wrappers.append((asked_name(name), kwargs))
    spec = EnvironmentSpec(data["id"], data.get("kwargs", {}), effective(wrappers), evaluation.get("max_episode_steps"), data.get("extra"))
    replaces, episodes = data.get("replaces", {}), evaluation.get("episodes", 100)
    return Entry(spec, data.get("observation_dim"), replaces, episodes, evaluation.get("solved_return"))


def _is_shallow(value: Any, levels: int) -> bool:
    """Whether containers lie in each other ``levels`` deep at most: what is deeper can be read, but neither printed nor copied."""
    if isinstance(value, Mapping):
        value = list(value.values())
    return not isinstance(value, list | tuple) or (levels > 0 and all(_is_shallow(item, levels - 1) for item in value))


def _only_known_keys(where: str, data: Mapping[str, Any], known: list[str]) -> None:
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise RequestError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(known)}")


def _call(name: str, kwargs: Mapping[str, Any]) -> str:
    return f"{name} ({', '.join(f'{key}={value!r}' for key, value in kwargs.items())})" if kwargs else name


def _kind(space: gym.Space, role: str) -> object:
    """What must be the same for an agent to act."""
    match space:
        case gym.spaces.Box() if role == "actions":
            low, high = (bound.astype(np.float64).round(4).tolist() for bound in (space.low, space.high))
            return space.shape, low, high
        case gym.spaces.Box():
            return space.shape
        case gym.spaces.Discrete():
            return int(space.n), int(space.start)
        case gym.spaces.MultiDiscrete():
            return space.nvec.tolist(), np.asarray(space.start).tolist()
    return str(space)


def _words(space: gym.Space, role: str) -> str:
    match space:
        case gym.spaces.Box():
            numbers = "1 number" if space.shape == (1,) else f"{'x'.join(map(str, space.shape))} numbers"
            return numbers if role == "observations" else f"{numbers} in [{space.low.min():g}, {space.high.max():g}]"
        case gym.spaces.Discrete():
            return f"one of {space.n} choices"
    return str(space)
