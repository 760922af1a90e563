"""Whole runs whose environments fail, and the rows of a table about them; see scripts/inject_faults.py."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.kills.run import Process

ROOT = Path(__file__).parents[2]
TOKEN = "FAULT_TOKEN"
END_SECONDS = 8.0
"""Time in which all processes of a run must be gone after its end."""


@dataclass
class Run:
    """A run of ``distill_policy`` that has ended.

    Attributes:
        code: exit code.
        lines: its messages.
        folder: run folder.
    """

    code: int
    lines: list[str]
    folder: Path

    @property
    def student(self) -> str:
        """The start of the hash of its weights, or ``none``."""
        path = self.folder / "student" / "student.safetensors"
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else "none"

    @property
    def last(self) -> str:
        return self.lines[-1] if self.lines else ""

    def notes(self) -> list[str]:
        return [line for line in self.lines if "restart" in line or "TensorBoard" in line]


@contextlib.contextmanager
def started(folder: Path, *options: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a run, and see that no process of it is left at the end; yields the process and the token that all its processes share."""
    token = uuid.uuid4().hex
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", TOKEN: token}
    environment |= {f"FAULT_{name}".removesuffix("_KIND"): value for name, value in variables.items()}
    command = [sys.executable, str(ROOT / "scripts" / "distill_policy.py"), *options, "--output", str(folder)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process, token
    finally:
        process.kill()
        process.wait()
        until = time.monotonic() + END_SECONDS
        while (left := processes_of(token)) and time.monotonic() < until:
            time.sleep(0.1)
        for number in left:
            os.kill(number, signal.SIGKILL)
        if left:
            raise AssertionError(f"{len(left)} processes were left")


def processes_of(token: str) -> list[int]:
    """Processes that run, not zombies, with the token in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (
                    f"{TOKEN}={token}".encode() in (entry / "environ").read_bytes()
                    and b"\nState:\tZ" not in (entry / "status").read_bytes()
                ):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def run(folder: Path, *options: str, during: Callable[[], object] | None = None, **variables: str) -> Run:
    """Run to the end; ``during`` is called while it runs."""
    with started(folder, *options, **variables) as (process, _):
        if during is not None:
            during()
        _, errors = process.communicate(timeout=300)
    return Run(process.returncode, [line for line in errors.splitlines() if line.strip()], folder)


def resume(folder: Path) -> Run:
    """Continue a run without a fault."""
    return run(folder, "--resume", str(folder), "--env", "tests.faulty_worlds:Faulty-v0")


def wait_for(path: Path, seconds: float = 60.0) -> None:
    """Wait until a file is there."""
    until = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > until:
            raise AssertionError(f"{path} did not appear")
        time.sleep(0.01)


def check(condition: bool, found: object) -> None:
    if not condition:
        raise AssertionError(str(found))


class Table:
    """Rows of what was done, what happened and what was left."""

    def __init__(self, only: str) -> None:
        self.only, self.failures = only, 0
        print("| done | happened | left |\n|---|---|---|", flush=True)

    def row(self, done: str, try_it: Callable[[], tuple[str, str]]) -> None:
        if not re.search(self.only, done):
            return
        try:
            happened, left = try_it()
        except (AssertionError, subprocess.TimeoutExpired) as error:
            self.failures += 1
            happened, left = "**FAILED**", str(error)
        cells = (text.replace("|", "\\|") for text in (done, happened, left))
        print(f"| {' | '.join(cells)} |", flush=True)


def short(line: str, work: Path) -> str:
    """A message without the paths of this machine, and without how to go on."""
    line = re.split("; (?:once the cause is gone, )?go on with", line)[0]
    return f"`{line.replace(str(work), '…').removeprefix('policy-distill: distill_policy failed: ')}`"


@contextlib.contextmanager
def forked(folder: Path, *options: str, **variables: str) -> Iterator[Process]:
    """Start a run in a session of its own, forked from this process, which has imported everything; see that none of it is left."""
    environment = {f"FAULT_{name}".removesuffix("_KIND"): value for name, value in variables.items()}
    process = Process(["distill_policy", "--output", str(folder), *options], folder, folder.parent / "cache", **environment)
    try:
        yield process
    finally:
        process.kill()
        until = time.monotonic() + END_SECONDS
        while (left := processes_in(process.pid)) and time.monotonic() < until:
            time.sleep(0.1)
        for number in left:
            os.kill(number, signal.SIGKILL)
        if left:
            raise AssertionError(f"{len(left)} processes were left")


def processes_in(session: int) -> list[int]:
    """Processes of a session that run, not zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, _, _, of_session, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(of_session) == session and state != "Z":
                    found.append(int(entry.name))
    return found
