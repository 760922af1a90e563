"""VecNormalize statistics: the same numbers as Stable-Baselines3 reads, and nothing that a pickle asks for is done."""

from __future__ import annotations

import pickle
import struct

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from policy_distill.config import RequestError
from policy_distill.teachers import ObservationNormalization, read_normalization, read_reward_scale
from policy_distill.teachers.files.normalization import for_observations
from tests.teachers.conftest import LOPSIDED, VECTOR, TinyEnv


def saved(tmp_path, observation_space=VECTOR, protocol=None, **kwargs):
    wrapper = VecNormalize(DummyVecEnv([lambda: TinyEnv(observation_space, LOPSIDED)]), **kwargs)
    generator = np.random.default_rng(0)
    if wrapper.norm_obs:
        for moments in wrapper.obs_rms.values() if isinstance(wrapper.obs_rms, dict) else [wrapper.obs_rms]:
            moments.var = generator.uniform(0.1, 4.0, size=moments.mean.shape)
            moments.mean = generator.normal(size=moments.mean.shape)
    path = tmp_path / "vecnormalize.pkl"
    path.write_bytes(pickle.dumps(wrapper, protocol=protocol))
    return wrapper, path


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_statistics_are_those_that_were_saved(tmp_path, protocol):
    wrapper, path = saved(tmp_path, protocol=protocol, clip_obs=7.5, epsilon=1e-6)
    found = read_normalization(path)
    assert isinstance(found, ObservationNormalization)
    np.testing.assert_array_equal(found.mean, wrapper.obs_rms.mean)
    np.testing.assert_array_equal(found.var, wrapper.obs_rms.var)
    assert (found.clip, found.epsilon) == (7.5, 1e-6)
    assert found.mean.dtype == np.float64


def test_statistics_of_grids_in_any_order_and_type(tmp_path):
    grid = gym.spaces.Box(-1, 1, (2, 3), np.float32)
    wrapper, path = saved(tmp_path, observation_space=grid)
    assert not isinstance(wrapper.obs_rms, dict)
    wrapper.obs_rms.mean = np.asfortranarray(wrapper.obs_rms.mean).astype(">f4", order="K")
    wrapper.epsilon = np.float64(1e-4)  # a numpy scalar is a third way to write a number
    path.write_bytes(pickle.dumps(wrapper))
    found = read_normalization(path)
    assert isinstance(found, ObservationNormalization)
    np.testing.assert_array_equal(found.mean, wrapper.obs_rms.mean)
    assert found.epsilon == 1e-4


def test_old_modules_of_numpy(tmp_path):
    _, path = saved(tmp_path, protocol=2)
    old = path.read_bytes().replace(b"numpy._core.", b"numpy.core.")
    expected = read_normalization(path)
    path.write_bytes(old)
    found = read_normalization(path)
    assert isinstance(found, ObservationNormalization)
    assert isinstance(expected, ObservationNormalization)
    np.testing.assert_array_equal(found.mean, expected.mean)


def test_a_file_that_does_not_normalise_observations(tmp_path):
    assert read_normalization(saved(tmp_path, norm_obs=False)[1]) is None


def refused(path, match, read=read_normalization):
    with pytest.raises(RequestError, match=match) as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("keys", [None, ["b"]])
def test_statistics_of_dict_observations_are_read_by_key(tmp_path, protocol, keys):
    space = gym.spaces.Dict({"a": VECTOR, "b": gym.spaces.Box(-1, 1, (2, 2), np.float32)})
    wrapper, path = saved(tmp_path, observation_space=space, protocol=protocol, norm_obs_keys=keys)
    found = read_normalization(path)
    assert isinstance(found, dict)
    assert isinstance(wrapper.obs_rms, dict)
    assert list(found) == (keys or ["a", "b"])
    for key, statistics in found.items():
        np.testing.assert_array_equal(statistics.mean, wrapper.obs_rms[key].mean)
        np.testing.assert_array_equal(statistics.var, wrapper.obs_rms[key].var)


def test_of_a_dict_only_what_was_normalised_is_and_all_shapes_must_fit():
    # sqrt(var + epsilon) is sqrt(3 + 1) of b; a has none
    known = ObservationNormalization(np.full((2,), 5.0), np.full((2,), 3.0), 1.0, 4.0)
    space = gym.spaces.Dict({"a": gym.spaces.Discrete(3), "b": gym.spaces.Box(-1, 1, (2,), np.float32)})
    joined = for_observations({"b": known}, space)
    assert joined is not None
    assert joined.mean.tolist() == [0, 0, 0, 5, 5]
    assert np.sqrt(joined.var + joined.epsilon).tolist() == [1, 1, 1, 2, 2]
    assert np.broadcast_to(joined.clip, 5).tolist() == [np.inf, np.inf, np.inf, 4, 4]
    assert for_observations({"a": known}, space) is None
    assert for_observations({"c": known}, space) is None
    assert for_observations(known, space) is None
    assert for_observations({"b": known}, space["b"]) is None


def test_files_that_are_no_statistics_are_refused(tmp_path):
    refused(tmp_path / "nothing.pkl", "does not exist")
    path = tmp_path / "other.pkl"
    for content in (b"", b"hello", pickle.dumps({"a": 1}), pickle.dumps(VECTOR), b"\x80\x04" + b"(" * 1000 + b"."):
        path.write_bytes(content)
        refused(path, "no readable VecNormalize pickle")
    _, path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, "no readable VecNormalize pickle")


