"""report.html: one run as a web page."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from policy_distill.report import page, plots
from policy_distill.report.candidates import STAGES, Candidate, candidates
from policy_distill.report.drawing import to_svg
from policy_distill.report.page import Cell, Markup, link
from policy_distill.report.rows import (
    EXPORT_COLUMNS,
    RETENTION,
    export_rows,
    finalist_text,
    known,
    mean_and_std,
    number,
    summary_rows,
    tally_text,
    times,
)
from policy_distill.report.verdict import verdict
from policy_distill.support.figures import return_text

VIDEO = "episode.gif"
"""File of the animation in a run's folder, made by ``policy-distill render_policy``."""
FILES = {
    "student.zip": "the student for Stable-Baselines3; PPO.load opens it without policy_distill",
    "student/": "weights (safetensors) and description (JSON); policy_distill.Student.load",
    "config.yaml": "the whole configuration",
    "result.json": "all numbers of this page, including the return of each episode",
    "certificate.json": "the certificate, with everything needed to verify it",
    "worker_errors.log": "tracebacks of worker processes that failed",
    "report.md": "this page as Markdown",
    "tensorboard/": "curves of every stage: tensorboard --logdir",
}
WORST = 10
"""Maximum number of rows of the tables on disagreements."""


def run_page(summary: Mapping[str, Any], folder: Path) -> str:
    """The page as HTML.

    Args:
        summary: contents of result.json.
        folder: the run's folder; only existing files are listed.
    """
    title = f"{summary['teacher']['algo']} on {summary['env']}, distilled"
    return page.document(
        title,
        f"<header>\n<h1>{page.text_of(title)}</h1>\n</header>",
        _verdict(summary),
        _tiles(summary),
        _notices(summary["notices"]),
        _video(folder / VIDEO),
        _returns(summary),
        _path(summary),
        _losses(summary["rounds"]),
        _certificate(summary.get("certificate")),
        _exports(summary.get("exports")),
        _disagreements(summary.get("disagreements")),
        _time(summary["seconds"]),
        page.section("All results", page.table((), summary_rows(summary))),
        _reproduce(summary),
        _files(folder),
        f"<footer>policy-distill {page.text_of(summary['version'])}</footer>",
    )


def _verdict(summary: Mapping[str, Any]) -> str:
    found = verdict(summary)
    lines = "".join(page.paragraph(line) for line in (found.headline, Markup(f"<b>{page.text_of(found.meaning)}</b>"), found.trust))
    return f'<section class="verdict" style="--level:var(--{found.level})">\n{lines}\n</section>'


def _tiles(summary: Mapping[str, Any]) -> str:
    kept, seconds = summary["retention"], summary["seconds"]
    interval = f"{kept['low']:.3f} to {kept['high']:.3f}" if known(kept["estimate"]) else "not defined"
    agreement, sizes = summary["agreement"], summary["student"]["hidden_sizes"]
    return page.tiles(
        [
            (
                "Retention",
                f"{kept['estimate']:.3f}" if known(kept["estimate"]) else "unknown",
                f"{kept['confidence']:.0%} interval {interval}",
            ),
            ("Compression", times(summary["compression"]), "relative to the teacher's acting network"),
            ("Parameters", f"{summary['student']['params']:,}", f"hidden layers {sizes}" if sizes else "one linear layer"),
            ("Agreement", "unknown" if agreement is None else f"{agreement:.1%}", "of the student's states"),
            ("Environment steps", f"{summary['env_steps']:,}", f"and {summary['evaluation_env_steps']:,} for evaluation"),
            ("Time", f"{seconds['total']:.0f} s", f"on {summary['device']}"),
        ]
    )


def _notices(notices: Sequence[str]) -> str:
    items = "".join(f"<li>{page.text_of(notice)}</li>" for notice in notices)
    return page.section("Notes", f"<ul>{items}</ul>" if items else "")


def _video(path: Path) -> str:
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="teacher and student side by side" src="data:image/gif;base64,{data}" style="max-width:900px">'
    return page.section(
        "Side by side", page.plot(image, "One episode, teacher and student on the same seed (policy-distill render_policy).")
    )


