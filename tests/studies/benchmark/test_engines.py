"""The overhead of engines: what is measured, and the table."""

from __future__ import annotations

import numpy as np

from policy_distill.config import EngineConfig
from policy_distill.studies.benchmark.engines import Overhead, job, messages, table


def test_overheads_of_local_processes():
    results = [job(EngineConfig(), 1), *messages(EngineConfig(), 1)]
    assert [one.what for one in results] == ["a job", "a call of a worker", "a megabyte from a worker"]
    assert all(one.engine == "local" and 0 < one.own_cpu_seconds < 60 and np.isfinite(one.seconds) for one in results)
    assert results[1].seconds < results[0].seconds


def test_the_table_is_narrow():
    text = table([Overhead(what, "ray", 1.25, 0.0123, "from here to there") for what in ("a job", "a megabyte from a worker")])
    assert "a job                       ray       1250.00 ms    12.30 ms" in text
    assert max(map(len, text.splitlines())) <= 80
