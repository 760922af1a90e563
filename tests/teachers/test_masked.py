"""MaskablePPO agents, from their files and live, name what sb3-contrib names under the same masks."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.config import EnvironmentOptions, RequestError
from policy_distill.environments.action_masks import MASK, OBSERVATION, allows, mask_sizes
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.rollouts.numpy_policies import actor, labeller
from policy_distill.support import trees
from policy_distill.teachers import Teacher
from policy_distill.teachers.environment import environment_for
from policy_distill.teachers.networks.masked import MaskedNetwork
from tests.teachers.conftest import TinyEnv

SPACES = gym.spaces
VECTOR = SPACES.Box(-5, 5, (4,), np.float32)
PARTS = SPACES.Dict({"far": VECTOR, "near": SPACES.Discrete(3)})
ACTIONS = [SPACES.Discrete(5), SPACES.MultiDiscrete([3, 2, 4]), SPACES.MultiBinary(4)]


def model_of(observations: gym.Space, actions: gym.Space, **settings: Any) -> Any:
    maskable = pytest.importorskip("sb3_contrib").MaskablePPO
    policy = "MultiInputPolicy" if isinstance(observations, SPACES.Dict) else "MlpPolicy"
    model = maskable(policy, TinyEnv(observations, actions), seed=0, device="cpu", policy_kwargs={"net_arch": [9, 8], **settings})
    with torch.no_grad():
        model.policy.action_net.weight.mul_(300)  # so that many different actions are named
    return model


def batch(model: Any, rows: int = 64) -> tuple[Any, np.ndarray]:
    """Random observations, and masks of which some forbid all choices of a component."""
    model.observation_space.seed(0)
    observations = trees.stack([model.observation_space.sample() for _ in range(rows)])
    mask = np.random.default_rng(0).random((rows, sum(mask_sizes(model.action_space)))) < 0.5
    return observations, mask.astype(np.int8)


def with_masks(observations: Any, mask: np.ndarray) -> Any:
    return {**(observations if isinstance(observations, dict) else {OBSERVATION: observations}), MASK: mask}


@pytest.mark.parametrize("actions", ACTIONS, ids=str)
@pytest.mark.parametrize("observations", [VECTOR, PARTS], ids=["vector", "dict"])
def test_it_names_what_sb3_contrib_names(tmp_path, observations, actions):
    model = model_of(observations, actions)
    model.save(tmp_path / "agent.zip")
    seen, mask = batch(model)
    expected, _ = model.predict(seen, deterministic=True, action_masks=mask)
    assert len(np.unique(expected, axis=0)) > 2
    for teacher in (Teacher.load(tmp_path / "agent.zip"), Teacher.from_sb3(model)):
        np.testing.assert_array_equal(teacher.act(with_masks(seen, mask)), expected)
        np.testing.assert_array_equal(actor(teacher, len(mask))(with_masks(seen, mask)), expected)
        free = np.array([all(part.any() for part in np.split(row, np.cumsum(mask_sizes(actions))[:-1])) for row in mask])
        assert free.any()
        assert all(allows(actions, *row) for row in zip(mask, expected, strict=True))


@pytest.mark.parametrize("actions", ACTIONS, ids=str)
def test_labels_on_arrays_are_those_of_the_network(actions):
    model = model_of(PARTS, actions)
    teacher = Teacher.from_sb3(model)
    seen = with_masks(*batch(model))
    targets, (parameters, named) = teacher.targets(trees.to_tensors(seen)), labeller(teacher, 64)(seen)
    np.testing.assert_array_equal(named, targets.actions.numpy())
    np.testing.assert_allclose(parameters["logits"], targets.parameters["logits"].numpy(), rtol=1e-5, atol=1e-4)


def test_values_are_those_of_the_critic():
    """The critic does not see the mask."""
    model = model_of(VECTOR, ACTIONS[0])
    seen, mask = batch(model)
    expected = model.policy.predict_values(torch.from_numpy(seen))[:, 0].detach()
    torch.testing.assert_close(Teacher.from_sb3(model).values(trees.to_tensors(with_masks(seen, mask))), expected)


@pytest.mark.parametrize("observations", [VECTOR, PARTS, SPACES.Dict({OBSERVATION: VECTOR})], ids=["vector", "dict", "dict of one part"])
def test_a_policy_of_ones_own_is_copied_and_masked_too(observations):
    """A Dict of one part, named as that of a plain observation beside its mask, was taken for a plain one."""
    model = model_of(observations, ACTIONS[0], activation_fn=Doubling)
    teacher = Teacher.from_sb3(model)
    assert isinstance(teacher.network, MaskedNetwork)
    assert teacher.network.reads_raw
    seen, mask = batch(model)
    np.testing.assert_array_equal(teacher.act(with_masks(seen, mask)), model.predict(seen, deterministic=True, action_masks=mask)[0])


class Doubling(torch.nn.Module):
    """An activation that cannot be rebuilt from its name."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return 2 * values.tanh()


def test_statistics_are_of_the_observation_beside_the_mask(tmp_path):
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    model = model_of(VECTOR, ACTIONS[0])
    statistics = VecNormalize(DummyVecEnv([lambda: TinyEnv(VECTOR, ACTIONS[0])]))
    rms: Any = statistics.obs_rms
    rms.mean, rms.var = np.array([1.0, 2, 3, 4]), np.array([4.0, 1, 9, 2])
    teacher = Teacher.from_sb3(model, statistics)
    seen, mask = batch(model)
    expected, _ = model.predict(statistics.normalize_obs(seen), deterministic=True, action_masks=mask)
    np.testing.assert_array_equal(teacher.act(with_masks(seen, mask)), expected)


def test_the_environment_gives_its_masks_to_an_agent_that_reads_them():
    teacher = Teacher.from_sb3(model_of(SPACES.Box(0, 1, (18,), np.float32), SPACES.Discrete(6)))
    spec, _ = environment_for(teacher, "SingleMachine-v0")
    assert spec == EnvironmentSpec("SingleMachine-v0", wrappers=(("ActionMasks", {}),))
    again, _ = environment_for(teacher, EnvironmentOptions("SingleMachine-v0", wrapper=("ActionMasks",)))
    assert again == spec


def test_an_agent_can_be_read_as_one_without_masks(tmp_path):
    model = model_of(VECTOR, ACTIONS[0])
    model.save(tmp_path / "agent.zip")
    teacher = Teacher.load(tmp_path / "agent.zip", algo="ppo")
    seen, _ = batch(model)
    np.testing.assert_array_equal(teacher.act(seen), model.predict(seen, deterministic=True)[0])


def test_continuous_actions_are_refused():
    with pytest.raises(RequestError, match="cannot be masked"):
        Teacher(torch.nn.Identity(), VECTOR, VECTOR, algo="ppo_mask")
