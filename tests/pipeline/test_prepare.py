"""A request is checked before any work: what is refused, what is said, what is settled."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from policy_distill.config import (
    CollectConfig,
    DistillConfig,
    EnsembleConfig,
    EvaluateConfig,
    FeatureConfig,
    LossConfig,
    RequestError,
    StudentConfig,
    TrainConfig,
)
from policy_distill.evaluation.disagreements import find, read_worst_states
from policy_distill.export.sb3 import save_ppo
from policy_distill.pipeline.prepare import prepare, write_config
from policy_distill.policies.architecture import count_parameters
from policy_distill.support.files import writable_folder
from policy_distill.support.threads import one_torch_thread
from policy_distill.teachers import Teacher
from tests import rude_worlds as rude
from tests.small_worlds import (
    BEACON,
    PUSH,
    WALK,
    Beacon,
    Walk,
    beacon_best,
    push_teacher,
    random_student,
    walk_best,
    walk_expert,
    walk_teacher,
)

CARTPOLE = gym.make("CartPole-v1").unwrapped
LANDER = gym.spaces.Box(-1, 1, (8,), np.float32)


def request(tmp_path: Path, **changes: Any) -> DistillConfig:
    start = DistillConfig(env=WALK.id, output=str(tmp_path / "run"), device="cpu", student=StudentConfig(hidden_sizes=(8,)))
    return dataclasses.replace(start, **changes)


def refused(tmp_path: Path, live: Teacher | None = None, /, **changes: Any) -> str:
    with pytest.raises(RequestError) as caught:
        prepare(request(tmp_path, **changes), live)
    assert not (tmp_path / "run").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def zoo_folder(root: Path, env: str, observations: gym.Space, actions: gym.Space, config: str = "normalize: false\n") -> Path:
    """A run in the RL Zoo's layout."""
    run = root / "ppo" / f"{env}_1"
    (run / env).mkdir(parents=True)
    save_ppo(random_student(observations, actions), run / f"{env}.zip")
    (run / env / "config.yml").write_text(config)
    return run


def sized_teacher(params: int) -> Teacher:
    return Teacher.from_callable(walk_best, Walk.observation_space, gym.spaces.Discrete(3), params=params)


# Refused.


def test_no_teacher(tmp_path):
    assert "no teacher was named: give --teacher" in refused(tmp_path)


def test_a_teacher_that_is_not_there(tmp_path):
    assert "nowhere.zip does not exist" in refused(tmp_path, teacher=str(tmp_path / "nowhere.zip"))


def test_an_unknown_environment(tmp_path):
    assert "nearest: tests/Walk-v0" in refused(tmp_path, walk_teacher(), env="tests/Wolk-v0")


def test_no_environment_at_all(tmp_path):
    assert "give --env" in refused(tmp_path, walk_teacher(), env=None)


def test_observations_of_another_size(tmp_path):
    line = refused(tmp_path, walk_teacher(), env="CartPole-v1")
    assert line.startswith("the agent's observations are 2 numbers, those of CartPole-v1 are 4 numbers")


def test_actions_of_another_kind(tmp_path):
    teacher = Teacher.from_callable(walk_best, Walk.observation_space, gym.spaces.Discrete(4))
    assert "actions are one of 4 choices, those of tests/Walk-v0 are one of 3 choices" in refused(tmp_path, teacher)


def test_a_loss_that_the_actions_do_not_have(tmp_path):
    assert "use 'kl'" in refused(tmp_path, walk_teacher(), loss=LossConfig(kind="regression"))


def test_a_size_that_cannot_be_chosen(tmp_path):
    assert "give student.hidden_sizes" in refused(tmp_path, walk_teacher(), student=StudentConfig())


@pytest.mark.parametrize("device", ["abacus", "meta"])
def test_an_unknown_device(device, tmp_path):
    assert refused(tmp_path, walk_teacher(), device=device) == f"device is {device!r}; it must be auto, cpu or cuda"


def test_cuda_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "use --device cpu or auto" in refused(tmp_path, walk_teacher(), device="cuda")
    assert prepare(request(tmp_path, device="auto"), walk_teacher()).device == torch.device("cpu")


def compared(path: Path) -> Path:
    """What a comparison left of a student that never moves."""
    standing = Teacher.from_callable(lambda seen: np.ones(len(seen), np.int64), Walk.observation_space, gym.spaces.Discrete(3))
    return find(standing, walk_teacher(), WALK, range(20)).save(path)


