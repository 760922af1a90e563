"""Output formats of a plot: SVG whose colours follow the page's, and pixels for TensorBoard.

matplotlib draws both from one description, which is why it and no drawing code of our own does it. It is imported when something is
drawn: at the end of a run, not by those who only train. Its object interface keeps no global state, and needs no display.
"""

from __future__ import annotations

import functools
import html
import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")
COLOURS = {
    "ink": ("#1c2330", "#e7eaf0"),
    "muted": ("#667084", "#99a3b5"),
    "grid": ("#e2e6ed", "#2d3542"),
    "surface": ("#fefefe", "#171c24"),
    "teacher": ("#2463ab", "#78b1f4"),
    "student": ("#c2420d", "#fb923d"),
    "random": ("#7c8697", "#8a94a6"),
    "generation": ("#15803e", "#4bdb81"),
    "polish": ("#7b3aed", "#b695f6"),
}
"""Name -> colour on a light page, colour on a dark one. Plots are drawn in the first; in SVG it becomes the page's ``--name``."""
LIGHT = {name: light for name, (light, _) in COLOURS.items()}
SETTINGS: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": LIGHT["muted"],
    "axes.labelcolor": LIGHT["muted"],
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.8,
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
}
"""Common matplotlib settings of all plots. Text is kept as text, in the page's font."""


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorator: draw with ``SETTINGS`` without changing matplotlib's global settings."""

    @functools.wraps(draw)
    def under_settings(*args: P.args, **kwargs: P.kwargs) -> R:
        import matplotlib

        with matplotlib.rc_context(SETTINGS):
            return draw(*args, **kwargs)

    return under_settings


def blank(width: float = 4.8, height: float = 3.3) -> tuple[Figure, Axes]:
    """A figure of ``width`` by ``height`` inches with one pair of axes.

    At 72 points per inch, 4.8 inches are the width of a phone's screen, where labels of 9 points are readable.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor=LIGHT["surface"])
    return figure, figure.add_subplot(facecolor="none")


def to_svg(figure: Figure, *, label: str) -> str:
    """The figure as an ``<svg>`` element for a page that defines ``--ink``, ``--teacher``, ... and ``--font``.

    Args:
        figure: figure in the colours of ``LIGHT``.
        label: alternative text for screen readers; must be unique within a page, since element ids are derived from it.

    Returns:
        SVG text, identical for identical figures.
    """
    import matplotlib

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]+")[^>]*>', rf'<svg \1 role="img" aria-label="{html.escape(label)}">', text, count=1)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)  # it would apply to the whole page
    referred = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in referred else "", text)
    text = re.sub(r'font: ([^;"]*?)([\d.]+px) [^;"]+', r"font: \1\2 var(--font)", text)
    for name, light in LIGHT.items():
        text = text.replace(light, f"var(--{name})")
    return text


@styled
def to_pixels(figure: Figure, *, dots_per_inch: int = 160) -> np.ndarray:
    """The figure as an RGB image, uint8 ``[height, width, 3]``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dots_per_inch)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
