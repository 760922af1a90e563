"""Findings of a check, with severities and fixes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from policy_distill.config import RequestError

Severity = Literal["stop", "warn", "note"]
SEVERITIES: tuple[Severity, ...] = ("stop", "warn", "note")
"""Worst first."""


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        severity: ``stop``: a run would be worthless; ``warn``: the student may be worse than necessary; ``note``: for information.
        topic: identifier for programs, stable between versions.
        what: the problem with its numbers, in one line.
        fix: what to do, in one line.
    """

    severity: Severity
    topic: str
    what: str
    fix: str

    def line(self) -> str:
        """The problem and its fix, in one line."""
        return f"{self.what}; {self.fix}"

    def summary(self) -> dict[str, str]:
        """The finding for JSON. ``mend`` is the older name of ``fix``."""
        return {**dataclasses.asdict(self), "mend": self.fix}


def settle(findings: Iterable[Finding], *, skip: bool = False) -> tuple[str, ...]:
    """Lines of the warnings, to be printed beside the result.

    Args:
        findings: findings in any order.
        skip: treat findings of severity ``stop`` as warnings.

    Raises:
        RequestError: for the first finding of severity ``stop``, unless ``skip``.
    """
    lines = []
    for finding in findings:
        if finding.severity == "stop" and not skip:
            raise RequestError(f"{finding.line()}; to go on anyway: --check.skip true")
        if finding.severity != "note":
            lines.append(finding.line())
    return tuple(lines)


def by_severity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings sorted by severity, worst first; otherwise in their original order."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))
