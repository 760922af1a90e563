"""What ``config.yml`` and ``args.yml`` of an RL Zoo run say, read without executing their Python tags."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from policy_distill.config import RequestError

MAX_BYTES = 1 << 20
Wrapper = tuple[str, Mapping[str, Any]]


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one of the zoo's files: plain data, ordered pairs as a dict, any other Python tag as None.

    Raises:
        RequestError: if the file is too large, no YAML, or no mapping.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RequestError(f"{path} is larger than the {MAX_BYTES} bytes that are read; settings of a run are much smaller")
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_InertLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError, TypeError, OSError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{path} is no readable YAML; copy it again from the run, or remove it and name the environment") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise RequestError(f"{path} holds no settings (a mapping was expected); copy it again from the run's folder")
    return data


class _InertLoader(yaml.SafeLoader):
    """Plain YAML; the zoo's ordered dicts as dicts; whatever else a tag asks for is None."""


def _ordered_dict(loader: yaml.SafeLoader, node: yaml.Node) -> dict[Any, Any] | None:
    """``!!python/object/apply:collections.OrderedDict [[[key, value], ...]]`` as a dict."""
    if not isinstance(node, yaml.SequenceNode):
        return None
    arguments = loader.construct_sequence(node, deep=True)
    pairs = arguments[0] if arguments else []
    return {key: value for key, value in pairs} if isinstance(pairs, list) else None  # noqa: C416  (a pair that is none raises here)


def _sequence(loader: yaml.SafeLoader, node: yaml.Node) -> list[Any] | None:
    return loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else None


def _inert(loader: yaml.SafeLoader, node: yaml.Node) -> None:
    return None


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
    try:
        setting = literal(config.get("normalize"))
    except ValueError as error:
        raise RequestError(f"{source}: normalize is {config['normalize']!r}; it must be true, false or a dict") from error
    if isinstance(setting, dict):
        return setting.get("norm_obs", True) is not False
    return bool(setting)


def environment_kwargs(config: Mapping[str, Any], arguments: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """Keyword arguments of the environment; those of the command line (``args.yml``) win."""
    merged: dict[str, Any] = {}
    for settings in (config, arguments):
        try:
            kwargs = literal(settings.get("env_kwargs"))
        except ValueError as error:
            raise RequestError(f"{source}: env_kwargs is {settings['env_kwargs']!r}; it must be a dict of plain values") from error
        if isinstance(kwargs, dict):
            merged.update({str(key): value for key, value in kwargs.items()})
    return merged


def environment_wrappers(config: Mapping[str, Any], source: Path) -> tuple[Wrapper, ...]:
    """The wrappers around the environment, innermost first, by their class's last name; frame stacking as ``VecFrameStack``."""
    wrappers: list[Wrapper] = []
    for key in ("env_wrapper", "vec_env_wrapper"):
        entries = config.get(key)
        for entry in entries if isinstance(entries, list) else [entries]:
            if entry is None:
                continue
            name, kwargs = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (entry, None)
            if not isinstance(name, str) or not isinstance(kwargs, dict | None):
                raise RequestError(f"{source}: {key} is {entry!r}; it must be a class's name, or a dict of one name and its arguments")
            wrappers.append((name.rpartition(".")[2], dict(kwargs or {})))
    if isinstance(frames := literal(config.get("frame_stack")), int) and frames > 1:
        wrappers.append(("VecFrameStack", {"n_stack": frames}))
    return tuple(wrappers)
