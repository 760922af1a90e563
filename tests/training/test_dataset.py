"""The dataset: what was appended is what is drawn, and held-out episodes are never drawn."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policy_distill.policies.actions import ActionTargets
from policy_distill.rollouts.transitions import NO_EPISODE, Transitions
from policy_distill.support import trees
from policy_distill.training import dataset as module
from policy_distill.training.dataset import Dataset
from policy_distill.training.row_file import RowFile
from tests.small_worlds import generator, labelled, rows_of

CPU = torch.device("cpu")


@pytest.fixture(params=["memory", "disk"])
def folder(request, tmp_path) -> Path | None:
    """Where the rows lie: what is asked of a dataset in memory is asked of one on the disk."""
    return tmp_path if request.param == "disk" else None


def numbered(first: int, count: int, episode_length: int = 10) -> Transitions:
    """Row i observes i, is told action i and logits (i, -i), and belongs to episode i // episode_length."""
    rows = torch.arange(first, first + count)
    logits = torch.stack([rows, -rows], dim=1).float()
    return labelled(rows[:, None].float(), ActionTargets({"logits": logits}, rows), episodes=rows // episode_length)


def test_rows_are_what_was_appended_those_held_out_from_the_back(folder):
    dataset = Dataset(100, holdout=0.3, device=CPU, folder=folder)
    dataset.append(numbered(0, 30))
    dataset.append(numbered(30, 50))
    # multiples of 0.618033989 from the first on, of which the fraction is below 0.3: 0.236 (episode 1), 0.090 (4) and 0.326 no more (6)
    held = [*range(10, 20), *range(40, 50)]
    trained = [row for row in range(80) if row not in held]
    observations, targets = rows_of(dataset)
    assert len(dataset) == 80
    assert observations[:, 0].tolist() == [*trained, *reversed(held)]
    assert torch.equal(targets.actions, observations[:, 0].long())
    assert torch.equal(targets.parameters["logits"][:, 1], -observations[:, 0])
    assert dataset.spread(10_000)[0][:, 0].tolist() == trained
    found = dataset.held_out(100)
    assert found is not None
    assert found[1].actions.tolist() == held
    assert dataset.spread(100)[1].actions.tolist() == trained


def test_a_full_dataset_has_room_for_every_row(folder):
    dataset = Dataset(80, holdout=0.3, device=CPU, folder=folder)
    for first in range(0, 80, 16):
        dataset.append(numbered(first, 16, episode_length=3))
    observations, targets = rows_of(dataset)
    assert sorted(observations[:, 0].tolist()) == list(range(80))
    assert torch.equal(targets.actions, observations[:, 0].long())
    assert dataset.num_held_out > 0


def test_all_rows_come_in_blocks_of_limited_bytes(folder, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BYTES", 4 * 33 + 3)
    dataset = Dataset(100, holdout=0.3, device=CPU, folder=folder)
    dataset.append(numbered(0, 100))
    lengths = [len(observations) for observations, _ in dataset.blocks()]
    assert dataset.num_train == 70
    assert lengths == [33, 33, 4, 30]
    assert sorted(rows_of(dataset)[1].actions.tolist()) == list(range(100))
    monkeypatch.setattr(module, "BLOCK_BYTES", 1)
    assert [len(observations) for observations, _ in dataset.blocks()] == [1] * 100


def test_appending_copies(folder):
    transitions = numbered(0, 10)
    dataset = Dataset(10, holdout=0.0, device=CPU, folder=folder)
    dataset.append(transitions)
    transitions.observations.zero_()
    assert rows_of(dataset)[0].sum() == 45


def test_a_drawn_observation_keeps_its_own_targets():
    dataset = Dataset(1000, holdout=0.2, device=CPU)
    dataset.append(numbered(0, 1000))
    observations, targets = dataset.take(dataset.draw(1, 500, [generator(seed) for seed in range(3)])[0])
    assert observations.shape == (3, 500, 1)
    assert torch.equal(observations[..., 0], targets.actions.float())
    assert torch.equal(observations[..., 0], targets.parameters["logits"][..., 0])


def test_every_training_row_is_drawn_equally_often():
    dataset = Dataset(100, holdout=0.2, device=CPU)
    dataset.append(numbered(0, 100, episode_length=1))
    _, targets = dataset.take(dataset.draw(1, 40_000, [generator()])[0])
    counts = torch.bincount(targets.actions[0], minlength=100)
    drawn = counts[counts > 0].double()
    assert len(drawn) == dataset.num_train
    # binomial: a standard deviation of sqrt(n p (1 - p)) = 22 around 500; the largest of 80 stays within five
    assert (drawn - 40_000 / len(drawn)).abs().max() < 5 * 23


@given(st.floats(0.02, 0.5), st.integers(1, 7))
def test_held_out_and_training_rows_part_the_episodes(holdout, parts):
    dataset = Dataset(700, holdout=holdout, device=CPU)
    for part in range(parts):
        dataset.append(numbered(100 * part, 100))
    assert dataset.num_train + dataset.num_held_out == len(dataset)
    held_out = dataset.held_out(10_000)
    held = set() if held_out is None else set((held_out[1].actions // 10).tolist())
    _, targets = dataset.take(dataset.draw(1, 5000, [generator()])[0])
    trained = set((targets.actions[0] // 10).tolist())
    assert not held & trained
    assert dataset.num_held_out == 10 * len(held)


@pytest.mark.parametrize("holdout", [0.01, 0.05, 0.1, 0.25, 0.3, 0.4, 0.45, 0.5])
@pytest.mark.parametrize("num_envs", [1, 5, 8, 16])
def test_the_share_held_out_is_the_one_asked_for(holdout, num_envs):
    dataset = Dataset(4000, holdout=holdout, device=CPU)
    dataset.append(numbered(0, 4000, episode_length=1))
    assert dataset.num_held_out / len(dataset) == pytest.approx(holdout, abs=0.002)
    # and the episodes of one environment, every num_envs-th, are no exception
    single = Dataset(500, holdout=holdout, device=CPU)
    rows = numbered(0, 500, episode_length=1)
    single.append(labelled(rows.observations, rows.targets, episodes=torch.arange(500) * num_envs))
    assert single.num_held_out / len(single) == pytest.approx(holdout, abs=0.02)


def test_the_first_episode_is_always_trained_on():
    dataset = Dataset(10, holdout=0.5, device=CPU)
    dataset.append(numbered(0, 10))
    assert (dataset.num_train, dataset.num_held_out) == (10, 0)
    assert dataset.held_out(5) is None


def test_what_belongs_to_no_episode_is_never_held_out():
    """Its number, -1, would be the first that is held out."""
    dataset = Dataset(20, holdout=0.5, device=CPU)
    rows = numbered(0, 10)
    dataset.append(labelled(rows.observations, rows.targets, episodes=torch.full((10,), NO_EPISODE)))
    assert (dataset.num_train, dataset.num_held_out) == (10, 0)


def test_an_episode_stays_on_its_side_when_it_goes_on_in_the_next_append():
    whole, pieces = Dataset(400, holdout=0.3, device=CPU), Dataset(400, holdout=0.3, device=CPU)
    whole.append(numbered(0, 400))
    for first in range(0, 400, 16):
        pieces.append(numbered(first, 16))
    one, other = whole.held_out(1000), pieces.held_out(1000)
    assert one is not None
    assert other is not None
    assert torch.equal(one[0], other[0])


def test_nothing_is_held_out_unless_asked_for():
    dataset = Dataset(100, holdout=0.0, device=CPU)
    dataset.append(numbered(0, 100, episode_length=1))
    assert dataset.num_held_out == 0
    assert dataset.held_out(10) is None


def test_held_out_rows_are_spread_over_all_and_limited():
    dataset = Dataset(1000, holdout=0.5, device=CPU)
    dataset.append(numbered(0, 1000, episode_length=1))
    picked = dataset.held_out(10)
    assert picked is not None
    assert len(picked[0]) == 10
    assert picked[1].actions.unique().numel() == 10
    assert picked[1].actions.min() < 50
    assert picked[1].actions.max() > 950


def test_the_same_generator_draws_the_same_batch():
    dataset = Dataset(100, holdout=0.1, device=CPU)
    dataset.append(numbered(0, 100))
    first, again, other = (dataset.take(dataset.draw(1, 8, [generator(seed)])[0])[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_several_batches_at_once_are_those_of_as_many_calls():
    dataset = Dataset(100, holdout=0.1, device=CPU)
    dataset.append(numbered(0, 100))
    dataset.forget(27)
    together, one_by_one = ([generator(1), generator(2)] for _ in range(2))
    drawn = dataset.draw(5, 8, together)
    observations, targets = dataset.take(drawn)
    assert drawn.shape == (5, 2, 8)
    assert drawn.max() < dataset.num_drawn_from < dataset.num_train
    assert observations.min() >= 27
    for step in range(5):
        single, told = dataset.take(dataset.draw(1, 8, one_by_one)[0])
        assert torch.equal(observations[step], single)
        assert torch.equal(targets.actions[step], told.actions)
        assert torch.equal(targets.parameters["logits"][step], told.parameters["logits"])


def test_more_than_fits_is_refused_and_nothing_is_kept():
    dataset = Dataset(15, holdout=0.0, device=CPU)
    dataset.append(numbered(0, 10))
    with pytest.raises(ValueError, match="6 transitions do not fit: 10 of 15 rows are taken"):
        dataset.append(numbered(10, 6))
    assert len(dataset) == 10


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.bool_])
def test_observations_of_any_type_and_shape_are_kept_as_they_are(dtype, folder):
    frames = torch.as_tensor(np.arange(24).reshape(4, 2, 3).astype(dtype))
    dataset = Dataset(4, holdout=0.5, device=CPU, folder=folder)
    dataset.append(labelled(frames, ActionTargets({}, torch.zeros(4, 1))))
    for observations in (rows_of(dataset)[0], dataset.take(torch.arange(4))[0], dataset.spread(10_000)[0]):
        assert observations.dtype == frames.dtype
        assert torch.equal(observations, frames)


def test_each_part_of_a_dict_is_kept_beside_the_others(folder):
    rows = torch.arange(40)
    parts = {"count": rows, "frame": torch.stack([rows, -rows], dim=1).to(torch.int8)}
    dataset = Dataset(40, holdout=0.3, device=CPU, folder=folder)
    dataset.append(labelled(parts, ActionTargets({}, rows), episodes=rows // 4))
    held_out = dataset.held_out(100)
    assert held_out is not None
    for seen, targets in (dataset.take(torch.tensor([3, 0, 5])), held_out, dataset.spread(7), dataset.spread(10_000)):
        assert {key: part.dtype for key, part in seen.items()} == {"count": torch.int64, "frame": torch.int8}
        assert torch.equal(seen["count"], targets.actions)
        assert torch.equal(seen["frame"], torch.stack([targets.actions, -targets.actions], dim=1).to(torch.int8))
    assert sum(len(targets.actions) for _, targets in dataset.blocks()) == 40
    negated = dataset.relabelled(lambda _, seen, targets: ActionTargets({}, -seen["count"]))
    assert torch.equal(negated.spread(10_000)[1].actions, -dataset.spread(10_000)[0]["count"])


def test_forgotten_rows_are_not_drawn_but_still_there():
    dataset = Dataset(200, holdout=0.1, device=CPU)
    dataset.append(numbered(0, 60))
    forgotten = dataset.num_train
    dataset.append(numbered(60, 140))
    dataset.forget(forgotten)
    assert dataset.num_drawn_from == dataset.num_train - forgotten
    observations, _ = dataset.take(dataset.draw(1, 2000, [generator()])[0])
    assert observations.min() >= 60
    assert observations.max() > 190
    assert len(rows_of(dataset)[0]) == 200
    assert dataset.spread(200)[0].min() == 0
    held_out = dataset.held_out(200)
    assert held_out is not None
    assert held_out[0].min() < 60
    dataset.forget(0)
    assert dataset.take(dataset.draw(1, 2000, [generator()])[0])[0].min() < 60


def test_only_the_parameters_that_are_read_are_gathered():
    dataset = Dataset(100, holdout=0.0, device=CPU)
    dataset.append(numbered(0, 100))
    everything, nothing = dataset.take(dataset.draw(1, 5, [generator()])[0]), dataset.take(dataset.draw(1, 5, [generator()])[0], set())
    assert set(everything[1].parameters) == {"logits"}
    assert nothing[1].parameters == {}
    assert torch.equal(everything[1].actions, nothing[1].actions)
    observations, told = dataset.take(torch.zeros(2, 3, dtype=torch.int64), actions=False)
    assert observations.shape == (2, 3, 1)
    assert told.actions.shape == (2, 3, 0)
    assert set(told.parameters) == {"logits"}


def test_other_targets_for_the_same_rows(folder, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BYTES", 4 * 11)
    dataset = Dataset(80, holdout=0.2, device=CPU, folder=folder)
    dataset.append(numbered(0, 80))
    asked: list[int] = []

    def tell(_: slice, observations: torch.Tensor, targets: ActionTargets) -> ActionTargets:
        asked.append(len(observations))
        return ActionTargets({"mean": targets.parameters["logits"][:, :1] + 0.5}, 1000 + targets.actions)

    twin = dataset.relabelled(tell)
    assert max(asked) == 11
    assert sum(asked) == 80
    held_out = twin.held_out(100)
    assert held_out is not None
    for observations, targets in (twin.take(twin.draw(1, 50, [generator()])[0]), held_out):
        assert torch.equal(targets.actions, 1000 + observations[..., 0].long())
        assert torch.equal(targets.parameters["mean"], observations + 0.5)
    observations, _ = twin.take(twin.draw(1, 50, [generator()])[0])
    original = dataset.take(dataset.draw(1, 50, [generator()])[0])
    assert torch.equal(original[0], observations)
    assert torch.equal(original[1].actions, observations[..., 0].long())
    assert (twin.num_train, twin.num_held_out) == (dataset.num_train, dataset.num_held_out)
    assert torch.equal(rows_of(dataset)[1].actions, rows_of(dataset)[0][:, 0].long())


def test_on_the_disk_everything_is_as_in_memory(tmp_path):
    memory, disk = (Dataset(300, holdout=0.1, device=CPU, folder=folder) for folder in (None, tmp_path))
    for dataset in (memory, disk):
        for first in range(0, 300, 100):
            dataset.append(numbered(first, 100))
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]
    drawn = memory.draw(3, 20, [generator(), generator(1)])
    assert torch.equal(drawn, disk.draw(3, 20, [generator(), generator(1)]))
    for one, other in ((memory.take(drawn), disk.take(drawn)), (rows_of(memory), rows_of(disk))):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1].actions, other[1].actions)
        assert torch.equal(one[1].parameters["logits"], other[1].parameters["logits"])


def test_other_targets_of_rows_on_the_disk_are_in_unnamed_files(tmp_path, monkeypatch):
    made: list[tuple[Path, tuple[int, ...], torch.dtype]] = []

    def spy(folder: Path, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        made.append((folder, shape, dtype))
        return torch.empty(shape, dtype=dtype)

    monkeypatch.setattr(module, "mapped_tensor", spy)
    dataset = Dataset(50, holdout=0.1, device=CPU, folder=tmp_path)
    dataset.append(numbered(0, 50))
    dataset.relabelled(lambda _, __, targets: targets)
    assert sorted(made, key=str) == sorted([(tmp_path, (50,), torch.int64), (tmp_path, (50, 2), torch.float32)], key=str)


# What a checkpoint keeps of a dataset.


def parts(first: int, count: int) -> Transitions:
    """Rows of a Dict, seen through a view; row i observes i in each part."""
    rows = torch.arange(first, first + count)
    observations = {"b/ c": rows[:, None].float(), "a": rows.to(torch.uint8)}
    targets = ActionTargets({"mean": rows[:, None].double()}, rows)
    return dataclasses.replace(labelled(observations, targets, episodes=rows // 10), seen=-rows[:, None].float())


def everything_in(dataset: Dataset) -> list[list[float]]:
    """All columns, of training rows and of held-out ones."""
    found = [numbers.tolist() for numbers in (*dataset.training_episodes(), *dataset.held_out_episodes())]
    for seen in (dataset, dataset.seeing_everything()):
        for observations, targets in (seen.spread(10_000), seen.held_out(100) or pytest.fail("no rows are held out")):
            arrays = [*trees.leaves(observations), targets.actions, *targets.parameters.values()]
            found += [[*array.flatten().tolist(), str(array.dtype)] for array in arrays]
    return found


def saved_in_parts(folder: Path, on_the_disk: Path | None) -> tuple[Dataset, dict[str, Any]]:
    dataset = Dataset(100, holdout=0.3, device=CPU, folder=on_the_disk, sequences=True)
    for first, count in ((0, 30), (30, 0), (30, 45)):
        if count:
            dataset.append(parts(first, count))
        dataset.save(folder)
    dataset.forget(20)
    return dataset, json.loads(json.dumps(dataset.save(folder)))


def test_a_dataset_is_read_as_it_was_saved_and_goes_on(folder, tmp_path):
    """The rows after the last ``save`` are appended again, in memory and on the disk."""
    dataset, saved = saved_in_parts(tmp_path, folder)
    dataset.append(parts(75, 25))
    found = Dataset(100, holdout=0.3, device=CPU, folder=folder, sequences=True)
    found.load(tmp_path, saved)
    assert (len(found), found.num_forgotten) == (75, 20)
    found.append(parts(75, 25))
    assert everything_in(dataset) == everything_in(found)
    assert list(found.seeing_everything().spread(10_000)[0]) == ["b/ c", "a"]


def test_a_dataset_writes_each_row_once(tmp_path, monkeypatch):
    written: list[int] = []
    write = RowFile.write

    def spy(self: RowFile, arrays: Any, rows: Any) -> str:
        written.append(sum(part.stop - part.start for part in rows))
        return write(self, arrays, rows)

    monkeypatch.setattr(RowFile, "write", spy)
    saved_in_parts(tmp_path, None)
    assert written == [30, 45]


def test_an_empty_dataset_is_saved_and_read(folder, tmp_path):
    saved = Dataset(100, holdout=0.3, device=CPU, folder=folder).save(tmp_path)
    found = Dataset(100, holdout=0.3, device=CPU, folder=folder)
    found.load(tmp_path, saved)
    found.append(numbered(0, 20))
    assert len(found) == 20


@pytest.mark.parametrize("damage", ["changed", "short", "missing"])
def test_damaged_rows_are_noticed(damage, folder, tmp_path):
    _, saved = saved_in_parts(tmp_path, folder)
    file = tmp_path / "rows"
    content = bytearray(file.read_bytes())
    content[4096 + 8] ^= 1
    file.write_bytes(content if damage == "changed" else content[:4096])
    if damage == "missing":
        file.unlink()
    with pytest.raises((ValueError, OSError)):
        Dataset(100, holdout=0.3, device=CPU, folder=folder, sequences=True).load(tmp_path, saved)
