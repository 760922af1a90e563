"""A teacher acts exactly as Stable-Baselines3 does with the same file."""

from __future__ import annotations

import csv
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.config import RequestError
from policy_distill.policies.families import Bernoulli, Categorical, Deterministic, DiagGaussian, MultiCategorical
from policy_distill.support import trees
from policy_distill.teachers import Teacher
from policy_distill.teachers.algorithms import ON_POLICY
from tests.teachers.conftest import LOPSIDED, THREE, VECTOR, TinyEnv, build, unmasked

GRID = gym.spaces.Box(-1, 1, (2, 3), np.float32)
BITS = gym.spaces.MultiBinary(4)
CHOICES = gym.spaces.MultiDiscrete([2, 3])
ACTION_GRID = gym.spaces.Box(-2, 1, (2, 2), np.float32)
ELU = {"activation_fn": torch.nn.ELU}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ppo": ("PPO", {}),
    "ppo discrete": ("PPO", {"action_space": THREE}),
    "ppo discrete observations": ("PPO", {"observation_space": gym.spaces.Discrete(5), "action_space": THREE}),
    "ppo multi-discrete": ("PPO", {"observation_space": CHOICES, "action_space": CHOICES}),
    "ppo multi-binary": ("PPO", {"observation_space": BITS, "action_space": BITS}),
    "ppo grids": ("PPO", {"observation_space": GRID, "action_space": ACTION_GRID}),
    "ppo elu": ("PPO", {"policy_kwargs": dict(ELU)}),
    "ppo without hidden layers": ("PPO", {"policy_kwargs": {"net_arch": []}}),
    "ppo own widths": ("PPO", {"policy_kwargs": {"net_arch": {"pi": [6], "vf": [3, 4]}}}),
    "ppo gsde": ("PPO", {"use_sde": True}),
    "ppo gsde squashed": ("PPO", {"use_sde": True, "policy_kwargs": {"squash_output": True, "full_std": False}}),
    "ppo gsde expln": ("PPO", {"use_sde": True, "policy_kwargs": {"use_expln": True, "log_std_init": 0.1}}),
    "a2c": ("A2C", {}),
    "a2c discrete": ("A2C", {"action_space": THREE, "policy_kwargs": {"activation_fn": torch.nn.ReLU}}),
    "trpo": ("TRPO", {}),
    "ppo_mask": ("MaskablePPO", {"action_space": THREE}),
    "dqn": ("DQN", {"action_space": THREE}),
    "dqn bits": ("DQN", {"observation_space": BITS, "action_space": THREE, "policy_kwargs": dict(ELU)}),
    "qrdqn": ("QRDQN", {"action_space": THREE, "policy_kwargs": {"n_quantiles": 4}}),
    "sac": ("SAC", {}),
    "sac without hidden layers": ("SAC", {"policy_kwargs": {"net_arch": {"pi": [], "qf": [4]}}}),
    "sac gsde": ("SAC", {"use_sde": True}),
    "sac gsde clip": ("SAC", {"use_sde": True, "policy_kwargs": {"clip_mean": 0.5, "use_expln": True}}),
    "sac gsde no clip": ("SAC", {"use_sde": True, "policy_kwargs": {"clip_mean": 0.0}}),
    "sac elu": ("SAC", {"policy_kwargs": dict(ELU)}),
    "tqc": ("TQC", {"action_space": ACTION_GRID}),
    "tqc gsde": ("TQC", {"use_sde": True}),
    "td3": ("TD3", {}),
    "ddpg": ("DDPG", {"action_space": ACTION_GRID}),
    "ars": ("ARS", {}),
    "ars linear": ("ARS", {"policy": "LinearPolicy"}),
    "ars linear with bias": ("ARS", {"policy": "LinearPolicy", "policy_kwargs": {"with_bias": True}}),
    "ars one layer": ("ARS", {"policy_kwargs": {"net_arch": []}}),
    "ars unsquashed": ("ARS", {"policy_kwargs": {"squash_output": False, "net_arch": [6]}}),
    "ars discrete": ("ARS", {"action_space": THREE, "policy_kwargs": {"net_arch": [6]}}),
}


def case(name: str):
    algo, arguments = CASES[name]
    copied: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in arguments.items()}
    return build(algo, **copied)


