"""The contents of result.json."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from policy_distill.config import RequestError
from policy_distill.evaluation.certify import Certified
from policy_distill.evaluation.statistics import Plan, Retention, decide
from policy_distill.evaluation.statistics.sequential import FIRST_LOOK
from policy_distill.export.folded import fold_student
from policy_distill.pipeline.prepare import Job, complete_config
from policy_distill.pipeline.records import Candidate
from policy_distill.pipeline.state import State
from policy_distill.pipeline.varying import settled
from policy_distill.policies.student import Student
from policy_distill.report import plots, summary_table
from policy_distill.report.candidates import candidates
from policy_distill.report.drawing import to_pixels
from policy_distill.report.tensorboard import Tracker
from policy_distill.rollouts.acting import Player, acting
from policy_distill.rollouts.episodes import Episodes
from policy_distill.support import trees
from policy_distill.teachers.files.folder import shipped_name

VERSION = importlib.metadata.version("policy-distill")
PACKAGES = ("policy-distill", "torch", "numpy", "gymnasium", "stable-baselines3", "mujoco", "box2d")
"""Packages whose versions result.json records, where they are installed."""

USUAL_SHARE = 0.95
"""Retention that the final episodes are tested for if ``evaluate.certify`` is not set."""


def track_final(tracker: Tracker, summary: Mapping[str, Any]) -> None:
    """Write the final figures, the run's settings, the summary table as text, and the report's plots to TensorBoard."""
    kept, steps = summary["retention"], summary["env_steps"]
    figures = {
        "retention": kept["estimate"],
        "retention_low": kept["low"],
        "retention_high": kept["high"],
        "agreement": summary["agreement"],
        "compression": summary["compression"],
    }
    final = {name: value for name, value in figures.items() if value is not None}
    tracker.scalars("final", final, steps)
    tracker.settings(summary["config"], [f"final/{name}" for name in final])
    tracker.text("result", summary_table(summary))
    tracker.picture("final/paired_returns", to_pixels(plots.paired_returns(summary["returns"])), steps)
    tracker.picture("final/return_distribution", to_pixels(plots.return_distribution(summary["returns"])), steps)
    tracker.picture("eval/retention_of_each_student", to_pixels(plots.retention_path(candidates(summary), kept)), steps)


def decision_seconds(student: Student, calls: int = 500) -> float:
    """Time of one decision for one observation, in this process: the median over blocks of 20 calls."""
    player = Player(acting(student, 1, student.action_space), 1)
    observation, starts = trees.zeros(student.observation_space, 1), np.zeros(1, np.int64)
    blocks = []
    for _ in range(calls // 20):
        began = time.perf_counter()
        for _ in range(20):
            player(observation, starts)
        blocks.append((time.perf_counter() - began) / 20)
    return float(np.median(blocks))


def _size(student: Student) -> dict[str, int]:
    """Bytes of the weights, multiply-adds of one decision, and, if it was pruned, the number of parameters that are not zero.

    Nothing for a user's own family of actions.
    """
    try:
        folded = fold_student(student)
    except RequestError:
        return {}
    found = {"bytes": folded.weight_bytes(student.architecture.bits), "multiply_adds": folded.multiply_adds}
    return found if student.architecture.pruning is None else {**found, "nonzero_params": folded.nonzero_params}


def versions() -> dict[str, str]:
    """Versions of Python, the platform and the packages that a result may depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def summarize(job: Job, state: State, final_retention: Retention, student: Episodes, teacher: Episodes, random: Episodes) -> dict[str, Any]:
    """Contents of result.json; ``final_retention`` is the kept student's on the final episodes."""
    job = settled(job, state.columns)
    share = job.config.evaluate.certify or USUAL_SHARE
    rounds, snapshots = state.records_of("round"), state.records_of("polish")
    polished = _index_of_kept(snapshots)
    teacher_mean, random_mean = state.reference
    return {
        "version": VERSION,
        "versions": versions(),
        "config": complete_config(job),
        "seed": job.config.seed,
        "device": job.device.type,
        "env": job.spec.id,
        "environment": job.spec.to_dict(),
        "backend": job.backend,
        "teacher": {**_of_teacher(job), **_figures(teacher)},
        "student": {**_of_student(job, state), **_figures(student)},
        "random": _figures(random),
        "compression": job.teacher.params / job.architecture.params if job.teacher.params else None,
        "retention": dataclasses.asdict(final_retention),
        "final_test": final_test(student, teacher, random, share, job.config.evaluate.confidence),
        "certificate": state.certified.summary() if state.certified else None,
        "agreement": student.agreement,
        "env_steps": state.env_steps,
        "evaluation_env_steps": state.evaluation_env_steps,
        "extra_states": job.num_extra_states,
        "reused_episodes": state.reused_episodes,
        "gradient_steps": state.gradient_steps,
        "kept": state.kept[-1].origin,
        "chosen_round": _index_of_kept(rounds),
        "validation": {
            "episodes": state.num_first,
            "teacher_return_mean": teacher_mean,
            "random_return_mean": random_mean,
        },
        "rounds": [record.summary() for record in rounds],
        "self_distillation": [record.summary() for record in state.records_of("generation")],
        "polish": _of_polishing(state, snapshots, polished) if snapshots else None,
        "value": {"explained_variance": state.values.explained_variance} if state.values else None,
        "view": state.view_loss,
        "notices": [*job.notices, *state.notices],
        "returns": {
            "seeds": student.seeds.tolist(),
            "student": student.returns.tolist(),
            "teacher": teacher.returns.tolist(),
            "random": random.returns.tolist(),
        },
        "seconds": {**state.seconds, "decision": decision_seconds(state.kept[-1].student)},
    }


