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
    same: bool = False
    """The teacher's own architecture (born again): nothing gets smaller. ``--student same`` for short."""

    def __post_init__(self) -> None:
        _require(
            self.hidden_sizes is None or self.compression is None,
            "student.compression",
            self.compression,
            "left out when student.hidden_sizes is given (one of the two decides the size)",
        )
        _require(
            not self.same or (self.hidden_sizes is None and self.compression is None),
            "student.same",
            self.same,
            "left out when student.hidden_sizes or student.compression is given",
        )
        _require(all(size > 0 for size in self.hidden_sizes or ()), "student.hidden_sizes", self.hidden_sizes, "positive widths")
        finite = self.compression is None or (self.compression > 0 and math.isfinite(self.compression))
        _require(finite, "student.compression", self.compression, "> 0")
        _require_choice(type(self), "student", "activation", self.activation)


@dataclass(frozen=True)
class FeatureConfig:
    """Hints: what the teacher's intermediate layers say, asked of the student's through a learned projection."""

    weight: float = 0.0
    """Beside the loss on actions; 0: no hints."""
    layers: dict[str, str] | None = None
    """Teacher's layer -> student's layer. ``check_teacher`` lists the teacher's names; the student's are hidden.0, hidden.1, ... and
    output. Left out: the last hidden layer of each."""
    distance: Literal["mse", "cosine"] = "mse"
    """Mean square divided by the layer's variance, or one minus the cosine."""

    def __post_init__(self) -> None:
        _require(self.weight >= 0 and math.isfinite(self.weight), "loss.features.weight", self.weight, ">= 0")
        _require(self.layers is None or len(self.layers) > 0, "loss.features.layers", self.layers, "left out, or name at least one pair")
        _require_choice(type(self), "loss.features", "distance", self.distance)


@dataclass(frozen=True)
class RelationConfig:
    """What the samples of a batch are to each other in a layer of the teacher, asked of a layer of the student."""

    weight: float = 0.0
    """Beside the loss on actions; 0: no relations."""
    kind: Literal["distance", "angle", "similarity"] = "distance"
    """Distances between pairs, angles between triplets (both Park et al. 2019), or similarities (Tung & Mori 2019)."""
    layers: dict[str, str] | None = None
    """Teacher's layer -> student's layer, as in ``features.layers``; ``output`` is a layer too."""

    def __post_init__(self) -> None:
        _require(self.weight >= 0 and math.isfinite(self.weight), "loss.relations.weight", self.weight, ">= 0")
        _require(self.layers is None or len(self.layers) > 0, "loss.relations.layers", self.layers, "left out, or name at least one pair")
        _require_choice(type(self), "loss.relations", "kind", self.kind)


@dataclass(frozen=True)
class LossConfig:
    """What the student is asked to match. Terms add up, each with its weight."""

    kind: Literal["auto", "kl", "nll", "regression"] = "auto"
    """``kl``: a divergence of action distributions; ``nll``: negative log-likelihood of actions drawn from the teacher; ``regression``:
    the action that the environment receives. ``auto``: KL where the teacher chooses among discrete actions, else regression."""
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon"] = "forward_kl"
    """Which one ``kl`` means: KL(teacher || student), KL(student || teacher), or the generalised Jensen-Shannon divergence."""
    jensen_shannon_beta: float = 0.5
    """The teacher's share of the mixture, in (0, 1)."""
    regression: Literal["squared", "absolute", "huber"] = "huber"
    """What is averaged over the components of a continuous action: squares, absolute values, or squares up to 0.1 of half the range."""
    temperature: float = 1.0
    """Both sides' logits are divided by it and the loss is multiplied by its square (Hinton et al. 2015); above 1 softens. Of Gaussians
    it multiplies both variances."""
    temperature_end: float | None = None
    """The temperature moves along a line to this one over the training. Left out: it stays."""
    standardize_logits: bool = False
    """Give both sides' logits mean 0 and standard deviation 1 in each state before the temperature (Sun et al. 2024)."""
    hard_weight: float = 0.0
    """Alpha of ``alpha * cross-entropy(teacher's greedy action) + (1 - alpha) * KL(softened)``, in [0, 1]."""
    q_logits: Literal["gap", "z_score", "raw"] = "gap"
    """How Q-values become logits: ``(Q - max Q) / (q_gap_fraction * median gap)``, their z-score over the actions divided by
    ``q_temperature``, or themselves divided by it."""
    q_gap_fraction: float = 0.1
    """Share of the median gap between the best two actions that becomes one nat."""
    q_temperature: float | None = None
    """Left out: 0.5 for z-scores, 0.01 for raw values (Rusu et al. 2016)."""
    features: FeatureConfig = field(default_factory=FeatureConfig)
    relations: RelationConfig = field(default_factory=RelationConfig)

    def __post_init__(self) -> None:
        for name in ("kind", "divergence", "regression", "q_logits"):
            _require_choice(type(self), "loss", name, getattr(self, name))
        _require(0 < self.jensen_shannon_beta < 1, "loss.jensen_shannon_beta", self.jensen_shannon_beta, "in (0, 1)")
        for name in ("temperature", "temperature_end", "q_gap_fraction", "q_temperature"):
            value = getattr(self, name)
            optional = name in ("temperature_end", "q_temperature")
            _require((value is None and optional) or (value > 0 and math.isfinite(value)), f"loss.{name}", value, "> 0")
        _require(0 <= self.hard_weight <= 1, "loss.hard_weight", self.hard_weight, "in [0, 1]")