def batch(space: gym.Space, size: int = 64) -> np.ndarray:
    space.seed(1)
    return np.stack([space.sample() for _ in range(size)])


def reference(model, observations: np.ndarray) -> dict[str, torch.Tensor]:
    """The distribution's parameters from Stable-Baselines3's own code, in the units of its distributions."""
    policy = model.policy
    tensor, _ = policy.obs_to_tensor(observations)
    with torch.no_grad():
        if hasattr(policy, "get_distribution"):
            found = policy.get_distribution(tensor)
            parts = getattr(found, "distributions", None) or found.distribution
            if isinstance(parts, list):
                return {"logits": torch.cat([part.logits for part in parts], -1)}
            return {"logits": parts.logits} if hasattr(parts, "logits") else {"mean": parts.mean, "std": parts.stddev}
        if hasattr(policy, "q_net"):
            return {"q_values": policy.q_net(tensor)}
        if hasattr(policy, "quantile_net"):
            return {"q_values": policy.quantile_net(tensor).mean(1)}
        if hasattr(policy.actor, "get_action_dist_params"):
            mean, log_std, extra = policy.actor.get_action_dist_params(tensor)
            normal = policy.actor.action_dist.proba_distribution(mean, log_std, **extra).distribution
            return {"mean": normal.mean, "std": normal.stddev}
        return {}


@pytest.mark.parametrize("name", CASES)
def test_a_saved_agent_acts_as_it_does_in_stable_baselines(name, save):
    model = case(name)
    teacher = Teacher.load(save(model))
    observations = batch(model.observation_space)
    expected, _ = model.predict(observations, deterministic=True)

    actions = teacher.act(unmasked(teacher, observations))

    assert actions.shape == expected.shape
    np.testing.assert_allclose(actions, expected, atol=1e-6)
    if isinstance(teacher.family, Categorical):
        assert np.unique(actions).size > 1  # or the test could not tell the actions apart
    assert teacher.algo == name.split()[0]


