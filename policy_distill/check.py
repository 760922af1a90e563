"""Before the work: what is this agent, and does it do here what it did where it was trained?"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policy_distill.config import RequestError
from policy_distill.environments import EnvironmentSpec
from policy_distill.evaluate import BATCH, Episodes, evaluation_seeds
from policy_distill.teachers import Teacher
from policy_distill.workers import Rollouts


@dataclass(frozen=True)
class Claim:
    """A return that an agent's folder says it has.

    Attributes:
        mean, std: of the episodes' returns.
        episodes: behind them.
        source: the file that says so.
    """

    mean: float
    std: float
    episodes: int
    source: str


@dataclass(frozen=True)
class Checkup:
    """What was found out about a teacher.

    Attributes:
        facts: of its files.
        episodes: of the teacher here.
        random_episodes: of a random policy on the same seeds.
        claim: what its folder says, if it says anything.
    """

    facts: dict[str, Any]
    episodes: Episodes
    random_episodes: Episodes
    claim: Claim | None

    @property
    def verdict(self) -> str:
        """One sentence: does the return here fit the claim, and does the agent beat chance?"""
        mean, error = _mean_and_error(self.episodes.returns)
        random_mean, random_error = _mean_and_error(self.random_episodes.returns)
        if mean - random_mean <= 2 * np.hypot(error, random_error):
            return "no better than a random policy here: wrong environment, missing normalisation, or untrained"
        if self.claim is None:
            return "better than a random policy; its folder claims no return to compare with"
        spread = np.hypot(error, self.claim.std / np.sqrt(max(self.claim.episodes, 1)))
        if abs(mean - self.claim.mean) <= 3 * spread + 1e-9:
            return f"agrees with {self.claim.source} within noise"
        word = "below" if mean < self.claim.mean else "above"
        return f"{word} what {self.claim.source} says by {abs(mean - self.claim.mean):.1f}, which is more than noise"


def check_teacher(teacher: Teacher, spec: EnvironmentSpec, *, episodes: int, workers: int | None = None) -> Checkup:
    """Measure a teacher where it is to be distilled and compare with what its folder claims."""
    claim = find_claim(Path(teacher.path)) if teacher.path else None
    seeds = evaluation_seeds("final", episodes)
    with Rollouts(spec, teacher, num_envs=BATCH, seed=0, workers=workers) as rollouts:
        own = rollouts.evaluate("teacher", seeds, num_envs=BATCH)
        random = rollouts.evaluate("random", seeds, num_envs=BATCH)
    return Checkup(teacher.describe(), own, random, claim)


def find_claim(zip_path: Path) -> Claim | None:
    """Look beside the zip for a card or an ``evaluations.npz``, as Stable-Baselines3's EvalCallback writes it; nothing is unpickled.

    Raises:
        RequestError: if such a file is there but damaged.
    """
    folder = zip_path.parent
    for path in (folder / "card.json", folder / "evaluations.npz", zip_path.with_suffix("") / "evaluations.npz"):
        if not path.is_file():
            continue
        try:
            if path.suffix == ".json":
                data = json.loads(path.read_text())
                return Claim(float(data["return_mean"]), float(data["return_std"]), int(data["episodes"]), path.name)
            with np.load(path, allow_pickle=False) as arrays:
                results = np.asarray(arrays["results"], np.float64)
            best = results[results.mean(axis=1).argmax()] if zip_path.stem == "best_model" else results[-1]
            return Claim(float(best.mean()), float(best.std()), len(best), path.name)
        except (OSError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile) as error:
            raise RequestError(f"{path} is no record of returns ({error}): take it away or write it again") from None
    return None


def _mean_and_error(returns: np.ndarray) -> tuple[float, float]:
    return float(returns.mean()), float(returns.std(ddof=1) / np.sqrt(len(returns))) if len(returns) > 1 else 0.0
