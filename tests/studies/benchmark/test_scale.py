"""The benchmark of sizes: what arrays need by hand, memory that is really taken, and one line for each dataset."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from policy_distill.config import RequestError
from policy_distill.studies.benchmark import scale
from policy_distill.studies.benchmark.result import WIDTH
from policy_distill.studies.benchmark.scale import Scale, Subject, memory_growth, run, table, transitions

ROW_BYTES = 8 * 4 + 4 * 4 + 8
"""Eight observed numbers, four logits and an action."""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in {"STEPS": 5, "APPENDED": 100, "EPISODE": 10, "FEW": 50}.items():
        monkeypatch.setattr(scale, name, value)


def test_each_size_is_measured_in_memory_and_on_the_disk():
    found = run(2, [300, 700])
    assert [(one.transitions, one.storage) for one in found] == [(300, "memory"), (300, "disk"), (700, "memory"), (700, "disk")]
    assert [one.array_bytes for one in found] == [300 * ROW_BYTES] * 2 + [700 * ROW_BYTES] * 2
    for one in found:
        assert one.fill_seconds > 0
        assert 0 < one.step_cpu_microseconds < 1e6
        assert one.step_wall_microseconds > 0
        assert one.to_dict()["stage"] == "scale"


@pytest.mark.skipif(not scale.STATUS.is_file(), reason="needs /proc")
def test_on_the_disk_the_process_s_own_memory_does_not_grow_with_the_dataset(monkeypatch):
    """Two million transitions take 112 MB, in memory as such and on the disk as pages of files; neither form needs half of it again."""
    monkeypatch.setattr(scale, "APPENDED", 20_000)
    memory, disk = run(1, [2_000_000])
    assert 1.0 <= memory.anonymous_bytes / memory.array_bytes < 1.5
    assert disk.anonymous_bytes / disk.array_bytes < 0.5
    assert memory.file_bytes is not None
    assert disk.file_bytes is not None
    assert memory.file_bytes < 0.1 * memory.array_bytes
    assert 0.9 <= disk.file_bytes / disk.array_bytes < 1.1


def test_steps_are_the_median_over_the_turns_and_stay_with_their_dataset(monkeypatch):
    """The disk's steps take ten times as long, every turn takes longer than the one before, and every second goes backwards."""
    turns: list[str] = []

    class Known:
        def __init__(self, subject: type[Subject], rows: int, folder: Path | None) -> None:
            self.name, self.turn = "disk" if folder else "memory", 0

        def close(self) -> None:
            turns.append("closed")

    def ask(subject: Known, method: str) -> tuple[float, ...]:
        if method == "measure":
            return (1, 2, 3, 4.0)
        turns.append(subject.name)
        subject.turn += 1
        seconds = subject.turn * (1e-5 if subject.name == "disk" else 1e-6)
        return seconds, 2 * seconds

    monkeypatch.setattr(scale, "Remote", Known)
    monkeypatch.setattr(scale, "_ask", ask)
    memory, disk = run(3, [10])
    assert turns == ["memory", "disk", "disk", "memory", "memory", "disk", "closed", "closed"]
    assert (memory.transitions, memory.storage, disk.storage) == (10, "memory", "disk")
    assert (disk.array_bytes, disk.anonymous_bytes, disk.file_bytes, disk.fill_seconds) == (1, 2, 3, 4.0)
    assert (memory.step_cpu_microseconds, memory.step_wall_microseconds) == pytest.approx((2.0, 4.0))
    assert (disk.step_cpu_microseconds, disk.step_wall_microseconds) == pytest.approx((20.0, 40.0))


def test_made_up_rows_are_those_of_a_linear_teacher_in_episodes():
    whole, part = transitions(0, 30), transitions(30, 30)
    assert whole.observations.shape == (30, 8)
    assert not torch.equal(whole.observations, part.observations)
    weights = torch.linalg.lstsq(whole.observations, whole.targets.parameters["logits"]).solution
    torch.testing.assert_close(part.observations @ weights, part.targets.parameters["logits"], rtol=1e-3, atol=1e-3)
    assert torch.equal(part.targets.actions, part.targets.parameters["logits"].argmax(-1))
    assert part.episodes.unique().tolist() == [3, 4, 5]


def test_growth_is_the_peak_and_not_what_is_left():
    with memory_growth() as growth:
        taken = torch.ones(20_000_000)
        for _ in range(5):
            taken.add_(1)
        del taken
    assert 70e6 < growth["anonymous"] < 120e6
    with memory_growth() as growth:
        pass
    assert growth["anonymous"] < 5e6


def test_where_the_system_does_not_distinguish_pages_the_peak_of_all_is_taken(monkeypatch, tmp_path):
    monkeypatch.setattr(scale, "STATUS", tmp_path / "nothing")
    with memory_growth() as growth:
        pass
    assert set(growth) == {"anonymous"}
    assert 0 <= growth["anonymous"] < 5e6


def test_the_table_is_narrow_and_leaves_out_what_is_not_known():
    results = [
        Scale(100_000, "memory", 5_600_000, 11_200_000, None, 0.02, 335.4, 654.0),
        Scale(1_000_000_000, "disk", 56_000_000_000, 7_800_000, 56_000_100_000, 1234.5, 50_000.0, 60_000.0),
    ]
    lines = table(results).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert lines[2].split() == ["100,000", "memory", "5.6", "11.2", "0.02", "335", "654"]
    assert lines[3].split() == ["1,000,000,000", "disk", "56000.0", "7.8", "56000.1", "1234.50", "50000", "60000"]


def test_a_size_that_is_none_is_refused():
    with pytest.raises(RequestError, match="sizes has 0; each must be >= 1"):
        run(1, [100, 0])
