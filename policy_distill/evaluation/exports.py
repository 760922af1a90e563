"""Export of a student with proof: the written files themselves are executed, compared with the student, and certified."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policy_distill.config import EnvironmentOptions, ExportFault, Reading, RequestError
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.evaluation.measure import Measurement, certify, common_environment, load_policy, named_teacher, try_out
from policy_distill.evaluation.parity import Decisions, Parity, compare, decisions_of, microseconds
from policy_distill.evaluation.statistics import Plan, Retention, retention
from policy_distill.export.artefact import MAX_BYTES, STUDENT, Artefact, is_artefact, write, write_manifest
from policy_distill.export.formats import FORMATS
from policy_distill.policies.student import Student, read_together
from policy_distill.report import add_to_report, certificate_text, retention_text
from policy_distill.report.write import read_result
from policy_distill.rollouts.episodes import evaluation_seeds
from policy_distill.rollouts.processes import call_apart
from policy_distill.rollouts.workers import Rollouts
from policy_distill.support.files import new_folders_above, replaced_folder, writable_folder
from policy_distill.support.progress import Display
from policy_distill.support.threads import one_torch_thread
from policy_distill.support.untrusted import MAX_JSON_BYTES, read_bytes, reason, sha256

SAME = 0.999
"""Minimum share of states with the same action, for formats in floating point: rounding decides near ties."""
KEPT = 0.95
"""Share of its teacher's return that a quantised policy must be certified to keep, by default."""
SAME_STATE = 1e-3
"""Maximum difference of a recurrent state's units, which lie between -1 and 1, after one step in floating point."""
SURELY_LOST = 0.99
"""A floating-point policy fails if the interval of its retention of the student's own return lies below this."""


@dataclass(frozen=True)
class Export:
    """An artefact and how it was checked.

    Attributes:
        folder: the artefact's folder.
        manifest: contents of policy.json.
        parity: decisions next to the student's.
        kept: retention of the student's own return, on the same seeds.
        certified: certificate against the teacher; None if there is none.
        notices: what the figures do not show.
    """

    folder: Path
    manifest: dict[str, Any]
    parity: Parity
    kept: Retention
    certified: Measurement | None
    notices: tuple[str, ...]

    def rows(self) -> list[tuple[str, str]]:
        """Rows of the printed table: name, figure."""
        manifest, parity = self.manifest, self.parity
        rows = [
            ("format", f"{manifest['policy_format']}: {', '.join(FORMATS[manifest['policy_format']].files)}"),
            ("size", f"{manifest['weight_bytes']:,} bytes of weights, {manifest['bytes']:,} of files"),
            ("multiply-adds", f"{manifest['multiply_adds']:,} a decision"),
            ("one decision", f"{manifest['microseconds']:.2f} us, called from Python"),
            ("student's action", f"{parity.equal_actions:.2%} of {parity.states:,} states"),
            ("largest difference", f"{parity.largest_difference:.2g}, mean {parity.mean_difference:.2g}, {parity.unit}"),
            (f"student's return kept [{self.kept.confidence:.0%}]", retention_text(dataclasses.asdict(self.kept))),
        ]
        if self.certified is not None and self.certified.certified is not None:
            rows.append(("certificate", certificate_text(self.certified.certified.summary())))
        return [*rows, *(("note", notice) for notice in self.notices)]

    def summary(self) -> dict[str, Any]:
        """The figures as data, without what the files were written from."""
        figures = {name: value for name, value in self.manifest.items() if name != "numbers"}
        return {**figures, "path": str(self.folder), "notices": list(self.notices)}


@dataclass(frozen=True)
class _Order:
    """A request that can be carried out.

    Attributes:
        name: the format.
        student, files: the student, and its files as they were loaded.
        target: folder of the artefact.
        spec: the environment.
        teacher, plan: for a certificate; None without one.
        notices: what the figures will not show.
    """

    name: str
    student: Student
    files: Mapping[str, bytes]
    target: Path
    spec: EnvironmentSpec
    teacher: tuple[str, Reading] | None
    plan: Plan | None
    notices: tuple[str, ...]


@dataclass(frozen=True)
class _Settings:
    """How the artefact is measured; see ``export_student``."""

    env: EnvironmentOptions | None
    episodes: int
    workers: int | None
    skip_check: bool
    step_timeout: float | None
    display: Display


