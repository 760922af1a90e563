"""Agents of every kind act as Stable-Baselines3's ``predict`` does, however they are read, or are refused in one line."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.config import RequestError
from policy_distill.policies.families import Deterministic
from policy_distill.rollouts.numpy_policies import actor
from policy_distill.support import trees
from policy_distill.teachers import Teacher
from tests.teachers.conftest import TinyEnv, rewrite, unmasked
from tests.teachers.kinds import GOALS, KINDS, LOPSIDED, PARTS, VECTOR, Kind

pytest.importorskip("sb3_contrib")
EXTRACTORS = Path(__file__).with_name("extractors.py")
ROWS = 32
# Bounds as wide as float32, and features of zero as the first layer's inputs, are meant here; Stable-Baselines3 warns of both.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(overflow encountered|precision lowered|zero-elements).*"),
    pytest.mark.filterwarnings("ignore::UserWarning:stable_baselines3"),
]


def readings(kind: Kind, path: Path) -> dict[str, Callable[[], Teacher]]:
    """Every way from the zip to a teacher."""
    named = f"{EXTRACTORS}:{kind.extractor}" if kind.extractor else None
    return {"zip": lambda: Teacher.load(path, extractor=named), "trust": lambda: Teacher.load(path, trust=True)}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_of_agent_acts_as_predict_does_or_is_refused(kind: Kind, tmp_path: Path):
    model = kind.model()
    path = tmp_path / "agent.zip"
    model.save(path)
    ways = {**readings(kind, path), "live": lambda: Teacher.from_sb3(model)}
    if kind.refused:
        for load in ways.values():
            assert_refused(load, kind.refused)
        return
    if kind.needs_trust:
        assert_refused(ways.pop("zip"), f"{kind.needs_trust}.*--trust")
    observations = kind.observations(ROWS)
    expected, _ = model.predict(observations, deterministic=True)
    if getattr(kind.action_space, "n", 2) > 1:
        assert len(np.unique(expected.reshape(ROWS, -1), axis=0)) > 1, "agents whose actions are all alike show nothing"

    teachers = {way: load() for way, load in ways.items()}

    for way, teacher in teachers.items():
        seen = unmasked(teacher, observations)
        assert_acts_alike(teacher.act(seen), expected, way)
        assert_acts_alike(actor(teacher, ROWS)(seen), expected, f"{way}, in numpy")
        assert_says_what_it_does(teacher, seen)
    assert len({teacher.params for teacher in teachers.values()}) == 1
    assert teachers["live"].params > 0


def assert_refused(load: Callable[[], Teacher], match: str) -> None:
    with pytest.raises(RequestError, match=match) as caught:
        load()
    assert "\n" not in str(caught.value)


def assert_acts_alike(actions: np.ndarray, expected: np.ndarray, way: str) -> None:
    assert actions.shape == expected.shape, way
    atol = 1e-5 * max(np.abs(expected).max(), 1e-3)
    np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=atol, err_msg=way)


def assert_says_what_it_does(teacher: Teacher, observations: trees.Tree) -> None:
    """Its distribution is finite, and the mode is its action."""
    targets = teacher.targets(trees.to_tensors(observations))
    assert all(bool(torch.isfinite(value).all()) for value in targets.parameters.values())
    if not isinstance(teacher.family, Deterministic):
        mode, actions = teacher.family.mode(targets.parameters).double(), targets.actions.double()
        torch.testing.assert_close(mode, actions, rtol=1e-4, atol=1e-5 * max(float(actions.abs().max()), 1e-3))


SEEN: dict[str, gym.Space] = {
    "vector": VECTOR,
    "two dimensions": gym.spaces.Box(-5, 5, (3, 2), np.float32),
    "float64": gym.spaces.Box(-5, 5, (4,), np.float64),
    "int64": gym.spaces.Box(-100, 100, (4,), np.int64),
    "uint8": gym.spaces.Box(0, 255, (6,), np.uint8),
    "unbounded": gym.spaces.Box(-np.inf, np.inf, (4,), np.float32),
    "far from zero": gym.spaces.Box(5_399_900.0, 5_400_100.0, (4,), np.float64),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {}, "clip": {"clip_obs": 1.0}, "not observations": {"norm_obs": False}, "not rewards": {"norm_reward": False},
    "epsilon": {"epsilon": 0.1}, "discount": {"gamma": 0.9, "clip_reward": 5.0},
}  # fmt: skip
OF_DICT: dict[str, dict[str, Any]] = {**SETTINGS, "some keys": {"norm_obs_keys": ["observation", "desired_goal"], "clip_obs": 1.5}}
NORMALIZED = [
    *((seen, setting, "PPO") for seen in SEEN for setting in SETTINGS),
    *(("goals", setting, "PPO") for setting in OF_DICT),
    *(("goals", "some keys", algo) for algo in ("A2C", "SAC", "TQC", "TD3")),
    ("parts", "vector alone", "PPO"),
    *(("vector", "clip", algo) for algo in ("A2C", "TRPO", "SAC", "TQC", "TD3", "DDPG", "ARS")),
]


@pytest.mark.parametrize(("seen", "setting", "algo"), NORMALIZED, ids=str)
def test_agents_behind_vecnormalize_act_as_predict_does_on_normalised_observations(seen: str, setting: str, algo: str, tmp_path: Path):
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    space = {**SEEN, "goals": GOALS, "parts": PARTS}[seen]
    kind = Kind("normalised", algo, space, LOPSIDED, policy="MultiInputPolicy" if seen in ("goals", "parts") else "MlpPolicy")
    settings = {**OF_DICT, "vector alone": {"norm_obs_keys": ["exact", "grid"]}}
    env = VecNormalize(DummyVecEnv([lambda: TinyEnv(space, LOPSIDED)]), **settings[setting])
    kind.observation_space.seed(1)
    env.reset()
    for _ in range(30):
        env.step(np.zeros((1, 3), np.float32))
    model = kind.model()
    model.set_env(env)
    model.save(tmp_path / "agent.zip")
    env.save(str(tmp_path / "vecnormalize.pkl"))
    observations = kind.observations(ROWS)
    normalized: Any = env.normalize_obs(observations)
    expected, _ = model.predict(normalized, deterministic=True)
    pairs = zip(trees.leaves(normalized), trees.leaves(observations), strict=True)
    assert (setting == "not observations") == all(np.array_equal(one, other) for one, other in pairs)

    for way, teacher in {"zip": Teacher.load(tmp_path / "agent.zip"), "live": Teacher.from_sb3(model)}.items():
        assert_acts_alike(teacher.act(observations), expected, way)
        assert_acts_alike(actor(teacher, ROWS)(observations), expected, f"{way}, in numpy")


OLD = [
    ("ppo", Kind("ppo", "PPO", VECTOR, LOPSIDED)),
    ("ppo squashed", Kind("ppo", "PPO", VECTOR, LOPSIDED, {"use_sde": True, "policy_kwargs": {"squash_output": True}})),
    ("a2c discrete", Kind("a2c", "A2C", VECTOR, gym.spaces.Discrete(4))),
    ("ppo multi-discrete", Kind("ppo", "PPO", gym.spaces.MultiDiscrete([3, 4]), gym.spaces.MultiDiscrete([3, 2]))),
    ("dqn", Kind("dqn", "DQN", gym.spaces.Discrete(6), gym.spaces.Discrete(3))),
    ("sac", Kind("sac", "SAC", VECTOR, LOPSIDED)),
    ("dict", Kind("dict", "SAC", GOALS, LOPSIDED, policy="MultiInputPolicy")),
]


@pytest.mark.parametrize(("name", "kind"), OLD, ids=lambda value: value if isinstance(value, str) else "")
def test_zips_as_old_versions_wrote_them(name: str, kind: Kind, tmp_path: Path):
    """Until 1.8: gym's spaces, no version, ``shape`` for ``_shape``, no ``start``, and layers shared by actor and critic."""
    model = kind.model()
    model.save(tmp_path / "new.zip")
    with zipfile.ZipFile(tmp_path / "new.zip") as file:
        data, weights = json.loads(file.read("data")), torch.load(io.BytesIO(file.read("policy.pth")), weights_only=True)
    for key in ("observation_space", "action_space"):
        old = {name.removeprefix("_") if name == "_shape" else name: value for name, value in data[key].items()}
        data[key] = {name: value for name, value in old.items() if name not in ("low_repr", "high_repr", "start", ":serialized:")}
        data[key][":type:"] = data[key][":type:"].replace("gymnasium", "gym")
    renamed = {"policy_net.0": "shared_net.0", "policy_net.2": "policy_net.0"}
    for today, once in renamed.items():
        for part in ("weight", "bias"):
            if (moved := weights.pop(f"mlp_extractor.{today}.{part}", None)) is not None:
                weights[f"mlp_extractor.{once}.{part}"] = moved
    content = io.BytesIO()
    torch.save(weights, content)
    members = {"data": json.dumps(data).encode(), "policy.pth": content.getvalue(), "_stable_baselines3_version": None}
    teacher = Teacher.load(rewrite(tmp_path / "new.zip", members, tmp_path / "agent.zip"))
    observations = kind.observations(ROWS)
    expected, _ = model.predict(observations, deterministic=True)
    assert_acts_alike(teacher.act(observations), expected, name)
    assert_acts_alike(actor(teacher, ROWS)(observations), expected, f"{name}, in numpy")
