"""``--resume RUN``: the settings of a run that was interrupted, from its checkpoint."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from policy_distill.config import RequestError

CHECKPOINT, SETTINGS = "checkpoint", "config.yaml"


def with_saved_settings(arguments: Sequence[str]) -> list[str]:
    """The arguments with the settings of the run that ``--resume`` names, as a ``--config`` file; other options come after it.

    Raises:
        RequestError: if there is nothing to resume, or a ``--config`` file is given besides.
    """
    values = [value for name, value in itertools.pairwise(arguments) if name == "--resume"]
    values += [argument.partition("=")[2] for argument in arguments if argument.startswith("--resume=")]
    if not values or is_finished(Path(values[-1])):
        return list(arguments)
    if any(argument.partition("=")[0] == "--config" for argument in arguments):
        raise RequestError("--resume continues with the settings that the run began with: leave --config out")
    settings = Path(values[-1], CHECKPOINT, SETTINGS)
    if not settings.is_file():
        raise RequestError(f"{values[-1]} holds no run that was interrupted: name the folder of one, which contains {CHECKPOINT}/")
    return ["--config", str(settings), *arguments]


def is_finished(run: Path) -> bool:
    """Whether the run in a folder is done: it has a result and no checkpoint."""
    return (run / "result.json").is_file() and not (run / CHECKPOINT / "state.safetensors").is_file()
