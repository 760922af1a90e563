"""What a teacher's critic says is what Stable-Baselines3's says, in the environment's rewards; and the critic never acts."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from policy_distill.config import RequestError
from policy_distill.policies.actions import Box
from policy_distill.support import trees
from policy_distill.teachers import Teacher, read_archive
from policy_distill.teachers.algorithms import ALGORITHMS, ON_POLICY
from policy_distill.teachers.networks.acting import ActionBounds, DeterministicNetwork
from policy_distill.teachers.networks.critics import ActionValue, StateValue, rebuild_critic
from policy_distill.teachers.networks.live import LivePolicy
from policy_distill.teachers.networks.rebuild import rebuild_network
from tests.teachers.conftest import LOPSIDED, THREE, VECTOR, TinyEnv, build, unmasked
from tests.teachers.kinds import KINDS
from tests.teachers.networks.test_live import Halves
from tests.teachers.test_teacher import CASES, batch, case, rows

WITH_CRITIC = [name for name in CASES if not name.startswith("ars")]
WITHOUT = [name for name in CASES if name.startswith("ars")]


class Cubed(torch.nn.Module):
    """An activation that weights alone do not tell of."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs**3


def oracle(model: Any, observations: np.ndarray) -> torch.Tensor:
    """The values that Stable-Baselines3's own code gives to its own deterministic actions."""
    policy = model.policy
    policy.set_training_mode(False)
    tensor, _ = policy.obs_to_tensor(observations)
    with torch.no_grad():
        if hasattr(policy, "predict_values"):
            return policy.predict_values(tensor)[:, 0]
        if hasattr(policy, "q_net"):
            return policy.q_net(tensor).max(1).values
        if hasattr(policy, "quantile_net"):
            return policy.quantile_net(tensor).mean(1).max(1).values
        found = policy.critic(tensor, policy._predict(tensor, deterministic=True))
        return torch.cat(found, 1).min(1).values if isinstance(found, tuple) else found.mean((1, 2))


def linear(weight: list[list[float]], bias: list[float]) -> torch.nn.Linear:
    layer = torch.nn.Linear(len(weight[0]), len(weight))
    layer.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    return layer


# The oracle.


@pytest.mark.parametrize("name", WITH_CRITIC)
def test_the_values_are_those_of_stable_baselines(name, save):
    model = case(name)
    observations = batch(model.observation_space)
    expected = oracle(model, observations)
    assert expected.std() > 1e-3  # or the test could not tell states apart

    for teacher in (Teacher.load(save(model)), Teacher.from_sb3(model)):
        values = teacher.values(trees.to_tensors(unmasked(teacher, observations)))
        assert teacher.has_values
        assert (values.shape, values.dtype, values.requires_grad) == ((len(observations),), torch.float32, False)
        torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["images ppo continuous", "images extractors apart", "images sac continuous", "images one extractor",
                                  "images tqc continuous", "images td3 continuous", "images dqn discrete", "images qrdqn discrete",
                                  "images flattened", "dict images ppo", "dict images sac"])  # fmt: skip
def test_the_values_of_images_are_those_of_stable_baselines(name, save):
    kind = next(one for one in KINDS if one.name == name)
    model, observations = kind.model(), kind.observations(16)
    expected = oracle(model, observations)
    assert expected.std() > 1e-3
    for teacher in (Teacher.load(save(model)), Teacher.from_sb3(model)):
        values = teacher.values(trees.to_tensors(observations))
        torch.testing.assert_close(values, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("algo", "arguments"),
    [
        ("PPO", {}), ("PPO", {"action_space": THREE}), ("SAC", {}), ("SAC", {"use_sde": True}), ("TD3", {}), ("TQC", {}),
        ("DQN", {"action_space": THREE}), ("QRDQN", {"action_space": THREE}),
    ],
)  # fmt: skip
def test_the_critic_of_a_policy_that_is_called_as_it_is(algo, arguments):
    model = build(algo, policy_kwargs={"features_extractor_class": Halves}, **arguments)
    teacher, observations = Teacher.from_sb3(model), batch(VECTOR)
    torch.testing.assert_close(teacher.values(torch.tensor(observations)), oracle(model, observations), atol=1e-5, rtol=1e-5)


