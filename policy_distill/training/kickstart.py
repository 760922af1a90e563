"""Where imitation falls short, reward goes on: Stable-Baselines3's own PPO on the student, held to its teacher by a term that fades.

A student with too little room for its teacher's function cannot be told by imitation which errors matter; the return can. The start
from a distilled student and the pull towards the teacher follow kickstarting (Schmitt et al. 2018, https://arxiv.org/abs/1803.03835)
and proximal policy distillation (Spigler 2024, https://arxiv.org/abs/2407.15134).
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn

from policy_distill.config import PolishConfig, TrainingFault
from policy_distill.environments.border import own_random_state
from policy_distill.environments.specs import EnvironmentSpec, make
from policy_distill.losses.objective import Objective
from policy_distill.policies.actions import ActionTargets
from policy_distill.policies.student import ACTIVATIONS, Architecture, Student
from policy_distill.rollouts.ppo_rollouts import RolloutEnv
from policy_distill.teachers import Teacher
from policy_distill.training.ppo import LeanPolicy, LeanPPO
from policy_distill.training.stack import StudentStack

CRITIC_SIZES = (64, 64)
"""The value network's hidden layers. It is not shipped with the student, so its size costs nothing there."""


LEARNING_RATES = (1e-5, 1e-2)
"""Adapting does not leave this range."""


@dataclass(frozen=True)
class Snapshot:
    """The student as it is after some PPO steps.

    Attributes:
        env_steps, gradient_steps: of this stage so far.
        student: the moving average of the policies so far.
        critic: the value network's linear layers, on normalised observations; it predicts scaled rewards.
        metrics: ``train_return_mean`` (of the sampled actions), ``imitation_loss``, ``approximate_kl_nats``, ``explained_variance``,
            ``learning_rate`` and ``std``, as far as they are known.
    """

    env_steps: int
    gradient_steps: int
    student: Student
    critic: list[nn.Linear]
    metrics: dict[str, float]


def kickstart(
    student: Student,
    teacher: Teacher,
    spec: EnvironmentSpec,
    objective: Objective,
    config: PolishConfig,
    *,
    seed: int,
    on_snapshot: Callable[[Snapshot], bool],
    workers: int = 0,
    step_timeout: float | None = None,
) -> None:
    """Train a copy of ``student`` on the environment's reward for ``config.env_steps`` steps.

    Args:
        student: where to start; it is not changed.
        teacher: held to with a weight that falls from ``config.teacher_weight`` to zero over the first half.
        spec: the environment.
        objective: the imitation loss of this teacher and student.
        config: PPO's settings; the steps are rounded up to whole rollouts.
        seed: of everything random here.
        on_snapshot: is called at most ``config.snapshots`` times (there are no more than rollouts), evenly spread over the
            steps after the critic's warm-up, the end included; where it says True the training ends.
        workers: processes that step environments; 0: they are stepped here. The student does not depend on it.
        step_timeout: seconds that a step or a reset of an environment may take; None or 0: any.
    """
    with own_random_state(), warnings.catch_warnings():
        model = _build(student, teacher, spec, objective, config, seed, workers, step_timeout)
        try:
            schedule = _Schedule(student, config, on_snapshot)
            model.lr_schedule = lambda _: schedule.learning_rate
            model.learn(config.env_steps, callback=schedule)
        finally:
            model.env.close()  # type: ignore[union-attr]


class _Normalize(BaseFeaturesExtractor):
    """The student's own normalisation of what Stable-Baselines3 has encoded (one-hot where discrete)."""

    def __init__(self, observation_space: gym.Space, mean: Tensor, scale: Tensor) -> None:
        super().__init__(observation_space, len(mean))
        self.register_buffer("mean", mean.clone())
        self.register_buffer("scale", scale.clone())

    def forward(self, observations: Tensor) -> Tensor:
        return (observations.flatten(1) - self.mean) / self.scale  # type: ignore[operator]


def _build(
    student: Student,
    teacher: Teacher,
    spec: EnvironmentSpec,
    objective: Objective,
    config: PolishConfig,
    seed: int,
    workers: int = 0,
    step_timeout: float | None = None,
) -> LeanPPO:
    """PPO around the student's weights. Continuous actions are in box units, so that one learning rate suits every environment."""
    made = [functools.partial(make, spec)] * config.num_envs
    environments = RolloutEnv(made, config.num_steps, seed=seed, workers=workers, step_timeout=step_timeout)
    env = VecNormalize(environments, norm_obs=False, gamma=config.discount)
    warnings.filterwarnings("ignore", "You have specified a mini-batch size")  # the last minibatch of an epoch may be smaller
    architecture = student.architecture
    model = LeanPPO(
        LeanPolicy,
        env,
        learning_rate=config.learning_rate,
        n_steps=config.num_steps,
        batch_size=config.batch_size,
        n_epochs=config.epochs,
        gamma=config.discount,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip_range,
        seed=seed,
        device="cpu",
        policy_kwargs={
            "net_arch": {"pi": list(architecture.hidden_sizes), "vf": list(CRITIC_SIZES)},
            "activation_fn": ACTIVATIONS[architecture.activation],
            "features_extractor_class": _Normalize,
            "features_extractor_kwargs": {"mean": student.mean, "scale": student.scale},
            "normalize_images": False,
        },
    )
    model.set_logger(Logger(None, []))
    policy = model.policy
    with torch.no_grad():
        for layer, source in zip(actor_layers(policy), student.linears, strict=True):
            layer.weight.copy_(source.weight)
            layer.bias.copy_(source.bias)
        if student.family.spread:
            policy.log_std.copy_(student.log_std)
    value = Architecture(student.observation_space, gym.spaces.Box(-np.inf, np.inf, (1,)), CRITIC_SIZES, architecture.activation)
    actor, critic = (
        StudentStack(kind, generators=[torch.Generator()], mean=student.mean, scale=student.scale) for kind in (architecture, value)
    )
    policy.attach(actor, critic)

    def imitation_loss(outputs: Tensor, observations: Tensor) -> Tensor:
        raw = observations.reshape(len(observations), *student.observation_space.shape)  # type: ignore[misc]
        with torch.no_grad():
            targets = teacher.targets(raw)
        stacked = ActionTargets({name: value[None] for name, value in targets.parameters.items()}, targets.actions[None])
        draws = torch.rand_like(outputs[None]).clamp(1e-7, 1 - 1e-7) if objective.kind == "nll" else None
        return objective.total(objective.terms(outputs[None], policy.actor.log_std, stacked, draws=draws))[0]

    model.penalty = imitation_loss
    return model


