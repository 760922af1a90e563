"""Collecting labelled steps, beside ``predict`` and ``get_distribution`` on Stable-Baselines3's vector environments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from policy_distill.benchmark.agents import Agent, load_agents
from policy_distill.benchmark.interleave import Ratio, interleave
from policy_distill.benchmark.limits import Recording
from policy_distill.benchmark.result import Result
from policy_distill.collect import Collector
from policy_distill.workers import Rollouts

NUM_ENVS = 8
STEPS = 500
"""Of each environment and turn."""


def run(turns: int, teachers: Path | None = None) -> list[Result]:
    """Time every agent in one process (CPU time) and on all cores (wall time)."""
    return [result for agent in load_agents(teachers) for result in (one_process(agent, turns), all_cores(agent, turns))]


def one_process(agent: Agent, turns: int) -> Result:
    """CPU time a step of ``NUM_ENVS`` environments in this process."""
    collector = Collector(agent.spec, indices=range(NUM_ENVS), num_envs=NUM_ENVS, seed=0)
    recording = Recording(agent.teacher, agent.spec, num_envs=NUM_ENVS, num_steps=STEPS)
    naive = by_stable_baselines3(agent, agent.vector_environment(NUM_ENVS))
    seconds = interleave(
        {
            "ours": lambda: len(collector.collect(STEPS, agent.teacher, None, 1.0)),
            "naive": naive,
            "limit": recording.replay,
        },
        turns=turns,
    )
    ours, theirs, least = (seconds[name].cpu_seconds for name in ("ours", "naive", "limit"))
    return Result(
        "collect", f"{agent.name}", f"predict + get_distribution, DummyVecEnv({NUM_ENVS})", Ratio.between(theirs, ours),
        float(np.median(ours)) * 1e6, float(np.median(least)) * 1e6,
        f"CPU time a step, {NUM_ENVS} environments in one process; limit: bare stepping and forward",
    )  # fmt: skip


def all_cores(agent: Agent, turns: int) -> Result:
    """Wall time a step of a job's own number of environments in worker processes."""
    with Rollouts(agent.spec, agent.teacher, num_envs=2 * NUM_ENVS, seed=0) as rollouts:
        envs = agent.vector_environment(NUM_ENVS, processes=True)
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
            "collect", f"{agent.name}, all cores", f"the same on SubprocVecEnv({NUM_ENVS})", Ratio.between(theirs, ours),
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
