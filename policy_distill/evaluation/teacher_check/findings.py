"""What was found wrong, or worth knowing, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from policy_distill.config import RequestError

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


def settle(findings: Iterable[Finding], *, skip: bool = False) -> tuple[str, ...]:
    """Lines of the warnings, to be told where the figure is.

    Args:
        findings: in any order.
        skip: the user's word that a finding of severity ``stop`` is to be told like a warning.

    Raises:
        RequestError: for the first finding of severity ``stop``, unless ``skip``.
    """
    told = []
    for finding in findings:
        if finding.severity == "stop" and not skip:
            raise RequestError(f"{finding.line()}; to go on anyway: --check.skip true")
        if finding.severity != "note":
            told.append(finding.line())
    return tuple(told)


def by_severity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Worst first, else in the order in which they were found."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))
