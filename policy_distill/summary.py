"""What a run found, as result.json holds it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from typing import Any

from policy_distill.evaluate import Episodes
from policy_distill.generations import Lineage
from policy_distill.imitation import Imitation
from policy_distill.polish import Polished
from policy_distill.report import summary_table
from policy_distill.run import Run
from policy_distill.statistics import Retention
from policy_distill.tracking import Tracker

VERSION = importlib.metadata.version("policy-distill")


def track_final(tracker: Tracker, summary: Mapping[str, Any]) -> None:
    """Write the final figures, and the closing table as a text."""
    kept = summary["retention"]
    final = {"retention": kept["estimate"], "retention_low": kept["low"], "retention_high": kept["high"], "agreement": summary["agreement"]}
    tracker.scalars("final", {name: value for name, value in final.items() if value is not None}, summary["env_steps"])
    tracker.text("result", summary_table(summary))


def summarize(
    run: Run,
    imitation: Imitation,
    lineage: Lineage,
    polished: Polished | None,
    origin: str,
    figure: Retention,
    student: Episodes,
    teacher: Episodes,
    random: Episodes,
) -> dict[str, Any]:
    """The contract of result.json.

    Args:
        run: the stages' common ground, whose counters are read.
        imitation, lineage, polished: what the stages left.
        origin: of the student that was kept.
        figure: its retention.
        student, teacher, random: the final episodes.
    """
    job = run.job

    def figures(episodes: Episodes) -> dict[str, float]:
        return {"return_mean": float(episodes.returns.mean()), "return_std": float(episodes.returns.std(ddof=1))}

    return {
        "version": VERSION,
        "seed": job.config.seed,
        "device": job.device.type,
        "env": job.spec.id,
        "environment": job.spec.to_dict(),
        "teacher": {
            "path": job.teacher.path,
            "algo": job.teacher.algo,
            "params": job.teacher.params,
            **({"members": job.teacher.facts["members"]} if "members" in job.teacher.facts else {}),
            **figures(teacher),
        },
        "student": {
            "hidden_sizes": list(job.architecture.hidden_sizes),
            "activation": job.architecture.activation,
            "params": job.architecture.params,
            **figures(student),
        },
        "random": figures(random),
        "compression": job.teacher.params / job.architecture.params if job.teacher.params else None,
        "retention": dataclasses.asdict(figure),
        "agreement": student.agreement,
        "env_steps": run.env_steps,
        "evaluation_env_steps": run.evaluation_env_steps,
        "gradient_steps": run.gradient_steps,
        "kept": origin,
        "chosen_round": imitation.chosen,
        "rounds": [dataclasses.asdict(record) for record in imitation.rounds],
        "self_distillation": lineage.summary(),
        "polish": polished.summary() if polished else None,
        "notices": list(job.notices),
        "returns": {
            "seeds": student.seeds.tolist(),
            "student": student.returns.tolist(),
            "teacher": teacher.returns.tolist(),
            "random": random.returns.tolist(),
        },
        "seconds": run.watch.read(),
    }
