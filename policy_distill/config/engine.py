"""Where the work runs: processes of this machine, or the machines of a Ray cluster."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from policy_distill.config.checks import require, require_choice


@dataclass(frozen=True)
class EngineConfig:
    """Where the work runs: the jobs of run_suite and run_ablation, the environments of distill_policy."""

    kind: Literal["local", "ray"] = "local"
    """``local``: processes of this machine; ``ray``: the machines of a Ray cluster (extra ``ray``). Short form: ``--engine ray``."""
    address: str | None = None
    """The cluster: auto (the one that this machine belongs to) or HOST:PORT. Left out: the one that this machine belongs to, else a new one
    on this machine alone. Short form: ``--address auto``."""
    cpus: float = 1.0
    """Cores that Ray reserves for each job (run_suite, run_ablation) or each process that steps environments (distill_policy)."""
    gpus: float = 0.0
    """GPUs, or a share of one, that Ray reserves likewise."""

    def __post_init__(self) -> None:
        require_choice(type(self), "engine", "kind", self.kind)
        require(self.cpus > 0 and math.isfinite(self.cpus), "engine.cpus", self.cpus, "> 0")
        require(self.gpus >= 0 and math.isfinite(self.gpus), "engine.gpus", self.gpus, ">= 0")
        if self.kind == "local":
            for name in ("address", "cpus", "gpus"):
                value = getattr(self, name)
                require(value == getattr(type(self), name), f"engine.{name}", value, "left out without --engine ray")
