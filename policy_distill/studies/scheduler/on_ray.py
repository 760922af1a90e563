"""Jobs as tasks of a Ray cluster. Ray decides where a job runs, and repeats it elsewhere if its machine is lost.

A machine that sees the study's folder and the agents' files at the same paths runs the job in place, as this machine would. To another one
the files are sent; it runs the job in a temporary folder and sends the run's folder back. In both cases the job runs in a process of its
own, since those of Ray must not fork.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policy_distill.config import EngineConfig, RequestError
from policy_distill.config.printable import one_line
from policy_distill.evaluation.machines import Machine, this_machine
from policy_distill.pipeline import checkpoint
from policy_distill.pipeline.distill import remove_results
from policy_distill.studies.scheduler.children import Child
from policy_distill.studies.scheduler.jobs import Outcome, StudyJob, files_of, outcome_of, perform
from policy_distill.studies.scheduler.parcels import Parcel, relative, with_paths
from policy_distill.support.files import writable_folder
from policy_distill.support.ray_cluster import connected
from policy_distill.support.untrusted import reason, sha256


@dataclass(frozen=True)
class Order:
    """A job as sent to a machine.

    Attributes:
        job: the job; all paths in it are absolute.
        sender: the machine that sends it.
        token: path of a file that exists on the sender's disk alone.
        hashes: SHA-256 of the files that the job reads, by absolute path.
        directory: the sender's working directory.
    """

    job: StudyJob
    sender: Machine
    token: str
    hashes: dict[Path, str]
    directory: str

    @property
    def in_place(self) -> bool:
        """Whether this machine sees the sender's files."""
        return os.path.exists(self.token) and all(path.is_file() and sha256(path) == digest for path, digest in self.hashes.items())


def run_on_ray(jobs: Sequence[StudyJob], engine: EngineConfig, *, at_a_time: int | None) -> Iterator[tuple[StudyJob, Outcome]]:
    """Run jobs on a Ray cluster; see ``schedule.run_jobs``."""
    if not jobs:
        return
    ray = connected(engine.address)
    task = ray.remote(perform_there).options(num_cpus=engine.cpus, num_gpus=engine.gpus)
    sender = this_machine()
    waiting, running, parcels = deque(jobs), dict[Any, StudyJob](), dict[tuple[Path, ...], Any]()
    common = writable_folder(Path(os.path.commonpath([job.folder.absolute().parent for job in jobs])))
    with token_of(common) as token:
        try:
            while waiting or running:
                while waiting and (at_a_time is None or len(running) < at_a_time):
                    job = waiting.popleft()
                    read = [path.absolute() for path in files_of(job.config)]
                    interrupted = [path for path in checkpoint.folder_of(job.folder.absolute()).rglob("*") if path.is_file()]
                    files = (*read, *interrupted)
                    if files not in parcels:  # jobs with the same agent share them
                        parcels[files] = ray.put(Parcel.of(files))
                    absolute = dataclasses.replace(job, config=with_paths(job.config, os.path.abspath))
                    order = Order(absolute, sender, token.name, {path: sha256(path) for path in read}, os.getcwd())
                    running[task.remote(order, [parcels[files]])] = job  # in a list, a reference is sent, not what it refers to
                for ended in ray.wait(list(running))[0]:
                    job = running.pop(ended)
                    yield job, received(job, ended)
        finally:
            for unfinished in running:
                ray.cancel(unfinished, force=True)


def token_of(folder: Path) -> Any:
    """A file that only machines with this disk see."""
    return tempfile.NamedTemporaryFile(dir=folder, prefix=".study.")


def received(job: StudyJob, reference: Any) -> Outcome:
    """The outcome of a task; the run's folder is unpacked if it was sent."""
    import ray

    try:
        outcome, parcel = ray.get(reference)
    except ray.exceptions.RayError as error:
        return Outcome("failed", f"Ray gave the job up: {type(error).__name__}: {one_line(str(error))}")
    found: Outcome = outcome
    if parcel is not None and parcel.contents:
        try:
            _replace_run(job, parcel, done=found.status == "done")
        except OSError as error:
            return Outcome("failed", f"its results cannot be written to {job.folder} ({reason(error)})")
    return found


def _replace_run(job: StudyJob, parcel: Parcel, *, done: bool) -> None:
    """Unpack a run's folder in place of what an earlier run left there, so that no file belongs to another run than its neighbours."""
    remove_results(job.folder, except_for=job.config.collect.extra_states)
    parcel.unpack(job.folder)
    if done:  # the checkpoint that was sent along; that of a failed run came back
        checkpoint.remove(job.folder)


def perform_there(order: Order, parcel: Sequence[Any]) -> tuple[Outcome, Parcel | None]:
    """The task: run the job on this machine. Returns its outcome, and the run's folder if it must be sent back."""
    import ray

    try:
        order.sender.check([this_machine()])
    except RequestError as error:
        return Outcome("failed", str(error)), None
    if order.in_place:
        return outcome_of(Child(perform, order.job)), None
    with tempfile.TemporaryDirectory(prefix="policy-distill-") as root:
        ray.get(parcel[0]).unpack(root)
        return perform_moved(order, root)


def perform_moved(order: Order, root: str) -> tuple[Outcome, Parcel]:
    """Run a job whose files lie below ``root``, at the paths that they have on the sender's disk.

    The job is given paths relative to the sender's working directory, so that no file that it writes names the temporary folder.
    """
    config = with_paths(order.job.config, lambda path: relative(path, order.directory))
    directory = Path(root, relative(order.directory))
    directory.mkdir(parents=True, exist_ok=True)
    outcome = outcome_of(Child(perform_in, directory, dataclasses.replace(order.job, config=config)))
    folder = Path(root, relative(order.job.folder))
    # as written: the record that the job is done comes last
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_mtime_ns)
    return outcome, Parcel.of(files, folder)


def perform_in(directory: Path, job: StudyJob) -> Outcome:
    """``perform`` with another working directory."""
    os.chdir(directory)
    return perform(job)
