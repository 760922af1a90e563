"""What the machine allows: the environments stepped by a bare loop, and the policy's arithmetic in preallocated arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from policy_distill.environments import EnvironmentSpec, make
from policy_distill.evaluate import BATCH, Policy
from policy_distill.students import Student
from policy_distill.teachers import Teacher


class Recording:
    """What a policy did in a few environments, to be done again by the shortest loop there is.

    Args:
        policy: acts.
        spec: the environment.
        num_envs: N, stepped in turn, as a collector steps them: caches see what they see there.
        num_steps: T, of each.
    """

    def __init__(self, policy: Policy, spec: EnvironmentSpec, *, num_envs: int, num_steps: int) -> None:
        self._envs = [make(spec) for _ in range(num_envs)]
        self._rows: list[tuple[Sequence[Any], list[int]]] = []
        observations = np.stack([env.reset(seed=slot)[0] for slot, env in enumerate(self._envs)])
        batch = np.repeat(observations[:1], -(-num_envs // BATCH) * BATCH, axis=0)
        for _ in range(num_steps):
            batch[:num_envs] = observations
            actions = list(policy.act(batch)[:num_envs])
            ended = []
            for slot, env in enumerate(self._envs):
                observations[slot], _, terminated, truncated, _ = env.step(actions[slot])
                if terminated or truncated:
                    ended.append(slot)
                    observations[slot], _ = env.reset(seed=slot)
            self._rows.append((actions, ended))

    def replay(self) -> int:
        """Step through it again and return the number of environment steps."""
        for slot, env in enumerate(self._envs):
            env.reset(seed=slot)
        steps = [env.step for env in self._envs]
        for actions, ended in self._rows:
            for step, action in zip(steps, actions, strict=True):
                step(action)
            for slot in ended:
                self._envs[slot].reset(seed=slot)
        return len(self._rows) * len(self._envs)


def arithmetic(policy: Student | Teacher, rows: int) -> Callable[[np.ndarray], np.ndarray]:
    """The policy's deterministic action as plain numpy: normalisation, layers, argmax or clipping.

    Args:
        policy: fully connected, with tanh or ReLU, one discrete or one clipped continuous action.
        rows: B; the arrays are allocated once.

    Returns:
        From raw observations ``[B, inputs]`` to actions; the result is overwritten by the next call.
    """
    if isinstance(policy, Student):
        modules, clip = list(policy.network), None
    else:
        network = policy.network
        modules = [module for name in ("body", "latent", "mean") for module in getattr(network, name, ())]
        clip = policy.normalization.clip if policy.normalization is not None else None
    layers = [
        (module.weight.detach().numpy().T.copy(), module.bias.detach().numpy().copy(), np.empty((rows, module.out_features), np.float32))
        for module in modules
        if isinstance(module, nn.Linear)
    ]
    activation = np.tanh if any(isinstance(module, nn.Tanh) for module in modules) else _relu
    normalized = isinstance(policy, Student) or clip is not None
    mean, scale = (policy.mean.numpy(), policy.scale.numpy()) if normalized else (None, None)
    box = policy.action_space if policy.action_space.shape else None

    def act(observations: np.ndarray) -> np.ndarray:
        values = observations
        if normalized:
            values = (values - mean) / scale
            if clip is not None:
                np.clip(values, -clip, clip, out=values)
            values = values.astype(np.float32, copy=False)
        for index, (weight, bias, out) in enumerate(layers):
            np.matmul(values, weight, out=out)
            np.add(out, bias, out=out)
            values = activation(out, out=out) if index < len(layers) - 1 else out
        return values.argmax(-1) if box is None else np.clip(values, box.low, box.high, out=values)  # type: ignore[attr-defined]

    return act


def _relu(values: np.ndarray, *, out: np.ndarray) -> np.ndarray:
    return np.maximum(values, 0.0, out=out)
