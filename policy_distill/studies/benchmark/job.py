"""A whole job with default settings, against the time of its environment steps alone."""

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
"""Pattern of the agent's zip in an RL Zoo folder."""


def run(turns: int, teachers: Path | None = None, config: DistillConfig | None = None) -> list[Result]:
    """Run the job once, regardless of ``turns``, and time the bare environment ``turns`` times.

    Args:
        turns: number of timings of the bare environment.
        teachers: RL Zoo folder with a PPO agent of LunarLander to distil; None: the shipped one.
        config: settings of the job; None: defaults, with hidden layers (16, 16) and a certificate.

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
        summary = distill(config, teacher=teacher, display=Display(quiet=True)).summary
        spent = cpu_seconds() - began
    bare = interleave({"bare": lambda: recording.replay(with_policy=False)}, turns=turns)["bare"].cpu_seconds
    env_steps = summary["env_steps"] + summary["evaluation_env_steps"]
    return [
        Result(
            "job", f"{teacher.algo} {spec.id}", "", None, spent * 1e6, float(sorted(bare)[len(bare) // 2]) * env_steps * 1e6,
            f"CPU time of the job, all processes; limit: its {env_steps:,} environment steps alone; "
            f"retention {summary['retention']['estimate']:.3f}, "
            f"{summary['certificate']['verdict'] if summary['certificate'] else 'no certificate'}",
        )
    ]  # fmt: skip


def zoo_agent(folder: Path) -> str:
    """The run folder of the first PPO agent of LunarLander."""
    found = sorted(folder.glob(WANTED))
    if not found:
        raise RequestError(f"{folder} contains no {WANTED}, which this stage distils: check the folder's contents")
    return str(found[0].parent)
