"""What an agent's files alone tell."""

from __future__ import annotations

from policy_distill.check.findings import Finding
from policy_distill.teachers import Teacher
from policy_distill.teachers.training_record import TrainingRecord, read_training_record


def record_of(teacher: Teacher) -> TrainingRecord:
    """What the teacher's zip remembers of its training; nothing for one that came from memory or out of several."""
    return read_training_record(teacher.path) if teacher.path else TrainingRecord(None, None)


def normalization_missing(teacher: Teacher, record: TrainingRecord) -> bool:
    """Whether VecNormalize stood around the agent in training and neither its statistics nor settings that explain it are here."""
    nothing_beside = teacher.normalization is None and teacher.saved_env is None and teacher.reward_scale == 1.0
    return bool(record.inside_vec_normalize) and nothing_beside


def judge_files(teacher: Teacher, record: TrainingRecord) -> list[Finding]:
    """Weights that are no numbers, and statistics that seem to be missing."""
    found = []
    if not all(bool(parameter.isfinite().all()) for parameter in teacher.parameters()):
        found.append(
            Finding("stop", "not_finite", "the agent's weights hold NaN or infinity", "take an earlier checkpoint: training diverged")
        )
    if normalization_missing(teacher, record):
        what = "the zip was trained inside a VecNormalize, whose statistics are not here"
        found.append(
            Finding("warn", "normalization_not_found", what, "put vecnormalize.pkl beside it, unless rewards alone were normalised")
        )
    return found
