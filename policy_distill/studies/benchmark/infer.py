"""Inference on one observation: ``Student.act``, Stable-Baselines3's ``predict``, and plain numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from policy_distill.policies.architecture import Architecture
from policy_distill.policies.student import Student
from policy_distill.rollouts.numpy_policies import actor
from policy_distill.studies.benchmark.agents import Agent, load_agents
from policy_distill.studies.benchmark.interleave import Ratio, interleave
from policy_distill.studies.benchmark.result import Result

DECISIONS = 2000


def run(turns: int, teachers: Path | None = None) -> list[Result]:
    """Time a student with each agent's own layers, so that all three variants do the same arithmetic."""
    return [one_observation(agent, turns) for agent in load_agents(teachers)]


def one_observation(agent: Agent, turns: int) -> Result:
    """CPU time of one inference."""
    teacher = agent.teacher
    facts = teacher.describe()
    layers = tuple(facts["layers"][1:-1])
    student = Student(Architecture(teacher.observation_space, teacher.action_space, layers, facts["activation"].lower()))
    student.eval().requires_grad_(False)
    plain = actor(student, 1)
    observation = np.zeros((1, *(teacher.observation_space.shape or ())), np.float32)

    def times(decide: Any) -> Any:
        def work() -> int:
            for _ in range(DECISIONS):
                decide(observation)
            return DECISIONS

        return work

    seconds = interleave(
        {
            "measured": times(student.act),
            "baseline": times(lambda seen: agent.model.predict(seen, deterministic=True)),
            "limit": times(plain),
        },
        turns=turns,
    )
    measured, baseline, limit = (seconds[name].cpu_seconds for name in ("measured", "baseline", "limit"))
    sizes = "x".join(map(str, layers))
    return Result(
        "infer", f"{agent.name}, {sizes}", "predict of the same layers", Ratio.between(baseline, measured),
        float(np.median(measured)) * 1e6, float(np.median(limit)) * 1e6, "CPU time of Student.act on one observation; limit: numpy",
    )  # fmt: skip
