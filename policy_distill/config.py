"""What a run is: frozen dataclasses, complete and checked when built. The command line, YAML files and Python fill the same ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args, get_type_hints


class RequestError(ValueError):
    """The request was wrong. The message is one line for the person who made it: what is wrong and how to mend it (exit code 2)."""


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise RequestError(f"{name} is {value!r}; it must be {allowed}")


def _require_choice(owner: type, section: str, name: str, value: object) -> None:
    choices = get_args(get_type_hints(owner)[name])
    _require(value in choices, f"{section}.{name}", value, f"one of {', '.join(choices)}")


@dataclass(frozen=True)
class StudentConfig:
    """The network that is trained."""

    hidden_sizes: tuple[int, ...] | None = None
    """Width of each hidden layer; () is a linear policy. Left out, the widths follow from ``compression``."""
    compression: float | None = None
    """Choose the widths so that the student has this many times fewer parameters than the teacher's acting network. Left out: 10."""
    activation: Literal["auto", "relu", "tanh", "elu", "silu"] = "auto"
    """Between the layers. ``auto``: the teacher's own where it is one of these, else relu."""

    def __post_init__(self) -> None:
        _require(
            self.hidden_sizes is None or self.compression is None,
            "student.compression",
            self.compression,
            "left out when student.hidden_sizes is given (one of the two decides the size)",
        )
        _require(all(size > 0 for size in self.hidden_sizes or ()), "student.hidden_sizes", self.hidden_sizes, "positive widths")
        finite = self.compression is None or (self.compression > 0 and math.isfinite(self.compression))
        _require(finite, "student.compression", self.compression, "> 0")
        _require_choice(type(self), "student", "activation", self.activation)


@dataclass(frozen=True)
class LossConfig:
    """What the student is asked to match."""

    kind: Literal["auto", "kl", "regression"] = "auto"
    """``kl``: forward KL of action distributions; ``regression``: the action that the environment receives. ``auto``: KL where the
    teacher chooses among discrete actions, regression where its actions are continuous."""
    regression: Literal["squared", "absolute", "huber"] = "huber"
    """What is averaged over the components of a continuous action: squares, absolute values, or squares up to 0.1 of half the range."""
    temperature: float = 1.0
    """Both sides' logits are divided by it and the loss is multiplied by its square (Hinton et al. 2015); above 1 softens."""
    hard_weight: float = 0.0
    """Alpha of ``alpha * cross-entropy(teacher's greedy action) + (1 - alpha) * KL(softened)``, in [0, 1]."""
    q_gap_fraction: float = 0.1
    """Q-values become logits ``(Q - max Q) / t`` with t this share of the median gap between the best two actions."""

    def __post_init__(self) -> None:
        _require_choice(type(self), "loss", "kind", self.kind)
        _require_choice(type(self), "loss", "regression", self.regression)
        _require(self.temperature > 0 and math.isfinite(self.temperature), "loss.temperature", self.temperature, "> 0")
        _require(0 <= self.hard_weight <= 1, "loss.hard_weight", self.hard_weight, "in [0, 1]")
        _require(self.q_gap_fraction > 0 and math.isfinite(self.q_gap_fraction), "loss.q_gap_fraction", self.q_gap_fraction, "> 0")


@dataclass(frozen=True)
class CollectConfig:
    """Which states the student learns from. Everything collected is kept (aggregation)."""

    env_steps: int = 200_000
    """Environment steps over all rounds."""
    rounds: int = 10
    """How often the data grow. In round 0 the teacher acts alone."""
    num_envs: int = 16
    """Environments stepped side by side."""
    teacher_action_prob: float = 0.5
    """In round r each action is the teacher's with this probability to the power r: 1 is teacher-driven (behavioural cloning) throughout,
    0 is student-driven from round 1 on (DAgger), between them the teacher's share fades."""

    def __post_init__(self) -> None:
        _require(self.rounds >= 1, "collect.rounds", self.rounds, ">= 1")
        _require(self.num_envs >= 1, "collect.num_envs", self.num_envs, ">= 1")
        _require(
            self.env_steps >= self.rounds * self.num_envs,
            "collect.env_steps",
            self.env_steps,
            f"at least rounds * num_envs = {self.rounds * self.num_envs}",
        )
        _require(0 <= self.teacher_action_prob <= 1, "collect.teacher_action_prob", self.teacher_action_prob, "in [0, 1]")


