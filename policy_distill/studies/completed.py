"""One rule for what is done already: a record counts as long as it was made with the same settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policy_distill.support.files import write_json
from policy_distill.support.untrusted import read_json

AGAIN = "remove it, and the run is made again"


def read_completed(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record at ``path`` if it was made with ``settings``; else None.

    A record of other settings is removed: what is about to be overwritten must not count as done if the new run fails.

    Raises:
        RequestError: if the file is damaged.
    """
    if not path.is_file():
        return None
    record = read_json(path, AGAIN)
    if record.get("settings") == _text_of(settings):
        return record
    path.unlink()
    return None


def write_completed(path: Path, settings: Mapping[str, Any], **record: Any) -> None:
    """Write what ``read_completed`` finds; nan becomes None."""
    write_json(path, {"settings": _text_of(settings), **record})


def _text_of(settings: Mapping[str, Any]) -> str:
    return json.dumps(dict(settings), sort_keys=True)
