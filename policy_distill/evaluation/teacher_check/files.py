"""Findings from an agent's files alone, and about action masks."""

from __future__ import annotations

from policy_distill.environments.specs import EnvironmentSpec, make
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


def judge_files(teacher: Teacher, record: TrainingRecord | None = None, spec: EnvironmentSpec | None = None) -> list[Finding]:
    """Findings about weights that are not finite, missing statistics, and action masks, for each member of an ensemble.

    Args:
        teacher: the agent.
        record: the training record in its zip, if already read.
        spec: the agent's environment, if known.
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
    if any(member.algo == "ppo_mask" for member in teacher.members):
        found.append(_masks_not_applied(spec))
    return found


def has_masks(spec: EnvironmentSpec) -> bool:
    """Whether the environment has sb3-contrib's method ``action_masks``."""
    env = make(spec)
    try:
        return env.has_wrapper_attr("action_masks")
    finally:
        env.close()


def _masks_not_applied(spec: EnvironmentSpec | None) -> Finding:
    what = "the agent was trained with action masks (MaskablePPO), which are not applied here: it would take actions that are not allowed"
    fix = "masks are not supported: name an agent that was trained without them"
    if spec is not None and not has_masks(spec):
        what = (
            f"the agent was trained with action masks (MaskablePPO), and {spec.id} has no action_masks(): it is not the environment of "
            "training, or ActionMasker stood around it there"
        )
    return Finding("stop", "masks_not_applied", what, fix)
