#!/usr/bin/env python
"""Run for a long time, and look at memory, handles and processes while it runs.

    python scripts/soak.py long --steps 10000000 --output runs/soak
    python scripts/soak.py jobs --jobs 50 --output runs/soak

``long`` is one job with this number of environment steps, three quarters of them in polishing and one quarter in evaluation, looked at
once a second. Its rollouts are long, since the policy of each rollout is kept (docs/reliability.md). ``jobs`` is a series of short jobs in
one process, looked at after each of them, when its workers have ended: between these looks, the sum over all processes depends on how many
of them run at that moment. The folder gets a table (CSV) and a figure. The exit code is 1 if a median of the last quarter is above that of
the second quarter: memory by more than 5 % and 20 MB, or any number of handles, threads or processes.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
TOKEN = "SOAK_TOKEN"
COLUMNS = ("seconds", "memory_mb", "largest_mb", "handles", "threads", "processes")
EPISODE = 500
"""Steps of an episode of the teacher and of a good student."""
SHORT = [
    "--collect.rounds=2", "--collect.env_steps=2000", "--train.gradient_steps=200", "--evaluate.episodes=10", "--workers=2",
    "--evaluate.reuse_returns=false", "--polish.below=9", "--polish.env_steps=4096", "--polish.snapshots=1",
]  # fmt: skip


def sample(token: str, began: float) -> dict[str, float] | None:
    """Totals over the processes that have the token.

    Memory is what they allocated; pages that they share count once. Mapped files are left out (the code of libraries): their pages are
    shared with all processes of the machine, so a process seems to grow when another one ends.
    """
    memory, handles, threads = [], 0, 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if f"{TOKEN}={token}".encode() not in (entry / "environ").read_bytes():
                continue
            rollup = (entry / "smaps_rollup").read_text()
            own = [int(line.split()[1]) for line in rollup.splitlines() if line.startswith(("Pss_Anon:", "Pss_Shmem:"))]
            memory.append(sum(own) / 1024)
            handles += len(list((entry / "fd").iterdir()))
            threads += len(list((entry / "task").iterdir()))
        except OSError:  # it ended meanwhile
            continue
    if not memory:
        return None
    return dict(zip(COLUMNS, (time.monotonic() - began, sum(memory), max(memory), handles, threads, len(memory)), strict=True))


def watched(command: Sequence[str], interval: float) -> tuple[int, list[dict[str, float]]]:
    """Run a command; its exit code, and samples at this interval."""
    token, began, samples = uuid.uuid4().hex, time.monotonic(), []
    environment = {**os.environ, TOKEN: token, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if found := sample(token, began):
                samples.append(found)
            time.sleep(interval)
    return process.returncode, samples


def long_job(steps: int, folder: Path) -> list[str]:
    """One job with at least this number of environment steps."""
    episodes = max(20, steps // 4 // (2 * EPISODE))
    return [
        str(ROOT / "scripts" / "distill_policy.py"), "--teacher=ppo/CartPole-v1", f"--output={folder / 'run'}", "--workers=2",
        "--collect.rounds=2", "--collect.env_steps=4000", "--train.gradient_steps=400", "--evaluate.reuse_returns=false",
        f"--evaluate.episodes={episodes}", f"--polish.env_steps={steps * 3 // 4}", "--polish.below=9", "--polish.enough=9",
        "--polish.hopeless=0", "--polish.num_steps=2048", "--polish.epochs=4",
    ]  # fmt: skip


def short_jobs(count: int, folder: Path) -> int:
    """Jobs one after the other in this process; writes what it holds after each of them."""
    sys.path.insert(0, str(ROOT))
    from policy_distill.commands.cli import main as command

    began, worst = time.monotonic(), 0
    for job in range(count):
        options = ["--teacher=ppo/CartPole-v1", f"--output={folder / str(job)}", f"--seed={job}", *SHORT, "--json"]
        worst = max(worst, command(["distill_policy", *options]))
        found = sample(os.environ[TOKEN], began)
        assert found is not None, "this process has the token"
        append(folder / "after_jobs.csv", found)
    return worst


def append(path: Path, row: Mapping[str, float]) -> None:
    """Add a row to a CSV file."""
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


def rows_of(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV file."""
    with open(path, newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def table(rows: Sequence[Mapping[str, float]], what: str, every: int) -> str:
    """Some of the rows as Markdown: each of number ``every``."""
    names = ("memory_mb", "handles", "threads", "processes")
    lines = [f"| {what} | seconds | memory, MB | handles | threads | processes |", "|---:|---:|---:|---:|---:|---:|"]
    for number in range(every, len(rows) + 1, every):
        row = rows[number - 1]
        lines.append(" | ".join([f"| {number}", f"{row['seconds']:.0f}", *(f"{row[name]:.0f}" for name in names)]) + " |")
    return "\n".join(lines)


def growth(samples: Sequence[dict[str, float]]) -> list[str]:
    """What grew between the second and the last quarter of a run."""
    quarter = max(len(samples) // 4, 1)
    second, last = ({name: float(np.median([one[name] for one in part])) for name in COLUMNS}
                    for part in (samples[quarter : 2 * quarter], samples[-quarter - 1 : -1]))  # fmt: skip
    grown = [name for name in ("handles", "threads", "processes") if last[name] > second[name]]
    if last["memory_mb"] > max(1.05 * second["memory_mb"], second["memory_mb"] + 20):
        grown.append("memory_mb")
    return [f"{name} grew from {second[name]:.0f} to {last[name]:.0f}" for name in grown]


def draw(samples: Sequence[dict[str, float]], title: str, path: Path) -> None:
    """Memory and handles over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 1, sharex=True, figsize=(8, 5), layout="constrained")
    minutes = [one["seconds"] / 60 for one in samples]
    for axis, names in zip(axes, (("memory_mb", "largest_mb"), ("handles", "threads", "processes")), strict=True):
        for name in names:
            axis.plot(minutes, [one[name] for one in samples], label=name.replace("_mb", ", MB"))
        axis.set_ylim(bottom=0)
        axis.legend()
    axes[0].set_title(title)
    axes[1].set_xlabel("minutes")
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["long", "jobs", "jobs-here"])
    parser.add_argument("--steps", type=int, default=10_000_000)
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--output", type=Path, default=Path("runs/soak"))
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two samples")
    options = parser.parse_args()
    folder: Path = options.output / options.what
    folder.mkdir(parents=True, exist_ok=True)
    if options.what == "jobs-here":
        return short_jobs(options.jobs, options.output)
    here = [str(Path(__file__).resolve()), "jobs-here", f"--jobs={options.jobs}", f"--output={folder}"]
    command = long_job(options.steps, folder) if options.what == "long" else here
    (folder / "after_jobs.csv").unlink(missing_ok=True)
    code, samples = watched([sys.executable, *command], options.interval)
    (folder / "samples.csv").unlink(missing_ok=True)
    for one in samples:
        append(folder / "samples.csv", one)
    draw(samples, " ".join(sys.argv[1:3]), folder / "soak.png")
    memory = [one["memory_mb"] for one in samples]
    print(
        f"exit code {code}; {len(samples)} samples in {samples[-1]['seconds']:.0f} s; memory of all processes at most {max(memory):.0f} MB"
    )
    looked_at = samples if options.what == "long" else rows_of(folder / "after_jobs.csv")
    print(table(looked_at, "sample" if options.what == "long" else "job", max(1, len(looked_at) // 10)))
    grown = growth(looked_at)
    print("; ".join(grown) or "nothing grew")
    return 1 if code or grown else 0


if __name__ == "__main__":
    sys.exit(main())