def _returns(summary: Mapping[str, Any]) -> str:
    returns = summary["returns"]
    by_seed = to_svg(plots.paired_returns(returns), label="student's return against teacher's, by seed")
    spread = to_svg(plots.return_distribution(returns), label="distribution of returns")
    rows = []
    for name, label in {"teacher": "teacher", "student": "student", "random": "random policy"}.items():
        figures = min(returns[name]), median(returns[name]), max(returns[name])
        rows.append((label, *(return_text(figure) for figure in figures), mean_and_std(summary[name])))
    return page.section(
        "Return",
        page.paragraph(
            f"{tally_text(returns)} {RETENTION} Agreement is the share of the student's states in which both choose the same action, or "
            "every component is within 5% of its range. It does not measure the return."
        ),
        page.beside(
            page.plot(by_seed, "One dot per seed. Below the line the student's return is lower."),
            page.plot(spread, "Further right is better; equal curves mean equal distributions."),
        ),
        page.table(("", "least", "median", "most", "mean ± deviation"), rows, numbers=(1, 2, 3, 4)),
    )


def _path(summary: Mapping[str, Any]) -> str:
    tried = candidates(summary)
    if not any(candidate.retention is not None for candidate in tried):
        return ""
    bars = (
        "Error bars are 95% intervals, paired by seed"
        if any(candidate.half_width is not None for candidate in tried)
        else "No intervals were recorded"
    )
    caption = (
        f"Candidates on the validation seeds. {bars}; the last one is the final retention on fresh seeds. "
        "The best of many noisy estimates is biased upwards, so the final one is measured separately."
    )
    drawn = page.plot(to_svg(plots.retention_path(tried, summary["retention"]), label="retention of each candidate"), caption, "wide")
    marks = {stage: [candidate for candidate in tried if candidate.stage == stage] for stage in STAGES}
    tables = [page.details("Rounds as a table", _rounds(summary["rounds"], marks["round"]))]
    if summary["self_distillation"]:
        tables.append(page.details("Generations as a table", _generations(summary["self_distillation"], marks["generation"])))
    if summary["polish"]:
        polish = summary["polish"]
        began = f"Polishing started from {polish['start']}, with a retention of {polish['start_retention']:.3f} on all validation seeds."
        helped = "" if polish["chosen"] is not None else " No polished student had a higher return there."
        tables.append(page.paragraph(began + helped) + page.details("Polishing as a table", _polish(polish["records"], marks["polish"])))
    return page.section("Selection of the student", page.paragraph(f"Kept: {summary['kept']}."), drawn, *tables)


def _marked(tried: Sequence[Candidate]) -> list[int]:
    return [index for index, candidate in enumerate(tried) if candidate.kept]


def _rounds(records: Sequence[Mapping[str, Any]], tried: Sequence[Candidate]) -> str:
    header = ("round", "environment steps", "gradient steps", "teacher acts", "return", "retention", "as finalist (episodes)")
    rows = [
        (
            f"{record['round'] + 1}", f"{record['env_steps']:,}", f"{record['gradient_steps']:,}", f"{record['teacher_action_prob']:.2f}",
            number(record["validation_return_mean"]), candidate.text, finalist_text(record),
        )
        for record, candidate in zip(records, tried, strict=True)
    ]  # fmt: skip
    return page.table(header, rows, numbers=range(7), marked=_marked(tried))


def _generations(records: Sequence[Mapping[str, Any]], tried: Sequence[Candidate]) -> str:
    header = ("generation", "gradient steps", "return", "retention", "mean paired difference to predecessor", "")
    rows = [
        (
            f"{record['generation']}", f"{record['gradient_steps']:,}", number(record["validation_return_mean"]),
            candidate.text, f"{record['paired_difference']:+.2f}", "kept" if record["kept"] else "rejected",
        )
        for record, candidate in zip(records, tried, strict=True)
    ]  # fmt: skip
    return page.table(header, rows, numbers=range(5), marked=_marked(tried))


def _polish(records: Sequence[Mapping[str, Any]], tried: Sequence[Candidate]) -> str:
    header = ("environment steps", "sampled return", "return", "retention", "as finalist (episodes)")
    rows = [
        (
            f"{record['env_steps']:,}", number(record["metrics"].get("train_return_mean")), number(record["validation_return_mean"]),
            candidate.text, finalist_text(record),
        )
        for record, candidate in zip(records, tried, strict=True)
    ]  # fmt: skip
    return page.table(header, rows, numbers=range(5), marked=_marked(tried))


