"""The errors that are told in one line: a wrong setting, and a fault in the middle of the work."""

from __future__ import annotations

from typing import get_args, get_type_hints

from policy_distill.config.printable import one_line


class RequestError(ValueError):
    """The request was wrong. The message is one line for its user: what is wrong and how to fix it (exit code 2).

    Messages quote files and their names: the line is cut to a readable length, and control characters in it are escaped.
    """

    def __init__(self, message: object) -> None:
        super().__init__(one_line(message))


class Fault(RuntimeError):
    """The work cannot go on. The message is one line that says what happened, where, and what to do (exit code 1)."""


class EnvironmentFault(Fault):
    """An environment failed, hung, or answered with something that makes every figure meaningless."""


class TrainingFault(Fault):
    """A loss or a weight became NaN or infinite."""


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise ``RequestError`` with the setting's dotted name, its value and what would be allowed."""
    if not condition:
        raise RequestError(f"{name} is {value!r}; it must be {allowed}")


def require_choice(owner: type, section: str, name: str, value: object) -> None:
    """The same for a field that is annotated with a ``Literal``."""
    choices = get_args(get_type_hints(owner)[name])
    require(value in choices, f"{section}.{name}", value, f"one of {', '.join(choices)}")
