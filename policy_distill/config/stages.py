"""Settings of the stages of a run: collecting, training, self-distillation, polishing, the value network and evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from policy_distill.config.checks import require, require_choice

MAX_RECORDS, MAX_DRAWN = 2000, 100_000
"""Maximum numbers of rounds (generations, snapshots) and of final episodes: a report that draws more would take minutes."""
MAX_EPISODES = 1_000_000
"""Maximum number of episodes for one purpose: its seeds end where those of the next one begin."""


@dataclass(frozen=True)
class CollectConfig:
    """Collection of training states: the acting policy, exploration, and how long data are kept."""

    env_steps: int = 160_000
    """Total environment steps of all rounds."""
    rounds: int = 8
    """Maximum number of rounds of collecting and training. In round 0 only the teacher acts."""
    enough: float = 0.99
    """Early stopping: if the mean validation retention over the students of three consecutive rounds reaches this, the next round is the
    last, and the learning rate falls to zero in it. A large number disables it."""
    num_envs: int = 16
    """Number of parallel environments."""
    backend: Literal["auto", "gymnasium", "vector", "envpool"] = "auto"
    """Simulation backend for collecting: Gymnasium's environments one after the other, the environment's own vector entry point, or
    envpool (an extra with its own implementation of the environments). ``auto``: the vector entry point if there is one. Returns are
    always measured in Gymnasium's environments."""
    teacher_action_prob: float = 0.5
    """DAgger's beta: the probability that the teacher acts in a step of round 1. 1: the teacher acts in all rounds (behavioural cloning);
    0: the student acts from round 1 on; between them, the probability decays over the rounds."""
    schedule: Literal["exponential", "linear"] = "exponential"
    """Decay of ``teacher_action_prob`` in round r: ``teacher_action_prob**r``, or linear to zero."""
    epsilon: float = 0.0
    """Probability of a uniformly random action in place of the policy's, for exploration."""
    action_noise: float = 0.0
    """Standard deviation of Gaussian noise on continuous actions, in units of half the action range."""
    window: int | None = None
    """Train only on the last N rounds. Left out: on all collected data (aggregation)."""
    extra_states: str | None = None
    """A ``disagreements.npz`` of compare_policies: states in which an earlier student disagreed with its teacher. The teacher labels them
    once, and they are added to the first round's data. Their seeds are disjoint from those of validation, evaluation and certificates."""
    max_extra_states: int = 10_000
    """Maximum number of these states to use, the costliest first."""
    storage: Literal["memory", "disk"] = "memory"
    """Storage of the dataset: in memory, or in the run's checkpoint, which is removed at the end. The student is the same."""

    def __post_init__(self) -> None:
        require(1 <= self.rounds <= MAX_RECORDS, "collect.rounds", self.rounds, f">= 1 and <= {MAX_RECORDS:,}")
        require(self.num_envs >= 1, "collect.num_envs", self.num_envs, ">= 1")
        require(
            self.env_steps >= self.rounds * self.num_envs,
            "collect.env_steps",
            self.env_steps,
            f"at least rounds * num_envs = {self.rounds * self.num_envs}",
        )
        for name in ("teacher_action_prob", "epsilon"):
            require(0 <= getattr(self, name) <= 1, f"collect.{name}", getattr(self, name), "in [0, 1]")
        require_choice(type(self), "collect", "schedule", self.schedule)
        require_choice(type(self), "collect", "backend", self.backend)
        require(self.enough > 0, "collect.enough", self.enough, "> 0")
        require_choice(type(self), "collect", "storage", self.storage)
        require(self.action_noise >= 0 and math.isfinite(self.action_noise), "collect.action_noise", self.action_noise, ">= 0")
        require(self.window is None or self.window >= 1, "collect.window", self.window, ">= 1")
        require(self.extra_states != "", "collect.extra_states", self.extra_states, "the path of a disagreements.npz, or left out")
        require(self.max_extra_states >= 1, "collect.max_extra_states", self.max_extra_states, ">= 1")

    def teacher_action_prob_in(self, round_index: int) -> float:
        """Probability that the teacher acts in a step of this round."""
        if self.schedule == "linear":
            return max(0.0, 1 - round_index * (1 - self.teacher_action_prob))
        return self.teacher_action_prob**round_index


