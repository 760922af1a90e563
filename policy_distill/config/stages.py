"""How the stages of a run go about it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from policy_distill.config.checks import require, require_choice


@dataclass(frozen=True)
class CollectConfig:
    """Which states the student learns from: who acts there, with how much exploration, and how long they are kept."""

    env_steps: int = 160_000
    """Environment steps over all rounds."""
    rounds: int = 8
    """How often the data grow, at most. In round 0 the teacher acts alone."""
    enough: float = 0.99
    """When three rounds in a row, all their students taken together, keep this much of the return on the validation seeds, the next round
    is the last, and the learning rate falls to zero in it. A large number: never."""
    num_envs: int = 16
    """Environments stepped side by side."""
    backend: Literal["auto", "gymnasium", "vector", "envpool"] = "auto"
    """What steps them: Gymnasium's environments one after the other, the environment's own vector entry point, or envpool (the extra of
    that name, which simulates anew what Gymnasium has). ``auto``: the vector entry point where there is one. Returns are measured in
    Gymnasium's environments whatever is said here."""
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
    """Train on the last N rounds alone. Left out: on everything collected (aggregation)."""
    extra_states: str | None = None
    """A ``disagreements.npz`` of compare_policies: states in which an earlier student parted from its teacher. The teacher labels them
    once, and they join the first round's data. They come from seeds of their own: what is trained on them may be chosen, measured and
    certified as any other student."""
    max_extra_states: int = 10_000
    """Most of these states that are used, each once, the costliest first."""
    storage: Literal["memory", "disk"] = "memory"
    """Where the labelled observations lie: in memory, or in files in the run's folder, which are gone when it ends; the student is the
    same."""

    def __post_init__(self) -> None:
        require(self.rounds >= 1, "collect.rounds", self.rounds, ">= 1")
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
        """The teacher's share of the actions in a round."""
        if self.schedule == "linear":
            return max(0.0, 1 - round_index * (1 - self.teacher_action_prob))
        return self.teacher_action_prob**round_index


