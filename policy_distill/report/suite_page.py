"""suite.html: a suite of runs as a web page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from policy_distill.config import RequestError
from policy_distill.report import page, plots
from policy_distill.report.drawing import to_svg
from policy_distill.report.page import Cell, link
from policy_distill.report.rows import AGGREGATE_COLUMNS, AGGREGATE_NOTE, aggregate_rows, known, number, retention_text, times
from policy_distill.report.verdict import KEEPS
from policy_distill.support.figures import return_text
from policy_distill.support.files import write_atomically
from policy_distill.support.untrusted import read_json, refuse_damage

MAX_ROWS = 2000
"""Maximum number of teachers on the page."""


def write_suite_report(folder: str | Path) -> Path:
    """Write ``suite.html`` into a suite's folder, from its ``suite.json``.

    Raises:
        RequestError: if the folder contains none.
    """
    folder = Path(folder)
    path = folder / "suite.json"
    if not os.path.isfile(path):
        raise RequestError(f"{folder} contains no suite.json: name the folder of a suite")
    suite = read_json(path, "run the suite again")
    with refuse_damage(path, "it was written by another version; run the suite again"):
        if len(suite["rows"]) > MAX_ROWS:
            raise ValueError(f"more than {MAX_ROWS:,} teachers")
        page = suite_page(suite, folder)
    return write_atomically(folder / "suite.html", lambda target: target.write_text(page, encoding="utf-8"))


def suite_page(suite: Mapping[str, Any], folder: Path) -> str:
    """The page as HTML.

    Args:
        suite: contents of suite.json.
        folder: the suite's folder; only existing reports are linked.
    """
    done = [row for row in suite["rows"] if row["status"] == "done"]
    title = f"{len(done)} of {len(suite['rows'])} teachers distilled"
    return page.document(
        title,
        f"<header>\n<h1>{title}</h1>\n</header>",
        _tiles(suite, done),
        _together(suite, [row for row in done if known(row["retention"])]),
        _table(done, folder),
        _rest([row for row in suite["rows"] if row["status"] != "done"]),
    )


def _tiles(suite: Mapping[str, Any], done: Sequence[Mapping[str, Any]]) -> str:
    mean = suite["aggregates"].get("interquartile_mean", {"estimate": None, "over_episodes": None})
    interval = mean["over_episodes"]
    over = f"interquartile mean, teachers of {suite['worth_compressing']:,} parameters or more"
    ends = f"; 95% interval {interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
    judged = [row for row in done if known(row["retention"])]
    smaller = [row["compression"] for row in done if known(row["compression"])]
    counts = {word: sum(test(row) for row in judged) for word, test in _JUDGEMENTS.items()}
    return page.tiles(
        [
            ("Retention", number(mean["estimate"], ".3f") or "unknown", over + ends),
            ("Compression", times(median(smaller)) if smaller else "unknown", "median over teachers"),
            *((f"{word} {KEEPS:.0%}", f"{count} of {len(judged)}", _MEANINGS[word]) for word, count in counts.items()),
            ("Time", f"{sum(row['seconds'] for row in done) / 60:.1f} min", "all runs, one after the other"),
        ]
    )


_JUDGEMENTS = {
    "Kept": lambda row: row["low"] >= KEEPS,
    "Open at": lambda row: row["low"] < KEEPS <= row["high"],
    "Below": lambda row: row["high"] < KEEPS,
}
_MEANINGS = {"Kept": "the whole interval is above", "Open at": "the interval contains it", "Below": "the whole interval is below"}


def _together(suite: Mapping[str, Any], judged: Sequence[Mapping[str, Any]]) -> str:
    if not judged:
        return ""
    drawn = [
        page.plot(
            to_svg(plots.performance_profile([row["retention"] for row in judged]), label="performance profile"),
            "Performance profile: for each retention, the share of teachers whose student has a higher one. Further right is better.",
        )
    ]
    if sized := [row for row in judged if known(row["compression"])]:
        drawn.append(
            page.plot(
                to_svg(plots.retention_against_compression(sized), label="retention against compression"),
                "One dot per teacher, with the interval over episodes.",
            )
        )
    if not suite["aggregates"]:
        return page.section("Aggregates", page.beside(*drawn))
    rows = aggregate_rows(suite["aggregates"])
    return page.section(
        "Aggregates",
        page.paragraph(AGGREGATE_NOTE.format(suite["worth_compressing"])),
        page.table(AGGREGATE_COLUMNS[:-1], [row[:-1] for row in rows], numbers=(1, 2, 3)),
        page.details("Definitions", page.table((), [(row[0], row[-1]) for row in rows])),
        page.beside(*drawn),
    )


def _table(done: Sequence[Mapping[str, Any]], folder: Path) -> str:
    header = (
        "teacher",
        "retention",
        "compression",
        "student",
        "parameters",
        "teacher's return",
        "student's return",
        "seconds",
        "environment",
    )
    rows: list[tuple[Cell, ...]] = []
    for row in done:
        report = f"./{row['teacher']}/report.html"  # "./" keeps a folder's name from being read as a scheme such as javascript:
        rows.append(
            (
                link(report, row["teacher"]) if (folder / report).is_file() else row["teacher"],
                retention_text({**row, "estimate": row["retention"]}) if known(row["retention"]) else "undefined",
                times(row["compression"]),
                row["student"],
                f"{row['params']:,}" if row["params"] else "unknown",
                return_text(row["teacher_return"]),
                return_text(row["student_return"]),
                f"{row['seconds']:.0f}",
                row["env"],
            )
        )
    return page.section("Teachers", page.table(header, rows, numbers=range(1, 8)))


def _rest(rows: Sequence[Mapping[str, Any]]) -> str:
    return page.section(
        "Not distilled", page.table(("teacher", "", "reason"), [(row["teacher"], row["status"], row["reason"]) for row in rows])
    )
