"""Between two advances the checkpoint is all that a run is: whatever else there was can be thrown away, and the same student comes out."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.config import (
    CheckConfig,
    CollectConfig,
    DistillConfig,
    EvaluateConfig,
    PolishConfig,
    SelfDistillConfig,
    StudentConfig,
    TrainConfig,
    ValueConfig,
)
from policy_distill.evaluation.return_cache import KnownReturns
from policy_distill.evaluation.statistics import Retention
from policy_distill.pipeline import checkpoint
from policy_distill.pipeline import prepare as prepare_module
from policy_distill.pipeline import state as state_module
from policy_distill.pipeline.context import Services
from policy_distill.pipeline.distill import STAGES
from policy_distill.pipeline.prepare import prepare
from policy_distill.pipeline.state import State
from policy_distill.pipeline.summary import summarize
from policy_distill.policies.views import View
from policy_distill.rollouts.episodes import merge
from policy_distill.rollouts.workers import Rollouts
from policy_distill.support.progress import Display
from policy_distill.teachers import Teacher
from tests.small_worlds import BEACON, BEFORE, PUSH, WALK, beacon_best, before_teacher, push_teacher, walk_teacher
from tests.stand_ins import Recorder, record, run_of

POLISH = PolishConfig(below=1e9, env_steps=1024, num_envs=4, num_steps=64, batch_size=64, epochs=2, snapshots=3)
SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "seed": 3,
    "workers": 0,
    "student": StudentConfig(hidden_sizes=(16, 16)),
    "train": TrainConfig(gradient_steps=120, batch_size=32, members=2, holdout=0.2),
    "polish": POLISH,
    "self_distill": SelfDistillConfig(generations=2, gradient_steps=60, ensemble=True),
    "evaluate": EvaluateConfig(episodes=8, validation_episodes=6, finalist_episodes=8, certify=0.5, max_episodes=60, num_envs=4),
}
COLLECT = CollectConfig(env_steps=240, rounds=4, num_envs=4, epsilon=0.1, action_noise=0.1, enough=9.0)


class Interrupted:
    """A run of one part after the other, each with services and a state of its own: as if each were another process."""

    def __init__(self, folder: Path, teacher: Teacher, env: str, **changes: Any) -> None:
        self.config = DistillConfig(output=str(folder), env=env, **{**SETTINGS, "collect": COLLECT, **changes})
        self.teacher, self.folder = teacher, folder
        self.stages: Counter[str] = Counter()
        self.tracked: dict[str, list[tuple[float, int]]] = {}

    def services(self, *, resumed: bool) -> tuple[State, Services]:
        job = prepare(self.config, self.teacher)
        identity = checkpoint.identity(job)
        state = checkpoint.read(job.folder, identity).state(job) if resumed else State.begin(job)
        self.checkpoint = checkpoint.Checkpoint(job, identity)
        config = self.config
        rollouts = Rollouts(
            job.spec, job.teacher, num_envs=config.collect.num_envs, seed=config.seed, workers=config.workers, backend=job.backend,
            view=job.architecture.view,
        )  # fmt: skip
        known = {name: KnownReturns(self.folder / f"{name}.npz") for name in ("teacher", "random")}
        tracker = Recorder()
        return state, Services(job, rollouts, tracker, Display(quiet=True), known)  # type: ignore[arg-type]

    def run(self, *, interrupted: bool) -> State:
        state, services = self.services(resumed=False)
        while state.stage != "done":
            self.stages[state.stage] += 1
            state = STAGES[state.stage](state, services)
            if interrupted:
                services.rollouts.close()
                self.checkpoint.write(state)
                state, services = self.services(resumed=True)
                torch.manual_seed(sum(self.stages.values()))  # the global generators of another process
                np.random.seed(sum(self.stages.values()))  # noqa: NPY002
        services.rollouts.close()
        return state

    def summary(self, state: State) -> str:
        """Result.json without its times."""
        job = prepare(self.config, self.teacher)
        episodes = (state.student_episodes, merge(state.teacher_parts), merge(state.random_parts))
        found = summarize(job, state, Retention(0, 0, 0, 0.95, 8), *episodes)  # type: ignore[arg-type]
        assert set(found.pop("seconds")) == {"collect", "train", "polish", "evaluate", "total", "decision"}
        for key in ("config", "teacher", "notices"):
            found.pop(key)
        return json.dumps(found)


def assert_the_same_interrupted(folder: Path, teacher: Teacher, env: str, **changes: Any) -> tuple[State, Counter[str]]:
    whole, parts = (Interrupted(folder / name, teacher, env, **changes) for name in ("whole", "parts"))
    expected, found = whole.run(interrupted=False), parts.run(interrupted=True)
    assert whole.stages == parts.stages
    for one, other in zip(expected.kept, found.kept, strict=True):
        assert one.origin == other.origin
        np.testing.assert_array_equal(one.returns, other.returns)
        weights = other.student.state_dict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in one.student.state_dict().items())
    assert whole.summary(expected) == parts.summary(found)
    return found, parts.stages


def test_a_run_that_is_interrupted_between_any_two_advances_is_the_same_run(tmp_path):
    found, stages = assert_the_same_interrupted(tmp_path, walk_teacher(), WALK.id)
    assert stages == {"imitation": 4, "choice": 1, "self_distillation": stages["self_distillation"], "polish": 3} | dict.fromkeys(
        ("value", "view", "evaluation", "certificate"), 1
    )
    assert stages["self_distillation"] >= 2
    assert found.records_of("polish")
    assert found.certified is not None
    assert found.reused_episodes == 0


@pytest.mark.parametrize("bits", [None, 4])
def test_so_it_is_with_pruning_and_every_student_has_its_zeros(bits, tmp_path):
    changes = {"student": StudentConfig(hidden_sizes=(16, 16), pruning=0.75, bits=bits)}
    found, stages = assert_the_same_interrupted(tmp_path, walk_teacher(), WALK.id, **changes)
    assert stages["polish"] == 3
    for kept in found.kept:
        for layer in kept.student.linears:
            assert int((layer.weight == 0).sum()) >= round(0.75 * layer.weight.numel())


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_so_it_is_with_continuous_actions_in_worker_processes_on_the_disk_and_with_rounds_that_end_early(storage, tmp_path):
    """The learning rate's new end is part of the trainer's state, and so is what the window forgot."""
    collect = CollectConfig(
        env_steps=420, rounds=7, num_envs=4, epsilon=0.1, action_noise=0.1, enough=0.001, window=2, storage=storage, teacher_action_prob=0
    )
    _, stages = assert_the_same_interrupted(tmp_path, push_teacher(), PUSH.id, collect=collect, workers=2, polish=PolishConfig(below=0))
    assert stages["imitation"] == 5


@pytest.mark.parametrize("agent", ["ppo/CartPole-v1", "dqn/MountainCar-v0", "sac/Pendulum-v1"])
def test_so_it_is_with_environments_that_come_together_q_values_and_a_value_network(agent, tmp_path):
    """What a Q-value is worth is taken from the data, and environments of a vector entry point cannot be reset one by one."""
    with_critic = agent.startswith("sac")
    value = ValueConfig(hidden_sizes=(8,) if with_critic else None, gradient_steps=20)
    evaluate = EvaluateConfig(episodes=4, validation_episodes=2, finalist_episodes=2, num_envs=4)
    changes = {"value": value, "evaluate": evaluate, "polish": PolishConfig(below=0)}
    found, _ = assert_the_same_interrupted(tmp_path, Teacher.load(agent), agent.split("/")[1], **changes)
    assert (found.values is not None) == with_critic
    assert found.records_of("generation")


def test_so_it_is_with_a_view_and_with_inputs_that_are_left_out_after_the_first_round(tmp_path):
    student = StudentConfig(compression=2.0, inputs={"keep": [0, 2], "history": 3, "noise": [0.05, 0.0]})
    collect = CollectConfig(env_steps=10_000, rounds=2, num_envs=4)
    changes = {"student": student, "collect": collect, "polish": PolishConfig(below=0)}
    found, _ = assert_the_same_interrupted(tmp_path, before_teacher(params=400), BEFORE.id, **changes)
    assert found.columns == (0, 2, 4)
    # 200 parameters: 3 -> 11 -> 11 -> 2 has 44 + 132 + 24
    assert found.kept[-1].student.architecture.widths == (3, 11, 11, 2)
    assert found.view_loss is not None


@pytest.mark.parametrize(("storage", "inputs"), [("memory", None), ("disk", {"history": 2})])
def test_so_it_is_with_stacks_of_frames_and_their_student_is_that_of_whole_rows(storage, inputs, tmp_path, monkeypatch):
    stacked = gym.spaces.Box(0, 255, (6, 6, 4), np.uint8)
    teacher = Teacher.from_callable(lambda seen: beacon_best(seen[..., -2:]), stacked, gym.spaces.Discrete(4), params=10**6)
    if inputs is not None:  # raw rows are stored beside what the student sees; six channels would be as many as pixels
        stacked = gym.spaces.Box(0, 255, (6, 6, 2), np.uint8)
        teacher = Teacher.from_callable(beacon_best, stacked, gym.spaces.Discrete(4), params=10**6)
    changes = {
        "frame_stack": None if inputs else 2, "student": StudentConfig(hidden_sizes=(8,), channels=(4,), inputs=inputs),
        "collect": CollectConfig(env_steps=240, rounds=3, num_envs=4, window=2, storage=storage, teacher_action_prob=0.5),
        "train": TrainConfig(gradient_steps=30, batch_size=16, holdout=0.3), "polish": PolishConfig(below=0),
        "self_distill": SelfDistillConfig(generations=1, gradient_steps=10), "check": CheckConfig(skip=True),
        "evaluate": EvaluateConfig(episodes=4, validation_episodes=2, finalist_episodes=2, num_envs=4),
    }  # fmt: skip
    found, _ = assert_the_same_interrupted(tmp_path, teacher, BEACON.id, **changes)
    assert any("places" in column.part for column in found.dataset._columns)
    monkeypatch.setattr(prepare_module, "frame_stacks", lambda _: {})
    monkeypatch.setattr(View, "stacks", lambda *_: {})
    whole = Interrupted(tmp_path / "plain", teacher, BEACON.id, **changes).run(interrupted=False)
    assert not any("places" in column.part for column in whole.dataset._columns)
    weights = found.kept[-1].student.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in whole.kept[-1].student.state_dict().items())
    np.testing.assert_array_equal(whole.kept[-1].returns, found.kept[-1].returns)


# Figures on the validation seeds.


def state_of(folder: Path, teacher: list[float], random: list[float], first: int = 2) -> State:
    state, _ = run_of(folder, first=first)
    state.teacher_returns, state.random_returns = np.array(teacher), np.array(random)
    return state


def test_retention_is_of_the_means_over_as_many_seeds_as_were_played(tmp_path):
    state = state_of(tmp_path, [6, 8, 100, 100], [-2, 0, 20, 22])
    assert state.retention(np.array([2.0, 4.0])) == 0.5  # (3 + 1) / (7 + 1)
    # (16.75 - 10) / (53.5 - 10)
    assert state.retention(np.array([2.0, 4.0, 30.0, 31.0])) == pytest.approx(6.75 / 43.5)
    assert state.retention(np.array([-5.0, -5.0])) == -0.5
    assert state.reference == (7.0, -1.0)


def test_a_validated_record_has_mean_standard_errors_and_retention(tmp_path):
    state, plain = state_of(tmp_path, [7, 5, 9, 7, 0], [-1, -3, 1, -1, 0], first=4), record(1)
    found = state.validated(plain, np.array([1.0, 2.0, 3.0, 6.0]))
    assert found.validation_return_mean == 3.0
    # squares of the deviations: 4 + 1 + 0 + 9 = 14; variance 14 / 3; of a mean of four, 14 / 12
    assert found.validation_return_standard_error == pytest.approx(math.sqrt(14 / 12))
    assert found.validation_retention == 0.5  # (3 + 1) / (7 + 1)
    # contrasts at a half: 1 - 3, 2 - 1, 3 - 5, 6 - 3; squares 4 + 1 + 4 + 9 = 18; of a mean of four 18 / 12, over a gap of 8
    assert found.validation_retention_standard_error == pytest.approx(math.sqrt(18 / 12) / 8)
    kept = ("number", "env_steps", "gradient_steps", "teacher_action_prob", "train", "held_out")
    assert all(getattr(found, name) == getattr(plain, name) for name in kept)


def test_a_record_whose_teacher_is_chance_has_no_retention_and_one_episode_no_error(tmp_path):
    found = state_of(tmp_path, [2], [2], first=1).validated(record(0), np.array([4.0]))
    assert math.isnan(found.validation_retention)
    assert math.isnan(found.validation_retention_standard_error)
    assert found.validation_return_standard_error == 0.0


def test_a_run_begins_with_room_for_all_its_rows(tmp_path):
    state, services = run_of(tmp_path, collect=CollectConfig(env_steps=103, rounds=2, num_envs=4))
    assert (state.dataset.capacity, len(state.dataset), state.stage) == (100, 0, "imitation")
    assert services.collected_rounds == 0


def test_seconds_are_added_up_for_each_kind_of_work(tmp_path, monkeypatch):
    times = iter([101.0, 103.0, 104.0, 108.0, 109.0, 109.5])
    monkeypatch.setattr(state_module, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    state, _ = run_of(tmp_path)
    state.seconds["polish"] = 10.0
    for work in ("collect", "polish", "collect"):
        with state.timed(work):
            pass
    # 101 to 103, 104 to 108, 109 to 109.5; what was spent before counts
    assert state.seconds == {"collect": 2.5, "train": 0.0, "polish": 14.0, "evaluate": 0.0, "total": 0.0}
