"""The stages that are timed with agents: what they time is work that was done, and their limit is the same environment."""

from __future__ import annotations

import pytest

from policy_distill.config import CollectConfig, DistillConfig, EvaluateConfig, RequestError, StudentConfig, TrainConfig
from policy_distill.environments.vector import Backend, make_vector
from policy_distill.studies.benchmark import collect, job
from policy_distill.studies.benchmark.agents import Agent
from policy_distill.studies.benchmark.limits import BareLoop, Recording

CART = "ppo/CartPole-v1"


@pytest.fixture
def agent(monkeypatch):
    monkeypatch.setattr(collect, "STEPS", 5)
    return Agent.load(CART)


def test_collecting_is_timed_beside_the_naive_loop_and_the_bare_one(agent):
    cases: list[tuple[Backend, str]] = [("vector", "ppo CartPole-v1, vector"), ("gymnasium", "ppo CartPole-v1")]
    for backend, case in cases:
        found = collect.one_process(agent, 1, backend)
        assert found.case == case
        assert found.ratio is not None
        assert found.ratio.median > 0
        assert found.limit_microseconds is not None
        assert found.limit_microseconds > 0
        assert found.microseconds is not None
        assert found.microseconds > 0
    assert "vector entry point" in collect.all_cores(agent, 1).note


def test_bare_loops_take_the_steps_that_they_say(agent):
    assert BareLoop(agent.teacher, make_vector(agent.spec, 3), num_envs=3, num_steps=4).run() == 12
    assert Recording(agent.teacher, agent.spec, num_envs=3, num_steps=4).replay() == 12


def test_a_folder_without_the_job_s_agent_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"contains no ppo/LunarLander-v\*/\*\.zip"):
        job.run(1, tmp_path)


def test_a_job_s_limit_is_the_stepping_of_its_environment(tmp_path):
    pytest.importorskip("Box2D")
    config = DistillConfig(
        teacher=job.AGENT,
        output=str(tmp_path / "run"),
        student=StudentConfig(hidden_sizes=(4,)),
        collect=CollectConfig(env_steps=400, rounds=1),
        train=TrainConfig(gradient_steps=20, members=1),
        evaluate=EvaluateConfig(episodes=2, validation_episodes=2, finalist_episodes=0, reuse_returns=False),
        workers=1,
    )
    (found,) = job.run(1, config=config)
    assert found.limit_microseconds is not None
    assert found.microseconds is not None
    assert 0 < found.limit_microseconds < found.microseconds
    assert "environment steps alone; retention" in found.note
    assert "no certificate" in found.note
