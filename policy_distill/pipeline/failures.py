"""What a run that fails leaves and says: its best student so far, and the settings that take less memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from policy_distill.config import MemoryFault, StorageFault
from policy_distill.pipeline.prepare import Job
from policy_distill.pipeline.state import Stage, State
from policy_distill.policies.student import Student
from policy_distill.support.files import make_folder


@contextmanager
def failing_well(job: Job, state: State) -> Iterator[None]:
    """If the block fails, save the run's best student so far; if memory runs out, name the settings that need less of it.

    Raises:
        MemoryFault: in place of the exceptions of torch and numpy.
    """
    stage = state.stage  # an advance may set the next one before it is done
    try:
        yield
    except Exception as error:
        fault = MemoryFault(less_memory(job, stage)) if is_out_of_memory(error) else error
        if saved := save_best(job, state):
            fault.add_note(saved)
        if fault is error:
            raise
        raise fault from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on the GPU or the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def less_memory(job: Job, stage: Stage) -> str:
    """What to lower in the stage that ran out of memory."""
    config = job.config
    if stage == "polish":
        names = {"polish.batch_size": config.polish.batch_size, "polish.num_steps": config.polish.num_steps}
    else:
        names = {"train.batch_size": config.train.batch_size, "train.members": job.num_members}
    rows = f"collect.env_steps (it is {config.collect.env_steps:,}), or set collect.storage disk"
    lower = ", ".join(f"{name} (it is {value:,})" for name, value in names.items())
    other = "" if job.device.type == "cpu" else ", or device cpu"
    return f"the memory of the {job.device.type.upper()} ran out in the stage {stage.replace('_', ' ')}: lower {lower} or {rows}{other}"


def save_best(job: Job, state: State) -> str | None:
    """Save the student with the highest validation return so far; returns where it is, None if there is none."""
    best = best_so_far(state, job.num_members)
    if best is None:
        return None
    student, origin = best
    try:
        student.save(make_folder(job.folder / "student"), extra={"environment": job.spec.to_dict()})
    except StorageFault:  # the reason of the failure, or a second one
        return None
    return f"the best student so far, of {origin}, is in {job.folder / 'student'}"


def best_so_far(state: State, num_members: int) -> tuple[Student, str] | None:
    """The student that a run would keep if it ended now, and its origin; None if none was measured."""
    if state.kept:
        return state.kept[-1].student, state.kept[-1].origin
    if not state.returns:
        return None
    best = max(range(len(state.returns)), key=lambda index: (state.returns[index].mean(), index))
    return state.students[best], f"round {best // num_members + 1}"
