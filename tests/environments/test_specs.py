"""Environments by name, stand-ins for ids that are no more, and what a request that cannot be met is told."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from policy_distill.config import EnvironmentOptions, RequestError
from policy_distill.environments import specs as environments
from policy_distill.environments.known_wrappers import WRAPPERS
from policy_distill.environments.quiet import quiet_known_warnings
from policy_distill.environments.registration import extra_of, register_known
from policy_distill.environments.specs import EnvironmentSpec, entries, for_worker, make, modernize, named, named_again, resolve

# Gymnasium's MuJoCo environments import both.
HAS_MUJOCO = all(importlib.util.find_spec(name) for name in ("mujoco", "imageio"))
HAS_MINATAR = importlib.util.find_spec("minatar") is not None
needs_mujoco = pytest.mark.skipif(not HAS_MUJOCO, reason="needs mujoco and imageio")


@pytest.mark.parametrize(
    ("name", "gym_id"),
    [
        ("CartPole-v1", "CartPole-v1"),
        ("LunarLander-v3", "LunarLander-v3"),
        ("LunarLander-v2", "LunarLander-v3"),
        ("LunarLanderContinuous-v2", "LunarLanderContinuous-v3"),
        ("Pendulum-v0", "Pendulum-v1"),
        ("CartPoleNoVel-v1", "CartPole-v1"),
        ("BipedalWalker-v3", "BipedalWalker-v3"),
        ("HalfCheetah-v3", "HalfCheetah-v5"),
        ("HalfCheetah-v4", "HalfCheetah-v4"),
        ("Walker2d-v2", "Walker2d-v5"),
        ("Humanoid-v3", "Humanoid-v4"),
        ("Ant-v3", "Ant-v5"),
        ("Ant-v5", "Ant-v5"),
        ("FrozenLake-v1", "FrozenLake-v1"),
        ("gymnasium.envs:CartPole-v1", "gymnasium.envs:CartPole-v1"),
    ],
)
def test_resolve_finds_entries_ids_and_renamed_ids(name, gym_id):
    assert resolve(name).id == gym_id


@pytest.mark.parametrize("name", ["BreakoutNoFrameskip-v4", "ALE/Breakout-v5"])
def test_games_of_atari_need_their_extra(name, monkeypatch):
    monkeypatch.setattr(gym, "registry", {})
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(RequestError, match=r'pip install "policy-distill\[atari\]"'):
        register_known(name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("LunarLander", "nearest: LunarLander-v3"),
        ("CartPoel-v1", "nearest: CartPole-v1"),
        ("xyzzy", "neither an entry of envs/ nor a registered Gymnasium id; name your own as module:ID"),
        ("HalfCheetahBulletEnv-v0", "pybullet"),
        ("FetchReach-v1", "gymnasium-robotics"),
        ("MiniGrid-DoorKey-5x5-v0", "minigrid"),
        ("parking-v0", "highway-env"),
        ("no_such_module:Thing-v0", "cannot be imported"),
        ("no_such_file.yaml", "no_such_file.yaml"),
    ],
)
def test_resolve_refuses_in_one_line(name, says):
    with pytest.raises(RequestError) as refusal:
        resolve(name)
    assert says in str(refusal.value)
    assert name in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_every_entry_agrees_with_gymnasium():
    """The protocol is written out in the files; it must not drift from what Gymnasium registers."""
    assert len(entries()) >= 20
    for name, entry in entries().items():
        register_known(entry.spec.id)
        registered = gym.registry[entry.spec.id]
        if registered.max_episode_steps is not None:
            assert registered.max_episode_steps == entry.spec.max_episode_steps, name
        if entry.solved_return is not None:
            assert registered.reward_threshold == entry.solved_return, name
        assert entry.spec.extra == extra_of(str(registered.entry_point)), name
        assert entry.episodes >= 100


def test_the_text_names_all_that_figures_depend_on():
    assert EnvironmentSpec("CartPole-v1", max_episode_steps=500).text() == "CartPole-v1"
    assert EnvironmentSpec("CartPole-v1", max_episode_steps=5000).text() == "CartPole-v1, episodes of 5,000 steps at most"
    spec = EnvironmentSpec("Pendulum-v1", {"g": 5}, (("RescaleAction", {"min_action": -1, "max_action": 1}), ("my:Shaped", {})), 50)
    assert spec.text() == "Pendulum-v1 (g=5), RescaleAction (min_action=-1, max_action=1), my:Shaped, episodes of 50 steps at most"
    assert EnvironmentSpec("Unknown-v0", max_episode_steps=9).text() == "Unknown-v0, episodes of 9 steps at most"


def test_every_entry_gives_the_observations_it_promises():
    for name, entry in entries().items():
        if not {"mujoco": HAS_MUJOCO, "minatar": HAS_MINATAR}.get(entry.spec.extra or "", True):
            continue
        env = make(entry.spec)
        observation, _ = env.reset(seed=0)
        if entry.observation_dim is not None:
            assert observation.shape == env.observation_space.shape == (entry.observation_dim,), name
            assert observation.dtype == env.observation_space.dtype
        assert observation in env.observation_space
        assert env.step(env.action_space.sample())[0] in env.observation_space
        env.close()


@pytest.mark.parametrize(
    ("saved", "dim", "gym_id", "wrappers"),
    [
        ("LunarLander-v2", 8, "LunarLander-v3", []),
        ("HalfCheetah-v2", 17, "HalfCheetah-v5", []),
        ("Hopper-v3", 11, "Hopper-v5", []),
        ("Swimmer-v3", 8, "Swimmer-v5", []),
        ("Walker2d-v3", 17, "Walker2d-v5", []),
        ("Ant-v3", 111, "Ant-v5", ["PadObservation"]),
        ("Humanoid-v3", 376, "Humanoid-v4", ["PadObservation"]),
        ("HumanoidStandup-v2", 376, "HumanoidStandup-v4", ["PadObservation"]),
        ("InvertedPendulum-v2", 4, "InvertedPendulum-v5", []),
        ("InvertedDoublePendulum-v2", 11, "InvertedDoublePendulum-v4", []),
        ("Reacher-v2", 11, "Reacher-v4", []),
        ("Pusher-v2", 23, "Pusher-v5", []),
    ],
)
def test_modernize_names_the_stand_in_and_says_so(saved, dim, gym_id, wrappers):
    modern, notices = modernize(EnvironmentSpec(saved), dim)
    assert modern.id == gym_id
    assert [name for name, _ in modern.wrappers] == wrappers
    assert len(notices) == 1
    assert notices[0].startswith(f"trained on {saved}; run here on {gym_id}, ")
    assert notices[0].endswith("override with --env")


@pytest.mark.parametrize("gym_id", ["CartPole-v1", "LunarLander-v3", "Walker2d-v4", "HalfCheetah-v5", "Ant-v5"])
def test_modernize_leaves_what_gymnasium_has(gym_id):
    spec = EnvironmentSpec(gym_id, {"a": 1}, (("TimeFeatureWrapper", {}),))
    assert modernize(spec, 3) == (spec, ())


def test_modernize_keeps_the_agents_arguments_and_wraps_outside_the_stand_ins():
    modern, _ = modernize(EnvironmentSpec("Ant-v3", {"contact_cost_weight": 1}, (("TimeFeatureWrapper", {}),)), 112)
    assert modern.kwargs == {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 1}
    assert [name for name, _ in modern.wrappers] == ["PadObservation", "TimeFeatureWrapper"]
    modernize(EnvironmentSpec("LunarLander-v2", {}, (("VecFrameStack", {"n_stack": 3}),)), 24)


def test_modernize_keeps_the_agent_s_episode_length():
    for saved, expected in ((300, 300), (None, 1000)):
        assert modernize(EnvironmentSpec("LunarLander-v2", max_episode_steps=saved), 8)[0].max_episode_steps == expected


def test_modernize_refuses_what_cannot_match():
    with pytest.raises(RequestError, match="from Ant-v3 reads 27 numbers, but Ant-v5 in its place gives 111"):
        modernize(EnvironmentSpec("Ant-v3"), 27)
    with pytest.raises(RequestError, match=r"the wrapper my\.Shaped, which the agent was saved with, is not known here"):
        modernize(EnvironmentSpec("CartPole-v1", {}, (("my.Shaped", {}),)))
    with pytest.raises(RequestError, match="pybullet"):
        modernize(EnvironmentSpec("AntBulletEnv-v0"))


@needs_mujoco
def test_ant_v3_observes_zeros_for_the_contact_forces():
    """Agents from v3 saw zeros there; with today's forces they fall over."""
    env = make(modernize(EnvironmentSpec("Ant-v3"), 111)[0])
    env.reset(seed=0)
    for _ in range(20):
        observation, _, _, _, info = env.step(env.action_space.sample())
    assert not observation[27:].any()
    assert observation[:27].all()
    assert info["reward_contact"] == 0


