"""Distillation of all teachers in a folder, with aggregate results."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policy_distill.config import DistillConfig, RequestError
from policy_distill.evaluation.certify import sha256
from policy_distill.evaluation.statistics import suite_aggregates
from policy_distill.evaluation.statistics.suites import Returns
from policy_distill.pipeline.distill import distill
from policy_distill.report import AGGREGATE_COLUMNS, AGGREGATE_NOTE, aggregate_rows, write_suite_report
from policy_distill.report.rows import plain
from policy_distill.rollouts.watchdog import STEP_TIMEOUT
from policy_distill.studies.completed import read_completed, write_completed
from policy_distill.support.figures import return_text
from policy_distill.support.files import write_atomically, write_json
from policy_distill.support.progress import Display
from policy_distill.support.untrusted import read_json, refuse_damage

WORTH_COMPRESSING = 4000
"""Minimum number of a teacher's parameters to count in the aggregates; smaller teachers have little to compress."""
COLUMNS = ("teacher", "status", "env", "params", "student", "student_params", "compression", "teacher_return", "student_return",
           "retention", "low", "high", "agreement", "env_steps", "seconds", "reason")  # fmt: skip


@dataclass(frozen=True)
class SuiteResult:
    """One row per teacher, and the folder of the tables."""

    rows: list[dict[str, Any]]
    folder: Path

    @property
    def judged(self) -> list[dict[str, Any]]:
        """The rows that are aggregated: teachers with ``WORTH_COMPRESSING`` parameters or more and a defined retention."""
        return [row for row in self.rows if row["retention"] is not None and row["params"] >= WORTH_COMPRESSING]

    def aggregates(self) -> dict[str, dict[str, Any]]:
        """Aggregate retentions of the judged teachers' students: name -> ``Aggregate`` as a dict; empty if there are none.

        The 95 % intervals are computed from the returns in the runs' folders, and left out if one is missing.
        """
        if not self.judged:
            return {}
        files = [self.folder / row["teacher"] / "result.json" for row in self.judged]
        returns = [_returns(path) for path in files] if all(path.is_file() for path in files) else None
        found = suite_aggregates(np.array([row["retention"] for row in self.judged]), returns)
        return {name: dataclasses.asdict(aggregate) for name, aggregate in found.items()}


def find_teachers(folder: Path) -> list[Path]:
    """Run folders (RL Zoo layout) below ``folder``: all folders with a zip, sorted by name.

    Raises:
        RequestError: if there are none.
    """
    if not os.path.isdir(folder):
        raise RequestError(f"no such folder: {folder}; name the folder that contains ALGO/ENV_RUN/ENV.zip")
    found = sorted({path.parent for path in folder.rglob("*.zip")})
    if not found:
        raise RequestError(f"{folder} contains no agents: no .zip was found in it or below")
    return found


def run_suite(teachers: Path, config: DistillConfig, *, output: Path, display: Display | None = None) -> SuiteResult:
    """Distil every teacher below ``teachers`` with the same settings; failures are reported and do not stop the suite.

    A teacher is skipped if ``output`` has a completed run with the same files and settings.
    """
    display = display or Display(quiet=True)
    folders = find_teachers(teachers)
    rows: list[dict[str, Any]] = []
    for number, folder in enumerate(folders, start=1):
        name = folder.relative_to(teachers).as_posix() if folder != teachers else folder.name
        display.note(f"[{number}/{len(folders)}] {name}")
        rows.append(_run_one(name, folder, config, output, display))
        write_tables(rows, output, config)
    write_suite_report(output)
    return SuiteResult(rows, output)


