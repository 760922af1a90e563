"""Parsing of a command's options: jsonargparse with one-line errors, and the RL Zoo's way of naming an agent."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from policy_distill.commands.options.config_file import check_code_is_typed, check_config_files, config_files_first
from policy_distill.config import DistillConfig, EnvironmentOptions, EvaluateConfig, Reading, RequestError
from policy_distill.config.printable import one_line

set_parsing_settings(docstring_parse_attribute_docstrings=True)

TRUST = "let SB3 unpickle an agent that cannot be rebuilt from plain data; runs code from its file"
"""Help of ``--trust``."""


class Parser(ArgumentParser):
    """jsonargparse's parser, with one-line errors.

    Args:
        command: name of the command. Empty for the parsers that jsonargparse itself makes for list items; these have no ``--config``.
        description: text for ``--help``.
        settings: arguments of jsonargparse's own parser.
    """

    def __init__(self, command: str = "", description: str | None = None, **settings: Any) -> None:
        super().__init__(
            **{"prog": f"policy-distill {command}", "description": description, "exit_on_error": False, "allow_abbrev": False, **settings}
        )
        self._groups: list[type[Any]] = []
        if command:
            self.add_argument("--config", action="config", help="YAML file with any of the options below")

    def add_display_arguments(self) -> None:
        self.add_argument("--json", action="store_true", help="print the result as JSON and nothing else")
        self.add_argument(
            "-P", "--progress", action="store_true", help="ignored, for compatibility with the RL Zoo; a terminal always shows progress"
        )

    def add_step_timeout(self) -> None:
        what = "time limit in seconds of one step or reset of the environment; default: no limit"
        self.add_argument("--step_timeout", "--step-timeout", type=float | None, default=None, help=what)

    def add_class_arguments(self, theclass: type[Any], *arguments: Any, **settings: Any) -> Any:
        self._groups.append(theclass)
        return super().add_class_arguments(theclass, *arguments, **settings)

    def parse(self, arguments: Sequence[str]) -> Namespace:
        arguments = config_files_first(spelled_out(arguments))
        check_config_files(arguments, self._groups)
        try:
            options = self.parse_args(arguments)
        except SystemExit as end:  # --help and --print_config end here
            if end.code in (0, None):
                raise
            raise RequestError("the command line could not be read: see --help") from None
        except RequestError:
            raise
        except Exception as error:  # jsonargparse raises several classes, all for a wrong request
            raise RequestError(self._explain(str(error))) from None
        check_code_is_typed(arguments, options)
        return options

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise RequestError(self._explain(message)) from ex

    def config(self, options: Namespace, kind: type[Any]) -> Any:
        """Build the dataclass whose fields are among the options."""
        try:
            built = self.instantiate(options)
            return kind(**{field.name: built[field.name] for field in dataclasses.fields(kind) if field.name in built})
        except RequestError:
            raise
        except Exception as error:  # a value that jsonargparse accepts wrongly, such as null for a number
            raise RequestError(f"a setting has an invalid value: {self._explain(str(error))}") from error

    def _explain(self, message: str) -> str:
        """Rewrite jsonargparse's message as one line; for an unknown option, suggest the nearest one."""
        message = one_line(message)
        known = [action.dest for action in self._actions]
        unknown = re.search(r"unrecognized arguments?: '?(?:--)?([\w.]+)|[Oo]ption '([\w.]+)' is not accepted|Key '([\w.]+)'", message)
        nested = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
        if unknown or nested:
            key = ".".join(nested.groups()) if nested else next(group for group in unknown.groups() if group)  # type: ignore[union-attr]
            if key not in known:
                return f"no option {key!r}{nearest(key, known)}; see --help"
        if message.startswith('Parser key "wrapper": '):
            return f"wrapper is {message.rpartition('Given value: ')[2]!r}; in a file it must be a list: [NAME, NAME: {{argument: value}}]"
        wrong = _OPTIONAL.search(message) or re.search(r"[Kk]ey \"([\w.]+)\": Expected an? (.*)\. Got value: ?(.*)", message)
        if wrong:
            kind = """'{"NAME": VALUE}' or NAME:VALUE""" if wrong[1] == "env_kwargs" else _kind(wrong[2])
            return f"{wrong[1]} is {wrong[3]!r}; it must be {kind}"
        if missing := re.search(r"[Kk]ey \"config\": File does not exist: '?(.*?)'?$", message):
            return f"there is no file {missing[1]}: --config names a YAML file such as the config.yaml of a run"
        if group := re.search(r"[Kk]ey \"([\w.]+)\": Unable to load config '(.*?)'", message):
            return f"{group[1]} is {group[2]!r}; it must be a YAML file of the settings {group[1]}.NAME"
        if item := re.search(r"[Kk]ey \"([\w.]+)\": Not a valid subclass of \w+\. Got value: ?(.*) Subclass types expect", message):
            return f"{item[1]} holds {item[2]!r}; each item must be a mapping of settings"
        return message


