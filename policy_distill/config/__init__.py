"""The configuration of a run: frozen dataclasses, validated when built. The command line, YAML files and Python use the same classes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from policy_distill.config.checks import (
    EnvironmentCrash,
    EnvironmentFault,
    ExportFault,
    Fault,
    MemoryFault,
    RequestError,
    StorageFault,
    TrainingFault,
    require,
    require_choice,
)
from policy_distill.config.engine import EngineConfig
from policy_distill.config.environment import Arguments, EnvironmentOptions, WrapperRequest
from policy_distill.config.inputs import InputsConfig, InputsRequest, parse_inputs
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
    "CheckConfig", "CollectConfig", "DistillConfig", "EngineConfig", "EnsembleConfig", "EnvironmentCrash", "EnvironmentFault",
    "EnvironmentOptions", "EvaluateConfig", "ExportFault", "Fault", "FeatureConfig", "InputsConfig", "LossConfig", "MemberConfig",
    "MemoryFault", "PolishConfig", "Reading", "RelationConfig", "RequestError", "SelfDistillConfig", "StorageFault", "StudentConfig",
    "TrainConfig", "TrainingFault", "ValueConfig",
]  # fmt: skip


@dataclass(frozen=True)
class StudentConfig:
    """Architecture of the student."""

    hidden_sizes: tuple[int, ...] | None = None
    """Width of each hidden layer; () is a linear policy. Left out, the widths follow from ``compression``."""
    compression: float | None = None
    """Ratio of the teacher's parameters (acting network only) to the student's, from which the widths follow. Left out: 10."""
    channels: tuple[int, ...] | None = None
    """Output channels of the convolutions for each image; () flattens images. Left out: bytes from 0 to 255 with three axes are read as
    images, and the channels follow from ``compression``."""
    activation: Literal["auto", "relu", "tanh", "elu", "silu"] = "auto"
    """Activation function between the layers. ``auto``: silu with convolutions, else the teacher's own if it is one of these, else relu."""
    same: bool = False
    """Use the teacher's own architecture (a born-again network), without compression. Short form: ``--student same``."""
    memory: Literal["none", "gru"] = "none"
    """Memory of the student. ``gru``: a gated recurrent unit between encoder and head, for what a single observation does not show
    (velocities, what was seen at the episode's start). It begins anew with each episode, and is trained on sequences
    (``train.sequence_length``)."""
    memory_size: int | None = None
    """Units of the memory. Left out, they follow from ``compression``, with one hidden layer as wide as the memory; 32 if
    ``hidden_sizes`` is given."""
    bits: Literal[8, 4, 3, 2] | None = None
    """Bits of a weight of the student. Training rounds the weights to this many, with one scale for each output, so that the student can be
    shipped as a fixed-point program (``export_student --format c-int8``, ``c-int4``). Left out: float32."""
    pruning: float | None = None
    """Share of each layer's weights that is zero. Training prunes the smallest weights, more and more in its first half, and trains the
    others to the end. Left out: no weight is pruned."""
    inputs: InputsRequest | None = None
    """What the student sees of the observations; the teacher goes on seeing everything. ``[0,1,4:6]``: these components of a vector;
    ``'{"keys": ["observation"]}'``: these parts of a Dict; also wrapper, history, noise, which combine (docs/views.md)."""

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
        require_choice(type(self), "student", "memory", self.memory)
        size, remembers = self.memory_size, self.memory != "none"
        require(size is None or (remembers and size >= 1), "student.memory_size", size, ">= 1, and left out without student.memory")
        require(
            size is None or self.compression is None,
            "student.memory_size",
            size,
            "left out when student.compression is given (one of the two decides the size)",
        )
        require(self.bits in (None, 8, 4, 3, 2), "student.bits", self.bits, "one of 8, 4, 3, 2, or left out")
        require(self.pruning is None or 0 < self.pruning < 1, "student.pruning", self.pruning, "above 0 and below 1, or left out")
        require(not (self.same and remembers), "student.memory", self.memory, "none when student.same is given")
        view = self.view  # checks it
        require(not self.same or view is None, "student.inputs", self.inputs, "left out with student.same: the teacher sees everything")

    @property
    def view(self) -> InputsConfig | None:
        """``inputs``, parsed; None if the student sees everything."""
        return parse_inputs(self.inputs)


@dataclass(frozen=True)
class CheckConfig:
    """A short check of the teacher before distillation: a few episodes, and more only if it appears no better than a random policy."""

    skip: bool = False
    """Distil even if the check fails. Findings from the teacher's files are still printed."""


