"""What an agent's files alone tell, and whether the environment offers what the agent needs beside observations."""

from __future__ import annotations

from policy_distill.environments.specs import EnvironmentSpec, make
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


def judge_files(teacher: Teacher, record: TrainingRecord | None = None, spec: EnvironmentSpec | None = None) -> list[Finding]:
    """Weights that are no numbers, statistics that seem to be missing, action masks that are not applied; of each member of an ensemble.

    Args:
        teacher: the agent.
        record: what its zip remembers, if it was read already.
        spec: the environment in which it acts, where one is known.
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
    if any(member.algo == "ppo_mask" for member in teacher.members):
        found.append(_masks_not_applied(spec))
    return found


def has_masks(spec: EnvironmentSpec) -> bool:
    """Whether the environment says which actions are allowed, as sb3-contrib asks it: by a method ``action_masks``."""
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
