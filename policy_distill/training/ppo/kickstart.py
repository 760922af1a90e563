"""PPO fine-tuning of a distilled student, with an imitation loss towards its teacher whose weight decays to zero.

If a student is too small for its teacher's function, the return shows which errors matter; the imitation loss does not. The distilled start
and the imitation loss follow kickstarting (Schmitt et al. 2018, https://arxiv.org/abs/1803.03835) and proximal policy distillation
(Spigler 2024, https://arxiv.org/abs/2407.15134).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from policy_distill.config import PolishConfig, TrainingFault
from policy_distill.environments.border import own_random_state, seed_global_generators
from policy_distill.losses.objective import Objective
from policy_distill.policies.actions import ActionTargets
from policy_distill.policies.architecture import Architecture
from policy_distill.policies.encoders import Vectors
from policy_distill.policies.student import Student
from policy_distill.rollouts.ppo_rollouts import RolloutEnv
from policy_distill.support.trees import Tree
from policy_distill.teachers import Teacher
from policy_distill.training.ppo.autograd_ppo import AutogradPPO, RecurrentPPO
from policy_distill.training.ppo.ppo import PPO
from policy_distill.training.ppo.vector_ppo import VectorPPO
from policy_distill.training.stacks import stack_of
from policy_distill.training.stacks.analytic import StudentStack
from policy_distill.training.stacks.autograd import AutogradStack

CRITIC_SIZES, CRITIC_CHANNELS, CRITIC_MEMORY = (64, 64), 16, 64
"""The value network, which is not part of the student: its hidden sizes, and the minimum number of channels of its convolutions and units
of its memory, if the student has these."""
LEARNING_RATES = (1e-5, 1e-2)
"""Range of the adaptive learning rate."""
METRICS = ("imitation_loss", "approximate_kl_nats", "explained_variance")
"""Figures of an update."""
LAST_EPISODES = 100
"""Number of episodes in ``train_return_mean``."""


@dataclass(frozen=True)
class Snapshot:
    """The student after some PPO steps.

    Attributes:
        env_steps, gradient_steps: steps of this stage so far.
        student: moving average of the policies so far.
        critic: the value network's linear layers, on normalised observations; it predicts returns of scaled rewards. Empty if it has other
            layers.
        metrics: ``train_return_mean`` (of the sampled actions, once an episode ended), ``imitation_loss`` (while it has weight),
            ``approximate_kl_nats``, ``explained_variance``, ``learning_rate``, and ``std`` of continuous actions.
    """

    env_steps: int
    gradient_steps: int
    student: Student
    critic: list[nn.Linear]
    metrics: dict[str, float]


class Kickstart:
    """Training of a copy of a student on the environment's reward, from one snapshot to the next.

    Snapshots are taken at most ``config.snapshots`` times and at most once for each rollout, evenly over the steps after the critic's
    warm-up, the last time at the end.

    Args:
        student: the initial policy; it is not changed.
        teacher: target of the imitation loss, whose weight falls from ``config.teacher_weight`` to zero over the first half.
        objective: the imitation loss.
        config: PPO's settings; the steps are rounded up to whole rollouts.
        seed: seed of the value network's initial weights and of the order of the transitions.

    Attributes:
        env_steps: environment steps so far.
    """

    def __init__(self, student: Student, teacher: Teacher, objective: Objective, config: PolishConfig, *, seed: int) -> None:
        self._student, self._config = student, config
        self._warmup = config.critic_warmup * config.env_steps
        self.env_steps = self._snapshots = 0
        self._metrics: dict[str, float] = {}
        self._returns: deque[float] = deque(maxlen=LAST_EPISODES)
        self._acted: list[Tensor] = []
        """``[1, P]``, the policy of each rollout."""
        with own_random_state():
            self._ppo = ppo_on(student, teacher, objective, config, seed=seed)
        self._average = self._ppo.actor.flat.detach().clone()

    @property
    def over(self) -> bool:
        """Whether the last snapshot was taken."""
        return self.env_steps >= self._config.env_steps

    def begin(self, environments: RolloutEnv) -> None:
        """Reset the environments and repeat the rollouts so far, with the same policies, so that they are where the training is."""
        environments.reset()
        for weights in self._acted:
            environments.rollout(self._ppo.actor.member(0, weights))

    def next_snapshot(self, environments: RolloutEnv) -> Snapshot:
        """Train up to the next snapshot.

        Args:
            environments: the environments of the rollouts, after ``begin``.

        Raises:
            TrainingFault: if the student's weights are no longer finite.
        """
        with own_random_state():
            if self._snapshots:  # the settings of the next rollout were adjusted before the last snapshot
                self._roll_out(environments)
            while not self._adjust():
                self._roll_out(environments)
            return self._snapshot()

    def _adjust(self) -> bool:
        """Adjust everything that depends on the steps so far, and return whether a snapshot is due."""
        ppo, config, warmup = self._ppo, self._config, self._warmup
        if not self.over:
            if ppo.trains_actor and self._metrics:  # else the policy did not change
                ppo.learning_rate = _adapted(ppo.learning_rate, self._metrics["approximate_kl_nats"], config.target_kl)
            ppo.train_actor(self.env_steps >= warmup)
            ppo.penalty_weight = config.teacher_weight * max(0.0, 1 - 2 * self.env_steps / config.env_steps)
        self._average.lerp_(ppo.actor.flat, 1 - config.average_decay)
        progress = min(max(self.env_steps - warmup, 0.0) / (config.env_steps - warmup), 1.0)
        with torch.no_grad():  # the limit of the standard deviation
            ppo.actor.log_std.clamp_(max=self._student.log_std + progress * math.log(config.std_end))
        return self.over or self.env_steps >= warmup + (config.env_steps - warmup) * (self._snapshots + 1) / config.snapshots

    def _snapshot(self) -> Snapshot:
        ppo = self._ppo
        averaged = _averaged(ppo, self._average, f"within {self.env_steps:,} steps", self._config)
        reported = self._metrics | {"learning_rate": ppo.learning_rate}
        if not ppo.penalty_weight:
            del reported["imitation_loss"]
        if self._returns:
            reported["train_return_mean"] = float(np.mean(self._returns))
        if len(averaged.log_std):
            reported["std"] = float(averaged.log_std.exp().mean())
        self._snapshots += 1
        critic = ppo.critic.member(0).linears if isinstance(ppo, VectorPPO) else []
        return Snapshot(self.env_steps, ppo.gradient_steps, averaged, critic, reported)

    def _roll_out(self, environments: RolloutEnv) -> None:
        """Take a rollout and train on it."""
        ppo = self._ppo
        self._acted.append(ppo.actor.flat.detach().clone())
        ended = environments.rollout(ppo.actor.member(0))
        self.env_steps += environments.rewards.size
        self._returns.extend(episode.episode_return for episode in ended)
        batch, explained_variance = ppo.transitions(environments, ended)
        kl, penalty = ppo.update(batch)
        if not (math.isfinite(kl) and math.isfinite(penalty)):
            raise _diverged("loss", f"within {self.env_steps:,} steps", self._config)
        self._metrics = dict(zip(METRICS, (penalty, kl, explained_variance), strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """All that the training depends on, besides the arguments."""
        return {
            **self._ppo.state_dict(),
            "average": self._average,
            "acted": torch.cat(self._acted) if self._acted else self._average[:0],
            "returns": torch.tensor(list(self._returns), dtype=torch.float64),
            "steps": torch.tensor([self.env_steps, self._snapshots]),
            "metrics": torch.tensor([self._metrics.get(name, math.nan) for name in METRICS], dtype=torch.float64),
        }

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Continue from the state of a training with the same arguments; ``begin`` comes next."""
        self._ppo.load_state_dict(saved)
        self._average.copy_(saved["average"])
        self._acted = list(saved["acted"].split(1))
        self._returns.extend(saved["returns"].tolist())
        self.env_steps, self._snapshots = saved["steps"].tolist()
        self._metrics = dict(zip(METRICS, saved["metrics"].tolist(), strict=True)) if self._acted else {}


