"""The conclusion from a run's results, as sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from policy_distill.report.rows import known

KEEPS = 0.95
"""Retention above which the verdict is ``kept``."""
FEW_EPISODES = 50
"""Number of episodes below which the verdict warns that the interval is unreliable."""


@dataclass(frozen=True)
class Verdict:
    """Conclusion about a student's size and retention.

    Attributes:
        level: ``kept``, ``lost``, or ``open`` if the episodes do not decide.
        headline: the student's size and retention.
        meaning: interpretation of the interval.
        trust: the data behind the retention.
    """

    level: Literal["kept", "open", "lost"]
    headline: str
    meaning: str
    trust: str


def verdict(summary: Mapping[str, Any]) -> Verdict:
    """Judge a run by the interval of its retention, not by the estimate."""
    kept, student = summary["retention"], summary["student"]
    subject = f"A student of {student['params']:,} parameters{_compared(summary['compression'])}"
    seeds = f"{kept['episodes']} seeds, the same for student, teacher and random policy"
    trust = f"Measured on {seeds}, none of which was used for training or selection."
    if kept["episodes"] < FEW_EPISODES:
        trust += f" The interval is unreliable with fewer than {FEW_EPISODES} episodes."
    if not known(kept["estimate"]):
        meaning = "The teacher is not distinguishable from a random policy on these seeds, so the retention is undefined."
        return Verdict("open", f"{subject} was trained; its retention is undefined.", meaning, trust)
    low, high = kept["low"], kept["high"]
    headline = f"{subject} keeps {kept['estimate']:.1%} of the return ({kept['confidence']:.0%} interval: {low:.1%} to {high:.1%})."
    if low > 1:
        return Verdict("kept", headline, "Its return is higher than its teacher's: the whole interval is above 100%.", trust)
    if low >= KEEPS:
        return Verdict("kept", headline, f"It keeps its teacher's return: the whole interval is above {KEEPS:.0%}.", trust)
    if high >= KEEPS:
        meaning = f"Whether it keeps {KEEPS:.0%} is open: the interval contains it. Use more episodes (evaluate.episodes)."
        return Verdict("open", headline, meaning, trust)
    meaning = f"It lost return: the whole interval is below {KEEPS:.0%}. A larger student (student.compression) may keep more."
    return Verdict("lost", headline, meaning, trust)


def _compared(compression: float | None) -> str:
    if not compression:
        return ""
    ratio = max(compression, 1 / compression)
    factor = f"{ratio:.0f}" if ratio >= 20 else f"{ratio:.1f}"
    if factor == "1.0":
        return ", as many as its teacher's,"
    return f", {factor} times {'smaller' if compression > 1 else 'larger'} than its teacher,"