def _of_teacher(job: Job) -> dict[str, Any]:
    """The teacher's files and size."""
    return {
        "path": job.teacher.path,
        **({"name": name} if (name := shipped_name(job.teacher.path)) else {}),
        "algo": job.teacher.algo,
        "params": job.teacher.params,
        "normalization": job.teacher.normalization_source,
        "reading": job.teacher.reading.recorded(),
        **({"members": job.teacher.facts["members"]} if "members" in job.teacher.facts else {}),
    }


def _of_student(job: Job, state: State) -> dict[str, Any]:
    """The kept student's layers, size and inputs."""
    return {
        "hidden_sizes": list(job.architecture.hidden_sizes),
        **(job.architecture.convolutions_to_dict() if job.architecture.channels else {}),
        **({"memory": {"kind": "gru", "size": job.architecture.memory}} if job.architecture.memory else {}),
        "activation": job.architecture.activation,
        "params": job.architecture.params,
        **({"bits": job.architecture.bits} if job.architecture.bits else {}),
        **({"pruning": job.architecture.pruning} if job.architecture.pruning else {}),
        **_size(state.kept[-1].student),
        **({"inputs": job.architecture.view.to_dict()} if job.architecture.view else {}),
        **({"varying_inputs": list(state.columns)} if state.columns else {}),
    }


def _of_polishing(state: State, snapshots: Sequence[Candidate], polished: int | None) -> dict[str, Any]:
    """Where polishing began, its snapshots, and the index of the one that was kept."""
    start = state.kept[-1 if polished is None else -2]
    return {
        "start": start.origin,
        "start_retention": state.retention(start.returns),
        "chosen": polished,
        "records": [snapshot.summary() for snapshot in snapshots],
    }


def _figures(episodes: Episodes) -> dict[str, float]:
    return {"return_mean": float(episodes.returns.mean()), "return_std": float(episodes.returns.std(ddof=1))}


def _index_of_kept(records: Sequence[Candidate]) -> int | None:
    """Index of the record whose student was kept; None if there is none."""
    return next((index for index, record in enumerate(records) if record.kept), None)


def final_test(student: Episodes, teacher: Episodes, random: Episodes, share: float, confidence: float) -> dict[str, Any] | None:
    """Test of the final episodes alone for a retention of ``share``: one look at the full significance level.

    Returns:
        a certificate's summary; None if there are too few episodes or the test is undecided.
    """
    count = len(student.returns)
    if count < FIRST_LOOK:
        return None
    plan = Plan.at((count,), share, confidence)
    found = Certified(plan, decide(student.returns, teacher.returns, random.returns, plan=plan), student, teacher, random)
    return found.summary() if found.decision.verdict != "undecided" else None