@dataclass(frozen=True)
class EnsembleConfig:
    """Further teachers that label observations together with ``teacher``."""

    teachers: tuple[str, ...] = ()
    """Further agents of the same task, each named as ``teacher`` is; (): no ensemble."""
    weights: tuple[float, ...] | None = None
    """Weight of each agent, ``teacher`` first; only the ratios matter. Left out: equal weights."""
    combine: Literal["mean", "value"] = "mean"
    """``mean``: the weighted mean of all action distributions; ``value``: in each state, the labels of the agent whose own critic
    predicts the highest return."""

    def __post_init__(self) -> None:
        require(all(self.teachers), "ensemble.teachers", self.teachers, "paths or names of agents")
        require_choice(type(self), "ensemble", "combine", self.combine)
        if self.weights is None:
            return
        positive = all(weight > 0 and math.isfinite(weight) for weight in self.weights)
        require(positive, "ensemble.weights", self.weights, "> 0 (to give a teacher no weight, leave it out)")
        require(len(self.teachers) > 0, "ensemble.weights", self.weights, "left out when there are no ensemble.teachers")
        number = 1 + len(self.teachers)
        require(len(self.weights) == number, "ensemble.weights", self.weights, f"{number} numbers: teacher's, then ensemble.teachers'")
        require(self.combine == "mean", "ensemble.weights", self.weights, "left out when ensemble.combine is 'value'")


@dataclass(frozen=True)
class DistillConfig:
    """Settings of one distillation job, from a teacher to a measured student."""

    teacher: str = ""
    """A folder in the RL Zoo's layout, a .zip saved by Stable-Baselines3, or the name of an agent that ships with the project
    (``ppo/LunarLander-v3``)."""
    env: str | None = None
    """A Gymnasium id or an entry of envs/. Left out: the environment that the teacher was trained in."""
    env_kwargs: Arguments = field(default_factory=dict)
    """Keyword arguments of the environment, which override saved ones: '{"gravity": -5}', or the RL Zoo's form gravity:-5 wind:True."""
    wrapper: tuple[WrapperRequest, ...] | None = None
    """Wrappers around the environment, innermost first, which replace the saved ones: a known name (TimeFeatureWrapper) or module:Class,
    which is imported; '{"NAME": {"argument": 1}}' with arguments; none for no wrapper. May be given several times."""
    frame_stack: int | None = None
    """Number of observations to stack outside the wrappers, as Stable-Baselines3's VecFrameStack does; 1: no stack."""
    max_episode_steps: int | None = None
    """Truncate episodes after this many steps, instead of the limit that the environment is registered with."""
    algo: str | None = None
    """Algorithm of ``teacher`` (ppo, sac, ...), if its file and folder do not name it or name it wrongly."""
    normalization: str | None = None
    """File of ``teacher``'s VecNormalize statistics, or ``none`` for an agent that was trained on raw observations. Left out: searched for
    beside the zip and in its settings folder."""
    extractor: str | None = None
    """Source of ``teacher``'s custom features extractor, as ``file.py:Class``. In an ensemble and in run_suite it is used for those agents
    whose extractor has this class name."""
    output: str | None = None
    """The run's folder. Left out: runs/ALGO-ENV-SEED."""
    seed: int = 0
    """Random seed of the run."""
    device: str = "auto"
    """Device for training the student: auto (CUDA if available), cpu, cuda."""
    workers: int | None = None
    """Number of processes that step environments. Left out: one per core of this machine, or of the cluster with ``--engine ray``."""
    step_timeout: float | None = None
    """Time limit in seconds of one step or reset of an environment; if it is exceeded, its worker is ended. Left out or 0: none, except in
    run_suite and run_ablation, where left out means 60."""
    worker_restarts: int = 2
    """Number of worker processes that are made anew if an environment raises, hangs or ends its process. The new process repeats what the
    old one did, and the student is the same. If the same step fails again, the job stops."""
    trust: bool = False
    """Let Stable-Baselines3 unpickle a zip that cannot be rebuilt from plain data. This executes code from the file."""
    engine: EngineConfig = field(default_factory=EngineConfig)
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
        require(self.worker_restarts >= 0, "worker_restarts", self.worker_restarts, ">= 0")
        require(
            self.train.gradient_steps_of(small_images=False) >= self.collect.rounds,
            "train.gradient_steps",
            self.train.gradient_steps,
            f"at least collect.rounds = {self.collect.rounds}: each round trains",
        )
        _ = self.environment  # checks it

    @property
    def environment(self) -> EnvironmentOptions:
        """The environment's settings."""
        return EnvironmentOptions(self.env, self.env_kwargs, self.wrapper, self.frame_stack, self.max_episode_steps)
