"""A teacher with a memory wherever it is asked: along the episode, or refused in one line before any work."""

from __future__ import annotations

import contextlib
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.commands.cli import main
from policy_distill.config import LossConfig, PolishConfig, RequestError
from policy_distill.environments.specs import make
from policy_distill.environments.vector import GOES_ON
from policy_distill.evaluation.action_units import in_units
from policy_distill.evaluation.disagreements import find
from policy_distill.losses.objective import Objective
from policy_distill.policies.actions import Box
from policy_distill.policies.student import Architecture, Student
from policy_distill.rollouts.acting import labelling
from policy_distill.rollouts.episodes import evaluate
from policy_distill.rollouts.stochastic import Drawing
from policy_distill.rollouts.workers import Rollouts
from policy_distill.teachers import RecurrentTeacher, Teacher
from policy_distill.training.ppo.kickstart import ppo_on
from tests.teachers.test_recurrent import BLIND, model_of, tiny

RUN = [
    *("--env", "CartPole-v1", "--wrapper", '["MaskVelocityWrapper"]', "--device", "cpu", "--workers", "0", "--check.skip", "true"),
    *("--student.hidden_sizes", "[8]", "--collect.env_steps", "400", "--collect.rounds", "2", "--collect.num_envs", "4"),
    *("--train.gradient_steps", "60", "--train.batch_size", "32", "--evaluate.episodes", "20", "--evaluate.validation_episodes", "5"),
]


