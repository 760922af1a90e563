"""Whole runs under action masks: what is distilled never names a forbidden action."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.commands.cli import main
from policy_distill.config import CheckConfig, RequestError, ValueConfig
from policy_distill.environments.action_masks import MASK, allows
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.pipeline.distill import distill
from policy_distill.pipeline.prepare import prepare
from policy_distill.policies.student import Student
from policy_distill.rollouts.trajectories import record
from policy_distill.support import trees
from policy_distill.teachers import Teacher
from tests.integration.test_distill import tiny
from tests.integration.test_real_agents import FOLDER
from tests.masked_worlds import LENGTH, MASKED, SPACES, make_drawn

WILD = {
    "snake": "maskable-ppo-snake/ppo_snake_final.zip",
    "integers": "maskable-ppo-int32/best_model.zip",
    "bins": "maskable-dict-binpacking/model.zip",
}


def untrained(name: str) -> Teacher:
    """An agent for the spaces of a world, whose weights are large enough to name different actions."""
    env = make_drawn(name)
    policy = "MultiInputPolicy" if isinstance(env.observation_space, gym.spaces.Dict) else "MlpPolicy"
    model = pytest.importorskip("sb3_contrib").MaskablePPO(policy, env, seed=0, device="cpu", policy_kwargs={"net_arch": [16]})
    with torch.no_grad():
        model.policy.action_net.weight.mul_(300)
    return Teacher.from_sb3(model)


def forbidden_actions(policy: Any, spec: EnvironmentSpec, action_space: gym.Space, episodes: int) -> tuple[int, int]:
    """How many of a policy's actions its masks forbid, and how many it took; the environment itself does not say."""
    masked = dataclasses.replace(spec, wrappers=(("ActionMasks", {}),))
    played = record(policy, masked, range(episodes))
    masks = trees.concatenate([episode.observations for episode in played])[MASK]
    actions = np.concatenate([episode.actions for episode in played])
    return sum(not allows(action_space, *row) for row in zip(masks, actions, strict=True)), len(actions)


def small(folder: Path, name: str, **changes: Any) -> Any:
    config = tiny(folder, env=MASKED[name].id, check=CheckConfig(skip=True), **changes)
    train = dataclasses.replace(config.train, gradient_steps=100)
    evaluate = dataclasses.replace(config.evaluate, episodes=20, finalist_episodes=8)
    return dataclasses.replace(config, train=train, collect=dataclasses.replace(config.collect, env_steps=400, rounds=2), evaluate=evaluate)


@pytest.mark.parametrize("name", ["choices", "several", "switches"])
def test_a_distilled_student_takes_no_forbidden_action(tmp_path, name):
    teacher = untrained(name)
    distill(small(tmp_path / "run", name), teacher=teacher)
    student = Student.load(tmp_path / "run" / "student")
    assert forbidden_actions(student, MASKED[name], SPACES[name][1], 40) == (0, 40 * LENGTH)
    assert forbidden_actions(teacher, MASKED[name], SPACES[name][1], 4) == (0, 4 * LENGTH)


@pytest.mark.parametrize("name", WILD)
def test_agents_of_others_are_read_and_distilled_without_trust(tmp_path, name):
    path = FOLDER.parent / "wild" / WILD[name]
    if not path.is_file():
        pytest.skip("the agent is not here")
    teacher = Teacher.load(path)
    assert (teacher.algo, teacher.action_space) == ("ppo_mask", SPACES[name][1])
    distill(small(tmp_path / "run", name, teacher=str(path)))
    student = Student.load(tmp_path / "run" / "student")
    assert forbidden_actions(student, MASKED[name], SPACES[name][1], 8) == (0, 8 * LENGTH)
    measured = ["evaluate_policy", "--policy", str(path), "--env", MASKED[name].id, "--episodes", "20", "--check.skip", "true"]
    assert main(measured) == 0


def test_a_memory_of_ones_own_is_refused_in_one_line():
    path = FOLDER.parent / "wild" / "recurrent-maskable-own" / "model.zip"
    if not path.is_file():
        pytest.skip("the agent is not here")
    with pytest.raises(RequestError, match="has a custom memory, which is not supported"):
        Teacher.load(path)


@pytest.mark.parametrize("section", ["features", "relations"])
def test_outputs_under_masks_are_not_compared_and_hidden_layers_are(tmp_path, section):
    teacher, config = untrained("choices"), small(tmp_path / "run", "choices")

    def asking(layers: dict[str, str] | None) -> Any:
        part = dataclasses.replace(getattr(config.loss, section), weight=1.0, layers=layers)
        return dataclasses.replace(config, loss=dataclasses.replace(config.loss, **{section: part}))

    for layers in ({"output": "output"}, {"network.body.1": "output"}, {"output": "hidden.0"}):
        with pytest.raises(RequestError, match="where a forbidden action's logit says nothing"):
            prepare(asking(layers), teacher)
    result = distill(asking(None), teacher=teacher)
    assert all(np.isfinite(value) for record in result.summary["rounds"] for value in record["train"].values())


def test_logits_under_masks_are_not_standardized(tmp_path):
    """Forbidden actions' logits are so low that those of all others would be equal: the loss would tell nothing apart."""
    config = small(tmp_path / "run", "choices")
    config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, standardize_logits=True))
    with pytest.raises(RequestError, match=r"loss\.standardize_logits takes the mean over all actions"):
        prepare(config, untrained("choices"))
    assert not (tmp_path / "run").exists()


def test_a_value_network_under_masks_is_refused_before_the_work(tmp_path):
    config = dataclasses.replace(small(tmp_path / "run", "choices"), value=ValueConfig(hidden_sizes=(8,)))
    with pytest.raises(RequestError, match=r"none is written of students under action masks"):
        prepare(config, untrained("choices"))
    assert not (tmp_path / "run").exists()