def export_student(
    run: str,
    name: str,
    *,
    output: str | None = None,
    teacher: str | None = None,
    env: EnvironmentOptions | None = None,
    certify_share: float | None = None,
    max_episodes: int = 2000,
    episodes: int = 100,
    workers: int | None = None,
    trust: bool = False,
    teacher_reading: Reading | None = None,
    skip_check: bool = False,
    step_timeout: float | None = None,
    display: Display | None = None,
) -> Export:
    """Write a run's student in the format ``name``, check the files, and keep them only if they act like the student.

    Args:
        run: a run's or a student's folder.
        name: one of ``FORMATS``.
        output: folder of the artefact; None: ``exports/NAME`` in ``run``.
        teacher: for a certificate; None: the teacher recorded with the student.
        env: the environment; None: that of the run.
        certify_share: share of the teacher's return to certify. None: ``KEPT`` for quantised formats, no certificate for others.
        max_episodes: maximum number of episodes of the certificate.
        episodes: number of episodes of the comparison with the student.
        workers, step_timeout, skip_check, teacher_reading, display: see ``measure.measure``.
        trust: allows the import of the view's wrapper.

    Raises:
        RequestError: before any work, if the request cannot be carried out.
        ExportFault: if the files do not act like the student; nothing is left.
    """
    target = Path(output) if output is not None else Path(run, "exports", name)
    reading = teacher_reading or Reading()
    order = _order(run, name, target, env, certify_share, max_episodes, teacher, reading, trust=trust)
    settings = _Settings(env, episodes, workers, skip_check, step_timeout, display or Display(quiet=True))
    with new_folders_above(order.target):
        writable_folder(order.target.parent)
        notices = order.notices + _try_out(order, settings)
        with one_torch_thread(), replaced_folder(order.target) as folder:
            exported = _export(order, settings, folder)
    exported = dataclasses.replace(exported, folder=order.target, notices=tuple(dict.fromkeys(notices + exported.notices)))
    if _has_report(run):
        exports = read_result(run).get("exports") or {}  # another export may have ended meanwhile
        add_to_report(run, exports={**exports, name: exported.summary()})
    return exported


def _order(
    run: str,
    name: str,
    target: Path,
    env: EnvironmentOptions | None,
    share: float | None,
    max_episodes: int,
    teacher: str | None,
    reading: Reading,
    *,
    trust: bool,
) -> _Order:
    """Check what ``export_student`` is asked for; ``share``, ``teacher`` and the teacher's ``reading`` are of a certificate.

    Raises:
        RequestError: if it cannot be carried out.
    """
    student, saved = load_policy(run, Reading(trust=trust))
    if not isinstance(student, Student):
        raise RequestError(f"{run} is no student: name the folder of a run of distill_policy, or its student/")
    FORMATS[name].check(student)
    source = Path(run) if Path(run, "student.json").is_file() else Path(run, "student")
    files = {"student.json": read_bytes(source / "student.json", MAX_JSON_BYTES), "student.safetensors": read_together(source)[1]}
    if _has_report(run):
        read_result(run)  # a damaged one is refused before any work
    target = _checked_target(target)
    spec, notices = common_environment(run, student, saved, None, env)
    certified = share is not None or bool(FORMATS[name].bits)
    found = named_teacher(run, teacher, reading) if certified else None
    if certified and found is None:
        unnamed = f"{run} does not name the teacher that it was distilled from"
        if share is not None:
            raise RequestError(f"{unnamed}: give --teacher, or leave --certify out")
        notices += (f"not certified: {unnamed}; give --teacher",)
    plan = None if found is None else Plan.of(KEPT if share is None else share, max_episodes=max_episodes)
    return _Order(name, student, files, target, spec, found, plan, notices)


def _has_report(run: str) -> bool:
    return Path(run, "result.json").is_file()


def _try_out(order: _Order, settings: _Settings) -> tuple[str, ...]:
    """Notices of the environment, which is tried out.

    Raises:
        RequestError: if a figure would be meaningless.
    """
    probed, notices = try_out(order.spec, order.student, skip=settings.skip_check, step_timeout=settings.step_timeout)
    if order.plan is not None:
        probed.require_repeatable()
    return notices


