"""Rows that are stacks of frames come back as they were appended, and each frame is stored once."""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.environments.frame_stacks import StackOf
from policy_distill.environments.wrappers import FrameStack
from policy_distill.policies.actions import ActionTargets
from policy_distill.rollouts.transitions import NO_EPISODE, Transitions
from policy_distill.support import trees
from policy_distill.training import frames as module
from policy_distill.training.dataset import Dataset
from policy_distill.training.frames import Stacks
from tests.small_worlds import generator, labelled

CPU = torch.device("cpu")
COUNT = 3
SHAPES = {0: (2, 5, 4), -1: (5, 4, 2)}


@pytest.fixture(params=["memory", "disk"])
def folder(request, tmp_path) -> Path | None:
    """Where the rows lie."""
    return tmp_path / "dataset" if request.param == "disk" else None


class Noise(gym.Env):
    """Frames of random bytes; an episode ends with probability 0.2."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, axis: int, dtype: Any) -> None:
        self.observation_space = gym.spaces.Box(0, 255, SHAPES[axis], dtype)

    def _look(self) -> np.ndarray:
        return self.np_random.integers(0, 256, self.observation_space.shape or ()).astype(self.observation_space.dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self._look(), {}

    def step(self, action: Any) -> Any:
        return self._look(), 0.0, bool(self.np_random.random() < 0.2), False, {}


def collected(steps: int, num_envs: int = 4, *, axis: int = 0, padding: str = "zero", dtype: Any = np.uint8) -> Transitions:
    """Steps of several environments as a collector returns them: row after row of all environments, an episode after the other in each."""
    envs: list[Any] = []
    for _ in range(num_envs):
        env: gym.Env = Noise(axis, dtype)
        order = "first" if axis == 0 else "last"
        stacked = FrameStack(env, COUNT, channels_order=order) if padding == "zero" else gym.wrappers.FrameStackObservation(env, COUNT)
        envs.append(stacked)
    seen = [env.reset(seed=index)[0] for index, env in enumerate(envs)]
    numbers, following = list(range(num_envs)), num_envs
    observations, episodes, ends = [], [], []
    for _ in range(steps):
        for index, env in enumerate(envs):
            observations.append(np.array(seen[index]))
            episodes.append(numbers[index])
            seen[index], _, end, *_ = env.step(0)
            ends.append(end)
            if end:
                seen[index], numbers[index], following = env.reset()[0], following, following + 1
    rows = torch.arange(len(episodes))
    found = labelled(torch.as_tensor(np.stack(observations)), ActionTargets({}, rows), episodes=torch.tensor(episodes))
    return dataclasses.replace(found, terminated=torch.tensor(ends))


def part(transitions: Transitions, first: int, last: int) -> Transitions:
    mask = torch.zeros(len(transitions), dtype=torch.bool)
    mask[first:last] = True
    return transitions.where(mask)


def dataset_of(stack: StackOf | None, capacity: int, folder: Path | None = None, holdout: float = 0.3) -> Dataset:
    stacks = None if stack is None else {"observations": {"": stack}}
    return Dataset(capacity, holdout=holdout, device=CPU, folder=folder, sequences=True, stacks=stacks)


def stored(dataset: Dataset) -> Stacks:
    found = dataset._observations
    assert isinstance(found, Stacks)
    return found


def others_in(dataset: Dataset) -> int:
    """Number of frames that are stored beside one for each row."""
    return len(stored(dataset).others)


def assert_equal(one: Any, other: Any) -> None:
    for (observations, targets), (others, same) in zip(one, other, strict=True):
        for leaf, twin in zip(trees.leaves(observations), trees.leaves(others), strict=True):
            assert leaf.dtype == twin.dtype
            assert leaf.is_contiguous()
            assert torch.equal(leaf, twin)
        assert torch.equal(targets.actions, same.actions)


def everything(dataset: Dataset) -> list[Any]:
    """All rows by each way in which they are read."""
    drawn = dataset.draw(3, 50, [generator(0), generator(1)])
    ordered = torch.cat([dataset.training_episodes()[0], dataset.held_out_episodes()[0]])
    held_out = dataset.held_out(1000)
    assert held_out is not None
    twin = dataset.relabelled(lambda _, seen, targets: ActionTargets({}, trees.leaves(seen)[0].double().flatten(1).sum(1)))
    return [
        *dataset.blocks(),
        dataset.take(drawn),
        (dataset.take_rows(ordered), dataset.take_targets(ordered)),
        held_out,
        dataset.spread(1000),
        twin.spread(1000),
    ]


@pytest.mark.parametrize(("axis", "padding"), [(0, "zero"), (-1, "zero"), (0, "reset")])
def test_rows_are_those_of_a_dataset_that_stores_them_whole(axis, padding, folder, monkeypatch):
    monkeypatch.setattr(module, "COMPARED_BYTES", 7 * 40)
    rows = collected(60, axis=axis, padding=padding)
    plain, framed = dataset_of(None, 300), dataset_of(StackOf(COUNT, axis), 300, folder)
    for first in range(0, 240, 48):
        for dataset in (plain, framed):
            dataset.append(part(rows, first, first + 48))
    assert framed.num_held_out > 20
    assert len(rows.episodes.unique()) > 30
    assert_equal(everything(framed), everything(plain))
    # one frame of zeros for all starts, or none where the first frame is repeated
    assert others_in(framed) == (1 if padding == "zero" else 0)


def test_frames_of_floats_are_compared_by_their_bytes():
    """NaN is unlike itself, and zero like minus zero."""
    frames = torch.tensor([float("nan"), 0.0, -0.0, 1.0])[:, None, None, None].expand(4, 1, 2, 2)
    stacks = torch.cat([frames[:2].flatten(0, 1)[None], frames[1:3].flatten(0, 1)[None], frames[[1, 3]].flatten(0, 1)[None]])
    dataset = dataset_of(StackOf(2, 0), 3, holdout=0.0)
    dataset.append(labelled(stacks, ActionTargets({}, torch.arange(3))))
    found = dataset.spread(3)[0]
    assert torch.equal(found.view(torch.int32), stacks.view(torch.int32))
    assert others_in(dataset) == 2  # the first NaN, and the zero that is not the minus zero before it


def test_what_is_no_stack_of_earlier_frames_is_stored_anew(folder):
    """Rows that were left out, stacks that began anew, other orders of frames, and noise: rows are the same."""
    rows = collected(40)
    kept = torch.ones(len(rows), dtype=torch.bool)
    kept[::7] = False
    rows = rows.where(kept)
    rows.observations[50:60] = rows.observations[50:60].flip(1)
    rows.observations[100:120] = torch.randint(256, (20, *rows.observations.shape[1:]), generator=generator()).to(torch.uint8)
    plain, framed = dataset_of(None, 200), dataset_of(StackOf(COUNT, 0), 200, folder)
    for dataset in (plain, framed):
        dataset.append(rows)
    assert_equal(everything(framed), everything(plain))
    assert others_in(framed) > 2 * module.FEWEST  # the array has grown


def test_states_without_an_episode_do_not_follow_each_other(folder):
    rows = collected(40)
    loose = dataclasses.replace(part(rows, 80, 100), episodes=torch.full((20,), NO_EPISODE))
    plain, framed = dataset_of(None, 200), dataset_of(StackOf(COUNT, 0), 200, folder)
    for dataset in (plain, framed):
        for some in (part(rows, 0, 80), loose, part(rows, 80, 160)):
            dataset.append(some)
    assert_equal(everything(framed), everything(plain))
    assert others_in(framed) <= 1 + 2 * 20  # the environments' episodes went on across these states


def test_a_window_draws_the_rows_it_is_to_draw():
    rows = collected(40)
    plain, framed = dataset_of(None, 160), dataset_of(StackOf(COUNT, 0), 160)
    for dataset in (plain, framed):
        dataset.append(rows)
        dataset.forget(70)
    assert_equal(everything(framed), everything(plain))


def test_raw_rows_beside_the_seen_ones_and_parts_of_a_dict(folder):
    rows = collected(40)
    raw = OrderedDict(camera=rows.observations, speed=torch.arange(160.0)[:, None])
    viewed = dataclasses.replace(rows, observations=raw, seen=rows.observations)
    stacks = {"observations": {"": StackOf(COUNT, 0)}, "raw": {"camera": StackOf(COUNT, 0)}}
    plain, framed = (
        Dataset(160, holdout=0.3, device=CPU, folder=place, sequences=True, stacks=given)
        for place, given in ((None, None), (folder, stacks))
    )
    for dataset in (plain, framed):
        dataset.append(viewed)
    assert_equal(everything(framed), everything(plain))
    assert_equal(everything(framed.seeing_everything()), everything(plain.seeing_everything()))
    doubled = [
        dataset.relabelled(lambda _, seen, __: ActionTargets({}, seen["camera"].double().flatten(1).sum(1) + seen["speed"][:, 0]), raw=True)
        for dataset in (plain, framed)
    ]
    assert_equal(everything(doubled[1]), everything(doubled[0]))


def saved_in_parts(folder: Path, on_the_disk: Path | None, rows: Transitions) -> tuple[Dataset, dict[str, Any]]:
    dataset = dataset_of(StackOf(COUNT, 0), 200, on_the_disk)
    for first, last in ((0, 40), (40, 40), (40, 90)):
        if last > first:
            dataset.append(part(rows, first, last))
        dataset.save(folder)
    return dataset, json.loads(json.dumps(dataset.save(folder)))


def with_noise(rows: Transitions) -> Transitions:
    """Rows of which some have frames that are no row's newest."""
    rows.observations[::5, :2] = torch.randint(256, rows.observations[::5, :2].shape, generator=generator()).to(torch.uint8)
    return rows


