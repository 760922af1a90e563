"""The cost of checkpoints: whole jobs with and without them, in turns, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import statistics
import time
from pathlib import Path
from typing import Any

from policy_distill.commands.cli import main as command
from policy_distill.pipeline.checkpoint import Checkpoint
from policy_distill.pipeline.state import State

JOB = ("distill_policy", "--teacher=ppo/CartPole-v1", "--workers=0", "--evaluate.reuse_returns=false", "--json")
"""A default job in one process, so that its CPU time is that of everything."""


def measure(run: Path, written: bool, found: Path) -> None:
    """Run a job and write its seconds: elapsed and of the CPU, in total and in checkpoints."""
    inside = {"checkpoints": 0, "cpu": 0.0, "elapsed": 0.0, "bytes": 0}
    write = Checkpoint.write

    def timed(self: Checkpoint, state: State) -> None:
        if not written:
            return
        cpu, elapsed = time.process_time(), time.perf_counter()
        write(self, state)
        inside["cpu"] += time.process_time() - cpu
        inside["elapsed"] += time.perf_counter() - elapsed
        inside["checkpoints"] += 1
        inside["bytes"] = max(inside["bytes"], sum(path.stat().st_size for path in self._folder.iterdir()))

    Checkpoint.write = timed  # type: ignore[method-assign]  # in this process alone
    cpu, elapsed = time.process_time(), time.perf_counter()
    with open(run.with_suffix(".log"), "w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        code = command([*JOB, f"--output={run}"])
    total = {"code": code, "cpu": time.process_time() - cpu, "elapsed": time.perf_counter() - elapsed}
    found.write_text(json.dumps({"total": total, "inside": inside}))


def compare(pairs: int, folder: Path) -> int:
    """Print a Markdown row for each pair of jobs, and the medians; exit code 1 if checkpoints take 2 % or more."""
    print("| pair | CPU s without | CPU s with | difference | checkpoints | CPU s in them | share of the CPU | of the elapsed time |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    rows: list[tuple[float, float, float]] = []
    for pair in range(pairs):
        results: dict[bool, Any] = {}
        for written in (pair % 2 == 0, pair % 2 == 1):
            path = folder / f"{pair}{written}.json"
            process = multiprocessing.get_context("fork").Process(target=measure, args=(folder / f"{pair}{written}", written, path))
            process.start()
            process.join()
            results[written] = json.loads(path.read_text())
            assert results[written]["total"]["code"] == 0, "the job failed"
        without, total, inside = results[False]["total"], results[True]["total"], results[True]["inside"]
        row = (total["cpu"] / without["cpu"] - 1, inside["cpu"] / total["cpu"], inside["elapsed"] / total["elapsed"])
        rows.append(row)
        seconds = f"{without['cpu']:.1f} | {total['cpu']:.1f} | {100 * row[0]:+.1f} % | {inside['checkpoints']} | {inside['cpu']:.3f}"
        print(f"| {pair + 1} | {seconds} | {100 * row[1]:.2f} % | {100 * row[2]:.2f} % |", flush=True)
    medians = [100 * statistics.median(column) for column in zip(*rows, strict=True)]
    print("\nmedians: difference {:+.1f} %, share of the CPU {:.2f} %, of the elapsed time {:.2f} %".format(*medians), end="; ")
    print(f"the folder had {inside['bytes'] / 1e6:.1f} MB at most")
    return int(max(medians[1:]) >= 2)