# jsonargparse's words for a value that an option with a type and null takes as neither
_OPTIONAL = re.compile(r"[Kk]ey \"([\w.]+)\": Does not validate against any of .* Subtypes: \[(.*)\] Errors: .* Given value: ?(.*)")


def _kind(types: str) -> str:
    """What a value must be, from the Python types in jsonargparse's message."""
    for pattern, words in (
        (r"<class 'tuple'>", "a list"),
        (r"<class '(?:[\w.]+\.)?(\w+)'>", lambda match: match[1].lower()),
        (r"tuple\[(\w+), \.\.\.\]", r"a list of \1"),
        (r"dict\[\w+, \w+\]", '{"NAME": VALUE}'),
        (r"typing\.Literal", "one of "),
        (r", nonetype$", ", or left out"),
    ):
        types = re.sub(pattern, words, types)
    return types


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """Translate short forms of options into the form that jsonargparse parses.

    - Hyphens in option names become underscores.
    - ``--trust``, ``--stochastic`` and ``--check.skip`` without a value mean ``true``; ``--student same`` means ``--student.same true``.
    - ``--engine ray`` means ``--engine.kind ray``; ``--address`` means ``--engine.address``.
    - ``--env_kwargs a:1 b:True``, the RL Zoo's form, becomes a mapping; values are Python literals, or else strings. Nothing is evaluated.
    - ``--wrapper``, given once or several times, becomes one list.
    - Ranges within ``--student.inputs`` are quoted.
    """
    spelled: list[str] = []
    wrappers: list[Any] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
            name = {"--engine": "--engine.kind", "--address": "--engine.address"}.get(name, name)
        if name in ("--trust", "--stochastic", "--check.skip") and not equals and (not rest or rest[0] not in ("true", "false")):
            spelled.append(f"{name}=true")
        elif name == "--student" and (value == "same" or (rest and not equals and rest[0] == "same")):
            spelled.append("--student.same=true")
            if not equals:
                rest.pop(0)
        elif name == "--student.inputs" and (equals or rest):
            spelled.append(f"{name}={_quoted_ranges(value if equals else rest.pop(0))}")
        elif name == "--env_kwargs":
            values = [value] if equals else _values(rest)
            pairs = [_PAIR.fullmatch(text) for text in values]
            together = json.dumps({pair[1]: _literal(pair[2]) for pair in pairs if pair}) if values and all(pairs) else " ".join(values)
            spelled.append(f"{name}={together}")
        elif name == "--wrapper":
            values = [value] if equals else _values(rest)
            if not values:
                raise RequestError("wrapper is empty; it must be a known name, module:Class, or none")
            wrappers += [_wrapper(text) for text in values]
        else:
            spelled.append(name + equals + value)
    if wrappers:
        flat = [one for item in wrappers for one in (item if isinstance(item, list) else [item])]
        spelled.append(f"--wrapper={json.dumps(flat)}")
    return spelled


def _quoted_ranges(text: str) -> str:
    """``[0,1,4:6]`` as ``[0,1,"4:6"]``: YAML takes 4:6 for 246, four times sixty and six."""
    return re.sub(r"(?<![\w\"':.])(\d+:\d+)(?=\s*[,\]])", r'"\1"', text)


_PAIR = re.compile(r"([^\W\d]\w*):(.*)", re.DOTALL)


