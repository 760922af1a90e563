"""A job of a study: what decides its result, whether it is done already, and how it is run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from policy_distill.config import DistillConfig, EngineConfig, RequestError
from policy_distill.pipeline.distill import distill_or_resume
from policy_distill.studies.scheduler.children import Child, ChildDied
from policy_distill.support.files import write_json
from policy_distill.support.progress import Display
from policy_distill.support.untrusted import read_json, sha256
from policy_distill.teachers import find_agent
from policy_distill.teachers.reading import extractors_of

RECORD = "job.json"
"""File in the folder of a completed job; it holds the settings that the job was run with."""
AGAIN = "remove the run's folder to repeat the run"


@dataclass(frozen=True)
class StudyJob:
    """One job of a study.

    Attributes:
        name: its name in the study.
        config: its settings, with ``output``, the run's folder.
        settings: everything that decides its result, as text; see ``decisive``.
    """

    name: str
    config: DistillConfig
    settings: str

    @classmethod
    def of(cls, name: str, config: DistillConfig) -> StudyJob:
        return cls(name, config, decisive(config))

    @property
    def folder(self) -> Path:
        assert self.config.output is not None, "a job of a study has a folder"
        return Path(self.config.output)

    def completed(self) -> dict[str, Any] | None:
        """The job's result.json, if its folder holds the result of these settings; else None.

        The record of other settings is removed, so that it does not count if this job fails.

        Raises:
            RequestError: if a file is damaged.
        """
        record, result = self.folder / RECORD, self.folder / "result.json"
        if not record.is_file():
            return None
        if read_json(record, AGAIN).get("settings") != self.settings:
            record.unlink()
            return None
        return read_json(result, AGAIN) if result.is_file() else None


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        status: ``done``; ``not supported``: the request was refused; ``failed``: error.txt in the run's folder holds the traceback.
        reason: why it is not done, in one line.
        summary: contents of result.json; None unless it is done.
        earlier: whether an earlier study did it.
    """

    status: Literal["done", "not supported", "failed"]
    reason: str | None = None
    summary: dict[str, Any] | None = None
    earlier: bool = False


def perform(job: StudyJob, quiet: bool = True) -> Outcome:
    """Run one job, or continue it where it was interrupted, and record that it is done. No failure is raised: it costs this job alone."""
    display, error_file = Display(quiet=quiet), job.folder / "error.txt"
    display.note(job.name)
    try:
        distill_or_resume(job.config, display=display)
        write_json(job.folder / RECORD, {"settings": job.settings})
    except RequestError as error:
        return Outcome("not supported", str(error))
    except Exception as error:
        with contextlib.suppress(OSError):  # the reason of the failure may be the disk
            job.folder.mkdir(parents=True, exist_ok=True)
            error_file.write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
        return Outcome("failed", f"{type(error).__name__}: {_first_and_last_line(str(error))}")
    error_file.unlink(missing_ok=True)
    return Outcome("done")


def outcome_of(child: Child[Outcome]) -> Outcome:
    """The outcome of a job in a child, which may have died."""
    try:
        return child.result()
    except ChildDied as error:
        return Outcome("failed", str(error))


def decisive(config: DistillConfig) -> str:
    """Everything that decides a job's result, as text: its settings, and the hashes of the files that they name.

    Where the job runs is left out: the folder, the number of workers and the engine change no figure. So is ``trust``, which decides
    whether an agent can be read at all.
    """
    settings = dataclasses.asdict(dataclasses.replace(config, output=None, workers=None, engine=EngineConfig(), trust=False))
    contents = {str(path): sha256(path) for path in files_of(config)}
    return json.dumps({**settings, "contents": contents}, sort_keys=True)


def with_extractor(configs: Sequence[DistillConfig], extractor: str | None) -> list[DistillConfig]:
    """The settings of several jobs, with ``extractor`` in those with an agent that needs it; see ``extractors_of``.

    The other jobs stay as they are, so that their earlier results count.

    Raises:
        RequestError: if no agent needs it.
    """
    agents = sorted({agent for config in configs for agent in agents_of(config)})
    needing = {agent for agent, own in zip(agents, extractors_of(agents, extractor), strict=True) if own is not None}
    return [dataclasses.replace(config, extractor=extractor if needing.intersection(agents_of(config)) else None) for config in configs]


def files_of(config: DistillConfig) -> list[Path]:
    """The files that a job reads, sorted: those of its agents, and single files that its settings name."""
    found: set[Path] = set()
    for name in agents_of(config):
        found |= set(_files_of_agent(name, config.normalization))
    return sorted(found | {path for path in map(Path, single_files_of(config)) if path.is_file()})


def agents_of(config: DistillConfig) -> tuple[str, ...]:
    """The agents that a job reads: paths, or names of agents that ship with the project."""
    return tuple(name for name in (config.teacher, *config.ensemble.teachers) if name)


def single_files_of(config: DistillConfig) -> list[str]:
    """Paths of the other files that the settings name."""
    extractor = config.extractor.rpartition(":")[0] if config.extractor else None
    return [path for path in (config.normalization, extractor, config.collect.extra_states) if path not in (None, "", "none")]


def _files_of_agent(name: str, normalization: str | None) -> Iterator[Path]:
    """All files of a run's folder; of a zip, itself, the files beside it that are no zips, and those in its settings folder.

    Nothing for an agent that cannot be read: its job says why.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        yield from (path for path in folder.rglob("*") if path.is_file())
        return
    try:
        zip_path = find_agent(name, normalization=normalization).zip_path
    except RequestError:
        return
    yield zip_path
    for place in (zip_path.parent, zip_path.with_suffix(""), zip_path.parent / zip_path.parent.name.rpartition("_")[0]):
        if place.is_dir():
            yield from (path for path in place.iterdir() if path.is_file() and path.suffix != ".zip")


def _first_and_last_line(message: str) -> str:
    """The first and last line: a worker's error names the worker in the first line and the cause in the last."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines if len(lines) < 2 else (lines[0], lines[-1]))