@needs_mujoco
def test_humanoid_v3_observes_zeros_for_the_contact_forces():
    raw, padded = make(EnvironmentSpec("Humanoid-v4")), make(resolve("Humanoid-v3"))
    for env in (raw, padded):
        env.reset(seed=0)
        env.action_space.seed(0)
    for _ in range(11):  # the feet touch the ground in the last
        ours, theirs = (env.step(env.action_space.sample())[0] for env in (padded, raw))
    assert (ours[:292] == theirs[:292]).all()
    assert theirs[292:].any()
    assert not ours[292:].any()


@needs_mujoco
def test_making_a_pinned_version_is_silent(capfd, tmp_path, monkeypatch):
    """MuJoCo would write to the terminal and to MUJOCO_LOG.TXT, Gymnasium would say that v4 is out of date; warnings are errors here."""
    monkeypatch.chdir(tmp_path)
    for name in ("HalfCheetah-v4", "Walker2d-v4", "HalfCheetah-v5"):
        make(EnvironmentSpec(name)).reset(seed=0)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_other_warnings_are_not_hidden():
    with pytest.warns(UserWarning, match="mine"), quiet_known_warnings():
        warnings.warn("mine", stacklevel=1)


def test_make_takes_arguments_and_a_shorter_episode():
    env = make(EnvironmentSpec("MountainCar-v0", {"goal_velocity": 0.01}, max_episode_steps=3))
    env.reset(seed=0)
    assert env.get_wrapper_attr("goal_velocity") == 0.01
    assert [env.step(1)[3] for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (EnvironmentSpec("CartPole-v1", {"gravity_": 1}), "does not take the arguments {'gravity_': 1}"),
        (
            EnvironmentSpec("CartPole-v1", {}, (("Nonsense", {}),)),
            "the wrapper Nonsense, which the agent was saved with, is not known",
        ),
        (EnvironmentSpec("CartPole-v1", {}, (("VecFrameStack", {"frames": 2}),)), "VecFrameStack does not take the arguments"),
        (EnvironmentSpec("CartPole-v1", {}, (("PadObservation", {"size": 3}),)), "cannot keep 4 of 4 numbers in 3"),
        (EnvironmentSpec("FrozenLake-v1", {}, (("TimeFeatureWrapper", {}),)), "needs a vector"),
        (EnvironmentSpec("CartPole-v7"), "nearest: CartPole-v1"),
    ],
)
def test_make_refuses_in_one_line(spec, says):
    with pytest.raises(RequestError) as refusal:
        make(spec)
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("gym_id", "extra"), [("LunarLander-v3", "box2d"), ("HalfCheetah-v5", "mujoco")])
def test_a_missing_package_is_named_with_the_command(monkeypatch, gym_id, extra):
    def missing(*_, **__):
        raise gym.error.DependencyNotInstalled("not there")

    monkeypatch.setattr(gym, "make", missing)
    with pytest.raises(RequestError, match=rf'{gym_id} needs a package that is not installed: pip install "policy-distill\[{extra}\]"'):
        make(EnvironmentSpec(gym_id))


