"""report.md: one run as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from policy_distill.report.candidates import Candidate, candidates
from policy_distill.report.rows import EXPORT_COLUMNS, export_rows, finalist_text, number, plain, summary_table, tally_text
from policy_distill.report.verdict import verdict


def run_markdown(summary: Mapping[str, Any]) -> str:
    """The report as Markdown.

    Args:
        summary: contents of result.json.
    """
    found, tried = verdict(summary), candidates(summary)
    lines = [
        f"# {plain(summary['teacher']['algo'])} on {plain(summary['env'])}, distilled",
        "",
        f"**{plain(found.headline)}**",
        plain(found.meaning),
        plain(found.trust),
        "",
    ]
    lines += [f"- note: {plain(notice)}" for notice in summary["notices"]]
    lines += ["", summary_table(summary), ""]
    lines += [
        tally_text(summary["returns"]),
        "Retention is `(student - random) / (teacher - random)` of the mean returns, all three measured on the same seeds, none of which",
        "was used for training or selection. The interval contains all retentions that a paired test does not reject. Compression is",
        "relative to the teacher's acting network. `±` is half of a 95% interval, paired by seed.",
        "",
    ]
    lines += _round_lines(summary, _of("round", tried))
    lines += _generation_lines(summary["self_distillation"], _of("generation", tried))
    lines += _polish_lines(summary["polish"], _of("polish", tried))
    if exports := summary.get("exports"):
        rows = [EXPORT_COLUMNS, ["---"] * len(EXPORT_COLUMNS), *export_rows(exports)]
        lines += ["## Exports", "", *(f"| {' | '.join(map(plain, row))} |" for row in rows), ""]
    lines += [
        "## Files",
        "",
        "- `student/`: weights (safetensors) and description (JSON); `policy_distill.Student.load`",
        "- `student.zip`: the same policy for Stable-Baselines3 (if it supports the spaces); `PPO.load` opens it without policy_distill",
        "- `config.yaml`: the whole configuration; `policy-distill distill_policy --config config.yaml` repeats the run",
        "- `result.json`: all numbers, including the return of each episode",
        "- `report.html`: this report as a web page, with plots",
        "- `tensorboard/`: `tensorboard --logdir` shows the curves",
        "",
    ]
    return "\n".join(lines)


def _of(stage: str, tried: Sequence[Candidate]) -> list[Candidate]:
    return [candidate for candidate in tried if candidate.stage == stage]


def _round_lines(summary: Mapping[str, Any], tried: Sequence[Candidate]) -> list[str]:
    name = next(iter(summary["rounds"][0]["train"]))
    lines = [
        "## Rounds",
        "",
        "| round | environment steps | gradient steps | teacher acts | loss | held out | return | retention | as finalist (episodes) |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for record, candidate in zip(summary["rounds"], tried, strict=True):
        chosen = " **chosen**" if record["round"] == summary["chosen_round"] else ""
        lines.append(
            f"| {record['round'] + 1}{chosen} | {record['env_steps']:,} | {record['gradient_steps']:,} "
            f"| {record['teacher_action_prob']:.2f} | {record['train'][name]:.4g} | {number(record['held_out'].get(name), '.4g')} "
            f"| {number(record['validation_return_mean'])} | {candidate.text} | {finalist_text(record)} |"
        )
    return [*lines, "", f"The loss is `{name}`.", ""]


def _generation_lines(records: Sequence[Mapping[str, Any]], tried: Sequence[Candidate]) -> list[str]:
    """The section on self-distillation; empty without generations."""
    if not records:
        return []
    lines = [
        "## Generations",
        "",
        "| generation | gradient steps | validation return | retention | mean paired difference to predecessor | |",
        "|---:|---:|---:|---:|---:|---|",
    ]
    for record, candidate in zip(records, tried, strict=True):
        lines.append(
            f"| {record['generation']} | {record['gradient_steps']:,} | {number(record['validation_return_mean'])} | {candidate.text} "
            f"| {record['paired_difference']:+.2f} | {'kept' if record['kept'] else 'rejected'} |"
        )
    return [*lines, ""]


def _polish_lines(polish: Mapping[str, Any] | None, tried: Sequence[Candidate]) -> list[str]:
    """The section on polishing by reward; empty without polishing."""
    if polish is None:
        return []
    lines = [
        "## Polish",
        "",
        f"Initial student: {plain(polish['start'])}, with a validation retention of {polish['start_retention']:.3f}.",
        "",
        "| environment steps | sampled return | validation return | retention | as finalist (episodes) |",
        "|---:|---:|---:|---:|---:|",
    ]
    for index, (record, candidate) in enumerate(zip(polish["records"], tried, strict=True)):
        chosen = " **chosen**" if index == polish["chosen"] else ""
        lines.append(
            f"| {record['env_steps']:,}{chosen} | {number(record['metrics'].get('train_return_mean'))} "
            f"| {number(record['validation_return_mean'])} | {candidate.text} | {finalist_text(record)} |"
        )
    return [
        *lines,
        "",
        *(
            ["No polished student had a higher return on all validation seeds than the initial one.", ""]
            if polish["chosen"] is None
            else []
        ),
    ]