@dataclass(frozen=True)
class CollectConfig:
    """Which states the student learns from: who acts there, with how much exploration, and how long they are kept."""

    env_steps: int = 200_000
    """Environment steps over all rounds."""
    rounds: int = 10
    """How often the data grow. In round 0 the teacher acts alone."""
    num_envs: int = 16
    """Environments stepped side by side."""
    teacher_action_prob: float = 0.5
    """In round 1 each action is the teacher's with this probability: 1 is teacher-driven (behavioural cloning) throughout, 0 is
    student-driven from round 1 on (DAgger), between them the teacher's share fades."""
    schedule: Literal["exponential", "linear"] = "exponential"
    """How it fades in the rounds r after that: as ``teacher_action_prob**r``, or by the same amount each round down to zero."""
    epsilon: float = 0.0
    """Probability of an action drawn uniformly at random instead, for coverage; its state is labelled as any other."""
    action_noise: float = 0.0
    """Standard deviation of Gaussian noise on continuous actions, in units of half the action range."""
    window: int | None = None
    """Train on the last so many rounds alone. Left out: on everything collected (aggregation)."""

    def __post_init__(self) -> None:
        _require(self.rounds >= 1, "collect.rounds", self.rounds, ">= 1")
        _require(self.num_envs >= 1, "collect.num_envs", self.num_envs, ">= 1")
        _require(
            self.env_steps >= self.rounds * self.num_envs,
            "collect.env_steps",
            self.env_steps,
            f"at least rounds * num_envs = {self.rounds * self.num_envs}",
        )
        for name in ("teacher_action_prob", "epsilon"):
            _require(0 <= getattr(self, name) <= 1, f"collect.{name}", getattr(self, name), "in [0, 1]")
        _require_choice(type(self), "collect", "schedule", self.schedule)
        _require(self.action_noise >= 0 and math.isfinite(self.action_noise), "collect.action_noise", self.action_noise, ">= 0")
        _require(self.window is None or self.window >= 1, "collect.window", self.window, ">= 1")

    def teacher_action_prob_in(self, round_index: int) -> float:
        """The teacher's share of the actions in a round."""
        if self.schedule == "linear":
            return max(0.0, 1 - round_index * (1 - self.teacher_action_prob))
        return self.teacher_action_prob**round_index


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
    members: int | None = None
    """Students trained side by side as one stack from different first weights; the best is kept. Left out: 4 of up to 4,000 parameters, 2
    of up to 10,000, else 1. The smaller a student, the more two of them differ, and the less a further one costs."""
    holdout: float = 0.05
    """Share of the episodes that are never trained on; validation losses are taken on them."""

    def members_of(self, params: int) -> int:
        """How many students of ``params`` parameters are trained."""
        return self.members or (4 if params <= 4_000 else 2 if params <= 10_000 else 1)

    def __post_init__(self) -> None:
        _require(self.gradient_steps >= 1, "train.gradient_steps", self.gradient_steps, ">= 1")
        _require(self.batch_size >= 1, "train.batch_size", self.batch_size, ">= 1")
        _require(self.members is None or self.members >= 1, "train.members", self.members, ">= 1")
        _require(self.learning_rate > 0 and math.isfinite(self.learning_rate), "train.learning_rate", self.learning_rate, "> 0")
        _require(0 <= self.average_decay < 1, "train.average_decay", self.average_decay, "in [0, 1)")
        _require(0 <= self.holdout <= 0.5, "train.holdout", self.holdout, "in [0, 0.5]")