@pytest.mark.parametrize("name", [name for name in CASES if name.split()[0] not in ("td3", "ddpg", "ars")])
def test_the_distribution_is_that_of_stable_baselines(name, save):
    model = case(name)
    teacher = Teacher.load(save(model))
    observations = batch(model.observation_space)
    expected = reference(model, observations)

    parameters = teacher.targets(trees.to_tensors(unmasked(teacher, observations))).parameters

    match teacher.family:
        case DiagGaussian(box=box, squashed=squashed):
            scale, offset = (torch.ones(1), torch.zeros(1)) if squashed else map(torch.tensor, box.affine())
            torch.testing.assert_close(parameters["mean"] * scale + offset, expected["mean"], check_dtype=False, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(parameters["log_std"].exp() * scale, expected["std"], check_dtype=False, atol=1e-6, rtol=1e-5)
        case Categorical() if "q_values" in expected:
            torch.testing.assert_close(parameters["q_values"], expected["q_values"])
        case Categorical():  # SB3 normalises its logits
            torch.testing.assert_close(parameters["logits"].log_softmax(-1), expected["logits"])
        case MultiCategorical(nvec=nvec):
            normalized = [part.log_softmax(-1) for part in parameters["logits"].split(nvec, -1)]
            torch.testing.assert_close(torch.cat(normalized, -1), expected["logits"])
        case Bernoulli():
            torch.testing.assert_close(parameters["logits"], expected["logits"])


@pytest.mark.parametrize("name", [name for name in CASES if name.split()[0] not in ("td3", "ddpg", "ars")])
def test_the_action_is_the_mode_of_the_distribution(name, save):
    model = case(name)
    teacher = Teacher.load(save(model))
    targets = teacher.targets(trees.to_tensors(unmasked(teacher, batch(model.observation_space))))

    assert not isinstance(teacher.family, Deterministic)
    torch.testing.assert_close(teacher.family.mode(targets.parameters), targets.actions, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["ppo", "ppo gsde squashed", "sac gsde clip", "td3", "qrdqn", "ars linear", "ppo multi-discrete"])
def test_a_live_model_is_read_like_its_file(name, save):
    model = case(name)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    live, saved = Teacher.from_sb3(model), Teacher.load(save(model))
    observations = batch(model.observation_space)

    assert np.array_equal(live.act(observations), saved.act(observations))
    assert (live.algo, live.params, live.family) == (saved.algo, saved.params, saved.family)
    with torch.no_grad():
        next(model.policy.parameters()).add_(1.0)  # the teacher is a copy
    assert np.array_equal(live.act(observations), saved.act(observations))
    assert all(parameter.requires_grad for parameter in model.policy.parameters() if parameter.is_floating_point()) or name == "ars linear"
    assert set(before) == set(model.policy.state_dict())


def test_the_parameters_that_count_are_those_that_act(save):
    # 3 inputs, hidden 7 and 5, 2 outputs: (3+1)*7 + (7+1)*5 + (5+1)*2 = 80. SAC's actor holds a second head: + (5+1)*2 = 92.
    assert Teacher.load(save(build("PPO"))).params == 80
    assert Teacher.load(save(build("PPO", use_sde=True))).params == 80
    assert Teacher.load(save(build("SAC"))).params == 92
    assert Teacher.load(save(build("SAC", use_sde=True))).params == 90  # log_std of 5 x 2
    assert Teacher.load(save(build("TD3"))).params == 80


def test_a_teacher_is_frozen(save):
    teacher = Teacher.load(save(build("PPO")))
    teacher.train()
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.targets(torch.zeros(4, 3)).parameters["mean"].requires_grad


def test_a_teacher_can_be_sent_to_another_process(save):
    teacher = Teacher.load(save(build("SAC", use_sde=True)))
    observations = batch(VECTOR)
    again = pickle.loads(pickle.dumps(teacher))
    assert np.array_equal(again.act(observations), teacher.act(observations))


def test_loading_imports_no_stable_baselines(save):
    path = save(build("PPO"))
    code = f"import sys, policy_distill.teachers as t; t.Teacher.load({str(path)!r}); sys.exit('stable_baselines3' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_statistics_beside_the_zip_are_applied(save, tmp_path):
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    venv = VecNormalize(DummyVecEnv([lambda: TinyEnv(VECTOR, LOPSIDED)]), clip_obs=2.0)
    assert not isinstance(venv.obs_rms, dict)
    venv.obs_rms.mean, venv.obs_rms.var = np.array([0.3, -1.0, 2.0]), np.array([0.5, 4.0, 0.01])
    model = build("PPO")
    path = save(model)
    venv.save(tmp_path / "vecnormalize.pkl")
    observations = batch(VECTOR)
    expected, _ = model.predict(venv.normalize_obs(observations), deterministic=True)

    teacher = Teacher.load(path)

    # two torch products of the same numbers that lie differently in memory: equal up to rounding
    for same in (teacher, Teacher.from_sb3(model, venv)):
        np.testing.assert_allclose(same.act(observations), expected, rtol=1e-5, atol=1e-6)
    assert teacher.notes == ("normalisation taken from vecnormalize.pkl beside the zip",)
    assert not np.allclose(teacher.act(observations), model.predict(observations, deterministic=True)[0])
    model.set_env(venv)
    around = Teacher.from_sb3(model)  # the statistics are found around the model's environment
    np.testing.assert_array_equal(around.act(observations), Teacher.from_sb3(model, venv).act(observations))


def test_statistics_of_another_agent_are_refused(save, tmp_path):
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    path = save(build("PPO"))
    VecNormalize(DummyVecEnv([lambda: TinyEnv(GRID, LOPSIDED)])).save(tmp_path / "vecnormalize.pkl")
    with pytest.raises(RequestError, match="another agent's"):
        Teacher.load(path)


def test_shared_layers_of_old_versions():
    # Until SB3 1.8 mlp_extractor.shared_net came before policy_net, an activation after each of its layers.
    from policy_distill.teachers.networks.rebuild import rebuild_network

    generator = torch.Generator().manual_seed(0)
    shapes = {"mlp_extractor.shared_net.0": (6, 3), "mlp_extractor.policy_net.0": (5, 6), "action_net": (3, 5), "value_net": (1, 6)}
    weights = {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    weights |= {f"{name}.bias": torch.randn(shape[0], generator=generator) for name, shape in shapes.items()}
    network = rebuild_network(weights, ON_POLICY, VECTOR, THREE, {}, "old")
    x = torch.randn(8, 3, generator=generator)

    hidden = x
    for name in ("mlp_extractor.shared_net.0", "mlp_extractor.policy_net.0"):
        hidden = torch.tanh(hidden @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])
    expected = hidden @ weights["action_net.weight"].T + weights["action_net.bias"]

    torch.testing.assert_close(network(x).parameters["logits"], expected)
    assert network.acting_params == (3 + 1) * 6 + (6 + 1) * 5 + (5 + 1) * 3


def test_noise_with_a_latent_of_its_own():
    # sde_net_arch of versions before 2.0: an empty one means the observations themselves.
    from policy_distill.teachers.networks.rebuild import rebuild_network

    generator = torch.Generator().manual_seed(0)
    weights = {
        "mlp_extractor.policy_net.0.weight": torch.randn(5, 3, generator=generator),
        "mlp_extractor.policy_net.0.bias": torch.zeros(5),
    }
    weights |= {"action_net.weight": torch.randn(2, 5, generator=generator), "action_net.bias": torch.zeros(2)}
    x = torch.randn(4, 3, generator=generator)
    scale = torch.tensor([2.0, 0.2])  # half the width of the bounds

    log_std = torch.randn(3, 2, generator=generator)
    network = rebuild_network({**weights, "log_std": log_std}, ON_POLICY, VECTOR, LOPSIDED, {"sde_net_arch": []}, "old")
    expected = (x.square() @ log_std.exp().square() + 1e-6).sqrt() / scale
    torch.testing.assert_close(network(x).parameters["log_std"].exp(), expected)

    log_std, own = torch.randn(4, 2, generator=generator), torch.randn(4, 3, generator=generator)
    extra = {"log_std": log_std, "sde_features_extractor.0.weight": own, "sde_features_extractor.0.bias": torch.zeros(4)}
    network = rebuild_network({**weights, **extra}, ON_POLICY, VECTOR, LOPSIDED, {"sde_net_arch": [4]}, "old")
    expected = ((x @ own.T).tanh().square() @ log_std.exp().square() + 1e-6).sqrt() / scale
    torch.testing.assert_close(network(x).parameters["log_std"].exp(), expected)


def test_describe_says_what_the_agent_is(save):
    facts = Teacher.load(save(build("PPO"))).describe()
    assert facts["layers"] == [3, 7, 5, 2]
    assert (facts["algorithm"], facts["activation"], facts["params"], facts["normalized"]) == ("ppo", "Tanh", 80, False)
    assert facts["policy_params"] == 80 + 2 + (3 + 1) * 7 + (7 + 1) * 5 + (5 + 1) * 1
    assert facts["num_timesteps"] == 0


def test_an_algorithm_that_does_not_fit_is_refused(save):
    path = save(build("PPO"))
    assert Teacher.load(path, algo="trpo").algo == "trpo"
    with pytest.raises(RequestError, match=r"algo is 'sac'.*networks of ppo"):
        Teacher.load(path, algo="sac")


def test_observations_of_another_width_are_refused(save):
    with pytest.raises(ValueError, match="has 5 numbers; this ppo teacher reads 3"):
        Teacher.load(save(build("PPO"))).act(np.zeros((2, 5), np.float32))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "measured.csv").open() as stream:
        return list({row["zip"]: row for row in csv.DictReader(stream)}.values())


