import pytest

from policy_distill.support.figures import return_text, spread_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (281.84, "281.8"), (-10.04, "-10.0"), (-1.434, "-1.43"), (0.177, "0.177"), (-0.0037, "-0.00370"), (0.05, "0.0500"),
        (2.6e-7, "2.6e-07"), (0.0, "0.0"), (-0.0, "0.0"), (float("nan"), "nan"), (float("-inf"), "-inf"), (123456.0, "123456.0"),
    ],
)  # fmt: skip
def test_a_return_keeps_three_digits(value, text):
    assert return_text(value) == text


def test_mean_and_spread_have_the_same_decimals():
    assert spread_text(281.84, 1.52) == "281.8 ± 1.5"
    assert spread_text(0.177, 0.0213) == "0.177 ± 0.021"
    assert spread_text(-0.00386, 0.00401) == "-0.00386 ± 0.00401"
    assert spread_text(0.02, 31.5) == "0.0 ± 31.5"
    assert spread_text(500.0, 0.0) == "500.0 ± 0.0"