def test_extra_states_that_are_not_there_or_of_another_space(tmp_path):
    missing = CollectConfig(extra_states=str(tmp_path / "none.npz"))
    assert "there is no file" in refused(tmp_path, walk_teacher(), collect=missing)
    states = CollectConfig(extra_states=str(compared(tmp_path / "states.npz")))
    said = refused(tmp_path, push_teacher(), env=PUSH.id, collect=states)
    assert f"holds states of {WALK.id}, which are not observations of the teacher: they are of shape (2,), its observations of (3,)" in said


def test_extra_states_are_read_and_reported(tmp_path):
    path = compared(tmp_path / "states.npz")
    all_of_them, _ = read_worst_states(path, Walk.observation_space, 10_000)
    job = prepare(request(tmp_path, collect=CollectConfig(extra_states=str(path), max_extra_states=7)), walk_teacher())
    assert job.extra_states is not None
    np.testing.assert_array_equal(job.extra_states, all_of_them[:7])
    assert job.notices == (f"7 states of {path} join the first round's data; they are no environment steps",)
    gym.register("tests/OtherWalk-v0", entry_point="tests.small_worlds:Walk")
    try:
        other = prepare(request(tmp_path, env="tests/OtherWalk-v0", collect=CollectConfig(extra_states=str(path))), walk_teacher())
    finally:
        del gym.registry["tests/OtherWalk-v0"]
    assert other.notices[1] == f"these states were found in {WALK.id}, not in tests/OtherWalk-v0"
    assert prepare(request(tmp_path), walk_teacher()).extra_states is None


def test_a_folder_that_a_file_is_in_the_way_of(tmp_path):
    (tmp_path / "file").write_text("")
    line = refused(tmp_path, walk_teacher(), output=str(tmp_path / "file" / "run"))
    assert f"{tmp_path / 'file' / 'run'} cannot be written (Not a directory): choose another with --output" in line


def test_a_folder_without_permission(tmp_path, monkeypatch):
    def deny(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", deny)
    with pytest.raises(RequestError, match=r"cannot be written \(Permission denied\)"):
        writable_folder(tmp_path / "run")


def test_statistics_that_are_missing(tmp_path):
    run = zoo_folder(tmp_path, "CartPole-v1", CARTPOLE.observation_space, CARTPOLE.action_space, "normalize: true\n")
    line = refused(tmp_path, teacher=str(run), env=None)
    assert f"statistics are missing: put vecnormalize.pkl at {run / 'CartPole-v1' / 'vecnormalize.pkl'}" in line


# Said.


def test_a_fitting_request_says_nothing(tmp_path):
    expert = save_ppo(walk_expert(), tmp_path / "ppo.zip")
    job = prepare(request(tmp_path, teacher=str(expert)))
    assert job.notices == ()
    assert job.folder == tmp_path / "run"
    assert list(job.folder.iterdir()) == []  # the probe is gone
    assert job.spec == WALK


def test_an_environment_of_old_is_run_as_the_one_of_today(tmp_path):
    run = zoo_folder(tmp_path, "LunarLander-v2", LANDER, gym.spaces.Discrete(4))
    job = prepare(request(tmp_path, teacher=str(run), env=None))
    assert job.spec.id == "LunarLander-v3"
    (notice,) = job.notices
    assert notice.startswith("trained on LunarLander-v2; run here on LunarLander-v3")
    assert notice.endswith("override with --env")


@pytest.mark.parametrize(("width", "said"), [(13, False), (14, True), (20, True)])
def test_a_student_no_smaller_than_its_teacher_is_a_notice(width, said, tmp_path):
    # 2 -> h -> 3 has 3 h + 3 (h + 1) = 6 h + 3 parameters: 81, 87, 123; the teacher 87
    job = prepare(request(tmp_path, student=StudentConfig(hidden_sizes=(width,))), sized_teacher(87))
    assert job.architecture.params == 6 * width + 3
    assert [f"student's {6 * width + 3} parameters are no fewer than the teacher's 87" in notice for notice in job.notices] == [True] * said


@pytest.mark.parametrize(("compression", "said"), [(10, False), (100, True)])
def test_a_compression_that_the_smallest_student_does_not_reach_is_a_notice(compression, said, tmp_path):
    # two layers of 4 units: 3 * 4 + 5 * 4 + 5 * 3 = 47 parameters
    job = prepare(request(tmp_path, student=StudentConfig(compression=compression)), sized_teacher(600))
    assert job.architecture.params == 47
    text = "student.compression 100 allows 6 parameters, and the smallest student that is chosen has 47"
    assert [text in notice for notice in job.notices] == [True] * said


def test_spaces_that_sb3_miscounts_are_a_notice(tmp_path):
    space = gym.spaces.Discrete(3, start=1)
    gym.register("tests/FromOne-v0", entry_point=lambda: gym.wrappers.TransformAction(Walk(), lambda action: action - 1, space))  # type: ignore[arg-type]
    try:
        teacher = Teacher.from_callable(lambda seen: walk_best(seen) + 1, Walk.observation_space, space)
        notices = prepare(request(tmp_path, env="tests/FromOne-v0"), teacher).notices
    finally:
        del gym.registry["tests/FromOne-v0"]
    assert len(notices) == 1
    assert notices[0].startswith("no student.zip is written: Stable-Baselines3 does not support")


# Settled.


def test_statistics_are_read_where_the_settings_ask_for_them(tmp_path):
    run = zoo_folder(tmp_path, "CartPole-v1", CARTPOLE.observation_space, CARTPOLE.action_space, "normalize: true\n")
    wrapper = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]), clip_obs=3.0)
    assert not isinstance(wrapper.obs_rms, dict)
    wrapper.obs_rms.mean, wrapper.obs_rms.var = np.array([1.0, 2.0, 3.0, 4.0]), np.full(4, 0.25)
    wrapper.save(str(run / "CartPole-v1" / "vecnormalize.pkl"))
    normalization = prepare(request(tmp_path, teacher=str(run), env=None)).teacher.normalization
    assert normalization is not None
    assert normalization.mean.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert normalization.var.tolist() == [0.25] * 4
    assert normalization.clip == 3.0
    (run / "CartPole-v1" / "config.yml").write_text("normalize: false\n")
    assert prepare(request(tmp_path, teacher=str(run), env=None)).teacher.normalization is None