@dataclass(frozen=True)
class MemberConfig:
    """Settings of one member of the stack. Those left out are taken from ``train`` and ``loss``."""

    learning_rate: float | None = None
    """Replaces ``train.learning_rate``."""
    temperature: float | None = None
    """Replaces ``loss.temperature``; ``loss.temperature_end`` is shared by all members."""
    hard_weight: float | None = None
    """Replaces ``loss.hard_weight``."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "temperature"):
            value = getattr(self, name)
            require(value is None or (value > 0 and math.isfinite(value)), f"train.vary: {name}", value, "> 0")
        require(self.hard_weight is None or 0 <= self.hard_weight <= 1, "train.vary: hard_weight", self.hard_weight, "in [0, 1]")


@dataclass(frozen=True)
class TrainConfig:
    """Supervised training of the student on the collected data."""

    gradient_steps: int | None = None
    """Total gradient steps of all rounds. Left out: 32,000; 96,000 for students of small images (less than 12 pixels wide or high) without
    a memory, whose loss goes on falling (docs/results.md)."""
    batch_size: int | None = None
    """Transitions per gradient step. Left out: 512; 128 with convolutions and no memory, since a step's time is then proportional to it
    and the number of steps matters more."""
    optimizer: Literal["adam", "muon"] | None = None
    """``adam``, or ``muon`` for weight matrices and Adam for the rest. Left out: Adam; Muon with convolutions and no memory, whose loss
    it lowers further in as many steps (docs/results.md)."""
    learning_rate: float = 1e-2
    """Initial learning rate; it decays to zero along a half cosine over the run."""
    average_decay: float = 0.999
    """Decay per step of the exponential moving average of the weights, which is the student that acts and is exported; 0: no average."""
    members: int | None = None
    """Number of students trained together from different initial weights; the best is kept. Left out: 4 up to 4,000 parameters, 2 up to
    10,000, else 1, because smaller students vary more between initialisations and cost less; 1 with convolutions, which are trained
    one member after the other."""
    vary: tuple[MemberConfig, ...] = ()
    """Settings assigned to the members in turn, such as ``'[{"learning_rate": 0.003}, {"temperature": 2}]'``: a search at the cost of one
    training, since the best member is kept. If ``members`` is left out, there is one member per entry."""
    random_shift: int = 0
    """Maximum number of pixels by which the images of a batch are shifted at random in both directions, an augmentation; the labels stay.
    On grids of 10x10 pixels, where one pixel matters, it costs return."""
    holdout: float = 0.05
    """Share of the episodes held out from training, for validation losses."""
    sequence_length: int = 64
    """Consecutive steps of an episode through which the gradient of a student with a memory goes back (truncated backpropagation). A
    batch holds ``batch_size / sequence_length`` such sequences."""
    burn_in: int = 64
    """Steps before a sequence that the student sees first, without a gradient. If they are few, the memory leaves the states that it was
    trained on later in an episode."""

    def members_of(self, params: int, *, has_convolutions: bool = False) -> int:
        """Number of members for students of ``params`` parameters; members with convolutions are trained one after the other."""
        usual = 1 if has_convolutions else 4 if params <= 4_000 else 2 if params <= 10_000 else 1
        return self.members or len(self.vary) or usual

    def batch_size_of(self, *, single_images: bool) -> int:
        """Transitions per gradient step of students that read single images, or of all others."""
        return self.batch_size or (128 if single_images else 512)

    def gradient_steps_of(self, *, small_images: bool) -> int:
        """Total gradient steps of students of small single images, or of all others."""
        return self.gradient_steps or (96_000 if small_images else 32_000)

    def optimizer_of(self, *, single_images: bool) -> str:
        """Optimiser of students that read single images, or of all others."""
        return self.optimizer or ("muon" if single_images else "adam")

    def __post_init__(self) -> None:
        require(self.optimizer is None or self.optimizer in ("adam", "muon"), "train.optimizer", self.optimizer, "adam or muon")
        require(self.gradient_steps is None or self.gradient_steps >= 1, "train.gradient_steps", self.gradient_steps, ">= 1")
        require(self.batch_size is None or self.batch_size >= 1, "train.batch_size", self.batch_size, ">= 1")
        require(self.members is None or self.members >= 1, "train.members", self.members, ">= 1")
        fits = self.members is None or len(self.vary) <= self.members
        require(fits, "train.vary", f"{len(self.vary)} settings", f"no more than train.members = {self.members}")
        require(self.learning_rate > 0 and math.isfinite(self.learning_rate), "train.learning_rate", self.learning_rate, "> 0")
        require(0 <= self.average_decay < 1, "train.average_decay", self.average_decay, "in [0, 1)")
        require(self.random_shift >= 0, "train.random_shift", self.random_shift, ">= 0 pixels")
        require(0 <= self.holdout <= 0.5, "train.holdout", self.holdout, "in [0, 0.5]")
        require(self.sequence_length >= 1, "train.sequence_length", self.sequence_length, ">= 1")
        require(self.burn_in >= 0, "train.burn_in", self.burn_in, ">= 0")


@dataclass(frozen=True)
class SelfDistillConfig:
    """Self-distillation after the rounds: each student teaches the next one, of the same architecture."""

    generations: int = 0
    """Maximum number of generations; the first one with a lower return than its predecessor is rejected and ends the series."""
    teacher_weight: float = 0.5
    """Weight of the original teacher in the targets; the rest is the previous generation's."""
    ensemble: bool = False
    """Targets are the mean over all previous generations, not only the last one."""
    gradient_steps: int | None = None
    """Gradient steps of each generation. Left out: ``train.gradient_steps``."""

    def __post_init__(self) -> None:
        require(0 <= self.generations <= MAX_RECORDS, "self_distill.generations", self.generations, f">= 0 and <= {MAX_RECORDS:,}")
        require(0 <= self.teacher_weight <= 1, "self_distill.teacher_weight", self.teacher_weight, "in [0, 1]")
        require(self.gradient_steps is None or self.gradient_steps >= 1, "self_distill.gradient_steps", self.gradient_steps, ">= 1")


