#!/usr/bin/env python
"""Inject faults into whole runs, and print a Markdown table of what was done, what happened and what was left.

    python scripts/inject_faults.py --kills 20

Each run is a process of its own with the environment of tests/faulty_worlds.py. A row fails, and so does the script, if a run ends
otherwise than it should: another exit code, no line that names the cause, another student than without the fault, or a process that is
left. Rows about disks need the right to mount file systems (root); elsewhere they are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.kills.reading import Reads  # noqa: E402 - from the checkout of this script
from tests.kills.run import Process, stage_of  # noqa: E402

SHORT = [
    "--teacher=ppo/CartPole-v1", "--env=tests.faulty_worlds:Faulty-v0", "--collect.rounds=4", "--collect.env_steps=4000",
    "--train.gradient_steps=400", "--workers=2", "--evaluate.episodes=10", "--evaluate.reuse_returns=false", "--step_timeout=1",
]  # fmt: skip
UNPOLISHED = ["--polish.below=0"]
POLISHED = ["--polish.below=9", "--polish.env_steps=12000", "--polish.num_steps=128", "--polish.num_envs=4", "--polish.snapshots=2"]
IMAGES = [
    "--teacher=ppo/MinAtar-Breakout-v1", "--extractor=agents/minatar.py:MinAtarNetwork", "--wrapper=tests.faulty_worlds:FaultyWrapper",
    "--env=MinAtar/Breakout-v1", "--student.hidden_sizes=[16]", "--collect.rounds=2", "--collect.env_steps=1000",
    "--train.gradient_steps=40", "--train.batch_size=32", "--evaluate.episodes=4", "--check.skip", "--step_timeout=5", *POLISHED,
    "--polish.env_steps=2048", "--polish.epochs=1",
]  # fmt: skip
"""Of a student of images; these replace those of SHORT."""
LONG_POLISHED = [*POLISHED, "--collect.rounds=2", "--polish.env_steps=10000000"]
PLACE = r"tests\.faulty_worlds:Faulty-v0, seed \d+(, step 9| and \d+ episodes later, step 9)"
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


def environments(table: Table, work: Path) -> None:
    """Faults of environments in workers, that happen once and that happen always."""
    every = ("raise", "hang", "hang in C", "exit", "sys.exit", "segfault", "kill", "child")
    common, few = ("raise", "hang", "exit", "segfault", "kill"), ("raise", "hang", "kill")
    for name, settings, kinds in (
        ("validation", UNPOLISHED, every), ("collect", UNPOLISHED, common), ("polish", POLISHED, common), ("polish, images", IMAGES, few),
    ):  # fmt: skip
        undisturbed, where = "", name.partition(",")[0]
        for kind in kinds:

            def once(kind: str = kind, name: str = name, where: str = where, settings: list[str] = settings) -> tuple[str, str]:
                nonlocal undisturbed
                undisturbed = undisturbed or run(work / f"undisturbed {name}", *SHORT, *settings).student
                marker = work / f"once {name} {kind}"
                found = run(work / f"{name} {kind}", *SHORT, *settings, KIND=kind, IN=where, ONCE=str(marker))
                check(marker.exists(), "the fault did not happen")
                check(found.code == 0 and len(found.notes()) == 1, found.lines[-3:])
                check(found.student == undisturbed, f"another student: {found.student}, not {undisturbed}")
                return "1 restart, exit code 0", "the student of an undisturbed run, bit for bit"

            def always(kind: str = kind, where: str = where, settings: list[str] = settings) -> tuple[str, str]:
                nonlocal undisturbed
                undisturbed = undisturbed or run(work / f"undisturbed {where}", *SHORT, *settings).student
                folder = work / f"{where} {kind} always"
                found = run(folder, *SHORT, *settings, KIND=kind, IN=where)
                check(found.code == 1, found.lines[-3:])
                check(re.search(PLACE, found.last) is not None, found.last)
                check("Traceback" not in "".join(found.lines), found.lines)
                again = resume(folder)
                check(again.code == 0 and again.student == undisturbed, again.lines[-3:])
                line = short(found.last, work)
                return (
                    f"exit code 1 after {len(found.notes())} restarts: {line}",
                    "`--resume` without the fault: the student of an undisturbed run",
                )

            table.row(f"{name}: an environment does this once: {kind}", once)
            if name == "validation" or (kind in ("raise", "segfault") and name != "polish, images"):
                table.row(f"{where}: an environment does this always: {kind}", always)


def numbers(table: Table, work: Path) -> None:
    """NaN."""
    for name, where in (("NaN observation", "collect"), ("NaN observation", "validation"), ("NaN reward", "collect")):

        def try_it(name: str = name, where: str = where) -> tuple[str, str]:
            found = run(work / f"{name} {where}", *SHORT, *UNPOLISHED, KIND=name, IN=where)
            check(found.code == 1 and not found.notes() and "nan" in found.last, found.lines[-3:])
            check("seed" in found.last and "step" in found.last, found.last)
            return f"exit code 1: {short(found.last, work)}", "the checkpoint before the round"

        table.row(f"{where}: {name}", try_it)

    def diverging() -> tuple[str, str]:
        found = run(work / "diverging", *SHORT, *UNPOLISHED, "--train.learning_rate", "1e38")
        check(found.code == 1 and "training diverged" in found.last and "lower train.learning_rate" in found.last, found.lines[-3:])
        return f"exit code 1: {short(found.last, work)}", "no student with NaN"

    table.row("training: the loss becomes NaN (`--train.learning_rate 1e38`)", diverging)


@contextlib.contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """A small file system."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def disks(table: Table, work: Path) -> None:
    """Disks that fill up or become read-only, and folders that are removed, after the second round."""
    if os.geteuid():
        return

    def ended(found: Run, reason: str) -> str:
        check(found.code == 1 and reason in found.last and "cannot be written" in found.last, found.lines[-3:])
        check("Traceback" not in "".join(found.lines), found.lines)
        return f"exit code 1: {short(found.last, work)}"

    def resumed(folder: Path) -> str:
        again = resume(folder)
        check(again.code == 0, again.lines[-3:])
        check(again.student == run(work / f"undisturbed {uuid.uuid4().hex}", *SHORT, *UNPOLISHED).student, "another student")
        return "the checkpoint was whole: `--resume` with room again gives the student of an undisturbed run"

    def full() -> tuple[str, str]:
        with disk(work / "full", "4m") as where:

            def fill() -> None:
                wait_for(where / "run" / "checkpoint")
                time.sleep(2)
                with open(where / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
                    while file.write(bytes(4096)):
                        pass

            line = ended(run(where / "run", *SHORT, *UNPOLISHED, during=fill), "No space left on device")
            (where / "filler").unlink()
            return line, resumed(where / "run")

    def read_only() -> tuple[str, str]:
        folder = work / "read-only"

        def lock() -> None:
            """Put a read-only view of the folder over it: a file system cannot be made read-only while a file is open for writing."""
            wait_for(folder / "checkpoint")
            time.sleep(2)
            subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)

        try:
            line = ended(run(folder, *SHORT, *UNPOLISHED, during=lock), "Read-only file system")
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        return line, resumed(folder)

    def gone() -> tuple[str, str]:
        folder = work / "gone"

        def remove() -> None:
            wait_for(folder / "checkpoint")
            time.sleep(2)
            shutil.rmtree(folder)

        found = run(folder, *SHORT, *UNPOLISHED, during=remove)
        check(found.code == 1 and "does not exist any more" in found.last, found.lines[-3:])
        check(not folder.exists(), "the folder was made again")
        return f"exit code 1: {short(found.last, work)}", "nothing; the folder is not made again"

    def tensorboard() -> tuple[str, str]:
        with disk(work / "tensorboard" / "tensorboard", "8k") as where:
            found = run(where.parent, *SHORT, *UNPOLISHED)
            check(found.code == 0 and any("TensorBoard" in line for line in found.notes()), found.lines[-3:])
            return f"exit code 0, and {short(found.notes()[0], work)}", "everything but the curves"

    table.row("disk: full after some rounds", full)
    table.row("disk: read-only after some rounds", read_only)
    table.row("disk: the run folder is removed", gone)
    table.row("disk: full in `tensorboard/` alone", tensorboard)


