"""What a round of imitation records, and what TensorBoard shows of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from policy_distill.report.tensorboard import Tracker
from policy_distill.support.figures import return_text
from policy_distill.support.progress import Display
from policy_distill.training.trainer import TrainingReport


@dataclass(frozen=True)
class Round:
    """What one round did; losses and errors carry their unit in their name.

    Attributes:
        round: counted from 0.
        env_steps, gradient_steps: so far.
        teacher_action_prob: in this round.
        train: each loss term's mean over the round's gradient steps.
        held_out: the same after the round on episodes that are never trained on; empty as long as there are none.
        validation_return_mean, validation_return_standard_error: of the round's (best) student on the validation seeds.
        validation_retention: of the means on these seeds.
        validation_retention_standard_error: paired by seed; see ``Run.retention_standard_error``.
        finalist_return_mean, finalist_episodes: over these and those of the further validation seeds that it played, and how many they
            were, of a student that came into the final choice.
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
    validation_retention_standard_error: float = float("nan")
    finalist_episodes: int | None = None

    def validated(self, returns: np.ndarray, teacher_mean: float, random_mean: float) -> Round:
        """The same round with its student's returns ``[E]`` on the validation seeds."""
        mean, gap = float(returns.mean()), teacher_mean - random_mean
        return dataclasses.replace(
            self,
            validation_return_mean=mean,
            validation_return_standard_error=float(returns.std() / max(len(returns) - 1, 1) ** 0.5),
            validation_retention=float((mean - random_mean) / gap) if gap > 0 else float("nan"),
        )

    def figures(self) -> str:
        """One line for the display."""
        name, loss = next(iter(self.train.items()))
        return (
            f"round {self.round + 1:>2}  {self.env_steps:>7,} steps  {name.removesuffix('_nats')} {loss:.3g}  "
            f"return {return_text(self.validation_return_mean)}  retention {self.validation_retention:.3f}"
        )


def track_round(tracker: Tracker, record: Round, reward_mean: float, learning_rate: float, seconds: Mapping[str, float]) -> None:
    """Write what is known when a round's training ends; ``reward_mean`` is over the steps that it collected."""
    steps = record.env_steps
    collect = {"reward_mean": reward_mean, "teacher_action_prob": record.teacher_action_prob}
    tracker.scalars("collect", collect, steps)
    held_out = {f"held_out_{name}": value for name, value in record.held_out.items()}
    tracker.scalars("train", {**record.train, **held_out, "learning_rate": learning_rate, "gradient_steps": record.gradient_steps}, steps)
    rates = {
        "env_steps_per_second": steps / max(seconds["collect"], 1e-9),
        "gradient_steps_per_second": record.gradient_steps / max(seconds["train"], 1e-9),
    }
    tracker.scalars("time", {**{f"{stage}_seconds": value for stage, value in seconds.items()}, **rates}, steps)


def reports_to(tracker: Tracker, display: Display, stage: str, title: str, begun: int = 0) -> Callable[[TrainingReport], None]:
    """What a trainer reports goes to TensorBoard, over gradient steps, and moves a bar of gradient steps on.

    Args:
        tracker, display: where to.
        stage: the tags are ``stage/`` and the names of the losses, and ``stage/learning_rate``.
        title: of the stage, beside the bar.
        begun: gradient steps that were taken before this trainer's.
    """

    def report(now: TrainingReport) -> None:
        tracker.scalars(stage, {**now.losses, "learning_rate": now.learning_rate}, begun + now.gradient_steps)
        name, loss = next(iter(now.losses.items()))
        display.stage(f"{title}, {name.removesuffix('_nats')} {loss:.3g}")
        display.move(now.num_steps)

    return report


def track_validation(tracker: Tracker, env_steps: int, return_mean: float, retention: float, reference: tuple[float, float]) -> None:
    """Write how a student did on the validation seeds, beside the two lines it moves between.

    Args:
        tracker: where to.
        env_steps: taken so far, all stages together.
        return_mean, retention: of the student.
        reference: mean returns of the teacher and of a random policy on the same seeds.
    """
    values = {
        "validation_return_mean": return_mean,
        "validation_retention": retention,
        "validation_return_mean_teacher": reference[0],
        "validation_return_mean_random": reference[1],
    }
    tracker.scalars("eval", values, env_steps)


def track_generation(
    tracker: Tracker, generation: int, losses: Mapping[str, float], return_mean: float, retention: float, difference: float
) -> None:
    """Write what a generation of self-distillation came to; the axis counts generations."""
    values = {"validation_return_mean": return_mean, "validation_retention": retention, "paired_difference": difference}
    tracker.scalars("self_distill", {**losses, **values}, generation)
