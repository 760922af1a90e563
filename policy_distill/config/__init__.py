"""What a run is: frozen dataclasses, complete and checked when built. The command line, YAML files and Python fill the same ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from policy_distill.config.checks import EnvironmentFault, Fault, RequestError, TrainingFault, require, require_choice
from policy_distill.config.environment import Arguments, EnvironmentOptions, WrapperRequest
from policy_distill.config.loss import FeatureConfig, LossConfig, RelationConfig
from policy_distill.config.reading import Reading
from policy_distill.config.stages import (
    CollectConfig,
    EvaluateConfig,
    MemberConfig,
    PolishConfig,
    SelfDistillConfig,
    TrainConfig,
    ValueConfig,
)

__all__ = [
    "CheckConfig", "CollectConfig", "DistillConfig", "EnsembleConfig", "EnvironmentFault", "EnvironmentOptions", "EvaluateConfig", "Fault",
    "FeatureConfig", "LossConfig", "MemberConfig", "PolishConfig", "Reading", "RelationConfig", "RequestError", "SelfDistillConfig",
    "StudentConfig", "TrainConfig", "TrainingFault", "ValueConfig",
]  # fmt: skip


@dataclass(frozen=True)
class StudentConfig:
    """The network that is trained."""

    hidden_sizes: tuple[int, ...] | None = None
    """Width of each hidden layer; () is a linear policy. Left out, the widths follow from ``compression``."""
    compression: float | None = None
    """Choose the widths so that the student has this many times fewer parameters than the teacher's acting network. Left out: 10."""
    channels: tuple[int, ...] | None = None
    """Of the convolutions that read each image; () reads images as vectors. Left out, boxes of three axes that hold whole numbers are read
    as images, and the channels follow from ``compression``."""
    activation: Literal["auto", "relu", "tanh", "elu", "silu"] = "auto"
    """Between the layers. ``auto``: the teacher's own where it is one of these, else relu."""
    same: bool = False
    """The teacher's own architecture (born again): nothing gets smaller. ``--student same`` for short."""

    def __post_init__(self) -> None:
        require(
            self.hidden_sizes is None or self.compression is None,
            "student.compression",
            self.compression,
            "left out when student.hidden_sizes is given (one of the two decides the size)",
        )
        require(
            not self.same or (self.hidden_sizes is None and self.compression is None),
            "student.same",
            self.same,
            "left out when student.hidden_sizes or student.compression is given",
        )
        require(all(size > 0 for size in self.hidden_sizes or ()), "student.hidden_sizes", self.hidden_sizes, "positive widths")
        require(all(size > 0 for size in self.channels or ()), "student.channels", self.channels, "positive numbers of channels")
        finite = self.compression is None or (self.compression > 0 and math.isfinite(self.compression))
        require(finite, "student.compression", self.compression, "> 0")
        require_choice(type(self), "student", "activation", self.activation)


@dataclass(frozen=True)
class CheckConfig:
    """A look at the teacher before the work: a few episodes, and more only if it looks no better than a random policy."""

    skip: bool = False
    """Do the work whatever the teacher is worth; what its files tell is still printed."""


@dataclass(frozen=True)
class EnsembleConfig:
    """Agents that teach together with ``teacher``."""

    teachers: tuple[str, ...] = ()
    """Further agents of the same task, each named as ``teacher`` is; () leaves it alone."""
    weights: tuple[float, ...] | None = None
    """How much each counts, ``teacher`` first; only their ratios matter. Left out: all alike."""
    combine: Literal["mean", "value"] = "mean"
    """``mean``: of what all say; ``value``: in each state the word of the one whose own critic promises the highest return."""

    def __post_init__(self) -> None:
        require(all(self.teachers), "ensemble.teachers", self.teachers, "paths or names of agents")
        require_choice(type(self), "ensemble", "combine", self.combine)
        if self.weights is None:
            return
        positive = all(weight > 0 and math.isfinite(weight) for weight in self.weights)
        require(positive, "ensemble.weights", self.weights, "> 0 (leave a teacher out that should not count)")
        require(len(self.teachers) > 0, "ensemble.weights", self.weights, "left out when there are no ensemble.teachers")
        number = 1 + len(self.teachers)
        require(len(self.weights) == number, "ensemble.weights", self.weights, f"{number} numbers: of teacher, then of ensemble.teachers")
        require(self.combine == "mean", "ensemble.weights", self.weights, "left out when ensemble.combine is 'value'")