@dataclass(frozen=True)
class PolishConfig:
    """Fine-tuning by reward after imitation: PPO, from the best student's weights."""

    below: float | None = None
    """Polish unless further validation episodes show at least this retention; 0: never polish; a large number: always. Left out: 0.97,
    and 0 for students with convolutions, which take many minutes to polish and did not improve (docs/results.md)."""
    confidence: float = 0.8
    """Confidence of that test. It is lower than a certificate's, because it only decides whether polishing is worth its cost."""
    further_episodes: int = 200
    """Maximum number of validation episodes for that test: as many as are likely to pass it, and at least as many as a finalist plays. If
    more are needed, none are played, and the student is polished. The episodes that chose the student decide nothing, because they
    overestimate it, unless this is 0."""
    env_steps: int = 600_000
    """Environment steps of polishing, in addition to those of imitation; rounded up to whole rollouts."""
    enough: float = 1.0
    """Stop early if three consecutive evaluations reach this validation retention."""
    patience: int = 3
    """Stop after this many consecutive hopeless evaluations, if their episodes together show it (at 90 % confidence)."""
    hopeless: float = 0.9
    """An evaluation is hopeless if its retention is below this fraction of the initial student's, on the same episodes and on others; 0:
    none is."""
    teacher_weight: float = 0.0
    """Weight of the imitation loss on actions (without hints and relations) beside PPO's loss; it decays linearly to zero over the first
    half of the steps."""
    critic_warmup: float = 0.1
    """Share of the steps in which only the value network is trained, because advantages from an untrained one would damage the policy."""
    learning_rate: float = 2e-3
    """Initial learning rate of Adam."""
    target_kl: float = 0.03
    """Target KL of an update, in nats. The learning rate is halved after an update with more than twice this KL, and doubled after one
    with less than half of it: the right step size depends on the policy's standard deviation, which varies between students."""
    num_envs: int = 16
    """Number of parallel environments."""
    num_steps: int = 256
    """Steps of each environment per rollout."""
    epochs: int = 20
    """Epochs over the rollout in each update."""
    batch_size: int = 512
    """Transitions per gradient step."""
    sequence_length: int = 32
    """Maximum number of steps in a sequence, for students with a memory; a gradient step has about ``batch_size`` transitions."""
    clip_range: float = 0.3
    """PPO's clipping range of the probability ratio."""
    discount: float = 0.99
    """Discount factor gamma."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation."""
    std_end: float = 0.3
    """Upper bound of the standard deviation of continuous actions at the end, as a fraction of its initial value; the bound falls
    log-linearly. The exported policy is deterministic, so its return must not depend on the noise."""
    average_decay: float = 0.9
    """Decay per update of the exponential moving average of the weights, which is the student; 0: no average."""
    snapshots: int = 10
    """Maximum number of evaluations on the validation seeds; the best student is kept if it beats the initial one."""

    def below_of(self, *, has_convolutions: bool) -> float:
        """``below`` of students with convolutions, or of all others."""
        usual = 0.0 if has_convolutions else 0.97
        return usual if self.below is None else self.below

    def __post_init__(self) -> None:
        require(self.below is None or self.below >= 0, "polish.below", self.below, ">= 0")
        require(0.5 <= self.confidence < 1, "polish.confidence", self.confidence, "in [0.5, 1)")
        require(self.enough > 0, "polish.enough", self.enough, "> 0")
        require(self.further_episodes >= 0, "polish.further_episodes", self.further_episodes, ">= 0")
        require(self.patience >= 1, "polish.patience", self.patience, ">= 1")
        require(0 <= self.hopeless <= 1, "polish.hopeless", self.hopeless, "in [0, 1]")
        require(self.env_steps >= 1, "polish.env_steps", self.env_steps, ">= 1 (polish.below 0 turns polishing off)")
        require(self.teacher_weight >= 0 and math.isfinite(self.teacher_weight), "polish.teacher_weight", self.teacher_weight, ">= 0")
        require(self.learning_rate > 0 and math.isfinite(self.learning_rate), "polish.learning_rate", self.learning_rate, "> 0")
        require(self.snapshots <= MAX_RECORDS, "polish.snapshots", self.snapshots, f"<= {MAX_RECORDS:,}")
        for name in ("num_envs", "epochs", "snapshots"):
            require(getattr(self, name) >= 1, f"polish.{name}", getattr(self, name), ">= 1")
        require(self.num_steps >= 2, "polish.num_steps", self.num_steps, ">= 2")
        for name in ("batch_size", "sequence_length"):
            require(getattr(self, name) >= 2, f"polish.{name}", getattr(self, name), ">= 2")
        require(0 < self.std_end <= 1, "polish.std_end", self.std_end, "in (0, 1]")
        require(self.target_kl > 0, "polish.target_kl", self.target_kl, "> 0")
        require(self.clip_range > 0, "polish.clip_range", self.clip_range, "> 0")
        for name in ("critic_warmup", "average_decay"):
            require(0 <= getattr(self, name) < 1, f"polish.{name}", getattr(self, name), "in [0, 1)")
        for name in ("discount", "gae_lambda"):
            require(0 <= getattr(self, name) <= 1, f"polish.{name}", getattr(self, name), "in [0, 1]")


