"""report.md and report.html, from result.json alone: they can be written again whenever they are wanted."""

from __future__ import annotations

import json
from pathlib import Path

from policy_distill.config import RequestError
from policy_distill.files import write_atomically
from policy_distill.report.markdown import run_markdown
from policy_distill.report.run_page import run_page


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
