"""Where a student parts from its teacher: states, costs, episodes and steps that can be worked out by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.config import RequestError
from policy_distill.evaluation import disagreements
from policy_distill.evaluation.disagreements import COSTS, Disagreements, find, parting_step, read_worst_states, worst_states
from policy_distill.policies.families import Categorical
from policy_distill.rollouts import trajectories
from policy_distill.rollouts.episodes import evaluate
from policy_distill.teachers import Teacher
from policy_distill.teachers.networks.acting import DiscreteNetwork
from policy_distill.teachers.networks.critics import StateValue
from tests.small_worlds import (
    DIALS,
    PLACES,
    PUSH,
    SWITCHES,
    WALK,
    Places,
    Push,
    Walk,
    echo_teacher,
    places_best,
    places_teacher,
    push_best,
    walk_best,
    walk_teacher,
)

SEEDS = list(range(40, 70))


class Acting:
    """A policy that is a function."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray]) -> None:
        self.act = function


def lazy(observations: np.ndarray) -> np.ndarray:
    """Walks right, but never left."""
    return np.maximum(walk_best(observations), 1)


class QWalk(torch.nn.Module):
    """Q of one step left, none, right: minus the remaining distance times 10 after it."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        position, target = observations[:, :1], observations[:, 1:]
        after = (position + torch.tensor([-1.0, 0.0, 1.0])).clamp(0, 10)
        return -10 * (after - target).abs()


def q_teacher(**changes: object) -> Teacher:
    network = DiscreteNetwork(QWalk(), Categorical(3), scores="q_values")
    return Teacher(network, Walk.observation_space, gym.spaces.Discrete(3), algo="dqn", **changes)  # type: ignore[arg-type]


def v_teacher(**facts: object) -> Teacher:
    """The best logits, and a critic that says minus the distance: the true value without discount."""

    class Distance(torch.nn.Module):
        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            return -(observations[:, :1] - observations[:, 1:]).abs()

    network = DiscreteNetwork(QWalk(), Categorical(3), scores="logits")
    return Teacher(network, Walk.observation_space, gym.spaces.Discrete(3), algo="ppo", critic=StateValue(Distance()), facts=facts)


def found_by(teacher: Teacher) -> Disagreements:
    return find(Acting(lazy), teacher, WALK, SEEDS)


def left_of_start(found: Disagreements) -> np.ndarray:
    """Of each disagreement, whether the target is on the left."""
    return found.observations[:, 1] < found.observations[:, 0]


def test_a_student_that_acts_as_its_teacher_has_no_disagreements():
    found = find(walk_teacher(), walk_teacher(), WALK, SEEDS)
    assert found.agreement == 1.0
    assert len(found.costs) == len(worst_states(found, 3)) == len(found.worst_episodes()) == 0
    assert set(found.first_steps) == set(found.parting_steps) == {-1}


def test_returns_and_agreement_are_evaluate_s():
    found = found_by(q_teacher())
    reference = evaluate(Acting(lazy), WALK, SEEDS, reference=q_teacher())
    np.testing.assert_array_equal(found.student_returns, reference.returns)
    np.testing.assert_array_equal(found.teacher_returns, evaluate(q_teacher(), WALK, SEEDS).returns)
    assert found.states == reference.env_steps
    assert found.agreement == pytest.approx(reference.agreement)
    assert found.episode_seeds.tolist() == SEEDS


def test_the_student_differs_exactly_where_it_should_have_walked_left():
    found = found_by(q_teacher())
    assert len(found.costs) > 0
    assert left_of_start(found).all()
    assert (found.teacher_actions == 0).all()
    assert (found.student_actions == 1).all()


def test_a_q_gap_is_what_the_student_s_action_is_worth_less():
    """One step less on the way: 10, in each state; twice that where rewards had been halved in training."""
    assert found_by(q_teacher()).cost_kind == "q_gap"
    np.testing.assert_allclose(found_by(q_teacher()).costs, 10.0)
    np.testing.assert_allclose(found_by(q_teacher(reward_scale=2.0)).costs, 20.0)


def test_an_advantage_is_one_step_of_the_teacher_s_critic():
    """Standing still, with V = -distance: V - (-1 + gamma V) = 1 - (1 - gamma) distance, the nearest targets first."""
    found = found_by(v_teacher(gamma=0.75))
    assert found.cost_kind == "advantage"
    distance = np.abs(found.observations[:, 0] - found.observations[:, 1])
    np.testing.assert_allclose(found.costs, 1 - 0.25 * distance)
    assert (np.diff(distance) >= 0).all()
    assert len(set(distance)) > 3
    np.testing.assert_allclose(found_by(v_teacher(gamma=1.0)).costs, 1.0)


def test_the_state_after_the_end_is_worth_nothing():
    """A student that walks, asked where it is wrong by a teacher that would stand still: one step before the target costs 0 in all."""

    class Still(torch.nn.Module):
        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            return torch.tensor([0.0, 1.0, 0.0]).expand(len(observations), 3)

    class Minus(torch.nn.Module):
        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            return torch.full((len(observations), 1), -7.0)

    network = DiscreteNetwork(Still(), Categorical(3), scores="logits")
    facts = {"gamma": 1.0}
    teacher = Teacher(network, Walk.observation_space, gym.spaces.Discrete(3), algo="ppo", critic=StateValue(Minus()), facts=facts)
    found = find(walk_teacher(), teacher, WALK, SEEDS)
    last = np.abs(found.observations[:, 0] - found.observations[:, 1]) == 1
    np.testing.assert_allclose(found.costs[last], -7 - -1)  # V - (reward + 0)
    np.testing.assert_allclose(found.costs[~last], 1.0)  # V - (reward + V)


def test_without_a_discount_or_a_critic_the_cost_is_the_gap_of_log_probabilities():
    """Logits are 10 apart a step."""
    found = found_by(v_teacher())
    assert found.cost_kind == "log_prob_gap"
    np.testing.assert_allclose(found.costs, 10.0, rtol=1e-5)


@pytest.mark.parametrize(("spec", "wrong"), [(DIALS, 2), (SWITCHES, 3)], ids=["dials", "switches"])
def test_components_add_up(spec, wrong):
    """A function's action has 0.999 of each component: ln(0.999 / rest) for each one that is wrong."""
    teacher = echo_teacher(spec)
    sizes = np.asarray(spec.kwargs["sizes"])
    student = Acting(lambda seen: (seen + 1) % (sizes if sizes.ndim else 2))
    found = find(student, teacher, spec, SEEDS)
    assert found.agreement == 0.0
    rest = 0.001 / np.maximum((sizes if sizes.ndim else np.full(3, 2)) - 1, 1)
    np.testing.assert_allclose(found.costs, np.log(0.999 / rest).sum(), rtol=1e-4)
    assert len(rest) == wrong