def _values(rest: list[str]) -> list[str]:
    """Remove the values of an option from the front of the remaining arguments, and return them."""
    count = next((index for index, text in enumerate(rest) if re.match(r"--?[^\W\d]", text)), len(rest))
    taken = rest[:count]
    del rest[:count]
    return taken


def _literal(text: str) -> Any:
    """The Python literal in ``text`` (``1``, ``True``, ``[1, 2]``, ``'text'``), else ``text`` itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _wrapper(text: str) -> Any:
    """A wrapper's name, or the YAML mapping or list in ``text``."""
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RequestError(f"wrapper is {text!r}, which cannot be read as YAML: {one_line(str(error))}") from None


def add_environment_arguments(parser: Parser) -> None:
    """Add ``--env`` and the other environment options; ``parser.config(options, EnvironmentOptions)`` builds them."""
    parser.add_class_arguments(EnvironmentOptions)


def add_reading_arguments(parser: Parser, *, agent: str = "the agent", teacher: bool = False, skip: bool = True) -> None:
    """Add options for reading an agent's files; ``reading_of`` builds a ``Reading`` from them.

    Args:
        parser: parser of the command.
        agent: description of the agent, for ``--help``.
        teacher: whether the command takes a second agent by ``--teacher``, whose options are named ``--teacher_...``.
        skip: whether to add ``--check.skip``.
    """
    for prefix, described in (("", agent), *((("teacher_", "the teacher"),) if teacher else ())):
        parser.add_argument(f"--{prefix}algo", type=str | None, default=None, help=f"algorithm of {described}, if its files do not name it")
        parser.add_argument(
            f"--{prefix}normalization", type=str | None, default=None, metavar="PATH",
            help=f"file of VecNormalize statistics of {described}, or none; default: search beside the zip and in its settings folder",
        )  # fmt: skip
        parser.add_argument(
            f"--{prefix}extractor", type=str | None, default=None, metavar="FILE.py:CLASS", help=f"features extractor of {described}"
        )
    parser.add_argument("--trust", type=bool, default=False, help=TRUST)
    if skip:
        parser.add_argument(
            "--check.skip", type=bool, default=False, help="report findings that would stop the command as notes, and continue"
        )


def protocol_of(**settings: Any) -> EvaluateConfig:
    """An ``EvaluateConfig`` from options that are named without ``evaluate.``, as its refusals are then too.

    Raises:
        RequestError: if a setting is out of range.
    """
    try:
        return EvaluateConfig(**settings)
    except RequestError as error:
        raise RequestError(str(error).removeprefix("evaluate.")) from None


def reading_of(options: Namespace, prefix: str = "") -> Reading:
    """The ``Reading`` of the agent whose options begin with ``prefix``."""
    algo, normalization, extractor = (getattr(options, f"{prefix}{name}") for name in ("algo", "normalization", "extractor"))
    return Reading(algo, normalization, extractor, options.trust)


def add_zoo_folder(parser: Parser) -> None:
    parser.add_argument("-f", "--folder", type=str | None, default=None, help="with --algo and --env: the RL Zoo's folder of agents")


def with_zoo_teacher(config: DistillConfig, folder: str | None) -> DistillConfig:
    """``--algo ppo --env LunarLander-v3 -f FOLDER`` names the teacher as the RL Zoo's commands do."""
    path = zoo_path(config.teacher, folder, config.algo, config.env)
    if path == config.teacher:
        return config
    return dataclasses.replace(config, teacher=path, env=None)


def zoo_path(teacher: str, folder: str | None, algo: str | None, env: str | None) -> str:
    if teacher and folder is not None:
        raise RequestError(f"folder is {folder!r}, which goes with --algo and --env: leave it or --teacher out")
    if teacher:
        return teacher
    if not (algo and env):
        raise RequestError("no teacher was named: give --teacher PATH_OR_NAME, or --algo and --env (and -f FOLDER) as for the RL Zoo")
    if folder is None:
        return f"{algo}/{env}"
    runs = sorted(Path(folder, algo).glob(f"{env}_*"), key=lambda path: (len(path.name), path.name))
    if not runs:
        raise RequestError(f"no run {algo}/{env}_N in {folder}: check the folder's contents")
    return str(runs[-1])


def nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
