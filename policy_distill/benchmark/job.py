"""A whole job with the default settings, and how much of it the environment's own stepping is."""

from __future__ import annotations

import tempfile
from pathlib import Path

from policy_distill.benchmark.agents import SHIPPED
from policy_distill.benchmark.interleave import cpu_seconds, interleave
from policy_distill.benchmark.limits import Recording
from policy_distill.benchmark.result import Result
from policy_distill.config import DistillConfig, EvaluateConfig
from policy_distill.distill import distill
from policy_distill.job import environment_for
from policy_distill.progress import Display
from policy_distill.teachers import Teacher

AGENT = SHIPPED[-1]


def run(turns: int, config: DistillConfig | None = None) -> list[Result]:
    """Run the job once, whatever ``turns`` is, and time the bare environment ``turns`` times."""
    teacher = Teacher.load(AGENT)
    spec, _ = environment_for(teacher, None)
    recording = Recording(teacher, spec, num_envs=8, num_steps=300)
    with tempfile.TemporaryDirectory() as folder:
        config = config or DistillConfig(teacher=AGENT, output=folder, evaluate=EvaluateConfig(reuse_returns=False))
        began = cpu_seconds()
        told = distill(config, teacher=teacher, display=Display(quiet=True)).summary
        spent = cpu_seconds() - began
    bare = interleave({"bare": lambda: recording.replay(with_policy=False)}, turns=turns)["bare"].cpu_seconds
    env_steps = told["env_steps"] + told["evaluation_env_steps"]
    return [
        Result(
            "job", AGENT, "", None, spent * 1e6, float(sorted(bare)[len(bare) // 2]) * env_steps * 1e6,
            f"CPU time of the job, all processes; limit: its {env_steps:,} environment steps alone; "
            f"retention {told['retention']['estimate']:.3f}, {Path(AGENT).name}",
        )
    ]  # fmt: skip
