"""How the files of an agent are read: what a command's user may say about them, as one value that is handed on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from policy_distill.config.checks import RequestError


@dataclass(frozen=True)
class Reading:
    """Arguments of ``Teacher.load`` beside the agent's place; ``Teacher.load(place, **reading.arguments())``.

    Attributes:
        algo: the algorithm, where folder and file do not tell it or tell it wrong.
        normalization: a file of VecNormalize statistics, or ``none``; None: they are looked for.
        extractor: ``file.py:Class`` of a features extractor of the user's own.
        trust: let Stable-Baselines3 unpickle what cannot be rebuilt; this runs code from the file.
    """

    algo: str | None = None
    normalization: str | None = None
    extractor: str | None = None
    trust: bool = False

    def arguments(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def recorded(self) -> dict[str, str]:
        """What another reading of the same agent must be told, for a file; trust is given anew each time."""
        return {name: value for name, value in self.arguments().items() if name != "trust" and value is not None}

    def over(self, recorded: Mapping[str, Any]) -> Reading:
        """This reading, with what it leaves open as an earlier one was ``recorded`` in a file; other keys are passed over.

        Raises:
            RequestError: if an extractor was recorded and is not given again: code runs on the user's word, not on a file's.
        """
        named = {name: value for name, value in recorded.items() if isinstance(value, str)}
        if self.extractor is None and "extractor" in named:
            raise RequestError(
                f"this agent was read with the features extractor {named['extractor']}, which is code: name it again, with --extractor for "
                "the policy or --teacher_extractor for its teacher"
            )
        return Reading(self.algo or named.get("algo"), self.normalization or named.get("normalization"), self.extractor, self.trust)
