"""Settings that execute code. A config file alone cannot set them: the user must type them on the command line."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from policy_distill.config.environment import EnvironmentOptions, wrapper_options


@dataclass(frozen=True)
class RunsCode:
    """A setting that executes code.

    Attributes:
        name: name of the option.
        what: predicate for the message "the config file FILE ...": the value and the code that it would execute.
        option: the option as the user would type it.
    """

    name: str
    what: str
    option: str

    @property
    def typed(self) -> str:
        """What the user is asked to type."""
        return f"{self.option} if you trust them" if self.name == "trust" else self.option


def settings_that_run_code(settings: Mapping[str, Any]) -> Iterator[RunsCode]:
    """The entries of ``settings`` (top-level options by name) that execute code.

    Raises:
        RequestError: if the wrappers among them are malformed.
    """
    if settings.get("trust"):
        yield RunsCode("trust", "sets trust: true, which runs code from an agent's files", "--trust")
    env = settings.get("env")
    if isinstance(env, str) and (module := env.rpartition(":")[0]):
        yield RunsCode("env", f"names the environment {env}, and importing {module} runs its code", f"--env {shlex.quote(env)}")
    wrappers = EnvironmentOptions(wrapper=settings.get("wrapper")).wrappers or ()
    if imported := [wrapper for wrapper in wrappers if re.search("[:.]", wrapper[0])]:
        yield RunsCode("wrapper", "names wrappers by module:Class, and importing them runs their code", wrapper_options(imported))
    student = settings.get("student")
    inputs = student.get("inputs") if isinstance(student, Mapping) else getattr(student, "inputs", None)
    if isinstance(inputs, Mapping) and (wrapper := inputs.get("wrapper")):
        what = f"names the wrapper {wrapper} of the student's inputs, and importing it runs its code"
        yield RunsCode("student.inputs", what, f"--student.inputs {shlex.quote(json.dumps(dict(inputs)))}")
    for name in ("extractor", "teacher_extractor"):
        if extractor := settings.get(name):
            yield RunsCode(name, f"names the features extractor {extractor}, which is code", f"--{name} {shlex.quote(str(extractor))}")