def _run_one(name: str, folder: Path, config: DistillConfig, output: Path, display: Display) -> dict[str, Any]:
    run = output / name
    timeout = STEP_TIMEOUT if config.step_timeout is None else config.step_timeout
    job = dataclasses.replace(config, teacher=str(folder), output=str(run), step_timeout=timeout)
    contents = {path.name: sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    settings = {**dataclasses.asdict(job), "contents": contents}
    stored = read_completed(run / "suite.json", settings)
    if stored is not None and isinstance(stored.get("row"), dict) and set(stored["row"]) == set(COLUMNS):
        display.note("  already completed")
        done: dict[str, Any] = stored["row"]
        return done
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row["teacher"] = name
    try:
        summary = distill(job, display=display).summary
    except RequestError as error:
        display.note(f"  not supported: {error}")
        return {**row, "status": "not supported", "reason": str(error)}
    except Exception as error:  # a failed run must not end the suite; the reason is recorded
        display.note(f"  failed: {error}")
        run.mkdir(parents=True, exist_ok=True)
        (run / "error.txt").write_text(traceback.format_exc())
        return {**row, "status": "failed", "reason": f"{type(error).__name__}: {_first_and_last_line(str(error))}"}
    row = row_of(name, summary)
    write_completed(run / "suite.json", settings, row=row)
    return row


def row_of(name: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a completed run, from its result.json."""
    return {
        **dict.fromkeys(COLUMNS),
        "teacher": name,
        "status": "done",
        "env": summary["env"],
        "params": summary["teacher"]["params"],
        "student": str(summary["student"]["hidden_sizes"]),
        "student_params": summary["student"]["params"],
        "compression": summary["compression"],
        "teacher_return": summary["teacher"]["return_mean"],
        "student_return": summary["student"]["return_mean"],
        "retention": _finite(summary["retention"]["estimate"]),
        "low": _finite(summary["retention"]["low"]),
        "high": _finite(summary["retention"]["high"]),
        "agreement": summary["agreement"],
        "env_steps": summary["env_steps"],
        "seconds": summary["seconds"]["total"],
    }


def write_tables(rows: Sequence[dict[str, Any]], folder: Path, config: DistillConfig) -> None:
    """Write suite.md, suite.csv and suite.json."""
    folder.mkdir(parents=True, exist_ok=True)
    aggregates = SuiteResult(list(rows), folder).aggregates()
    write_atomically(folder / "suite.md", lambda target: target.write_text(markdown(rows, aggregates), encoding="utf-8"))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "suite.csv", lambda target: target.write_text(buffer.getvalue(), encoding="utf-8", errors="backslashreplace"))
    write_json(
        folder / "suite.json",
        {
            "rows": list(rows),
            "aggregates": aggregates,
            "worth_compressing": WORTH_COMPRESSING,
            "config": dataclasses.asdict(config),
        },
    )


def markdown(rows: Sequence[Mapping[str, Any]], aggregates: Mapping[str, Mapping[str, Any]]) -> str:
    """The suite as a Markdown table, followed by a table of its aggregates."""
    lines = [
        "| teacher | environment | parameters | student | compression | teacher's return | student's return "
        "| retention [interval] | seconds |",
        "|---|---|---:|---|---:|---:|---:|---|---:|",
    ]
    for row in rows:
        if row["status"] != "done":
            lines.append(f"| {plain(row['teacher'])} | {row['status']}: {plain(row['reason'])} | | | | | | | |")
            continue
        kept = "undefined" if row["retention"] is None else f"{row['retention']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        lines.append(
            f"| {plain(row['teacher'])} | {plain(row['env'])} | {row['params']:,} | {row['student']} "
            f"| {row['compression'] or math.nan:.1f}x | {return_text(row['teacher_return'])} | {return_text(row['student_return'])} "
            f"| {kept} | {row['seconds']:.0f} |"
        )
    if aggregates:
        lines += [
            "",
            AGGREGATE_NOTE.format(WORTH_COMPRESSING),
            "",
            f"| {' | '.join(AGGREGATE_COLUMNS)} |",
            "|---|---:|---|---|---|",
            *(f"| {' | '.join(cells)} |" for cells in aggregate_rows(aggregates)),
        ]
    return "\n".join(lines) + "\n"


def _returns(path: Path) -> Returns:
    with refuse_damage(path, "remove the run's folder to repeat the run"):
        found = read_json(path, "remove the run's folder to repeat the run")["returns"]
        student, teacher, random = (np.array(found[role], np.float64) for role in ("student", "teacher", "random"))
    return student, teacher, random


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _first_and_last_line(message: str) -> str:
    """The first and last line: a worker's error names the worker in the first line and the cause in the last."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines if len(lines) < 2 else (lines[0], lines[-1]))
