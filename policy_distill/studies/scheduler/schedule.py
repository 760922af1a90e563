"""Running a list of jobs: which are done already, which engine runs the others, and in which order their outcomes come."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Iterator, Sequence

from policy_distill.config import EngineConfig, RequestError
from policy_distill.rollouts.processes import available_cores
from policy_distill.studies.scheduler.children import Child, wait
from policy_distill.studies.scheduler.jobs import Outcome, StudyJob, outcome_of, perform
from policy_distill.studies.scheduler.on_ray import run_on_ray
from policy_distill.support.ray_cluster import connected


def run_jobs(
    jobs: Sequence[StudyJob], engine: EngineConfig, *, at_a_time: int | None = None, quiet: bool = True
) -> Iterator[tuple[StudyJob, Outcome]]:
    """Each job with its outcome: first those that are done already, then the others as they end.

    Args:
        jobs: the jobs, each with a folder of its own.
        engine: where they run.
        at_a_time: number of jobs that run at the same time; 0: one after the other in this process. None: one for each core, and on a
            Ray cluster as many as it has room for.
        quiet: whether jobs that run one at a time on this machine show nothing.

    Raises:
        RequestError: before any work, if two jobs share a folder, or a record in a folder is damaged.
    """
    shared = [str(folder) for folder, count in Counter(job.folder for job in jobs).items() if count > 1]
    if shared:
        raise RequestError(
            f"two jobs have the folder {shared[0]}: give their agents or variants names that differ in more than / and spaces"
        )
    if at_a_time is not None and at_a_time < 0:
        raise RequestError(f"jobs is {at_a_time}; it must be >= 0 (0: one after the other, in this process)")
    if at_a_time == 0 and engine.kind == "ray":
        raise RequestError("jobs is 0, which runs all jobs in this process: leave it out, or leave out --engine ray")
    earlier = [(job, job.completed()) for job in jobs]
    missing = [job for job, summary in earlier if summary is None]
    if missing and engine.kind == "ray":
        connected(engine.address)
    yield from ((job, Outcome("done", summary=summary, earlier=True)) for job, summary in earlier if summary is not None)
    if engine.kind == "ray":
        found = run_on_ray([with_workers(job, int(max(engine.cpus, 1))) for job in missing], engine, at_a_time=at_a_time)
    else:
        at_a_time = min(available_cores() if at_a_time is None else at_a_time, len(missing))
        share = max(available_cores() // max(at_a_time, 1), 1)
        found = run_here([with_workers(job, share) for job in missing], at_a_time=at_a_time, quiet=quiet or at_a_time > 1)
    for job, outcome in found:
        if outcome.status == "done":
            summary = job.completed()
            outcome = Outcome("done", summary=summary) if summary else Outcome("failed", f"its result is missing in {job.folder}")
        yield job, outcome


def with_workers(job: StudyJob, workers: int) -> StudyJob:
    """The job with this number of worker processes, unless the user gives one."""
    if job.config.workers is not None:
        return job
    return dataclasses.replace(job, config=dataclasses.replace(job.config, workers=workers))


def run_here(jobs: Sequence[StudyJob], *, at_a_time: int, quiet: bool) -> Iterator[tuple[StudyJob, Outcome]]:
    """Run jobs on this machine, each in a process of its own; with ``at_a_time`` 0 all in this one."""
    if not at_a_time:
        yield from ((job, perform(job, quiet)) for job in jobs)
        return
    waiting, running = deque(jobs), dict[Child[Outcome], StudyJob]()
    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                job = waiting.popleft()
                running[Child(perform, job, quiet)] = job
            for child in wait(list(running)):
                yield running.pop(child), outcome_of(child)
    finally:
        for child in running:
            child.end()