def test_continuous_actions_have_a_distance_in_halves_of_the_range():
    """4 and 0.5 are half the ranges. A shift of (0.4, 0.03) is (0.1, 0.06) in them: the first is 5 % of the range, the second below."""
    inner = Push().action_space
    assert isinstance(inner, gym.spaces.Box)
    teacher = Teacher.from_callable(lambda seen: 0.5 * push_best(seen), Push.observation_space, inner)
    for shift, differs in (((0.39, 0.03), False), ((0.41, 0.03), True)):
        moved = Acting(lambda seen, shift=shift: (teacher.act(seen) + np.array(shift, np.float32)).astype(np.float32))  # type: ignore[misc]
        found = find(moved, teacher, PUSH, SEEDS)
        assert found.agreement == float(not differs)
        np.testing.assert_allclose(found.costs, np.hypot(shift[0] / 4, shift[1] / 0.5), rtol=1e-3)
    assert found.cost_kind == "action_distance"


def test_episodes_that_fell_are_ranked_and_paired_by_seed():
    found = found_by(q_teacher())
    order = found.worst_episodes()
    assert (np.diff(found.losses[order]) <= 0).all()
    assert set(order) == set(np.flatnonzero(found.teacher_returns > found.student_returns))
    for index in order:
        # The student never moves towards a target on its left: it is wrong from the start, and its teacher is there after -return steps.
        assert found.first_steps[index] == 0
        assert found.student_returns[index] == -12
        # behind by more than a tenth of the loss 12 - d from the step after: level until step d + floor((12 - d) / 10)
        distance = -found.teacher_returns[index]
        assert found.parting_steps[index] == distance + (12 - distance) // 10


