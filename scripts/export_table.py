"""Export the students of finished runs to every format, and write what came out as a page.

python scripts/export_table.py --runs runs/cartpole runs/lunarlander --page docs/exports.md [--formats c c-int8]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from policy_distill.config import Fault, Reading, RequestError
from policy_distill.evaluation.exports import export_student
from policy_distill.export.formats import FORMATS
from policy_distill.report.rows import retention_text
from policy_distill.support.files import write_atomically

BEGIN, END = "<!-- table -->", "<!-- end of table -->"
COLUMNS = ("student", "format", "bytes of weights", "bytes of files", "us a decision", "student's action", "return kept", "certificate")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", nargs="+", type=Path, required=True, help="run folders")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--page", type=Path, help=f"a page; the table takes the place of what lies between {BEGIN} and {END}")
    parser.add_argument("--workers", type=int, default=None)
    options = parser.parse_args()
    rows = [row for run in options.runs for row in rows_of(run, options.formats, options.workers)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in (COLUMNS, ["---"] * len(COLUMNS), *rows))
    print(table)
    if options.page:
        before, _, rest = options.page.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        write_atomically(options.page, lambda target: target.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}"))
    return 0


def rows_of(run: Path, formats: list[str], workers: int | None) -> list[list[str]]:
    """A row for each format; formats that were exported already are read, not repeated."""
    result = json.loads((run / "result.json").read_text())
    title = f"{run.name}: {result['teacher']['algo']} {result['env']}, {result['student']['params']:,} parameters"
    rows = []
    for name in formats:
        done = (result.get("exports") or {}).get(name)
        try:
            found = done or export_student(str(run), name, workers=workers, teacher_reading=_reading(result)).summary()
            rows.append([title, name, *_figures(found)])
        except (RequestError, Fault) as error:
            rows.append([title, name, "", "", "", "", "", str(error)])
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
        title = ""
    return rows


def _reading(result: dict[str, Any]) -> Reading:
    return Reading(**{name: value for name, value in (result["teacher"].get("reading") or {}).items() if name == "extractor"})


def _figures(found: dict[str, Any]) -> list[str]:
    certificate = found.get("certificate")
    return [
        f"{found['weight_bytes']:,}",
        f"{found['bytes']:,}",
        f"{found['microseconds']:.2f}",
        f"{found['parity']['equal_actions']:.2%}",
        retention_text(found["student_retention"]),
        f"{certificate['verdict']}, {certificate['share']:g}, {certificate['episodes']} episodes" if certificate else "",
    ]


if __name__ == "__main__":
    sys.exit(main())