def test_the_critic_of_an_agent_that_normalises_inside(save):
    pytest.importorskip("sb3_contrib")
    model = build("CrossQ")
    observations = batch(VECTOR)
    with torch.no_grad():
        for name, statistics in model.policy.named_buffers():
            if name.endswith(("ra_mean", "ra_var")):
                statistics.copy_(0.5 + torch.rand(statistics.shape, generator=torch.Generator().manual_seed(0)))
    for teacher in (Teacher.from_sb3(model), Teacher.load(save(model)), Teacher.load(save(model), trust=True)):
        torch.testing.assert_close(teacher.values(torch.tensor(observations)), oracle(model, observations), atol=1e-5, rtol=1e-5)


# By hand.


def test_a_state_value_by_hand():
    # relu(2 * 3 - 1) = 5, relu(-3) = 0; 0.5 * 5 + 7 * 0 + 1 = 3.5
    body = torch.nn.Sequential(linear([[2.0], [-1.0]], [-1.0, 0.0]), torch.nn.ReLU(), linear([[0.5, 7.0]], [1.0]))
    assert StateValue(body)(torch.tensor([[3.0]]), torch.nn.Identity()).tolist() == [3.5]


def test_action_values_by_hand():
    # The action is clipped to 3, the upper bound: 1 in box units. Features 2: inputs (2, 1).
    actor = DeterministicNetwork(linear([[10.0]], [0.0]), ActionBounds(Box((-1.0,), (3.0,))), squashed=False)
    critics = [linear([[1.0, 4.0], [0.0, 1.0]], [0.0, 0.0]), linear([[2.0, 0.0], [0.0, -5.0]], [0.0, 3.0])]
    # the first says 2 + 4 = 6 and 1, the second 4 and -5 + 3 = -2
    features = torch.tensor([[2.0]])
    assert ActionValue(critics, quantiles=False)(features, actor).tolist() == [-2.0]
    assert ActionValue(critics, quantiles=True)(features, actor).tolist() == [pytest.approx((6 + 1 + 4 - 2) / 4)]


def test_shared_layers_of_old_versions():
    # Until SB3 1.8 mlp_extractor.shared_net came before value_net, too.
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "mlp_extractor.shared_net.0": (6, 3), "mlp_extractor.value_net.0": (5, 6), "value_net": (1, 5), "action_net": (3, 6),
    }  # fmt: skip
    weights = {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    weights |= {f"{name}.bias": torch.randn(shape[0], generator=generator) for name, shape in shapes.items()}
    network = rebuild_network(weights, ON_POLICY, VECTOR, THREE, {}, "old")
    critic = rebuild_critic(weights, "a2c", network, {}, 3, "old")
    x = torch.randn(8, 3, generator=generator)

    hidden = x
    for name in ("mlp_extractor.shared_net.0", "mlp_extractor.value_net.0"):
        hidden = torch.tanh(hidden @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])
    expected = hidden @ weights["value_net.weight"].T + weights["value_net.bias"]

    assert critic is not None
    torch.testing.assert_close(critic(x, network), expected[:, 0])


def test_one_quantile_is_still_averaged_over_the_critics(save):
    pytest.importorskip("sb3_contrib")
    model = build("TQC", policy_kwargs={"n_quantiles": 1, "n_critics": 3})
    observations = batch(VECTOR)
    values = Teacher.load(save(model)).values(torch.tensor(observations))
    torch.testing.assert_close(values, oracle(model, observations), atol=1e-5, rtol=1e-5)


def test_quantiles_are_known_by_their_number_where_a_folder_names_a_sibling(save):
    pytest.importorskip("sb3_contrib")
    model = build("TQC")
    observations = batch(VECTOR)
    teacher = Teacher.load(save(model), algo="sac")
    assert teacher.algo == "sac"
    torch.testing.assert_close(teacher.values(torch.tensor(observations)), oracle(model, observations), atol=1e-5, rtol=1e-5)


# In units of the environment's reward.


