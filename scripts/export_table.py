"""Export the students of finished runs to every format, and write what came out as a page.

python scripts/export_table.py --runs runs/cartpole runs/lunarlander --page docs/exports.md [--formats c c-int8]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- table -->", "<!-- end of table -->"
FORMATS = ["sb3", "npz", "pt2", "onnx", "onnx-int8", "c", "c-int8", "c-int4", "c-int3", "c-int2"]
COLUMNS = ("student", "format", "bytes of weights", "bytes of files", "us a decision", "student's action", "return kept", "certificate")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", nargs="+", type=Path, required=True, help="run folders")
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--page", type=Path, help=f"a page; the table takes the place of what lies between {BEGIN} and {END}")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    rows = [row for run in options.runs for row in rows_of(run, options.formats, options.workers)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in (COLUMNS, ["---"] * len(COLUMNS), *rows))
    print(table)
    if options.page:
        before, _, rest = options.page.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        options.page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")
    return 0


def rows_of(run: Path, formats: list[str], workers: int) -> list[list[str]]:
    """A row for each format; formats that were exported already are read, not repeated."""
    result = json.loads((run / "result.json").read_text())
    title = f"{run.name}: {result['teacher']['algo']} {result['env']}, {result['student']['params']:,} parameters"
    rows = []
    for name in formats:
        done = (result.get("exports") or {}).get(name)
        rows.append([title, name, *(_figures(done) if done else _exported(run, name, workers, result))])
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
        title = ""
    return rows


def _exported(run: Path, name: str, workers: int, result: dict[str, Any]) -> list[str]:
    """The cells of a format that is exported now, or the reason why it is not."""
    script = str(Path(__file__).with_name("export_student.py"))
    command = [sys.executable, script, "--student", str(run), "--format", name, "--workers", str(workers), "--json"]
    if extractor := (result["teacher"].get("reading") or {}).get("extractor"):
        command += ["--teacher_extractor", extractor]
    done = subprocess.run(command, capture_output=True, text=True)
    return _figures(json.loads(done.stdout)) if done.returncode == 0 else [*[""] * 5, f"not written: {_reason(done.stderr)}"]


def _reason(errors: str) -> str:
    """Why an export ended, from the line that it ended with."""
    return re.sub(r"^policy-distill: (export_student failed: )?(\S+ is not written: it )?", "", errors.strip().splitlines()[-1])


def _figures(found: dict[str, Any]) -> list[str]:
    certificate = found.get("certificate")
    kept = found["student_retention"]
    return [
        f"{found['weight_bytes']:,}",
        f"{found['bytes']:,}",
        f"{found['microseconds']:.2f}",
        f"{found['parity']['equal_actions']:.2%}",
        f"{kept['estimate']:.3f} [{kept['low']:.3f}, {kept['high']:.3f}]" if kept["estimate"] is not None else "undefined",
        f"{certificate['verdict']}, {certificate['share']:g}, {certificate['episodes']} episodes" if certificate else "",
    ]


if __name__ == "__main__":
    sys.exit(main())