def ppo_on(student: Student, teacher: Teacher, objective: Objective, config: PolishConfig, *, seed: int) -> PPO[Any]:
    """PPO on a copy of ``student`` and a new value network, with the imitation loss as its penalty. Seeds the global generators."""
    value = dataclasses.replace(
        student.architecture,
        action_space=gym.spaces.Box(-np.inf, np.inf, (1,)),
        hidden_sizes=CRITIC_SIZES,
        action_units=None,
        bits=None,
        pruning=None,
        channels=tuple(max(channels, CRITIC_CHANNELS) for channels in student.architecture.channels),
        memory=student.architecture.memory and max(student.architecture.memory, CRITIC_MEMORY),
    )
    seed_global_generators(seed)
    on_vectors = isinstance(student.encoder, Vectors) and not value.memory
    networks = _vector_networks(student, value) if on_vectors else _autograd_networks(student, value, seed)
    actor = networks[0]

    def imitation_loss(outputs: Tensor, observations: Tree, labels: dict[str, Tensor]) -> Tensor:
        if labels:
            targets = ActionTargets({name: values for name, values in labels.items() if name != "actions"}, labels["actions"])
        else:
            with torch.no_grad():
                targets = teacher.targets(observations)
        stacked = ActionTargets({name: rows[None] for name, rows in targets.parameters.items()}, targets.actions[None])
        drawn = torch.rand(1, *outputs.shape, generator=ppo.draws).clamp(1e-7, 1 - 1e-7) if objective.kind == "nll" else None
        return objective.total(objective.terms(outputs[None], actor.log_std, stacked, draws=drawn))[0]

    kind: Any = VectorPPO if on_vectors else RecurrentPPO if value.memory else AutogradPPO
    ppo: PPO[Any] = kind(*networks, config, seed=seed, penalty=imitation_loss)
    return ppo


