"""A run's figures, as result.json holds them, for the tests of what is written from them."""

from __future__ import annotations

import copy
from typing import Any

ROUND = {
    "env_steps": 1000, "gradient_steps": 2500, "train": {"forward_kl_nats": 0.012345, "other": 1.0}, "held_out": {},
    "validation_return_standard_error": 1.0, "finalist_return_mean": None, "validation_retention_standard_error": None,
}  # fmt: skip
SUMMARY: dict[str, Any] = {
    "version": "0.1.0",
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "config": {"teacher": "agents/one.zip", "output": "runs/my run", "ensemble": {"teachers": []}},
    "seed": 7,
    "device": "cpu",
    "env": "CartPole-v1",
    "teacher": {"algo": "ppo", "params": 67586, "return_mean": 500.0, "return_std": 0.0},
    "student": {"hidden_sizes": [8, 8], "params": 130, "return_mean": 490.04, "return_std": 12.36},
    "random": {"return_mean": 22.0, "return_std": 11.0},
    "compression": 519.892,
    "retention": {"estimate": 0.98123, "low": 0.9666, "high": 0.9931, "confidence": 0.95, "episodes": 100},
    "agreement": 0.9567,
    "env_steps": 200_000,
    "evaluation_env_steps": 310_000,
    "gradient_steps": 40_000,
    "kept": "round 2",
    "chosen_round": 1,
    "validation": {"episodes": 10, "teacher_return_mean": 500.0, "random_return_mean": 22.0},
    "rounds": [
        {**ROUND, "round": 0, "teacher_action_prob": 1.0, "validation_return_mean": 400.0, "validation_retention": 0.7907},
        {
            **ROUND, "round": 1, "teacher_action_prob": 0.5, "validation_return_mean": 500.0, "validation_retention": 1.0,
            "held_out": {"forward_kl_nats": 0.5}, "finalist_return_mean": 498.76, "validation_retention_standard_error": 0.05,
        },
    ],
    "self_distillation": [],
    "polish": None,
    "notices": ["trained on an old one", "another notice"],
    "returns": {"seeds": [1, 2, 3, 4], "student": [480.0, 500.0, 9.0, 501.0], "teacher": [500.0] * 4, "random": [9.0, 22.0, 22.0, 35.0]},
    "seconds": {"collect": 10.4, "train": 20.4, "polish": 0.0, "evaluate": 5.0, "total": 37.9},
}  # fmt: skip
POLISH: dict[str, Any] = {
    "start": "round 3", "start_retention": 0.87654,
    "chosen": 1,
    "records": [
        {
            "env_steps": 30_720, "metrics": {"train_return_mean": 412.34, "std": 0.5}, "validation_return_mean": 450.04,
            "validation_retention": 0.8954, "finalist_return_mean": None, "validation_retention_standard_error": 0.01,
        },
        {
            "env_steps": 61_440, "metrics": {}, "validation_return_mean": 490.0, "validation_retention": 0.979,
            "finalist_return_mean": 488.76, "validation_retention_standard_error": None,
        },
    ],
}  # fmt: skip
GENERATION = {
    "generation": 1, "gradient_steps": 50, "train": {"forward_kl_nats": 0.5}, "held_out": {}, "validation_return_mean": 495.0,
    "validation_retention": 0.9895, "paired_difference": 1.25, "kept": True, "validation_retention_standard_error": 0.02,
}  # fmt: skip
UNDEFINED = {"estimate": None, "low": None, "high": None, "confidence": 0.95, "episodes": 30}
DISAGREEMENTS: dict[str, Any] = {
    "states": 5000, "disagreements": 217, "cost_kind": "q_gap",
    "episodes": [
        {"seed": 11, "student_return": 480.0, "teacher_return": 500.0, "first_step": 3, "parting_step": 17},
        {"seed": 12, "student_return": 500.0, "teacher_return": 500.0, "first_step": -1, "parting_step": -1},
    ],
    "worst": [{"seed": 11, "step": 3, "cost": 0.125, "teacher_action": 1, "student_action": [0.5, -1.0], "observation": [0.0]}],
}  # fmt: skip


def changed(**values: Any) -> dict[str, Any]:
    """The example with other values."""
    return copy.deepcopy(SUMMARY) | values


def generation(number: int, kept: bool) -> dict[str, Any]:
    return {**GENERATION, "generation": number, "kept": kept}
