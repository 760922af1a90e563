"""Reading ``config.yml`` and ``args.yml`` of an RL Zoo run without executing their Python tags."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from policy_distill.config import RequestError
from policy_distill.config.environment import Wrapper
from policy_distill.environments.known_wrappers import STACK, effective, saved_name
from policy_distill.support.untrusted import MAX_YAML_BYTES, BoundedLoader, read_text, refuse_damage

SETTINGS = ("algo", "env", "env_kwargs", "env_wrapper", "vec_env_wrapper", "frame_stack", "normalize")
"""The keys that are read; others are ignored."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one of the zoo's files: plain data, ordered pairs as a dict; nothing that another Python tag asks for is made.

    Raises:
        RequestError: if the file is too large, no YAML, no mapping, or one of its ``SETTINGS`` is a Python object.
    """
    with refuse_damage(path, "copy it again from the run, or remove it and name the environment"):
        data = yaml.load(read_text(path, MAX_YAML_BYTES), Loader=_InertLoader)
        unread = [key for key in SETTINGS if isinstance(data, dict) and _holds_object(data.get(key))]
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise RequestError(f"{path} holds no settings (a mapping was expected); copy it again from the run's folder")
    if unread:
        raise RequestError(f"{path}: {unread[0]} holds a Python object, which is not made; write it as plain YAML")
    return data


class _PythonObject:
    """Placeholder for a Python object that was not constructed."""


def _holds_object(value: object) -> bool:
    if isinstance(value, dict):
        return any(_holds_object(item) for item in value.values())
    if isinstance(value, list):
        return any(_holds_object(item) for item in value)
    return isinstance(value, _PythonObject)


class _InertLoader(BoundedLoader):
    """YAML loader for plain data and the Zoo's ordered dicts; other Python tags give an empty ``_PythonObject``."""


def _ordered_dict(loader: yaml.SafeLoader, node: yaml.Node) -> object:
    """``!!python/object/apply:collections.OrderedDict [[[key, value], ...]]`` as a dict."""
    if not isinstance(node, yaml.SequenceNode):
        return _PythonObject()
    arguments = loader.construct_sequence(node, deep=True)
    pairs = arguments[0] if arguments else []
    return {key: value for key, value in pairs} if isinstance(pairs, list) else _PythonObject()  # noqa: C416  (a pair that is none raises here)


def _sequence(loader: yaml.SafeLoader, node: yaml.Node) -> object:
    return loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else _PythonObject()


def _inert(loader: yaml.SafeLoader, node: yaml.Node) -> object:
    return _PythonObject()


_InertLoader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", _ordered_dict)
_InertLoader.add_constructor("tag:yaml.org,2002:python/tuple", _sequence)
_InertLoader.add_constructor(None, _inert)


def literal(value: Any) -> Any:
    """Read a setting that the zoo wrote as Python text: ``"dict(a=1)"``, ``"{'a': 1}"``, ``"true"``; other values as they are.

    Raises:
        ValueError: if the text is more than a literal.
    """
    if not isinstance(value, str):
        return value
    text = " ".join(value.split())
    if text.lower() in ("true", "false", "none", ""):
        return {"true": True, "false": False}.get(text.lower())
    try:
        with warnings.catch_warnings():  # the parser's, about text that is doubtful Python
            warnings.simplefilter("ignore")
            tree = ast.parse(text, mode="eval").body
            if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "dict" and not tree.args:
                if any(keyword.arg is None for keyword in tree.keywords):
                    raise ValueError("no literal")
                return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in tree.keywords}
            return ast.literal_eval(tree)
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError("no literal") from error


def normalizes_observations(config: Mapping[str, Any], source: Path) -> bool:
    """Whether the run normalised observations: ``normalize`` is there and does not say ``norm_obs=False``."""
    return _normalizes("norm_obs", config, source)


def normalizes_rewards(config: Mapping[str, Any], source: Path) -> bool:
    """Whether the run normalised rewards: ``normalize`` is there and does not say ``norm_reward=False``."""
    return _normalizes("norm_reward", config, source)


def _normalizes(what: str, config: Mapping[str, Any], source: Path) -> bool:
    try:
        setting = literal(config.get("normalize"))
    except ValueError as error:
        raise RequestError(f"{source}: normalize is {_short(config['normalize'])}; it must be true, false or a dict") from error
    return setting.get(what, True) is not False if isinstance(setting, dict) else bool(setting)


def environment_kwargs(
    config: Mapping[str, Any], arguments: Mapping[str, Any], source: Path, uploaded: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Keyword arguments of the environment; those of the command line (``args.yml``) win, then those that the zoo ``uploaded``."""
    merged: dict[str, Any] = {}
    for settings in (config, arguments, uploaded or {}):
        try:
            kwargs = literal(settings.get("env_kwargs"))
        except ValueError as error:
            raise RequestError(f"{source}: env_kwargs is {_short(settings['env_kwargs'])}; it must be a dict of plain values") from error
        if isinstance(kwargs, dict):
            merged.update({str(key): value for key, value in kwargs.items()})
    return merged


def environment_wrappers(config: Mapping[str, Any], source: Path) -> tuple[Wrapper, ...]:
    """The wrappers around the environment, innermost first, those without effect left out; frame stacking as ``VecFrameStack``.

    A known one goes by its class's last name, another by its dotted path; see ``known_wrappers.saved_name``. The order is the Zoo's: what
    stands around one environment, around the vector of them, and last the frame stack, inside of which observations are normalised.
    """
    wrappers: list[Wrapper] = []
    for key in ("env_wrapper", "vec_env_wrapper"):
        entries = config.get(key)
        for entry in entries if isinstance(entries, list) else [entries]:
            if entry is None:
                continue
            name, kwargs = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (entry, None)
            if not isinstance(name, str) or not isinstance(kwargs, dict | None):
                raise RequestError(f"{source}: {key} is {_short(entry)}; it must be a class's name or a dict of a name and its arguments")
            wrappers.append((saved_name(name), dict(kwargs or {})))
    frames = config.get("frame_stack")
    if frames is not None and not isinstance(frames, int):
        raise RequestError(f"{source}: frame_stack is {_short(frames)}; it must be a whole number")
    if frames is not None and frames > 1:
        wrappers.append((STACK, {"n_stack": frames}))
    return effective(wrappers)


def _short(value: object) -> str:
    return repr(str(value)[:100])
