"""report.md and report.html, from result.json alone: they can be written again whenever they are wanted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from policy_distill.config import RequestError
from policy_distill.report.markdown import run_markdown
from policy_distill.report.run_page import run_page
from policy_distill.support.files import write_atomically, write_json
from policy_distill.support.untrusted import read_json, refuse_damage

MAX_RECORDS, MAX_EPISODES, MAX_TERMS = 2000, 100_000, 50
"""Rounds, episodes and losses that are drawn; a page of more takes minutes."""


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
        page = run_page(summary, folder)  # names the files that are there
    return write_atomically(folder / "report.html", lambda target: target.write_text(page, encoding="utf-8"))


def _check_sizes(summary: dict[str, Any]) -> None:
    polish = (summary["polish"] or {"records": []})["records"]
    sizes = {
        "rounds": max(map(len, (summary["rounds"], summary["self_distillation"], polish))) / MAX_RECORDS,
        "episodes": max(map(len, summary["returns"].values())) / MAX_EPISODES,
        "losses": len(summary["rounds"][0]["train"]) / MAX_TERMS,
    }
    if large := [name for name, size in sizes.items() if size > 1]:
        raise ValueError(f"more {large[0]} than are drawn")


def read_result(folder: str | Path) -> dict[str, Any]:
    """What a run's ``result.json`` holds.

    Raises:
        RequestError: if there is none, or it is damaged.
    """
    path = Path(folder) / "result.json"
    if not os.path.isfile(path):
        raise RequestError(f"{folder} holds no result.json: name the folder of a run that was completed")
    return read_json(path, "run the job again")


def add_to_report(folder: str | Path, **found: Any) -> Path:
    """Note in a run's ``result.json`` what was found about it later (a certificate, disagreements), and write its report again.

    Returns:
        the page.

    Raises:
        RequestError: if the folder holds no result.json.
    """
    write_json(Path(folder) / "result.json", {**read_result(folder), **found})
    return write_report(folder)
