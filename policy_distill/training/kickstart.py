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
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from policy_distill.config import PolishConfig, TrainingFault
from policy_distill.environments.border import own_random_state, seed_global_generators
from policy_distill.losses.objective import Objective
from policy_distill.policies.actions import ActionTargets
from policy_distill.policies.student import Student
from policy_distill.rollouts.ppo_rollouts import RolloutEnv
from policy_distill.support.trees import Tree
from policy_distill.teachers import Teacher
from policy_distill.training.ppo import PPO
from policy_distill.training.stack import StudentStack

CRITIC_SIZES = (64, 64)
"""Hidden sizes of the value network, which is not part of the student."""
LEARNING_RATES = (1e-5, 1e-2)
"""Range of the adaptive learning rate."""
LAST_EPISODES = 100
"""Number of episodes in ``train_return_mean``."""


@dataclass(frozen=True)
class Snapshot:
    """The student after some PPO steps.

    Attributes:
        env_steps, gradient_steps: steps of this stage so far.
        student: moving average of the policies so far.
        critic: the value network's linear layers, on normalised observations; it predicts returns of scaled rewards.
        metrics: ``train_return_mean`` (of the sampled actions, once an episode ended), ``imitation_loss`` (while it has weight),
            ``approximate_kl_nats``, ``explained_variance``, ``learning_rate``, and ``std`` of continuous actions.
    """

    env_steps: int
    gradient_steps: int
    student: Student
    critic: list[nn.Linear]
    metrics: dict[str, float]


def kickstart(
    student: Student,
    teacher: Teacher,
    environments: RolloutEnv,
    objective: Objective,
    config: PolishConfig,
    *,
    seed: int,
    on_snapshot: Callable[[Snapshot], bool],
) -> None:
    """Train a copy of ``student`` on the environment's reward for ``config.env_steps`` steps.

    Args:
        student: the initial policy; it is not changed.
        teacher: target of the imitation loss, whose weight falls from ``config.teacher_weight`` to zero over the first half.
        environments: the environments of the rollouts; they are reset first, and not closed.
        objective: the imitation loss.
        config: PPO's settings; the steps are rounded up to whole rollouts.
        seed: seed of the value network's initial weights and of the order of the transitions.
        on_snapshot: called at most ``config.snapshots`` times and at most once for each rollout, evenly over the steps after the critic's
            warm-up, the last time at the end; if it returns True, the training ends.

    Raises:
        TrainingFault: if the student's weights are no longer finite.
    """
    warmup = config.critic_warmup * config.env_steps
    env_steps = snapshots = 0
    metrics: dict[str, float] = {}
    returns: deque[float] = deque(maxlen=LAST_EPISODES)
    with own_random_state():
        ppo = ppo_on(student, teacher, objective, config, seed=seed)
        average = ppo.actor.flat.clone()
        environments.reset()
        while True:
            over = env_steps >= config.env_steps
            if not over:
                if ppo.trains_actor and metrics:  # else the policy did not change
                    ppo.learning_rate = _adapted(ppo.learning_rate, metrics["approximate_kl_nats"], config.target_kl)
                ppo.train_actor(env_steps >= warmup)
                ppo.penalty_weight = config.teacher_weight * max(0.0, 1 - 2 * env_steps / config.env_steps)
            average.lerp_(ppo.actor.flat, 1 - config.average_decay)
            progress = min(max(env_steps - warmup, 0.0) / (config.env_steps - warmup), 1.0)
            with torch.no_grad():  # the limit of the standard deviation
                ppo.actor.log_std.clamp_(max=student.log_std + progress * math.log(config.std_end))
            if over or env_steps >= warmup + (config.env_steps - warmup) * (snapshots + 1) / config.snapshots:
                averaged = _averaged(ppo, average, f"within {env_steps:,} steps", config)
                reported = metrics | {"learning_rate": ppo.learning_rate}
                if not ppo.penalty_weight:
                    del reported["imitation_loss"]
                if returns:
                    reported["train_return_mean"] = float(np.mean(returns))
                if len(averaged.log_std):
                    reported["std"] = float(averaged.log_std.exp().mean())
                snapshots += 1
                if on_snapshot(Snapshot(env_steps, ppo.gradient_steps, averaged, ppo.critic.member(0).linears, reported)) or over:
                    return
            ended = environments.rollout(ppo.actor.member(0))
            env_steps += environments.rewards.size
            returns.extend(episode.episode_return for episode in ended)
            batch, explained_variance = ppo.transitions(environments, ended)
            kl, penalty = ppo.update(batch)
            if not (math.isfinite(kl) and math.isfinite(penalty)):
                raise _diverged("loss", f"within {env_steps:,} steps", config)
            metrics = {"imitation_loss": penalty, "approximate_kl_nats": kl, "explained_variance": explained_variance}


def ppo_on(student: Student, teacher: Teacher, objective: Objective, config: PolishConfig, *, seed: int) -> PPO:
    """PPO on a copy of ``student`` and a new value network, with the imitation loss as its penalty.

    Seeds the global generators. The value network has the initial weights of a new PPO agent of Stable-Baselines3 with these layers and
    this seed; that agent initialises an actor too, so one is drawn here.
    """
    values = gym.spaces.Box(-np.inf, np.inf, (1,))
    value = dataclasses.replace(student.architecture, action_space=values, hidden_sizes=CRITIC_SIZES, action_units=None, bits=None)
    kinds = (student.architecture, value)
    actor, critic = (StudentStack(kind, generators=[torch.Generator()], mean=student.mean, scale=student.scale) for kind in kinds)
    seed_global_generators(seed)
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
    draws = torch.Generator().manual_seed(seed)

    def imitation_loss(outputs: Tensor, observations: Tree, labels: dict[str, Tensor]) -> Tensor:
        if labels:
            targets = ActionTargets({name: values for name, values in labels.items() if name != "actions"}, labels["actions"])
        else:
            with torch.no_grad():
                targets = teacher.targets(observations)
        stacked = ActionTargets({name: rows[None] for name, rows in targets.parameters.items()}, targets.actions[None])
        drawn = torch.rand(1, *outputs.shape, generator=draws).clamp(1e-7, 1 - 1e-7) if objective.kind == "nll" else None
        return objective.total(objective.terms(outputs[None], actor.log_std, stacked, draws=drawn))[0]

    return PPO(actor, critic, config, seed=seed, penalty=imitation_loss)


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


def _averaged(ppo: PPO, average: Tensor, when: str, config: PolishConfig) -> Student:
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
