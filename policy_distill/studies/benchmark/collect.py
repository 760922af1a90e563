"""Collecting labelled steps, beside ``predict`` and ``get_distribution`` on Stable-Baselines3's vector environments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from policy_distill.config import CollectConfig, RequestError
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.environments.vector import Backend, choose_backend, make_envpool, make_vector
from policy_distill.rollouts.collect import Collector, executed
from policy_distill.rollouts.workers import Rollouts
from policy_distill.studies.benchmark.agents import Agent, load_agents
from policy_distill.studies.benchmark.interleave import Ratio, interleave
from policy_distill.studies.benchmark.limits import BareLoop, Recording
from policy_distill.studies.benchmark.result import Result

NUM_ENVS = CollectConfig.num_envs
"""Of ours: a job's own number."""
NAIVE_ENVS = 8
STEPS = 500
"""Of each environment and turn."""


def run(turns: int, teachers: Path | None = None) -> list[Result]:
    """Time every agent in one process (CPU time), on envpool where it is installed, and on all cores (wall time)."""
    found = []
    for agent in load_agents(teachers):
        found.append(one_process(agent, turns, choose_backend(agent.spec, "auto")))
        if has_envpool(agent.spec):
            found.append(one_process(agent, turns, "envpool"))
        found.append(all_cores(agent, turns))
    return found


def has_envpool(spec: EnvironmentSpec) -> bool:
    """Whether the environment can be stepped by envpool here."""
    try:
        return choose_backend(spec, "envpool") == "envpool"
    except RequestError:
        return False


def one_process(agent: Agent, turns: int, backend: Backend) -> Result:
    """CPU time a step of ``NUM_ENVS`` environments in this process; what we are compared with has ``NAIVE_ENVS``."""
    collector = Collector(agent.spec, indices=range(NUM_ENVS), num_envs=NUM_ENVS, seed=0, backend=backend)
    seconds = interleave(
        {
            "ours": lambda: len(executed(collector.collect(STEPS, agent.teacher, None, 1.0))),
            "naive": by_stable_baselines3(agent, agent.vector_environment(NAIVE_ENVS)),
            "limit": bare(agent, backend),
        },
        turns=turns,
    )
    ours, theirs, least = (seconds[name].cpu_seconds for name in ("ours", "naive", "limit"))
    return Result(
        "collect", f"{agent.name}{'' if backend == 'gymnasium' else f', {backend}'}",
        f"predict + get_distribution, DummyVecEnv({NAIVE_ENVS})", Ratio.between(theirs, ours),
        float(np.median(ours)) * 1e6, float(np.median(least)) * 1e6,
        f"CPU time a step, {NUM_ENVS} environments in one process; limit: bare stepping and forward",
    )  # fmt: skip


def bare(agent: Agent, backend: Backend) -> Callable[[], int]:
    """The loop that does nothing but stepping and the policy's arithmetic."""
    if backend == "gymnasium":
        return Recording(agent.teacher, agent.spec, num_envs=NUM_ENVS, num_steps=STEPS).replay
    envs = make_vector(agent.spec, NUM_ENVS) if backend == "vector" else make_envpool(agent.spec, list(range(NUM_ENVS)))
    return BareLoop(agent.teacher, envs, num_envs=NUM_ENVS, num_steps=STEPS).run


def all_cores(agent: Agent, turns: int) -> Result:
    """Wall time a step of a job's own number of environments in worker processes."""
    backend = choose_backend(agent.spec, "auto")
    with Rollouts(agent.spec, agent.teacher, num_envs=NUM_ENVS, seed=0, backend=backend) as rollouts:
        envs = agent.vector_environment(NAIVE_ENVS, processes=True)
        try:
            seconds = interleave(
                {
                    "ours": lambda: sum(map(len, rollouts.collect(STEPS, None, 1.0, 0))),
                    "naive": by_stable_baselines3(agent, envs),
                },
                turns=turns,
            )
        finally:
            envs.close()
        ours, theirs = (seconds[name].wall_seconds for name in ("ours", "naive"))
        return Result(
            "collect", f"{agent.name}, all cores", f"the same on SubprocVecEnv({NAIVE_ENVS})", Ratio.between(theirs, ours),
            float(np.median(ours)) * 1e6, None, f"wall time a step, {rollouts.backend}",
        )  # fmt: skip


def by_stable_baselines3(agent: Agent, envs: Any) -> Callable[[], int]:
    """What a user writes today: act by ``predict``, ask the policy for its distribution, keep both."""
    from stable_baselines3.common.utils import obs_as_tensor

    model = agent.model
    latest = envs.reset()

    def collect() -> int:
        nonlocal latest
        rows = []
        for _ in range(STEPS):
            actions, _ = model.predict(latest, deterministic=True)
            with torch.no_grad():
                distribution = model.policy.get_distribution(obs_as_tensor(latest, model.device)).distribution
            words = distribution.logits if hasattr(distribution, "logits") else torch.cat([distribution.mean, distribution.stddev], -1)
            following, rewards, dones, _ = envs.step(actions)
            rows.append((latest, actions, words.cpu().numpy(), rewards, dones))
            latest = following
        kept = [np.stack(column) for column in zip(*rows, strict=True)]
        return int(kept[-1].size)

    return collect
