"""User settings for reading an agent's files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from policy_distill.config.checks import RequestError


@dataclass(frozen=True)
class Reading:
    """Keyword arguments of ``Teacher.load``: ``Teacher.load(path, **reading.arguments())``.

    Attributes:
        algo: the algorithm, if folder and file do not name it or name it wrongly.
        normalization: a file of VecNormalize statistics, or ``none``; None: search for one.
        extractor: ``file.py:Class`` of a custom features extractor.
        trust: let Stable-Baselines3 unpickle an agent that cannot be rebuilt; this executes code from the file.
    """

    algo: str | None = None
    normalization: str | None = None
    extractor: str | None = None
    trust: bool = False

    def arguments(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def recorded(self) -> dict[str, str]:
        """The settings to store in a file, for reading the same agent again. ``trust`` is never stored."""
        return {name: value for name, value in self.arguments().items() if name != "trust" and value is not None}

    def over(self, recorded: Mapping[str, Any]) -> Reading:
        """These settings, completed by those that were ``recorded`` in a file; other keys are ignored.

        Raises:
            RequestError: if an extractor was recorded and is not given again: only the user can allow code to run, never a file.
        """
        named = {name: value for name, value in recorded.items() if isinstance(value, str)}
        if self.extractor is None and "extractor" in named:
            raise RequestError(
                f"this agent was read with the features extractor {named['extractor']}, which is code: name it again, with --extractor for "
                "the policy or --teacher_extractor for its teacher"
            )
        return Reading(self.algo or named.get("algo"), self.normalization or named.get("normalization"), self.extractor, self.trust)
