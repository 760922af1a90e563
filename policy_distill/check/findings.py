"""What was found wrong, or worth knowing, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["stop", "warn", "note"]
SEVERITIES: tuple[Severity, ...] = ("stop", "warn", "note")
"""Worst first."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        severity: ``stop``: a run would be worthless; ``warn``: a student may come out worse than it could; ``note``: good to know.
        topic: a word for programs, which stays the same between versions.
        what: is the case, with the figures, in one line.
        mend: what to do, in one line.
    """

    severity: Severity
    topic: str
    what: str
    mend: str

    def line(self) -> str:
        """For a person, in one line."""
        return f"{self.what}; {self.mend}"


def by_severity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Worst first, else in the order in which they were found."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))
