"""Transitions: real observations, the teacher's own labels, honest flags, whoever acts and however many collect."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.config import EnvironmentFault, Fault
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.environments.vector import seed_of
from policy_distill.policies.actions import ActionTargets
from policy_distill.policies.families import Categorical
from policy_distill.rollouts.collect import NO_EXPLORATION, Collector, Exploration, concatenate, label_states
from policy_distill.rollouts.random_policy import uniform_actions
from policy_distill.rollouts.transitions import NO_EPISODE, Transitions
from policy_distill.teachers import Teacher
from policy_distill.teachers.files.normalization import ObservationNormalization
from policy_distill.teachers.networks.acting import DiscreteNetwork
from policy_distill.training.dataset import Dataset
from tests import rude_worlds as rude
from tests.small_worlds import PUSH, WALK, WALK_LIMIT, WORLDS, Push, Walk, push_best, push_teacher, random_student, walk_best, walk_teacher
from tests.stateful import Counter, CountingTeacher

STEPS, ENVS = 40, 5


def walk_student():
    return random_student(Walk.observation_space, gym.spaces.Discrete(3))


def collected(probability: float = 0.5, *, spec: EnvironmentSpec = WALK, seed: int = 0, student=None, teacher=None) -> Transitions:
    collector = Collector(spec, indices=range(ENVS), num_envs=ENVS, seed=seed)
    return collector.collect(STEPS, teacher or walk_teacher(), student, probability)


def by_env(values: torch.Tensor) -> np.ndarray:
    return values.unflatten(0, (STEPS, ENVS)).numpy()


def assert_equal(one: Transitions, other: Transitions) -> None:
    for field in dataclasses.fields(one):
        if field.name != "targets":
            first, second = getattr(one, field.name), getattr(other, field.name)
            assert first is second is None or torch.equal(first, second), field.name
    assert torch.equal(one.targets.actions, other.targets.actions)
    assert one.targets.parameters.keys() == other.targets.parameters.keys()
    assert all(torch.equal(value, other.targets.parameters[name]) for name, value in one.targets.parameters.items())


def test_rows_follow_the_environment_s_own_dynamics():
    """The next row of an episode is where the executed action, the teacher's or the student's, leads."""
    student = walk_student()
    rows = collected(0.5, student=student)
    observations, episodes = by_env(rows.observations), by_env(rows.episodes)
    students = student.act(rows.observations.numpy())
    executed = by_env(torch.where(rows.by_teacher, rows.targets.actions, torch.as_tensor(students)))
    reached = np.clip(observations[:-1, :, 0] + executed[:-1] - 1, 0, 10)
    goes_on = episodes[1:] == episodes[:-1]
    np.testing.assert_array_equal(observations[1:, :, 0][goes_on], reached[goes_on])
    np.testing.assert_array_equal(observations[1:, :, 1][goes_on], observations[:-1, :, 1][goes_on])
    assert 0.2 < goes_on.mean() < 1
    terminated = by_env(rows.terminated)
    np.testing.assert_array_equal(terminated[:-1], reached == observations[:-1, :, 1])
    assert (rows.rewards == -1).all()


def test_no_row_is_an_observation_on_which_nothing_was_done():
    """In the walk no state shows target and position alike but the last, which is not stored."""
    rows = collected(0.5, student=walk_student())
    assert (rows.observations[:, 0] != rows.observations[:, 1]).all()


def test_episodes_end_where_their_flags_say():
    rows = collected(0.0, student=walk_student())
    episodes, ends = by_env(rows.episodes), by_env(rows.terminated | rows.truncated)
    np.testing.assert_array_equal(episodes[1:] != episodes[:-1], ends[:-1])
    assert not (rows.terminated & rows.truncated).any()
    lengths = torch.bincount(rows.episodes)
    assert lengths.max() == WALK_LIMIT
    cut = rows.episodes[rows.truncated]
    assert len(cut) > 0
    assert (lengths[cut] == WALK_LIMIT).all()
    assert rows.terminated.any()


def test_episode_numbers_are_unique_and_go_on_in_the_next_call():
    collector = Collector(WALK, indices=range(ENVS), num_envs=ENVS, seed=0)
    parts = [collector.collect(STEPS, walk_teacher(), None, 1.0, round_index=index) for index in range(2)]
    episodes = np.concatenate([by_env(part.episodes) for part in parts])
    assert sorted(episodes[0]) == list(range(ENVS))
    for index in range(ENVS):
        own = np.unique(episodes[:, index])
        np.testing.assert_array_equal(own, index + ENVS * np.arange(len(own)))
    last, first = by_env(parts[0].observations)[-1], by_env(parts[1].observations)[0]
    ended = by_env(parts[0].terminated | parts[0].truncated)[-1]
    assert (episodes[STEPS] - episodes[STEPS - 1] == ENVS * ended).all()
    assert (np.abs(last[~ended] - first[~ended]).sum(1) == 1).all()


def test_a_round_in_several_calls_is_the_round_in_one():
    """Who acts and what disturbs go on where the last call stopped, and begin anew in the next round."""
    found = []
    for calls in ((STEPS,), (7, 1, STEPS - 8)):
        collector = Collector(WALK, indices=range(ENVS), num_envs=ENVS, seed=0)
        student, disturbed = walk_student(), Exploration(epsilon=0.3)
        found.append(
            [
                [collector.collect(steps, walk_teacher(), student, 0.5, round_index=index, exploration=disturbed) for steps in calls]
                for index in range(2)
            ]
        )
    for (whole,), parts in zip(*found, strict=True):
        for name in ("observations", "rewards", "by_teacher", "episodes"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts])), name
        assert torch.equal(whole.targets.actions, torch.cat([part.targets.actions for part in parts]))


class Seen(gym.Env):
    """A step or two, in which what is observed has the type that is asked for."""

    def __init__(self, dtype: str) -> None:
        self.observation_space = gym.spaces.Box(0, 200, (2, 3), np.dtype(dtype).type)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, bool(self.np_random.integers(2)), False, {}


gym.register("tests/Seen-v0", entry_point="tests.rollouts.test_collect:Seen")


@pytest.mark.parametrize(
    ("seen", "kept"), [("uint8", torch.uint8), ("int16", torch.int16), ("float32", torch.float32), ("float64", torch.float32)]
)
def test_observations_stay_as_small_as_they_are_and_float64_becomes_float32(seen, kept):
    spec = EnvironmentSpec("tests/Seen-v0", {"dtype": seen})
    env = Seen(seen)
    teacher = Teacher.from_callable(lambda shown: np.zeros(len(shown), np.int64), env.observation_space, env.action_space)
    rows = collected(spec=spec, teacher=teacher)
    dataset = Dataset(len(rows), holdout=0.1, device=torch.device("cpu"))
    dataset.append(rows)
    for observations in (rows.observations, dataset.spread(10_000)[0], dataset.take(torch.arange(5))[0]):
        assert observations.dtype == kept
        assert observations.shape[1:] == (2, 3)


@pytest.mark.parametrize("world", ["walk", "push"])
def test_labels_are_the_teacher_s_targets_of_the_same_rows(world):
    spec, teacher = (WALK, walk_teacher()) if world == "walk" else (PUSH, push_teacher())
    env = Walk() if world == "walk" else Push()
    rows = collected(0.5, spec=spec, teacher=teacher, student=random_student(env.observation_space, env.action_space))
    expected = teacher.targets(rows.observations)
    assert torch.equal(rows.targets.actions, expected.actions)
    assert all(torch.equal(rows.targets.parameters[name], value) for name, value in expected.parameters.items())
    np.testing.assert_array_equal(rows.targets.actions.numpy(), (walk_best if world == "walk" else push_best)(rows.observations.numpy()))


def test_the_teacher_is_asked_once_about_each_observation():
    asked: list[int] = []

    def best(observations: np.ndarray) -> np.ndarray:
        asked.append(len(observations))  # a function of a user's own: one observation at a time
        return walk_best(observations)

    collected(0.5, teacher=Teacher.from_callable(best, Walk.observation_space, gym.spaces.Discrete(3)), student=walk_student())
    assert asked == [1] * ENVS * STEPS


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_teacher_acts_with_its_probability(probability):
    collector = Collector(WALK, indices=range(16), num_envs=16, seed=0)
    by_teacher = collector.collect(100, walk_teacher(), walk_student(), probability).by_teacher.double()
    # five standard errors of 1600 draws; none at the ends
    assert float(by_teacher.mean()) == pytest.approx(probability, abs=5 * np.sqrt(probability * (1 - probability) / 1600))


def test_who_acts_is_drawn_anew_in_each_step_environment_and_round():
    collector = Collector(WALK, indices=range(16), num_envs=16, seed=0)
    first, second = (collector.collect(100, walk_teacher(), walk_student(), 0.5, round_index=index).by_teacher for index in range(2))
    choices = first.unflatten(0, (100, 16)).double()
    correlations = torch.corrcoef(choices.T) - torch.eye(16)
    assert correlations.abs().max() < 0.45
    assert not torch.equal(first, second)
    assert abs(float(torch.corrcoef(torch.stack([first, second]).double())[0, 1])) < 5 / np.sqrt(1600)


def test_without_a_student_the_teacher_acts_always():
    rows = collected(0.0)
    assert rows.by_teacher.all()
    lengths = torch.bincount(rows.episodes[: -2 * ENVS])
    assert lengths.max() <= 10


@pytest.mark.parametrize("world", ["walk", "push"])
def test_the_rows_do_not_depend_on_how_the_environments_are_shared_out(world):
    spec, teacher = (WALK, walk_teacher()) if world == "walk" else (PUSH, push_teacher())
    env = Walk() if world == "walk" else Push()
    student = random_student(env.observation_space, env.action_space, hidden_sizes=(32, 32))

    def collect(*shares: range) -> list[Transitions]:
        collectors = [Collector(spec, indices=share, num_envs=ENVS, seed=3) for share in shares]
        return [
            concatenate([one.collect(STEPS, teacher, student, 0.5, round_index=index) for one in collectors], STEPS) for index in range(2)
        ]

    whole = collect(range(ENVS))
    for parts in (collect(range(2), range(2, ENVS)), collect(*(range(index, index + 1) for index in range(ENVS)))):
        for one, other in zip(whole, parts, strict=True):
            assert_equal(one, other)


def test_the_seed_decides_and_nothing_else_does():
    np.random.seed(1)  # noqa: NPY002 (the global state must not matter)
    torch.manual_seed(1)
    first = collected(0.5, student=walk_student())
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    assert_equal(first, collected(0.5, student=walk_student()))
    assert not torch.equal(first.observations, collected(0.5, student=walk_student(), seed=1).observations)


def test_two_episodes_of_a_run_do_not_begin_alike():
    rows = collected(spec=PUSH, teacher=push_teacher())
    assert len(torch.unique(rows.observations, dim=0)) == STEPS * ENVS


def test_types_and_shapes_are_those_that_are_promised():
    rows = collected(0.5, spec=PUSH, teacher=push_teacher(), student=random_student(Push.observation_space, Push().action_space))
    assert len(rows) == STEPS * ENVS
    assert rows.observations.shape == (STEPS * ENVS, 3)
    assert rows.targets.actions.shape == (STEPS * ENVS, 2)
    kinds = {rows.observations.dtype, rows.rewards.dtype, rows.targets.actions.dtype}
    assert kinds == {torch.float32}
    assert {rows.terminated.dtype, rows.truncated.dtype, rows.by_teacher.dtype} == {torch.bool}
    assert rows.episodes.dtype == torch.int64
    assert not rows.observations.requires_grad


# Policies with a state.


@pytest.mark.parametrize("calls", [(STEPS,), (7, 1, STEPS - 8)])
@pytest.mark.parametrize("shares", [(range(ENVS),), (range(2), range(2, ENVS))])
def test_a_teacher_with_a_state_labels_along_the_trajectory_of_any_policy(calls, shares):
    teacher: Any = CountingTeacher()
    expected = collected(0.5, student=walk_student(), teacher=teacher)
    collectors = [Collector(WALK, indices=share, num_envs=ENVS, seed=0) for share in shares]
    parts = [concatenate([one.collect(steps, teacher, walk_student(), 0.5) for one in collectors], steps) for steps in calls]
    assert torch.equal(torch.cat([part.observations for part in parts]), expected.observations)
    labels, episodes = (np.concatenate([values(part) for part in parts]) for values in (lambda p: p.targets.actions, lambda p: p.episodes))
    seen: dict[int, int] = {}
    for label, episode in zip(labels, episodes, strict=True):
        assert label == seen.get(episode, 0) % 3
        seen[episode] = seen.get(episode, 0) + 1
    assert max(seen.values()) == WALK_LIMIT
    assert not expected.by_teacher.all()


def test_a_student_with_a_state_acts_along_the_trajectory_and_begins_anew_in_each_round():
    student: Any = Counter()
    student.initial_state = lambda num_envs: np.full(num_envs, 3)  # as if three steps were over
    for calls in ((12,), (5, 1, 6)):
        collector, known = Collector(WALK, indices=range(ENVS), num_envs=ENVS, seed=0), np.full(ENVS, -1)
        for index in range(2):
            parts = [collector.collect(steps, walk_teacher(), student, 0.0, round_index=index) for steps in calls]
            seen = np.concatenate([part.observations.numpy() for part in parts]).reshape(12, ENVS, 2)
            episodes = np.concatenate([part.episodes.numpy() for part in parts]).reshape(12, ENVS)
            for env in range(ENVS):
                step = -1 if episodes[0, env] != known[env] else 3  # in an episode that goes on the student knows nothing of the last round
                for row in range(11):
                    step = 0 if row and episodes[row, env] != episodes[row - 1, env] else step + 1
                    if episodes[row, env] == episodes[row + 1, env]:
                        assert seen[row + 1, env, 0] == np.clip(seen[row, env, 0] + step % 3 - 1, 0, 10)
            known = np.where((parts[-1].terminated | parts[-1].truncated)[-ENVS:], -1, episodes[-1])


# Exploration.


def explored(exploration: Exploration, *, spec: EnvironmentSpec = WALK, indices: range = range(ENVS), teacher=None) -> Transitions:
    collector = Collector(spec, indices=indices, num_envs=ENVS, seed=0)
    return collector.collect(STEPS, teacher or walk_teacher(), None, 1.0, exploration=exploration)


def test_epsilon_is_the_share_of_random_actions_and_labels_stay_the_teacher_s():
    """Of the random ones a third is what the teacher would have done; Walk shows what was executed."""
    rows = explored(Exploration(epsilon=0.6))
    observations, episodes = by_env(rows.observations), by_env(rows.episodes)
    np.testing.assert_array_equal(rows.targets.actions.numpy(), walk_best(rows.observations.numpy()))
    best = np.clip(observations[:-1, :, 0] + by_env(rows.targets.actions)[:-1] - 1, 0, 10)
    goes_on = episodes[1:] == episodes[:-1]
    differs = (observations[1:, :, 0] != best)[goes_on].mean()
    assert 0.25 < differs < 0.5  # 0.6 * 2 / 3 = 0.4, less at the walls


def test_without_exploration_nothing_is_drawn():
    assert_equal(explored(NO_EXPLORATION), explored(Exploration(epsilon=0.0, action_noise=0.0)))


def test_noise_is_in_units_of_half_the_range_and_stays_within_the_bounds():
    space = Push().action_space
    assert isinstance(space, gym.spaces.Box)
    streams = [np.random.default_rng(index) for index in range(4000)]
    centre = np.tile(((space.low + space.high) / 2), (4000, 1)).astype(np.float32)
    moved = Exploration(action_noise=0.1).disturb(centre, space, streams)
    np.testing.assert_allclose((moved - centre).std(0), 0.1 * (space.high - space.low) / 2, rtol=0.05)
    wild = Exploration(action_noise=5.0).disturb(centre, space, streams)
    assert (wild >= space.low).all()
    assert (wild <= space.high).all()
    assert (wild == space.high).mean() > 0.3
    assert (centre == (space.low + space.high) / 2).all()  # the given actions are not changed


def test_exploration_does_not_depend_on_how_environments_are_shared():
    whole = explored(Exploration(epsilon=0.3, action_noise=0.2), spec=PUSH, teacher=push_teacher())
    parts = [
        explored(Exploration(epsilon=0.3, action_noise=0.2), spec=PUSH, teacher=push_teacher(), indices=indices)
        for indices in (range(2), range(2, ENVS))
    ]
    assert_equal(whole, concatenate(parts, STEPS))


@pytest.mark.parametrize(
    "space",
    [gym.spaces.Discrete(3, start=2), gym.spaces.MultiDiscrete([2, 3]), gym.spaces.MultiBinary(2), gym.spaces.Box(-1, 3, (2,), np.float64)],
    ids=str,
)
def test_random_actions_cover_their_space_evenly(space):
    stream = np.random.default_rng(0)
    drawn = np.stack([uniform_actions(space, stream) for _ in range(3000)])
    assert all(space.contains(row if row.ndim else int(row)) for row in drawn[:50].astype(space.dtype))
    lows: Any = {"Discrete": 2.0, "Box": -1.0}.get(type(space).__name__, 0.0)
    highs: Any = {"Discrete": 4.0, "Box": 3.0, "MultiDiscrete": np.array([1.0, 2.0])}.get(type(space).__name__, 1.0)
    np.testing.assert_allclose(drawn.mean(0), (lows + highs) / 2, atol=0.1)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("count", [1, 16, 37])
def test_states_without_an_episode_are_labelled_as_any_other(world, count):
    spec, teacher = WORLDS[world]
    seen = Collector(spec, indices=range(ENVS), num_envs=ENVS, seed=0).collect(STEPS, teacher, None, 1.0)
    found = label_states(teacher, seen.observations[:count].numpy())
    assert torch.equal(found.observations, seen.observations[:count])
    assert torch.equal(found.targets.actions, seen.targets.actions[:count])
    for name, value in seen.targets.parameters.items():
        assert torch.equal(found.targets.parameters[name], value[:count])
    assert (found.episodes == NO_EPISODE).all()
    for field in dataclasses.fields(found):
        if field.name not in ("targets", "seen"):
            assert getattr(found, field.name).dtype == getattr(seen, field.name).dtype, field.name
            assert len(getattr(found, field.name)) == count, field.name


def test_states_in_float64_are_labelled_as_they_are_and_kept_in_float32():
    """A hundredth above the mean of a million is nothing in float32."""

    class Sign(torch.nn.Module):
        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.full_like(observations, 1e-3), observations], dim=1)

    network = DiscreteNetwork(Sign(), Categorical(2), scores="logits")
    statistics = ObservationNormalization(mean=np.array([1e6]), var=np.ones(1), epsilon=0.0, clip=10.0)
    teacher = Teacher(network, gym.spaces.Box(0, 1e7, (1,)), gym.spaces.Discrete(2), algo="ppo", normalization=statistics)
    found = label_states(teacher, np.array([[1e6], [1e6 + 0.01]]))
    assert found.targets.actions.tolist() == [0, 1]
    assert found.observations.tolist() == [[1e6], [1e6]]
    assert found.observations.dtype == torch.float32


# Environments and teachers that are not what they should be.


def rude_rows(kind: type[rude.Polite], teacher: Teacher | None = None) -> Transitions:
    own = teacher or Teacher.from_callable(lambda seen: np.full(len(seen), 2), kind.observation_space, kind.action_space)
    return collected(spec=rude.spec_of(kind), teacher=own)


@pytest.mark.parametrize("kind", [rude.RewardArray, rude.Flags, rude.Row, rude.NoSeed, rude.SeedOnly])
def test_answers_in_another_form_are_the_same_rows(kind):
    assert_equal(rude_rows(kind), rude_rows(rude.Polite))


def test_a_first_observation_of_whole_numbers_does_not_cut_the_later_ones():
    seen = rude_rows(rude.FirstWhole).observations
    assert seen.dtype == torch.float32
    assert (seen != seen.round()).any()


def test_nan_in_an_observation_stops_with_seed_and_step():
    with pytest.raises(EnvironmentFault, match=r"^tests/NanObservation-v0, seed \d+, step 13: the observation's number 1 is nan"):
        rude_rows(rude.NanObservation)


def test_episodes_of_an_environment_that_draws_globally_differ():
    rows = rude_rows(rude.DrawsGloballyInSteps)
    starts = rows.observations.reshape(STEPS, ENVS, -1)[0]
    assert len(torch.unique(starts, dim=0)) == ENVS


@pytest.mark.parametrize("world", ["actions", "logits"])
def test_a_teacher_that_answers_with_nan_stops_with_seed_and_step(world, monkeypatch):
    calls = 0

    def bad(observations: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        answers = push_best(observations)
        if calls == 6 * ENVS + 3:  # it is asked about one observation at a time: the third environment in its seventh step
            answers[0] = np.nan
        return answers

    if world == "actions":
        spec, teacher = PUSH, Teacher.from_callable(bad, Push.observation_space, Push().action_space)
    else:
        spec, teacher = WALK, walk_teacher()
        monkeypatch.setattr(
            teacher, "targets", lambda seen: ActionTargets({"logits": torch.full((len(seen), 3), torch.nan)}, torch.ones(len(seen)).long())
        )
    seed, step = (seed_of(0, 2 + ENVS), 2) if world == "actions" else (seed_of(0, 0), 1)  # an episode of Push has five steps
    with pytest.raises(Fault, match=rf"the teacher returned NaN \(\w+\) in {spec.id}, environment \d, seed {seed}, step {step}, for the"):
        collected(spec=spec, teacher=teacher)


def test_the_step_of_an_answer_that_is_nan_is_counted_from_the_episode_s_begin():
    collector, teacher = Collector(PUSH, indices=range(2), num_envs=2, seed=0), push_teacher()
    for steps in (3, 1):  # an episode has five
        collector.collect(steps, teacher, None, 1.0)
    bad = Teacher.from_callable(lambda seen: push_best(seen) + np.float32(np.nan), Push.observation_space, Push().action_space)
    with pytest.raises(Fault, match=rf"environment 0, seed {seed_of(0, 0)}, step 5, for the"):
        collector.collect(1, bad, None, 1.0)
