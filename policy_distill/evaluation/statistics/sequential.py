"""Certificates of retention: group-sequential tests, which stop as soon as the data decide and keep the error rate.

Checking a 95 % interval repeatedly until it gives the desired answer errs far more often than 5 %. Here the allowed error is spent over
the looks (Lan & DeMets 1983), little of it early (O'Brien & Fleming 1979), so that early looks cost little power.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.polynomial.legendre import leggauss
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri, stdtrit

from policy_distill.evaluation.statistics.intervals import paired, share_where
from policy_distill.evaluation.statistics.means import contrast, guarded_statistic, skewness

FIRST_LOOK = 50
"""Number of episodes before the first look."""
GROWTH = 1.5
"""Ratio of the numbers of episodes of two successive looks."""
NODES = 200
"""Number of quadrature nodes over the continuation region; with half as many the boundaries agree to 1e-8."""

DOUBT = 1.25
"""Pseudo-loss counted against a verdict, in units of ``share`` times the largest gap: one episode in which the student loses 1.25 times
the gap. With 1, students with rare crashes far below the random policy were certified in 5.8 % of samples instead of at most 5 % (budgets
of 300 and 500, 3,000 samples); larger values cost power."""

VerdictName = Literal["certified", "refuted", "undecided"]


def look_schedule(max_episodes: int) -> tuple[int, ...]:
    """Numbers of episodes at which the test looks, the last one ``max_episodes``.

    Raises:
        ValueError: if ``max_episodes`` is below ``FIRST_LOOK``.
    """
    if max_episodes < FIRST_LOOK:
        raise ValueError(f"max_episodes is {max_episodes}; it must be >= {FIRST_LOOK}")
    looks = [FIRST_LOOK]
    while looks[-1] * GROWTH * 1.2 < max_episodes:
        looks.append(round(looks[-1] * GROWTH))
    return tuple(looks) if looks[-1] == max_episodes else (*looks, max_episodes)


def spent(fraction: np.ndarray, alpha: float) -> np.ndarray:
    """Error-spending function ``2 - 2 Phi(z_{alpha/2} / sqrt(fraction))`` of the fraction of episodes seen.

    O'Brien-Fleming type of Lan & DeMets (1983, Biometrika 70, sec. 2), one-sided: ``alpha`` at fraction 1.
    """
    return np.asarray(2 * ndtr(ndtri(alpha / 2) / np.sqrt(fraction)))


def spending_boundaries(fractions: Sequence[float], alpha: float) -> np.ndarray:
    """Standard normal boundaries ``[looks]`` of a one-sided test that spends ``alpha`` over looks at these fractions of its episodes.

    Computed by the recursion of Armitage, McPherson & Rowe (1969) over the density of the score process that has not crossed yet, with
    Gauss-Legendre quadrature; checked against published tables. Stopping for another reason only lowers the error.

    Args:
        fractions: ``[looks]``, increasing, in (0, 1].
        alpha: total one-sided error, in (0, 0.5].

    Returns:
        ``[looks]``; infinite where the error to spend is below the precision of a double.

    Raises:
        ValueError: if the fractions do not increase within (0, 1], or ``alpha`` is out of range.
    """
    times = np.asarray(fractions, np.float64)
    if times.ndim != 1 or len(times) == 0 or times[0] <= 0 or times[-1] > 1 or (np.diff(times) <= 0).any():
        raise ValueError(f"fractions are {list(fractions)}; they must rise, all in (0, 1]")
    if not 0 < alpha <= 0.5:
        raise ValueError(f"alpha is {alpha}; it must be in (0, 0.5]")
    steps = np.diff(spent(times, alpha), prepend=0.0)
    nodes, weights = leggauss(NODES)
    points, mass = np.zeros(1), np.ones(1)  # the score begins at 0; ``mass`` is density times quadrature weight
    before = 0.0
    boundaries = []
    for time, step in zip(times, steps, strict=True):
        spread = np.sqrt(time - before)

        def excess(bound: float, spread: float = spread, points: np.ndarray = points, mass: np.ndarray = mass, step: float = step) -> float:
            return float((mass * ndtr((points - bound) / spread)).sum() - step)

        farthest = 38.0 * np.sqrt(time)  # beyond it the probability underflows
        bound = float(brentq(excess, -farthest, farthest, xtol=1e-12)) if step > 1e-300 else np.inf
        low, high = -9.0 * np.sqrt(time), min(bound, 13.0 * np.sqrt(time))
        inner = low + (high - low) * (nodes + 1) / 2
        density = np.exp(-(((inner[:, None] - points) / spread) ** 2) / 2) / (spread * np.sqrt(2 * np.pi)) @ mass
        points, mass, before = inner, density * weights * (high - low) / 2, time
        boundaries.append(bound / np.sqrt(time))
    return np.array(boundaries)


@dataclass(frozen=True)
class Plan:
    """A group-sequential test, fixed before the first episode is played.

    Attributes:
        share: the claimed retention; the claim is that the student keeps at least this much.
        confidence: 1 minus the error rate, of certifying a student below ``share`` and of refuting one above it.
        looks: numbers of episodes at which the test looks, increasing.
        boundaries: standard normal boundary of each look; ``critical`` converts them to the statistic's scale.
    """

    share: float
    confidence: float
    looks: tuple[int, ...]
    boundaries: tuple[float, ...]

    @classmethod
    def of(cls, share: float, confidence: float = 0.95, max_episodes: int = 2000) -> Plan:
        """A plan with looks at 50, 75, 112, ... and finally ``max_episodes`` episodes.

        Raises:
            ValueError: if ``max_episodes`` is below ``FIRST_LOOK``, ``share`` not above 0 or ``confidence`` out of [0.5, 1).
        """
        if not (share > 0 and np.isfinite(share)):
            raise ValueError(f"share is {share}; it must be > 0")
        return cls.at(look_schedule(max_episodes), share, confidence)

    @classmethod
    def at(cls, looks: Sequence[int], share: float, confidence: float = 0.95) -> Plan:
        """A plan with looks at these numbers of episodes; a single number is a fixed-sample test."""
        if not 0.5 <= confidence < 1:
            raise ValueError(f"confidence is {confidence}; it must be in [0.5, 1)")
        boundaries = spending_boundaries([look / looks[-1] for look in looks], 1 - confidence)
        return cls(share, confidence, tuple(looks), tuple(boundaries.tolist()))

    def critical(self, look: int) -> float:
        """Boundary of the statistic at ``looks[look]``: the t quantile of the same tail (Jennison & Turnbull 2000, sec. 4.4)."""
        return float(-stdtrit(self.looks[look], ndtr(-self.boundaries[look])))

    def fewest(self) -> int | None:
        """Episodes after which a student equal to its teacher is certified, if ``teacher - random`` is the same in all episodes.

        A varying gap takes longer. None if even the last look is not enough.
        """
        above, doubt = 1 - self.share, DOUBT * self.share
        for index, episodes in enumerate(self.looks):
            if (episodes * above - doubt) / (above + doubt) > self.critical(index):
                return episodes
        return None


@dataclass(frozen=True)
class Look:
    """Statistics at one look.

    Attributes:
        episodes: number of episodes so far.
        critical: critical value of the statistics.
        keeps: ``guarded_statistic`` of the contrast, for "the student keeps the share".
        loses: statistic of the negative contrast, for "the student does not keep the share".
        gap: statistic of ``teacher - random``, for "the teacher is better than a random policy".
        no_gap: statistic of ``random - teacher``.
    """

    episodes: int
    critical: float
    keeps: float
    loses: float
    gap: float
    no_gap: float


@dataclass(frozen=True)
class Decision:
    """Decision from the returns so far.

    Attributes:
        verdict: ``certified``: the student keeps the share; ``refuted``: it does not; ``undecided`` otherwise.
        reason: one sentence.
        final: False while further episodes may decide.
        episodes: number of episodes at the last look.
        low, high: repeated confidence bounds on the retention (Jennison & Turnbull 1989): each holds at the plan's confidence
            regardless of when the test stopped; infinite if there is no bound.
        looks: statistics of each look.
    """

    verdict: VerdictName
    reason: str
    final: bool
    episodes: int
    low: float
    high: float
    looks: tuple[Look, ...]


def statistics_at(
    student: np.ndarray, teacher: np.ndarray, random: np.ndarray, *, share: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """``keeps``, ``loses``, ``gap``, ``no_gap`` of a ``Look``, from ``[..., E]`` to ``[...]``.

    The pseudo-loss of the contrast is ``DOUBT * share`` times the largest observed gap; that of the gap is 0, an episode in which the
    teacher has a random policy's return.
    """
    above, gaps = contrast(student, teacher, random, share), teacher - random
    doubt = DOUBT * abs(share) * np.maximum(gaps.max(-1), 0.0)
    skewed, skewed_gap = skewness(above), skewness(gaps)
    return (
        guarded_statistic(above, doubt, skewed),
        guarded_statistic(-above, doubt, -skewed),
        guarded_statistic(gaps, 0.0, skewed_gap),
        guarded_statistic(-gaps, 0.0, -skewed_gap),
    )


def decide(student: np.ndarray, teacher: np.ndarray, random: np.ndarray, *, plan: Plan) -> Decision:
    """Apply the test ``plan`` to the returns, look by look, until they decide.

    A student is certified or refuted only if the teacher is also shown to be better than a random policy, at the same error rate. This is
    an intersection-union test, which needs no correction for multiplicity (Berger 1982).

    Args:
        student, teacher, random: ``[E]`` on the same seeds, in the order of playing.
        plan: the test.

    Raises:
        ValueError: if the arrays differ in length, contain a return that is not finite, or end before the first look.
    """
    rows = paired(student, teacher, random)
    if rows.shape[1] < plan.looks[0]:
        raise ValueError(f"{rows.shape[1]} episodes; the first look is at {plan.looks[0]}")
    seen: list[Look] = []
    verdict: VerdictName = "undecided"
    apart, pointless = False, False
    for index, episodes in enumerate(plan.looks):
        if episodes > rows.shape[1]:
            break
        look = Look(episodes, plan.critical(index), *map(float, statistics_at(*rows[:, :episodes], share=plan.share)))
        seen.append(look)
        apart = apart or look.gap > look.critical
        pointless = look.no_gap > look.critical
        if apart and look.keeps > look.critical:
            verdict = "certified"
        elif apart and look.loses > look.critical:
            verdict = "refuted"
        if pointless or verdict != "undecided":
            break
    last = seen[-1]
    final = pointless or verdict != "undecided" or last.episodes == plan.looks[-1]
    low, high = _bounds(rows[:, : last.episodes], last.critical) if apart else (-np.inf, np.inf)
    return Decision(verdict, _reason(verdict, plan, last, apart, pointless), final, last.episodes, low, high, tuple(seen))


def outcomes(student: np.ndarray, teacher: np.ndarray, random: np.ndarray, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """``decide`` for many samples at once, for simulations.

    Args:
        student, teacher, random: ``[R, E]``, E the plan's last look.
        plan: the test.

    Returns:
        ``[R]``: 1 certified, -1 refuted, 0 undecided; and ``[R]``: the number of episodes used.
    """
    count = len(student)
    verdicts, episodes = np.zeros(count, np.int64), np.full(count, plan.looks[-1])
    apart, open_ = np.zeros(count, bool), np.ones(count, bool)
    for index, look in enumerate(plan.looks):
        left = np.flatnonzero(open_)
        critical = plan.critical(index)
        keeps, loses, gap, no_gap = statistics_at(student[left, :look], teacher[left, :look], random[left, :look], share=plan.share)
        apart[left] |= gap > critical
        found = np.where(apart[left], (keeps > critical).astype(int) - (loses > critical), 0)
        ended = (found != 0) | (no_gap > critical)
        verdicts[left], episodes[left[ended]] = found, look
        open_[left[ended]] = False
    return verdicts, episodes


def _bounds(rows: np.ndarray, critical: float) -> tuple[float, float]:
    """The largest share that would be certified at this look, and the smallest that would be refuted."""
    gap = float((rows[1] - rows[2]).mean())
    estimate = float((rows[0] - rows[2]).mean()) / gap
    step = 0.01 * max(1.0, abs(estimate))
    low = share_where(lambda share: float(statistics_at(*rows, share=share)[0]) - critical, estimate, -step)
    high = share_where(lambda share: float(statistics_at(*rows, share=share)[1]) - critical, estimate, step)
    return low, high


def _reason(verdict: VerdictName, plan: Plan, last: Look, apart: bool, pointless: bool) -> str:
    if pointless:
        return "the teacher earns less than a random policy: there is nothing to keep"
    if verdict == "certified":
        return f"the student keeps at least {plan.share:g} of what its teacher adds over a random policy"
    if verdict == "refuted":
        return f"the student keeps less than {plan.share:g} of what its teacher adds over a random policy"
    if not apart:
        return f"teacher and random policy cannot be told apart by {last.episodes} episodes"
    hint = "" if plan.fewest() else f"; not even a student that equals its teacher in all {plan.looks[-1]} episodes would show it"
    return f"{last.episodes} episodes show neither that the student keeps {plan.share:g} nor that it does not{hint}"