def test_a_dataset_is_read_as_it_was_saved_and_goes_on(folder, tmp_path):
    rows = with_noise(collected(40))
    checkpoint = folder or tmp_path
    dataset, saved = saved_in_parts(checkpoint, folder, rows)
    dataset.append(part(rows, 90, 160))
    found = dataset_of(StackOf(COUNT, 0), 200, folder)
    found.load(checkpoint, saved)
    found.append(part(rows, 90, 160))
    assert_equal(everything(found), everything(dataset))
    assert torch.equal(*(one.columns[1][: dataset.num_train] for one in (stored(found), stored(dataset))))  # the same places too
    assert found.save(checkpoint) == dataset.save(checkpoint)


@pytest.mark.parametrize("damage", ["changed", "short", "missing"])
def test_damaged_frames_are_noticed(damage, folder, tmp_path):
    checkpoint = folder or tmp_path
    _, saved = saved_in_parts(checkpoint, folder, with_noise(collected(40)))
    file = checkpoint / "frames0"
    content = bytearray(file.read_bytes())
    content[50] ^= 1
    file.write_bytes(content if damage == "changed" else content[:20])
    if damage == "missing":
        file.unlink()
    with pytest.raises((ValueError, OSError)):
        dataset_of(StackOf(COUNT, 0), 200, folder).load(checkpoint, saved)


def test_a_row_takes_the_bytes_of_one_frame_and_its_places():
    shape = (4, 84, 84)
    dataset = Dataset(1000, holdout=0.1, device=CPU, stacks={"observations": {"": StackOf(4, 0)}})
    frames = torch.randint(256, (1003, 84, 84), generator=generator()).to(torch.uint8)
    rows = frames.unfold(0, 4, 1).permute(0, 3, 1, 2)
    dataset.append(labelled(rows, ActionTargets({}, torch.zeros(1000))))
    assert torch.equal(dataset.spread(1000)[0], rows)
    stacks = stored(dataset)
    assert sum(column[:1].nbytes for column in stacks.columns) == 84 * 84 + 4 * 4
    assert len(stacks.others) == 3
    assert stacks[:1].nbytes == np.prod(shape)
