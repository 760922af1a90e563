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
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.kills.faulty_runs import Run, Table, check, forked, resume, run, short, started, wait_for  # noqa: E402
from tests.kills.reading import Reads  # noqa: E402 - from the checkout of this script
from tests.kills.run import stage_of  # noqa: E402

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
