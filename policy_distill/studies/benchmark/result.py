"""Results of a benchmark, with the machine's limit and a description of the machine."""

from __future__ import annotations

import dataclasses
import os
import platform
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from policy_distill.studies.benchmark.interleave import Ratio

WIDTH = 80
"""Columns of the table."""


@dataclass(frozen=True)
class Result:
    """One comparison.

    Attributes:
        stage: the timed stage: collect, train, stack, evaluate, infer or job.
        case: agent or task.
        baseline: the common implementation that it is compared with.
        ratio: seconds of the baseline divided by this package's, in the same turns; None without a baseline.
        microseconds: this package's time per unit, the median over the turns; None if the case was left out.
        limit_microseconds: minimum time per unit, of the indispensable work alone; None if unknown.
        note: the unit, and how to read the figures.
        times_default: for a loss, seconds of a step divided by those with the default loss, in the same turns; else None.
        shares: for each part of the work, its time alone divided by the whole's; None if it was not measured.
    """

    stage: str
    case: str
    baseline: str
    ratio: Ratio | None
    microseconds: float | None
    limit_microseconds: float | None
    note: str = ""
    times_default: Ratio | None = None
    shares: Mapping[str, float] | None = None

    @property
    def share_of_limit(self) -> float | None:
        """Limit divided by the measured time; 1 is optimal."""
        if self.limit_microseconds is None or self.microseconds is None:
            return None
        return self.limit_microseconds / self.microseconds

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "share_of_limit": self.share_of_limit}


def table(results: Sequence[Result]) -> str:
    """The results as text of at most ``WIDTH`` columns: for each a line of figures, and below it the comparison."""
    lines = [f"{'':<32}{'speed-up':>16}{'measured':>11}{'limit':>11}{'share':>8}"]
    for result in results:
        ratio, limit, share = result.ratio, result.limit_microseconds, result.share_of_limit
        figures = [
            f"{ratio.median:.1f} ({ratio.low:.1f}-{ratio.high:.1f})" if ratio else "",
            _duration(result.microseconds) if result.microseconds is not None else "",
            _duration(limit) if limit is not None else "",
            f"{share:.2f}" if share is not None else "",
        ]
        case = f"{result.stage}, {result.case}"
        if len(case) > 30:
            lines.append(_cut(case))
            case = ""
        lines.append(f"{case:<32}{figures[0]:>16}{figures[1]:>11}{figures[2]:>11}{figures[3]:>8}".rstrip())
        about = "; ".join(part for part in (f"against {result.baseline}" if result.baseline else "", result.note) if part)
        lines += [f"    {line}" for line in textwrap.wrap(about, WIDTH - 4)]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """The processor, the number of usable cores, and the versions that affect speed."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "cpu": _processor(),
        "cores": cores,
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "gymnasium": gym.__version__,
    }


def describe_machine(facts: dict[str, Any]) -> str:
    """``machine()`` as text of at most ``WIDTH`` columns."""
    devices = f"{facts['cpu']}, {facts['cores']} cores, load {facts['load']}" + (f", {facts['gpu']}" if facts["gpu"] else "")
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", "torch", "numpy", "gymnasium"))
    return "\n".join([*textwrap.wrap(devices, WIDTH), *textwrap.wrap(versions, WIDTH)])


def _processor() -> str:
    """The processor's name; on Linux, ``platform`` knows only its family."""
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _duration(microseconds: float) -> str:
    if microseconds < 1e4:
        return f"{microseconds:.{0 if microseconds >= 100 else 1}f} us"
    return f"{microseconds / 1e3:.0f} ms" if microseconds < 1e7 else f"{microseconds / 1e6:.0f} s"


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."
