"""The candidates of a run in order: all students that were evaluated on the validation seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from policy_distill.report.rows import known

STAGES = {"round": "rounds of imitation", "generation": "generations of self-distillation", "polish": "snapshots while polishing"}
"""Label of each candidate's ``stage``, for a legend."""
NORMAL_95 = 1.96
"""Half-width of a 95 % interval of a normal distribution, in standard errors."""


@dataclass(frozen=True)
class Candidate:
    """A candidate.

    Attributes:
        stage: a key of ``STAGES``.
        number: number within its stage, from 1.
        retention: retention on the validation seeds; None if it is undefined.
        half_width: half-width of its 95 % interval by normal approximation, paired by seed; None if the run did not record it.
        finalist: whether it was evaluated on further validation seeds.
        kept: whether the run kept it.
    """

    stage: str
    number: int
    retention: float | None
    half_width: float | None
    finalist: bool
    kept: bool

    @property
    def text(self) -> str:
        """``0.981 ± 0.012``; unknown parts are left out."""
        if self.retention is None:
            return ""
        return f"{self.retention:.3f}" + ("" if self.half_width is None else f" ± {self.half_width:.3f}")


def candidates(summary: Mapping[str, Any]) -> list[Candidate]:
    """Candidates in result.json: rounds, then generations, then snapshots of polishing."""
    polish, generations = summary["polish"], summary["self_distillation"]
    accepted = [index for index, record in enumerate(generations) if record["kept"]]
    kept = ("round", summary["chosen_round"])
    if accepted:
        kept = ("generation", accepted[-1])
    if polish is not None and polish["chosen"] is not None:
        kept = ("polish", polish["chosen"])
    series = {"round": summary["rounds"], "generation": generations, "polish": polish["records"] if polish else []}
    return [
        _candidate(stage, index, record, kept == (stage, index))
        for stage, records in series.items()
        for index, record in enumerate(records)
    ]


def _candidate(stage: str, index: int, record: Mapping[str, Any], kept: bool) -> Candidate:
    retention, error = record["validation_retention"], record.get("validation_retention_standard_error")
    return Candidate(
        stage,
        index + 1,
        retention if known(retention) else None,
        NORMAL_95 * error if known(error) else None,
        record.get("finalist_return_mean") is not None,
        kept,
    )
