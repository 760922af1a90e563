"""Records of a run's candidates, and their TensorBoard scalars."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from policy_distill.report.tensorboard import Tracker
from policy_distill.support.figures import return_text
from policy_distill.support.progress import Display
from policy_distill.training.trainer import TrainingReport

Origin: TypeAlias = Literal["round", "generation", "polish"]
NAN = float("nan")
KEYS: dict[Origin, tuple[str, ...]] = {
    "round": (
        "round", "env_steps", "gradient_steps", "teacher_action_prob", "train", "held_out", "validation_return_mean",
        "validation_return_standard_error", "validation_retention", "finalist_return_mean", "validation_retention_standard_error",
        "finalist_episodes",
    ),
    "generation": (
        "generation", "gradient_steps", "train", "held_out", "validation_return_mean", "validation_retention", "paired_difference", "kept",
        "validation_retention_standard_error",
    ),
    "polish": (
        "env_steps", "metrics", "validation_return_mean", "validation_retention", "finalist_return_mean",
        "validation_retention_standard_error", "finalist_episodes",
    ),
}  # fmt: skip
"""Keys of each candidate in result.json."""


@dataclass(frozen=True)
class Candidate:
    """Record of one candidate: a round's best member, a generation, or a snapshot of polishing.

    Attributes:
        origin: its stage.
        number: number within its stage, from 1.
        env_steps: environment steps so far: of all rounds, or of polishing.
        gradient_steps: gradient steps: of all rounds so far, of this generation, or of polishing so far.
        train: mean of each loss term over the round's or generation's gradient steps, with the unit in its name; for polishing
            ``kickstart.Snapshot.metrics``.
        held_out: the same terms on held-out episodes, against the targets of training; empty if there are no such episodes.
        teacher_action_prob: probability that the teacher acts; rounds only.
        paired_difference: mean over the validation seeds of its return minus the previous student's; generations only.
        validation_return_mean, validation_return_standard_error: on the first validation seeds; a generation: on all that it played.
        validation_retention, validation_retention_standard_error: retention of these returns, paired by seed.
        finalist_return_mean, finalist_episodes: mean return over all validation seeds that a finalist played, and their number.
        kept: whether its stage kept it.
    """

    origin: Origin
    number: int
    env_steps: int
    gradient_steps: int
    train: dict[str, float]
    held_out: dict[str, float] = dataclasses.field(default_factory=dict)
    teacher_action_prob: float = NAN
    paired_difference: float = NAN
    validation_return_mean: float = NAN
    validation_return_standard_error: float = NAN
    validation_retention: float = NAN
    validation_retention_standard_error: float = NAN
    finalist_return_mean: float | None = None
    finalist_episodes: int | None = None
    kept: bool = False

    def as_finalist(self, returns: np.ndarray) -> Candidate:
        """The record with a finalist's ``returns`` ``[E]`` on the validation seeds that it played."""
        return dataclasses.replace(self, finalist_return_mean=float(returns.mean()), finalist_episodes=len(returns))

    def summary(self) -> dict[str, Any]:
        """Its entry in result.json."""
        names = {"round": self.number - 1, "generation": self.number, "metrics": self.train}
        return {key: names[key] if key in names else getattr(self, key) for key in KEYS[self.origin]}

    def figures(self) -> str:
        """One line of figures for the display."""
        validation = f"return {return_text(self.validation_return_mean)}  retention {self.validation_retention:.3f}"
        match self.origin:
            case "round":
                name, loss = next(iter(self.train.items()))
                return f"round {self.number:>2}  {self.env_steps:>7,} steps  {name.removesuffix('_nats')} {loss:.3g}  {validation}"
            case "generation":
                verdict = "kept" if self.kept else "refused"
                return f"generation {self.number}  {validation}  {self.paired_difference:+.2f} a pair against the last: {verdict}"
        sampled = return_text(self.train.get("train_return_mean", NAN))
        return f"polish    {self.env_steps:>7,} steps  sampled return {sampled}  {validation}"


def track_round(tracker: Tracker, record: Candidate, reward_mean: float, learning_rate: float, seconds: Mapping[str, float]) -> None:
    """Write a round's scalars when its training ends; ``reward_mean`` is the mean over the steps that it collected."""
    steps = record.env_steps
    collect = {"reward_mean": reward_mean, "teacher_action_prob": record.teacher_action_prob}
    tracker.scalars("collect", collect, steps)
    held_out = {f"held_out_{name}": value for name, value in record.held_out.items()}
    tracker.scalars("train", {**record.train, **held_out, "learning_rate": learning_rate, "gradient_steps": record.gradient_steps}, steps)
    spent = {f"{stage}_seconds": value for stage, value in seconds.items() if stage != "total"}
    rates = {
        "env_steps_per_second": steps / max(seconds["collect"], 1e-9),
        "gradient_steps_per_second": record.gradient_steps / max(seconds["train"], 1e-9),
    }
    tracker.scalars("time", {**spent, **rates}, steps)


def reports_to(tracker: Tracker, display: Display, stage: str, title: str, begun: int = 0) -> Callable[[TrainingReport], None]:
    """A callback that writes a trainer's reports to TensorBoard, over gradient steps, and advances the progress bar.

    Tags are ``stage/`` and the names of the losses; ``title`` is the bar's label; ``begun`` is the number of earlier gradient steps.
    """

    def write(report: TrainingReport) -> None:
        tracker.scalars(stage, {**report.losses, "learning_rate": report.learning_rate}, begun + report.gradient_steps)
        name, loss = next(iter(report.losses.items()))
        display.stage(f"{title}, {name.removesuffix('_nats')} {loss:.3g}")
        display.move(report.num_steps)

    return write


def track_validation(tracker: Tracker, record: Candidate, env_steps: int, reference: tuple[float, float]) -> None:
    """Write a student's validation figures; ``reference`` holds the mean returns of teacher and random policy on the same seeds."""
    values = {
        "validation_return_mean": record.validation_return_mean,
        "validation_retention": record.validation_retention,
        "validation_return_mean_teacher": reference[0],
        "validation_return_mean_random": reference[1],
    }
    tracker.scalars("eval", values, env_steps)


def track_generation(tracker: Tracker, record: Candidate) -> None:
    """Write the figures of a generation of self-distillation; the axis counts generations."""
    names = ("validation_return_mean", "validation_retention", "paired_difference")
    tracker.scalars("self_distill", {**record.train, **{name: getattr(record, name) for name in names}}, record.number)
