"""Reports of a run or a suite as Markdown and HTML with plots. All numbers come from result.json or suite.json."""

from policy_distill.report.rows import (
    AGGREGATE_COLUMNS,
    AGGREGATE_NOTE,
    aggregate_rows,
    certificate_text,
    retention_text,
    summary_rows,
    summary_table,
)
from policy_distill.report.run_page import VIDEO
from policy_distill.report.suite_page import write_suite_report
from policy_distill.report.write import add_to_report, write_report

__all__ = [
    "AGGREGATE_COLUMNS",
    "AGGREGATE_NOTE",
    "VIDEO",
    "add_to_report",
    "aggregate_rows",
    "certificate_text",
    "retention_text",
    "summary_rows",
    "summary_table",
    "write_report",
    "write_suite_report",
]
