"""report.md and report.html, from result.json alone: they can be written again whenever they are wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from policy_distill.config import RequestError
from policy_distill.files import write_atomically
from policy_distill.report.markdown import run_markdown
from policy_distill.report.run_page import run_page
from policy_distill.tracking import write_json


def write_report(folder: str | Path) -> Path:
    """Write ``report.md`` and ``report.html`` into a run's folder.

    Returns:
        the page.

    Raises:
        RequestError: if the folder holds no result.json.
    """
    folder = Path(folder)
    if not (folder / "result.json").is_file():
        raise RequestError(f"{folder} holds no result.json: name the folder of a run that was completed")
    summary = json.loads((folder / "result.json").read_text())
    write_atomically(folder / "report.md", lambda target: target.write_text(run_markdown(summary)))
    return write_atomically(folder / "report.html", lambda target: target.write_text(run_page(summary, folder)))


def add_to_report(folder: str | Path, **found: Any) -> Path:
    """Note in a run's ``result.json`` what was found about it later (a certificate, disagreements), and write its report again.

    Returns:
        the page.

    Raises:
        RequestError: if the folder holds no result.json.
    """
    path = Path(folder) / "result.json"
    if not path.is_file():
        raise RequestError(f"{folder} holds no result.json: name the folder of a run that was completed")
    write_json(path, {**json.loads(path.read_text()), **found})
    return write_report(folder)