def _losses(rounds: Sequence[Mapping[str, Any]]) -> str:
    terms = list(rounds[0]["train"])
    drawn = []
    for term in terms:
        name = plots.loss_name(term)
        drawn.append(page.plot(to_svg(plots.loss_by_round(rounds, term), label=f"{name} by round"), name, "one"))
    note = "Held-out episodes are not used for training. The distribution of states changes between rounds, as the student acts more."
    return page.section("Losses", page.paragraph(note), page.beside(*drawn))


def _certificate(certificate: Mapping[str, Any] | None) -> str:
    if not certificate:
        return ""
    scalars = {name: value for name, value in certificate.items() if isinstance(value, str | int | float | bool)}
    return page.section("Certificate", page.table((), [(name.replace("_", " "), _text(value)) for name, value in scalars.items()]))


def _exports(exports: Mapping[str, Any] | None) -> str:
    return page.section("Exports", page.table(EXPORT_COLUMNS, export_rows(exports))) if exports else ""


def _disagreements(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    cost = str(found["cost_kind"]).replace("_", " ")
    intro = f"In {found['disagreements']:,} of {found['states']:,} states the student's action differs from its teacher's. Cost: {cost}."
    lost = sorted(found["episodes"], key=lambda episode: episode["student_return"] - episode["teacher_return"])
    episodes = [
        (
            f"{episode['seed']}", return_text(episode["teacher_return"]), return_text(episode["student_return"]),
            _step(episode["first_step"]), _step(episode["parting_step"]),
        )
        for episode in lost[:WORST]
        if episode["student_return"] < episode["teacher_return"]
    ]  # fmt: skip
    states = [
        (f"{state['seed']}", f"{state['step']}", f"{state['cost']:.3g}", _text(state["teacher_action"]), _text(state["student_action"]))
        for state in found["worst"][:WORST]
    ]
    return page.section(
        "Disagreements",
        page.paragraph(intro),
        "<h3>Episodes with the largest losses</h3>" if episodes else "",
        page.table(
            ("seed", "teacher", "student", "first different action at step", "first different reward at step"), episodes, numbers=range(5)
        ),
        "<h3>Costliest states</h3>" if states else "",
        page.table(("seed", "step", "cost", "teacher's action", "student's action"), states, numbers=range(5)),
    )


def _step(step: int) -> str:
    return "never" if step < 0 else f"{step}"


def _text(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case list() | tuple():
            return ", ".join(_text(item) for item in value)
    return str(value)


def _time(seconds: Mapping[str, float]) -> str:
    stages = {"collect": "random", "train": "student", "polish": "polish", "evaluate": "teacher"}
    parts = [(name, seconds[name], f"{seconds[name]:.1f} s") for name in stages if seconds[name]]
    rest = seconds["total"] - sum(amount for _, amount, _ in parts)
    colours = [stages[name] for name, _, _ in parts]
    if rest > 0.005 * seconds["total"]:
        parts.append(("loading and writing", rest, f"{rest:.1f} s"))
        colours.append("grid")
    return page.section("Time", page.shares(parts, colours))


def _reproduce(summary: Mapping[str, Any]) -> str:
    config, versions = summary.get("config"), summary.get("versions")
    lines: list[Cell] = []
    if config:
        folder = str(config["output"])
        again = f"policy-distill distill_policy --config {shlex.quote(f'{folder}/config.yaml')} --output {shlex.quote(f'{folder}-again')}"
        measured = f"policy-distill evaluate_policy --policy {shlex.quote(folder)} --episodes {summary['retention']['episodes']}"
        if config["teacher"] and not config["ensemble"]["teachers"]:
            measured += f" --teacher {shlex.quote(config['teacher'])}"
        lines = [Markup(f"<pre>{page.text_of(again)}\n{page.text_of(measured)}</pre>")]
    known_versions = page.table((), list(versions.items())) if versions else ""
    seed = page.paragraph(f"Seed {summary['seed']}. The same seed on the same machine gives the same student, bit for bit.")
    return page.section("Reproduce", *(page.text_of(line) for line in lines), seed, page.details("Versions", known_versions))


def _files(folder: Path) -> str:
    there = [(link(name), what) for name, what in FILES.items() if (folder / name).exists()]
    return page.section("Files", page.table((), there))