def test_the_code_in_a_hostile_pickle_does_not_run(tmp_path, trap):
    path = tmp_path / "hostile.pkl"
    path.write_bytes(pickle.dumps(trap))
    refused(path, "no readable VecNormalize pickle")
    wrapper, path = saved(tmp_path)
    wrapper.obs_rms.mean = trap
    path.write_bytes(pickle.dumps(wrapper))
    refused(path, "no readable VecNormalize pickle")
    wrapper, path = saved(tmp_path)
    wrapper.gamma = trap  # a place that is not read
    path.write_bytes(pickle.dumps(wrapper))
    assert read_normalization(path) is not None


@pytest.mark.parametrize(
    "code",
    [
        b"cos\nsystem\n(S'touch {}'\ntR.",  # REDUCE
        b"(S'touch {}'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch {}'\no.",  # OBJ
        b"\x80\x02cos\nsystem\n(S'touch {}'\nt\x81.",  # NEWOBJ
        b'cbuiltins\neval\n(S\'open("{}", "w")\'\ntR.',
        b"cos\nsystem\nS'touch {}'\nb.",  # BUILD on what should be a class
        b"cos\nsystem\n(S'touch {}'\ntR(S'touch {}'\ntR.",  # calling the record
    ],
)
def test_no_opcode_runs_code(tmp_path, code):
    path, target = tmp_path / "hostile.pkl", tmp_path / "code_ran.txt"
    path.write_bytes(code.replace(b"{}", str(target).encode()))
    refused(path, "no readable VecNormalize pickle")
    assert not target.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",  # BYTEARRAY8 of a terabyte
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".",  # BINBYTES8
        b"\x80\x04Nr" + struct.pack("<I", 0xFFFFFFFF) + b".",  # a memo of 2**32 entries
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b".",  # FRAME
        b"\x80\x02\x82\x01.",  # an extension code
    ],
    ids=["bytearray", "bytes", "memo", "frame", "extension"],
)
def test_pickle_bombs_are_refused(tmp_path, content):
    path = tmp_path / "bomb.pkl"
    path.write_bytes(content)
    refused(path, "no readable VecNormalize pickle")


def test_an_array_that_claims_more_than_it_holds_is_refused(tmp_path):
    _, path = saved(tmp_path, protocol=2)
    shape = b"K\x03\x85"
    content = path.read_bytes()
    assert shape in content
    path.write_bytes(content.replace(shape, b"\x8a\x08" + struct.pack("<q", 1 << 45) + b"\x85"))
    refused(path, "no readable VecNormalize pickle")


@pytest.mark.parametrize(("mean", "var", "clip"), [(np.nan, 1.0, 10.0), (0.0, -1.0, 10.0), (0.0, np.inf, 10.0), (0.0, 1.0, -1.0)])
def test_impossible_statistics_are_refused(mean, var, clip):
    with pytest.raises(RequestError, match="save VecNormalize again"):
        ObservationNormalization(np.array([mean]), np.array([var]), 1e-8, clip)


# What rewards were divided by.


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("norm_obs", [True, False])
def test_the_scale_of_rewards_is_the_one_that_was_saved(tmp_path, protocol, norm_obs):
    wrapper, path = saved(tmp_path, norm_obs=norm_obs, epsilon=0.75)
    wrapper.ret_rms.var = np.float64(5.5)
    path.write_bytes(pickle.dumps(wrapper, protocol=protocol))
    assert read_reward_scale(path) == 2.5  # sqrt(5.5 + 0.75)
    assert wrapper.unnormalize_reward(np.array([1.0])) == 2.5


def test_rewards_that_were_not_normalised_have_scale_one(tmp_path):
    assert read_reward_scale(saved(tmp_path, norm_reward=False)[1]) == 1.0


@pytest.mark.parametrize("variance", [np.nan, np.inf, -1.0])
def test_an_impossible_scale_is_refused(tmp_path, variance):
    wrapper, path = saved(tmp_path)
    wrapper.ret_rms.var = np.float64(variance)
    path.write_bytes(pickle.dumps(wrapper))
    refused(path, r"vecnormalize\.pkl: the reward statistics have a variance that is not finite and positive", read_reward_scale)
    assert read_normalization(path) is not None


def test_the_code_in_the_reward_s_statistics_does_not_run(tmp_path, trap):
    for name in ("ret_rms", "epsilon"):
        wrapper, path = saved(tmp_path)
        setattr(wrapper, name, trap)
        path.write_bytes(pickle.dumps(wrapper))
        refused(path, "no readable VecNormalize pickle", read_reward_scale)
    refused(tmp_path / "nothing.pkl", "does not exist", read_reward_scale)


def test_real_statistics(real_teachers):
    paths = [path for path in real_teachers.glob("*/*/*/vecnormalize.pkl") if "Fetch" not in str(path)]
    for path in paths:
        found = read_normalization(path)
        assert isinstance(found, ObservationNormalization)
        assert (found.clip, found.epsilon) == (10.0, 1e-8)
    assert len(paths) >= 8
    assert isinstance(read_normalization(real_teachers / "tqc/FetchReach-v1_1/FetchReach-v1/vecnormalize.pkl"), dict)