def _vector_networks(student: Student, value: Architecture) -> tuple[StudentStack, StudentStack]:
    """Actor and critic of vectors.

    The critic has the initial weights of a new PPO agent of Stable-Baselines3 with these layers and the global generator's seed; that agent
    initialises an actor too, so one is drawn here.
    """
    kinds = (student.architecture, value)
    actor, critic = (StudentStack(kind, generators=[torch.Generator()], mean=student.mean, scale=student.scale) for kind in kinds)
    hidden = [[nn.Linear(below, above) for below, above in itertools.pairwise(kind.widths[:-1])] for kind in kinds]
    heads = [nn.Linear(kind.widths[-2], kind.widths[-1]) for kind in kinds]
    for layers, gain in (*((layers, math.sqrt(2)) for layers in hidden), (heads[:1], 0.01), (heads[1:], 1.0)):
        for layer in layers:
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)
    _load(actor, student.linears)
    _load(critic, [*hidden[1], heads[1]])
    with torch.no_grad():
        actor.log_std.copy_(student.log_std)
    return actor, critic


def _autograd_networks(student: Student, value: Architecture, seed: int) -> tuple[AutogradStack, AutogradStack]:
    """Actor and critic of any encoder, each with its own and with the student's normalisation."""
    stacks = []
    for kind in (student.architecture, value):
        encoder = kind.new_encoder()
        encoder.load_state_dict(dict(student.encoder.named_buffers()), strict=False)
        stack = stack_of(kind, encoder, generators=[torch.Generator().manual_seed(seed)])
        assert isinstance(stack, AutogradStack)
        stacks.append(stack)
    actor, critic = stacks
    actor.adopt(student)
    return actor, critic


@torch.no_grad()
def _load(stack: StudentStack, layers: Sequence[nn.Linear]) -> None:
    for weights, layer in zip(stack.weights, layers, strict=True):
        weights[0, :-1].copy_(layer.weight.T)
        weights[0, -1].copy_(layer.bias)


def _adapted(learning_rate: float, kl: float, target_kl: float) -> float:
    """The learning rate, halved or doubled if the KL between successive policies is far from its target (rsl_rl, arXiv 2109.11978)."""
    if kl > 2 * target_kl:
        return min(learning_rate, max(learning_rate / 2, LEARNING_RATES[0]))
    if 0 < kl < target_kl / 2:
        return max(learning_rate, min(learning_rate * 2, LEARNING_RATES[1]))
    return learning_rate


def _averaged(ppo: PPO[Any], average: Tensor, when: str, config: PolishConfig) -> Student:
    """The student with averaged weights and the last policy's standard deviation."""
    student = ppo.actor.member(0, average)
    student.log_std.copy_(ppo.actor.log_std.detach()[0, 0])
    if name := student.not_finite():
        raise _diverged(name, when, config)
    return student


def _diverged(name: str, when: str, config: PolishConfig) -> TrainingFault:
    return TrainingFault(
        f"training by reward diverged: the student's {name} became NaN or infinite {when}; "
        f"lower polish.learning_rate (it is {config.learning_rate:g}), or turn polishing off with polish.below 0"
    )
