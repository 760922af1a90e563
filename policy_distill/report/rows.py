"""Rows of the summary table of a run, for the terminal, report.md and TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from policy_distill.config.printable import one_line
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.support.figures import spread_text

RETENTION = "Retention is (student - random) / (teacher - random) of the mean returns."

TESTS = {"they show": "final_test", "certificate": "certificate"}
"""Label of each row about a test, and its key in result.json."""

AGGREGATES = {
    "interquartile_mean": ("interquartile mean", "of the middle half: neither one failure nor one windfall moves it"),
    "geometric_mean": ("geometric mean", "halving and doubling cancel; 0 as soon as one student keeps nothing"),
    "optimality_gap": ("optimality gap", "what is missing to 1 on average; more than 1 makes nothing good; 0 is best"),
    "probability_of_improvement": (
        "probability of improvement",
        "of a student's episode on one of its teacher's; 0.5 where they are alike",
    ),
}
"""Label and description of each aggregate of a suite."""
AGGREGATE_COLUMNS = ("figure", "estimate", "other episodes", "other teachers too", "what it is")
AGGREGATE_NOTE = (
    "Retention over teachers with {:,} parameters or more (Agarwal et al. 2021), with 95% intervals: what other episodes of these teachers "
    "would have given, and what other teachers of this kind would have."
)

EXPORT_COLUMNS = ("format", "bytes of weights", "us a decision", "student's action", "student's return kept", "certificate")


def known(value: float | None) -> TypeGuard[float]:
    """Whether a figure exists: a missing one is nan in memory and null in result.json."""
    return value is not None and math.isfinite(value)


def number(value: float | None, form: str = ".1f") -> str:
    """A formatted figure, empty if it is missing."""
    return format(value, form) if known(value) else ""


def retention_text(kept: Mapping[str, Any]) -> str:
    """``0.981 [0.967, 0.993]``, or why retention is undefined."""
    if not known(kept["estimate"]):
        return "undefined: teacher and random policy cannot be told apart"
    return f"{kept['estimate']:.3f} [{kept['low']:.3f}, {kept['high']:.3f}]"


def certificate_text(found: Mapping[str, Any]) -> str:
    """``certified: ... (95% confidence, 252 episodes)``."""
    return f"{found['verdict']}: {found['reason']} ({found['confidence']:.0%} confidence, {found['episodes']:,} episodes)"


def mean_and_std(figures: Mapping[str, Any]) -> str:
    """``282.1 ± 21.6``: mean and standard deviation of the returns."""
    return spread_text(figures["return_mean"], figures["return_std"])


def times(compression: float | None) -> str:
    """``101.1x``: how many times smaller the student is."""
    return f"{compression:.1f}x" if compression else "unknown"


def aggregate_rows(aggregates: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Rows for ``AGGREGATE_COLUMNS`` from suite.json's aggregates; a missing interval is empty."""

    def ends(interval: Sequence[float] | None) -> str:
        return f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""

    return [
        (label, f"{found['estimate']:.3f}", ends(found["over_episodes"]), ends(found["over_teachers"]), meaning)
        for name, (label, meaning) in AGGREGATES.items()
        if (found := aggregates.get(name))
    ]


def seed_tally(returns: Mapping[str, Sequence[float]]) -> tuple[int, int, int]:
    """Number of seeds on which the student's return is higher than its teacher's, equal (to a millionth), and lower."""
    pairs = list(zip(returns["student"], returns["teacher"], strict=True))
    differ = [pair for pair in pairs if not math.isclose(*pair, rel_tol=1e-6, abs_tol=1e-9)]
    more = sum(student > teacher for student, teacher in differ)
    return more, len(pairs) - len(differ), len(differ) - more


def tally_text(returns: Mapping[str, Sequence[float]]) -> str:
    """``seed_tally`` as a sentence."""
    more, equal, less = seed_tally(returns)
    return f"On {more} of {len(returns['student'])} seeds the student earned more than its teacher, on {equal} as much, on {less} less."


def finalist_text(record: Mapping[str, Any]) -> str:
    """``-84.5 (61)``: a finalist's mean return over all its validation episodes, and their number; empty for other candidates."""
    mean, episodes = record["finalist_return_mean"], record.get("finalist_episodes")
    return number(mean) + (f" ({episodes})" if known(mean) and episodes else "")