@pytest.mark.parametrize(
    ("student", "teacher", "step"),
    [
        ([1, 1, 1, 1], [1, 1, 1, 1], -1),
        ([1, 1, 1, 2], [1, 1, 1, 1], -1),  # better
        ([1, 1, 0, 0], [1, 1, 1, 1], 2),
        ([0, 2, 0, 0], [1, 1, 1, 1], 2),  # behind, level again, behind
        ([1, 1], [1] * 10, 1),  # fell in its second step
        ([-1] * 6, [-1] * 3, 3),  # its teacher was done after three
        ([0.95, 1, 0, 0], [1, 1, 1, 1], 2),  # 0.05 is less than a tenth of 2.05
        ([0.5, 1, 0, 0], [1, 1, 1, 1], 0),
    ],
)
def test_the_step_from_which_on_the_reward_stays_behind(student, teacher, step):
    assert parting_step(np.array(student, float), np.array(teacher, float)) == step


def test_the_costliest_states_come_once_and_in_order():
    found = found_by(v_teacher(gamma=0.75))
    states = worst_states(found, 5)
    assert len(states) == 5
    assert len(np.unique(states, axis=0)) == 5  # a student that stands still is seen in the same state for 12 steps
    np.testing.assert_array_equal(states[0], found.observations[0])
    distance = np.abs(states[:, 0] - states[:, 1])
    assert (np.diff(distance) >= 0).all()
    assert len(worst_states(found, 10_000)) == len(np.unique(found.observations, axis=0))


def test_episodes_that_do_not_fit_into_memory_together_give_the_same(monkeypatch):
    whole = found_by(q_teacher())
    monkeypatch.setattr(trajectories, "AT_ONCE_BYTES", 8 * 12 * 4)  # observations of two floats, 12 steps: four episodes
    assert trajectories.episodes_at_once(WALK, Walk.observation_space) == 4
    parts = found_by(q_teacher())
    for item in dataclasses.fields(Disagreements):
        np.testing.assert_array_equal(getattr(parts, item.name), getattr(whole, item.name))
    monkeypatch.setattr(disagreements, "MAX_OBSERVATION_BYTES", 8 * 7)
    few = found_by(q_teacher())
    assert few.with_observation == 7
    np.testing.assert_array_equal(few.observations, whole.observations[:7])
    np.testing.assert_array_equal(few.costs, whole.costs)
    assert few.agreement == whole.agreement


def test_what_is_saved_is_loaded_without_pickle(tmp_path):
    found = found_by(q_teacher())
    path = found.save(tmp_path / "disagreements.npz")
    with np.load(path, allow_pickle=False) as arrays:
        assert {"observations", "teacher_actions", "student_actions", "costs", "seeds", "steps"} <= set(arrays)
    loaded = Disagreements.load(path)
    for item in dataclasses.fields(Disagreements):
        np.testing.assert_array_equal(getattr(loaded, item.name), getattr(found, item.name))
    assert loaded.cost_kind in COSTS


def test_states_of_a_dict_are_saved_and_read_by_key(tmp_path):
    class Lazy:
        def act(self, observations: dict[str, np.ndarray]) -> np.ndarray:
            return np.maximum(places_best(observations), 1)

    teacher = places_teacher()
    found = find(Lazy(), teacher, PLACES, range(12))
    assert (found.observations["target"] < found.observations["position"][:, 0]).all()
    assert 0 < len(found.observations["target"]) == len(found.costs)
    path = found.save(tmp_path / "disagreements.npz")
    loaded = Disagreements.load(path).observations
    assert list(loaded) == ["target", "position"]
    for key, part in loaded.items():
        np.testing.assert_array_equal(part, found.observations[key])
        assert part.dtype == Places.observation_space[key].dtype
    states, _ = read_worst_states(path, Places.observation_space, 3)
    assert [len(part) for part in states.values()] == [3, 3]
    assert len({(int(target), float(position[0])) for target, position in zip(*states.values(), strict=True)}) == 3
    narrow = gym.spaces.Dict({"target": gym.spaces.Discrete(2), "position": Places.observation_space["position"]})
    keys = r"their keys are \['target', 'position'\], those of its observations \[\]"
    for space, said in ((Walk.observation_space, keys), (narrow, "target: some are not in")):
        with pytest.raises(RequestError, match=said):
            read_worst_states(path, space, 3)


