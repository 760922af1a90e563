"""Turn a large, trained Stable-Baselines3 agent into a small student policy and prove that it kept its return."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from policy_distill.config import (
        CheckConfig,
        CollectConfig,
        DistillConfig,
        EngineConfig,
        EnsembleConfig,
        EvaluateConfig,
        FeatureConfig,
        LossConfig,
        MemberConfig,
        PolishConfig,
        RelationConfig,
        RequestError,
        SelfDistillConfig,
        StudentConfig,
        TrainConfig,
        ValueConfig,
    )
    from policy_distill.evaluation.statistics import Retention, retention
    from policy_distill.pipeline.distill import DistillResult, distill
    from policy_distill.policies.student import Student
    from policy_distill.rollouts.episodes import Episodes, evaluate
    from policy_distill.teachers import Teacher

__all__ = [
    "CheckConfig",
    "CollectConfig",
    "DistillConfig",
    "DistillResult",
    "EngineConfig",
    "EnsembleConfig",
    "Episodes",
    "EvaluateConfig",
    "FeatureConfig",
    "LossConfig",
    "MemberConfig",
    "PolishConfig",
    "RelationConfig",
    "RequestError",
    "Retention",
    "SelfDistillConfig",
    "Student",
    "StudentConfig",
    "Teacher",
    "TrainConfig",
    "ValueConfig",
    "distill",
    "evaluate",
    "retention",
]

_NAMES = {
    "config": (
        "CheckConfig",
        "CollectConfig",
        "DistillConfig",
        "EngineConfig",
        "EnsembleConfig",
        "EvaluateConfig",
        "FeatureConfig",
        "LossConfig",
        "MemberConfig",
        "PolishConfig",
        "RelationConfig",
        "RequestError",
        "SelfDistillConfig",
        "StudentConfig",
        "TrainConfig",
        "ValueConfig",
    ),
    "evaluation.statistics": ("Retention", "retention"),
    "pipeline.distill": ("DistillResult", "distill"),
    "policies.student": ("Student",),
    "rollouts.episodes": ("Episodes", "evaluate"),
    "teachers": ("Teacher",),
}
"""Module -> what is taken from it, when it is first used: a command must end in one line while torch is imported, for seconds."""


def __getattr__(name: str) -> Any:
    for module, names in _NAMES.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(f"policy_distill.{module}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
