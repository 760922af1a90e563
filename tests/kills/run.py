"""Runs that are killed by SIGKILL at random moments and resumed until they are done, compared with the same run without interruption.

A kill waits until the run has written a random number of checkpoints, and then for a random part of the time that the next advance takes.
Each process is forked from this one, so it begins with what was imported here and nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from policy_distill.commands.cli import main as command
from policy_distill.pipeline.distill import distill  # noqa: F401 - imported here once, instead of in each process

POLL = 0.001
"""Seconds between two looks at a checkpoint."""
TINY = (
    "--device=cpu", "--seed=3", "--collect.rounds=4", "--collect.env_steps=2000", "--collect.num_envs=4", "--train.gradient_steps=400",
    "--train.batch_size=64", "--evaluate.episodes=8", "--evaluate.validation_episodes=3", "--evaluate.finalist_episodes=6",
    "--evaluate.certify=0.5", "--evaluate.max_episodes=60", "--evaluate.reuse_returns=true", "--check.skip",
)  # fmt: skip
POLISH = ("--polish.below=1e9", "--polish.env_steps=4096", "--polish.num_envs=4", "--polish.num_steps=128", "--polish.epochs=4",
          "--polish.snapshots=4")  # fmt: skip
GENERATIONS = ("--self_distill.generations=2", "--self_distill.gradient_steps=100")
VIEW = ("--student.inputs", '{"keep": [0, 2], "history": 2}')
CASES: dict[str, tuple[str, ...]] = {
    "discrete, memory": ("--teacher=ppo/CartPole-v1", "--workers=2", "--student.hidden_sizes=[16,16]", *GENERATIONS, *POLISH),
    "discrete, disk, view": (
        "--teacher=ppo/CartPole-v1", "--workers=0", "--student.hidden_sizes=[8]", "--collect.storage=disk", *VIEW, *POLISH,
    ),
    "Q-values, memory": ("--teacher=dqn/MountainCar-v0", "--workers=2", "--student.hidden_sizes=[8,8]", *GENERATIONS, "--polish.below=0"),
    "continuous, disk, values": (
        "--teacher=sac/Pendulum-v1", "--workers=2", "--student.hidden_sizes=[16,16]", "--collect.storage=disk",
        "--value.hidden_sizes=[16]", "--value.gradient_steps=400", "--collect.action_noise=0.1", *POLISH,
    ),
}  # fmt: skip
"""Options of each kind of run."""


STUDY = (*(option for option in TINY if not option.startswith(("--seed", "--evaluate.reuse"))), "--polish.below=0")
"""Options of each job of a suite or an ablation."""


@dataclass
class Reference:
    """A run without interruption.

    Attributes:
        folder: its run folder.
        gaps: seconds of each advance, and of what follows the last one.
    """

    folder: Path
    gaps: list[float]


@dataclass
class Outcome:
    """A run that was killed.

    Attributes:
        kind: of ``CASES``.
        stages: the stage that each kill interrupted.
        writing: number of kills while a checkpoint was being written.
        differences: what is not as in the run without interruption.
        error: last line of a process that failed; None if none did.
    """

    kind: str
    stages: list[str] = field(default_factory=list)
    writing: int = 0
    differences: list[str] = field(default_factory=list)
    error: str | None = None


def state_of(run: Path) -> Path:
    return run / "checkpoint" / "state.safetensors"


def stage_of(run: Path) -> str:
    """The stage that the checkpoint's next advance belongs to."""
    content = state_of(run).read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    stage: str = json.loads(header["__metadata__"]["data"])["state"]["stage"]
    return stage