def normalizer(**kwargs: Any) -> VecNormalize:
    wrapper = VecNormalize(DummyVecEnv([lambda: TinyEnv(VECTOR, LOPSIDED)]), **kwargs)
    wrapper.ret_rms.var = np.array(6.25)
    if wrapper.norm_obs:
        assert not isinstance(wrapper.obs_rms, dict)
        wrapper.obs_rms.mean, wrapper.obs_rms.var = np.array([0.3, -1.0, 2.0]), np.array([0.5, 4.0, 0.01])
    return wrapper


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"epsilon": 1e-8}, 2.5),  # sqrt(6.25)
        ({"epsilon": 2.75}, 3.0),  # sqrt(6.25 + 2.75)
        ({"norm_reward": False}, 1.0),
        ({"norm_obs": False}, 2.5),
    ],
)
@pytest.mark.parametrize("algo", ["PPO", "SAC"])
def test_values_of_normalised_rewards_are_scaled_back(algo, settings, scale, save, tmp_path):
    wrapper, model = normalizer(**settings), build(algo)
    observations = batch(VECTOR).astype(np.float64)
    expected = scale * oracle(model, np.asarray(wrapper.normalize_obs(observations), np.float32))
    path = save(model)
    wrapper.save(str(tmp_path / "vecnormalize.pkl"))

    for teacher in (Teacher.load(path), Teacher.from_sb3(model, wrapper)):
        torch.testing.assert_close(teacher.values(torch.tensor(observations)), expected, atol=1e-5, rtol=1e-5)
    model.set_env(wrapper)
    torch.testing.assert_close(Teacher.from_sb3(model).values(torch.tensor(observations)), expected, atol=1e-5, rtol=1e-5)


def zoo_run(root: Path, model: Any, normalize: str) -> Path:
    run = root / "ppo" / "Tiny-v0_1"
    (run / "Tiny-v0").mkdir(parents=True)
    model.save(run / "Tiny-v0.zip")
    (run / "Tiny-v0" / "config.yml").write_text(f"normalize: {normalize}\n")
    return run


def test_rewards_alone_may_have_been_normalised(tmp_path):
    model, observations = build("PPO"), batch(VECTOR)
    run = zoo_run(tmp_path, model, "{norm_obs: false, norm_reward: true}")
    normalizer(norm_obs=False).save(str(run / "Tiny-v0" / "vecnormalize.pkl"))
    teacher = Teacher.load(run)
    assert teacher.normalization is None
    torch.testing.assert_close(teacher.values(torch.tensor(observations)), 2.5 * oracle(model, observations), atol=1e-5, rtol=1e-5)


def test_values_whose_scale_is_missing_are_refused_and_the_agent_acts_all_the_same(tmp_path):
    model, observations = build("PPO"), batch(VECTOR)
    teacher = Teacher.load(zoo_run(tmp_path, model, "{norm_obs: false, norm_reward: true}"))
    np.testing.assert_allclose(teacher.act(observations), model.predict(observations, deterministic=True)[0], atol=1e-6)
    assert not teacher.has_values
    refused(teacher, r"Tiny-v0\.zip was trained on normalised rewards whose scale is missing: put vecnormalize\.pkl where")


def test_a_run_without_normalisation_ignores_statistics_that_lie_about(tmp_path):
    model, observations = build("PPO"), batch(VECTOR)
    run = zoo_run(tmp_path, model, "false")
    normalizer().save(str(run / "Tiny-v0" / "vecnormalize.pkl"))
    torch.testing.assert_close(Teacher.load(run).values(torch.tensor(observations)), oracle(model, observations), atol=1e-5, rtol=1e-5)


# Teachers without a critic.


def refused(teacher: Teacher, match: str) -> None:
    with pytest.raises(RequestError, match=match) as caught:
        teacher.values(torch.zeros(2, 3))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", WITHOUT)
def test_ars_has_no_values(name, save):
    model = case(name)
    for teacher in (Teacher.load(save(model)), Teacher.from_sb3(model)):
        assert not teacher.has_values
        refused(teacher, "has no critic that can be read, so its values are not known: name one of a2c, crossq, ddpg")


def test_a_function_has_no_values():
    teacher = Teacher.from_callable(lambda seen: seen[:, :2], VECTOR, LOPSIDED)
    assert not teacher.has_values
    refused(teacher, "^the callable agent has no critic")


def test_a_policy_of_which_no_critic_is_known_has_no_values():
    pytest.importorskip("sb3_contrib")
    teacher = Teacher.from_sb3(build("ARS", policy_kwargs={"activation_fn": Cubed, "net_arch": [6]}))
    assert isinstance(teacher.network, LivePolicy)
    assert not teacher.has_values
    refused(teacher, "^the ars agent has no critic")


