"""Training a teacher: what is refused, and that a short training leaves an agent that measures up to its card."""

from __future__ import annotations

import importlib.util
import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from policy_distill.config import RequestError
from policy_distill.environments import specs as environments
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.studies.train_teacher import recipes, training
from policy_distill.studies.train_teacher.recipes import ALGORITHMS, TrainTeacherConfig, read_recipe
from policy_distill.studies.train_teacher.returns import evaluate_model
from policy_distill.studies.train_teacher.training import train_teacher
from policy_distill.support.figures import spread_text
from policy_distill.teachers import Teacher
from policy_distill.teachers.files.archive import read_archive

SMALL = {"n_steps": 50, "batch_size": 100, "n_epochs": 2, "policy_kwargs": {"net_arch": [8], "activation_fn": "relu"}}


def config(tmp_path: Any, **changes: Any) -> TrainTeacherConfig:
    """A training of a second."""
    values: dict[str, Any] = {
        "algo": "ppo",
        "env": "CartPole-v1",
        "n_timesteps": 200,
        "n_envs": 2,
        "hyperparams": SMALL,
        "tensorboard": False,
    }
    paths = {"output": str(tmp_path / "agents"), "run_folder": str(tmp_path / "run")}
    return TrainTeacherConfig(**{**values, **paths, "eval_episodes": 6, "validation_episodes": 2, "eval_freq": 100, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """PPO on CartPole for 200 steps, with TensorBoard's log and what was said meanwhile."""
    folder = tmp_path_factory.mktemp("trained")
    notes: list[str] = []
    request = config(folder, tensorboard=True)
    return request, train_teacher(request, notes.append), notes, folder


def test_the_folder_is_laid_out_as_in_the_zoo(trained):
    _, agent, _, folder = trained
    assert agent.path == folder / "agents" / "ppo" / "CartPole-v1_1"
    files = sorted(str(path.relative_to(agent.path)) for path in agent.path.rglob("*") if path.is_file())
    assert files == ["CartPole-v1.zip", "CartPole-v1/args.yml", "CartPole-v1/config.yml", "README.md", "card.json"]
    settings = yaml.safe_load((agent.path / "CartPole-v1" / "config.yml").read_text())
    assert {key: settings[key] for key in SMALL} == SMALL
    assert (settings["n_timesteps"], settings["policy"]) == (200, "MlpPolicy")
    assert settings["gae_lambda"] == read_recipe("ppo", "CartPole-v1")["gae_lambda"]
    assert settings["learning_rate"] == "lin_0.001"
    arguments = yaml.safe_load((agent.path / "CartPole-v1" / "args.yml").read_text())
    assert (arguments["algo"], arguments["env"], arguments["seed"]) == ("ppo", "CartPole-v1", 0)
    assert list((folder / "run" / "tensorboard").rglob("events.out.tfevents.*"))


def test_the_card_says_what_the_agent_earns(trained):
    """Its own zip, loaded again and run over the same seeds one after the other, gives the figure on the card."""
    from stable_baselines3 import PPO

    _, agent, _, _ = trained
    model = PPO.load(agent.path / "CartPole-v1.zip", device="cpu")
    returns = []
    for seed in range(training.FINAL_SEED, training.FINAL_SEED + 6):
        env = environments.make(EnvironmentSpec("CartPole-v1"))
        observation, _ = env.reset(seed=seed)
        length, over = 0, False
        while not over:
            action, _ = model.predict(observation, deterministic=True)
            observation, _, terminated, truncated, _ = env.step(action)
            length, over = length + 1, terminated or truncated
        returns.append(length)
    card = json.loads((agent.path / "card.json").read_text())
    assert card["return_mean"] == pytest.approx(np.mean(returns), abs=1e-3)
    assert card["return_std"] == pytest.approx(np.std(returns), abs=1e-3)
    assert (agent.mean, agent.episodes, agent.steps) == (pytest.approx(np.mean(returns)), 6, 200)
    assert card["episodes"] == 6
    assert card["env_steps"] == 200
    assert 0 < card["kept_at_env_step"] <= 200
    assert {"python", "torch", "stable_baselines3"} <= set(card["versions"])
    readme = (agent.path / "README.md").read_text()
    assert spread_text(card["return_mean"], card["return_std"]) in readme
    assert card["command"] in readme


def test_the_command_on_the_card_holds_all_that_was_changed(trained):
    request, _, _, _ = trained
    command = request.command()
    assert command.startswith("python scripts/train_teacher.py --algo ppo --env CartPole-v1 --seed 0 --n_timesteps 200 --n_envs 2")
    assert "--eval_freq 100" in command
    assert '"net_arch": [8]' in command
    assert TrainTeacherConfig("ppo", "CartPole-v1").command() == "python scripts/train_teacher.py --algo ppo --env CartPole-v1 --seed 0"


def test_each_measurement_is_reported(trained):
    notes = trained[2]
    assert len(notes) >= 20  # a short training has twenty, whatever eval_freq
    assert all(note.startswith(f"{steps} of 200 steps: return ") for note, steps in zip(notes[:2], (10, 20), strict=True))


def test_the_same_seed_trains_the_same_agent(trained, tmp_path):
    _, first, _, _ = trained
    second = train_teacher(config(tmp_path))
    ours, theirs = (read_archive(agent.path / "CartPole-v1.zip").state_dict for agent in (first, second))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert first.mean == second.mean


def test_runs_are_numbered_and_threads_left_alone(tmp_path):
    threads = torch.get_num_threads()
    paths = [train_teacher(config(tmp_path, seed=seed)).path.name for seed in (0, 1)]
    assert paths == ["CartPole-v1_1", "CartPole-v1_2"]
    assert torch.get_num_threads() == threads


def test_the_best_policy_is_kept_not_the_last(tmp_path, monkeypatch):
    """Returns of 5, 9, 7, ... in the periodic evaluation: the second policy is the agent, though training went on."""
    script = iter([5.0, 9.0, *[7.0] * 100])
    measured = []

    def scripted(model, spec, seeds, statistics=None):
        weights = model.policy.action_net.weight.detach().clone()
        if seeds[0] == training.FINAL_SEED:
            measured.append(weights)
            return np.array([1.0])
        value = next(script)
        if value == 9:
            measured.append(weights)
        return np.array([value])

    monkeypatch.setattr(training, "evaluate_model", scripted)
    agent = train_teacher(config(tmp_path, n_timesteps=2000, eval_freq=500, hyperparams={**SMALL, "n_epochs": 1}))
    assert torch.equal(*measured)
    assert json.loads((agent.path / "card.json").read_text())["kept_at_env_step"] == 200


def test_normalised_observations_leave_their_statistics(tmp_path):
    agent = train_teacher(config(tmp_path, hyperparams={**SMALL, "normalize": True}))
    assert (agent.path / "CartPole-v1" / "vecnormalize.pkl").is_file()
    assert yaml.safe_load((agent.path / "CartPole-v1" / "config.yml").read_text())["normalize"] is True
    teacher = Teacher.load(agent.path)
    observations = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    spec = EnvironmentSpec("CartPole-v1")
    statistics = VecNormalize.load(str(agent.path / "CartPole-v1" / "vecnormalize.pkl"), DummyVecEnv([lambda: environments.make(spec)]))
    expected, _ = PPO.load(agent.path / "CartPole-v1.zip", device="cpu").predict(statistics.normalize_obs(observations), deterministic=True)
    np.testing.assert_array_equal(teacher.act(observations), expected)


def test_wrappers_of_the_environment_are_saved_with_the_agent(tmp_path):
    entry = tmp_path / "Timed.yaml"
    entry.write_text("id: CartPole-v1\nkwargs: {sutton_barto_reward: true}\nwrappers: [TimeFeatureWrapper]\n")
    agent = train_teacher(config(tmp_path, env=str(entry)))
    assert agent.path.name == "CartPole-v1_1"
    saved = Teacher.load(agent.path).saved_env
    assert saved == EnvironmentSpec("CartPole-v1", {"sutton_barto_reward": True}, (("TimeFeatureWrapper", {}),))


def test_settings_of_the_environment_are_saved_with_the_agent(tmp_path):
    asked = config(tmp_path, env_kwargs={"sutton_barto_reward": True}, wrapper=("TimeFeatureWrapper",), frame_stack=2, max_episode_steps=30)
    agent = train_teacher(asked)
    teacher = Teacher.load(agent.path)
    assert teacher.saved_env == EnvironmentSpec(
        "CartPole-v1", {"sutton_barto_reward": True}, (("TimeFeatureWrapper", {}), ("VecFrameStack", {"n_stack": 2})), 30
    )
    assert teacher.obs_dim == 10
    options = """--env_kwargs '{"sutton_barto_reward": true}' --wrapper TimeFeatureWrapper --frame_stack 2 --max_episode_steps 30"""
    assert options in json.loads((agent.path / "card.json").read_text())["command"]
    with pytest.raises(RequestError, match="frame_stack is 0"):
        config(tmp_path, frame_stack=0)


@pytest.mark.parametrize(
    ("algo", "env", "hyperparams"),
    [
        ("a2c", "CartPole-v1", {}),
        ("dqn", "CartPole-v1", {"learning_starts": 20, "train_freq": 8, "gradient_steps": 1}),
        ("sac", "Pendulum-v1", {"learning_starts": 20, "train_freq": 8}),
        ("td3", "Pendulum-v1", {"learning_starts": 20, "train_freq": [1, "episode"]}),
        ("trpo", "CartPole-v1", {"n_steps": 32, "batch_size": 32}),
        ("qrdqn", "CartPole-v1", {"learning_starts": 20, "train_freq": 8, "gradient_steps": 1}),
    ],
)
def test_other_algorithms_train_from_their_recipes(tmp_path, monkeypatch, algo, env, hyperparams):
    monkeypatch.setattr(training, "evaluate_model", lambda *_: np.ones(2))
    if ALGORITHMS[algo] == "sb3_contrib":
        pytest.importorskip("sb3_contrib")
    changes: dict[str, Any] = {"algo": algo, "env": env, "hyperparams": hyperparams, "n_envs": 1, "n_timesteps": 60}
    agent = train_teacher(config(tmp_path, eval_freq=60, **{**changes, "eval_episodes": 2, "validation_episodes": 1}))
    assert Teacher.load(agent.path).algo == algo
    # Whoever trains it further shall have the recipe's buffer, not the small one that it was loaded with.
    data = read_archive(agent.path / f"{env}.zip").data
    assert data.get("buffer_size") == read_recipe(algo, env).get("buffer_size", 1_000_000 if "buffer_size" in data else None)


class Follower:
    """Pushes to where the pole leans, and remembers what it saw; as statistics it makes everything zero."""

    def __init__(self):
        self.seen: list[np.ndarray] = []

    def predict(self, observations, deterministic):
        assert deterministic
        self.seen.append(observations)
        return (observations[:, 2] > 0).astype(int), None

    def normalize_obs(self, observations):
        return 0 * observations


def test_one_seed_an_episode_whatever_the_number():
    """An episode's return depends on its seed alone, not on how many run beside it or went before."""
    spec = EnvironmentSpec("CartPole-v1")
    many = evaluate_model(Follower(), spec, range(40))
    np.testing.assert_array_equal(many[20:], evaluate_model(Follower(), spec, range(20, 40)))
    np.testing.assert_array_equal(many[[7, 33]], evaluate_model(Follower(), spec, [7, 33]))
    assert len(set(many.tolist())) > 5


def test_the_model_sees_observations_as_in_training():
    model = Follower()
    evaluate_model(model, EnvironmentSpec("CartPole-v1"), range(3), model)
    assert not any(observations.any() for observations in model.seen)
    evaluate_model(model, EnvironmentSpec("CartPole-v1"), range(3))
    assert all(observations.any() for observations in model.seen[-5:])


@pytest.mark.parametrize("algo", sorted(set(ALGORITHMS) - {"ars"}))
def test_every_recipe_is_understood(algo):
    """Every entry's names and values pass the checks that a training makes."""
    if ALGORITHMS[algo] == "sb3_contrib":
        pytest.importorskip("sb3_contrib")
    entries = yaml.safe_load((environments.data_dir("agents") / f"{algo}.yml").read_text())
    assert "default" in entries
    for name in entries:
        if name.startswith("MinAtar") and importlib.util.find_spec("minatar") is None:
            continue
        spec = environments.resolve("Pendulum-v1" if name == "default" else name)
        recipe = read_recipe(algo, name)
        recipes._check_recipe(algo, name, recipes._algorithm(algo), recipe)
        arguments = recipes._arguments(recipe, environments.make(spec).action_space)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a batch that one environment does not fill
            recipes._algorithm(algo)(env=environments.make(spec), **arguments) if name != "default" else None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"algo": "pppo"}, "did you mean ppo?"),
        ({"algo": ""}, "algo is ''"),
        ({"env": ""}, "env is ''"),
        ({"env": "CartPol-v1"}, "nearest: CartPole-v1"),
        ({"env": "AntBulletEnv-v0"}, "pybullet"),
        ({"seed": -1}, "seed is -1; it must be >= 0"),
        ({"n_timesteps": 0}, "n_timesteps is 0; it must be >= 1"),
        ({"n_envs": 0}, "n_envs is 0"),
        ({"eval_episodes": 1}, "eval_episodes is 1; it must be >= 2"),
        ({"device": "gpu"}, "device is 'gpu'; it must be cpu, cuda or auto"),
        ({"hyperparams": {"batchsize": 3}}, "'batchsize' is not a hyper-parameter of ppo; did you mean batch_size?"),
        ({"hyperparams": {"zzz": 3}}, "known: batch_size, "),
        ({"hyperparams": {"env": "x"}}, "'env' is not a hyper-parameter"),
        ({"hyperparams": {"learning_rate": "exp_3"}}, "learning_rate is 'exp_3'; it must be a number, or lin_NUMBER"),
        ({"hyperparams": {"policy_kwargs": "dict(net_arch=[64])"}}, "must be plain data"),
        ({"hyperparams": {"policy_kwargs": {"activation_fn": "nn.Tanh"}}}, "activation_fn is 'nn.Tanh'; it must be one of elu"),
        ({"hyperparams": {"policy_kwargs": {"net_arc": [64]}}}, "net_arc"),
        ({"hyperparams": {"n_timesteps": "many"}, "n_timesteps": None}, "n_timesteps is 'many'; it must be a whole number >= 1"),
        ({"algo": "sac", "hyperparams": {}}, "sac cannot be trained on CartPole-v1"),
        ({"algo": "td3", "env": "Pendulum-v1", "hyperparams": {"noise_type": "pink"}}, "noise_type is 'pink'; it must be one of normal"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(tmp_path, changes, says):
    with pytest.raises(RequestError) as refusal:
        train_teacher(config(tmp_path, **changes))
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "agents").exists()