@pytest.fixture(scope="module")
def agent(tmp_path_factory) -> str:
    """An untrained agent that sees no velocities."""
    path = tmp_path_factory.mktemp("agent") / "agent.zip"
    model_of(make(BLIND)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def teacher(agent) -> RecurrentTeacher:
    loaded = Teacher.load(agent)
    assert isinstance(loaded, RecurrentTeacher)
    return loaded


@pytest.fixture
def student(teacher) -> Student:
    """Acts by the side on which the pole leans."""
    student = Student(Architecture(teacher.observation_space, teacher.action_space, ())).eval().requires_grad_(False)
    student.linears[0].weight.copy_(torch.tensor([[0.0, 0, -9, 0], [0, 0, 9, 0]]))
    student.linears[0].bias.zero_()
    return student


def test_a_whole_run_with_a_generation_polishing_and_a_comparison(agent, tmp_path):
    run = tmp_path / "run"
    stages = ["--self_distill.generations", "1", "--polish.below", "2", "--polish.env_steps", "1024", "--polish.num_steps", "64"]
    assert main(["distill_policy", *RUN, *stages, "--teacher", agent, "--output", str(run)]) == 0
    assert (run / "report.html").is_file()
    assert main(["compare_policies", "--policy", str(run), "--episodes", "3", "--check.skip", "true"]) == 0
    assert (run / "disagreements.npz").is_file()
    assert main(["render_policy", "--policy", str(run), "--output", str(tmp_path / "film.gif"), "--max_steps", "20"]) == 0
    measured = ["evaluate_policy", "--policy", str(run), "--teacher", agent, "--episodes", "20", "--check.skip", "true"]
    certified = [*measured, "--certify", "0.1", "--max_episodes", "60", "--output", str(tmp_path / "certificate.json")]
    assert main(certified) in (0, 3)
    assert main(["verify_certificate", "--certificate", str(tmp_path / "certificate.json"), "--workers", "0"]) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--collect.extra_states", "states.npz"], "collect.extra_states are single states"),
        (["--value.hidden_sizes", "[8]"], "has a memory, and so has its critic"),
        (["--student.hidden_sizes", "null", "--student.same", "true"], "student.same asks for the teacher's architecture"),
        (["--loss.features.weight", "1"], "those of a teacher with a memory are not recorded"),
        (["--loss.relations.weight", "1", "--loss.relations.layers", "{lstm: hidden0}"], "are not recorded"),
    ],
)
def test_what_asks_about_single_states_is_refused_before_any_work(agent, tmp_path, capsys, options, says):
    assert main(["distill_policy", *RUN, *options, "--teacher", agent, "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert says in " ".join(error.split())
    assert not (tmp_path / "run").exists()


def test_relations_of_its_outputs_are_learned(agent, tmp_path):
    layers = ["--loss.relations.weight", "1", "--loss.relations.layers", "{output: output}", "--polish.below", "0"]
    assert main(["distill_policy", *RUN, *layers, "--teacher", agent, "--output", str(tmp_path / "run")]) == 0


def test_teachers_with_a_memory_are_not_combined(teacher):
    with pytest.raises(RequestError, match="teachers with one cannot be combined"):
        Teacher.ensemble([teacher, teacher])


def test_drawn_actions_follow_the_memory_and_the_seed_alone(teacher):
    policy = Drawing(teacher)
    returns = [evaluate(policy, BLIND, range(12), num_envs=count).returns for count in (1, 5, 12)]
    np.testing.assert_array_equal(returns[0], returns[1])
    np.testing.assert_array_equal(returns[0], returns[2])
    assert not np.array_equal(returns[0], evaluate(teacher, BLIND, range(12)).returns)
    seen = np.random.default_rng(0).normal(size=(6, 4, 4)).astype(np.float32)
    state, memory = policy.initial_state(4), teacher.initial_state(4)
    for step, observations in enumerate(seen):
        starts = np.full(4, 9 if step == 0 else GOES_ON)
        targets, memory = teacher.label(observations, memory, starts)
        actions, state = policy.step(observations, state, starts)
        assert actions.shape == targets.actions.shape
        for name, values in memory.items():
            assert torch.equal(state[1][name], values)


def test_a_comparison_labels_the_students_episodes_from_their_beginning(teacher, student):
    found = find(student, teacher, BLIND, range(6))
    beside = evaluate(student, BLIND, range(6), reference=teacher)
    assert found.agreement == pytest.approx(beside.agreement)
    assert 0 < found.agreement < 1
    assert found.cost_kind == "log_prob_gap"
    assert (found.costs > 0).all()  # another action is less likely than the likeliest


@pytest.mark.parametrize("workers", [0, 2])
def test_polishing_is_held_to_labels_along_the_rollouts(teacher, student, workers):
    with (
        Rollouts(BLIND, teacher, num_envs=4, seed=0, workers=workers) as rollouts,
        contextlib.closing(rollouts.for_ppo(3, 20, seed=1)) as environments,
    ):
        environments.reset()
        player, ended = labelling(teacher, 3), 0
        state = player.initial_state(3)
        for _ in range(4):  # an episode goes on from one rollout to the next
            ended += len(environments.rollout(student))
            for step in range(20):
                starts = np.where(environments.starts[step], 0, GOES_ON)
                (parameters, actions), state = player.step(environments.observations[step], state, starts)
                np.testing.assert_array_equal(environments.labels["actions"][step], actions)
                np.testing.assert_array_equal(environments.labels["logits"][step], parameters["logits"])
        assert ended > 2
        check_penalty(teacher, student, environments)


def check_penalty(teacher: RecurrentTeacher, student: Student, environments: Any) -> None:
    """The penalty of each transition is the KL from the label beside it."""
    config = PolishConfig()
    ppo: Any = ppo_on(student, teacher, Objective(LossConfig(), teacher.family), config, seed=0)
    batch, _ = ppo.transitions(environments, [])
    outputs = ppo.outputs(batch.inputs)
    expected = torch.nn.functional.kl_div(
        outputs.log_softmax(-1), batch.labels["logits"].log_softmax(-1), log_target=True, reduction="none"
    )
    torch.testing.assert_close(ppo.penalty(outputs, batch.observations, batch.labels), expected.sum(-1), rtol=1e-4, atol=1e-5)
    flat = environments.labels["actions"].T.ravel()  # environment after environment, as the transitions
    np.testing.assert_array_equal(batch.labels["actions"].numpy(), flat)


def test_units_of_actions_change_what_is_said_and_not_what_is_done():
    space = gym.spaces.Box(-1e5, 1e5, (2,), np.float32)
    teacher = Teacher.from_sb3(model_of(tiny(gym.spaces.Box(-5, 5, (4,), np.float32), space)))
    assert isinstance(teacher, RecurrentTeacher)
    box = Box.from_space(space)
    twin = in_units(teacher, Box(box.low, box.high, units=((2.0, 4.0), (1.0, 0.0))))
    seen = np.ones((1, 4), np.float32)
    one, other = (labelling(agent, 1).step(seen, labelling(agent, 1).initial_state(1), None)[0] for agent in (teacher, twin))
    np.testing.assert_allclose(one[1], other[1], rtol=1e-6)
    np.testing.assert_allclose(other[0]["mean"], (one[1] - [1, 0]) / [2, 4], rtol=1e-5)
    assert teacher.family != twin.family
