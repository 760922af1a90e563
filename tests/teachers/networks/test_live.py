"""Teachers that are called as they are: functions, custom policies."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from policy_distill.config import RequestError
from policy_distill.policies.families import Categorical, Deterministic, DiagGaussian
from policy_distill.teachers import Teacher
from tests.teachers.conftest import LOPSIDED, THREE, VECTOR, build


class Halves(BaseFeaturesExtractor):
    """A features extractor with a weight of its own."""

    def __init__(self, observation_space: gym.Space) -> None:
        super().__init__(observation_space, 2)
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.linear(observations) / 2


OBSERVATIONS = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("algo", "arguments"),
    [
        ("PPO", {}), ("PPO", {"action_space": THREE}), ("PPO", {"action_space": gym.spaces.MultiDiscrete([2, 3])}),
        ("PPO", {"action_space": gym.spaces.MultiBinary(4)}), ("PPO", {"use_sde": True}), ("SAC", {}), ("SAC", {"use_sde": True}),
        ("TD3", {}),
        ("DQN", {"action_space": THREE}), ("QRDQN", {"action_space": THREE}),
    ],
)  # fmt: skip
def test_a_custom_features_extractor_is_called_as_it_is(algo, arguments):
    if algo == "QRDQN":
        pytest.importorskip("sb3_contrib")
    model = build(algo, policy_kwargs={"features_extractor_class": Halves}, **arguments)
    teacher = Teacher.from_sb3(model)
    expected, _ = model.predict(OBSERVATIONS, deterministic=True)

    targets = teacher.targets(torch.tensor(OBSERVATIONS))

    np.testing.assert_allclose(teacher.act(OBSERVATIONS), expected, atol=1e-6)
    assert teacher.params > 0
    if isinstance(teacher.family, Deterministic):
        assert targets.parameters == {}
    else:
        assert all(value.shape == (32, teacher.family.width) for value in targets.parameters.values())
        torch.testing.assert_close(teacher.family.mode(targets.parameters), targets.actions, atol=1e-5, rtol=1e-5)
    if isinstance(teacher.family, DiagGaussian):
        assert teacher.family.squashed == (algo == "SAC")


def test_the_copy_of_a_live_policy_is_its_own():
    model = build("PPO", use_sde=True, policy_kwargs={"features_extractor_class": Halves})
    teacher = Teacher.from_sb3(model)
    before = teacher.act(OBSERVATIONS)
    assert model.policy.optimizer is not None
    # Extractor 3 -> 2, hidden 7 and 5, 2 actions; neither the value network nor log_std acts.
    assert teacher.params == (3 + 1) * 2 + (2 + 1) * 7 + (7 + 1) * 5 + (5 + 1) * 2
    assert all(parameter.requires_grad for parameter in model.policy.parameters())
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.zero_()
    assert np.array_equal(teacher.act(OBSERVATIONS), before)


def test_an_agent_that_normalises_inside_is_called_as_it_is():
    pytest.importorskip("sb3_contrib")
    model = build("CrossQ")
    expected, _ = model.predict(OBSERVATIONS, deterministic=True)
    np.testing.assert_allclose(Teacher.from_sb3(model).act(OBSERVATIONS), expected, atol=1e-6)


def test_models_that_are_not_supported_are_refused():
    pytest.importorskip("sb3_contrib")
    recurrent = {"features_extractor_class": Halves}
    with pytest.raises(RequestError, match="cannot be rebuilt from its weights alone"):
        Teacher.from_sb3(build("RecurrentPPO", policy="MlpLstmPolicy", n_steps=8, policy_kwargs=recurrent))
    with pytest.raises(RequestError, match="is not supported"):
        Teacher.from_sb3(object())


def test_a_function_of_continuous_actions():
    teacher = Teacher.from_callable(lambda x: x[:, :2] * 10, VECTOR, LOPSIDED, params=5)
    assert isinstance(teacher.family, Deterministic)
    assert (teacher.algo, teacher.path, teacher.params) == ("callable", None, 5)
    np.testing.assert_allclose(teacher.act(OBSERVATIONS), np.clip(OBSERVATIONS[:, :2] * 10, LOPSIDED.low, LOPSIDED.high), rtol=1e-6)
    assert teacher.targets(torch.tensor(OBSERVATIONS)).parameters == {}


def test_a_function_of_discrete_actions_is_almost_certain():
    space = gym.spaces.Discrete(3, start=5)
    teacher = Teacher.from_callable(lambda x: 5 + (x[:, 0] > 0), VECTOR, space)
    targets = teacher.targets(torch.tensor(OBSERVATIONS))
    assert isinstance(teacher.family, Categorical)
    assert set(targets.actions.tolist()) == {5, 6}
    assert torch.equal(teacher.family.mode(targets.parameters), targets.actions)
    probabilities = targets.parameters["logits"].softmax(-1)
    torch.testing.assert_close(probabilities.max(-1).values, torch.full((32,), 0.999))
    torch.testing.assert_close(probabilities.min(-1).values, torch.full((32,), 0.0005))


@pytest.mark.parametrize(
    ("space", "answer"),
    [(gym.spaces.MultiDiscrete([2, 3]), np.array([[1, 2], [0, 1]])), (gym.spaces.MultiBinary(2), np.array([[1, 0], [0, 1]]))],
    ids=str,
)
def test_functions_of_several_discrete_actions(space, answer):
    teacher = Teacher.from_callable(lambda x: answer, VECTOR, space)
    targets = teacher.targets(torch.zeros(2, 3))
    assert np.array_equal(targets.actions.numpy(), answer)
    assert not isinstance(teacher.family, Deterministic)
    assert torch.equal(teacher.family.mode(targets.parameters), targets.actions)
    assert torch.isfinite(targets.parameters["logits"]).all()


def test_a_function_of_logits():
    teacher = Teacher.from_callable(lambda x: x, VECTOR, THREE, outputs="logits")
    targets = teacher.targets(torch.tensor(OBSERVATIONS))
    assert torch.equal(targets.parameters["logits"], torch.tensor(OBSERVATIONS))
    assert np.array_equal(targets.actions.numpy(), OBSERVATIONS.argmax(-1))


def test_a_function_that_answers_something_else_is_refused():
    observations = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="returned 1 numbers an observation; 2 actions are expected"):
        Teacher.from_callable(lambda x: x[:, :1], VECTOR, LOPSIDED).targets(observations)
    with pytest.raises(ValueError, match="outside its space: it has 3 values, and the actions are 7"):
        Teacher.from_callable(lambda x: np.array([7, 7]), VECTOR, THREE).targets(observations)
    with pytest.raises(ValueError, match="values other than 0 and 1"):
        Teacher.from_callable(lambda x: np.array([[2], [0]]), VECTOR, gym.spaces.MultiBinary(1)).targets(observations)
    with pytest.raises(RequestError, match="the action space is continuous"):
        Teacher.from_callable(lambda x: x, VECTOR, LOPSIDED, outputs="logits")
    with pytest.raises(RequestError, match="must be actions or logits"):
        Teacher.from_callable(lambda x: x, VECTOR, THREE, outputs="q")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="is no array and no Dict of arrays"):
        Teacher.from_callable(lambda x: x, gym.spaces.Dict({"a": gym.spaces.Dict({"b": VECTOR})}), THREE)


def test_a_function_of_a_dict_is_given_its_parts_by_key():
    space = gym.spaces.Dict({"a": gym.spaces.Box(-1, 1, (2,), np.float64), "b": gym.spaces.Discrete(3)})
    seen: list[dict[str, np.ndarray]] = []

    def function(observations: dict[str, np.ndarray]) -> np.ndarray:
        seen.append(observations)
        return observations["b"]

    teacher = Teacher.from_callable(function, space, THREE)
    named = teacher.act({"a": np.zeros((4, 2)), "b": np.array([0, 1, 2, 1])})
    assert named.tolist() == [0, 1, 2, 1]
    assert {key: (part.dtype, part.shape) for key, part in seen[0].items()} == {"a": (np.float32, (4, 2)), "b": (np.int64, (4,))}
