"""Several agents as one teacher: what they say together, by hand and against each alone; what does not go together is refused."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor

from policy_distill.config import RequestError
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.policies.families import Bernoulli, Categorical, Deterministic, DiagGaussian, MultiCategorical
from policy_distill.teachers import Teacher
from tests.teachers.conftest import LOPSIDED, THREE, VECTOR, TinyEnv, build, scrambled
from tests.teachers.test_teacher import batch

LINE = gym.spaces.Box(-1, 1, (1,), np.float32)
PAIR = gym.spaces.Box(np.array([-2, 0], np.float32), np.array([6, 1], np.float32))
BITS = gym.spaces.MultiBinary(2)
DIALS = gym.spaces.MultiDiscrete([2, 2])
ONE = torch.zeros(1, 1)
OBSERVATIONS = torch.tensor(batch(VECTOR))


def says(space: gym.Space, *numbers: float, outputs: Any = "logits") -> Teacher:
    """Says the same everywhere: logits, or an action."""
    return Teacher.from_callable(lambda seen: np.tile(np.array(numbers, np.float32), (len(seen), 1)), LINE, space, outputs=outputs)


def acts(*action: float) -> Teacher:
    return says(PAIR, *action, outputs="actions")


def agent(algo: str, seed: int = 0, **kwargs: Any) -> Teacher:
    """An agent with weights of its own for each seed."""
    model = build(algo, **kwargs)
    for _ in range(seed):
        scrambled(model)
    return Teacher.from_sb3(model)


def log(*probabilities: float) -> list[float]:
    return [math.log(probability) for probability in probabilities]


# The mean, by hand.


@pytest.mark.parametrize(
    ("weights", "expected"),
    [(None, [0.4, 0.45, 0.15]), ((1.0, 3.0), [0.3, 0.525, 0.175]), ((10, 30), [0.3, 0.525, 0.175])],  # halves; a quarter and the rest
)
def test_probabilities_are_averaged(weights, expected):
    team = Teacher.ensemble([says(THREE, *log(0.6, 0.3, 0.1)), says(THREE, *log(0.2, 0.6, 0.2))], weights=weights)
    targets = team.targets(ONE)
    assert isinstance(team.family, Categorical)
    torch.testing.assert_close(targets.parameters["logits"].exp(), torch.tensor([expected]))
    assert targets.actions.tolist() == [1]  # not the first one's choice


def test_actions_that_do_not_start_at_zero():
    space = gym.spaces.Discrete(3, start=5)
    team = Teacher.ensemble([says(space, *log(0.6, 0.3, 0.1)), says(space, *log(0.2, 0.6, 0.2))])
    assert team.targets(ONE).actions.tolist() == [6]


def test_dials_and_switches_are_averaged_one_by_one():
    dials = Teacher.ensemble([says(DIALS, *log(0.5, 0.5, 0.2, 0.8)), says(DIALS, *log(0.1, 0.9, 0.9, 0.1))]).targets(ONE)
    torch.testing.assert_close(dials.parameters["logits"].exp(), torch.tensor([[0.3, 0.7, 0.55, 0.45]]))
    assert dials.actions.tolist() == [[1, 0]]
    on = [float(np.log(p / (1 - p))) for p in (0.9, 0.3, 0.3, 0.4)]
    switches = Teacher.ensemble([says(BITS, *on[:2]), says(BITS, *on[2:])]).targets(ONE)
    torch.testing.assert_close(switches.parameters["logits"].sigmoid(), torch.tensor([[0.6, 0.35]]))
    assert switches.actions.tolist() == [[1, 0]]


def test_actions_are_averaged_in_the_environment_s_units():
    team = Teacher.ensemble([acts(-2.0, 0.25), acts(6.0, 0.75)], weights=(3, 1))
    assert isinstance(team.family, Deterministic)
    targets = team.targets(ONE)
    assert targets.parameters == {}
    torch.testing.assert_close(targets.actions, torch.tensor([[0.0, 0.375]]))


def test_the_mean_of_actions_on_a_bound_does_not_leave_the_space():
    # a third of 6 thrice may round to more than 6
    for weights in ((1, 1, 1), (1, 3, 7), (0.1, 0.2, 0.4)):
        team = Teacher.ensemble([acts(6.0, 1.0)] * 3, weights=weights)
        assert PAIR.contains(team.act(np.zeros((1, 1), np.float32))[0])


def test_gaussians_keep_the_first_two_moments():
    members = [agent("PPO", seed, policy_kwargs={"log_std_init": std}) for seed, std in ((0, -0.5), (1, 0.4))]
    one, other = (member.targets(OBSERVATIONS).parameters for member in members)
    team = Teacher.ensemble(members, weights=(1, 3))
    targets = team.targets(OBSERVATIONS)
    mean = 0.25 * one["mean"] + 0.75 * other["mean"]
    second = 0.25 * (one["mean"] ** 2 + (2 * one["log_std"]).exp()) + 0.75 * (other["mean"] ** 2 + (2 * other["log_std"]).exp())
    assert isinstance(team.family, DiagGaussian)
    assert not team.family.squashed
    torch.testing.assert_close(targets.parameters["mean"], mean)
    torch.testing.assert_close(targets.parameters["log_std"], 0.5 * (second - mean**2).log(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(targets.actions, team.family.box.to_environment(mean))


@pytest.mark.parametrize("algos", [("SAC", "SAC"), ("PPO", "SAC"), ("PPO", "TD3"), ("TD3", "DDPG")])
def test_of_other_continuous_agents_the_actions_are_averaged(algos):
    members = [agent(algo, seed) for seed, algo in enumerate(algos)]
    team = Teacher.ensemble(members)
    assert isinstance(team.family, Deterministic)
    targets = team.targets(OBSERVATIONS)
    one, other = (member.targets(OBSERVATIONS).actions for member in members)
    assert targets.parameters == {}
    torch.testing.assert_close(targets.actions, (one + other) / 2)


def test_q_values_become_probabilities_by_their_z_scores():
    members = [agent("DQN", 0, action_space=THREE), agent("PPO", 1, action_space=THREE)]
    values, logits = members[0].targets(OBSERVATIONS).parameters["q_values"], members[1].targets(OBSERVATIONS).parameters["logits"]
    scores = (values - values.mean(-1, keepdim=True)) / values.std(-1, correction=0, keepdim=True)
    expected = 0.5 * (scores / 0.5).softmax(-1) + 0.5 * logits.softmax(-1)
    torch.testing.assert_close(Teacher.ensemble(members).targets(OBSERVATIONS).parameters["logits"].exp(), expected, atol=1e-5, rtol=1e-4)


# Invariances.

SAME: list[tuple[str, dict[str, Any]]] = [
    ("PPO", {"action_space": THREE}), ("PPO", {"action_space": DIALS}), ("PPO", {"action_space": BITS}), ("PPO", {}),
    ("PPO", {"use_sde": True}), ("SAC", {}), ("TD3", {}), ("DQN", {"action_space": THREE}), ("QRDQN", {"action_space": THREE}),
]  # fmt: skip


@pytest.mark.parametrize("combine", ["mean", "value"])
@pytest.mark.parametrize(("algo", "kwargs"), SAME)
def test_an_agent_with_itself_is_that_agent(algo, kwargs, combine):
    single = agent(algo, **kwargs)
    team = Teacher.ensemble([single, agent(algo, **kwargs), single], combine=combine)
    expected, targets = single.targets(OBSERVATIONS), team.targets(OBSERVATIONS)
    torch.testing.assert_close(targets.actions, expected.actions, atol=1e-5, rtol=1e-5)
    for name in set(targets.parameters) & set(expected.parameters):
        found, own = targets.parameters[name], expected.parameters[name]
        if combine == "mean" and isinstance(team.family, Categorical):
            own = own.log_softmax(-1)
        if combine == "mean" and isinstance(team.family, MultiCategorical):
            own = torch.cat([part.log_softmax(-1) for part in own.split(team.family.nvec, -1)], -1)
        torch.testing.assert_close(found, own, atol=1e-4, rtol=1e-4)
    if combine == "value":
        assert team.family == single.family
        assert targets.parameters.keys() == expected.parameters.keys()
        torch.testing.assert_close(team.values(OBSERVATIONS), single.values(OBSERVATIONS))


@pytest.mark.parametrize(("algo", "kwargs"), SAME)
def test_order_and_scale_of_the_weights_do_not_matter(algo, kwargs):
    members = [agent(algo, seed, **kwargs) for seed in range(3)]
    one = Teacher.ensemble(members, weights=(1, 2, 5)).targets(OBSERVATIONS)
    other = Teacher.ensemble(members[::-1], weights=(50, 20, 10)).targets(OBSERVATIONS)
    assert one.parameters.keys() == other.parameters.keys()
    for name, value in one.parameters.items():
        torch.testing.assert_close(value, other.parameters[name], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.actions, other.actions, atol=1e-5, rtol=1e-5)


def test_equal_weights_are_the_default():
    members = [agent("PPO", seed) for seed in range(3)]
    one, other = (Teacher.ensemble(members, weights=weights).act(OBSERVATIONS.numpy()) for weights in (None, (2, 2, 2)))
    np.testing.assert_array_equal(one, other)


def test_an_ensemble_may_be_a_member():
    one, two, three = (agent("PPO", seed, action_space=THREE) for seed in range(3))
    nested = Teacher.ensemble([Teacher.ensemble([one, two]), three], weights=(2, 1))
    flat = Teacher.ensemble([one, two, three])
    torch.testing.assert_close(nested.targets(OBSERVATIONS).parameters["logits"], flat.targets(OBSERVATIONS).parameters["logits"])


# The most promising member.


def which(members: list[Teacher]) -> Tensor:
    """Number of the member with the highest value in each state; each of them is somewhere the best."""
    best = torch.stack([member.values(OBSERVATIONS) for member in members]).argmax(0)
    assert len(best.unique()) == len(members)
    return best


@pytest.mark.parametrize(("algo", "kwargs"), [("PPO", {}), ("PPO", {"action_space": THREE}), ("DQN", {"action_space": THREE}), ("SAC", {})])
def test_each_state_follows_the_member_that_promises_most(algo, kwargs):
    members = [agent(algo, seed, **kwargs) for seed in range(2)]
    if algo == "SAC":  # whose promises lie far apart
        gap = (members[0].values(OBSERVATIONS) - members[1].values(OBSERVATIONS)).median()
        for critic in members[1].critic.critics:  # type: ignore[union-attr]
            critic[-1].bias += gap
    best = which(members)
    team = Teacher.ensemble(members, combine="value")
    targets, told = team.targets(OBSERVATIONS), [member.targets(OBSERVATIONS) for member in members]
    assert team.family == members[0].family
    for row, chosen in enumerate(best.tolist()):
        assert torch.equal(targets.actions[row], told[chosen].actions[row])
        assert targets.parameters.keys() == told[chosen].parameters.keys()
        for name, value in targets.parameters.items():
            assert torch.equal(value[row], told[chosen].parameters[name][row])
    assert team.has_values
    torch.testing.assert_close(team.values(OBSERVATIONS), torch.stack([member.values(OBSERVATIONS) for member in members]).amax(0))


def test_q_values_and_logits_are_chosen_as_logits():
    members = [agent("DQN", 0, action_space=THREE), agent("PPO", 0, action_space=THREE)]
    best = which(members)
    targets = Teacher.ensemble(members, combine="value").targets(OBSERVATIONS)
    values, logits = members[0].targets(OBSERVATIONS).parameters["q_values"], members[1].targets(OBSERVATIONS).parameters["logits"]
    scores = (values - values.mean(-1, keepdim=True)) / values.std(-1, correction=0, keepdim=True) / 0.5
    assert set(targets.parameters) == {"logits"}
    torch.testing.assert_close(targets.parameters["logits"], torch.where(best[:, None] == 0, scores, logits), atol=1e-4, rtol=1e-4)


def test_of_different_continuous_agents_the_action_is_chosen():
    members = [agent("PPO", 0), agent("TD3", 1)]
    best = which(members)
    team = Teacher.ensemble(members, combine="value")
    one, other = (member.targets(OBSERVATIONS).actions for member in members)
    targets = team.targets(OBSERVATIONS)
    assert isinstance(team.family, Deterministic)
    assert targets.parameters == {}
    assert torch.equal(targets.actions, torch.where(best[:, None] == 0, one, other))


def test_promises_are_compared_in_the_environment_s_rewards():
    model = build("PPO")
    wrapper = VecNormalize(DummyVecEnv([lambda: TinyEnv(VECTOR, LOPSIDED)]), norm_obs=False)
    wrapper.ret_rms.var = np.array(1e6)
    modest, proud = Teacher.from_sb3(model), Teacher.from_sb3(model, wrapper)
    own = modest.values(OBSERVATIONS)
    assert 0 < (own > 0).float().mean() < 1
    values = Teacher.ensemble([modest, proud], combine="value").values(OBSERVATIONS)
    torch.testing.assert_close(values, torch.where(own > 0, 1000 * own, own), atol=1e-3, rtol=1e-4)


def test_a_mean_has_no_value_function():
    team = Teacher.ensemble([agent("PPO", 0), agent("PPO", 1)])
    assert not team.has_values
    with pytest.raises(RequestError, match=r"the ensemble agent has no critic .* an ensemble combined by value"):
        team.values(OBSERVATIONS)


# What an ensemble is.


def test_each_member_normalises_by_itself():
    model = build("PPO")
    wrappers: list[VecNormalize] = []
    for mean, var in ((1e5, 1e-4), (1e5 + 0.005, 4e-4)):  # float32 would round by more than their standard deviation
        wrapper = VecNormalize(DummyVecEnv([lambda: TinyEnv(VECTOR, LOPSIDED)]))
        assert not isinstance(wrapper.obs_rms, dict)
        wrapper.obs_rms.mean, wrapper.obs_rms.var = np.full(3, mean), np.full(3, var)
        wrappers.append(wrapper)
    observations = 1e5 + 0.01 * OBSERVATIONS.numpy().astype(np.float64)
    members = [Teacher.from_sb3(model, wrapper) for wrapper in wrappers]
    expected = [model.predict(wrapper.normalize_obs(observations), deterministic=True)[0] for wrapper in wrappers]
    team = Teacher.ensemble([*members, agent("TD3", 1)])
    assert isinstance(team.family, Deterministic)
    third = agent("TD3", 1).act(observations)
    np.testing.assert_allclose(team.act(observations), (expected[0] + expected[1] + third) / 3, atol=1e-6)
    assert team.normalization is None
    assert team.describe()["normalized"]


def test_what_an_ensemble_says_of_itself(save):
    paths = [save(build("PPO"), "one.zip"), save(build("A2C", policy_kwargs={"net_arch": [6]}), "two.zip")]
    members = [Teacher.load(path) for path in paths]
    members[0].notes = ("read with care",)
    members[1].saved_env = EnvironmentSpec("Tiny-v0")
    team = Teacher.ensemble(members)
    # 3 -> 7 -> 5 -> 2: 28 + 40 + 12 = 80; 3 -> 6 -> 2: 24 + 14 = 38
    assert (team.algo, team.path, team.params) == ("ensemble", None, 80 + 38)
    assert team.saved_env == EnvironmentSpec("Tiny-v0")
    assert team.notes == (f"{paths[0]}: read with care",)
    facts = team.describe()
    assert facts["members"] == [str(path) for path in paths]
    assert (facts["algorithm"], facts["activation"], facts["layers"], facts["normalized"]) == ("ensemble", "Tanh", [], False)
    assert Teacher.ensemble([members[0], agent("SAC")]).describe()["activation"] is None  # Tanh and ReLU


def test_one_whose_parameters_are_unknown_makes_the_sum_unknown():
    known = Teacher.from_callable(lambda seen: np.zeros(len(seen)), VECTOR, THREE, params=7)
    assert Teacher.ensemble([known, known]).params == 14
    assert Teacher.ensemble([known, Teacher.from_callable(lambda seen: np.zeros(len(seen)), VECTOR, THREE)]).params == 0


def test_an_ensemble_is_frozen_and_can_be_sent_to_another_process():
    team = Teacher.ensemble([agent("PPO", 0), agent("SAC", 1)], combine="value")
    team.train()
    assert not any(module.training for module in team.modules())
    assert not any(parameter.requires_grad for parameter in team.parameters())
    again = pickle.loads(pickle.dumps(team))
    assert np.array_equal(again.act(OBSERVATIONS.numpy()), team.act(OBSERVATIONS.numpy()))


def test_discrete_observations_are_read():
    space = gym.spaces.Discrete(5)
    members = [agent("PPO", seed, observation_space=space, action_space=THREE) for seed in range(2)]
    seen = torch.arange(5)
    expected = sum(member.targets(seen).parameters["logits"].softmax(-1) for member in members) / 2
    torch.testing.assert_close(Teacher.ensemble(members).targets(seen).parameters["logits"].exp(), expected)


# Hints.


@pytest.mark.parametrize("combine", ["mean", "value"])
def test_the_layers_of_each_member_are_listed_and_recorded(combine):
    members = [agent("PPO", 0, policy_kwargs={"net_arch": [6]}), agent("SAC", 1)]
    team = Teacher.ensemble(members, combine=combine)
    expected = {f"members.{index}.network.{name}": width for index, member in enumerate(members) for name, width in member.layers().items()}
    assert team.layers() == expected
    assert not any("spread" in name or "critic" in name for name in expected)
    assert list(team.layers())[:2] == ["members.0.network.latent.0", "members.0.network.latent.1"]
    plain = team.targets(OBSERVATIONS)
    recorded = team.recording(["members.1.network.latent.3", "members.0.network.latent.1"]).targets(OBSERVATIONS)
    own = members[1].recording(["latent.3"]).targets(OBSERVATIONS)
    assert torch.equal(recorded.parameters["layer:members.1.network.latent.3"], own.parameters["layer:latent.3"])
    assert recorded.parameters["layer:members.0.network.latent.1"].shape == (len(OBSERVATIONS), 6)
    assert torch.equal(recorded.actions, plain.actions)
    assert set(team.targets(OBSERVATIONS).parameters) == set(plain.parameters)
    with pytest.raises(RequestError, match=r"no layer 'latent\.0'; its layers and their widths: members\.0\.network\.latent\.0 \(6\)"):
        team.recording(["latent.0"])


def test_no_member_s_last_hidden_layer_is_that_of_the_ensemble():
    assert Teacher.ensemble([agent("PPO", 0), agent("PPO", 1)]).last_hidden_layer() is None


def test_what_a_member_records_for_others_stays_its_own():
    member = agent("PPO", 0).recording(["latent.0"])
    assert set(Teacher.ensemble([member, agent("PPO", 1)]).targets(OBSERVATIONS).parameters) == {"mean", "log_std"}


# Refused.


def refused(make: Callable[[], Teacher], *parts: str) -> None:
    with pytest.raises(RequestError) as caught:
        make()
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_members_of_different_tasks_are_refused_by_name(save):
    paths = [str(save(build("PPO", **spaces), name)) for name, spaces in
             (("one.zip", {}), ("two.zip", {"action_space": THREE}),
              ("three.zip", {"observation_space": gym.spaces.Box(-1, 1, (4,), np.float32)}))]  # fmt: skip
    one, two, three = map(Teacher.load, paths)
    refused(
        lambda: Teacher.ensemble([one, one, two]),
        f"the actions of teacher 1 ({paths[0]}) are 2 numbers in [-1, 3], those of teacher 3 ({paths[1]}) are one of 3 choices",
        "leave one of the two out",
    )
    refused(lambda: Teacher.ensemble([one, three]), "the observations of teacher 1", "are 3 numbers, those of teacher 2", "are 4 numbers")


def test_bounds_of_observations_may_differ():
    wide = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    Teacher.ensemble([agent("PPO"), agent("PPO", observation_space=wide)])


@pytest.mark.parametrize(
    ("weights", "part"),
    [
        ((1.0,), "weights are (1.0,); they must be one for each of the 2 teachers"),
        ((1.0, 2.0, 3.0), "one for each of the 2 teachers"),
        ((1.0, 0.0), "weights are (1.0, 0.0); they must be > 0: leave out a teacher"),
        ((1.0, -1.0), "must be > 0"),
        ((1.0, math.inf), "must be > 0"),
        ((1.0, math.nan), "must be > 0"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, part):
    members = [acts(0.0, 0.0), acts(1.0, 1.0)]
    refused(lambda: Teacher.ensemble(members, weights=weights), part)


def test_other_requests_that_make_no_sense_are_refused(save):
    one, two = agent("PPO", 0), agent("PPO", 1)
    refused(lambda: Teacher.ensemble([one, two], combine="median"), "combine is 'median'; it must be mean or value")  # type: ignore[arg-type]
    refused(lambda: Teacher.ensemble([one]), "an ensemble of 1 teachers is none: name at least two")
    refused(lambda: Teacher.ensemble([]), "an ensemble of 0 teachers is none")
    refused(lambda: Teacher.ensemble([one, two], weights=(1, 2), combine="value"), "weights are (1, 2), but combine is 'value'")
    silent = Teacher.from_callable(lambda seen: seen[:, :2], VECTOR, LOPSIDED)
    refused(
        lambda: Teacher.ensemble([one, silent], combine="value"),
        "combine is 'value', but the callable agent has no critic",
        "or combine by 'mean'",
    )


def test_switches_stay_switches():
    assert isinstance(Teacher.ensemble([agent("PPO", seed, action_space=BITS) for seed in range(2)]).family, Bernoulli)
