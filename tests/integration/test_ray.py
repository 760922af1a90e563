"""A Ray cluster of two machines, both of them here: the same figures as without it, and a lost machine costs no job."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import PPO

from policy_distill.config import EngineConfig, EnvironmentFault, RequestError
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.rollouts.workers import Rollouts
from policy_distill.studies.scheduler import on_ray
from policy_distill.studies.scheduler.jobs import StudyJob
from policy_distill.studies.scheduler.schedule import run_jobs
from policy_distill.studies.suite import run_suite
from policy_distill.support import ray_cluster
from policy_distill.support.ray_cluster import connected, is_connected
from policy_distill.teachers import Teacher
from tests import rude_worlds as rude
from tests.integration.small_jobs import small_config
from tests.rollouts.test_collect import assert_equal
from tests.small_worlds import random_student
from tests.teachers import extractors

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(600)
PENDULUM = EnvironmentSpec("Pendulum-v1")
STORE = 100_000_000


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_MODE", "disabled")  # else Ray writes a token into the user's home
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False, "object_store_memory": STORE})
    made.add_node(num_cpus=2, object_store_memory=STORE)
    yield made
    ray.shutdown()
    made.shutdown()
    patch.undo()


@pytest.fixture
def engine(cluster):
    yield EngineConfig("ray", cluster.address)
    ray.shutdown()  # processes of other tests may fork again


def small_jobs(folder: Path, count: int, teachers: Path | None = None) -> list[StudyJob]:
    """Jobs of two agents; with ``teachers``, copies of theirs in that folder."""
    jobs = []
    for seed in range(count):
        name = ("ppo/CartPole-v1", "sac/Pendulum-v1")[seed % 2]
        if teachers is not None:
            target = teachers / f"{name}_1"
            shutil.copytree(Path(__file__).parents[2] / "agents" / f"{name}_1", target, dirs_exist_ok=True)
            name = str(target)
        config = dataclasses.replace(small_config(name, seed), output=str(folder / str(seed)))
        jobs.append(StudyJob.of(f"job {seed}", config))
    return jobs


def figures(found: Any) -> dict[str, Any]:
    """What a job found, without what differs from run to run."""
    results = {}
    for job, outcome in found:
        assert outcome.status == "done", outcome.reason
        weights = (job.folder / "student" / "student.safetensors").read_bytes()
        results[job.name] = (
            weights,
            *(outcome.summary[name] for name in ("returns", "retention", "agreement", "env_steps", "compression")),
        )
    return results


def test_jobs_on_a_cluster_give_the_figures_of_this_machine(engine, tmp_path):
    local = figures(run_jobs(small_jobs(tmp_path / "local", 2), EngineConfig(), at_a_time=1))
    assert figures(run_jobs(small_jobs(tmp_path / "ray", 2), engine)) == local


@pytest.mark.slow
def test_a_job_of_a_machine_without_this_disk_is_sent_there_and_back(engine, tmp_path, monkeypatch):
    """The worker looks for the files in vain; nothing that it sends back names its temporary folder."""
    local = figures(run_jobs(small_jobs(tmp_path / "local", 2), EngineConfig(), at_a_time=1))
    jobs = small_jobs(tmp_path / "far", 2, tmp_path / "agents")
    monkeypatch.setattr(on_ray, "token_of", lambda folder: contextlib.nullcontext(SimpleNamespace(name="/nowhere/token")))
    assert figures(run_jobs(jobs, engine)) == local
    for job in jobs:
        texts = [path.read_text() for path in job.folder.rglob("*") if path.suffix in (".yaml", ".json", ".md", ".html")]
        assert len(texts) >= 5
        assert not [text for text in texts if "policy-distill-" in text]
        assert job.completed() is not None


@pytest.mark.slow
def test_an_agent_s_own_extractor_travels_with_its_job(engine, tmp_path, monkeypatch):
    own = tmp_path / "agents" / "ppo" / "CartPole-v1_1"
    own.mkdir(parents=True)
    PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"features_extractor_class": extractors.Layers}, device="cpu").save(own / "CartPole-v1")
    source = shutil.copy(extractors.__file__, tmp_path / "networks.py")
    monkeypatch.setattr(on_ray, "token_of", lambda folder: contextlib.nullcontext(SimpleNamespace(name="/nowhere/token")))
    config = dataclasses.replace(small_config(), env="CartPole-v1", extractor=f"{source}:Layers", engine=engine)
    (row,) = run_suite(tmp_path / "agents", config, output=tmp_path / "far").rows
    assert (row["status"], row["reason"]) == ("done", None)
    local = dataclasses.replace(config, engine=EngineConfig())
    assert run_suite(tmp_path / "agents", local, output=tmp_path / "here", jobs=1).rows[0]["student_return"] == row["student_return"]


@pytest.mark.slow
def test_a_lost_machine_costs_no_job(cluster, engine, tmp_path):
    local = figures(run_jobs(small_jobs(tmp_path / "local", 8), EngineConfig(), at_a_time=2))
    lost = cluster.add_node(num_cpus=2, object_store_memory=STORE)
    found = []
    for number, ended in enumerate(run_jobs(small_jobs(tmp_path / "ray", 8), engine)):
        if number == 1:
            lost.all_processes["raylet"][0].process.kill()
        found.append(ended)
    assert figures(found) == local


@pytest.mark.parametrize("workers", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_transitions_and_returns_are_those_of_local_workers(workers, engine):
    teacher, found = Teacher.load("sac/Pendulum-v1"), []
    student = random_student(teacher.observation_space, teacher.action_space)
    for where in (EngineConfig(), engine):
        with Rollouts(PENDULUM, teacher, num_envs=5, seed=1, workers=workers, engine=where) as rollouts:
            assert ("Ray" in rollouts.backend) == (where is engine)
            rows = [part for index in range(2) for part in rollouts.collect(20, student if index else None, 0.5, index)]
            episodes = rollouts.evaluate(student, range(4), num_envs=2, with_agreement=True)
        found.append((rows, episodes))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert_equal(one, other)
    np.testing.assert_array_equal(found[0][1].returns, found[1][1].returns)


@pytest.mark.slow
def test_a_hanging_environment_on_another_machine_ends_the_work_with_its_line(engine):
    spec = rude.spec_of(rude.Hangs)
    away = dataclasses.replace(spec, id=f"tests.rude_worlds:{spec.id}", imports=True)
    with (
        Rollouts(away, None, num_envs=2, seed=0, workers=1, step_timeout=0.5, engine=engine) as rollouts,
        pytest.raises(EnvironmentFault, match="step has not returned for more than"),
    ):
        rollouts.evaluate("random", range(48), num_envs=2)


def test_a_cluster_without_room_is_refused(engine):
    with pytest.raises(RequestError, match=r"no room for 100 cores.*--engine\.cpus"):
        Rollouts(PENDULUM, None, num_envs=1, seed=0, engine=dataclasses.replace(engine, cpus=100.0))
    with pytest.raises(RequestError, match="workers is 99, and the Ray cluster has room for 4"):
        Rollouts(PENDULUM, None, num_envs=100, seed=0, workers=99, engine=engine)


def test_without_ray_the_command_to_install_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RequestError, match=r"pip install 'policy-distill\[ray\]'"):
        connected(None)


def test_an_address_without_a_cluster_is_refused(monkeypatch):
    assert not is_connected()
    with pytest.raises(RequestError, match=r"no Ray cluster answers at 127\.0\.0\.1:1 .*start one with ray start"):
        ray_cluster.connected("127.0.0.1:1")
