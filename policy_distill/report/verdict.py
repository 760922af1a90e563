"""What a run's figures come to, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from policy_distill.report.rows import known

KEEPS = 0.95
"""Retention that the verdict asks for. The figures are there for another choice."""
FEW_EPISODES = 50
"""Number below which a bootstrap interval is too narrow."""


@dataclass(frozen=True)
class Verdict:
    """What was made, what it kept, and what that rests on.

    Attributes:
        level: ``kept``, ``lost``, or ``open`` where the episodes do not tell.
        headline: how small the student is and what it keeps.
        meaning: what the interval says.
        trust: what the figure rests on.
    """

    level: Literal["kept", "open", "lost"]
    headline: str
    meaning: str
    trust: str


def verdict(summary: Mapping[str, Any]) -> Verdict:
    """Judge a run by its interval, not by its estimate."""
    kept, student = summary["retention"], summary["student"]
    subject = f"A student of {student['params']:,} parameters{_compared(summary['compression'])}"
    seeds = f"{kept['episodes']} seeds, the same for student, teacher and random policy"
    trust = f"Measured on {seeds}, none of which was used to train or to choose."
    if kept["episodes"] < FEW_EPISODES:
        trust += f" Fewer than {FEW_EPISODES} episodes are few: take the interval as a hint."
    if not known(kept["estimate"]):
        meaning = "Teacher and random policy cannot be told apart on these seeds: there is nothing that could be kept."
        return Verdict("open", f"{subject} was made; what it keeps cannot be said.", meaning, trust)
    low, high = kept["low"], kept["high"]
    headline = f"{subject} keeps {kept['estimate']:.1%} of the return ({kept['confidence']:.0%} interval: {low:.1%} to {high:.1%})."
    if low > 1:
        return Verdict("kept", headline, "It earns more than its teacher: the whole interval is above 100%.", trust)
    if low >= KEEPS:
        return Verdict("kept", headline, f"It keeps its teacher's return: the whole interval is above {KEEPS:.0%}.", trust)
    if high >= KEEPS:
        meaning = f"Whether it keeps {KEEPS:.0%} is open: the interval holds both. More episodes tell (evaluate.episodes)."
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
