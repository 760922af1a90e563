"""A whole job with the default settings, and how much of it the environment's own stepping is."""

from __future__ import annotations

import tempfile
from pathlib import Path

from policy_distill.config import DistillConfig, EvaluateConfig, RequestError, StudentConfig
from policy_distill.pipeline.distill import distill
from policy_distill.studies.benchmark.agents import SHIPPED
from policy_distill.studies.benchmark.interleave import cpu_seconds, interleave
from policy_distill.studies.benchmark.limits import Recording
from policy_distill.studies.benchmark.result import Result
from policy_distill.support.progress import Display
from policy_distill.teachers import Teacher
from policy_distill.teachers.environment import environment_for

AGENT = SHIPPED[-1]
WANTED = "ppo/LunarLander-v*/*.zip"
"""In an RL Zoo folder."""


def run(turns: int, teachers: Path | None = None, config: DistillConfig | None = None) -> list[Result]:
    """Run the job once, whatever ``turns`` is, and time the bare environment ``turns`` times.

    Args:
        turns: of the bare environment.
        teachers: RL Zoo folder whose PPO agent of LunarLander is distilled; None: the one that ships.
        config: of the job; None: to two layers of 16, with a certificate, and default settings else.

    Raises:
        RequestError: if the folder has no such agent.
    """
    agent = AGENT if teachers is None else zoo_agent(teachers)
    teacher = Teacher.load(agent)
    spec, _ = environment_for(teacher, None)
    recording = Recording(teacher, spec, num_envs=8, num_steps=300)
    with tempfile.TemporaryDirectory() as folder:
        config = config or DistillConfig(
            teacher=agent,
            output=folder,
            student=StudentConfig(hidden_sizes=(16, 16)),
            evaluate=EvaluateConfig(reuse_returns=False, certify=0.95),
        )
        began = cpu_seconds()
        told = distill(config, teacher=teacher, display=Display(quiet=True)).summary
        spent = cpu_seconds() - began
    bare = interleave({"bare": lambda: recording.replay(with_policy=False)}, turns=turns)["bare"].cpu_seconds
    env_steps = told["env_steps"] + told["evaluation_env_steps"]
    return [
        Result(
            "job", f"{teacher.algo} {spec.id}", "", None, spent * 1e6, float(sorted(bare)[len(bare) // 2]) * env_steps * 1e6,
            f"CPU time of the job, all processes; limit: its {env_steps:,} environment steps alone; "
            f"retention {told['retention']['estimate']:.3f}, "
            f"{told['certificate']['verdict'] if told['certificate'] else 'no certificate'}",
        )
    ]  # fmt: skip


def zoo_agent(folder: Path) -> str:
    """The run folder of the first PPO agent of LunarLander."""
    found = sorted(folder.glob(WANTED))
    if not found:
        raise RequestError(f"{folder} holds no {WANTED}, which this stage distils: look at what the folder holds")
    return str(found[0].parent)
