"""Errors with a message of one line: a wrong request, and a failure while the job runs."""

from __future__ import annotations

from typing import get_args, get_type_hints

from policy_distill.config.printable import one_line


class RequestError(ValueError):
    """The request was wrong (exit code 2). The message is one line for the user: what is wrong and how to fix it.

    Messages quote files and their names, so the line is cut to a readable length and control characters are escaped.
    """

    def __init__(self, message: object) -> None:
        super().__init__(one_line(message))


class Fault(RuntimeError):
    """The job cannot continue (exit code 1). The message is one line: what happened, where, and what to do."""


class EnvironmentFault(Fault):
    """An environment raised, hung, or returned a value such as NaN that makes the results meaningless."""


class EnvironmentCrash(EnvironmentFault):
    """An environment raised, hung or ended its process. Unlike a wrong value, this may not happen again in another process."""


class TrainingFault(Fault):
    """A loss or a weight became NaN or infinite."""


class MemoryFault(Fault):
    """The memory of the device was not enough."""


class StorageFault(Fault):
    """A file could not be written: the disk is full or read-only, or the folder is gone."""


class ExportFault(Fault):
    """An exported policy does not act as its student does; it is not written."""


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise ``RequestError`` with the setting's dotted name, its value and the allowed range unless ``condition`` holds."""
    if not condition:
        raise RequestError(f"{name} is {value!r}; it must be {allowed}")


def require_choice(owner: type, section: str, name: str, value: object) -> None:
    """``require`` for a field that is annotated with a ``Literal``."""
    choices = get_args(get_type_hints(owner)[name])
    require(value in choices, f"{section}.{name}", value, f"one of {', '.join(choices)}")
