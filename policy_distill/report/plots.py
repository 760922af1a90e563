"""The plots of a run and of a suite. Each function draws one figure from plain data; ``drawing`` converts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from policy_distill.report.candidates import STAGES, Candidate
from policy_distill.report.drawing import LIGHT, blank, styled
from policy_distill.report.rows import known

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOWEST_RETENTION = -0.1
"""Lower limit of the retention axis. Lower retentions are labelled arrows, so that a bad first round does not compress the rest."""
NARROWEST = (0.9, 1.05)
"""Minimum range of retention axes, so that noise in the third digit does not fill the plot."""
STAGE_COLOURS = {"round": "student", "generation": "generation", "polish": "polish"}


@styled
def paired_returns(returns: Mapping[str, Sequence[float]]) -> Figure:
    """The student's return against its teacher's, one dot per seed; on the diagonal both are equal.

    Args:
        returns: ``teacher`` and ``student``, ``[E]`` on the same seeds.
    """
    figure, axes = blank()
    teacher, student = np.asarray(returns["teacher"]), np.asarray(returns["student"])
    low, high = min(teacher.min(), student.min()), max(teacher.max(), student.max())
    margin = 0.06 * (high - low) or max(abs(high) * 0.06, 1.0)
    ends = (low - margin, high + margin)
    axes.plot(ends, ends, color=LIGHT["muted"], linewidth=1, linestyle=(0, (4, 3)))
    axes.scatter(teacher, student, s=22, color=LIGHT["student"], alpha=0.55, linewidths=0)
    axes.set(xlim=ends, ylim=ends, xlabel="teacher's return", ylabel="student's return")
    axes.annotate("equal", ends, xytext=(ends[1], ends[1]), textcoords="data", ha="right", va="top", color=LIGHT["muted"], fontsize=8)
    return figure


@styled
def return_distribution(returns: Mapping[str, Sequence[float]]) -> Figure:
    """Empirical distribution functions of the returns of teacher, student and random policy."""
    figure, axes = blank()
    named = {"student": "student", "teacher": "teacher", "random": "random policy"}  # the teacher's dashes lie on the student's line
    edges = np.concatenate([np.asarray(returns[name]) for name in named])
    margin = 0.03 * (edges.max() - edges.min()) or 1.0
    first, last = edges.min() - margin, edges.max() + margin
    for name, label in named.items():
        ordered = np.sort(np.asarray(returns[name]))
        heights = np.arange(len(ordered) + 1) / len(ordered)
        across, up = np.concatenate([[first], ordered, [last]]), np.concatenate([heights, [1.0]])
        dashes: Any = (0, (3, 1.5)) if name == "teacher" else "-"
        axes.step(across, up, where="post", color=LIGHT[name], label=label, linestyle=dashes)
    axes.set(xlim=(first, last), ylim=(-0.02, 1.02), xlabel="return of an episode", ylabel="share of episodes with at most this return")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    figure.legend(loc="outside upper left", ncols=3)
    return figure


@styled
def retention_path(tried: Sequence[Candidate], final: Mapping[str, Any]) -> Figure:
    """Validation retention of each candidate, with 95 % intervals, and the final retention on fresh seeds.

    Args:
        tried: candidates in order; those without a retention are left out.
        final: ``estimate``, ``low`` and ``high`` of the final retention.
    """
    figure, axes = blank(7.2, 3.5)
    places: list[tuple[float, str]] = []
    at = 0.0
    shown = [candidate for candidate in tried if candidate.retention is not None]
    for stage in STAGES:
        mine = [candidate for candidate in shown if candidate.stage == stage]
        if not mine:
            continue
        at += 0.8 if places else 0.0
        across = at + np.arange(len(mine))
        at = across[-1] + 1
        colour = LIGHT[STAGE_COLOURS[stage]]
        heights = np.array([candidate.retention for candidate in mine], float)
        widths = np.array([candidate.half_width or 0.0 for candidate in mine])
        axes.errorbar(across, heights, widths, color=colour, linewidth=1, elinewidth=1.2, fmt="-o", markersize=4, label=STAGES[stage])
        for x, candidate in zip(across, mine, strict=True):
            assert candidate.retention is not None
            places.append((float(x), f"{candidate.number}"))
            if candidate.retention < LOWEST_RETENTION:
                axes.plot([x], [LOWEST_RETENTION + 0.02], marker="v", color=colour, markersize=6, clip_on=False)
                axes.annotate(f"{candidate.retention:.2f}", (x, LOWEST_RETENTION + 0.06), ha="center", color=colour, fontsize=8)
    if known(final["estimate"]):
        at += 0.3
        middle = final["estimate"]
        spread = [[middle - final["low"]], [final["high"] - middle]]
        axes.errorbar([at], [middle], spread, color=LIGHT["ink"], elinewidth=1.6, fmt="D", markersize=5, label="on fresh seeds")
        places.append((at, "final"))
    for (x, _), candidate in zip(places, shown, strict=False):
        if candidate.kept and candidate.retention is not None:
            axes.plot(x, candidate.retention, "o", color="none", markeredgecolor=LIGHT["ink"], markersize=10, label="kept")
    axes.axhline(1, color=LIGHT["teacher"], linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    low, high = axes.get_ylim()
    axes.set_ylim(max(min(low, NARROWEST[0]), LOWEST_RETENTION), max(high, NARROWEST[1]))
    axes.annotate("teacher", (1, 1), xycoords=("axes fraction", "data"), xytext=(2, 0), textcoords="offset points", va="center",
                  color=LIGHT["teacher"], fontsize=8)  # fmt: skip
    thinned = places if len(places) <= 24 else [place for index, place in enumerate(places) if index % 2 == 0 or place[1] == "final"]
    axes.set_xticks([x for x, _ in thinned], [name for _, name in thinned])
    axes.grid(visible=False, axis="x")
    axes.set(ylabel="retention")
    if places:
        figure.legend(loc="outside upper left", ncols=3)
    return figure


@styled
def loss_by_round(rounds: Sequence[Mapping[str, Any]], term: str) -> Figure:
    """One loss term by round, on training and held-out episodes.

    Args:
        rounds: records whose ``train`` and ``held_out`` may contain ``term``.
        term: name of the term; a unit at its end becomes the axis's.
    """
    figure, axes = blank()
    shown: list[float] = []
    for source, label, colour in (("train", "trained on", "student"), ("held_out", "held out", "muted")):
        points = [(record["round"] + 1, record[source][term]) for record in rounds if known(record[source].get(term))]
        if points:
            shown += [value for _, value in points]
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3.5, color=LIGHT[colour], label=label)
    if shown and min(shown) > 0 and max(shown) > 10 * min(shown):
        axes.set_yscale("log")
    elif shown and min(shown) >= 0:
        axes.set_ylim(bottom=0)
    axes.locator_params(axis="x", integer=True)
    axes.set(xlabel="round", ylabel=loss_name(term))
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def loss_name(term: str) -> str:
    """``forward_kl_nats`` -> ``forward KL (nats)``."""
    words = term.removesuffix("_nats").replace("_", " ").replace("kl", "KL")
    return f"{words} (nats)" if term.endswith("_nats") else words


@styled
def performance_profile(retentions: Sequence[float]) -> Figure:
    """For each retention, the share of teachers whose student has a higher one (Agarwal et al. 2021, sec. 4.2)."""
    figure, axes = blank()
    values = np.sort(np.asarray(retentions, float))
    first, last = min(values[0], NARROWEST[0]), max(values[-1], NARROWEST[1])
    margin = 0.03 * (last - first)
    across = np.concatenate([[first - margin], values, [last + margin]])
    above = np.concatenate([[1.0], 1 - np.arange(1, len(values) + 1) / len(values), [0.0]])
    axes.step(across, above, where="post", color=LIGHT["student"])
    axes.axvline(1, color=LIGHT["teacher"], linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate("teacher", (1, 1.04), xytext=(3, -2), textcoords="offset points", va="top", color=LIGHT["teacher"], fontsize=8)
    axes.set(xlim=(across[0], across[-1]), ylim=(-0.02, 1.04), xlabel="retention", ylabel="share of students above this")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    return figure


@styled
def retention_against_compression(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Each student's retention, with its interval, against its compression.

    Args:
        rows: mappings with ``teacher``, ``compression``, ``retention``, ``low`` and ``high``.
    """
    figure, axes = blank()
    across, middle = np.array([row["compression"] for row in rows]), np.array([row["retention"] for row in rows])
    spread = np.array([[row["retention"] - row["low"] for row in rows], [row["high"] - row["retention"] for row in rows]])
    axes.errorbar(across, middle, np.maximum(spread, 0), color=LIGHT["student"], fmt="o", markersize=4.5, elinewidth=1.1, alpha=0.85)
    axes.axhline(1, color=LIGHT["teacher"], linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    if across.max() > 8 * across.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, NARROWEST[0]), max(high, NARROWEST[1]))
    lowest = int(np.argmin(middle))
    if len(rows) > 1 and middle[lowest] < 0.97:
        axes.annotate(rows[lowest]["teacher"], (across[lowest], middle[lowest]), xytext=(6, -3), textcoords="offset points", fontsize=8)
    axes.set(xlabel="compression", ylabel="retention")
    return figure