def _child(arguments: Sequence[str], log: Path, cache: Path, environment: Mapping[str, str]) -> None:
    os.setsid()
    os.environ |= {"XDG_CACHE_HOME": str(cache), **environment}
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    code = command(list(arguments))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Process:
    """A command in a process of its own.

    Args:
        arguments: of the command.
        run: its run folder.
        cache: folder of the cache of returns.
        environment: further environment variables.
    """

    def __init__(self, arguments: Sequence[str], run: Path, cache: Path, **environment: str) -> None:
        self.run, self.log = run, run.parent / f"{run.name}.log"
        self._seen = self._version()
        self._process = multiprocessing.get_context("fork").Process(target=_child, args=(arguments, self.log, cache, environment))
        self._process.start()

    @property
    def pid(self) -> int:
        """The process, and the session that it and its workers are in."""
        assert self._process.pid is not None
        return self._process.pid

    def code(self, seconds: float) -> int | None:
        """Wait for the end; the exit code, None if it did not end in time."""
        self._process.join(seconds)
        return self._process.exitcode

    def _version(self) -> tuple[int, int]:
        try:
            found = state_of(self.run).stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_ino, found.st_mtime_ns

    def next_checkpoint(self) -> bool:
        """Wait for a new checkpoint; False if the process ended before."""
        while self._version() in (self._seen, (0, 0)):
            if not self._process.is_alive():
                return False
            time.sleep(POLL)
        self._seen = self._version()
        return True

    def kill(self) -> bool:
        """Kill the process; False if it has ended by itself."""
        alive = self._process.is_alive()
        if alive:
            os.kill(self.pid, signal.SIGKILL)
        self._process.join()
        return alive and self._process.exitcode == -signal.SIGKILL

    def end(self) -> str | None:
        """Wait for the end; the last line of the log if the command failed."""
        self._process.join()
        return None if self._process.exitcode == 0 else (self.log.read_text().splitlines() or ["no output"])[-1]


def reference(kind: str, folder: Path) -> Reference:
    run = folder / "whole"
    folder.mkdir(parents=True, exist_ok=True)
    process, times = Process(["distill_policy", "--output", str(run), *TINY, *CASES[kind]], run, folder / "cache of whole"), []
    while process.next_checkpoint():
        times.append(time.monotonic())
    if error := process.end():
        raise RuntimeError(f"the run without interruption failed: {error}")
    times.append(time.monotonic())
    return Reference(run, [after - before for before, after in itertools.pairwise(times)])


def killed(kind: str, whole: Reference, run: Path, draws: random.Random, kills: int) -> Outcome:
    """Begin a run of this kind, kill it ``kills`` times and resume it until it is done."""
    found, cache, done = Outcome(kind), run.parent / f"cache of {run.name}", 0
    arguments = ["distill_policy", "--output", str(run), *TINY, *CASES[kind]]
    for _ in range(kills):
        process = Process(arguments, run, cache)
        advance = draws.randrange(done, len(whole.gaps))
        delay = draws.uniform(0, whole.gaps[advance])
        # Each process writes a checkpoint at its beginning.
        if all(process.next_checkpoint() for _ in range(advance - done + 1)):
            time.sleep(delay)
        if not process.kill():
            found.error = process.end()
            break
        done = advance
        if state_of(run).is_file():
            found.stages.append(stage_of(run))
            found.writing += any(state_of(run).parent.glob(".state.safetensors.*"))
        elif (run / "result.json").is_file():
            found.stages.append("removal of the checkpoint")
        arguments = ["distill_policy", "--resume", str(run)]
    else:
        found.error = Process(arguments, run, cache).end()
    found.differences = differences(whole.folder, run) if found.error is None else []
    return found


