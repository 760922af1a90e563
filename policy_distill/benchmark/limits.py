"""What the machine allows: the environments stepped by a bare loop, and the policy's arithmetic alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
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
    """The policy's deterministic action in preallocated arrays: normalisation, products, activations, argmax or clipping.

    Single rows go through numpy, whose calls cost least; several through torch's products, since numpy's may start threads of their own.

    Args:
        policy: fully connected, with tanh or ReLU, one discrete or one clipped continuous action.
        rows: B.

    Returns:
        From raw observations ``[B, inputs]`` to actions; the result is overwritten by the next call.
    """
    normalized = isinstance(policy, Student) or policy.normalization is not None
    clip = policy.normalization.clip if isinstance(policy, Teacher) and policy.normalization is not None else None
    parts = [policy.network] if isinstance(policy, Student) else [getattr(policy.network, name, ()) for name in ("body", "latent", "mean")]
    modules = [module for part in parts for module in part]
    linears = [module for module in modules if isinstance(module, nn.Linear)]
    weights = [linear.weight.detach().t().contiguous() for linear in linears]
    biases = [linear.bias.detach() for linear in linears]
    outputs = [torch.empty(rows, linear.out_features) for linear in linears]
    tanh = any(isinstance(module, nn.Tanh) for module in modules)
    mean, scale = (policy.mean.numpy(), policy.scale.numpy()) if normalized else (None, None)
    box = policy.action_space if isinstance(policy.action_space, gym.spaces.Box) else None
    arrays = [(weight.numpy(), bias.numpy(), output.numpy()) for weight, bias, output in zip(weights, biases, outputs, strict=True)]
    last = len(linears) - 1

    def of_one_row(values: np.ndarray) -> None:
        for index, (weight, bias, output) in enumerate(arrays):
            np.matmul(values, weight, out=output)
            np.add(output, bias, out=output)
            if index < last:
                np.tanh(output, out=output) if tanh else np.maximum(output, 0.0, out=output)
            values = output

    def of_rows(values: np.ndarray) -> None:
        hidden = torch.from_numpy(values)
        for index in range(last + 1):
            torch.addmm(biases[index], hidden, weights[index], out=outputs[index])
            if index < last:
                outputs[index].tanh_() if tanh else outputs[index].relu_()
            hidden = outputs[index]

    products = of_one_row if rows == 1 else of_rows
    result = arrays[-1][2]

    def act(observations: np.ndarray) -> np.ndarray:
        values = observations
        if normalized:
            values = (values - mean) / scale
            if clip is not None:
                np.clip(values, -clip, clip, out=values)
            values = values.astype(np.float32, copy=False)
        products(values)
        return result.argmax(-1) if box is None else np.clip(result, box.low, box.high, out=result)

    return act