@dataclass(frozen=True)
class DistillConfig:
    """One job: a teacher in, a student and what it kept out."""

    teacher: str = ""
    """A folder in the RL Zoo's layout, a .zip saved by Stable-Baselines3, or the name of an agent that ships with the project
    (``ppo/LunarLander-v3``)."""
    env: str | None = None
    """A Gymnasium id or an entry of envs/. Left out, the environment is the one the teacher was trained in."""
    env_kwargs: Arguments = field(default_factory=dict)
    """Keyword arguments of the environment, over those that it was saved with: '{"gravity": -5}', or the RL Zoo's gravity:-5 wind:True."""
    wrapper: tuple[WrapperRequest, ...] | None = None
    """Wrappers around the environment, innermost first, in place of those the agent was saved with: a known name (TimeFeatureWrapper) or
    module:Class, which is imported; '{"NAME": {"argument": 1}}' with arguments; none for no wrapper. May be given several times."""
    frame_stack: int | None = None
    """Stack this many observations, as Stable-Baselines3's VecFrameStack does, outside the wrappers; 1: none."""
    max_episode_steps: int | None = None
    """Truncate an episode after this many steps, instead of after those that the environment is registered with."""
    algo: str | None = None
    """Algorithm of ``teacher`` (ppo, sac, ...), where file and folder do not tell it or tell it wrong."""
    normalization: str | None = None
    """The file of ``teacher``'s VecNormalize statistics, or ``none`` for an agent that reads observations as they are. Left out, they are
    looked for beside the zip and in its settings' folder."""
    extractor: str | None = None
    """The features extractor of ``teacher``, as ``file.py:Class``."""
    output: str | None = None
    """The run's folder. Left out: runs/ALGO-ENV-SEED."""
    seed: int = 0
    """Of everything random in the run."""
    device: str = "auto"
    """Where the student is trained: auto (CUDA when there), cpu, cuda."""
    workers: int | None = None
    """Processes that step environments. Left out: one a core."""
    step_timeout: float | None = None
    """Seconds that a step or a reset of an environment may take; longer ends the job, with a line that says where. Left out or 0: any;
    in run_suite and run_ablation 60."""
    trust: bool = False
    """Let Stable-Baselines3 unpickle a zip that cannot be rebuilt from plain data. This runs code from the file."""
    check: CheckConfig = field(default_factory=CheckConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    self_distill: SelfDistillConfig = field(default_factory=SelfDistillConfig)
    polish: PolishConfig = field(default_factory=PolishConfig)
    value: ValueConfig = field(default_factory=ValueConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", self.seed, ">= 0 and less than 2**63")
        require(self.workers is None or self.workers >= 0, "workers", self.workers, ">= 0 (0: in this process)")
        timeout = self.step_timeout is None or (self.step_timeout >= 0 and math.isfinite(self.step_timeout))
        require(timeout, "step_timeout", self.step_timeout, ">= 0 seconds (0: no limit)")
        require(
            self.train.gradient_steps >= self.collect.rounds,
            "train.gradient_steps",
            self.train.gradient_steps,
            f"at least collect.rounds = {self.collect.rounds}: each round trains",
        )
        _ = self.environment  # checks it

    @property
    def environment(self) -> EnvironmentOptions:
        """What is said of the environment."""
        return EnvironmentOptions(self.env, self.env_kwargs, self.wrapper, self.frame_stack, self.max_episode_steps)