@pytest.mark.parametrize(
    ("params", "compression", "sizes"),
    [
        # 2 -> h -> h -> 3 has 3 h + h (h + 1) + 3 (h + 1) = h**2 + 7 h + 3 parameters: h = 8: 123, 9: 147; 12: 231, 13: 263
        (1251, None, (8, 8)),  # a tenth is 125.1
        (1251, 5.0, (12, 12)),  # a fifth is 250.2
        (1230, None, (8, 8)),
        (1229, None, (7, 7)),
        (100, 10.0, (4, 4)),  # the narrowest
        (9, 10.0, ()),  # a linear teacher has a linear student
    ],
)
def test_the_widths_follow_from_the_compression(params, compression, sizes, tmp_path):
    job = prepare(request(tmp_path, student=StudentConfig(compression=compression)), sized_teacher(params))
    assert job.architecture.hidden_sizes == sizes
    assert job.architecture.params == count_parameters((2, *sizes, 3))


@pytest.mark.parametrize(
    ("asked", "own", "settled"),
    [
        ("auto", "Tanh", "tanh"), ("auto", "SiLU", "silu"), ("auto", "LeakyReLU", "relu"), ("auto", None, "relu"), ("elu", "Tanh", "elu"),
    ],
)  # fmt: skip
def test_the_activation_is_the_teacher_s_own_unless_named(asked, own, settled, tmp_path, monkeypatch):
    monkeypatch.setattr(Teacher, "describe", lambda self: {"activation": own})
    student = StudentConfig(hidden_sizes=(8,), activation=asked)
    assert prepare(request(tmp_path, student=student), walk_teacher()).architecture.activation == settled


def test_the_folder_is_named_after_algorithm_environment_and_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = prepare(request(tmp_path, output=None, seed=3), walk_teacher())
    assert job.folder == Path("runs/callable-tests-Walk-v0-3")
    assert (tmp_path / job.folder).is_dir()


def test_the_loss_follows_from_the_actions(tmp_path):
    assert prepare(request(tmp_path), walk_teacher()).objective.kind == "kl"
    assert prepare(request(tmp_path, env="tests/Push-v0"), push_teacher()).objective.kind == "regression"