def test_real_agents_are_read_whole(real_teachers):
    read = 0
    for row in rows(real_teachers):
        path = real_teachers / row["zip"]
        teacher = Teacher.load(path.parent)
        if row["params_actor"]:
            assert teacher.params == int(float(row["params_actor"])), row["zip"]
            assert teacher.facts["policy_params"] == int(float(row["params_policy"])), row["zip"]
        else:  # one that observes a Dict, which was not measured
            assert teacher.obs_dim == 3 + 3 + 11
        assert teacher.algo == row["algo"]
        assert (teacher.normalization is not None) == (row["vecnormalize"] == "True")
        assert teacher.saved_env is not None
        assert teacher.saved_env.id == row["env_saved"]
        assert [name for name, _ in teacher.saved_env.wrappers] == ([row["env_wrapper"].rpartition(".")[2]] if row["env_wrapper"] else [])
        assert teacher.facts["sb3_version"] == (row["sb3_version"] or None)
        assert not teacher.notes
        read += 1
    assert read >= 17


@pytest.mark.filterwarnings("ignore:You are probably loading")  # SB3 on the optimiser of old DQN agents
@pytest.mark.parametrize(
    "name",
    ["a2c/BipedalWalker-v3_1", "ars/Hopper-v3_1", "ddpg/Pendulum-v1_1", "dqn/CartPole-v1_1", "ppo/LunarLander-v2_1",
     "qrdqn/MountainCar-v0_1", "sac/Pendulum-v1_1", "tqc/Hopper-v3_1", "trpo/MountainCarContinuous-v0_1"],
)  # fmt: skip
def test_real_agents_act_as_in_stable_baselines(name, real_teachers):
    from policy_distill.teachers import read_archive
    from policy_distill.teachers.files.trusted import load_model

    pytest.importorskip("sb3_contrib")
    teacher = Teacher.load(real_teachers / name)
    assert teacher.path is not None
    archive = read_archive(teacher.path)
    spaces = {"observation_space": archive.observation_space, "action_space": archive.action_space}
    model = load_model(Path(teacher.path), name.split("/")[0], spaces)
    generator = np.random.default_rng(0)
    assert isinstance(archive.observation_space, gym.spaces.Box)
    observations = generator.normal(size=(256, *archive.observation_space.shape)).astype(archive.observation_space.dtype)
    seen = observations
    if (statistics := teacher.normalization) is not None:
        observations = statistics.mean + observations * np.sqrt(statistics.var)
        seen = np.clip((observations - statistics.mean) / np.sqrt(statistics.var + statistics.epsilon), -10, 10).astype(np.float32)

    expected, _ = model.predict(seen, deterministic=True)

    # kernels of other processors round 256 units differently: 3e-6 was seen
    np.testing.assert_allclose(teacher.act(observations), expected, rtol=1e-5, atol=1e-5)
    if isinstance(teacher.family, Deterministic | DiagGaussian):
        assert expected.std() > 1e-3


