"""A figure as SVG for a page, and as pixels."""

from __future__ import annotations

import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np

from policy_distill.report.drawing import COLOURS, LIGHT, blank, styled, to_pixels, to_svg


@styled
def drawn(name: str = "student"):
    figure, axes = blank(3, 2)
    axes.plot([0, 1], [0, 1], "o-", color=LIGHT[name])
    axes.set_xlabel("a word")
    return figure


def test_the_svg_is_well_formed_and_says_what_it_shows():
    root = ElementTree.fromstring(to_svg(drawn(), label='one "quoted" & more').replace("xlink:", ""))
    assert root.get("aria-label") == 'one "quoted" & more'
    assert root.get("width") is None  # the page says how wide
    assert "a word" in "".join(root.itertext())


def test_colours_are_the_page_s():
    text = to_svg(drawn("polish"), label="x")
    assert "var(--polish)" in text
    assert not re.findall(r"#[0-9a-f]{6}", text)
    assert "var(--student)" not in text
    assert len(set(LIGHT.values())) == len(COLOURS)


def test_two_figures_of_a_page_share_no_id_and_each_reference_has_its_own():
    one, other = to_svg(drawn(), label="one"), to_svg(drawn(), label="other")
    ids = [re.findall(r'\bid="([^"]+)"', text) for text in (one, other)]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', one)) == set(ids[0])


def test_the_same_figure_gives_the_same_text():
    assert to_svg(drawn(), label="x") == to_svg(drawn(), label="x")


def test_pixels_are_the_figure_on_a_light_ground():
    pixels = to_pixels(drawn(), dots_per_inch=100)
    assert (pixels.shape, pixels.dtype) == ((200, 300, 3), np.uint8)
    assert pixels[0, 0].tolist() == [0xFE, 0xFE, 0xFE]
    student = np.array([int(LIGHT["student"][place : place + 2], 16) for place in (1, 3, 5)])
    assert (np.abs(pixels - student).max(axis=-1) < 8).any()


def test_nobody_else_s_plots_are_touched():
    import matplotlib

    before = dict(matplotlib.rcParams)
    drawn()
    assert dict(matplotlib.rcParams) == before


def test_matplotlib_is_imported_by_what_draws_alone():
    """It takes a second, which nobody pays who only trains or reads help."""
    program = "import sys, policy_distill.pipeline.distill; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
