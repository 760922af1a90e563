"""Checkpoints of a training by Stable-Baselines3, from which it goes on. They are plain data: nothing in them is unpickled.

``checkpoint/`` in the run folder holds ``state.safetensors`` (model, optimisers, statistics, random generators, the best agent so far),
``replay0``, ... (transitions of off-policy algorithms) and ``config.yaml`` (the settings as they were given).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from policy_distill.pipeline.checkpoint import AGAIN, CONFIG, STATE, CannotResume, folder_of
from policy_distill.pipeline.state_file import as_json, differences, read_state, write_state
from policy_distill.pipeline.summary import VERSION, versions
from policy_distill.studies.train_teacher.model_state import agent_of, described, restore_agent, restore_training, restored, training_of
from policy_distill.studies.train_teacher.recipes import Recipe, TrainTeacherConfig
from policy_distill.studies.train_teacher.replay_file import ReplayFile
from policy_distill.support.files import remove_unfinished, storing, write_atomically
from policy_distill.support.untrusted import refuse_damage

FORMAT = 1
"""Version of the format of state.safetensors."""
FREE = ("output", "run_folder", "tensorboard")
"""Settings that may differ when a training is resumed."""


@dataclass
class Progress:
    """What a training has found so far.

    Attributes:
        best: the best agent, see ``model_state.agent_of``; None before the first evaluation.
        best_mean: its mean return on the validation seeds.
        best_steps: the environment steps after which it was measured.
        next_at: environment steps of the next evaluation.
        resumed: the environment steps at which the training was resumed.
    """

    next_at: int
    best: dict[str, Any] | None = None
    best_mean: float = -math.inf
    best_steps: int = 0
    resumed: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read.

    Attributes:
        progress: what the training had found.
        training: see ``model_state.training_of``.
        changed: for each version that differs from the one that wrote it, a line.
    """

    progress: Progress
    training: Mapping[str, Any]
    changed: list[str]


class Checkpoint:
    """The checkpoint of a training.

    Args:
        run: the run folder.
        config, recipe: what is trained.
        model: the model.
    """

    def __init__(self, run: Path, config: TrainTeacherConfig, recipe: Recipe, model: Any) -> None:
        self._folder, self._model, self._identity = folder_of(run), model, identity(config, recipe)
        buffer = getattr(model, "replay_buffer", None)
        self._replay = None if buffer is None else ReplayFile(self._folder, buffer)
        self._settings = as_json(dataclasses.asdict(config))

    def begin(self) -> None:
        """Make the folder, and write the settings."""
        text = yaml.safe_dump(self._settings, sort_keys=False)
        with storing(self._folder):
            self._folder.mkdir(exist_ok=True)
            remove_unfinished(self._folder / STATE)
            write_atomically(self._folder / CONFIG, lambda target: target.write_text(text))

    def write(self, progress: Progress) -> None:
        """Write the model's state between a rollout and the next; an earlier checkpoint is replaced once this one is on the disk."""
        arrays: dict[str, np.ndarray] = {}
        state = {"agent": agent_of(self._model), "training": training_of(self._model), "progress": vars(progress)}
        data = {"identity": self._identity, "state": described(state, "state", arrays)}
        with storing(self._folder):
            if self._replay is not None:
                data["replay"] = self._replay.append(self._model.num_timesteps // self._model.n_envs)
            write_state(self._folder / STATE, data, arrays)
            if self._replay is not None:
                self._replay.remove_old()

    def read(self) -> Saved:
        """Put the checkpoint's state into the model, but for the global random generators, see ``model_state.restore_generators``.

        Raises:
            CannotResume: if there is none, it is damaged, or it was written for another request.
        """
        path = self._folder / STATE
        with refuse_damage(path, AGAIN, CannotResume):
            data, arrays = read_state(path)
            changed = _compare(data["identity"], as_json(self._identity))
            state = restored(data["state"], arrays)
            progress = Progress(**state["progress"])
            restore_agent(self._model, state["agent"])
            restore_training(self._model, state["training"])
            if self._replay is not None:
                self._replay.read(data["replay"])
        return Saved(progress, state["training"], changed)


def identity(config: TrainTeacherConfig, recipe: Recipe) -> dict[str, Any]:
    """What a training must agree on with its checkpoint, and the versions that may change its result."""
    return {
        "format": FORMAT,
        "config": {name: value for name, value in dataclasses.asdict(config).items() if name not in FREE},
        "recipe": recipe.settings,
        "environment": recipe.spec.to_dict(),
        "versions": {"policy-distill": VERSION, **versions()},
    }


def _compare(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The versions that differ.

    Raises:
        CannotResume: if anything else differs; it names the difference.
    """
    if saved["format"] != now["format"]:
        raise CannotResume(f"the checkpoint is of format {saved['format']}, this version reads {now['format']}: {AGAIN}")
    for name, what in (("config", ""), ("recipe", "the recipe's "), ("environment", "the environment's ")):
        if found := differences(saved[name], now[name]):
            listed = "; ".join(f"{what}{key} is {new!r}, it was {old!r}" for key, old, new in found[:3])
            raise CannotResume(f"the training cannot be resumed with another request: {listed}: give what was given at first, or {AGAIN}")
    return [f"{key} is {new}, it was {old}" for key, old, new in differences(saved["versions"], now["versions"])]
