"""Students of every space: Student.act, the same after a round trip over the disk, the numpy path, and student.zip in Stable-Baselines3."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from stable_baselines3 import PPO

from policy_distill.export.sb3 import save_ppo, why_not_exported
from policy_distill.policies.architecture import Architecture
from policy_distill.policies.encoders import normalization_of
from policy_distill.policies.observations import encode_observations
from policy_distill.policies.student import Student
from policy_distill.rollouts.numpy_policies import actor
from policy_distill.support import trees

ROWS = 64
f32 = np.float32
SEEN: dict[str, gym.Space] = {
    "vector": Box(-5, 5, (4,), f32),
    "two dimensions": Box(-5, 5, (3, 2), f32),
    "three dimensions": Box(-1, 1, (2, 3, 4), f32),
    "uint8 of two dimensions": Box(0, 255, (8, 8), np.uint8),
    "uint8": Box(0, 255, (16,), np.uint8),
    "images": Box(0, 255, (2, 5, 6), np.uint8),
    "images, channels last": Box(0, 255, (5, 6, 2), np.uint8),
    "dict with images": Dict({"a": Box(0, 255, (2, 40, 40), np.uint8), "b": Box(-1, 1, (3,), f32)}),
    "int8": Box(-1, 1, (9,), np.int8),
    "int64": Box(-1000, 1000, (4,), np.int64),
    "float64": Box(-5, 5, (4,), np.float64),
    "discrete": Discrete(6),
    "multi-discrete": MultiDiscrete([3, 4]),
    "multi-binary": MultiBinary(5),
    "multi-binary of two dimensions": MultiBinary([2, 3]),
    "one number": Box(-1, 1, (1,), f32),
    "different scales": Box(np.array([0, 1e6, -1e-4], f32), np.array([1, 1e6 + 5000, 1e-4], f32)),
    "far": Box(99_990, 100_010, (4,), f32),
    "far float64": Box(1.7e9, 1.7e9 + 100, (4,), np.float64),
    "dict": Dict(
        OrderedDict(z=Box(-5, 5, (2, 2), f32), a=Discrete(3), m=MultiDiscrete([2, 3]), b=MultiBinary(2), c=Box(0, 9, (2,), np.int8))
    ),
    "dict float64": Dict({"a": Box(-5, 5, (2,), np.float64), "b": Box(-1, 1, (3,), f32)}),
    "far int64": Box(1_700_000_000, 1_700_000_100, (4,), np.int64),
}
ACTED: dict[str, gym.Space] = {
    "discrete": Discrete(5),
    "one choice": Discrete(1),
    "multi-discrete": MultiDiscrete([3, 2]),
    "multi-binary": MultiBinary(3),
    "box": Box(np.array([-1, 0, -3], f32), np.array([1, 10, -1], f32)),
    "box of two dimensions": Box(-2, 6, (2, 2), f32),
    "box float64": Box(-2, 3, (2,), np.float64),
    "box int": Box(0, 10, (2,), np.int64),
    "tiny": Box(-1e-4, 1e-4, (2,), f32),
    "wide": Box(-1e6, 1e6, (2,), f32),
    "bounds that meet": Box(np.array([-1, 0.5], f32), np.array([1, 0.5], f32)),
}
PAIRS = [(seen, acted) for seen in SEEN for acted in ACTED if seen == "vector" or acted in ("discrete", "box")]


def student_of(seen: gym.Space, acted: gym.Space, observations: trees.Tree) -> Student:
    student = Student(Architecture(seen, acted, (16, 16), "tanh"))
    tensors = trees.to_tensors(observations)
    far = seen.dtype in (np.float64, np.int64) and np.abs(observations).max() > 1e6
    dtype = torch.float64 if far else torch.float32
    student.vectors.normalize_by(*normalization_of([encode_observations(seen, tensors, dtype)], dtype))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
        student.linears[-1].bias.sub_(student(tensors).mean(0))  # so that the actions differ
    return student.eval().requires_grad_(False)


@pytest.mark.parametrize(("seen", "acted"), PAIRS, ids=str)
def test_a_student_acts_alike_wherever_it_acts(seen: str, acted: str, tmp_path: Path):
    space = ACTED[acted]
    SEEN[seen].seed(0)
    observations = trees.stack([SEEN[seen].sample() for _ in range(ROWS)])
    student = student_of(SEEN[seen], space, observations)
    expected = student.act(observations)
    if getattr(space, "n", 2) > 1:
        assert len(np.unique(expected.reshape(ROWS, -1), axis=0)) > 1
    actions: dict[str, Any] = {
        "disk": Student.load(student.save(tmp_path / "student")).act(observations),
        "numpy": actor(student, ROWS)(observations),
    }
    if reason := why_not_exported(student):
        why = {"images, channels last": "to channels first", "dict with images": "each image of a Dict by convolutions"}
        assert seen.startswith("far") or seen in why
        assert why.get(seen, "standard deviations from zero") in reason
        with pytest.raises(ValueError, match=why.get(seen, "standard deviations from zero")):
            save_ppo(student, tmp_path / "student.zip")
        assert not (tmp_path / "student.zip").exists()
    else:
        model = PPO.load(save_ppo(student, tmp_path / "student.zip"), device="cpu")
        actions["student.zip"] = model.predict(observations, deterministic=True)[0]
    reach = np.abs(expected.astype(float)).max()
    for where, found in actions.items():
        assert found.shape == expected.shape, where
        tolerance = 1e-3 * reach if isinstance(space, Box) else 0
        np.testing.assert_allclose(found.astype(float), expected.astype(float), rtol=0, atol=tolerance, err_msg=where)
