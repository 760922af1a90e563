"""Writing report.md and report.html from result.json alone, so that they can be regenerated at any time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from policy_distill.config import RequestError
from policy_distill.config.stages import MAX_DRAWN, MAX_RECORDS
from policy_distill.report.markdown import run_markdown
from policy_distill.report.run_page import run_page
from policy_distill.support.files import write_atomically, write_json
from policy_distill.support.untrusted import read_json, refuse_damage

MAX_TERMS = 50
"""Maximum number of losses in a report."""


def write_report(folder: str | Path) -> Path:
    """Write ``report.md`` and ``report.html`` into a run's folder.

    Returns:
        the page.

    Raises:
        RequestError: if the folder holds no result.json.
    """
    folder = Path(folder)
    summary = read_result(folder)
    damaged = "it is damaged or of another version; run the job again"
    with refuse_damage(folder / "result.json", damaged):
        _check_sizes(summary)
        text = run_markdown(summary)
    write_atomically(folder / "report.md", lambda target: target.write_text(text, encoding="utf-8"))
    with refuse_damage(folder / "result.json", damaged):
        page = run_page(summary, folder)  # lists the existing files
    return write_atomically(folder / "report.html", lambda target: target.write_text(page, encoding="utf-8"))


def _check_sizes(summary: dict[str, Any]) -> None:
    polish = (summary["polish"] or {"records": []})["records"]
    sizes = {
        "rounds": max(map(len, (summary["rounds"], summary["self_distillation"], polish))) / MAX_RECORDS,
        "episodes": max(map(len, summary["returns"].values())) / MAX_DRAWN,
        "losses": len(summary["rounds"][0]["train"]) / MAX_TERMS,
    }
    if large := [name for name, size in sizes.items() if size > 1]:
        raise ValueError(f"more {large[0]} than are drawn")


def read_result(folder: str | Path) -> dict[str, Any]:
    """The contents of a run's ``result.json``.

    Raises:
        RequestError: if there is none, or it is damaged.
    """
    path = Path(folder) / "result.json"
    if not os.path.isfile(path):
        raise RequestError(f"{folder} contains no result.json: name the folder of a completed run")
    return read_json(path, "run the job again")


def add_to_report(folder: str | Path, **found: Any) -> Path:
    """Add later results (a certificate, disagreements) to a run's ``result.json``, and regenerate its report.

    Returns:
        the page.

    Raises:
        RequestError: if the folder holds no result.json.
    """
    write_json(Path(folder) / "result.json", {**read_result(folder), **found})
    return write_report(folder)
