"""Throughput against the number of machines: a formula beside a discrete-event simulation with measured service times.

    policy-distill benchmark engines --json > engines.json
    python scripts/simulate_scaling.py --measured engines.json

Two questions: how many jobs an hour a study finishes, and how many transitions a second one job collects. Times are in seconds, sizes in
megabytes.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

MACHINES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
JOBS_PER_SLOT = 10
"""Jobs of a simulated study, for each job that runs at the same time."""
BLOCKS = 30
"""Simulated blocks of transitions."""
BLOCK_MEGABYTES = 2**23 / 1e6
"""Observations in a block, unless a round ends before (``rollouts.workers.BLOCK_BYTES``)."""


@dataclass(frozen=True)
class Engine:
    """What the machine that asks does for each job and message, from ``policy-distill benchmark engines``.

    Attributes:
        job: its CPU time for a job.
        start: time from a job's dispatch to its first work.
        call: its CPU time for a call of a worker.
        latency: time of an empty call, there and back.
        megabyte: its CPU time for a megabyte that it receives.
        link: megabytes a second of its network.
    """

    job: float
    start: float
    call: float
    latency: float
    megabyte: float
    link: float

    @classmethod
    def measured(cls, path: Path, link: float) -> Engine:
        """Ray's figures in the output of ``benchmark engines --json``."""
        rows = {row["what"]: row for row in json.loads(path.read_text())["results"] if row["engine"] == "ray"}
        if not rows:
            sys.exit(f"{path} has no figures of Ray: install policy-distill[ray] and measure again")
        job, call, megabyte = (rows[what] for what in ("a job", "a call of a worker", "a megabyte from a worker"))
        return cls(job["own_cpu_seconds"], job["seconds"], call["own_cpu_seconds"], call["seconds"], megabyte["own_cpu_seconds"], link)


@dataclass(frozen=True)
class Work:
    """One kind of job.

    Attributes:
        name: what it is like.
        seconds: a job's, on one core; they vary by a log-normal factor.
        sent: megabytes of its agent and of its run folder, which travel where no disk is shared.
        step: a worker's time for a transition, the teacher's label among it.
        transition: megabytes of a transition.
        observation: megabytes of its observation alone.
        append: the job's own time to store a transition.
        round_steps: transitions of a round.
    """

    name: str
    seconds: float
    sent: float
    step: float
    transition: float
    observation: float
    append: float
    round_steps: int


WORKS = (
    Work("LunarLander", 60.0, 1.0, 42e-6, 80e-6, 32e-6, 0.1e-6, 20_000),
    Work("Atari", 3 * 3600.0, 30.0, 1.5e-3, 28.3e-3, 28.2e-3, 8e-6, 20_000),
)
SPREAD = 0.7
"""Standard deviation of the logarithm of a job's seconds."""
PREPARED = 0.002
"""The asking machine's time to hash and read a megabyte of a job's files."""
STEP_SPREAD = 0.3
"""Standard deviation of the logarithm of a worker's time for its share of a block."""


def jobs_by_formula(work: Work, engine: Engine, slots: int, *, shared: bool) -> float:
    """Jobs a second: the least of what the slots, the machine that asks, and its network can do."""
    by_network = math.inf if shared else engine.link / work.sent
    return min(slots / (work.seconds + engine.start), 1 / (engine.job + work.sent * PREPARED), by_network)


def jobs_by_simulation(work: Work, engine: Engine, slots: int, *, shared: bool, random_numbers: random.Random) -> float:
    """Jobs a second, from the first to the moment when no job waits any more. The asking machine and its network serve in order."""
    count = JOBS_PER_SLOT * slots
    free, asker, network = [0.0] * slots, 0.0, 0.0
    begins: list[float] = []
    for _ in range(count):
        asked = asker = max(asker, heapq.heappop(free)) + engine.job + work.sent * PREPARED
        if not shared:
            asked = network = max(network, asked) + work.sent / engine.link
        seconds = work.seconds * math.exp(random_numbers.gauss(-(SPREAD**2) / 2, SPREAD))
        begins.append(asked)
        heapq.heappush(free, asked + engine.start + seconds)
    # the second half, in which the slots are out of step with each other
    return (count - count // 2) / (begins[-1] - begins[count // 2 - 1])


def block_of(work: Work, workers: int) -> int:
    """Transitions of a block with one environment for each worker, or sixteen if those are more."""
    num_envs = max(workers, 16)
    steps = max(1, int(BLOCK_MEGABYTES / (num_envs * work.observation)))
    return min(steps * num_envs, work.round_steps)


def transitions_by_formula(work: Work, engine: Engine, workers: int) -> float:
    """Transitions a second: calls, steps, network and storing follow each other in each block."""
    block = block_of(work, workers)
    stepping = block * work.step / workers * slowest_of(workers)
    receiving = block * max(work.transition / engine.link, work.transition * engine.megabyte + work.append)
    return block / (workers * engine.call + engine.latency + max(stepping, receiving) + min(stepping, receiving) / workers)


def slowest_of(workers: int) -> float:
    """Expected maximum of the log-normal factors of that many workers: the integral of the chance that it exceeds x."""
    normal, width = NormalDist(-(STEP_SPREAD**2) / 2, STEP_SPREAD), 0.01
    return sum((1 - normal.cdf(math.log(index * width)) ** workers) * width for index in range(1, 1000)) + width / 2


def transitions_by_simulation(work: Work, engine: Engine, workers: int, *, random_numbers: random.Random) -> float:
    """Transitions a second over some blocks: the job calls its workers one after the other, and waits for all of them."""
    block, now = block_of(work, workers), 0.0
    for _ in range(BLOCKS):
        ends = []
        for _ in range(workers):
            now += engine.call
            steps = block / workers * work.step * math.exp(random_numbers.gauss(-(STEP_SPREAD**2) / 2, STEP_SPREAD))
            ends.append(now + engine.latency + steps)
        network = asker = now
        part = block / workers
        for end in sorted(ends):
            network = max(network, end) + part * work.transition / engine.link
            asker = max(asker, network) + part * (work.transition * engine.megabyte + work.append)
        now = asker
    return BLOCKS * block / now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, required=True, help="output of policy-distill benchmark engines --json")
    parser.add_argument("--cores", type=int, default=16, help="cores of a machine; each runs one job, or one worker")
    parser.add_argument("--link", type=float, default=1250.0, help="MB/s of the network of the machine that asks (1250: 10 Gbit/s)")
    options = parser.parse_args()
    engine, random_numbers = Engine.measured(options.measured, options.link), random.Random(0)
    print(f"machines of {options.cores} cores, {options.link:g} MB/s\n")
    for work in WORKS:
        for shared in (True, False):
            print(f"{work.name}, jobs an hour, {'shared disk' if shared else 'files sent'}: machines, formula, simulation")
            for machines in MACHINES:
                slots = machines * options.cores
                formula = jobs_by_formula(work, engine, slots, shared=shared)
                simulated = jobs_by_simulation(work, engine, slots, shared=shared, random_numbers=random_numbers)
                print(f"{machines:>6}{formula * 3600:>14,.0f}{simulated * 3600:>14,.0f}")
    for work in WORKS:
        print(f"{work.name}, transitions a second of one job: workers, formula, simulation")
        for workers in MACHINES:
            formula = transitions_by_formula(work, engine, workers)
            simulated = transitions_by_simulation(work, engine, workers, random_numbers=random_numbers)
            print(f"{workers:>6}{formula:>14,.0f}{simulated:>14,.0f}")


if __name__ == "__main__":
    main()
