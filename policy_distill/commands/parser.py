"""Reading a command's options: jsonargparse with errors of one line, and the RL Zoo's way of naming an agent."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from policy_distill.commands.config_file import check_config_files, check_what_only_a_user_says
from policy_distill.config import DistillConfig, RequestError
from policy_distill.printable import one_line

set_parsing_settings(docstring_parse_attribute_docstrings=True)


class Parser(ArgumentParser):
    """jsonargparse, with errors of one line.

    Args:
        command: whose options; left out, as jsonargparse does for the items of a list, there is no ``--config`` among them.
        description: for ``--help``.
        settings: of jsonargparse's own parser.
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
            "-P", "--progress", action="store_true", help="accepted for the RL Zoo's sake; progress is always shown in a terminal"
        )

    def add_class_arguments(self, theclass: type[Any], *arguments: Any, **settings: Any) -> Any:
        self._groups.append(theclass)
        return super().add_class_arguments(theclass, *arguments, **settings)

    def parse(self, arguments: Sequence[str]) -> Namespace:
        arguments = spelled_out(arguments)
        check_config_files(arguments, self._groups)
        try:
            options = self.parse_args(arguments)
        except SystemExit as end:  # --help and --print_config end here
            if end.code in (0, None):
                raise
            raise RequestError("the command line could not be read: see --help") from None
        except RequestError:
            raise
        except Exception as error:  # jsonargparse raises several kinds; all mean that the request was wrong
            raise RequestError(self._explain(str(error))) from None
        check_what_only_a_user_says(arguments, options)
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
        except Exception as error:  # a value that jsonargparse lets through, such as null where a number belongs
            raise RequestError(f"a setting has no value that can be used: {self._explain(str(error))}") from error

    def _explain(self, message: str) -> str:
        """Make jsonargparse's message one line, and name the nearest option of one that does not exist."""
        message = one_line(message)
        known = [action.dest for action in self._actions]
        unknown = re.search(r"unrecognized arguments?: '?(?:--)?([\w.]+)|[Oo]ption '([\w.]+)' is not accepted|Key '([\w.]+)'", message)
        nested = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
        if unknown or nested:
            key = ".".join(nested.groups()) if nested else next(group for group in unknown.groups() if group)  # type: ignore[union-attr]
            if key not in known:
                return f"no option {key!r}{nearest(key, known)}; see --help"
        wrong = re.search(r"[Kk]ey \"([\w.]+)\": Expected an? (.*)\. Got value: (.*)", message)
        if wrong:
            kind = re.sub(r"<class '(\w+)'>|typing\.Literal", lambda match: match[1] or "one of ", wrong[2])
            return f"{wrong[1]} is {wrong[3]!r}; it must be {kind}"
        return message


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """``--trust`` and ``--stochastic`` alone mean ``true``, and ``--student same`` means ``--student.same true``."""
    spelled: list[str] = []
    for index, argument in enumerate(arguments):
        following = arguments[index + 1] if index + 1 < len(arguments) else ""
        if argument in ("--trust", "--stochastic") and following not in ("true", "false"):
            spelled.append(f"{argument}=true")
        elif argument == "same" and spelled and spelled[-1] == "--student":
            spelled[-1] = "--student.same=true"
        else:
            spelled.append("--student.same=true" if argument == "--student=same" else argument)
    return spelled


def add_zoo_folder(parser: Parser) -> None:
    parser.add_argument("-f", "--folder", type=str | None, default=None, help="with --algo and --env: the RL Zoo's folder of agents")


def with_zoo_teacher(config: DistillConfig, folder: str | None) -> DistillConfig:
    """``--algo ppo --env LunarLander-v3 -f FOLDER`` names the teacher as the RL Zoo's commands do."""
    path = zoo_path(config.teacher, folder, config.algo, config.env)
    if path == config.teacher:
        return config
    return dataclasses.replace(config, teacher=path, env=None)


def zoo_path(teacher: str, folder: str | None, algo: str | None, env: str | None) -> str:
    if teacher:
        return teacher
    if not (algo and env):
        raise RequestError("no teacher was named: give --teacher PATH_OR_NAME, or --algo and --env (and -f FOLDER) as for the RL Zoo")
    if folder is None:
        return f"{algo}/{env}"
    runs = sorted(Path(folder, algo).glob(f"{env}_*"), key=lambda path: (len(path.name), path.name))
    if not runs:
        raise RequestError(f"no run {algo}/{env}_N in {folder}: look at what the folder holds")
    return str(runs[-1])


def nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
