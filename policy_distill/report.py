"""report.md: what a run found, for a person."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policy_distill.files import write_atomically


def retention_text(kept: Mapping[str, Any]) -> str:
    """``0.981 [0.967, 0.993]``, or why there is none."""
    if kept["estimate"] is None or not math.isfinite(kept["estimate"]):
        return "undefined: teacher and random policy cannot be told apart"
    return f"{kept['estimate']:.3f} [{kept['low']:.3f}, {kept['high']:.3f}]"


def summary_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The rows of the table that closes a run: what, figure."""
    teacher, student, kept = summary["teacher"], summary["student"], summary["retention"]
    rows = [
        ("environment", summary["env"]),
        ("teacher", f"{teacher['algo']}, {format(teacher['params'], ',') if teacher['params'] else 'unknown'} parameters"),
        ("student", f"{student['hidden_sizes']}, {student['params']:,} parameters"),
        ("compression", f"{summary['compression']:.1f}x" if summary["compression"] else "unknown"),
        ("teacher's return", f"{teacher['return_mean']:.1f} ± {teacher['return_std']:.1f}"),
        ("student's return", f"{student['return_mean']:.1f} ± {student['return_std']:.1f}"),
        ("random policy's return", f"{summary['random']['return_mean']:.1f} ± {summary['random']['return_std']:.1f}"),
        (f"retention [{kept['confidence']:.0%} interval]", retention_text(kept)),
        ("paired episodes", f"{kept['episodes']}"),
        ("agreement", f"{summary['agreement']:.1%} of the student's states" if summary["agreement"] is not None else "unknown"),
        ("student's origin", summary["kept"]),
        ("environment steps", f"{summary['env_steps']:,}"),
        ("gradient steps", f"{summary['gradient_steps']:,}"),
    ]
    seconds = summary["seconds"]
    stages = ", ".join(f"{stage} {seconds[stage]:.0f} s" for stage in ("collect", "train", "polish", "evaluate") if seconds[stage])
    return [*rows, ("time", f"{seconds['total']:.0f} s ({stages})")]


def summary_table(summary: Mapping[str, Any]) -> str:
    """``summary_rows`` as a Markdown table."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in summary_rows(summary))])


def write_report(path: str | Path, summary: Mapping[str, Any]) -> Path:
    """Write the report of one run."""
    lines = [f"# {summary['teacher']['algo']} on {summary['env']}, distilled", ""]
    lines += [f"- note: {notice}" for notice in summary["notices"]]
    lines += ["", summary_table(summary), ""]
    lines += [
        "Retention is `(student - random) / (teacher - random)` of the mean returns, all three measured on the same seeds, none of which",
        "was used to train or to choose. The interval is a paired bootstrap over episodes. Compression is quoted against the teacher's",
        "acting network.",
        "",
        "## Rounds",
        "",
        "| round | environment steps | gradient steps | teacher acts | loss | held out | validation return | retention | finalist |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for record in summary["rounds"]:
        name, loss = next(iter(record["train"].items()))
        held_out, final = record["held_out"].get(name), record["finalist_return_mean"]
        chosen = " **chosen**" if record["round"] == summary["chosen_round"] else ""
        lines.append(
            f"| {record['round'] + 1}{chosen} | {record['env_steps']:,} | {record['gradient_steps']:,} "
            f"| {record['teacher_action_prob']:.2f} | {loss:.4g} | {'' if held_out is None else f'{held_out:.4g}'} "
            f"| {record['validation_return_mean']:.1f} | {record['validation_retention']:.3f} | {'' if final is None else f'{final:.1f}'} |"
        )
    lines += ["", f"The loss is `{next(iter(summary['rounds'][0]['train']))}`.", ""]
    lines += _polish_lines(summary["polish"])
    lines += [
        "## Files",
        "",
        "- `student/`: weights (safetensors) and description (JSON); `policy_distill.Student.load`",
        "- `student.zip`: the same policy for Stable-Baselines3 (where it supports the spaces); `PPO.load` opens it without policy_distill",
        "- `config.yaml`: the whole configuration; `policy-distill distill_policy --config config.yaml` runs it again",
        "- `result.json`: every figure, the returns of each episode among them",
        "- `tensorboard/`: `tensorboard --logdir` shows the curves",
        "",
    ]
    return write_atomically(path, lambda target: target.write_text("\n".join(lines)))


def _polish_lines(polish: Mapping[str, Any] | None) -> list[str]:
    """The section about training by reward, where there was any."""
    if polish is None:
        return []
    lines = [
        "## Polish",
        "",
        f"It began with {polish['start']}, which kept {polish['start_retention']:.3f} of the return on the validation seeds.",
        "",
        "| environment steps | sampled return | validation return | retention | finalist |",
        "|---:|---:|---:|---:|---:|",
    ]
    for index, record in enumerate(polish["records"]):
        sampled, final = record["metrics"].get("train_return_mean"), record["finalist_return_mean"]
        chosen = " **chosen**" if index == polish["chosen"] else ""
        lines.append(
            f"| {record['env_steps']:,}{chosen} | {'' if sampled is None else f'{sampled:.1f}'} "
            f"| {record['validation_return_mean']:.1f} | {record['validation_retention']:.3f} | {'' if final is None else f'{final:.1f}'} |"
        )
    return [*lines, "", *(["No polished student beat that one on all validation seeds.", ""] if polish["chosen"] is None else [])]
