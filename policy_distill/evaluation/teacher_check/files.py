"""Findings from an agent's files alone."""

from __future__ import annotations

from policy_distill.evaluation.teacher_check.findings import Finding
from policy_distill.evaluation.teacher_check.returns import GIVE_STATISTICS
from policy_distill.teachers import Teacher
from policy_distill.teachers.files.training_record import TrainingRecord, read_training_record


def record_of(teacher: Teacher) -> TrainingRecord:
    """The training record in the teacher's zip; empty for a live model or an ensemble."""
    return read_training_record(teacher.path) if teacher.path else TrainingRecord(None, None)


def normalization_missing(teacher: Teacher, record: TrainingRecord) -> bool:
    """Whether the agent was trained with VecNormalize, but there are no statistics, settings or ``--normalization`` for it."""
    return bool(record.inside_vec_normalize) and teacher.normalization is None and teacher.normalization_source is None


def judge_files(teacher: Teacher, record: TrainingRecord | None = None) -> list[Finding]:
    """Findings about weights that are not finite and missing statistics, for each member of an ensemble.

    Args:
        teacher: the agent.
        record: the training record in its zip, if already read.
    """
    found = []
    if not all(bool(parameter.isfinite().all()) for parameter in teacher.parameters()):
        found.append(
            Finding("stop", "not_finite", "the agent's weights hold NaN or infinity", "take an earlier checkpoint: training diverged")
        )
    for member in teacher.members:
        own_record = record if record is not None and member is teacher else record_of(member)
        if normalization_missing(member, own_record):
            name = "the zip" if member is teacher else str(member.path)
            what = f"{name} was trained inside a VecNormalize, whose statistics are not here"
            found.append(Finding("warn", "normalization_not_found", what, GIVE_STATISTICS))
    return found