def test_time_feature_is_sb3_contribs():
    theirs = pytest.importorskip("sb3_contrib.common.wrappers").TimeFeatureWrapper
    for kwargs in ({}, {"test_mode": True}, {"max_steps": 50}):
        mine = make(EnvironmentSpec("Pendulum-v1", {}, (("TimeFeatureWrapper", kwargs),)))
        other = theirs(gym.make("Pendulum-v1", disable_env_checker=True), **kwargs)
        assert mine.observation_space == other.observation_space
        for seed in (0, 1):
            observations = [env.reset(seed=seed)[0] for env in (mine, other)]
            for _ in range(200):
                assert observations[0].dtype == observations[1].dtype == np.float32
                np.testing.assert_array_equal(*observations)
                observations = [env.step(np.zeros(1, np.float32))[0] for env in (mine, other)]
            # 200 steps of 200: nothing remains (v. max_steps, which a registered length overrides)
            assert observations[0][-1] == (1 if "test_mode" in kwargs else 0)


class Counter(gym.Env):
    """Observes how many steps were taken, twice; unregistered, so without a length."""

    observation_space = gym.spaces.Box(-1, 9, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 1
        return np.full(2, self.count, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.full(2, self.count, np.float32), 0.0, False, False, {}


def test_time_feature_counts_to_max_steps_where_no_length_is_registered():
    env = WRAPPERS["TimeFeatureWrapper"](Counter(), max_steps=4)
    assert env.reset()[0][-1] == 1
    assert [env.step(0)[0][-1] for _ in range(4)] == [0.75, 0.5, 0.25, 0]


def test_frame_stack_is_sb3s():
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    theirs = vec_env.VecFrameStack(vec_env.DummyVecEnv([Counter]), 3)
    mine = WRAPPERS["VecFrameStack"](Counter(), 3)
    assert mine.observation_space == theirs.observation_space
    first = mine.reset()[0]
    np.testing.assert_array_equal(first, [0, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(first, theirs.reset()[0])
    for _ in range(4):
        np.testing.assert_array_equal(mine.step(0)[0], theirs.step([0])[0][0])
    np.testing.assert_array_equal(first, [0, 0, 0, 0, 1, 1])  # kept rows must not change under the caller
    np.testing.assert_array_equal(mine.reset()[0], [0, 0, 0, 0, 1, 1])


def test_padding_keeps_the_first_and_fills_with_zeros():
    env = WRAPPERS["PadObservation"](Counter(), size=4, keep=1)
    np.testing.assert_array_equal(env.reset()[0], np.array([1, 0, 0, 0], np.float32))
    assert env.observation_space.low.tolist() == [-1, -np.inf, -np.inf, -np.inf]


def test_a_spec_survives_json():
    spec = EnvironmentSpec("Ant-v5", {"a": [1]}, (("PadObservation", {"size": 111}), ("TimeFeatureWrapper", {})), 7, "mujoco")
    assert EnvironmentSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert EnvironmentSpec.from_dict({"id": "CartPole-v1"}) == EnvironmentSpec("CartPole-v1")
    with pytest.raises(RequestError, match="unknown key 'wrapper'"):
        EnvironmentSpec.from_dict({"id": "CartPole-v1", "wrapper": []})


def entry_file(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_a_file_of_ones_own(tmp_path):
    text = (
        "id: Pendulum-v1\nkwargs: {g: 5}\nwrappers: [TimeFeatureWrapper, VecFrameStack: {n_stack: 2}]\nevaluation: {max_episode_steps: 9}\n"
    )
    expected = EnvironmentSpec("Pendulum-v1", {"g": 5}, (("TimeFeatureWrapper", {}), ("VecFrameStack", {"n_stack": 2})), 9)
    assert resolve(entry_file(tmp_path, text)) == expected
    assert make(expected).get_wrapper_attr("g") == 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("id: Pendulum-v1\nkwarg: {g: 5}\n", "unknown key 'kwarg'"),
        ("id: Pendulum-v1\nevaluation: {episode: 5}\n", "unknown key 'episode'"),
        ("kwargs: {g: 5}\n", "id is missing"),
        ("id: Pendulum-v1\nwrappers: TimeFeatureWrapper\n", "wrappers is 'TimeFeatureWrapper'"),
        ("id: Pendulum-v1\nwrappers: [3]\n", "a wrapper is 3"),
        ("id: Pendulum-v1\nwrappers: [{A: 3}]\n", "a wrapper is {'A': 3}"),
        ("id: Pendulum-v1\nkwargs: 3\n", "kwargs is 3"),
        ("- 1\n", "id is missing"),
        ("{", "cannot be read"),
    ],
)
def test_a_faulty_file_is_named(tmp_path, text, says):
    with pytest.raises(RequestError) as refusal:
        resolve(entry_file(tmp_path, text))
    assert says in str(refusal.value)
    assert "mine.yaml" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_s_own_wrapper_is_imported_where_the_user_names_it_too(tmp_path, monkeypatch):
    (tmp_path / "canary_of_a_file.py").write_text(
        "import gymnasium as gym\n\n\nclass Mine(gym.Wrapper):\n"
        "    def __init__(self, env, by):\n        super().__init__(env)\n        self.by = by\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = entry_file(tmp_path, "id: Pendulum-v1\nwrappers: ['canary_of_a_file:Mine': {by: 3}]\n")
    with pytest.raises(RequestError, match=r"mine.yaml names the wrapper .*: give --wrapper canary_of_a_file:Mine if you trust it"):
        named(EnvironmentOptions(path))
    with pytest.raises(RequestError, match="nothing that a file names is imported"):
        make(resolve(path))
    assert "canary_of_a_file" not in sys.modules
    spec = named(EnvironmentOptions(path, wrapper=("canary_of_a_file:Mine", "TimeFeatureWrapper")))
    assert spec.wrappers == (("canary_of_a_file:Mine", {"by": 3}), ("TimeFeatureWrapper", {}))
    assert make(spec).get_wrapper_attr("by") == 3


def test_data_are_found_in_a_checkout_and_in_an_installed_package(tmp_path, monkeypatch):
    checkout = environments.data_dir("envs")
    package = tmp_path / "site-packages" / "policy_distill"
    installed = package / "_data" / "envs"
    shutil.copytree(checkout, installed)
    (package.parent / "envs").mkdir()  # another project's folder of that name
    monkeypatch.setattr(environments, "__file__", str(package / "environments" / "specs.py"))
    assert environments.data_dir("envs") == installed
    found: Mapping[str, environments.Entry] = entries()
    monkeypatch.undo()
    assert found == entries()
    monkeypatch.setattr(environments, "__file__", str(tmp_path / "elsewhere" / "environments" / "specs.py"))
    with pytest.raises(RequestError, match="the folder agents/ is missing in this installation"):
        environments.data_dir("agents")


# What files say.


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A module that registers an environment when it is imported; its name."""
    name = f"stranger_{tmp_path.name.replace('-', '_')}"
    entry_point = "gymnasium.envs.classic_control.cartpole:CartPoleEnv"
    (tmp_path / f"{name}.py").write_text(f"import gymnasium\ngymnasium.register('{name}/Env-v0', entry_point='{entry_point}')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    gym.registry.pop(f"{name}/Env-v0", None)
    sys.modules.pop(name, None)


def test_a_module_that_a_file_names_is_not_imported(stranger, tmp_path):
    env = f"{stranger}:{stranger}/Env-v0"
    (tmp_path / "env.yaml").write_text(f"id: {env}\n")
    for spec in (EnvironmentSpec(env), EnvironmentSpec.from_dict({"id": env}), resolve(str(tmp_path / "env.yaml"))):
        for use in (make, modernize):
            with pytest.raises(RequestError, match=rf"importing {stranger} runs its code: give --env {env} if you trust it"):
                use(spec)
    assert stranger not in sys.modules


def test_a_module_that_the_user_names_is_imported(stranger):
    env = f"{stranger}:{stranger}/Env-v0"
    spec = resolve(env)
    assert stranger in sys.modules
    make(spec).close()
    make(EnvironmentSpec(env)).close()  # it is registered now, and nothing more is run
    assert "imports" not in spec.to_dict()
    assert EnvironmentSpec.from_dict(spec.to_dict()) == spec


def test_what_the_user_names_again_keeps_what_the_file_says():
    saved = EnvironmentSpec("module:Env-v0", {"size": 3}, (("TimeFeatureWrapper", {}),), 100)
    again = named_again(saved, "module:Env-v0")
    assert again == saved
    assert again is not None
    assert again.imports
    assert not saved.imports
    assert named_again(saved, "module:Other-v0") is None
    assert named_again(EnvironmentSpec("CartPole-v1"), "CartPole-v1") is None


def test_a_worker_may_import_what_is_registered_here():
    assert for_worker(EnvironmentSpec("module:CartPole-v1")).imports
    assert not for_worker(EnvironmentSpec("module:Unknown-v1")).imports


def test_a_file_does_not_open_a_window():
    env = make(EnvironmentSpec("CartPole-v1", {"render_mode": "human"}))
    assert env.render_mode is None
    env.close()


def test_an_argument_that_may_be_a_file_is_named():
    _, notices = modernize(EnvironmentSpec("CartPole-v1", {"xml_file": "/tmp/model.xml", "mode": "fast", "count": 3}))
    assert notices == ("the agent's files give CartPole-v1 the argument xml_file = '/tmp/model.xml', which it may open",)


@pytest.mark.parametrize(
    "data",
    [
        {"id": 3}, {}, {"id": "A-v0", "kwargs": [1]}, {"id": "A-v0", "wrappers": 3}, {"id": "A-v0", "wrappers": [["A"]]},
        {"id": "A-v0", "wrappers": [[1, {}]]}, {"id": "A-v0", "max_episode_steps": True}, {"id": "A-v0", "max_episode_steps": 0},
        {"id": "A-v0", "extra": 1}, {"id": "A-v0", "imports": True}, {"id": "A-v0", "entry_point": "os:system"}, [], "A-v0",
    ],
    ids=str,
)  # fmt: skip
def test_data_that_are_no_environment_are_refused(data):
    with pytest.raises(RequestError):
        EnvironmentSpec.from_dict(data)


def test_arguments_that_are_nested_too_deep_are_refused():
    nested: Any = 1
    for _ in range(900):
        nested = [nested]
    with pytest.raises(RequestError, match="nested more than 20 deep"):
        EnvironmentSpec.from_dict({"id": "CartPole-v1", "kwargs": {"a": nested}})
    with pytest.raises(RequestError, match="nested more than 20 deep"):
        EnvironmentSpec("CartPole-v1", wrappers=(("TimeFeatureWrapper", {"a": nested}),))
