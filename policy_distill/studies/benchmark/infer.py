"""Inference on one observation: ``Student.act``, Stable-Baselines3's ``predict``, plain numpy, and exported C."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from policy_distill.config import RequestError
from policy_distill.export import c
from policy_distill.export.folded import ALONE, fold_student
from policy_distill.export.runner import Visited
from policy_distill.policies.architecture import Architecture
from policy_distill.policies.student import Student
from policy_distill.rollouts.numpy_policies import actor
from policy_distill.studies.benchmark.agents import Agent, load_agents
from policy_distill.studies.benchmark.interleave import Ratio, interleave
from policy_distill.studies.benchmark.result import Result

DECISIONS = 2000


def run(turns: int, teachers: Path | None = None) -> list[Result]:
    """Time a student with each agent's own layers, so that all variants do the same arithmetic."""
    return [result for agent in load_agents(teachers) for result in one_observation(agent, turns)]


def one_observation(agent: Agent, turns: int) -> list[Result]:
    """CPU time of one inference, by ``Student.act`` and by exported C (where there is a compiler)."""
    teacher = agent.teacher
    facts = teacher.describe()
    layers = tuple(facts["layers"][1:-1])
    student = Student(Architecture(teacher.observation_space, teacher.action_space, layers, facts["activation"].lower()))
    student.eval().requires_grad_(False)
    plain = actor(student, 1)
    observation = np.zeros((1, *(teacher.observation_space.shape or ())), np.float32)

    def times(decide: Any, seen: np.ndarray = observation) -> Any:
        def work() -> int:
            for _ in range(DECISIONS):
                decide(seen)
            return DECISIONS

        return work

    in_c = compiled(student, observation)

    seconds = interleave(
        {
            "measured": times(student.act),
            "baseline": times(lambda seen: agent.model.predict(seen, deterministic=True)),
            "limit": times(plain),
            **({} if in_c is None else {"c": times(in_c.act, observation[0])}),
        },
        turns=turns,
    )
    measured, baseline, limit = (seconds[name].cpu_seconds for name in ("measured", "baseline", "limit"))
    sizes = "x".join(map(str, layers))
    case, other = f"{agent.name}, {sizes}", "predict of the same layers"
    results = [
        Result(
            "infer", case, other, Ratio.between(baseline, measured), float(np.median(measured)) * 1e6, float(np.median(limit)) * 1e6,
            "CPU time of Student.act on one observation; limit: numpy",
        )
    ]  # fmt: skip
    if in_c is not None:
        by_c = seconds["c"].cpu_seconds
        note = "CPU time of policy.c through ctypes on one observation"
        results.append(Result("infer", f"{case}, C", other, Ratio.between(baseline, by_c), float(np.median(by_c)) * 1e6, None, note))
    return results


def compiled(student: Student, observation: np.ndarray) -> c.Compiled | None:
    """The student in float32 C; None without a compiler."""
    try:
        c.find_compiler()
    except RequestError:
        return None
    folded = fold_student(student)
    with tempfile.TemporaryDirectory() as folder:
        c.write(folded, Path(folder), c.measure(folded, Visited({ALONE: observation}, np.zeros((1, 0), np.float32))))
        return c.load(Path(folder), folded)