# Recorded layers.


def test_layers_are_listed_in_order_and_recorded_as_the_network_computes_them():
    teacher = Teacher.from_sb3(build("PPO", policy_kwargs={"net_arch": {"pi": [6, 5], "vf": [3]}}))
    layers = teacher.layers()
    assert list(layers.values()) == [6, 6, 5, 5, teacher.family.width]
    assert teacher.last_hidden_layer() == list(layers)[3]
    first, activated = list(layers)[:2]
    observations = torch.from_numpy(np.stack([VECTOR.sample() for _ in range(7)]))
    plain, recorded = teacher.targets(observations), teacher.recording([first, activated]).targets(observations)
    assert set(recorded.parameters) - set(plain.parameters) == {f"layer:{first}", f"layer:{activated}"}
    torch.testing.assert_close(recorded.parameters[f"layer:{first}"].tanh(), recorded.parameters[f"layer:{activated}"])
    assert torch.equal(recorded.actions, plain.actions)
    assert set(teacher.targets(observations).parameters) == set(plain.parameters)  # the teacher itself does not change
    assert not any(module._forward_hooks for module in teacher.modules())


def test_an_unknown_layer_is_refused_with_the_names_there_are():
    teacher = Teacher.from_sb3(build("DQN", action_space=THREE))
    with pytest.raises(RequestError, match=r"no layer 'foo'; its layers and their widths: body.0 \(7\), body.1 \(7\)"):
        teacher.recording(["foo"])


def test_a_function_has_no_layers():
    teacher = Teacher.from_callable(lambda seen: np.zeros(len(seen)), VECTOR, THREE)
    assert teacher.layers() == {}
    assert teacher.last_hidden_layer() is None


def test_images_with_their_axes_in_another_order_are_refused():
    space = gym.spaces.Box(0, 255, (3, 8, 8), np.uint8)
    teacher = Teacher.from_callable(lambda seen: seen.reshape(len(seen), -1)[:, :2], space, gym.spaces.Box(0, 255, (2,)))
    assert teacher.act(np.zeros((5, 3, 8, 8), np.uint8)).shape == (5, 2)
    with pytest.raises(ValueError, match=r"shape \(8, 8, 3\), and their space has \(3, 8, 8\)"):
        teacher.act(np.zeros((5, 8, 8, 3), np.uint8))
