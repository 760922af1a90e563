"""Real jobs of about a second, for what runs many of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from policy_distill.config import CheckConfig, CollectConfig, DistillConfig, EvaluateConfig, PolishConfig, StudentConfig, TrainConfig
from policy_distill.studies.scheduler.jobs import StudyJob


def small_config(teacher: str = "ppo/CartPole-v1", seed: int = 0) -> DistillConfig:
    return DistillConfig(
        teacher=teacher,
        seed=seed,
        device="cpu",
        workers=1,
        check=CheckConfig(skip=True),
        student=StudentConfig((8,)),
        collect=CollectConfig(env_steps=320, rounds=2),
        train=TrainConfig(gradient_steps=20, batch_size=32, members=1),
        polish=PolishConfig(below=0.0),
        evaluate=EvaluateConfig(episodes=2, validation_episodes=2, finalist_episodes=2),
    )


def small_job(folder: Path, seed: int, teacher: str = "ppo/CartPole-v1") -> StudyJob:
    config = dataclasses.replace(small_config(teacher, seed), output=str(folder / f"{seed}"))
    return StudyJob.of(f"seed {seed}", config)
