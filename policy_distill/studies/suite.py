"""Distillation of all teachers in a folder, with aggregate results."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policy_distill.config import DistillConfig, EngineConfig, RequestError
from policy_distill.evaluation.statistics import suite_aggregates
from policy_distill.evaluation.statistics.suites import Returns
from policy_distill.report import AGGREGATE_COLUMNS, AGGREGATE_NOTE, aggregate_rows, write_suite_report
from policy_distill.report.rows import plain
from policy_distill.rollouts.watchdog import STEP_TIMEOUT
from policy_distill.studies.scheduler.jobs import Outcome, StudyJob, with_extractor
from policy_distill.studies.scheduler.schedule import run_jobs
from policy_distill.support.figures import return_text
from policy_distill.support.files import locked, writable_folder, write_atomically, write_json
from policy_distill.support.progress import Display
from policy_distill.support.untrusted import read_json, refuse_damage

WORTH_COMPRESSING = 4000
"""Minimum number of a teacher's parameters to count in the aggregates; smaller teachers have little to compress."""
PAUSE_FACTOR = 20
"""Pause after the tables were written, as a multiple of the time that took: it grows with the number of rows."""
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


def run_suite(
    teachers: Path, config: DistillConfig, *, output: Path, jobs: int | None = None, display: Display | None = None
) -> SuiteResult:
    """Distil every teacher below ``teachers`` with the same settings; failures are reported and do not stop the suite.

    A teacher is skipped if ``output`` has a completed run with the same files and settings. One suite at a time writes into ``output``.

    Args:
        teachers: folder of the agents.
        config: the settings of all runs; ``config.engine`` runs them. Runs of teachers that do not need ``config.extractor`` are made
            without it.
        output: folder of the tables and the runs.
        jobs: number of runs at the same time; see ``run_jobs``.
        display: shows the runs as they end.

    Raises:
        RequestError: before any work, if there are no teachers, no teacher needs ``config.extractor``, or another study writes into
            ``output``.
    """
    display = display or Display(quiet=True)
    timeout = STEP_TIMEOUT if config.step_timeout is None else config.step_timeout
    configs = {}
    for folder in find_teachers(teachers):
        name = folder.relative_to(teachers).as_posix() if folder != teachers else folder.name
        run = str(output / name)
        configs[name] = dataclasses.replace(config, teacher=str(folder), output=run, step_timeout=timeout, engine=EngineConfig())
    configs = dict(zip(configs, with_extractor(list(configs.values()), config.extractor), strict=True))
    requests = [StudyJob.of(name, own) for name, own in configs.items()]
    rows: dict[str, dict[str, Any]] = {}

    def write() -> float:
        """Write the tables; the seconds that this took."""
        begin = time.monotonic()
        write_tables([rows[request.name] for request in requests if request.name in rows], output, config)
        return time.monotonic() - begin

    next_writing = 0.0
    with locked(writable_folder(output)):
        try:
            for job, outcome in run_jobs(requests, config.engine, at_a_time=jobs, quiet=display.quiet):
                rows[job.name] = row_of(job.name, outcome)
                display.note(f"[{len(rows)}/{len(requests)}] {job.name}: {_line(rows[job.name], outcome)}")
                if time.monotonic() >= next_writing:
                    next_writing = PAUSE_FACTOR * write() + time.monotonic()
        finally:
            if rows:
                write()
        write_suite_report(output)
    return SuiteResult([rows[request.name] for request in requests], output)


def _line(row: Mapping[str, Any], outcome: Outcome) -> str:
    """A finished job in a few words."""
    if outcome.summary is None:
        return f"{outcome.status}: {outcome.reason}"
    earlier = " (already completed)" if outcome.earlier else ""
    return f"retention {kept_text(row)}, {row['seconds']:.0f} s{earlier}"


def kept_text(row: Mapping[str, Any]) -> str:
    """A row's retention with its interval."""
    return "undefined" if row["retention"] is None else f"{row['retention']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def row_of(name: str, outcome: Outcome) -> dict[str, Any]:
    """The row of a run: its figures from its result.json, or why it has none."""
    summary = outcome.summary
    if summary is None:
        return {**dict.fromkeys(COLUMNS), "teacher": name, "status": outcome.status, "reason": outcome.reason}
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
        lines.append(
            f"| {plain(row['teacher'])} | {plain(row['env'])} | {row['params']:,} | {row['student']} "
            f"| {row['compression'] or math.nan:.1f}x | {return_text(row['teacher_return'])} | {return_text(row['student_return'])} "
            f"| {kept_text(row)} | {row['seconds']:.0f} |"
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
