"""Validation of ``--config`` files. They are untrusted: they set options, but cannot import a module or grant trust.

jsonargparse imports and calls what a ``class_path`` names, and takes a text in place of a group of settings for a module's or another
file's name. Both are refused before it sees the file.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Any, get_args, get_type_hints

from jsonargparse import Namespace

from policy_distill.config import RequestError
from policy_distill.config.code import settings_that_run_code
from policy_distill.support.untrusted import read_yaml, refuse_damage


def config_files_first(arguments: Sequence[str]) -> list[str]:
    """Move ``--config FILE`` before all other arguments: later ones take precedence, so typed options override files."""
    files: list[str] = []
    typed: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--config" and rest:
            files.append(f"--config={rest.pop(0)}")
        else:
            (files if argument.startswith("--config=") else typed).append(argument)
    return [*files, *typed]


def check_config_files(arguments: Sequence[str], groups: Iterable[type[Any]]) -> None:
    """Read each ``--config`` file among the arguments as plain data of bounded size, and check its structure.

    Args:
        arguments: command line, as returned by ``config_files_first``.
        groups: dataclasses whose fields are options.

    Raises:
        RequestError: if a file contains anything but plain settings.
    """
    paths = [argument.partition("=")[2] for argument in arguments if argument.startswith("--config=")]
    for path in filter(os.path.exists, paths):  # jsonargparse reports missing files
        data = read_yaml(path, "it must be YAML such as the config.yaml of a run")
        if not isinstance(data, dict):
            raise RequestError(f"{path} contains no settings: it must be YAML such as the config.yaml of a run")
        if "config" in data:
            raise RequestError(f"{path} names another config file: give --config for one file with all settings")
        with refuse_damage(path, "it must be YAML such as the config.yaml of a run"):
            _refuse_classes(path, data)
            for group in groups:
                _check_groups(path, "", data, group)


def check_code_is_typed(arguments: Sequence[str], options: Namespace) -> None:
    """Refuse settings that run code (trust, imports) unless they are on the command line itself.

    Args:
        arguments: command line.
        options: parsed options, including those of ``--config``.

    Raises:
        RequestError: with the option to type.
    """
    typed = {argument.partition("=")[0] for argument in arguments}
    for found in settings_that_run_code(vars(options)):
        if f"--{found.name}" not in typed:
            raise RequestError(f"the config file {found.what}: give {found.typed}")


def _refuse_classes(path: str, value: Any) -> None:
    if isinstance(value, dict):
        if "class_path" in value:
            raise RequestError(f"{path} contains a class_path, which would import and call what it names: write plain values")
        for item in value.values():
            _refuse_classes(path, item)
    elif isinstance(value, list):
        for item in value:
            _refuse_classes(path, item)


def _check_groups(path: str, name: str, value: Any, hint: Any) -> None:
    """Refuse anything but a mapping where ``hint`` is a group of settings (a dataclass) or contains one."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise RequestError(f"{path}: {name} is {value!r}; it must be a mapping of settings")
        hints = get_type_hints(hint)
        for key, item in value.items():
            if key in hints:
                _check_groups(path, f"{name}.{key}".lstrip("."), item, hints[key])
        return
    for part in get_args(hint):
        for item in value if isinstance(value, list) else [] if value is None else [value]:
            _check_groups(path, name, item, part)