@dataclass(frozen=True)
class MemberConfig:
    """What sets a member of the stack apart beside its first weights. Left out: as ``train`` and ``loss`` have it."""

    learning_rate: float | None = None
    """In place of ``train.learning_rate``."""
    temperature: float | None = None
    """In place of ``loss.temperature``; ``loss.temperature_end`` is all members'."""
    hard_weight: float | None = None
    """In place of ``loss.hard_weight``."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "temperature"):
            value = getattr(self, name)
            require(value is None or (value > 0 and math.isfinite(value)), f"train.vary: {name}", value, "> 0")
        require(self.hard_weight is None or 0 <= self.hard_weight <= 1, "train.vary: hard_weight", self.hard_weight, "in [0, 1]")


@dataclass(frozen=True)
class TrainConfig:
    """How the student is fitted to what was collected."""

    gradient_steps: int = 32_000
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
    vary: tuple[MemberConfig, ...] = ()
    """Settings of the members, in turn: a search at the price of one training, since the best member is kept. As
    ``'[{"learning_rate": 0.003}, {"temperature": 2}]'``. Where ``members`` is left out, there are as many of them."""
    holdout: float = 0.05
    """Share of the episodes that are never trained on; validation losses are taken on them."""

    def members_of(self, params: int) -> int:
        """How many students of ``params`` parameters are trained."""
        return self.members or len(self.vary) or (4 if params <= 4_000 else 2 if params <= 10_000 else 1)

    def __post_init__(self) -> None:
        require(self.gradient_steps >= 1, "train.gradient_steps", self.gradient_steps, ">= 1")
        require(self.batch_size >= 1, "train.batch_size", self.batch_size, ">= 1")
        require(self.members is None or self.members >= 1, "train.members", self.members, ">= 1")
        fits = self.members is None or len(self.vary) <= self.members
        require(fits, "train.vary", f"{len(self.vary)} settings", f"no more than train.members = {self.members}")
        require(self.learning_rate > 0 and math.isfinite(self.learning_rate), "train.learning_rate", self.learning_rate, "> 0")
        require(0 <= self.average_decay < 1, "train.average_decay", self.average_decay, "in [0, 1)")
        require(0 <= self.holdout <= 0.5, "train.holdout", self.holdout, "in [0, 0.5]")


@dataclass(frozen=True)
class SelfDistillConfig:
    """Students that teach students of the same architecture, after the rounds."""

    generations: int = 0
    """Greatest number of generations; the first that earns less than the one before it is refused and ends the series."""
    teacher_weight: float = 0.5
    """The original teacher's share of the targets; the rest is the last generation's."""
    ensemble: bool = False
    """All generations so far teach together, not only the last."""
    gradient_steps: int | None = None
    """Of each generation. Left out: ``train.gradient_steps``."""

    def __post_init__(self) -> None:
        require(self.generations >= 0, "self_distill.generations", self.generations, ">= 0")
        require(0 <= self.teacher_weight <= 1, "self_distill.teacher_weight", self.teacher_weight, "in [0, 1]")
        require(self.gradient_steps is None or self.gradient_steps >= 1, "self_distill.gradient_steps", self.gradient_steps, ">= 1")


@dataclass(frozen=True)
class PolishConfig:
    """Reward after imitation: PPO on the student that was kept."""

    below: float = 0.97
    """Polish unless the validation episodes show that the student keeps this much of the return; 0 never does, a large number always."""
    confidence: float = 0.8
    """Of that. It is no certificate, only whether another half of the work is likely to be for nothing."""
    further_episodes: int = 200
    """Most validation episodes that are added before that, where they are likely to show it: they cost less than polishing."""
    env_steps: int = 290_000
    """Environment steps, besides those of imitation; rounded up to whole rollouts."""
    enough: float = 1.0
    """Stop before that when three looks in a row keep this much of the return on the validation seeds."""
    patience: int = 3
    """Give up after this many hopeless looks in a row."""
    hopeless: float = 0.9
    """A look is hopeless that keeps less than this share of what the stage began with; 0: none is."""
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
    """Times that the student is measured on the validation seeds on the way, at most; the best one is kept, if it beats the start."""

    def __post_init__(self) -> None:
        require(self.below >= 0, "polish.below", self.below, ">= 0")
        require(0.5 <= self.confidence < 1, "polish.confidence", self.confidence, "in [0.5, 1)")
        require(self.enough > 0, "polish.enough", self.enough, "> 0")
        require(self.further_episodes >= 0, "polish.further_episodes", self.further_episodes, ">= 0")
        require(self.patience >= 1, "polish.patience", self.patience, ">= 1")
        require(0 <= self.hopeless <= 1, "polish.hopeless", self.hopeless, "in [0, 1]")
        require(self.env_steps >= 1, "polish.env_steps", self.env_steps, ">= 1 (polish.below 0 turns polishing off)")
        require(self.teacher_weight >= 0 and math.isfinite(self.teacher_weight), "polish.teacher_weight", self.teacher_weight, ">= 0")
        require(self.learning_rate > 0 and math.isfinite(self.learning_rate), "polish.learning_rate", self.learning_rate, "> 0")
        for name in ("num_envs", "epochs", "snapshots"):
            require(getattr(self, name) >= 1, f"polish.{name}", getattr(self, name), ">= 1")
        require(self.num_steps >= 2, "polish.num_steps", self.num_steps, ">= 2")
        require(self.batch_size >= 2, "polish.batch_size", self.batch_size, ">= 2")
        require(0 < self.std_end <= 1, "polish.std_end", self.std_end, "in (0, 1]")
        require(self.target_kl > 0, "polish.target_kl", self.target_kl, "> 0")
        require(self.clip_range > 0, "polish.clip_range", self.clip_range, "> 0")
        for name in ("critic_warmup", "average_decay"):
            require(0 <= getattr(self, name) < 1, f"polish.{name}", getattr(self, name), "in [0, 1)")
        for name in ("discount", "gae_lambda"):
            require(0 <= getattr(self, name) <= 1, f"polish.{name}", getattr(self, name), "in [0, 1]")


@dataclass(frozen=True)
class ValueConfig:
    """A value network in student.zip, for those who train the student on by reward: it learns what the teacher's own critic expects."""

    hidden_sizes: tuple[int, ...] | None = None
    """Width of each of its hidden layers. Left out: the network there is fresh, or the one that polishing trained (on scaled rewards)."""
    gradient_steps: int = 4_000
    """Of its training; batch size and learning rate are those of ``train``."""

    def __post_init__(self) -> None:
        require(all(size > 0 for size in self.hidden_sizes or ()), "value.hidden_sizes", self.hidden_sizes, "positive widths")
        require(self.gradient_steps >= 1, "value.gradient_steps", self.gradient_steps, ">= 1")


@dataclass(frozen=True)
class EvaluateConfig:
    """How the return is measured: one seed an episode, the same seeds for teacher, student and random policy."""

    episodes: int = 100
    """Fresh episodes behind the final figure."""
    validation_episodes: int = 4
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
    reuse_returns: bool = True
    """Read what teacher and random policy earned in earlier jobs, on the same seeds and under the same circumstances, instead of playing
    it again, and keep what they earn in this one. A certificate's episodes are always played."""

    def __post_init__(self) -> None:
        require(self.episodes >= 2, "evaluate.episodes", self.episodes, ">= 2")
        require(self.validation_episodes >= 1, "evaluate.validation_episodes", self.validation_episodes, ">= 1")
        require(self.finalists >= 1, "evaluate.finalists", self.finalists, ">= 1")
        require(self.finalist_episodes >= 0, "evaluate.finalist_episodes", self.finalist_episodes, ">= 0")
        require(0.5 <= self.confidence < 1, "evaluate.confidence", self.confidence, "in [0.5, 1)")
        sound = self.certify is None or (self.certify > 0 and math.isfinite(self.certify))
        require(sound, "evaluate.certify", self.certify, "> 0, for example 0.95")
        require(self.max_episodes >= 50, "evaluate.max_episodes", self.max_episodes, ">= 50, the number before the first look")
        require(self.num_envs >= 1, "evaluate.num_envs", self.num_envs, ">= 1")
