"""Turn a large, trained Stable-Baselines3 agent into a small student policy and prove that it kept its return."""

from policy_distill.config import (
    CollectConfig,
    DistillConfig,
    EvaluateConfig,
    LossConfig,
    RequestError,
    StudentConfig,
    TrainConfig,
)
from policy_distill.evaluation.statistics import Retention, retention
from policy_distill.pipeline.distill import DistillResult, distill
from policy_distill.policies.student import Student
from policy_distill.rollouts.episodes import Episodes, evaluate
from policy_distill.teachers import Teacher

__all__ = [
    "CollectConfig",
    "DistillConfig",
    "DistillResult",
    "Episodes",
    "EvaluateConfig",
    "LossConfig",
    "RequestError",
    "Retention",
    "Student",
    "StudentConfig",
    "Teacher",
    "TrainConfig",
    "distill",
    "evaluate",
    "retention",
]
