"""Which file holds an agent's statistics: any name, any of its places, and never another agent's."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from policy_distill.config import RequestError
from policy_distill.teachers import Teacher
from policy_distill.teachers.files import statistics_files as module
from policy_distill.teachers.files.statistics_files import choose_statistics
from tests.teachers.conftest import LOPSIDED, VECTOR, TinyEnv, build, rewrite

OTHER = gym.spaces.Box(-1, 1, (5,), np.float32)


def statistics(path: Path, space: gym.spaces.Box = VECTOR, center: float = 0.5, **settings: bool) -> Path:
    path.parent.mkdir(exist_ok=True)
    wrapper = VecNormalize(DummyVecEnv([lambda: TinyEnv(space, LOPSIDED)]), **settings)  # type: ignore[arg-type]
    if wrapper.norm_obs:
        assert not isinstance(wrapper.obs_rms, dict)
        wrapper.obs_rms.mean = np.full(space.shape, center)
    wrapper.save(str(path))
    return path


def remembering(agent: Path, *, inside: bool) -> Path:
    """The agent, whose zip remembers whether VecNormalize was around it, as after training."""
    data = json.loads(zipfile.ZipFile(agent).read("data"))
    data |= {"_last_obs": {":type:": "array"}, "_last_original_obs": {":type:": "array"} if inside else None}
    changed = rewrite(agent, {"data": json.dumps(data).encode()}, agent.with_suffix(".new"))
    return changed.rename(agent)


@pytest.mark.parametrize(
    "name",
    [
        "vecnormalize.pkl", "vec_normalize.pkl", "agent_vecnormalize.pkl", "agent_vec_normalize.pkl", "agent_vecnorm.pkl",
        "other_vecnormalize.pkl", "vecnormalize_agent.pkl", "VecNormalize.pkl", "stats.pkl", "agent.pkl", "vec_normalize",
        "agent/vec_normalize.pkl", "agent/vecnormalize.pkl",
    ],
)  # fmt: skip
def test_every_name_is_found_and_used(name, save, tmp_path):
    model = build("SAC")
    path = save(model)
    file = statistics(tmp_path / name)
    teacher = Teacher.load(path)
    assert teacher.normalization is not None
    np.testing.assert_array_equal(teacher.normalization.mean, np.full(3, 0.5))
    assert file.name in " ".join(teacher.notes)
    assert teacher.describe()["normalization"] == str(file)
    assert teacher.files == (path, file)


def test_other_pickles_are_no_statistics(save, tmp_path):
    path = save(build("PPO"))
    (tmp_path / "buffer.pkl").write_bytes(pickle.dumps({"norm_obs": True}))
    (tmp_path / "norm_obs").write_bytes(b"norm_obs")
    teacher = Teacher.load(path)
    assert (teacher.normalization, teacher.notes, teacher.statistics) == (None, (), None)


def test_the_shape_decides_among_several(save, tmp_path):
    path = save(build("PPO"))
    mine = statistics(tmp_path / "a_vecnormalize.pkl")
    statistics(tmp_path / "b_vecnormalize.pkl", OTHER)
    assert choose_statistics(path, []).path == mine


def test_several_that_fit_are_listed(save, tmp_path):
    path = save(build("PPO"))
    for name in ("vecnormalize.pkl", "vec_normalize.pkl"):
        statistics(tmp_path / name, center=len(name))
    with pytest.raises(RequestError, match=r"several files .*vec_normalize\.pkl, .*vecnormalize\.pkl; choose one: --normalization PATH"):
        Teacher.load(path)
    teacher = Teacher.load(path, normalization=str(tmp_path / "vecnormalize.pkl"))
    assert teacher.normalization is not None
    assert teacher.normalization.mean[0] == len("vecnormalize.pkl")
    assert Teacher.load(path, normalization="none").normalization is None


def trained(folder: Path, name: str, steps: int) -> Path:
    """An agent after ``steps`` steps inside VecNormalize, and its statistics ``NAME_vec_normalize.pkl``; returns ``NAME_model.zip``."""
    env = VecNormalize(DummyVecEnv([lambda: TinyEnv(VECTOR, LOPSIDED)] * 2))
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=64, n_epochs=1, policy_kwargs={"net_arch": [4]}, seed=0)
    model.learn(steps)
    env.save(str(folder / f"{name}_vec_normalize.pkl"))
    model.save(folder / f"{name}_model.zip")
    return folder / f"{name}_model.zip"


def test_the_steps_of_training_decide_among_several_that_fit(tmp_path):
    agents = [trained(tmp_path, "ppo", 64), trained(tmp_path, "tqc", 128)]
    (tmp_path / "notes.zip").write_bytes(b"no agent")
    for agent in agents:
        found = Teacher.load(agent).statistics
        assert found is not None
        assert found.name.startswith(agent.name[:3])


def test_equal_steps_of_training_decide_nothing(tmp_path):
    first, second = trained(tmp_path, "first", 64), trained(tmp_path, "second", 64)
    trained(tmp_path, "third", 128)
    question = r"several files .*_vec_normalize\.pkl, .*_vec_normalize\.pkl; choose one"
    with pytest.raises(RequestError, match=question):
        choose_statistics(first, [])
    (tmp_path / "first_vec_normalize.pkl").unlink()  # the other's is not the first's, although it counts as many steps
    with pytest.raises(RequestError, match=question):
        choose_statistics(first, [])
    first.unlink()
    assert choose_statistics(second, []).path == tmp_path / "second_vec_normalize.pkl"


def test_copies_of_one_file_are_one(save, tmp_path):
    path = save(build("PPO"))
    first = statistics(tmp_path / "vecnormalize.pkl")
    (tmp_path / "vec_normalize.pkl").write_bytes(first.read_bytes())
    assert choose_statistics(path, []).path is not None


def test_a_zip_s_own_name_comes_first_and_another_zip_s_is_not_used(save, tmp_path):
    path = save(build("PPO"))
    (tmp_path / "rl_model_900_steps.zip").write_bytes(path.read_bytes())
    of_checkpoint = statistics(tmp_path / "rl_model_vecnormalize_900_steps.pkl", center=9.0)
    found = choose_statistics(path, [])
    assert found.path is None
    assert "rl_model_vecnormalize_900_steps.pkl bears the name of another agent" in found.notes[0]
    shared = statistics(tmp_path / "vec_normalize.pkl")
    assert choose_statistics(path, []).path == shared
    assert choose_statistics(tmp_path / "rl_model_900_steps.zip", []).path == of_checkpoint
    own = statistics(tmp_path / "agent_vecnorm.pkl", center=1.0)
    assert choose_statistics(path, []).path == own


def test_behind_a_symbolic_link_both_places_count(save, tmp_path):
    store, here = tmp_path / "store", tmp_path / "here"
    here.mkdir()
    store.mkdir()
    target = save(build("PPO")).rename(store / "4f2a.zip")
    link = here / "agent.zip"
    link.symlink_to(target)
    beside_target = statistics(store / "vec_normalize.pkl")
    assert choose_statistics(link, []).path == beside_target
    beside_target.unlink()
    beside_link = statistics(here / "agent_vecnormalize.pkl")
    assert choose_statistics(link, []).path == beside_link


def test_statistics_of_another_shape_stop_where_they_are_needed(save, tmp_path):
    path = save(build("PPO"))
    statistics(tmp_path / "stats.pkl", OTHER)
    found = choose_statistics(path, [])
    assert found.path is None
    assert "stats.pkl holds statistics of another shape" in found.notes[0]
    with pytest.raises(RequestError, match=r"observations of shape \(3,\), .*another agent's, of another shape: .*stats\.pkl \(5,\)"):
        choose_statistics(remembering(path, inside=True), [])
    (tmp_path / "stats.pkl").rename(tmp_path / "vec_normalize.pkl")
    with pytest.raises(RequestError, match=r"give its own with --normalization PATH, or --normalization none"):
        choose_statistics(save(build("PPO")), [])
    found = choose_statistics(remembering(path, inside=False), [])
    assert found.path is None
    assert "vec_normalize.pkl holds statistics of another shape" in found.notes[0]


def test_an_agent_that_was_trained_without_is_not_given_any(save, tmp_path):
    """Agents of several kinds lie in one folder; the zip of this one remembers its training."""
    path = remembering(save(build("PPO")), inside=False)
    statistics(tmp_path / "vecnormalize.pkl")
    teacher = Teacher.load(path)
    assert teacher.normalization is None
    assert "trained without VecNormalize" in teacher.notes[0]
    assert Teacher.load(path, normalization=str(tmp_path / "vecnormalize.pkl")).normalization is not None
    assert Teacher.load(remembering(path, inside=True)).normalization is not None


def test_what_the_user_names_must_be_there_and_fit(save, tmp_path):
    path = save(build("PPO"))
    with pytest.raises(RequestError, match=r"it must be a file that VecNormalize\.save wrote, or none"):
        Teacher.load(path, normalization="nothing.pkl")
    with pytest.raises(RequestError, match=r"shape \(5,\), its observations of \(3,\); .*other\.pkl is another agent's"):
        Teacher.load(path, normalization=str(statistics(tmp_path / "other.pkl", OTHER)))
    with pytest.raises(RequestError, match="no readable VecNormalize pickle"):
        Teacher.load(path, normalization=str(path))


def test_a_damaged_file_of_that_name_is_an_error_and_not_passed_over(save, tmp_path):
    path = save(build("PPO"))
    (tmp_path / "vec_normalize.pkl").write_bytes(b"\x80\x04damaged")
    with pytest.raises(RequestError, match=r"vec_normalize\.pkl cannot be read \(.*\): it is no readable VecNormalize pickle"):
        Teacher.load(path)


def test_code_in_a_file_that_is_looked_at_does_not_run(save, tmp_path, trap):
    path = save(build("PPO"))
    (tmp_path / "stats.pkl").write_bytes(pickle.dumps({"norm_obs": trap}))
    assert Teacher.load(path).normalization is None


def test_large_pickles_are_not_read(save, tmp_path, monkeypatch):
    path = save(build("PPO"))
    statistics(tmp_path / "buffer.pkl")
    monkeypatch.setattr(module, "MAX_UNNAMED_BYTES", 100)
    assert choose_statistics(path, []).path is None


@pytest.mark.parametrize(
    ("settings", "training", "scale"),
    [
        ({"norm_obs": False}, True, "divisor"),
        ({"norm_obs": False, "norm_reward": False}, True, 1.0),
        ({"norm_obs": False, "norm_reward": False}, False, None),  # switched off for evaluation, or never on
        ({"norm_reward": False}, True, 1.0),
    ],
)
def test_a_file_may_say_that_one_of_both_is_not_normalised(settings, training, scale, save, tmp_path):
    path = save(build("PPO"))
    wrapper = VecNormalize(DummyVecEnv([lambda: TinyEnv(VECTOR, LOPSIDED)]), **settings)
    wrapper.ret_rms.var, wrapper.training = np.array(4.0), training
    wrapper.save(str(tmp_path / "vecnormalize.pkl"))
    teacher = Teacher.load(path)
    assert (teacher.normalization is None) == (settings.get("norm_obs") is False)
    assert teacher.reward_scale == (pytest.approx(2.0) if scale == "divisor" else scale)
    assert teacher.statistics == tmp_path / "vecnormalize.pkl"
    assert ("says that observations were not normalised" in teacher.notes[0]) == (settings.get("norm_obs") is False)