@dataclass(frozen=True)
class ValueConfig:
    """A value network in student.zip, for training the student further by reward: it regresses on the teacher's critic."""

    hidden_sizes: tuple[int, ...] | None = None
    """Width of each of its hidden layers. Left out: student.zip holds an untrained value network, or polishing's (of scaled rewards)."""
    gradient_steps: int = 4_000
    """Gradient steps of its training; batch size and learning rate are those of ``train``."""

    def __post_init__(self) -> None:
        require(all(size > 0 for size in self.hidden_sizes or ()), "value.hidden_sizes", self.hidden_sizes, "positive widths")
        require(self.gradient_steps >= 1, "value.gradient_steps", self.gradient_steps, ">= 1")


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation of the return: one seed per episode, the same seeds for teacher, student and random policy."""

    episodes: int = 100
    """Number of episodes of the final evaluation, on fresh seeds."""
    validation_episodes: int = 4
    """Number of validation episodes of each student after each round, on separate seeds."""
    finalists: int = 12
    """Number of students with the best validation returns that play further episodes before one is chosen, because the maximum of noisy
    means is biased upwards. The worse half is dropped repeatedly until two are left."""
    finalist_episodes: int | None = None
    """Number of further validation episodes of the last two finalists, on separate seeds. Left out: 50; 200 for students of small images
    without a memory, whose rounds differ more (docs/results.md)."""
    confidence: float = 0.95
    """Confidence level of the retention's interval and of a certificate."""
    certify: float | None = None
    """Retention to certify: play episodes on separate seeds until a test shows that the student keeps this share of the return, or that it
    does not, and write certificate.json. Left out: no certificate."""
    max_episodes: int = 2_000
    """Maximum number of episodes of a certificate; if the test is still open then, the verdict is "undecided"."""
    num_envs: int = 16
    """Number of parallel episodes; the returns do not depend on it."""
    reuse_returns: bool = True
    """Cache the returns of teacher and random policy between jobs, and reuse them where seeds and circumstances are the same. A
    certificate's episodes are always played."""

    def finalist_episodes_of(self, *, small_images: bool) -> int:
        """Further validation episodes of the last two finalists: students of small single images, or all others."""
        return (200 if small_images else 50) if self.finalist_episodes is None else self.finalist_episodes

    def __post_init__(self) -> None:
        require(2 <= self.episodes <= MAX_DRAWN, "evaluate.episodes", self.episodes, f">= 2 and <= {MAX_DRAWN:,}")
        require(self.validation_episodes >= 1, "evaluate.validation_episodes", self.validation_episodes, ">= 1")
        require(self.finalists >= 1, "evaluate.finalists", self.finalists, ">= 1")
        require((self.finalist_episodes or 0) >= 0, "evaluate.finalist_episodes", self.finalist_episodes, ">= 0")
        require(0.5 <= self.confidence < 1, "evaluate.confidence", self.confidence, "in [0.5, 1)")
        sound = self.certify is None or (self.certify > 0 and math.isfinite(self.certify))
        require(sound, "evaluate.certify", self.certify, "> 0, for example 0.95")
        allowed = f">= 50, the number of episodes before the first look, and <= {MAX_EPISODES:,}"
        require(50 <= self.max_episodes <= MAX_EPISODES, "evaluate.max_episodes", self.max_episodes, allowed)
        require(self.num_envs >= 1, "evaluate.num_envs", self.num_envs, ">= 1")
