"""The sentences follow from the interval, not from the estimate."""

from __future__ import annotations

import pytest

from policy_distill.report.verdict import verdict
from tests.report.example import SUMMARY, UNDEFINED, changed


def of(low: float, high: float, episodes: int = 100):
    kept = {"estimate": (low + high) / 2, "low": low, "high": high, "confidence": 0.95, "episodes": episodes}
    return verdict(changed(retention=kept))


@pytest.mark.parametrize(
    ("low", "high", "level", "meaning"),
    [
        (1.001, 1.1, "kept", "return is higher than its teacher"),
        (1.0, 1.1, "kept", "keeps its teacher's return"),
        (0.95, 0.99, "kept", "keeps its teacher's return"),
        (0.9499, 1.2, "open", "is open"),
        (0.5, 0.95, "open", "is open"),
        (0.5, 0.9499, "lost", "lost return"),
    ],
)
def test_the_level_is_the_interval_s(low, high, level, meaning):
    found = of(low, high)
    assert found.level == level
    assert meaning in found.meaning


def test_the_headline():
    assert verdict(SUMMARY).headline == (
        "A student of 130 parameters, 520 times smaller than its teacher, keeps 98.1% of the return (95% interval: 96.7% to 99.3%)."
    )


@pytest.mark.parametrize(
    ("compression", "words"),
    [
        (19.94, ", 19.9 times smaller than its teacher,"),
        (0.5, ", 2.0 times larger than its teacher,"),
        (1.01, ", as many as its teacher's,"),
        (None, "parameters keeps"),
    ],
)
def test_how_small_it_is(compression, words):
    assert words in verdict(changed(compression=compression)).headline


def test_few_episodes_are_called_few():
    assert "few" in of(0.98, 1.0, episodes=49).trust
    assert "few" not in of(0.98, 1.0, episodes=50).trust
    assert "50 seeds" in of(0.98, 1.0, episodes=50).trust


def test_what_is_undefined_is_not_judged():
    found = verdict(changed(retention=UNDEFINED))
    assert found.level == "open"
    assert "not distinguishable from a random policy" in found.meaning
    assert "%" not in found.headline
