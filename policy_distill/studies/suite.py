"""The job over a folder of teachers, and what it says as a whole."""

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
"""Parameters from which on a teacher counts in the aggregate: below, there is little to compress."""
COLUMNS = ("teacher", "status", "env", "params", "student", "student_params", "compression", "teacher_return", "student_return",
           "retention", "low", "high", "agreement", "env_steps", "seconds", "reason")  # fmt: skip


@dataclass(frozen=True)
class SuiteResult:
    """One row for each teacher, and the folder that the tables are in."""

    rows: list[dict[str, Any]]
    folder: Path

    @property
    def judged(self) -> list[dict[str, Any]]:
        """Rows of the teachers with ``WORTH_COMPRESSING`` parameters or more whose retention is defined: what the aggregate is over."""
        return [row for row in self.rows if row["retention"] is not None and row["params"] >= WORTH_COMPRESSING]

    def aggregates(self) -> dict[str, dict[str, Any]]:
        """What the judged teachers' students kept as a whole: name -> ``Aggregate`` as data; empty where nobody is judged.

        The intervals are of 95 %, from the returns in the runs' folders; there are none if one is missing.
        """
        if not self.judged:
            return {}
        files = [self.folder / row["teacher"] / "result.json" for row in self.judged]
        returns = [_returns(path) for path in files] if all(path.is_file() for path in files) else None
        found = suite_aggregates(np.array([row["retention"] for row in self.judged]), returns)
        return {name: dataclasses.asdict(aggregate) for name, aggregate in found.items()}


def find_teachers(folder: Path) -> list[Path]:
    """Run folders (RL Zoo layout) below ``folder``: each folder that holds a zip, in the order of their names.

    Raises:
        RequestError: if there are none.
    """
    if not os.path.isdir(folder):
        raise RequestError(f"no such folder: {folder}; name the one that holds ALGO/ENV_RUN/ENV.zip")
    found = sorted({path.parent for path in folder.rglob("*.zip")})
    if not found:
        raise RequestError(f"{folder} holds no agents: no .zip was found in it or below")
    return found


def run_suite(teachers: Path, config: DistillConfig, *, output: Path, display: Display | None = None) -> SuiteResult:
    """Distil every teacher below ``teachers`` with the same settings; one that fails is reported and the rest go on.

    A teacher whose files and settings are the same as in a run that was completed in ``output`` is not run again.
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
        display.note("  done already")
        done: dict[str, Any] = stored["row"]
        return done
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row["teacher"] = name
    try:
        summary = distill(job, display=display).summary
    except RequestError as error:
        display.note(f"  not supported: {error}")
        return {**row, "status": "not supported", "reason": str(error)}
    except Exception as error:  # one broken teacher must not end the suite; the reason is kept
        display.note(f"  failed: {error}")
        run.mkdir(parents=True, exist_ok=True)
        (run / "error.txt").write_text(traceback.format_exc())
        return {**row, "status": "failed", "reason": f"{type(error).__name__}: {_first_and_last_line(str(error))}"}
    row = row_of(name, summary)
    write_completed(run / "suite.json", settings, row=row)
    return row


def row_of(name: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a run that was completed, from what its result.json holds."""
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
    """The suite as a Markdown table, and its aggregates as another beneath."""
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
    with refuse_damage(path, "remove the run's folder, and it is run again"):
        found = read_json(path, "remove the run's folder, and it is run again")["returns"]
        student, teacher, random = (np.array(found[role], np.float64) for role in ("student", "teacher", "random"))
    return student, teacher, random


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _first_and_last_line(message: str) -> str:
    """What went wrong: a worker's failure says in the first line that it was one, and in the last what it was."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines if len(lines) < 2 else (lines[0], lines[-1]))