def test_ars_has_no_recipe_and_says_so(tmp_path):
    pytest.importorskip("sb3_contrib")
    with pytest.raises(RequestError, match=r"agents/ars.yml has no recipe for CartPole-v1 and no default; pass n_timesteps"):
        train_teacher(config(tmp_path, algo="ars", n_timesteps=None, hyperparams={}))


def test_a_missing_sb3_contrib_is_named_with_the_command(tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(recipes.importlib, "import_module", missing)
    with pytest.raises(RequestError, match=r'trpo needs sb3-contrib: pip install "policy-distill\[contrib\]"'):
        recipes._algorithm("trpo")


def test_a_schedule_falls_along_a_line_to_zero():
    arguments = recipes._arguments(
        {"learning_rate": "lin_0.01", "clip_range": "0.2", "n_timesteps": 9}, environments.make(EnvironmentSpec("CartPole-v1")).action_space
    )
    assert [arguments["learning_rate"](remaining) for remaining in (1.0, 0.5, 0.0)] == [0.01, 0.005, 0.0]
    assert [arguments["clip_range"](remaining) for remaining in (1.0, 0.5)] == [0.2, 0.2]
    assert "n_timesteps" not in arguments


def test_a_memory_is_carried_through_each_episode_and_emptied_between_them(tmp_path):
    """RecurrentPPO without velocities: evaluated 16 at a time as one after the other with sb3-contrib's own loop."""
    pytest.importorskip("sb3_contrib")
    hyperparams = {"n_steps": 25, "batch_size": 50, "n_epochs": 1, "policy_kwargs": {"net_arch": [8], "lstm_hidden_size": 8}}
    agent = train_teacher(config(tmp_path, algo="ppo_lstm", env="CartPoleNoVel-v1", hyperparams=hyperparams))
    assert agent.path.name == "CartPoleNoVel-v1_1"
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    spec = environments.resolve("CartPoleNoVel-v1")
    model = RecurrentPPO.load(agent.path / "CartPoleNoVel-v1.zip", device="cpu")
    statistics = VecNormalize.load(
        str(agent.path / agent.path.name.removesuffix("_1") / "vecnormalize.pkl"), DummyVecEnv([lambda: environments.make(spec)])
    )
    alone = []
    for seed in range(40):
        env = environments.make(spec)
        observation, _ = env.reset(seed=seed)
        state, length, over = None, 0, False
        while not over:
            action, state = model.predict(statistics.normalize_obs(observation), state, np.array([length == 0]), deterministic=True)
            observation, _, terminated, truncated, _ = env.step(action)
            length, over = length + 1, terminated or truncated
        alone.append(length)
    assert len(set(alone)) > 5
    np.testing.assert_array_equal(evaluate_model(model, spec, range(40), statistics), alone)


def test_masks_are_shown_where_the_algorithm_takes_them(tmp_path):
    """The environment refuses a finished job, so that an action without its mask would stop the training."""
    pytest.importorskip("sb3_contrib")
    hyperparams = {"n_steps": 24, "batch_size": 48, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}}
    agent = train_teacher(config(tmp_path, algo="ppo_mask", env="SingleMachine-v0", hyperparams=hyperparams))
    assert Teacher.load(agent.path).algo == "ppo_mask"