def test_what_was_settled_is_written(tmp_path):
    job = prepare(request(tmp_path, student=StudentConfig(compression=5.0), seed=3), sized_teacher(1251))
    write_config(job)
    written = yaml.safe_load((job.folder / "config.yaml").read_text())
    rest = {
        "compression": None,
        "activation": "relu",
        "same": False,
        "channels": None,
        "inputs": None,
        "memory": "none",
        "memory_size": None,
        "bits": None,
        "pruning": None,
    }
    assert written["student"] == {"hidden_sizes": [12, 12], **rest}
    assert (written["seed"], written["output"], written["env"]) == (3, str(tmp_path / "run"), WALK.id)


# Several agents.


@pytest.fixture
def zips(tmp_path) -> tuple[str, str]:
    """Two agents that act on Walk: 2 -> 32 -> 32 -> 3 has 1251 parameters, 2 -> 8 -> 8 -> 3 has 123."""
    novice = random_student(Walk.observation_space, gym.spaces.Discrete(3))
    return str(save_ppo(walk_expert(), tmp_path / "expert.zip")), str(save_ppo(novice, tmp_path / "novice.zip"))


def team(*others: str, **settings: Any) -> dict[str, Any]:
    return {"ensemble": EnsembleConfig(teachers=others, **settings)}


def test_agents_that_teach_together_are_one_teacher(zips, tmp_path):
    expert, novice = zips
    job = prepare(request(tmp_path, teacher=expert, **team(novice, weights=(3.0, 1.0))))
    assert (job.teacher.algo, job.teacher.path, job.teacher.params) == ("ensemble", None, 1251 + 123)
    assert job.teacher.describe()["members"] == [expert, novice]
    observations = np.random.default_rng(0).integers(0, 11, (64, 2)).astype(np.float32)
    logits = [Teacher.load(path).targets(torch.tensor(observations)).parameters["logits"] for path in zips]
    expected = 0.75 * logits[0].softmax(-1) + 0.25 * logits[1].softmax(-1)
    torch.testing.assert_close(job.teacher.targets(torch.tensor(observations)).parameters["logits"].exp(), expected)
    assert job.objective.kind == "kl"
    assert job.architecture.activation == "relu"


def test_a_live_teacher_may_lead_the_others(zips, tmp_path):
    job = prepare(request(tmp_path, **team(*zips, combine="value")), Teacher.load(zips[0]))
    assert job.teacher.describe()["members"] == [zips[0], *zips]
    assert job.teacher.has_values


def test_the_width_follows_from_all_members(zips, tmp_path):
    job = prepare(request(tmp_path, teacher=zips[0], student=StudentConfig(compression=5.0), **team(zips[0])))
    assert job.architecture.hidden_sizes == (19, 19)  # 19**2 + 7 * 19 + 3 = 497 parameters are the most below 2502 / 5 = 500.4


def test_agents_that_do_not_go_together_are_refused(zips, tmp_path):
    four = Teacher.from_callable(walk_best, Walk.observation_space, gym.spaces.Discrete(4))
    line = refused(tmp_path, four, **team(zips[0]))
    assert "the actions of teacher 1 (the callable agent) are one of 4 choices, those of teacher 2" in line
    assert "nowhere.zip does not exist" in refused(tmp_path, teacher=zips[0], **team(str(tmp_path / "nowhere.zip")))
    assert "no teacher was named" in refused(tmp_path, **team(zips[0]))
    assert "the callable agent has no critic" in refused(tmp_path, walk_teacher(), **team(zips[0], combine="value"))


def test_hints_of_several_agents_name_their_layers(zips, tmp_path):
    hints = LossConfig(features=FeatureConfig(weight=0.1, layers={"members.1.network.body.3": "hidden.0"}))
    job = prepare(request(tmp_path, teacher=zips[0], loss=hints, **team(zips[1])))
    assert job.projections == ((8, 8),)
    assert job.teacher.recorded == ("members.1.network.body.3",)
    unnamed = LossConfig(features=FeatureConfig(weight=0.1))
    line = refused(tmp_path / "other", teacher=zips[0], loss=unnamed, **team(zips[1]))
    assert "loss.features.layers was left out, but the teacher has no single last hidden layer: name the layers" in line


