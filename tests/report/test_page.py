"""The building blocks of a page: nothing that is text becomes markup, and nothing is fetched."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from policy_distill.report import page
from policy_distill.report.drawing import COLOURS

VOID = {"meta", "br", "img", "use", "path"}


class Outline(HTMLParser):
    """Checks that elements are closed in the order in which they were opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)


def cells(text: str) -> list[list[str]]:
    """Of each row of each table, without markup."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text, re.DOTALL)
    return [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]


def check_alone(text: str) -> None:
    """The page refers to nothing outside it and runs nothing."""
    assert not re.search(r"<script|<link|<iframe|@import|\son\w+=", text)
    assert not re.findall(r'(?:src|href)="(?!#|data:)[a-z]+:', text)
    assert not re.search(r"url\((?!#)", text)


def test_a_document_is_complete_and_alone():
    text = page.document("a <b>", page.section("One", page.paragraph("x")), "")
    Outline(text)
    check_alone(text)
    assert "<title>a &lt;b&gt;</title>" in text
    assert 'name="viewport"' in text
    for name in COLOURS:
        assert text.count(f"--{name}:") == 2, "once for light, once for dark"
    assert "prefers-color-scheme:dark" in text


def test_text_is_escaped_and_markup_is_not():
    assert page.paragraph("<i>") == "<p>&lt;i&gt;</p>"
    assert page.paragraph(page.Markup("<i></i>"), "soft") == '<p class="soft"><i></i></p>'
    assert page.link('a"b', "<").text == '<a href="a&quot;b">&lt;</a>'
    for made in (page.section("<x>", "y"), page.tiles([("<x>", "<x>", "<x>")]), page.plot("", "<x>"), page.details("<x>", "y")):
        assert "<x>" not in made
    assert cells(page.table(("<x>",), [("<x>",)])) == [["&lt;x&gt;"], ["&lt;x&gt;"]]


def test_what_is_empty_is_nothing():
    assert page.section("x", "", "") == page.table(("x",), []) == page.details("x", "") == page.beside("", "") == ""


def test_a_table_sets_numbers_flush_right_and_marks_rows():
    text = page.table(("name", "figure"), [("a", "1"), ("b", "2")], numbers=(1,), marked=(1,))
    assert cells(text) == [["name", "figure"], ["a", "1"], ["b", "2"]]
    assert '<td>a</td><td class="n">1</td>' in text
    assert '<tr class="on"><td>b</td>' in text
    assert text.count('class="on"') == 1


def test_shares_of_a_bar_are_parts_of_the_whole():
    text = page.shares([("train", 30.0, "30 s"), ("rest", 10.0, "10 s")], ["student", "grid"])
    assert re.findall(r"width:([\d.]+)%;background:var\(--(\w+)\)", text) == [("75.00", "student"), ("25.00", "grid")]
    assert cells(text) == [["train", "30 s", "75%"], ["rest", "10 s", "25%"]]