def _export(order: _Order, settings: _Settings, folder: Path) -> Export:
    """Write the artefact into ``folder``, and measure what it does.

    Raises:
        ExportFault: if it does not act like the student.
    """
    student, spec, chosen, display = order.student, order.spec, FORMATS[order.name], settings.display
    display.note(f"recording what the student sees and does in {spec.id}")
    decisions = call_apart(settings.step_timeout, decisions_of, student, spec)
    artefact, manifest = _write(student, order.files, order.name, folder, decisions)
    visited = decisions.whole if chosen.reads_everything else decisions.visited
    parity = compare(artefact.run, visited, student, decisions)
    if not chosen.bits:
        _check_decisions(order.name, parity)
    display.note(f"playing {settings.episodes} episodes each with the exported policy, the student and at random")
    seeds = evaluation_seeds("final", settings.episodes)
    with Rollouts(spec, None, num_envs=16, seed=0, workers=settings.workers, step_timeout=settings.step_timeout) as rollouts:
        kept = retention(*(rollouts.evaluate(policy, seeds, num_envs=16).returns for policy in (artefact, student, "random")))
    _check_returns(order.name, kept, KEPT if chosen.bits and order.plan is None else None)
    certified = _certified(order, settings, folder)
    manifest |= {
        "microseconds": microseconds(artefact.run, visited),
        "parity": dataclasses.asdict(parity),
        "student_retention": dataclasses.asdict(kept),
        "certificate": None if certified is None or certified.certified is None else certified.certified.summary(),
    }
    write_manifest(folder, manifest)
    return Export(folder, manifest, parity, kept, certified, () if certified is None else certified.notices)


def _certified(order: _Order, settings: _Settings, folder: Path) -> Measurement | None:
    """The certificate of the artefact in ``folder``, written there; None without a plan.

    Raises:
        ExportFault: if the artefact was not certified.
    """
    if order.plan is None or order.teacher is None:
        return None
    measured = certify(
        str(folder),
        teacher=order.teacher[0],
        plan=order.plan,
        env=settings.env,
        workers=settings.workers,
        reading=Reading(trust=True),  # written by this process
        teacher_reading=order.teacher[1],
        skip_check=settings.skip_check,
        step_timeout=settings.step_timeout,
        display=settings.display,
    )
    assert measured.certified is not None
    found = measured.certified.summary()
    if found["verdict"] != "certified":
        raise ExportFault(f"{order.name} is not written: {certificate_text(found)}")
    return measured


def _checked_target(target: Path) -> Path:
    """The folder that will be replaced: what ``target`` links to, if it is a link.

    Raises:
        RequestError: if it holds something else than an artefact, which would be lost, or is the working folder.
    """
    fix = "choose another folder with --output"
    try:
        exists = target.exists()
        if exists and not (target.is_dir() and (is_artefact(target) or not any(target.iterdir()))):
            raise RequestError(f"{target} exists and is no exported policy: {fix}")
        if exists and Path.cwd().is_relative_to(target.resolve()):
            raise RequestError(f"{target} is the working folder, which cannot be replaced: {fix}")
        return target.resolve() if target.is_symlink() else target
    except RequestError:  # a ValueError, too
        raise
    except (OSError, ValueError) as error:
        raise RequestError(f"the output folder {target} cannot be used ({reason(error)}): {fix}") from None


def _write(student: Student, files: Mapping[str, bytes], name: str, folder: Path, decisions: Decisions) -> tuple[Artefact, dict[str, Any]]:
    """Write the artefact's files and its student, whose ``files`` are as they were loaded, and open it again from there."""
    manifest = write(student, name, folder, decisions.visited)
    (folder / "student").mkdir()
    for file, content in files.items():
        (folder / "student" / file).write_bytes(content)
    manifest["files"] |= {file: sha256(folder / file, MAX_BYTES) for file in STUDENT}
    write_manifest(folder, manifest)
    return Artefact(folder, trust=True), manifest


def _check_decisions(name: str, parity: Parity) -> None:
    """
    Raises:
        ExportFault: if a format in floating point does not decide as the student does.
    """
    if parity.equal_actions < SAME:
        raise ExportFault(f"{name} is not written: it takes the student's action in only {parity.equal_actions:.2%} of its states")
    if not parity.largest_state_difference <= SAME_STATE:
        raise ExportFault(
            f"{name} is not written: its recurrent state differs from the student's by up to {parity.largest_state_difference:.2g}"
        )


def _check_returns(name: str, kept: Retention, needed: float | None) -> None:
    """
    Raises:
        ExportFault: if the artefact is shown to lose return, or does not show that it keeps ``needed``.
    """
    if kept.high < SURELY_LOST:
        raise ExportFault(f"{name} is not written: it keeps {kept.estimate:.3f} [{kept.low:.3f}, {kept.high:.3f}] of the student's return")
    if needed is not None and not kept.low >= needed:
        raise ExportFault(
            f"{name} is not written: it is not shown to keep {needed:g} of the student's return ({kept.estimate:.3f} [{kept.low:.3f}, "
            f"{kept.high:.3f}]): give --teacher for a certificate, or more --episodes"
        )
