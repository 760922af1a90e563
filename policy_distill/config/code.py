"""Which settings run code. A file may not say them by itself: only what the user types does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from policy_distill.config.environment import EnvironmentOptions, wrapper_options


@dataclass(frozen=True)
class RunsCode:
    """A setting that runs code.

    Attributes:
        name: of the option.
        what: it names, and what that would run, in words that follow the file's name.
        typed: the option as the user types it.
    """

    name: str
    what: str
    typed: str


def settings_that_run_code(settings: Mapping[str, Any]) -> Iterator[RunsCode]:
    """Those among ``settings``, the values of top-level options by their names.

    Raises:
        RequestError: if the wrappers among them are none.
    """
    if settings.get("trust"):
        yield RunsCode("trust", "says trust: true, which runs code from an agent's files", "--trust if you trust them")
    env = settings.get("env")
    if isinstance(env, str) and (module := env.rpartition(":")[0]):
        yield RunsCode("env", f"names the environment {env}, and importing {module} runs its code", f"--env {env}")
    wrappers = EnvironmentOptions(wrapper=settings.get("wrapper")).wrappers or ()
    if own := [wrapper for wrapper in wrappers if re.search("[:.]", wrapper[0])]:
        yield RunsCode("wrapper", "names wrappers of its own, and importing them runs their code", wrapper_options(own))
    for name in ("extractor", "teacher_extractor"):
        if extractor := settings.get(name):
            yield RunsCode(name, f"names the features extractor {extractor}, which is code", f"--{name} {extractor}")