def actor_layers(policy: Any) -> list[nn.Linear]:
    """The acting network's linear layers."""
    return [*_linears(policy.mlp_extractor.policy_net), policy.action_net]


def critic_layers(policy: Any) -> list[nn.Linear]:
    """The value network's linear layers."""
    return [*_linears(policy.mlp_extractor.value_net), policy.value_net]


def _linears(network: Any) -> list[nn.Linear]:
    return [layer for layer in network if isinstance(layer, nn.Linear)]


class _Schedule(BaseCallback):
    """What changes from rollout to rollout: the critic's head start, the teacher's weight, the average of the weights, the snapshots."""

    model: LeanPPO

    def __init__(self, student: Student, config: PolishConfig, on_snapshot: Callable[[Snapshot], bool]) -> None:
        super().__init__()
        self._student, self._config, self._on_snapshot = student, config, on_snapshot
        self._average: Tensor | None = None
        self._taken = 0
        self._enough = False
        self.learning_rate = config.learning_rate

    def _on_rollout_start(self) -> None:
        policy = self.model.policy
        if policy.trains_actor:  # else the policy stood still
            self._adapt_learning_rate()
        policy.train_actor(self.model.num_timesteps >= self._warmup)
        self._average_with(policy.actor.flat)
        self._narrow(policy)
        remaining = max(0.0, 1 - 2 * self.model.num_timesteps / self._config.env_steps)
        self.model.penalty_weight = self._config.teacher_weight * remaining
        due = self._warmup + (self._config.env_steps - self._warmup) * (self._taken + 1) / self._config.snapshots
        if self.model.num_timesteps >= due:
            self._snapshot()

    def _on_training_end(self) -> None:
        self._average_with(self.model.policy.actor.flat)
        self._narrow(self.model.policy)
        if not self._enough:
            self._snapshot()

    def _on_step(self) -> bool:
        return not self._enough

    @torch.no_grad()
    def _narrow(self, policy: LeanPolicy) -> None:
        """Keep the policy's standard deviation below its limit at this point."""
        log_std = policy.actor.log_std
        log_std.copy_(torch.minimum(log_std, self._student.log_std + self._progress * math.log(self._config.std_end)))

    def _adapt_learning_rate(self) -> None:
        """Keep the KL between successive policies near its target (as rsl_rl does, https://arxiv.org/abs/2109.11978)."""
        moved = self.model.logger.name_to_value.get("train/approx_kl", 0.0)
        if moved > 2 * self._config.target_kl:
            self.learning_rate = min(self.learning_rate, max(self.learning_rate / 2, LEARNING_RATES[0]))
        elif 0 < moved < self._config.target_kl / 2:
            self.learning_rate = max(self.learning_rate, min(self.learning_rate * 2, LEARNING_RATES[1]))

    @property
    def _progress(self) -> float:
        """Share of the steps after the warm-up, in [0, 1]."""
        return min(max(self.model.num_timesteps - self._warmup, 0.0) / (self._config.env_steps - self._warmup), 1.0)

    @property
    def _warmup(self) -> float:
        return self._config.critic_warmup * self._config.env_steps

    def _average_with(self, actor: Tensor) -> None:
        if self._average is None:
            self._average = actor.clone()
        self._average.lerp_(actor, 1 - self._config.average_decay)

    def _snapshot(self) -> None:
        assert self._average is not None
        policy = self.model.policy
        student = policy.actor.member(0, self._average)
        student.log_std.copy_(policy.actor.log_std.detach()[0, 0])
        if wrong := student.not_finite():
            raise TrainingFault(
                f"training by reward diverged: the student's {wrong} became NaN or infinite within {self.model.num_timesteps:,} steps; "
                f"lower polish.learning_rate (it is {self._config.learning_rate:g}), or turn polishing off with polish.below 0"
            )
        logged = self.model.logger.name_to_value
        names = {"imitation_loss": "penalty", "approximate_kl_nats": "approx_kl", "explained_variance": "explained_variance"}
        metrics = {name: float(logged[f"train/{theirs}"]) for name, theirs in names.items() if f"train/{theirs}" in logged}
        if not self.model.penalty_weight:
            metrics.pop("imitation_loss", None)
        episodes = self.model.ep_info_buffer or ()
        metrics["learning_rate"] = self.learning_rate
        if episodes:
            metrics["train_return_mean"] = float(np.mean([episode["r"] for episode in episodes]))
        if len(student.log_std):
            metrics["std"] = float(student.log_std.exp().mean())
        self._taken += 1
        gradient_steps = self.model._n_updates * -(-self._config.num_envs * self._config.num_steps // self._config.batch_size)
        self._enough = self._on_snapshot(Snapshot(self.model.num_timesteps, gradient_steps, student, critic_layers(policy), metrics))