def test_several_agents_have_no_architecture_to_copy(zips, tmp_path):
    line = refused(tmp_path, teacher=zips[0], student=StudentConfig(same=True), **team(zips[1]))
    assert line.endswith("which is not known: give student.hidden_sizes")


def test_one_torch_thread_gives_the_others_back_after_a_failure():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with contextlib.suppress(ZeroDivisionError), one_torch_thread():
            assert torch.get_num_threads() == 1
            raise ZeroDivisionError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_environment_that_ignores_its_seed_is_a_notice_and_gets_no_certificate(tmp_path):
    kind = rude.DrawsGloballyInSteps
    teacher = Teacher.from_callable(lambda seen: np.ones(len(seen), np.int64), kind.observation_space, kind.action_space)
    certified = EvaluateConfig(certify=0.9)
    assert "could not be repeated" in refused(tmp_path, teacher, env=rude.spec_of(kind).id, evaluate=certified)
    found = prepare(request(tmp_path, env=rude.spec_of(kind).id), teacher)
    assert any("does not follow its seed" in notice for notice in found.notices)


# Students of images.


def of_images(params: int = 100_000) -> Teacher:
    return Teacher.from_callable(beacon_best, Beacon.observation_space, gym.spaces.Discrete(4), params=params)


def test_images_are_read_by_convolutions_whose_size_follows_from_the_compression(tmp_path):
    job = prepare(request(tmp_path, env=BEACON.id, student=StudentConfig(compression=20)), of_images())
    assert job.architecture.channels == (2 * job.architecture.channels[1], job.architecture.channels[1])
    assert 0.6 * 5_000 < job.architecture.params <= 5_000
    assert any(
        "no student.zip is written: Stable-Baselines3 has no network with the student's convolutions" in note for note in job.notices
    )
    write_config(job)
    written = yaml.safe_load((job.folder / "config.yaml").read_text())["student"]
    assert written["channels"] == list(job.architecture.channels)
    again = prepare(request(tmp_path, env=BEACON.id, student=StudentConfig(**{**written, "hidden_sizes": (32,)})), of_images())
    assert again.architecture.hidden_sizes == (32,)


@pytest.mark.parametrize(
    ("student", "channels", "hidden_sizes"),
    [
        ({"hidden_sizes": (32,)}, (32, 16), (32,)),
        ({"hidden_sizes": (32,), "channels": (5,)}, (5,), (32,)),
        ({"hidden_sizes": (32,), "channels": ()}, (), (32,)),
        ({"channels": (), "compression": 20}, (), (41, 41)),
    ],
)
def test_sizes_of_image_students_as_named(student, channels, hidden_sizes, tmp_path):
    architecture = prepare(request(tmp_path, env=BEACON.id, student=StudentConfig(**student)), of_images()).architecture
    assert (architecture.channels, architecture.hidden_sizes) == (channels, hidden_sizes)


@pytest.mark.parametrize(
    ("student", "params", "said"),
    [
        ({"channels": (4,)}, 1000, "student.channels are given, so the sizes .*: give student.hidden_sizes"),
        ({}, 0, "the teacher's parameters cannot be counted, so the sizes .*: give student.hidden_sizes"),
    ],
)  # fmt: skip
def test_sizes_of_image_students_that_are_not_known(student, params, said, tmp_path):
    with pytest.raises(RequestError, match=said):
        prepare(request(tmp_path, env=BEACON.id, student=StudentConfig(**student)), of_images(params))


@pytest.mark.parametrize(
    ("student", "shift", "said"),
    [
        ({"channels": ()}, 1, "the student has no convolutions"),
        ({"channels": (4,), "memory": "gru"}, 1, "the student has a memory"),
        ({"channels": (4,)}, 6, "an image has a side of 6 pixels"),
    ],
)
def test_shifts_of_what_cannot_be_shifted_are_refused(student, shift, said, tmp_path):
    config = request(
        tmp_path,
        env=BEACON.id,
        student=StudentConfig(hidden_sizes=(4,), **student),
        train=TrainConfig(gradient_steps=20, random_shift=shift),
    )
    with pytest.raises(RequestError, match=f"train.random_shift .*{said}"):
        prepare(config, of_images(1000))


def test_channels_without_images_are_refused(tmp_path):
    student = StudentConfig(hidden_sizes=(4,), channels=(4,))
    assert "student.channels are for images" in refused(tmp_path, walk_teacher(), env=WALK.id, student=student)
