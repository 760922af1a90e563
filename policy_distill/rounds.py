"""What a run records: its rounds, how one is chosen, and the summary that becomes result.json."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from policy_distill.dataset import Transitions
from policy_distill.evaluate import Episodes
from policy_distill.job import Job
from policy_distill.report import summary_table
from policy_distill.statistics import Retention
from policy_distill.tracking import Tracker

VERSION = importlib.metadata.version("policy-distill")


@dataclass(frozen=True)
class Round:
    """What one round did; losses and errors carry their unit in their name.

    Attributes:
        round: counted from 0.
        env_steps, gradient_steps: so far.
        teacher_action_prob: in this round.
        train: each loss term's mean over the round's gradient steps.
        held_out: the same after the round on episodes that are never trained on; empty as long as there are none.
        validation_return_mean, validation_return_standard_error: of the round's student on the validation seeds.
        validation_retention: of the means on these seeds.
        finalist_return_mean: over these and the further validation seeds, of a round that came into the final choice.
    """

    round: int
    env_steps: int
    gradient_steps: int
    teacher_action_prob: float
    train: dict[str, float]
    held_out: dict[str, float]
    validation_return_mean: float = float("nan")
    validation_return_standard_error: float = float("nan")
    validation_retention: float = float("nan")
    finalist_return_mean: float | None = None

    def validated(self, returns: np.ndarray, teacher_mean: float, random_mean: float) -> Round:
        """The same round with its student's returns ``[E]`` on the validation seeds."""
        mean, gap = float(returns.mean()), teacher_mean - random_mean
        return dataclasses.replace(
            self,
            validation_return_mean=mean,
            validation_return_standard_error=float(returns.std() / max(len(returns) - 1, 1) ** 0.5),
            validation_retention=float((mean - random_mean) / gap) if gap else float("nan"),
        )

    def figures(self) -> str:
        """One line for a person who watches."""
        name, loss = next(iter(self.train.items()))
        return (
            f"round {self.round + 1:>2}  {self.env_steps:>7,} steps  {name.removesuffix('_nats')} {loss:.3g}  "
            f"return {self.validation_return_mean:.1f}  retention {self.validation_retention:.3f}"
        )


def finalists(rounds: Sequence[Round], count: int) -> list[int]:
    """The ``count`` rounds with the best validation returns; of equals the later ones, which saw more data at lower rates."""
    ranked = sorted(rounds, key=lambda record: (record.validation_return_mean, record.round), reverse=True)
    return [record.round for record in ranked[:count]]


def choose_round(rounds: Sequence[Round]) -> int:
    """The finalist with the best return over all its validation episodes; of equals the latest."""
    measured = [record for record in rounds if record.finalist_return_mean is not None]
    return max(measured, key=lambda record: (record.finalist_return_mean, record.round)).round


def track_round(tracker: Tracker, record: Round, transitions: Transitions, learning_rate: float, seconds: Mapping[str, float]) -> None:
    """Write what is known when a round's training ends."""
    steps = record.env_steps
    collect = {"reward_mean": float(transitions.rewards.mean()), "teacher_action_prob": record.teacher_action_prob}
    tracker.scalars("collect", collect, steps)
    held_out = {f"held_out_{name}": value for name, value in record.held_out.items()}
    tracker.scalars("train", {**record.train, **held_out, "learning_rate": learning_rate, "gradient_steps": record.gradient_steps}, steps)
    rates = {
        "env_steps_per_second": steps / max(seconds["collect"], 1e-9),
        "gradient_steps_per_second": record.gradient_steps / max(seconds["train"], 1e-9),
    }
    tracker.scalars("time", {**{f"{stage}_seconds": value for stage, value in seconds.items()}, **rates}, steps)


def track_validation(tracker: Tracker, record: Round, teacher_mean: float, random_mean: float) -> None:
    """Write how a round's student did on the validation seeds, beside the two lines it moves between."""
    values = {
        "validation_return_mean": record.validation_return_mean,
        "validation_retention": record.validation_retention,
        "validation_return_mean_teacher": teacher_mean,
        "validation_return_mean_random": random_mean,
    }
    tracker.scalars("eval", values, record.env_steps)


def track_final(tracker: Tracker, summary: Mapping[str, Any]) -> None:
    """Write the final figures, and the closing table as a text."""
    kept = summary["retention"]
    final = {"retention": kept["estimate"], "retention_low": kept["low"], "retention_high": kept["high"], "agreement": summary["agreement"]}
    tracker.scalars("final", {name: value for name, value in final.items() if value is not None}, summary["env_steps"])
    tracker.text("result", summary_table(summary))


def summarize(
    job: Job,
    rounds: list[Round],
    chosen: int,
    kept: Retention,
    student: Episodes,
    teacher: Episodes,
    random: Episodes,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The contract of result.json."""

    def figures(episodes: Episodes) -> dict[str, float]:
        return {"return_mean": float(episodes.returns.mean()), "return_std": float(episodes.returns.std(ddof=1))}

    return {
        "version": VERSION,
        "seed": job.config.seed,
        "device": job.device.type,
        "env": job.spec.id,
        "environment": job.spec.to_dict(),
        "teacher": {"path": job.teacher.path, "algo": job.teacher.algo, "params": job.teacher.params, **figures(teacher)},
        "student": {
            "hidden_sizes": list(job.architecture.hidden_sizes),
            "activation": job.architecture.activation,
            "params": job.architecture.params,
            **figures(student),
        },
        "random": figures(random),
        "compression": job.teacher.params / job.architecture.params if job.teacher.params else None,
        "retention": dataclasses.asdict(kept),
        "agreement": student.agreement,
        "env_steps": rounds[-1].env_steps,
        "gradient_steps": rounds[-1].gradient_steps,
        "chosen_round": chosen,
        "rounds": [dataclasses.asdict(record) for record in rounds],
        "self_distillation": [],
        "notices": list(job.notices),
        "returns": {
            "seeds": student.seeds.tolist(),
            "student": student.returns.tolist(),
            "teacher": teacher.returns.tolist(),
            "random": random.returns.tolist(),
        },
        "seconds": dict(seconds),
    }
