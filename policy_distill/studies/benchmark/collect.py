"""Collecting labelled steps, against ``predict`` and ``get_distribution`` on Stable-Baselines3's vector environments."""

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
from policy_distill.studies.benchmark import collect_kinds
from policy_distill.studies.benchmark.agents import Agent, load_agents
from policy_distill.studies.benchmark.interleave import Ratio, interleave
from policy_distill.studies.benchmark.limits import BareLoop, Recording
from policy_distill.studies.benchmark.result import Result

NUM_ENVS = CollectConfig.num_envs
"""Number of environments of this package's collector: a job's default."""
NAIVE_ENVS = 8
STEPS = 500
"""Steps per environment and turn."""


def run(turns: int, teachers: Path | None = None) -> list[Result]:
    """Time every agent in one process (CPU time), with envpool if it is installed, and on all cores (wall time).

    Without ``teachers`` also agents that read images or have a memory.
    """
    found = []
    for agent in load_agents(teachers):
        found.append(one_process(agent, turns, choose_backend(agent.spec, "auto")))
        if has_envpool(agent.spec):
            found.append(one_process(agent, turns, "envpool"))
        found.append(all_cores(agent, turns))
    return found if teachers is not None else [*found, *collect_kinds.run(turns)]


def has_envpool(spec: EnvironmentSpec) -> bool:
    """Whether envpool is installed and supports the environment."""
    try:
        return choose_backend(spec, "envpool") == "envpool"
    except RequestError:
        return False


def one_process(agent: Agent, turns: int, backend: Backend) -> Result:
    """CPU time per step of ``NUM_ENVS`` environments in this process; the baseline has ``NAIVE_ENVS``."""
    collector = Collector(agent.spec, indices=range(NUM_ENVS), num_envs=NUM_ENVS, seed=0, backend=backend)
    seconds = interleave(
        {
            "measured": lambda: len(executed(collector.collect(STEPS, agent.teacher, None, 1.0))),
            "baseline": by_stable_baselines3(agent, agent.vector_environment(NAIVE_ENVS)),
            "limit": bare(agent, backend),
        },
        turns=turns,
    )
    measured, baseline, limit = (seconds[name].cpu_seconds for name in ("measured", "baseline", "limit"))
    return Result(
        "collect", f"{agent.name}{'' if backend == 'gymnasium' else f', {backend}'}",
        f"predict + get_distribution, DummyVecEnv({NAIVE_ENVS})", Ratio.between(baseline, measured),
        float(np.median(measured)) * 1e6, float(np.median(limit)) * 1e6,
        f"CPU time per step, {NUM_ENVS} environments in one process; limit: bare stepping and forward pass",
    )  # fmt: skip


def bare(agent: Agent, backend: Backend) -> Callable[[], int]:
    """A loop of nothing but environment steps and the policy's forward passes."""
    if backend == "gymnasium":
        return Recording(agent.teacher, agent.spec, num_envs=NUM_ENVS, num_steps=STEPS).replay
    envs = make_vector(agent.spec, NUM_ENVS) if backend == "vector" else make_envpool(agent.spec, list(range(NUM_ENVS)))
    return BareLoop(agent.teacher, envs, num_envs=NUM_ENVS, num_steps=STEPS).run


def all_cores(agent: Agent, turns: int) -> Result:
    """Wall time per step of a job's default number of environments in worker processes."""
    backend = choose_backend(agent.spec, "auto")
    with Rollouts(agent.spec, agent.teacher, num_envs=NUM_ENVS, seed=0, backend=backend) as rollouts:
        envs = agent.vector_environment(NAIVE_ENVS, processes=True)
        try:
            seconds = interleave(
                {
                    "measured": lambda: sum(map(len, rollouts.collect(STEPS, None, 1.0, 0))),
                    "baseline": by_stable_baselines3(agent, envs),
                },
                turns=turns,
            )
        finally:
            envs.close()
        measured, baseline = (seconds[name].wall_seconds for name in ("measured", "baseline"))
        return Result(
            "collect", f"{agent.name}, all cores", f"the same on SubprocVecEnv({NAIVE_ENVS})", Ratio.between(baseline, measured),
            float(np.median(measured)) * 1e6, None, f"wall time per step, {rollouts.backend}",
        )  # fmt: skip


def by_stable_baselines3(agent: Agent, envs: Any) -> Callable[[], int]:
    """The baseline: act with ``predict``, compute the policy's distribution, and store both."""
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
