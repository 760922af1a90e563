"""Statistics of returns as pure functions of arrays. docs/statistics.md has their simulated error rates."""

from policy_distill.evaluation.statistics.aggregates import geometric_mean, interquartile_mean, optimality_gap
from policy_distill.evaluation.statistics.intervals import Retention, retention, retention_of_means, retention_standard_error
from policy_distill.evaluation.statistics.means import contrast, episodes_to_show, shows_positive_mean
from policy_distill.evaluation.statistics.sequential import Decision, Plan, decide, look_schedule, spending_boundaries
from policy_distill.evaluation.statistics.suites import Aggregate, suite_aggregates

__all__ = [
    "Aggregate",
    "Decision",
    "Plan",
    "Retention",
    "contrast",
    "decide",
    "episodes_to_show",
    "geometric_mean",
    "interquartile_mean",
    "look_schedule",
    "optimality_gap",
    "retention",
    "retention_of_means",
    "retention_standard_error",
    "shows_positive_mean",
    "spending_boundaries",
    "suite_aggregates",
]