@dataclass(frozen=True)
class TrainConfig:
    """How the student is fitted to what was collected."""

    gradient_steps: int = 40_000
    """Over all rounds."""
    batch_size: int = 512
    """Transitions a gradient step."""
    learning_rate: float = 1e-2
    """Of Adam, at the start; it falls along half a cosine to zero over the whole run."""
    average_decay: float = 0.999
    """The student that acts and is kept is the exponential moving average of the weights with this decay a step; 0 turns it off."""
    holdout: float = 0.05
    """Share of the episodes that are never trained on; validation losses are taken on them."""

    def __post_init__(self) -> None:
        _require(self.gradient_steps >= 1, "train.gradient_steps", self.gradient_steps, ">= 1")
        _require(self.batch_size >= 1, "train.batch_size", self.batch_size, ">= 1")
        _require(self.learning_rate > 0 and math.isfinite(self.learning_rate), "train.learning_rate", self.learning_rate, "> 0")
        _require(0 <= self.average_decay < 1, "train.average_decay", self.average_decay, "in [0, 1)")
        _require(0 <= self.holdout <= 0.5, "train.holdout", self.holdout, "in [0, 0.5]")


@dataclass(frozen=True)
class EvaluateConfig:
    """How the return is measured: one seed an episode, the same seeds for teacher, student and random policy."""

    episodes: int = 100
    """Fresh episodes behind the final figure."""
    validation_episodes: int = 20
    """Episodes after each round, on seeds of their own."""
    finalists: int = 4
    """So many rounds with the best validation returns are measured again before one is kept: the best of many noisy means flatters."""
    finalist_episodes: int = 40
    """Further episodes of each finalist, on validation seeds that no round has played yet."""
    confidence: float = 0.95
    """Of the interval around the retention."""
    num_envs: int = 16
    """Episodes run side by side; the returns do not depend on it."""

    def __post_init__(self) -> None:
        _require(self.episodes >= 2, "evaluate.episodes", self.episodes, ">= 2")
        _require(self.validation_episodes >= 1, "evaluate.validation_episodes", self.validation_episodes, ">= 1")
        _require(self.finalists >= 1, "evaluate.finalists", self.finalists, ">= 1")
        _require(self.finalist_episodes >= 0, "evaluate.finalist_episodes", self.finalist_episodes, ">= 0")
        _require(0.5 <= self.confidence < 1, "evaluate.confidence", self.confidence, "in [0.5, 1)")
        _require(self.num_envs >= 1, "evaluate.num_envs", self.num_envs, ">= 1")


@dataclass(frozen=True)
class DistillConfig:
    """One job: a teacher in, a student and what it kept out."""

    teacher: str = ""
    """A folder in the RL Zoo's layout, a .zip saved by Stable-Baselines3, or the name of an agent that ships with the project
    (``ppo/LunarLander-v3``)."""
    env: str | None = None
    """A Gymnasium id or an entry of envs/. Left out, the environment is the one the teacher was trained in."""
    algo: str | None = None
    """Algorithm of a bare zip whose name and folder do not tell it (ppo, sac, ...)."""
    output: str | None = None
    """The run's folder. Left out: runs/ALGO-ENV-SEED."""
    seed: int = 0
    """Of everything random in the run."""
    device: str = "auto"
    """Where the student is trained: auto (CUDA when there), cpu, cuda."""
    workers: int | None = None
    """Processes that step environments. Left out: one a core."""
    trust: bool = False
    """Let Stable-Baselines3 unpickle a zip that cannot be rebuilt from plain data. This runs code from the file."""
    student: StudentConfig = field(default_factory=StudentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**63, "seed", self.seed, ">= 0 and less than 2**63")
        _require(self.workers is None or self.workers >= 0, "workers", self.workers, ">= 0 (0: in this process)")
        _require(
            self.train.gradient_steps >= self.collect.rounds,
            "train.gradient_steps",
            self.train.gradient_steps,
            f"at least collect.rounds = {self.collect.rounds}: each round trains",
        )