@dataclass(frozen=True)
class SelfDistillConfig:
    """Students that teach students of the same architecture, after the rounds."""

    generations: int = 0
    """At most so many; the first that earns less than the one before it is refused and ends the series."""
    teacher_weight: float = 0.5
    """The original teacher's share of the targets; the rest is the last generation's."""
    ensemble: bool = False
    """All generations so far teach together, not only the last."""
    gradient_steps: int | None = None
    """Of each generation. Left out: ``train.gradient_steps``."""

    def __post_init__(self) -> None:
        _require(self.generations >= 0, "self_distill.generations", self.generations, ">= 0")
        _require(0 <= self.teacher_weight <= 1, "self_distill.teacher_weight", self.teacher_weight, "in [0, 1]")
        _require(self.gradient_steps is None or self.gradient_steps >= 1, "self_distill.gradient_steps", self.gradient_steps, ">= 1")


@dataclass(frozen=True)
class PolishConfig:
    """Reward after imitation: Stable-Baselines3's PPO on the student that was kept."""

    below: float = 0.97
    """Polish unless the validation episodes show, at 95 % confidence, that the student keeps this much of the return; 0 never does, a
    large number always."""
    env_steps: int = 300_000
    """Environment steps, besides those of imitation."""
    enough: float = 1.0
    """Stop before that when three looks in a row keep this much of the return on the validation seeds."""
    teacher_weight: float = 0.0
    """Weight of the imitation loss on actions (without hints and relations) beside PPO's; it falls along a line to zero over the first
    half of the steps."""
    critic_warmup: float = 0.1
    """Share of the steps in which only the value network learns: until it knows this policy, its advantages would spoil it."""
    learning_rate: float = 2e-3
    """Of Adam, at the start."""
    target_kl: float = 0.06
    """The learning rate is halved where an update moves the policy by more than twice this KL, in nats, and doubled where by less than
    half of it: how far a step may go depends on the policy's standard deviation, which differs much between students."""
    num_envs: int = 16
    """Environments stepped side by side."""
    num_steps: int = 256
    """Steps of each environment between two updates."""
    epochs: int = 20
    """Passes over what was collected, in each update."""
    batch_size: int = 512
    """Transitions a gradient step."""
    clip_range: float = 0.3
    """PPO's bound on the ratio of new to old probabilities."""
    discount: float = 0.99
    """Gamma."""
    gae_lambda: float = 0.95
    """Of generalised advantage estimation."""
    std_end: float = 0.3
    """The standard deviation of continuous actions may at the end be this share of what it was at the start, and in between what a line
    between their logarithms allows: what is shipped acts without noise, and must stand without it."""
    average_decay: float = 0.9
    """The student is the exponential moving average of the weights with this decay an update; 0 turns it off."""
    snapshots: int = 10
    """At most so many times on the way the student is measured on the validation seeds; the best one is kept, if it beats the start."""

    def __post_init__(self) -> None:
        _require(self.below >= 0, "polish.below", self.below, ">= 0")
        _require(self.enough > 0, "polish.enough", self.enough, "> 0")
        _require(self.env_steps >= 1, "polish.env_steps", self.env_steps, ">= 1 (polish.below 0 turns polishing off)")
        _require(self.teacher_weight >= 0 and math.isfinite(self.teacher_weight), "polish.teacher_weight", self.teacher_weight, ">= 0")
        _require(self.learning_rate > 0 and math.isfinite(self.learning_rate), "polish.learning_rate", self.learning_rate, "> 0")
        for name in ("num_envs", "epochs", "snapshots"):
            _require(getattr(self, name) >= 1, f"polish.{name}", getattr(self, name), ">= 1")
        _require(self.num_steps >= 2, "polish.num_steps", self.num_steps, ">= 2")
        _require(self.batch_size >= 2, "polish.batch_size", self.batch_size, ">= 2")
        _require(0 < self.std_end <= 1, "polish.std_end", self.std_end, "in (0, 1]")
        _require(self.target_kl > 0, "polish.target_kl", self.target_kl, "> 0")
        _require(self.clip_range > 0, "polish.clip_range", self.clip_range, "> 0")
        for name in ("critic_warmup", "average_decay"):
            _require(0 <= getattr(self, name) < 1, f"polish.{name}", getattr(self, name), "in [0, 1)")
        for name in ("discount", "gae_lambda"):
            _require(0 <= getattr(self, name) <= 1, f"polish.{name}", getattr(self, name), "in [0, 1]")


