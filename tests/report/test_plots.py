"""The plots show the figures that they are given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from policy_distill.report import plots
from policy_distill.report.candidates import Candidate
from policy_distill.report.drawing import LIGHT
from tests.report.example import SUMMARY, UNDEFINED

FINAL = {"estimate": 0.9, "low": 0.8, "high": 1.1}


def lines(figure: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Label -> x and y."""
    return {line.get_label(): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in figure.axes[0].lines}


def texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def tried(*retentions: float | None, kept: int = 0, stage: str = "round") -> list[Candidate]:
    return [Candidate(stage, index + 1, value, 0.05, False, index == kept) for index, value in enumerate(retentions)]


def test_each_seed_is_a_dot():
    axes: Any = plots.paired_returns({"teacher": [1.0, 2.0, 4.0], "student": [1.0, 3.0, 2.0]}).axes[0]
    assert np.asarray(axes.collections[0].get_offsets()).tolist() == [[1, 1], [2, 3], [4, 2]]
    assert axes.get_xlim() == axes.get_ylim() == pytest.approx((1 - 0.18, 4 + 0.18))
    (diagonal,) = axes.lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata())


def test_returns_that_never_vary_are_still_a_plot():
    axes: Any = plots.paired_returns({"teacher": [500.0] * 3, "student": [500.0] * 3}).axes[0]
    assert axes.get_xlim() == (470, 530)
    plots.return_distribution({"teacher": [0.0] * 2, "student": [0.0] * 2, "random": [0.0] * 2})


def test_the_distribution_is_the_share_that_earned_at_most_so_much():
    found = lines(plots.return_distribution({"teacher": [4.0, 2.0], "student": [1.0, 3.0], "random": [0.0, 10.0]}))
    across, up = found["teacher"]
    assert across.tolist() == pytest.approx([-0.3, 2, 4, 10.3])
    assert up.tolist() == [0, 0.5, 1, 1]
    assert set(found) == {"teacher", "student", "random policy"}


def test_the_path_shows_each_stage_and_the_final_figure():
    figure = plots.retention_path([*tried(0.5, 0.75), *tried(0.8, kept=-1, stage="polish")], FINAL)
    axes: Any = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "1", "final"]
    (rounds, polish, final) = axes.containers
    assert list(rounds.lines[0].get_ydata()) == [0.5, 0.75]
    assert list(polish.lines[0].get_ydata()) == [0.8]
    bars = [segment[:, 1].tolist() for segment in rounds.lines[2][0].get_segments()]
    assert np.array(bars) == pytest.approx(np.array([[0.45, 0.55], [0.7, 0.8]]))
    assert final.lines[2][0].get_segments()[0][:, 1] == pytest.approx([0.8, 1.1])
    assert lines(figure)["kept"][1].tolist() == [0.5]


def test_the_kept_one_is_ringed_where_an_earlier_one_has_no_figure():
    figure = plots.retention_path(tried(None, 0.5, 0.75, kept=2), FINAL)
    assert lines(figure)["kept"][1].tolist() == [0.75]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["2", "3", "final"]


def test_a_hopeless_round_is_an_arrow_with_its_figure():
    figure = plots.retention_path(tried(-7.25, 0.5, 0.9), FINAL)
    assert figure.axes[0].get_ylim()[0] == plots.LOWEST_RETENTION
    assert "-7.25" in texts(figure)
    assert "-7.25" not in texts(plots.retention_path(tried(-0.05, 0.5), FINAL))


def test_noise_does_not_fill_the_axis():
    final = {"estimate": 1.0, "low": 0.9999, "high": 1.0001}
    low, high = plots.retention_path([Candidate("round", 1, 1.0, 0.0, False, True)], final).axes[0].get_ylim()
    assert low <= 0.9 < 1.05 <= high


def test_a_path_without_final_figure():
    assert len(plots.retention_path(tried(0.5), UNDEFINED).axes[0].containers) == 1


def test_losses_by_round():
    figure = plots.loss_by_round(SUMMARY["rounds"], "forward_kl_nats")
    found = lines(figure)
    assert [values.tolist() for values in found["trained on"]] == [[1, 2], [0.012345, 0.012345]]
    assert [values.tolist() for values in found["held out"]] == [[2], [0.5]]
    assert figure.axes[0].get_ylabel() == "forward KL (nats)"
    assert figure.axes[0].get_yscale() == "log"  # 0.012 and 0.5
    other = plots.loss_by_round(SUMMARY["rounds"], "other")
    assert other.axes[0].get_yscale() == "linear"
    assert other.axes[0].get_ylim()[0] == 0
    assert set(lines(other)) == {"trained on"}


def test_the_profile_is_the_share_that_kept_more():
    (across, up), *_ = lines(plots.performance_profile([0.5, 1.0, 0.5, 1.1])).values()
    height = dict(zip(across.tolist(), up.tolist(), strict=True))  # of equal ones the last
    assert (height[0.5], height[1.0], height[1.1]) == (0.5, 0.25, 0.0)
    assert up[0] == 1


def test_retention_against_compression():
    rows = [
        {"teacher": "a", "compression": 2.0, "retention": 1.0, "low": 0.9, "high": 1.1},
        {"teacher": "b", "compression": 40.0, "retention": 0.5, "low": 0.25, "high": 0.75},
    ]
    figure: Any = plots.retention_against_compression(rows)
    dots, _, (bars,) = figure.axes[0].containers[0].lines
    assert (list(dots.get_xdata()), list(dots.get_ydata())) == ([2.0, 40.0], [1.0, 0.5])
    assert bars.get_segments()[1][:, 1].tolist() == [0.25, 0.75]
    assert figure.axes[0].get_xscale() == "log"
    assert texts(figure) == ["b"]  # the worst is named
    assert texts(plots.retention_against_compression(rows[:1])) == []


def test_stages_are_told_apart_by_colour():
    colours = {LIGHT[plots.STAGE_COLOURS[stage]] for stage in ("round", "generation", "polish")}
    assert len(colours) == 3
