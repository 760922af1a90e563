"""Training many students as one stack, against one after the other; and a stack of one against a plain module."""

from __future__ import annotations

import numpy as np

from policy_distill.studies.benchmark.interleave import Ratio, interleave
from policy_distill.studies.benchmark.result import Result
from policy_distill.studies.benchmark.train import Task, by_index, multiply, train_stack

STEPS = 2000
"""Steps of one student per turn; a stack of K takes a K-th part, but at least ``FEWEST``."""
FEWEST = 100
CASES = (
    (Task(8, 4, True, (16, 16), 256), 1),
    (Task(8, 4, True, (16, 16), 256), 64),
    (Task(8, 4, True, (64, 64), 256), 16),
    (Task(8, 4, True, (17, 17), 512), 4),
    (Task(17, 6, False, (17, 17), 512), 4),
)
"""Tasks with the number of members; the last two resemble the default job."""


def run(turns: int) -> list[Result]:
    """CPU time of a gradient step per student, on one core."""
    return [result for task, members in CASES for result in one_stack(task, members, turns)]


def one_stack(task: Task, members: int, turns: int) -> list[Result]:
    """A stack against plain modules and, if it has several members, against stacks of one."""
    observations, labels = task.rows()
    variants = {
        "stack": train_stack(task, observations, labels, members=members, steps=max(STEPS // members, FEWEST)),
        "modules": by_index(task, observations, labels, students=members),
        "flop": multiply,
    }
    if members > 1:
        variants["alone"] = train_stack(task, observations, labels, members=1, steps=STEPS)
    found = {name: timing.cpu_seconds for name, timing in interleave(variants, turns=turns).items()}
    student, limit = found["stack"] / members, float(np.median(found["flop"])) * task.flops
    baselines = {"plain modules, index and fused Adam": found["modules"] / members}
    if members > 1:
        baselines["stacks of one"] = found["alone"]
    return [
        Result(
            "stack", f"K={members}, {task.name}", f"{baseline}, one after the other" if members > 1 else baseline,
            Ratio.between(seconds, student), float(np.median(student)) * 1e6, limit * 1e6,
            "CPU time of a gradient step per student; limit: its multiplications at the rate of one large product",
        )
        for baseline, seconds in baselines.items()
    ]  # fmt: skip
