"""Claims about an agent's return in the files beside it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from policy_distill.config import RequestError
from policy_distill.support.figures import spread_text
from policy_distill.support.untrusted import parse_json_object, read_bytes, read_npz, refuse_damage
from policy_distill.teachers.files.training_record import TrainingRecord

MAX_TEXT_BYTES = 1 << 20
MAX_ARRAY_BYTES = 64 << 20


@dataclass(frozen=True)
class Claim:
    """A return that an agent's folder claims.

    Attributes:
        mean, std: mean and standard deviation of the returns.
        episodes: behind them.
        source: the file with the claim.
    """

    mean: float
    std: float
    episodes: int
    source: str

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return float(self.std / np.sqrt(max(self.episodes, 1)))

    def text(self) -> str:
        """Mean, standard deviation and source, as text."""
        return f"{spread_text(self.mean, self.std)} ({self.source})"


def find_claim(zip_path: Path) -> Claim | None:
    """Look beside the zip for what others measured; nothing is unpickled.

    In this order: ``card.json`` of this project; ``evaluations.npz`` of Stable-Baselines3's EvalCallback; ``results.json`` and the
    ``README.md`` of the RL Zoo's agents on the Hugging Face Hub, which may also hold something else and are then passed over.

    Raises:
        RequestError: if a card or an ``evaluations.npz`` is there but damaged.
    """
    folder = zip_path.parent
    for path in (folder / "card.json", folder / "evaluations.npz", zip_path.with_suffix("") / "evaluations.npz"):
        if not os.path.isfile(path):
            continue
        with refuse_damage(path, "it is no record of returns; take it away or write it again"):
            if path.suffix == ".json":
                data = parse_json_object(read_bytes(path, MAX_TEXT_BYTES))
                claim = Claim(float(data["return_mean"]), float(data["return_std"]), int(data["episodes"]), path.name)
            else:
                results = np.asarray(read_npz(path, ["results"], MAX_ARRAY_BYTES)["results"], np.float64)
                best = results[results.mean(axis=1).argmax()] if zip_path.stem == "best_model" else results[-1]
                claim = Claim(float(best.mean()), float(best.std()), len(best), path.name)
            if not np.isfinite([claim.mean, claim.std]).all():
                raise ValueError("its returns are not finite")
            return claim
    return _of_hub(folder / "results.json") or _of_readme(folder / "README.md")


def training_claim(record: TrainingRecord) -> Claim | None:
    """The mean of the last episodes of training: with exploration, so that a deterministic policy should earn no less."""
    if record.returns is None:
        return None
    returns = record.returns
    source = "the zip's last training episodes" + ("" if record.returns_are_raw else ", perhaps in normalised rewards")
    return Claim(float(returns.mean()), float(returns.std()), len(returns), source)


def _of_hub(path: Path) -> Claim | None:
    """``{"mean_reward": 500.0, "std_reward": 0.0, "n_eval_episodes": 10, ...}``."""
    if not os.path.isfile(path):
        return None
    try:
        with refuse_damage(path, "it is passed over"):
            data = parse_json_object(read_bytes(path, MAX_TEXT_BYTES))
            drawn = " (of drawn actions)" if data.get("is_deterministic") is False else ""
            found = Claim(float(data["mean_reward"]), float(data["std_reward"]), int(data.get("n_eval_episodes", 1)), path.name + drawn)
    except RequestError:
        return None
    return found if np.isfinite([found.mean, found.std]).all() else None


def _of_readme(path: Path) -> Claim | None:
    """The model card's ``type: mean_reward`` with ``value: 3478.80 +/- 821.71``; how many episodes it does not say."""
    if not os.path.isfile(path):
        return None
    try:
        with refuse_damage(path, "it is passed over"):
            text = read_bytes(path, MAX_TEXT_BYTES).decode("utf-8", errors="replace")
    except RequestError:
        return None
    if "mean_reward" not in text:
        return None
    number, gap = r"\d{1,20}(?:\.\d{1,20})?", r"[ \t]{0,40}"
    found = re.search(rf"^{gap}(?:-{gap})?value:{gap}[\"']?(-?{number}){gap}\+/-{gap}({number})", text, re.MULTILINE)
    return Claim(float(found[1]), float(found[2]), 1, path.name) if found else None
