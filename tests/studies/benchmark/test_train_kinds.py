"""The benchmark of students that read images or have a memory: all sides train networks of one size on the same rows."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from policy_distill.commands.cli import main
from policy_distill.studies.benchmark import train, train_kinds
from policy_distill.studies.benchmark.train_kinds import TASKS, Plain, Samples, Task

CPU = torch.device("cpu")
SMALL = [dataclasses.replace(task, rows=400, steps=2) for task in TASKS]
GRID, PIXELS, MEMORY = SMALL


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(train_kinds, "MATRIX", 16)


def test_the_arithmetic_by_hand():
    # 4 -> 8 channels on 8x8 places, 8 -> 8 on 3x3 (kernel 2, stride 2: 4x4), 8 -> 8 on 2x2, then 32 -> 16 -> 6
    first, others = 4 * 8 * 9 * 64, 8 * 8 * 4 * 16 + 8 * 8 * 9 * 4 + 32 * 16 + 16 * 6
    assert GRID.flops == 128 * (4 * first + 6 * others)
    # 4 inputs, 22 units, 22 -> 6; the burn-in is as long as the sequence
    reads, rest = 4 * 66, 22 * 66 + 22 * 22 + 22 * 6
    assert MEMORY.flops == 512 * (4 * reads + 6 * rest + 2 * (reads + 22 * 66))


def test_stacks_are_made_of_the_frames_that_were_seen():
    stacks = PIXELS.observations()
    assert stacks.shape == (400, 4, 84, 84)
    for row in (3, 57, 399):
        torch.testing.assert_close(stacks[row, :3], stacks[row - 1, 1:])
    assert (stacks[200] == stacks[200, 3]).all()  # an episode begins with its first frame repeated


@pytest.mark.parametrize("task", SMALL, ids=lambda task: task.name)
def test_all_sides_train_networks_of_one_size(task: Task):
    plain = Plain(task.architecture)
    recurrent_biases = 3 * task.architecture.memory  # torch's GRU has a second bias
    assert sum(parameter.numel() for parameter in plain.parameters()) == task.architecture.params + recurrent_biases
    inputs, labels = Samples(task, CPU)[:3]
    assert plain(inputs).shape == labels.flatten(0, -2).shape
    before = [parameter.clone() for parameter in plain.parameters()]
    train_kinds.step(plain, torch.optim.Adam(plain.parameters(), lr=1e-3), inputs, labels)
    assert all((old != new).any() for old, new in zip(before, plain.parameters(), strict=True))
    results = train_kinds.one_task(task, 1, CPU)
    assert [result.ratio is not None and result.ratio.median > 0 for result in results] == [True, True]
    assert all(result.share_of_limit is not None for result in results)


def test_the_device_is_for_training_alone(capsys, monkeypatch):
    monkeypatch.setattr(train_kinds, "TASKS", SMALL[:1])
    assert {result.case for result in train_kinds.run(1)} == {"4x10x10 grid"}
    assert main(["benchmark", "collect", "--device", "cuda"]) == 2
    assert "runs on the CPU: leave --device out" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(["benchmark", "train", "--device", "cuda"]) == 2
        assert "cuda" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_is_timed_by_the_clock():
    for task in SMALL:
        (result, _) = train_kinds.one_task(task, 1, torch.device("cuda"))
        assert result.case.endswith(", cuda")
        assert "wall time on cuda" in result.note
    assert all(result.stage == "train" for result in train.run(1, "cuda"))
