"""Error rates of certificates and intervals on simulated returns with a known retention.

``tables`` writes the tables of docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import stdtrit

from policy_distill.evaluation.statistics.intervals import bootstrap_means, interval_statistic, percentile_ends
from policy_distill.evaluation.statistics.means import contrast
from policy_distill.evaluation.statistics.sequential import Plan, outcomes
from policy_distill.evaluation.statistics.suites import OF_RETENTIONS, basic_ends, resampled_retentions

Returns = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Returns of student, teacher and random policy, ``[R, E]`` each."""
Population = Callable[[np.random.Generator, tuple[int, int], float], Returns]
"""Samples returns with exactly the given retention; the mean returns of teacher and random policy are 1 and 0."""
CHUNK = 1000
"""Number of samples per chunk; memory is ``3 * CHUNK * E`` doubles."""


def normal_paired(draws: np.random.Generator, size: tuple[int, int], share: float) -> Returns:
    """Normal returns; half of the variance is common to the seed."""
    common = draws.normal(0, 0.2, size)
    student, teacher, random = (common + draws.normal(0, 0.2, size) for _ in range(3))
    return share + student, 1 + teacher, random


def normal_unpaired(draws: np.random.Generator, size: tuple[int, int], share: float) -> Returns:
    """Independent normal returns."""
    return share + draws.normal(0, 0.4, size), 1 + draws.normal(0, 0.4, size), draws.normal(0, 0.2, size)


def skewed_paired(draws: np.random.Generator, size: tuple[int, int], share: float) -> Returns:
    """Exponential losses of hard seeds, larger for the student."""
    hard = 1 - draws.exponential(1, size)
    return share + 0.5 * hard, 1 + 0.3 * hard, draws.normal(0, 0.1, size)


def skewed_unpaired(draws: np.random.Generator, size: tuple[int, int], share: float) -> Returns:
    """Independent exponential losses."""
    student, teacher = (1 - draws.exponential(1, size) for _ in range(2))
    return share + 0.4 * student, 1 + 0.3 * teacher, draws.normal(0, 0.1, size)


def lognormal(draws: np.random.Generator, size: tuple[int, int], share: float) -> Returns:
    """Log-normal losses with a skewness of 6."""
    student, teacher = (np.exp(0.5) - draws.lognormal(0, 1, size) for _ in range(2))
    return share + 0.2 * student, 1 + 0.1 * teacher, draws.normal(0, 0.1, size)


def rare_falls(draws: np.random.Generator, size: tuple[int, int], share: float) -> Returns:
    """The student equals its teacher, but falls at once with probability ``1 - share``."""
    random = draws.normal(0, 0.02, size)
    return np.where(draws.random(size) < 1 - share, random, 1.0), np.ones(size), random


def rare_crashes(draws: np.random.Generator, size: tuple[int, int], share: float) -> Returns:
    """As ``rare_falls``, but half as often and twice as deep: far below the random policy."""
    random = draws.normal(0, 0.02, size)
    return np.where(draws.random(size) < (1 - share) / 2, random - 1, 1.0), np.ones(size), random


def falls_paired(draws: np.random.Generator, size: tuple[int, int], share: float) -> Returns:
    """The teacher falls on the hardest fifth of the seeds, the student on these and some others."""
    hard = draws.random(size)
    return np.where(hard < 0.8 * share, 1.25, 0.0), np.where(hard < 0.8, 1.25, 0.0), draws.normal(0, 0.05, size)


def falls_unpaired(draws: np.random.Generator, size: tuple[int, int], share: float) -> Returns:
    """Teacher and student fall independently of the seed."""
    student, teacher = draws.random(size) < 0.8 * share, draws.random(size) < 0.8
    return np.where(student, 1.25, 0.0), np.where(teacher, 1.25, 0.0), draws.normal(0, 0.05, size)


def sparse_reward(draws: np.random.Generator, size: tuple[int, int], share: float) -> Returns:
    """One seed in five is solvable, with a return of 5; the student misses some of them."""
    found = draws.random(size) < 0.2
    return np.where(found & (draws.random(size) < share), 5.0, 0.0), np.where(found, 5.0, 0.0), np.zeros(size)


def heavy_tailed(draws: np.random.Generator, size: tuple[int, int], share: float) -> Returns:
    """Student's t with three degrees of freedom."""
    return share + 0.3 * draws.standard_t(3, size), 1 + 0.3 * draws.standard_t(3, size), 0.3 * draws.standard_t(3, size)