def sharing(table: Table, work: Path, count: int) -> None:
    """Several processes in one run folder."""

    def three() -> tuple[str, str]:
        folder = work / "three"
        longer = [*SHORT, *UNPOLISHED, "--collect.rounds=12", "--train.gradient_steps=12000"]
        with started(folder, *longer) as (first, _):
            wait_for(folder / "checkpoint" / "state.safetensors")
            with started(folder, *longer) as (second, _), started(folder, *longer) as (third, _):
                for other in (second, third):
                    _, errors = other.communicate(timeout=300)
                    last = (errors.splitlines() or [""])[-1]
                    check(other.returncode == 2 and f"is in use by process {first.pid}" in last, last)
            _, errors = first.communicate(timeout=300)
            check(first.returncode == 0, errors[-300:])
        undisturbed = run(work / "alone", *longer)
        check(Run(0, [], folder).student == undisturbed.student, "another student")
        line = last.partition(" on ")[0].removeprefix("policy-distill: ").replace(str(work), "…").replace(str(first.pid), "N")
        return f"one runs, exit code 0; two are refused, exit code 2: `{line} …`", "the student of a run alone"

    def stale() -> tuple[str, str]:
        folder = work / "stale"
        with started(folder, *SHORT, *UNPOLISHED) as (process, _):
            wait_for(folder / "checkpoint" / "state.safetensors")
            process.kill()
            process.wait()
            check((folder / ".lock").exists(), "the lock's file was left")
            again = resume(folder)
        check(again.code == 0, again.lines[-3:])
        return "`--resume` at once: exit code 0; the lock of the dead process is taken over", "the finished run"

    def reads() -> tuple[str, str]:
        folder, found, runs = work / "read", Reads(), 0
        several = ["--self_distill.generations=6", "--self_distill.gradient_steps=50"]
        while min(found.student, found.checkpoint) < count:
            runs += 1
            with started(folder, *SHORT, *UNPOLISHED, *several, f"--seed={runs}") as (process, _):
                while process.poll() is None:
                    found.look(folder)
                check(process.returncode == 0, process.returncode)
        check(not found.wrong, found.wrong[:3])
        check(len(found.students) > runs, "few students were written between the reads")
        happened = (
            f"{found.student:,} reads of the student ({len(found.students)} different), {found.checkpoint:,} of the checkpoint "
            f"({len(found.checkpoints)} different), {found.result:,} of result.json, while {runs} runs wrote"
        )
        return happened, "0 mixed or damaged"

    table.row("folder: three processes at once", three)
    table.row("folder: a run is killed, and goes on at once", stale)
    table.row(f"folder: {count:,} reads while runs write", reads)


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


