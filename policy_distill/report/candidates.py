"""Every student that a run measured on the validation seeds, in the order in which they were made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from policy_distill.report.rows import known

STAGES = {"round": "rounds of imitation", "generation": "generations of self-distillation", "polish": "looks while polishing"}
"""What each candidate's ``stage`` means, for a legend."""
NORMAL_95 = 1.96
"""Standard errors on either side that hold 95 % of a normal distribution."""


@dataclass(frozen=True)
class Candidate:
    """One student on the way.

    Attributes:
        stage: a key of ``STAGES``.
        number: within its stage, from 1.
        retention: on the validation seeds; None where teacher and random policy could not be told apart.
        half_width: of its 95 % interval by normal approximation, paired by seed; None where the run did not record one.
        finalist: whether it was measured on the further validation seeds.
        kept: whether the run kept this one.
    """

    stage: str
    number: int
    retention: float | None
    half_width: float | None
    finalist: bool
    kept: bool

    @property
    def text(self) -> str:
        """``0.981 ± 0.012``, as far as it is known."""
        if self.retention is None:
            return ""
        return f"{self.retention:.3f}" + ("" if self.half_width is None else f" ± {self.half_width:.3f}")


def candidates(summary: Mapping[str, Any]) -> list[Candidate]:
    """Read them from what result.json holds: rounds, then generations, then looks while polishing."""
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