def differences(whole: Path, run: Path) -> list[str]:
    """Files and figures of a finished run that are not those of another one."""
    found = [name for name in ("student/student.safetensors", "student/student.json") if _bytes(whole / name) != _bytes(run / name)]
    one, other = (json.loads((folder / "result.json").read_text()) for folder in (whole, run))
    for summary in (one, other):
        assert summary.pop("seconds")["total"] > 0
        summary["config"].pop("output")
    found += [key for key in {**one, **other} if one.get(key) != other.get(key)]
    left = {path.relative_to(whole).as_posix() for path in whole.rglob("*") if "tfevents" not in path.name}
    return found + sorted(left ^ {path.relative_to(run).as_posix() for path in run.rglob("*") if "tfevents" not in path.name})


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def study(kind: str, folder: Path, draws: random.Random, runs: int, most_kills: int) -> int:
    """Kill a suite or an ablation at random moments and give the same command again; return how many ended differently."""
    agents = folder / "agents"
    for name in ("ppo/CartPole-v1_1", "dqn/MountainCar-v0_1"):
        shutil.copytree(Path(__file__).parents[2] / "agents" / name, agents / name)
    definition = {
        "title": "Two seeds", "introduction": "", "base": dict(_dotted(STUDY)), "seeds": [0, 1],
        "agents": {"CartPole": {"teacher": str(agents / "ppo/CartPole-v1_1")}},
        "groups": {"Batches": {"variants": {"32": {"train.batch_size": 32}}}},
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(definition))

    def arguments(run: Path) -> list[str]:
        if kind == "suite":
            return ["run_suite", "--teachers", str(agents), "--output", str(run), "--jobs=2", *STUDY]
        return ["run_ablation", "--study", str(folder / "study.yaml"), "--output", str(run), "--page", str(run / "page.md"), "--jobs=2"]

    def results(run: Path) -> dict[str, Any]:
        found: dict[str, Any] = {path.relative_to(run).as_posix(): path.read_bytes() for path in sorted(run.rglob("student.safetensors"))}
        for path in sorted(run.rglob("result.json")):
            found[path.relative_to(run).as_posix()] = json.loads(path.read_text())["returns"]
        return found

    whole, began, wrong = folder / "whole", time.monotonic(), 0
    if error := Process(arguments(whole), whole, folder / "cache of whole").end():
        raise RuntimeError(f"the {kind} without interruption failed: {error}")
    seconds, expected = time.monotonic() - began, results(whole)
    for number in range(runs):
        run, kills, error = folder / str(number), 0, None
        for _ in range(draws.randint(1, most_kills)):
            process = Process(arguments(run), run, folder / f"cache of {number}")
            time.sleep(draws.uniform(0, seconds))
            if not process.kill():
                error = process.end()
                break
            kills += 1
        error = error or Process(arguments(run), run, folder / f"cache of {number}").end()
        same = error is None and results(run) == expected
        wrong += not same
        print(f"{kind} {number + 1}: killed {kills} times; {'the same' if same else error or 'different'}", flush=True)
    return wrong


def _dotted(options: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Settings by dotted name from options ``--name=value``."""
    for option in options:
        name, _, value = option.removeprefix("--").partition("=")
        yield name, yaml.safe_load(value) if value else True


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill runs at random moments and resume them; exit code 1 if one ends differently.")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most_kills", type=int, default=3, help="a run is killed once to this many times")
    parser.add_argument("--study", choices=["suite", "ablation"], help="kill suites or ablations instead of single runs")
    parser.add_argument("--overhead", type=int, metavar="PAIRS", help="measure what checkpoints cost instead, with this many pairs of jobs")
    arguments = parser.parse_args()
    if arguments.overhead:
        from tests.kills.overhead import compare

        with tempfile.TemporaryDirectory(prefix="overhead-") as temporary:
            return compare(arguments.overhead, Path(temporary))
    if arguments.study:
        with tempfile.TemporaryDirectory(prefix="kills-") as temporary:
            draws = random.Random(arguments.seed)
            return min(study(arguments.study, Path(temporary), draws, arguments.runs, arguments.most_kills), 1)
    draws, stages, writing, wrong, total = random.Random(arguments.seed), Counter[str](), 0, 0, 0
    with tempfile.TemporaryDirectory(prefix="kills-") as temporary:
        wholes = {kind: reference(kind, Path(temporary, str(number))) for number, kind in enumerate(CASES)}
        for number in range(arguments.runs):
            kind = list(CASES)[number % len(CASES)]
            whole = wholes[kind]
            found = killed(kind, whole, whole.folder.with_name(str(number)), draws, draws.randint(1, arguments.most_kills))
            stages.update(found.stages)
            writing, total, wrong = writing + found.writing, total + len(found.stages), wrong + bool(found.error or found.differences)
            same = found.error or ", ".join(found.differences) or "the same"
            print(f"run {number + 1}: {kind}; killed in {', '.join(found.stages) or 'nothing'}; {same}", flush=True)
    print(f"\n{arguments.runs} runs, {total} kills, {writing} of them while a checkpoint was written; {wrong} runs ended differently")
    print("".join(f"\n{stage}: {count}" for stage, count in stages.most_common()))
    return 1 if wrong else 0
