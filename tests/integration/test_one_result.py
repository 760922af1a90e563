"""The same returns, transitions and certificate, bit for bit, for any number of processes and environments, on several kernels.

The environment is chaotic: a difference in the last bit of an action is a difference in the first digit of the return.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.evaluation.certify import certificate, play
from policy_distill.evaluation.statistics import Plan
from policy_distill.policies.student import Student
from policy_distill.rollouts.collect import Collector, concatenate
from policy_distill.rollouts.episodes import evaluate
from policy_distill.rollouts.numpy_policies import actor, labeller, outputs_of
from policy_distill.rollouts.stochastic import Drawing
from policy_distill.rollouts.trajectories import record
from policy_distill.rollouts.transitions import Transitions
from policy_distill.rollouts.workers import Rollouts
from policy_distill.teachers import Teacher
from tests.kernels import KERNELS, run_on
from tests.policies.test_rowwise import depends_on_more_than_its_row
from tests.rollouts.test_numpy_policies import KINDS, teacher_of
from tests.small_worlds import ACTED, SEEN, random_student
from tests.teachers.conftest import build

SPEC = EnvironmentSpec("tests/Chaos-v0")
SEEDS = list(range(20))
TEAMS = {
    "team of logits and Q-values": ("ppo, discrete", "dqn"),
    "team of dials": ("ppo, dials", "ppo, dials"),
    "team of switches": ("ppo, switches", "ppo, switches"),
    "team of Gaussians": ("ppo, bounds that are not symmetric", "a2c, gSDE"),
    "team of actions": ("sac", "td3"),
}


class Chaos(gym.Env):
    """Logistic maps that are pushed by the actions; a difference doubles with each step. What is earned is where they stand."""

    observation_space = gym.spaces.Box(-1, 1, (5,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-0.9, 0.9, 5)
        return self.state.astype(np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        pushed = np.clip(self.state + 0.05 * np.resize(action, 5), -1, 1)
        self.state = 1 - 2 * pushed * pushed
        return self.state.astype(np.float32), float(self.state.sum()), False, False, {}


gym.register("tests/Chaos-v0", entry_point="tests.integration.test_one_result:Chaos", max_episode_steps=80)


def agents() -> dict[str, Teacher]:
    """One of each way in which a teacher is asked; widths at which one product of all rows rounds them differently."""
    space, acted = Chaos.observation_space, Chaos.action_space
    rebuilt = {
        "large, gSDE": build("PPO", space, acted, use_sde=True, policy_kwargs={"net_arch": [96, 130]}),
        "tqc": build("TQC", space, acted, policy_kwargs={"net_arch": [24, 17]}),
        "gelu": build("TD3", space, acted, policy_kwargs={"net_arch": [33, 7], "activation_fn": torch.nn.GELU}),
    }
    found = {name: Teacher.from_sb3(model) for name, model in rebuilt.items()}
    found["recorded"] = found["tqc"].recording(found["tqc"].layers())
    found["ensemble"] = Teacher.ensemble([found["large, gSDE"], found["tqc"]])
    weights = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
    found["callable"] = Teacher.from_callable(lambda seen: np.tanh(seen @ weights), space, acted)
    return found


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()[:12]


def of_transitions(rows: Transitions) -> str:
    parameters = [values.numpy() for _, values in sorted(rows.targets.parameters.items())]
    return digest(rows.observations.numpy(), rows.rewards.numpy(), rows.targets.actions.numpy(), *parameters)


def collected(teacher: Teacher, student: Student, parts: int) -> str:
    """What 18 environments see, shared out to so many collectors."""
    shares = np.array_split(np.arange(18), parts)
    collectors = [Collector(SPEC, indices=range(share[0], share[-1] + 1), num_envs=18, seed=3) for share in shares]
    return of_transitions(concatenate([one.collect(60, teacher, student, 0.5) for one in collectors], 60))


def rolled(student: Student, workers: int) -> str:
    """Two rollouts of PPO."""
    with Rollouts(SPEC, None, num_envs=11, seed=0, workers=workers) as rollouts:
        env = rollouts.for_ppo(11, 60, seed=1)
        env.reset()
        for _ in range(2):
            env.rollout(student)
        return digest(env.observations, env.actions, env.rewards)


def certified(student: Student, teacher: Teacher, workers: int, num_envs: int) -> str:
    with Rollouts(SPEC, teacher, num_envs=num_envs, seed=0, workers=workers) as rollouts:
        found = play(rollouts, student, Plan.of(0.95, max_episodes=60), num_envs=num_envs)
    data = certificate(found, spec=SPEC, student={}, teacher={})
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def shaky_labels() -> list[str]:
    """Kinds of teachers and students whose answer depends on more than its row."""

    def asked(teacher: Teacher, rows: int) -> Callable[[np.ndarray], np.ndarray]:
        label = labeller(teacher, rows)

        def answer(observations: np.ndarray) -> np.ndarray:
            parameters, actions = label(observations)
            return np.concatenate([part.reshape(rows, -1).astype(np.float64) for part in (*parameters.values(), actions)], axis=1)

        return answer

    def asked_student(student: Student, rows: int) -> Callable[[np.ndarray], np.ndarray]:
        outputs, act = outputs_of(student, rows), actor(student, rows)
        return lambda seen: np.concatenate([outputs(seen).copy(), act(seen).reshape(rows, -1)], axis=1)

    kinds = {kind: teacher_of(kind, normalized=True) for kind in KINDS}
    for name, members in TEAMS.items():
        kinds[name] = Teacher.ensemble([kinds[kind] for kind in members])
    found = [name for name, teacher in kinds.items() if depends_on_more_than_its_row(functools.partial(asked, teacher), 3)]
    for space in ACTED:
        student = random_student(SEEN, space, hidden_sizes=(33, 17), activation="silu")
        if depends_on_more_than_its_row(functools.partial(asked_student, student), 3):
            found.append(f"student in {space}")
    return found


def report() -> str:
    """For each way of taking it: a digest of the result for each number of processes or environments."""
    torch.set_num_threads(1)
    found: dict[str, list[str]] = {}
    students = {name: random_student(Chaos.observation_space, Chaos.action_space, hidden_sizes=(17, 12), activation=name)
                for name in ("tanh", "silu")}  # fmt: skip
    student, teachers = students["tanh"], agents()
    policies: dict[str, Any] = {**teachers, **students, "drawing": Drawing(student)}
    for name, policy in policies.items():
        seeds = SEEDS[:6] if name in ("ensemble", "gelu", "callable") else SEEDS
        runs = [evaluate(policy, SPEC, seeds, num_envs=count).returns for count in (1, 5, 16)]
        found[f"returns of {name}"] = [digest(returns) for returns in runs]
        assert np.ptp(runs[0]) > 1
    for name, teacher in teachers.items():
        found[f"labels of {name}"] = [collected(teacher, student, parts) for parts in (1, 3, 18)]
    found["rollouts"] = [rolled(student, workers) for workers in (0, 2, 3)]
    teacher = teachers["large, gSDE"]
    found["certificate"] = [certified(student, teacher, *how) for how in ((0, 16), (1, 1), (2, 5), (3, 16), (8, 16))]
    returns = evaluate(teacher, SPEC, SEEDS).returns
    found["rows"] = ["", *shaky_labels()]
    found["step by step"] = [digest(returns), digest(np.array([one.episode_return for one in record(teacher, SPEC, SEEDS)]))]
    return json.dumps(found)


@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_depends_on_processes_and_environments(kernel):
    found = json.loads(run_on(kernel, "-c", "from tests.integration.test_one_result import report; print(report())"))
    assert len(found) > 15
    assert {name: digests for name, digests in found.items() if len(set(digests)) > 1} == {}


def test_the_environment_shows_a_last_bit():
    """The weights of a copy differ by one rounding: the returns differ by whole points."""
    student = random_student(Chaos.observation_space, Chaos.action_space, hidden_sizes=(17, 12), activation="tanh")
    one = evaluate(student, SPEC, SEEDS).returns
    student.linears[-1].bias.mul_(1 + torch.finfo().eps)
    assert np.abs(evaluate(student, SPEC, SEEDS).returns - one).max() > 1