@pytest.mark.parametrize(
    ("algo", "prefix"), [("PPO", "value_net."), ("PPO", "mlp_extractor.value_net."), ("SAC", "critic."), ("TD3", "critic.")]
)
def test_critics_whose_weights_are_missing_or_damaged_hinder_no_one(algo, prefix, save):
    archive = read_archive(save(build(algo)))
    name = algo.lower()
    layout = ALGORITHMS[name].layout
    assert layout is not None
    network = rebuild_network(archive.state_dict, layout, VECTOR, LOPSIDED, archive.policy_kwargs, "it")

    def critic_of(weights: dict[str, torch.Tensor]) -> torch.nn.Module | None:
        return rebuild_critic(weights, name, network, archive.policy_kwargs, 3, "it")

    weights = dict(archive.state_dict)
    assert critic_of(weights) is not None
    assert critic_of({key: tensor for key, tensor in weights.items() if not key.startswith(prefix)}) is None
    first = next(key for key in weights if key.startswith(prefix) and key.endswith("weight"))
    assert critic_of({**weights, first: torch.zeros(1, 99)}) is None
    assert critic_of({**weights, first: torch.zeros(1, 2, 3)}) is None


def test_a_value_network_of_several_outputs_is_none(save):
    archive = read_archive(save(build("PPO")))
    network = rebuild_network(archive.state_dict, ON_POLICY, VECTOR, LOPSIDED, {}, "it")
    weights = {**archive.state_dict, "value_net.weight": torch.zeros(2, 5), "value_net.bias": torch.zeros(2)}
    assert rebuild_critic(weights, "ppo", network, {}, 3, "it") is None


# The critic does not act.


@pytest.mark.parametrize("name", ["ppo", "sac", "tqc", "dqn"])
def test_nothing_but_the_values_knows_the_critic(name, save):
    teacher = Teacher.load(save(case(name)))
    bare = Teacher(
        teacher.network, teacher.observation_space, teacher.action_space, algo=teacher.algo, path=teacher.path, facts=teacher.facts
    )
    assert teacher.has_values
    assert not bare.has_values
    assert (teacher.params, teacher.family, teacher.layers()) == (bare.params, bare.family, bare.layers())
    assert teacher.describe() == bare.describe()
    teacher.train()
    assert teacher.critic is not None
    assert not teacher.critic.training
    assert not any(parameter.requires_grad for parameter in teacher.critic.parameters())


def test_the_critic_rests_until_it_is_asked(save):
    teacher = Teacher.load(save(case("sac")))
    asked: list[Any] = []
    assert teacher.critic is not None
    for module in teacher.critic.modules():
        module.register_forward_hook(lambda module, inputs, output: asked.append(module))
    observations = batch(VECTOR)
    teacher.act(observations)
    teacher.layers()
    assert asked == []
    teacher.values(torch.tensor(observations))
    assert teacher.critic in asked


def test_values_survive_the_way_to_another_process(save):
    teacher = Teacher.load(save(case("td3")))
    observations = torch.tensor(batch(VECTOR))
    assert torch.equal(pickle.loads(pickle.dumps(teacher)).values(observations), teacher.values(observations))


def test_a_live_model_may_change_after_it_was_read():
    model = case("ppo")
    teacher, observations = Teacher.from_sb3(model), torch.tensor(batch(VECTOR))
    before = teacher.values(observations)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.zero_()
    assert torch.equal(teacher.values(observations), before)


def test_observations_of_another_width_are_refused(save):
    with pytest.raises(ValueError, match="has 5 numbers; this ppo teacher reads 3"):
        Teacher.load(save(build("PPO"))).values(torch.zeros(2, 5))


def test_values_of_real_agents(real_teachers):
    read = 0
    for row in rows(real_teachers):
        if not row["params_actor"]:
            continue
        teacher = Teacher.load((real_teachers / row["zip"]).parent)
        assert teacher.has_values == (row["algo"] != "ars")
        if teacher.has_values:
            values = teacher.values(torch.zeros(4, teacher.obs_dim))
            assert torch.isfinite(values).all()
            assert teacher.reward_scale is not None
            assert teacher.normalization is not None or teacher.reward_scale == 1.0
            read += 1
    assert read >= 15