def changed(path: Path, **arrays: Any) -> Path:
    """The file with other arrays; None leaves one out."""
    with np.load(path, allow_pickle=False) as found:
        kept = {name: value for name, value in {**found, **arrays}.items() if value is not None}
    np.savez(path, **kept)
    return path


def test_the_worst_states_are_read_from_a_file(tmp_path):
    found = found_by(v_teacher(gamma=0.75))
    path = found.save(tmp_path / "disagreements.npz")
    for count in (3, 10_000):
        states, environment = read_worst_states(path, Walk.observation_space, count)
        np.testing.assert_array_equal(states, worst_states(found, count))
        assert environment == WALK.id
    wide = changed(path, observations=found.observations.astype(np.float64))
    assert read_worst_states(wide, Walk.observation_space, 3)[0].dtype == np.float64  # some environments return more than they say


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"observations": None}, "no item named 'observations.npy'"),
        ({"environment": None}, "no item named 'environment.npy'"),
        ({"observations": np.array([object()])}, "not numeric"),
        ({"observations": np.float32(1.0)}, "cannot be read"),
        ({"observations": np.empty((0, 2), np.float32)}, "holds no states: the student acted as its teacher"),
        ({"observations": np.ones((3, 4), np.float32)}, r"they are of shape \(4,\), its observations of \(2,\)"),
        ({"observations": np.array([[1.0, np.nan]], np.float32)}, "not finite"),
        ({"observations": np.ones((3, 2), np.float16)}, "they are float16, its observations float32"),
        ({"observations": np.array([["a", "b"]])}, "they are <U1"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused(arrays, said, tmp_path):
    path = changed(found_by(q_teacher()).save(tmp_path / "disagreements.npz"), **arrays)
    with pytest.raises(RequestError, match=said) as caught:
        read_worst_states(path, Walk.observation_space, 10)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spoilt", [b"", b"no zip", "cut", "garbled"])
def test_a_damaged_file_is_refused(spoilt, tmp_path):
    path = found_by(q_teacher()).save(tmp_path / "disagreements.npz")
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes({"cut": content[:half], "garbled": content[:half] + bytes(99) + content[half + 99 :]}.get(spoilt, spoilt))
    with pytest.raises(RequestError, match=r"cannot be read .*: name the disagreements\.npz that compare_policies writes"):
        read_worst_states(path, Walk.observation_space, 10)


def test_a_file_that_is_not_there_or_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    with pytest.raises(RequestError, match="there is no file"):
        read_worst_states(tmp_path / "none.npz", Walk.observation_space, 10)
    path = found_by(q_teacher()).save(tmp_path / "disagreements.npz")
    monkeypatch.setattr("policy_distill.evaluation.disagreements.MAX_BYTES", 1000)
    with pytest.raises(RequestError, match=r"unpacks to .* bytes, more than the .* that are read"):
        read_worst_states(path, Walk.observation_space, 10)


def test_numbers_must_be_in_their_space(tmp_path):
    path = found_by(q_teacher()).save(tmp_path / "disagreements.npz")
    changed(path, observations=np.array([3, 0, 3]))
    assert read_worst_states(path, gym.spaces.Discrete(4), 10)[0].tolist() == [3, 0]
    for space in (gym.spaces.Discrete(3), gym.spaces.Discrete(4, start=1)):
        with pytest.raises(RequestError, match="some are not in Discrete"):
            read_worst_states(path, space, 10)
    changed(path, observations=np.array([0.0, 1.0]))
    with pytest.raises(RequestError, match="some are not in Discrete"):
        read_worst_states(path, gym.spaces.Discrete(4), 10)


def test_a_student_that_is_better_than_its_teacher_shows_in_the_returns():
    """Costs are the teacher's opinion; the return is not."""
    worse = Teacher.from_callable(lazy, Walk.observation_space, gym.spaces.Discrete(3))
    found = find(walk_teacher(), worse, WALK, SEEDS)
    assert len(found.worst_episodes()) == 0
    assert found.agreement < 1
