"""What an agent's files alone tell."""

from __future__ import annotations

from policy_distill.evaluation.teacher_check.findings import Finding
from policy_distill.evaluation.teacher_check.returns import GIVE_STATISTICS
from policy_distill.teachers import Teacher
from policy_distill.teachers.files.training_record import TrainingRecord, read_training_record


def record_of(teacher: Teacher) -> TrainingRecord:
    """What the teacher's zip remembers of its training; nothing for one that came from memory or out of several."""
    return read_training_record(teacher.path) if teacher.path else TrainingRecord(None, None)


def normalization_missing(teacher: Teacher, record: TrainingRecord) -> bool:
    """Whether VecNormalize stood around the agent in training and neither statistics, settings nor the user's word explain it here."""
    return bool(record.inside_vec_normalize) and teacher.normalization is None and teacher.normalization_source is None


def judge_files(teacher: Teacher, record: TrainingRecord | None = None) -> list[Finding]:
    """Weights that are no numbers, and statistics that seem to be missing; of each member of an ensemble.

    Args:
        teacher: the agent.
        record: what its zip remembers, if it was read already.
    """
    found = []
    if not all(bool(parameter.isfinite().all()) for parameter in teacher.parameters()):
        found.append(
            Finding("stop", "not_finite", "the agent's weights hold NaN or infinity", "take an earlier checkpoint: training diverged")
        )
    for member in teacher.members:
        remembered = record if record is not None and member is teacher else record_of(member)
        if normalization_missing(member, remembered):
            name = "the zip" if member is teacher else str(member.path)
            what = f"{name} was trained inside a VecNormalize, whose statistics are not here"
            found.append(Finding("warn", "normalization_not_found", what, GIVE_STATISTICS))
    return found