def inputs_text(student: Mapping[str, Any]) -> str:
    """``keep [0, 1], history 4; 27 of them vary``; nothing for a student that reads everything."""
    named = ", ".join(f"{name} {value}" for name, value in student.get("inputs", {}).items())
    varying = f"{len(student['varying_inputs'])} of them vary" if student.get("varying_inputs") else ""
    return "; ".join(filter(None, (named, varying)))


def memory_text(student: Mapping[str, Any]) -> str:
    """``, memory of 14 units (gru)``; nothing for a student without one."""
    return f", memory of {student['memory']['size']} units ({student['memory']['kind']})" if student.get("memory") else ""


def decision_text(summary: Mapping[str, Any]) -> str:
    """``1,076 bytes of weights (4 bits each), 1,024 multiply-adds, 8 us in Python``."""
    student = summary["student"]
    bits = f" ({student['bits']} bits each)" if student.get("bits") else ""
    pruned = f", {student['nonzero_params']:,} parameters not zero" if student.get("nonzero_params") else ""
    took = summary["seconds"].get("decision")
    seconds = f", {took * 1e6:.0f} us in Python" if took else ""
    return f"{student['bytes']:,} bytes of weights{bits}{pruned}, {student['multiply_adds']:,} multiply-adds{seconds}"


def export_rows(exports: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows for ``EXPORT_COLUMNS`` from result.json's exports."""
    return [
        (
            name,
            f"{found['weight_bytes']:,}",
            f"{found['microseconds']:.2f}",
            f"{found['parity']['equal_actions']:.2%}",
            retention_text(found["student_retention"]),
            certificate_text(found["certificate"]) if found.get("certificate") else "",
        )
        for name, found in exports.items()
    ]


def view_text(found: Mapping[str, Any]) -> str:
    """``0.1203 with the student's inputs, 0.0041 with all (forward_kl_nats)``."""
    return f"{found['seen']:.4g} with the student's inputs, {found['everything']:.4g} with all ({found['loss']})"


def summary_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of the summary table of a run: name, figure."""
    teacher, student, kept = summary["teacher"], summary["student"], summary["retention"]
    rows = [
        ("environment", EnvironmentSpec.from_dict(summary.get("environment") or {"id": summary["env"]}).text()),
        ("teacher", f"{teacher['algo']}, {format(teacher['params'], ',') if teacher['params'] else 'unknown'} parameters"),
        ("student", f"{student['hidden_sizes']}{memory_text(student)}, {student['params']:,} parameters"),
        *([("one decision", decision_text(summary))] if "bytes" in student else []),
        *([("student's inputs", inputs_text(student))] if inputs_text(student) else []),
        *([("lowest held-out loss", view_text(summary["view"]))] if summary.get("view") else []),
        ("compression", times(summary["compression"])),
        ("teacher's return", mean_and_std(teacher)),
        ("student's return", mean_and_std(student)),
        ("random policy's return", mean_and_std(summary["random"])),
        (f"retention [{kept['confidence']:.0%} interval]", retention_text(kept)),
        ("paired episodes", f"{kept['episodes']}"),
        *((name, certificate_text(summary[key])) for name, key in TESTS.items() if summary.get(key)),
        ("agreement", f"{summary['agreement']:.1%} of the student's states" if summary["agreement"] is not None else "unknown"),
        ("student's origin", summary["kept"]),
        ("environment steps", f"{summary['env_steps']:,}"),
        *([("extra states", f"{summary['extra_states']:,}, of an earlier comparison")] if summary.get("extra_states") else []),
        ("gradient steps", f"{summary['gradient_steps']:,}"),
    ]
    seconds = summary["seconds"]
    stages = ", ".join(f"{stage} {seconds[stage]:.0f} s" for stage in ("collect", "train", "polish", "evaluate") if seconds[stage])
    return [*rows, ("time", f"{seconds['total']:.0f} s ({stages})")]


def summary_table(summary: Mapping[str, Any]) -> str:
    """``summary_rows`` as a Markdown table."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {plain(value)} |" for name, value in summary_rows(summary))])


def plain(text: object) -> str:
    """Text in one line for a Markdown table, without control characters, HTML, column separators, links or images."""
    return one_line(text).replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(")
