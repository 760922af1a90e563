"""policy.c on Cortex-M4 and M0 under QEMU: the same decisions as here, bit for bit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.export.c.worlds import written

SCRIPT = Path(__file__).parents[3] / "examples" / "microcontroller" / "run.py"
needs_tools = pytest.mark.skipif(
    not all(map(shutil.which, ("arm-none-eabi-gcc", "qemu-system-arm", "cc"))), reason="no arm-none-eabi-gcc or no qemu-system-arm"
)


def figures(*folders: Path) -> list[list[str]]:
    result = subprocess.run([sys.executable, SCRIPT, *folders], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return [line.strip("| ").split(" | ") for line in result.stdout.splitlines()[2:]]


@needs_tools
@pytest.mark.parametrize(("name", "bits"), [("tanh", None), ("tanh", 8), ("parts", 4), ("memory", 8), ("image", 8), ("silu", 2)])
def test_the_decisions_are_those_of_this_machine(name, bits, tmp_path):
    rows = figures(written(name, tmp_path, bits))
    assert [row[1] for row in rows] == ["M4, FPU", "M4, no FPU", "M0"]
    for row in rows:
        code, tables, whole, ram, stack, instructions, microseconds = (int(figure.replace(",", "")) for figure in row[2:9])
        assert row[9] == "yes"
        assert ram == 0
        assert code + tables <= whole < 16_000
        assert 0 < stack < 4096
        assert instructions > 100
        assert microseconds == round(instructions * 1.5 / 80)


@needs_tools
def test_instructions_follow_the_work(tmp_path):
    small, large = tmp_path / "linear", tmp_path / "vector"
    for folder in (small, large):
        folder.mkdir()
        written(folder.name, folder, 8)
    rows = figures(small, large)
    assert all(int(one[7].replace(",", "")) < int(other[7].replace(",", "")) for one, other in zip(rows[:3], rows[3:], strict=True))


@needs_tools
def test_a_decision_that_differs_stops_it(tmp_path):
    written("tanh", tmp_path, 8)
    source = tmp_path / "policy.c"
    lines = source.read_text().splitlines()
    first = next(index for index, line in enumerate(lines) if "LAYER_2_ROWS[" in line) + 1
    lines[first] = lines[first].replace(lines[first].split(",")[0].strip(), "31000", 1)
    source.write_text("\n".join(lines) + "\n")
    result = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, check=False)
    assert result.returncode != 0
