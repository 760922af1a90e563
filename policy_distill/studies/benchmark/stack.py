"""Many students as one stack, beside one after the other; and a stack of one beside a plain module."""

from __future__ import annotations

import numpy as np

from policy_distill.studies.benchmark.interleave import Ratio, interleave
from policy_distill.studies.benchmark.result import Result
from policy_distill.studies.benchmark.train import Task, by_index, multiply, ours

STEPS = 2000
"""Steps of one student in a turn; of a stack of K a K-th part of it, but ``FEWEST`` at least."""
FEWEST = 100
CASES = (
    (Task(8, 4, True, (16, 16), 256), 1),
    (Task(8, 4, True, (16, 16), 256), 64),
    (Task(8, 4, True, (64, 64), 256), 16),
    (Task(8, 4, True, (17, 17), 512), 4),
    (Task(17, 6, False, (17, 17), 512), 4),
)
"""Each with the number of members; the last two are of the default job's kind."""


def run(turns: int) -> list[Result]:
    """Time a step a student, CPU time of one core."""
    return [result for task, members in CASES for result in one_stack(task, members, turns)]


def one_stack(task: Task, members: int, turns: int) -> list[Result]:
    """A stack beside plain modules and, where it has several members, beside stacks of one."""
    observations, said = task.rows()
    variants = {
        "ours": ours(task, observations, said, members=members, steps=max(STEPS // members, FEWEST)),
        "modules": by_index(task, observations, said, students=members),
        "flop": multiply,
    }
    if members > 1:
        variants["alone"] = ours(task, observations, said, members=1, steps=STEPS)
    found = {name: timing.cpu_seconds for name, timing in interleave(variants, turns=turns).items()}
    student, limit = found["ours"] / members, float(np.median(found["flop"])) * task.flops
    baselines = {"plain modules, index and fused Adam": found["modules"] / members}
    if members > 1:
        baselines["stacks of one"] = found["alone"]
    return [
        Result(
            "stack", f"K={members}, {task.name}", f"{baseline}, one after the other" if members > 1 else baseline,
            Ratio.between(seconds, student), float(np.median(student)) * 1e6, limit * 1e6,
            "CPU time of a gradient step and student; limit: its multiplications at the rate of one large product",
        )
        for baseline, seconds in baselines.items()
    ]  # fmt: skip
