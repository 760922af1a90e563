"""PPO on a student: short runs on worlds of a few lines, with what goes in and comes out compared bit for bit or by hand."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.config import LossConfig, PolishConfig, TrainingFault
from policy_distill.environments.border import own_random_state
from policy_distill.environments.specs import EnvironmentSpec, make
from policy_distill.losses.objective import Objective
from policy_distill.policies.families import family_of
from policy_distill.policies.student import Student
from policy_distill.rollouts.episodes import evaluate
from policy_distill.rollouts.ppo_rollouts import RolloutEnv
from policy_distill.teachers import Teacher
from policy_distill.training.ppo import kickstart as kickstart_module
from policy_distill.training.ppo.kickstart import Kickstart, Snapshot, ppo_on
from policy_distill.training.ppo.vector_ppo import VectorPPO
from tests.small_worlds import (
    WORLDS,
    Walk,
    push_best,
    random_observations,
    random_student,
    walk_best,
)

CONTRARY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Discrete": lambda seen: 2 - walk_best(seen),
    "Box": lambda seen: np.array([4, 1], np.float32) - push_best(seen),  # mirrored between the bounds
    "discrete observations": lambda shown: (shown.reshape(-1) + 1) % 4,
    "MultiDiscrete": lambda shown: (shown + 1) % [2, 3],
    "MultiBinary": lambda shown: 1 - shown,
}
"""Teachers who say what earns nothing."""
TINY = PolishConfig(
    env_steps=256, num_envs=4, num_steps=16, batch_size=32, epochs=2, snapshots=1, critic_warmup=0.0, average_decay=0.0, learning_rate=3e-3,
    target_kl=0.03, std_end=1.0,
)  # fmt: skip
"""Four rollouts of 64 steps, two minibatches each."""


def tiny(**changes: Any) -> PolishConfig:
    return replace(TINY, **changes)


def world(name: str, *, seed: int = 0) -> tuple[Student, Teacher, EnvironmentSpec]:
    spec, teacher = WORLDS[name]
    return random_student(teacher.observation_space, teacher.action_space, seed=seed), teacher, spec


def polish(
    student: Student, teacher: Teacher, spec: EnvironmentSpec, config: PolishConfig, *, seed: int = 0, on_snapshot: Any = None
) -> list[Snapshot]:
    found: list[Snapshot] = []
    objective = Objective(LossConfig(), teacher.family)

    def keep(snapshot: Snapshot) -> bool:
        found.append(snapshot)
        return False

    with environments_of(spec, config, seed=seed) as environments:
        training = Kickstart(student, teacher, objective, config, seed=seed)
        training.begin(environments)
        while not (on_snapshot or keep)(training.next_snapshot(environments)) and not training.over:
            pass
    return found


def environments_of(spec: EnvironmentSpec, config: PolishConfig, *, seed: int = 0) -> contextlib.closing[RolloutEnv]:
    return contextlib.closing(RolloutEnv([functools.partial(make, spec)] * config.num_envs, config.num_steps, seed=seed))


def weights(student: Student) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in student.state_dict().values()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.fixture
def models(monkeypatch) -> list[Any]:
    """PPO of the runs so far."""
    found: list[Any] = []

    def remember(*arguments: Any, **options: Any) -> Any:
        found.append(ppo_on(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(kickstart_module, "ppo_on", remember)
    return found


def begun(name: str, activation: str = "relu") -> tuple[Student, Teacher, VectorPPO]:
    """A student, its teacher and PPO on the student before any step."""
    _, teacher = WORLDS[name]
    student = random_student(teacher.observation_space, teacher.action_space, activation=activation)
    with own_random_state():
        return student, teacher, vector_ppo(student, teacher, Objective(LossConfig(), teacher.family))


def vector_ppo(student: Student, teacher: Teacher, objective: Objective, *, seed: int = 0) -> VectorPPO:
    ppo = ppo_on(student, teacher, objective, TINY, seed=seed)
    assert isinstance(ppo, VectorPPO)
    return ppo


# Where PPO starts.


@pytest.mark.parametrize("name", WORLDS)
def test_ppo_starts_as_the_student(name):
    student, _, ppo = begun(name)
    observations = torch.as_tensor(random_observations(student.observation_space, 100))
    with torch.no_grad():
        torch.testing.assert_close(ppo.outputs(ppo.inputs(observations)), student(observations), rtol=1e-4, atol=1e-4)
    assert same(weights(ppo.actor.member(0)), weights(student))


@pytest.mark.parametrize("name", WORLDS)
def test_the_pull_to_the_teacher_is_the_imitation_loss(name):
    student, teacher, ppo = begun(name)
    observations = torch.as_tensor(random_observations(student.observation_space, 60))
    targets = teacher.targets(observations)
    parameters = {key: value[None] for key, value in targets.parameters.items()}
    objective = Objective(LossConfig(), teacher.family)
    terms = objective.terms(student(observations)[None], student.log_std[None, None], type(targets)(parameters, targets.actions[None]))
    expected = objective.total(terms)[0]
    assert expected.std() > 0
    outputs = ppo.outputs(ppo.inputs(observations))
    torch.testing.assert_close(ppo.penalty(outputs, observations, {}).detach(), expected, rtol=1e-4, atol=1e-4)


def test_the_likelihood_of_drawn_actions_can_pull_too():
    """Its draws depend on the seed alone."""
    found = []
    for state, seed in ((1, 0), (2, 0), (1, 1)):
        set_global_states(state)
        student, _, _ = begun("Discrete")
        teacher = Teacher.from_callable(
            lambda seen: seen[:, [0, 1, 0]] / 10, student.observation_space, student.action_space, outputs="logits"
        )
        ppo = vector_ppo(student, teacher, Objective(LossConfig(kind="nll"), teacher.family), seed=seed)
        observations = torch.as_tensor(random_observations(student.observation_space, 60))
        found.append(ppo.penalty(ppo.outputs(ppo.inputs(observations)), observations, {}).detach())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_critic_s_layers_predict_on_normalised_observations(activation, models):
    student, teacher, _ = begun("Discrete", activation)
    (found,) = polish(student, teacher, WORLDS["Discrete"][0], TINY)
    (ppo,) = models
    observations = torch.as_tensor(random_observations(student.observation_space, 20))
    hidden = (observations - student.mean) / student.scale
    *inner, last = found.critic
    for layer in inner:
        hidden = getattr(torch, activation)(layer(hidden))
    np.testing.assert_allclose(ppo.values(ppo.inputs(observations)), last(hidden)[:, 0], rtol=1e-4, atol=1e-5)
    assert [layer.out_features for layer in found.critic] == [64, 64, 1]


# What comes out.


@pytest.mark.parametrize(
    ("env_steps", "snapshots", "critic_warmup", "expected"),
    [
        # a rollout has 64 steps; looks are due at equal distances after the warm-up, and taken where the next rollout begins
        (640, 1, 0.0, [640]),
        (640, 2, 0.0, [320, 640]),
        (640, 10, 0.0, [64, 128, 192, 256, 320, 384, 448, 512, 576, 640]),
        (640, 4, 0.1, [256, 384, 512, 640]),  # due at 208, 352, 496
        (640, 2, 0.5, [512, 640]),  # due at 480
        (600, 2, 0.0, [320, 640]),  # rounded up to whole rollouts; due at 300
        (1, 1, 0.0, [64]),
    ],
)
def test_looks_are_spread_evenly_over_the_steps_after_the_warm_up(env_steps, snapshots, critic_warmup, expected):
    config = tiny(env_steps=env_steps, snapshots=snapshots, critic_warmup=critic_warmup, epochs=1, batch_size=64)
    found = polish(*world("discrete observations"), config)
    assert [snapshot.env_steps for snapshot in found] == expected


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("teacher_weight", [0.0, 0.5])
def test_every_kind_of_action_can_be_polished(name, teacher_weight):
    student, teacher, spec = world(name)
    before, of_teacher = weights(student), copy.deepcopy(teacher.state_dict())
    first, last = polish(student, teacher, spec, tiny(snapshots=2, teacher_weight=teacher_weight))
    # what was given is as it was, and what comes out is another network of the same form
    assert same(before, weights(student))
    assert all(torch.equal(tensor, of_teacher[key]) for key, tensor in teacher.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in (*student.parameters(), *teacher.parameters()))
    for snapshot in (first, last):
        found = snapshot.student
        assert found.architecture == student.architecture
        assert torch.equal(found.mean, student.mean)
        assert torch.equal(found.scale, student.scale)
        assert all(not torch.equal(*pair) for pair in zip(found.parameters(), student.parameters(), strict=True))
        assert not found.training
        assert not any(parameter.requires_grad for parameter in found.parameters())
        assert all(student.action_space.contains(action) for action in found.act(random_observations(student.observation_space, 20)))
    assert not same(weights(first.student), weights(last.student))
    assert evaluate(last.student, spec, range(4)).returns.shape == (4,)


def test_a_look_is_not_changed_by_what_follows():
    then: list[list[torch.Tensor]] = []
    found: list[Snapshot] = []

    def remember(snapshot: Snapshot) -> None:
        found.append(snapshot)
        then.append(weights(snapshot.student))

    polish(*world("Box"), tiny(snapshots=4), on_snapshot=remember)
    assert len(found) == 4
    assert all(same(kept, weights(snapshot.student)) for kept, snapshot in zip(then, found, strict=True))


def test_what_each_look_reports():
    config = tiny(snapshots=4, teacher_weight=0.5)
    always = {"approximate_kl_nats", "explained_variance", "learning_rate", "train_return_mean"}
    for name, also in (("Discrete", set()), ("Box", {"std"})):
        found = polish(*world(name), config)
        keys = [set(snapshot.metrics) for snapshot in found]
        assert keys == [always | also | {"imitation_loss"}, *[always | also] * 3]  # the teacher is let go after half of the steps
        assert all(isinstance(value, float) for snapshot in found for value in snapshot.metrics.values())
    # rewards are the environment's own here, not the scaled ones that the critic learns from: five steps cost up to 9 each
    assert -45 < found[-1].metrics["train_return_mean"] < -5
    assert found[-1].metrics["std"] == pytest.approx(float(found[-1].student.log_std.exp().mean()))


# The schedule.


def test_nothing_but_the_critic_moves_during_its_head_start():
    critics: list[list[torch.Tensor]] = []

    def remember(snapshot: Snapshot) -> None:
        assert same(before, weights(snapshot.student))
        critics.append([layer.weight for layer in snapshot.critic])

    for name in ("Discrete", "Box"):
        student, teacher, spec = world(name)
        before = weights(student)
        for env_steps in (128, 256):
            config = tiny(env_steps=env_steps, critic_warmup=0.99, teacher_weight=0.5, learning_rate=1e-2)
            polish(student, teacher, spec, config, on_snapshot=remember)
        first, second = critics[-2:]
        assert not any(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert len(critics) == 4


def test_the_actor_moves_from_the_first_rollout_after_the_head_start():
    student, teacher, spec = world("Box")
    # half of 640 steps are over when the rollout from 320 on begins; at 384 the first update is done
    found = polish(student, teacher, spec, tiny(env_steps=640, critic_warmup=0.5, snapshots=5))
    assert [snapshot.env_steps for snapshot in found] == [384, 448, 512, 576, 640]
    assert not same(weights(student), weights(found[0].student))
    # 352 are over only when the one from 384 on begins; the look at 384 is due at 381
    found = polish(student, teacher, spec, tiny(env_steps=640, critic_warmup=0.55, snapshots=10))
    assert [snapshot.env_steps for snapshot in found[:2]] == [384, 448]
    assert same(weights(student), weights(found[0].student))
    assert not same(weights(student), weights(found[1].student))


def test_the_learning_rate_waits_for_the_actor():
    """A policy that stands still moved by rounding errors alone: the rate was doubled on their account, up to ten times its start."""
    config = tiny(env_steps=640, critic_warmup=0.8, learning_rate=1e-4, snapshots=2)
    for name in WORLDS:
        found = polish(*world(name), config)
        assert [snapshot.env_steps for snapshot in found] == [576, 640]
        assert found[0].metrics["learning_rate"] <= 2e-4, name


def test_the_standard_deviation_stays_below_a_line_between_logarithms():
    student, teacher, spec = world("Box")
    looks = polish(student, teacher, spec, tiny(snapshots=4, std_end=0.01))
    for look, share in zip(looks, (0.25, 0.5, 0.75), strict=False):  # the limit falls faster than the updates do
        torch.testing.assert_close(look.student.log_std, student.log_std + share * math.log(0.01))
    looks = polish(student, teacher, spec, tiny(snapshots=4, std_end=1.0))
    assert all(((look.student.log_std - student.log_std).abs() < 0.2).all() for look in looks)


@pytest.mark.parametrize(("target_kl", "expected"), [(1e9, [2e-3, 4e-3, 8e-3]), (1e-9, [5e-4, 2.5e-4, 1.25e-4])])
def test_the_learning_rate_is_doubled_or_halved_towards_the_target(target_kl, expected, models):
    found = polish(*world("Discrete"), tiny(snapshots=4, target_kl=target_kl, learning_rate=1e-3))
    assert [snapshot.metrics["learning_rate"] for snapshot in found] == pytest.approx([*expected, expected[-1]])
    assert models[0].learning_rate == pytest.approx(expected[-1])


def test_the_teacher_s_weight_falls_along_a_line_to_zero_at_half_of_the_steps(models):
    seen: list[tuple[int, float]] = []

    def remember(snapshot: Snapshot) -> None:
        (model,) = models
        seen.append((snapshot.env_steps, model.penalty_weight))

    polish(*world("Discrete"), tiny(env_steps=512, snapshots=8, teacher_weight=2.0, epochs=1), on_snapshot=remember)
    weight = {64: 1.5, 128: 1.0, 192: 0.5}  # 2 (1 - 2 steps / 512)
    assert seen == [(steps, weight.get(steps, 0.0)) for steps in range(64, 513, 64)]


@pytest.mark.parametrize(("teacher_weight", "expected"), [(0.5, [4, 8, 8, 8]), (0.0, [0, 0, 0, 0])])
def test_the_teacher_is_asked_as_long_as_it_has_weight(teacher_weight, expected):
    questions: list[int] = []

    def asked(observations: np.ndarray) -> np.ndarray:
        questions.append(len(observations))
        return walk_best(observations)

    student, _, spec = world("Discrete")
    teacher = Teacher.from_callable(asked, Walk.observation_space, gym.spaces.Discrete(3))
    questions.clear()
    counts: list[int] = []
    polish(student, teacher, spec, tiny(snapshots=4, teacher_weight=teacher_weight), on_snapshot=lambda _: counts.append(len(questions)))
    assert counts == expected  # two epochs of two minibatches in each of the first two of four updates
    assert set(questions) <= {32}


def test_without_averaging_the_student_is_the_last_policy(models):
    student, teacher, spec = world("Box")
    (found,) = polish(student, teacher, spec, tiny())
    assert same(weights(found.student), weights(models[0].actor.member(0)))


def test_the_student_is_the_moving_average_of_the_policies():
    student, teacher, spec = world("Box")
    policies = polish(student, teacher, spec, tiny(snapshots=4))  # what is averaged does not decide what is learnt
    found = polish(student, teacher, spec, tiny(snapshots=4, average_decay=0.75))
    average = [tensor.clone() for tensor in student.parameters()]
    for policy, own in zip(policies, found, strict=True):
        average = [0.75 * old + 0.25 * new for old, new in zip(average, policy.student.parameters(), strict=True)]
        for mine, theirs in zip(average, own.student.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs)
        assert torch.equal(own.student.log_std, policy.student.log_std)


# What is learnt.


@pytest.mark.parametrize(("name", "gain"), [("Discrete", 2.0), ("Box", 3.0), ("discrete observations", 0.3)])
def test_a_bad_student_learns_from_the_reward_alone(name, gain):
    student, teacher, spec = world(name)
    config = tiny(env_steps=2048, num_steps=64, batch_size=64, epochs=4, critic_warmup=0.1, learning_rate=1e-2)
    (found,) = polish(student, teacher, spec, config)
    before, after = (evaluate(policy, spec, range(40)).returns.mean() for policy in (student, found.student))
    assert after > before + gain


def test_the_best_return_is_reached():
    """Naming the number that is shown earns 1."""
    student, teacher, spec = world("discrete observations")
    config = tiny(env_steps=16384, num_steps=64, batch_size=64, epochs=4, critic_warmup=0.1, learning_rate=1e-2)
    assert evaluate(student, spec, range(40)).returns.min() == 0
    (found,) = polish(student, teacher, spec, config)
    assert evaluate(found.student, spec, range(40)).returns.min() == 1


@pytest.mark.parametrize("name", WORLDS)
def test_the_pull_leads_to_the_teacher_even_against_the_reward(name):
    student, _, spec = world(name)
    teacher = Teacher.from_callable(CONTRARY[name], student.observation_space, student.action_space)
    observations = torch.as_tensor(random_observations(student.observation_space, 200))
    objective = Objective(LossConfig(), teacher.family)
    targets = teacher.targets(observations)
    stacked = type(targets)({key: value[None] for key, value in targets.parameters.items()}, targets.actions[None])

    def distance(policy: Student) -> float:
        with torch.no_grad():
            return float(objective.total(objective.terms(policy(observations)[None], policy.log_std[None, None], stacked)).mean())

    config = tiny(env_steps=512, learning_rate=1e-2, target_kl=1e9, epochs=4, snapshots=2)
    free, held = (polish(student, teacher, spec, replace(config, teacher_weight=weight))[0].student for weight in (0.0, 10.0))
    assert distance(held) < 0.7 * min(distance(student), distance(free))


# Chance.


def global_states() -> tuple[Any, ...]:
    return random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002


def set_global_states(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


@pytest.mark.parametrize("name", ["Discrete", "Box"])
def test_the_seed_decides_and_the_global_random_states_do_not(name):
    found = []
    for state, seed in ((1, 3), (2, 3), (1, 4)):
        set_global_states(state)
        (snapshot,) = polish(*world(name), tiny(average_decay=0.5, teacher_weight=0.5), seed=seed)
        found.append((weights(snapshot.student), snapshot.metrics, [layer.weight.detach().clone() for layer in snapshot.critic]))
    one, again, other = found
    assert same(one[0], again[0])
    assert one[1] == again[1]
    assert same(one[2], again[2])
    assert not same(one[0], other[0])


@pytest.mark.parametrize("fails", [False, True])
def test_the_caller_s_random_states_go_on_as_if_nothing_had_happened(fails):
    student, teacher, spec = world("discrete observations")
    set_global_states(5)
    expected = global_states()
    set_global_states(5)

    def maybe_fail(_: Snapshot) -> None:
        if fails:
            raise ZeroDivisionError

    try:
        polish(student, teacher, spec, tiny(), on_snapshot=maybe_fail)
    except ZeroDivisionError:
        assert fails
    assert global_states() == expected


# Environments.


class Strict(gym.Env):
    """One step; an action that is out of bounds by the last bit is none."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, low: float, high: float) -> None:
        self.action_space = gym.spaces.Box(low, high, (1,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is no action"
        return np.ones(1, np.float32), 0.0, True, False, {}


def test_an_action_on_a_bound_is_not_rounded_past_it():
    gym.register("tests/Strict-v0", entry_point="tests.training.ppo.test_kickstart:Strict")
    try:
        for low, high in np.random.default_rng(0).uniform([-3, 0], [0, 3], (6, 2)):
            spec = EnvironmentSpec("tests/Strict-v0", {"low": float(low), "high": float(high)})
            space = Strict(float(low), float(high)).action_space
            teacher = Teacher.from_callable(lambda seen: seen, Strict.observation_space, space)
            student = random_student(Strict.observation_space, space)
            student.log_std.fill_(2.0)  # most actions lie on a bound
            polish(student, teacher, spec, tiny(env_steps=64))
    finally:
        del gym.registry["tests/Strict-v0"]


def test_minibatches_that_do_not_divide_the_rollout_are_no_cause_for_a_warning():
    for batch_size in (48, 512):  # warnings are errors here
        (found,) = polish(*world("discrete observations"), tiny(batch_size=batch_size))
        assert found.env_steps == 256


def test_every_small_world_has_another_family():
    assert len({type(family_of(teacher.action_space)) for _, teacher in WORLDS.values()}) == 4


def test_the_training_ends_where_a_look_was_enough():
    found: list[Snapshot] = []

    def second(snapshot: Snapshot) -> bool:
        found.append(snapshot)
        return len(found) == 2

    polish(*world("Discrete"), tiny(env_steps=1024, snapshots=4), on_snapshot=second)
    assert len(found) == 2
    assert found[-1].env_steps < 1024


def test_a_student_that_diverged_is_not_handed_on(monkeypatch):
    student, teacher, spec = world("Box")
    monkeypatch.setattr(Student, "not_finite", lambda self: "network.0.weight")
    with pytest.raises(TrainingFault, match=r"diverged: the student's network\.0\.weight .*lower polish\.learning_rate"):
        polish(student, teacher, spec, TINY)


# In parts.


def in_parts(student: Student, teacher: Teacher, spec: EnvironmentSpec, config: PolishConfig, objective: Objective) -> list[Snapshot]:
    """All snapshots, each from a training that continues from the state at the last one, in environments of its own."""
    found: list[Snapshot] = []
    state: dict[str, torch.Tensor] | None = None
    over = False
    while not over:
        training = Kickstart(student, teacher, objective, config, seed=0)
        if state is not None:
            training.load_state_dict(state)
        with environments_of(spec, config) as environments:
            training.begin(environments)
            found.append(training.next_snapshot(environments))
        state = {name: tensor.clone() for name, tensor in training.state_dict().items()}
        over = training.over
        torch.manual_seed(len(found))  # of another process
        np.random.seed(len(found))  # noqa: NPY002
    return found


@pytest.mark.parametrize(("name", "loss"), [("Discrete", LossConfig(kind="nll")), ("Box", LossConfig())])
def test_a_training_in_parts_is_the_same_training(name, loss, monkeypatch):
    """The critic's warm-up ends, the imitation loss draws actions and rewards are scaled: all of it goes on."""
    student, teacher, spec = world(name)
    config = tiny(env_steps=640, critic_warmup=0.15, snapshots=8, average_decay=0.9, teacher_weight=0.5, std_end=0.3)
    objective = Objective(loss, teacher.family)
    monkeypatch.setattr("tests.training.ppo.test_kickstart.Objective", lambda *_: objective)
    whole, parts = polish(student, teacher, spec, config), in_parts(student, teacher, spec, config, objective)
    assert len(whole) == len(parts) == 8
    for one, other in zip(whole, parts, strict=True):
        assert same(weights(one.student), weights(other.student))
        assert all(torch.equal(a.weight, b.weight) for a, b in zip(one.critic, other.critic, strict=True))
        assert repr(one.metrics) == repr(other.metrics)
        assert (one.env_steps, one.gradient_steps) == (other.env_steps, other.gradient_steps)