def test_dicts_of_observations_are_trained_on(tmp_path):
    hyperparams = {"n_steps": 25, "batch_size": 50, "n_epochs": 1}
    agent = train_teacher(config(tmp_path, env="BitFlippingEnv-v0", hyperparams=hyperparams))
    assert -10 <= agent.mean <= -1


def test_a_features_extractor_of_the_users_own_is_read_again_without_running_the_zip(tmp_path):
    pytest.importorskip("minatar")
    extractor = f"{environments.data_dir('agents') / 'minatar.py'}:MinAtarNetwork"
    hyperparams = {
        "n_steps": 25,
        "batch_size": 50,
        "n_epochs": 1,
        "policy_kwargs": {"net_arch": [8], "features_extractor_kwargs": {"filters": 2}},
    }
    agent = train_teacher(config(tmp_path, env="MinAtar-Breakout-v1", hyperparams=hyperparams, extractor=extractor))
    assert f"--extractor {extractor}" in json.loads((agent.path / "card.json").read_text())["command"]
    teacher = Teacher.load(agent.path, extractor=extractor)
    assert teacher.params == 4 * 2 * 9 + 2 + 2 * 64 * 128 + 128 + 128 * 8 + 8 + 8 * 3 + 3
    assert teacher.saved_env == EnvironmentSpec("MinAtar/Breakout-v1", max_episode_steps=2500)
    with pytest.raises(RequestError, match="which does not exist"):
        train_teacher(config(tmp_path, extractor="nowhere.py:Thing"))


def test_a_folder_that_cannot_be_written_is_refused_before_the_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot be written"):
        train_teacher(config(tmp_path, output=str(tmp_path / "file" / "agents")))
    assert not any((tmp_path / "run").glob("*checkpoint*"))