POPULATIONS: dict[str, Population] = {
    "normal, paired": normal_paired,
    "normal, unpaired": normal_unpaired,
    "exponential losses, paired": skewed_paired,
    "exponential losses, unpaired": skewed_unpaired,
    "log-normal losses, unpaired": lognormal,
    "rare falls of the student": rare_falls,
    "rare crashes of the student": rare_crashes,
    "falls or not, paired": falls_paired,
    "falls or not, unpaired": falls_unpaired,
    "sparse reward, paired": sparse_reward,
    "heavy tails (t3), unpaired": heavy_tailed,
}


def simulate(population: Population, truth: float, plan: Plan, *, replicates: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Verdicts and episodes, ``[replicates]`` each, of students that keep exactly ``truth``; see ``outcomes``."""
    draws = np.random.default_rng(seed)
    sizes = [min(CHUNK, replicates - start) for start in range(0, replicates, CHUNK)]
    parts = [outcomes(*population(draws, (size, plan.looks[-1]), truth), plan) for size in sizes]
    return np.concatenate([verdicts for verdicts, _ in parts]), np.concatenate([episodes for _, episodes in parts])


def naive_certifications(population: Population, plan: Plan, *, replicates: int, seed: int = 0) -> float:
    """Share of students exactly at the plan's share that a plain t-test at every look, each at the full level, certifies."""
    draws = np.random.default_rng(seed)
    above = contrast(*population(draws, (replicates, plan.looks[-1]), plan.share), plan.share)
    certified = np.zeros(replicates, bool)
    for look in plan.looks:
        values = above[:, :look]
        error = values.std(-1, ddof=1) / look**0.5
        certified |= values.mean(-1) > error * stdtrit(look - 1, plan.confidence)
    return float(certified.mean())


def coverage(
    population: Population, truth: float, episodes: int, *, confidence: float = 0.95, replicates: int, seed: int = 0
) -> tuple[float, float]:
    """How often the truth lies below and above the interval of ``retention`` (``method="test"``).

    The interval contains the truth exactly if its test does not reject it, so no interval is computed.
    """
    draws = np.random.default_rng(seed)
    statistic = interval_statistic(*population(draws, (replicates, episodes), truth), share=truth)
    critical = stdtrit(episodes - 1, 1 - (1 - confidence) / 2)
    return float((statistic > critical).mean()), float((statistic < -critical).mean())


def bootstrap_coverage(
    population: Population, truth: float, episodes: int, *, confidence: float = 0.95, replicates: int, seed: int = 0, resamples: int = 400
) -> tuple[float, float]:
    """``coverage`` of the percentile bootstrap (``method="bootstrap"``), if every sample has a retention."""
    draws = np.random.default_rng(seed)
    returns = np.stack(population(draws, (replicates, episodes), truth), axis=1)
    below = above = 0
    for rows in returns:
        student, teacher, random = bootstrap_means(rows, draws, resamples)
        low, high = percentile_ends((student - random) / (teacher - random), confidence)
        below, above = below + (truth < low), above + (truth > high)
    return below / replicates, above / replicates


SUITES = {
    "all keep 1": np.ones(16),
    "all keep 1.03": np.full(16, 1.03),
    "all keep 0.97": np.full(16, 0.97),
    "half keep 1, half 0.8 to 1.05": np.concatenate([np.ones(8), np.linspace(0.8, 1.05, 8)]),
}
"""True retentions of the students of a suite."""


def suite_coverage(
    population: Population, truths: np.ndarray, episodes: int, *, replicates: int, seed: int = 0, resamples: int = 400
) -> dict[str, tuple[float, float]]:
    """Coverage of the 95 % intervals of ``suite_aggregates`` over episodes, and of plain percentile intervals.

    Args:
        population: distribution of the returns.
        truths: ``[T]``, true retention of each teacher's student.
        episodes: number of episodes per teacher.
        replicates: number of suites.
        seed: seed of the returns and the resampling.
        resamples: number of bootstrap samples.
    """
    draws = np.random.default_rng(seed)
    hits = {name: np.zeros(2) for name in OF_RETENTIONS}
    for _ in range(replicates):
        drawn = [population(draws, (1, episodes), truth) for truth in truths]
        student, teacher, random = (np.concatenate(rows) for rows in zip(*drawn, strict=True))
        kept = (student - random).mean(1) / (teacher - random).mean(1)
        again = np.stack([resampled_retentions(rows, draws, resamples) for rows in zip(student, teacher, random, strict=True)])
        for name, (aggregate, limits) in OF_RETENTIONS.items():
            resampled = np.array([aggregate(sample) for sample in again.T])
            for method, (low, high) in enumerate((basic_ends(aggregate(kept), resampled, limits), percentile_ends(resampled))):
                hits[name][method] += low <= aggregate(truths) <= high
    return {name: (counts[0] / replicates, counts[1] / replicates) for name, counts in hits.items()}


def tables(replicates: int = 4000, progress: Callable[[str], None] = lambda line: None) -> str:
    """The simulation study as Markdown.

    Args:
        replicates: number of samples per cell; the percentile bootstrap, which is slow, uses a sixteenth of them.
        progress: called with each line when it is ready.
    """
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        progress(line)

    share, confidence = 0.95, 0.95
    say("## False verdicts\n")
    say(
        f"Students with a retention of exactly {share}: percentage of {replicates:,} samples that are certified and refuted; at most "
        f"{100 * (1 - confidence):.0f} each are allowed (standard error {100 * (0.05 * 0.95 / replicates) ** 0.5:.2f}). "
        "The last column is the percentage certified by a plain t-test at each look, each at the full level, with the first budget.\n"
    )
    plans = [Plan.of(share, confidence, budget) for budget in (500, 2000)]
    say("| returns | " + " | ".join(f"certified, {plan.looks[-1]:,} | refuted, {plan.looks[-1]:,}" for plan in plans) + " | plain t |")
    say("|---|" + "---:|" * (2 * len(plans) + 1))
    for name, population in POPULATIONS.items():
        cells = []
        for plan in plans:
            verdicts, _ = simulate(population, share, plan, replicates=replicates)
            cells += [f"{100 * (verdicts == 1).mean():.1f}", f"{100 * (verdicts == -1).mean():.1f}"]
        plain = naive_certifications(population, plans[0], replicates=replicates)
        say(f"| {name} | " + " | ".join(cells) + f" | {100 * plain:.1f} |")
    say("\n## Power and episodes\n")
    say(
        f"Students with the retention in the first column, tested for {share} with a budget of 2,000 episodes, for returns "
        f"“normal, unpaired” and “falls or not, unpaired”, {replicates // 4:,} samples. "
        "Fixed: the same test with a single look at 2,000 episodes.\n"
    )
    say("| retention | returns | certified % | fixed % | refuted % | fixed % | mean episodes |")
    say("|---:|---|---:|---:|---:|---:|---:|")
    fixed = Plan.at((2000,), share, confidence)
    for truth in (0.8, 0.9, 0.93, 0.95, 0.97, 0.98, 1.0):
        for name in ("normal, unpaired", "falls or not, unpaired"):
            verdicts, episodes = simulate(POPULATIONS[name], truth, plans[1], replicates=replicates // 4)
            once, _ = simulate(POPULATIONS[name], truth, fixed, replicates=replicates // 4)
            shares = [f"{100 * (found == sign).mean():.1f}" for sign in (1, -1) for found in (verdicts, once)]
            say(f"| {truth} | {name} | " + " | ".join(shares) + f" | {episodes.mean():.0f} |")
    say("\n## Coverage of the interval\n")
    sizes = (100, 300)
    few = replicates // 16
    say(
        f"Percentage of {replicates:,} samples in which the 95 % interval contains the true retention of 0.9 (standard error "
        f"{100 * (0.05 * 0.95 / replicates) ** 0.5:.2f}); in brackets, percentages in which the truth lies below and above it (nominal: "
        f"2.5 each). Percentile bootstrap: {few} samples.\n"
    )
    say("| returns | " + " | ".join(f"{size} episodes | bootstrap" for size in sizes) + " |")
    say("|---|" + "---:|" * (2 * len(sizes)))
    for name, population in POPULATIONS.items():
        cells = []
        for size in sizes:
            for below, above in (
                coverage(population, 0.9, size, replicates=replicates),
                bootstrap_coverage(population, 0.9, size, replicates=few),
            ):
                cells.append(f"{100 * (1 - below - above):.1f} ({100 * below:.1f}, {100 * above:.1f})")
        say(f"| {name} | " + " | ".join(cells) + " |")
    say("\n## Suites\n")
    say(
        f"Percentage of {few} suites in which the 95 % interval over episodes contains the truth; 16 teachers with 100 episodes each, "
        "returns “normal, paired”; in brackets, the same for plain percentile intervals.\n"
    )
    say("| students | " + " | ".join(name.replace("_", " ") for name in OF_RETENTIONS) + " |")
    say("|---|" + "---:|" * len(OF_RETENTIONS))
    for name, truths in SUITES.items():
        held = suite_coverage(normal_paired, truths, 100, replicates=few).values()
        say(f"| {name} | " + " | ".join(f"{100 * basic:.1f} ({100 * percentile:.1f})" for basic, percentile in held) + " |")
    return "\n".join(lines) + "\n"
