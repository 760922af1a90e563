"""Thousands of damaged files, read in a process of their own under limits; what became of them as a table."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.corpus import KINDS, fresh, make_corpus

MAX_SECONDS, MAX_MB = 5.0, 1024.0
PATIENCE = 120.0
"""Seconds without an answer after which the process counts as hanging; other work may slow it down."""
COLUMNS = ("files", "read", "refused", "traceback", "not in one printable line", "crashed", "executed", "over 5 s", "over 1 GiB")


def answers(folder: Path, first: int, last: int) -> Iterator[dict[str, Any]]:
    """What became of the files ``first`` to ``last``; a process that dies or hangs is replaced and goes on with the next file."""
    while first < last:
        fresh(folder)
        make_corpus(folder)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "tests.fuzz.worker", str(folder), str(first), str(last)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        lines: queue.Queue[str | None] = queue.Queue()
        collector = threading.Thread(target=_collect, args=(process, lines), daemon=True)
        collector.start()
        while first < last:
            try:
                line = lines.get(timeout=PATIENCE)
            except queue.Empty:
                process.kill()
                yield _crash(first, "it hangs")
                first += 1
                break
            if line is None:
                code = process.wait()
                yield _crash(first, f"exit code {code}")
                first += 1
                break
            yield json.loads(line)
            first += 1
        process.kill()
        process.wait()
        collector.join()


def _crash(number: int, error: str) -> dict[str, Any]:
    return {"number": number, "kind": "unknown", "outcome": "crashed", "error": error, "seconds": 0, "mb": 0, "executed": []}


def _collect(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    with process.stdout as answers_of_it:
        for line in answers_of_it:
            lines.put(line)
    lines.put(None)


def faults_of(answer: dict[str, Any]) -> list[str]:
    """Why this must not be; empty where all is well."""
    found = [answer["outcome"]] if answer["outcome"] not in ("read", "refused") else []
    found += ["executed"] * bool(answer["executed"])
    found += ["over 5 s"] * (answer["seconds"] > MAX_SECONDS)
    return found + ["over 1 GiB"] * (answer["mb"] > MAX_MB)


def main() -> int:
    parser = argparse.ArgumentParser(description="Damage files of every kind and read them; exit code 1 if one does harm.")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first file: the same number is the same damage")
    parser.add_argument("--verbose", action="store_true", help="print each fault as a whole")
    options = parser.parse_args()
    counts: dict[str, Counter[str]] = {kind.name: Counter() for kind in KINDS}
    most = {"seconds": 0.0, "mb": 0.0}
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):  # then of as many as there were
        for answer in answers(Path(folder, "corpus"), options.first, options.first + options.files):
            found = faults_of(answer)
            counts.setdefault(answer["kind"], Counter()).update(["files", *(found if found else [answer["outcome"]])])
            most = {name: max(value, answer[name]) for name, value in most.items()}
            if found:
                text = answer["error"] if options.verbose else answer["error"].strip()[-300:]
                print(f"file {answer['number']} ({answer['kind']}): {', '.join(found)} {answer['executed']}\n{text}\n", file=sys.stderr)
    print(table(counts))
    print(f"\nat most {most['seconds']:.1f} s of processor time and {most['mb']:.0f} MiB")
    return int(any(value for count in counts.values() for name, value in count.items() if name not in ("files", "read", "refused")))


def table(counts: dict[str, Counter[str]]) -> str:
    """Markdown: a row for each kind of file, and their sum."""
    total: Counter[str] = sum(counts.values(), Counter())
    rows = [(name, count) for name, count in counts.items() if count] + [("all", total)]
    lines = [f"| kind | {' | '.join(COLUMNS)} |", f"|---|{'---:|' * len(COLUMNS)}"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(f'{count[column]:,}' for column in COLUMNS)} |" for name, count in rows)])


if __name__ == "__main__":
    sys.exit(main())