@dataclass(frozen=True)
class EvaluateConfig:
    """How the return is measured: one seed an episode, the same seeds for teacher, student and random policy."""

    episodes: int = 100
    """Fresh episodes behind the final figure."""
    validation_episodes: int = 5
    """Episodes of each student after each round, on seeds of their own."""
    finalists: int = 12
    """So many students with the best validation returns play on before one is kept: the best of many noisy means flatters. The worse half
    of them drops out again and again until there are two."""
    finalist_episodes: int = 50
    """Further episodes of the last two finalists, on validation seeds of their own."""
    confidence: float = 0.95
    """Of the interval around the retention, and of a certificate."""
    certify: float | None = None
    """Play on, on seeds of their own, until the episodes show that the student keeps this share of the return, or that it does not, and
    write certificate.json. Left out: no certificate."""
    max_episodes: int = 2_000
    """Episodes of a certificate at the most; then the verdict is "undecided"."""
    num_envs: int = 16
    """Episodes run side by side; the returns do not depend on it."""

    def __post_init__(self) -> None:
        _require(self.episodes >= 2, "evaluate.episodes", self.episodes, ">= 2")
        _require(self.validation_episodes >= 1, "evaluate.validation_episodes", self.validation_episodes, ">= 1")
        _require(self.finalists >= 1, "evaluate.finalists", self.finalists, ">= 1")
        _require(self.finalist_episodes >= 0, "evaluate.finalist_episodes", self.finalist_episodes, ">= 0")
        _require(0.5 <= self.confidence < 1, "evaluate.confidence", self.confidence, "in [0.5, 1)")
        sound = self.certify is None or (self.certify > 0 and math.isfinite(self.certify))
        _require(sound, "evaluate.certify", self.certify, "> 0, for example 0.95")
        _require(self.max_episodes >= 50, "evaluate.max_episodes", self.max_episodes, ">= 50, the number before the first look")
        _require(self.num_envs >= 1, "evaluate.num_envs", self.num_envs, ">= 1")


@dataclass(frozen=True)
class CheckConfig:
    """A look at the teacher before the work: a few episodes, and more only if it looks no better than a random policy."""

    skip: bool = False
    """Do the work whatever the teacher is worth."""


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
        _require(all(self.teachers), "ensemble.teachers", self.teachers, "paths or names of agents")
        _require_choice(type(self), "ensemble", "combine", self.combine)
        if self.weights is None:
            return
        positive = all(weight > 0 and math.isfinite(weight) for weight in self.weights)
        _require(positive, "ensemble.weights", self.weights, "> 0 (leave a teacher out that should not count)")
        _require(len(self.teachers) > 0, "ensemble.weights", self.weights, "left out when there are no ensemble.teachers")
        number = 1 + len(self.teachers)
        _require(len(self.weights) == number, "ensemble.weights", self.weights, f"{number} numbers: of teacher, then of ensemble.teachers")
        _require(self.combine == "mean", "ensemble.weights", self.weights, "left out when ensemble.combine is 'value'")


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
    check: CheckConfig = field(default_factory=CheckConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    self_distill: SelfDistillConfig = field(default_factory=SelfDistillConfig)
    polish: PolishConfig = field(default_factory=PolishConfig)
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
