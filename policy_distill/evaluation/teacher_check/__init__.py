"""Checks of a teacher before distillation: its files, its return compared with its training, and problems for the student."""

from policy_distill.evaluation.teacher_check.checkup import Checkup, check_teacher
from policy_distill.evaluation.teacher_check.claims import Claim, find_claim
from policy_distill.evaluation.teacher_check.files import judge_files, record_of
from policy_distill.evaluation.teacher_check.findings import Finding
from policy_distill.evaluation.teacher_check.preflight import Preflight, preflight
from policy_distill.evaluation.teacher_check.screen import screen_files, screen_returns, screen_states

__all__ = [
    "Checkup", "Claim", "Finding", "Preflight", "check_teacher", "find_claim", "judge_files", "preflight", "record_of", "screen_files",
    "screen_returns", "screen_states",
]  # fmt: skip