def kills(table: Table, work: Path, count: int) -> None:
    """Signals while environments work or hang; no process may be left (``forked`` checks that)."""
    unpolished = [*UNPOLISHED, "--collect.env_steps=100000", "--collect.rounds=50"]
    for where, kind in (("validation", ""), ("validation", "hang"), ("validation", "hang in C"), ("polish", ""), ("polish", "hang")):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
            for whom in ("the command", "all its processes"):

                def try_it(number: int = number, kind: str = kind, where: str = where, whom: str = whom) -> tuple[str, str]:
                    wanted = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGKILL: -9}[signal.Signals(number)]
                    for attempt in range(count):
                        folder = work / f"{number} {where} {kind} {whom} {attempt}"
                        settings = [*SHORT[:-1], *(LONG_POLISHED if where == "polish" else unpolished)]
                        with forked(folder, *settings, KIND=kind, IN=where) as process:
                            wait_for(folder / "checkpoint" / "state.safetensors")
                            while where == "polish" and stage_of(folder) != "polish":
                                time.sleep(0.05)
                            time.sleep((1.5 if where == "polish" else 0.5) + 0.05 * attempt)
                            os.kill(process.pid, number) if whom == "the command" else os.killpg(process.pid, number)
                            code = process.code(20)
                            last = (process.log.read_text().splitlines() or [""])[-1]
                            check(code == wanted, f"exit code {code}: {last}")
                            check(
                                wanted < 0 or f"go on with: policy-distill distill_policy --resume {folder}" in last.replace("'", ""), last
                            )
                        shutil.rmtree(folder)
                    return (
                        f"exit code {wanted}, {count} times",
                        "no process" if wanted < 0 else "no process; the last line names `--resume`",
                    )

                state = f"environments {kind or 'work'}{' in rollouts of PPO' if where == 'polish' else ''}"
                table.row(f"kill: {signal.Signals(number).name} to {whom}, {state}", try_it)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=3, help="times that each kind of kill is tried")
    parser.add_argument("--reads", type=int, default=100, help="reads of each kind while runs write")
    parser.add_argument("--only", default="", help="rows in whose first column this regular expression is found")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background jobs ignore it, and theirs would too
    with tempfile.TemporaryDirectory(prefix="inject-faults-") as folder:
        table, work = Table(options.only), Path(folder)
        environments(table, work)
        numbers(table, work)
        disks(table, work)
        sharing(table, work, options.reads)
        kills(table, work, options.kills)
    return min(table.failures, 1)


if __name__ == "__main__":
    sys.exit(main())
