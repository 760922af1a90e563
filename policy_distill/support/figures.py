"""Formatting of returns, with decimals that follow their size: rewards may be of the order of hundreds or of hundredths."""

from __future__ import annotations

import math


def return_text(value: float) -> str:
    """``281.8``, ``-1.43``, ``0.177``: one decimal from 10 on, three significant digits below."""
    return format(value, _form(value))


def spread_text(mean: float, std: float) -> str:
    """``281.8 ± 21.5``, ``0.177 ± 0.021``: both with the decimals of the larger one."""
    form = _form(max(abs(mean), abs(std)))
    return f"{mean:{form}} ± {std:{form}}"


def _form(value: float) -> str:
    size = abs(value)
    if not math.isfinite(size) or size == 0 or size >= 10:
        return "z.1f"  # z: no minus sign before a zero
    return f"z.{2 - math.floor(math.log10(size))}f" if size >= 1e-4 else ".3g"
