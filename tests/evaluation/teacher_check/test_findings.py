"""What was found is told worst first."""

from policy_distill.evaluation.teacher_check.findings import Finding, by_severity


def test_the_worst_comes_first_and_else_the_order_stays():
    found = [Finding(severity, topic, "", "") for severity, topic in (("note", "a"), ("stop", "b"), ("warn", "c"), ("stop", "d"))]  # type: ignore[arg-type]
    assert [finding.topic for finding in by_severity(found)] == ["b", "d", "c", "a"]


def test_a_line_says_what_is_wrong_and_how_to_fix_it():
    assert Finding("warn", "topic", "it is cold", "wear a hat").line() == "it is cold; wear a hat"
