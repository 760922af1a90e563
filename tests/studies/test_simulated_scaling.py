"""scripts/simulate_scaling.py: the formulas beside the simulation, and by hand at their ends."""

from __future__ import annotations

import dataclasses
import json
import random
import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "simulate_scaling.py"))
LUNAR, ATARI = SCRIPT["WORKS"]
ENGINE = SCRIPT["Engine"](job=0.01, start=1.0, call=4e-4, latency=1.4e-3, megabyte=1.3e-3, link=1250.0)


@pytest.mark.parametrize("work", [LUNAR, ATARI], ids=["lunar", "atari"])
@pytest.mark.parametrize("slots", [16, 256, 16_000])
def test_jobs_of_the_formula_are_those_of_the_simulation(work, slots):
    formula = SCRIPT["jobs_by_formula"](work, ENGINE, slots, shared=False)
    simulated = SCRIPT["jobs_by_simulation"](work, ENGINE, slots, shared=False, random_numbers=random.Random(1))
    assert simulated == pytest.approx(formula, rel=0.15)


@pytest.mark.parametrize("work", [LUNAR, ATARI], ids=["lunar", "atari"])
@pytest.mark.parametrize("workers", [1, 8, 64, 1000])
def test_transitions_of_the_formula_are_those_of_the_simulation(work, workers):
    formula = SCRIPT["transitions_by_formula"](work, ENGINE, workers)
    simulated = SCRIPT["transitions_by_simulation"](work, ENGINE, workers, random_numbers=random.Random(1))
    assert simulated == pytest.approx(formula, rel=0.2)


def test_jobs_are_limited_by_slots_then_by_the_machine_that_asks_or_its_network():
    jobs = SCRIPT["jobs_by_formula"]
    assert jobs(LUNAR, ENGINE, 61, shared=True) == pytest.approx(1.0)  # a job takes 60 s and starts in 1 s
    assert jobs(LUNAR, ENGINE, 10**6, shared=True) == pytest.approx(1 / 0.012)  # 10 ms for each, and 2 ms for its megabyte
    slow = dataclasses.replace(ENGINE, link=12.0)
    assert jobs(LUNAR, slow, 10**6, shared=False) == pytest.approx(12.0)  # a megabyte for each


def test_figures_are_read_from_the_benchmark(tmp_path):
    rows = [
        {"what": what, "engine": engine, "seconds": 2.0, "own_cpu_seconds": 1.0}
        for what in ("a job", "a call of a worker", "a megabyte from a worker")
        for engine in ("local", "ray")
    ]
    path = tmp_path / "engines.json"
    path.write_text(json.dumps({"results": rows}))
    assert SCRIPT["Engine"].measured(path, 7.0) == SCRIPT["Engine"](1.0, 2.0, 1.0, 2.0, 1.0, 7.0)
    path.write_text(json.dumps({"results": rows[::2]}))
    with pytest.raises(SystemExit, match="no figures of Ray"):
        SCRIPT["Engine"].measured(path, 7.0)
