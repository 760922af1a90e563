"""Reading a zip: nothing in it runs, and every refusal is one line with the fix."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.config import RequestError
from policy_distill.support.untrusted import MAX_JSON_BYTES
from policy_distill.teachers import Teacher, read_archive
from policy_distill.teachers.files.archive import class_name
from tests.teachers.conftest import LOPSIDED, THREE, VECTOR, build, rewrite


def edited(path, target, **changes):
    """The agent with entries of ``data`` changed; a function changes the entry it is given."""
    data = json.loads(zipfile.ZipFile(path).read("data"))
    for key, change in changes.items():
        data[key] = change(data[key]) if callable(change) else change
    return rewrite(path, {"data": json.dumps(data).encode()}, target)


def refused(path, match, **kwargs):
    with pytest.raises(RequestError, match=match) as caught:
        Teacher.load(path, **kwargs)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_an_archive_is_plain_data(save):
    model = build("PPO", policy_kwargs={"activation_fn": torch.nn.ELU})
    model.num_timesteps = 1234
    archive = read_archive(save(model))
    assert (archive.observation_space, archive.action_space) == (VECTOR, LOPSIDED)
    assert archive.num_timesteps == 1234
    assert archive.activation == "ELU"
    assert archive.policy_module == "stable_baselines3.common.policies"
    assert archive.sb3_version is not None
    assert "Python" in (archive.system_info or "")
    assert archive.data["n_steps"] == 2048
    assert ":serialized:" not in json.dumps(archive.data)
    for key, tensor in model.policy.state_dict().items():
        assert torch.equal(archive.state_dict[key], tensor)


def test_the_code_in_a_hostile_zip_does_not_run(save, tmp_path, trap):
    path = save(build("PPO", policy_kwargs={"activation_fn": torch.nn.ELU}))
    payload = base64.b64encode(pickle.dumps(trap)).decode()
    data = json.loads(zipfile.ZipFile(path).read("data"))
    for entry in data.values():
        if isinstance(entry, dict):
            entry[":serialized:"] = payload
    hostile = rewrite(path, {"data": json.dumps(data).encode()}, tmp_path / "hostile.zip")
    observations = np.zeros((2, 3), np.float32)
    assert np.array_equal(Teacher.load(hostile).act(observations), Teacher.load(path).act(observations))


def test_the_code_in_hostile_weights_does_not_run(save, tmp_path, trap):
    path = save(build("PPO"))
    weights = io.BytesIO()
    torch.save({"weight": trap}, weights)
    for content in (weights.getvalue(), pickle.dumps(trap)):
        refused(rewrite(path, {"policy.pth": content}, tmp_path / "hostile.zip"), "they are no plain tensors")


def old_format(entry):
    """A space as gym 0.19 and SB3 1.0 saved it; its pickle names a module that does not exist here."""
    entry = dict(entry)
    entry[":type:"] = entry[":type:"].replace("gymnasium", "gym")
    entry[":serialized:"] = base64.b64encode(b"cgym.spaces.box\nBox\n)R.").decode()
    entry["shape"] = entry.pop("_shape")
    for key in ("low_repr", "high_repr", "start"):
        entry.pop(key, None)
    return entry


@pytest.mark.parametrize("action_space", [LOPSIDED, THREE, gym.spaces.MultiDiscrete([2, 3]), gym.spaces.MultiBinary(4)], ids=str)
def test_a_zip_of_the_days_of_gym_loads(save, tmp_path, action_space):
    model = build("PPO", action_space=action_space)
    path = edited(save(model), tmp_path / "old.zip", observation_space=old_format, action_space=old_format)
    path = rewrite(path, {"system_info.txt": None, "_stable_baselines3_version": None}, tmp_path / "older.zip")
    observations = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)

    archive = read_archive(path)

    assert (archive.observation_space, archive.action_space) == (VECTOR, action_space)
    assert archive.sb3_version is None
    assert archive.system_info is None
    np.testing.assert_allclose(Teacher.load(path).act(observations), model.predict(observations, deterministic=True)[0], atol=1e-6)


def test_files_that_are_no_agents_are_refused_in_one_line(save, tmp_path):
    refused(tmp_path / "nothing.zip", "does not exist; name a .zip")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "is a folder without an agent's .zip")
    (tmp_path / "text.zip").write_text("hello")
    refused(tmp_path / "text.zip", "is no zip")
    whole = save(build("PPO")).read_bytes()
    # With the end gone, the zip that the weights are may be all that is found.
    for kept in (100, len(whole) // 2, len(whole) - 200, len(whole) - 1):
        (tmp_path / "cut.zip").write_bytes(whole[:kept])
        refused(tmp_path / "cut.zip", "truncated")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("letter.txt", "hello")
    refused(tmp_path / "other.zip", "no Stable-Baselines3 agent: it holds no 'data'")
    with pytest.raises(RequestError, match=r"is a folder; name the agent's \.zip in it"):
        read_archive(tmp_path / "empty")


@pytest.mark.parametrize("member", ["data", "policy.pth"])
def test_a_member_whose_bytes_changed_is_refused(save, tmp_path, member):
    path = save(build("PPO"))
    content = bytearray(path.read_bytes())
    info = zipfile.ZipFile(path).getinfo(member)
    position = info.header_offset + 30 + len(member) + info.compress_size // 2
    content[position] ^= 0xFF
    (tmp_path / "flipped.zip").write_bytes(content)
    refused(tmp_path / "flipped.zip", f"is damaged: its member '{member}'")


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ({"data": b"no json"}, "is no JSON object"),
        ({"data": b"[" * 100_000}, "is no JSON object"),
        ({"data": b"[1]"}, "is no JSON object"),
        ({"data": b"{}"}, "names no observation space"),
        ({"policy.pth": b""}, "they are no plain tensors"),
        ({"policy.pth": None}, "holds no 'policy.pth'"),
    ],
)
def test_members_that_make_no_sense_are_refused(save, tmp_path, members, match):
    refused(rewrite(save(build("PPO")), members, tmp_path / "bad.zip"), match)


def test_zip_bombs_are_refused_before_they_are_unpacked(save, tmp_path):
    path = save(build("PPO"))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("policy.pth", zipfile.ZipFile(path).read("policy.pth"))
        bomb.writestr("data", b" " * (MAX_JSON_BYTES + 1))
    assert (tmp_path / "bomb.zip").stat().st_size < 1_000_000
    refused(tmp_path / "bomb.zip", "unpacks to 8,388,609 bytes")


def test_weights_that_claim_more_than_they_hold_are_refused(save, tmp_path):
    weights = io.BytesIO()
    torch.save({"log_std": torch.zeros(1).expand(1 << 40)}, weights)  # 4 TB by a stride of zero
    refused(rewrite(save(build("PPO")), {"policy.pth": weights.getvalue()}, tmp_path / "bomb.zip"), "they are no plain tensors")


def test_weights_that_are_not_numbers_are_refused(save):
    model = build("PPO")
    with torch.no_grad():
        model.policy.action_net.bias[0] = float("nan")
    refused(save(model), r"'action_net.bias' holds NaN or infinity")


def change(**entries):
    return lambda entry: {**entry, **entries}


DICT = {":type:": "<class 'gymnasium.spaces.dict.Dict'>"}


@pytest.mark.parametrize(
    ("key", "entries", "match"),
    [
        ("observation_space", DICT, "cannot be read"),
        ("observation_space", {**DICT, "spaces": "{'a': Box(0.0, 1.0, (3,), float32), 'b'"}, "cannot be read"),
        ("observation_space", {**DICT, "spaces": "{'a': Box(0.0, 1.0, (3,), float32"}, "cannot be read"),
        ("observation_space", {**DICT, "spaces": "{'a': Box(0.0, 1.0, (3,), object)}"}, "is no type of numbers"),
        ("observation_space", {**DICT, "spaces": "{'a': Box(0.0, 1.0, (900000,), int8), 'b': Box(0, 1, (900000,), int8)}"}, "at most"),
        ("observation_space", {**DICT, "spaces": "{'a': Dict('b': Discrete(2))}"}, "part 'a' is a Dict, which is not supported"),
        ("observation_space", {**DICT, "spaces": "{'a': Tuple(Discrete(2), Discrete(3))}"}, "part 'a' is a Tuple, which is not supported"),
        ("observation_space", {**DICT, "spaces": "{'a': Text(1, 3, charset=abc)}"}, "part 'a' is of type 'Text'"),
        ("action_space", {":type:": "<class 'gymnasium.spaces.dict.Dict'>"}, "is a Dict, which is not supported"),
        ("observation_space", {":type:": "<class 'gymnasium.spaces.graph.Graph'>"}, "MultiBinary and a Dict of these are"),
        ("observation_space", {"dtype": "uint8", "_shape": [3, 64, 64], "low": "[[[0 ... 1]]]"}, "bound 'low' is not readable.*--trust"),
        ("observation_space", {"dtype": "object"}, "is no type of numbers"),
        ("observation_space", {"_shape": [1 << 40]}, "at most"),
        ("observation_space", {"_shape": [0]}, "not supported"),
        ("observation_space", {"dtype": "nonsense"}, "cannot be read"),
        ("observation_space", {"_shape": "nonsense"}, "cannot be read"),
        ("observation_space", {"_shape": [4], "low": "[0 0 0 0]", "high": "[1 1 1 1]"}, "do not fit observations of 4 numbers"),
        ("action_space", {":type:": "<class 'gymnasium.spaces.tuple.Tuple'>"}, "is a Tuple, which is not supported"),
        ("action_space", {"low": "[-1. ... -1.]", "low_repr": None}, "'low' is not readable in the file and is not guessed"),
        ("action_space", {"high": "[1. 1. 1.]", "high_repr": None}, "'high' is not readable"),
        ("action_space", {"high": "[nan 1.]"}, "bounds that are no bounds"),
        ("action_space", {"high": "[-5. 1.]"}, "bounds that are no bounds"),
        ("action_space", {"_shape": [3], "low": "[0 0 0]", "high": "[1 1 1]"}, "do not fit"),
        ("policy_class", {"__module__": "their_project.policies"}, "custom policy class of 'their_project.policies'.*--trust"),
    ],
)
def test_spaces_and_policies_that_are_not_supported_are_refused(save, tmp_path, key, entries, match):
    refused(edited(save(build("PPO")), tmp_path / "edited.zip", **{key: change(**entries)}), match)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        (
            {"features_extractor_class": "<class 'their_project.Extractor'>"},
            "through Extractor, which cannot be rebuilt.*--extractor.*--trust",
        ),
        ({"features_extractor_class": "<function make at 0x7f>"}, "through a custom extractor"),
        ({"activation_fn": "<function <lambda> at 0x7f>"}, "cannot be rebuilt .*--trust"),
        ({"activation_fn": "<class 'their_project.ReLU'>"}, "cannot be rebuilt"),
        ({"activation_fn": "<class 'torch.nn.modules.activation.PReLU'>"}, "cannot be rebuilt"),
    ],
)
def test_custom_parts_of_a_policy_are_refused(save, tmp_path, kwargs, match):
    refused(edited(save(build("PPO")), tmp_path / "edited.zip", policy_kwargs=kwargs), match)


def test_bounds_that_numpy_shortened(save):
    # numpy prints arrays of more than 1000 elements with dots in the middle.
    wide = gym.spaces.Box(np.linspace(-2, -1, 1200, dtype=np.float32), np.linspace(1, 2, 1200, dtype=np.float32))
    archive = read_archive(save(build("PPO", observation_space=wide)))
    assert isinstance(archive.observation_space, gym.spaces.Box)
    assert archive.observation_space.shape == (1200,)
    assert np.isinf(archive.observation_space.low).all()
    refused(save(build("PPO", action_space=wide)), "bound 'low' is not readable")
    uniform = gym.spaces.Box(-1.0, 2.0, (1200,))
    str(uniform)  # gymnasium then keeps the short form
    assert read_archive(save(build("PPO", action_space=uniform))).action_space == uniform


@pytest.mark.parametrize("high", [255, 1])
def test_bounds_of_images_of_old_versions(save, tmp_path, high):
    """gym kept no short form of them, and whether pixels are divided by 255 depends on them: all numbers that are shown must agree."""
    space = gym.spaces.Box(0, high, (3, 40, 40), np.uint8)
    path = save(build("PPO", observation_space=space, action_space=THREE))
    old = edited(path, tmp_path / "old.zip", observation_space=change(low_repr=None, high_repr=None))
    assert read_archive(old).observation_space == space
    mixed = gym.spaces.Box(np.zeros((3, 40, 40), np.uint8), np.full((3, 40, 40), [[[255]], [[255]], [[1]]], np.uint8), dtype=np.uint8)
    mixed_path = save(build("PPO", observation_space=mixed, action_space=THREE))
    refused(edited(mixed_path, tmp_path / "old.zip", observation_space=change(high_repr=None)), "'high' is not readable in the file")


def test_convolutions_that_are_not_stable_baselines_own_are_refused(save, tmp_path):
    image = gym.spaces.Box(0, 255, (3, 40, 40), np.uint8)
    path = save(build("PPO", observation_space=image, action_space=THREE, policy="CnnPolicy"))
    weights = torch.load(io.BytesIO(zipfile.ZipFile(path).read("policy.pth")), weights_only=True)
    for name, match in {
        "features_extractor.cnn.2.weight": "not those of Stable-Baselines3's NatureCNN",
        "features_extractor.cnn.6.weight": "through a custom extractor",
    }.items():
        content = io.BytesIO()
        changed = {key: tensor for key, tensor in weights.items() if not key.startswith(("pi_", "vf_"))}
        torch.save({**changed, name: torch.zeros(64, 32, 5, 5)}, content)
        refused(rewrite(path, {"policy.pth": content.getvalue()}, tmp_path / "other.zip"), f"{match}.*--trust")


def test_an_agent_with_a_memory_is_not_read_as_one_without(save):
    pytest.importorskip("sb3_contrib")
    path = save(build("RecurrentPPO", policy="MlpLstmPolicy", n_steps=8, policy_kwargs={"lstm_hidden_size": 4}))
    refused(path, "holds the networks of ppo_lstm", algo="ppo")


def test_actions_that_do_not_begin_at_zero_are_refused(save):
    refused(
        save(build("DQN", action_space=gym.spaces.Discrete(3, start=2))), "begin at 2, but Stable-Baselines3 acts from 0 on", trust=True
    )


def test_class_names():
    assert class_name("<class 'torch.nn.modules.activation.ReLU'>") == "ReLU"
    assert class_name("<class '__main__.Net'>") == "Net"
    assert class_name("<function f at 0x1>") is None
    assert class_name(None) is None


def test_bounds_beyond_an_integer_type_are_its_last_values(save, tmp_path):
    path = save(build("PPO", gym.spaces.Box(-100, 100, (4,), np.int64), THREE))

    def widened(text: dict) -> dict:
        return text | {"dtype": "uint8", "low": "[-1 0 3 -inf]", "high": "[inf 255 1e30 9]"}

    space = read_archive(edited(path, tmp_path / "edited.zip", observation_space=widened)).observation_space
    assert isinstance(space, gym.spaces.Box)
    assert space.low.tolist() == [0, 0, 3, 0]
    assert space.high.tolist() == [255, 255, 255, 9]
