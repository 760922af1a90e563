"""Evaluating episodes, against Stable-Baselines3's ``evaluate_policy``."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from policy_distill.rollouts.episodes import evaluate
from policy_distill.rollouts.play import SIDE_BY_SIDE
from policy_distill.studies.benchmark.agents import Agent, load_agents
from policy_distill.studies.benchmark.interleave import Ratio, interleave
from policy_distill.studies.benchmark.limits import Recording
from policy_distill.studies.benchmark.result import Result

EPISODES = SIDE_BY_SIDE
"""Episodes of this package's evaluation per turn."""
NAIVE_EPISODES = 3
STEPS = 300
"""Steps per environment, for the limit."""


def run(turns: int, teachers: Path | None = None) -> list[Result]:
    """Time every agent in one process, per environment step, since episodes differ in length."""
    return [one_process(agent, turns) for agent in load_agents(teachers)]


def one_process(agent: Agent, turns: int) -> Result:
    """CPU time per step of ``SIDE_BY_SIDE`` parallel episodes."""
    from stable_baselines3.common.evaluation import evaluate_policy

    envs: list = []
    model_env = agent.vector_environment(1)
    recording = Recording(agent.teacher, agent.spec, num_envs=SIDE_BY_SIDE, num_steps=STEPS)
    firsts = itertools.count(0, EPISODES)

    def measured() -> int:
        first = next(firsts)
        return evaluate(agent.teacher, agent.spec, range(first, first + EPISODES), envs=envs).env_steps

    def baseline() -> int:
        _, lengths = evaluate_policy(agent.model, model_env, n_eval_episodes=NAIVE_EPISODES, return_episode_rewards=True)
        return sum(lengths)  # type: ignore[arg-type]

    seconds = interleave({"measured": measured, "baseline": baseline, "limit": recording.replay}, turns=turns)
    own, other, limit = (seconds[name].cpu_seconds for name in ("measured", "baseline", "limit"))
    return Result(
        "evaluate", agent.name, "evaluate_policy with one environment", Ratio.between(other, own),
        float(np.median(own)) * 1e6, float(np.median(limit)) * 1e6,
        f"CPU time per step, {SIDE_BY_SIDE} parallel episodes in one process; limit: bare stepping and forward pass",
    )  # fmt: skip
