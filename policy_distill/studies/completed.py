"""Records of completed runs, which are reused only for the same settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policy_distill.support.files import write_json
from policy_distill.support.untrusted import read_json

AGAIN = "remove it to repeat the run"


def read_completed(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record at ``path`` if it was made with ``settings``; else None.

    A record of other settings is removed, so that it does not count as completed if the new run fails.

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
    """Write a record for ``read_completed``; nan becomes None."""
    write_json(path, {"settings": _text_of(settings), **record})


def _text_of(settings: Mapping[str, Any]) -> str:
    return json.dumps(dict(settings), sort_keys=True)
