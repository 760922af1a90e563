"""Building blocks of a self-contained HTML page: no network, no scripts; responsive, in the system's light or dark mode."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from policy_distill.config.printable import printable
from policy_distill.report.drawing import COLOURS

_VARIABLES = ["".join(f"--{name}:{pair[mode]};" for name, pair in COLOURS.items()) for mode in (0, 1)]
STYLE = (
    ":root{color-scheme:light dark;--font:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;--page:#f4f6f9;"
    f"--kept:#15803e;--open:#a35a00;--lost:#bf1f2f;{_VARIABLES[0]}}}"
    f"@media(prefers-color-scheme:dark){{:root{{--page:#0f131a;--kept:#4bdb81;--open:#f0b04a;--lost:#ff7b86;{_VARIABLES[1]}}}}}"
    """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.55 var(--font)}
main{max-width:1200px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:26px;line-height:1.25;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:18px;margin:0 0 10px}
h3{font-size:14px;margin:18px 0 6px}
p{margin:0 0 10px;max-width:76ch}
a{color:var(--teacher)}
.soft{color:var(--muted)}
.small{font-size:13px}
section{background:var(--surface);border:1px solid var(--grid);border-radius:10px;padding:20px;margin-top:16px}
.verdict{border-left:5px solid var(--level)}
.verdict p:first-child{font-size:19px;line-height:1.4;font-weight:600}
.verdict b{color:var(--level)}
.verdict p:last-child{margin:0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:16px 0 0}
.tiles div{background:var(--surface);border:1px solid var(--grid);border-radius:10px;padding:12px 14px}
.tiles dt{color:var(--muted);font-size:13px}
.tiles dd{margin:0;font-size:22px;font-weight:600;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.tiles dd span{display:block;font-size:12.5px;font-weight:400;color:var(--muted)}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:20px}
details+.plots{margin-top:20px}
figure{margin:0;min-width:0}
figure svg,figure img{display:block;width:100%;height:auto}
figure.wide div{overflow-x:auto}
figure.wide svg{max-width:900px;min-width:520px}
figure.one svg{max-width:540px}
figcaption{font-size:13px;color:var(--muted);margin-top:6px;max-width:76ch}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:5px 12px 5px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--grid)}
th{color:var(--muted);font-weight:500;font-size:13px;white-space:nowrap}
td:last-child,th:last-child{padding-right:0}
td.n,th.n{text-align:right;white-space:nowrap}
tr.on td{font-weight:600}
details{margin-top:14px}
summary{cursor:pointer;color:var(--teacher);margin-bottom:8px}
.bar{display:flex;height:22px;border-radius:5px;overflow:hidden;gap:2px}
.bar i{display:block;min-width:2px}
.key{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:6px}
pre{background:var(--page);border-radius:6px;padding:10px 12px;overflow-x:auto;font-size:13px;margin:0 0 10px}
ul{margin:0;padding-left:20px}
footer{color:var(--muted);font-size:13px;margin-top:20px}
@media(max-width:600px){main{padding:20px 12px 40px}section{padding:14px}h1{font-size:22px}.verdict p:first-child{font-size:17px}
.tiles{grid-template-columns:1fr 1fr}.tiles dd{font-size:19px}}
@media print{body{background:none}section{break-inside:avoid}}
"""
)


@dataclass(frozen=True)
class Markup:
    """Text that is already HTML."""

    text: str


Cell = str | Markup


def escaped(text: str) -> str:
    """``text`` escaped for HTML; control characters are shown as escapes."""
    return html.escape(printable(text))


def text_of(cell: Cell) -> str:
    """HTML of a cell; anything but ``Markup`` is escaped."""
    return cell.text if isinstance(cell, Markup) else escaped(cell)


def document(title: str, *parts: str) -> str:
    """The complete HTML page."""
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}</style>"
    )
    body = "\n".join(part for part in parts if part)
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n'


def section(title: str, *parts: str) -> str:
    """A box with a heading; empty if all parts are empty."""
    inner = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escaped(title)}</h2>\n{inner}\n</section>" if inner else ""


def paragraph(cell: Cell, kind: str = "") -> str:
    """A paragraph; ``kind`` is its CSS class."""
    return f'<p class="{kind}">{text_of(cell)}</p>' if kind else f"<p>{text_of(cell)}</p>"


def link(target: str, label: str | None = None) -> Markup:
    """A relative link."""
    return Markup(f'<a href="{escaped(target)}">{escaped(label or target)}</a>')


def code(text: str) -> Markup:
    return Markup(f"<code>{escaped(text)}</code>")


def table(header: Sequence[str], rows: Sequence[Sequence[Cell]], *, numbers: Sequence[int] = (), marked: Sequence[int] = ()) -> str:
    """A table that scrolls horizontally in a narrow window; empty without rows.

    Args:
        header: names of the columns; () for none.
        rows: cells of each row.
        numbers: indices of right-aligned columns.
        marked: indices of bold rows.
    """
    if not rows:
        return ""

    def cells(kind: str, values: Sequence[Cell]) -> str:
        opening = [f'<{kind} class="n">' if column in numbers else f"<{kind}>" for column in range(len(values))]
        return "".join(f"{start}{text_of(value)}</{kind}>" for start, value in zip(opening, values, strict=True))

    head = f"<thead><tr>{cells('th', header)}</tr></thead>" if header else ""
    opening = ['<tr class="on">' if index in marked else "<tr>" for index in range(len(rows))]
    body = "\n".join(f"{start}{cells('td', row)}</tr>" for start, row in zip(opening, rows, strict=True))
    return f'<div class="scroll"><table>{head}<tbody>\n{body}\n</tbody></table></div>'


def tiles(figures: Sequence[tuple[str, str, str]]) -> str:
    """Key figures: name, value, and an explanation below."""
    items = (f"<div><dt>{escaped(a)}</dt><dd>{escaped(b)}<span>{escaped(c)}</span></dd></div>" for a, b, c in figures)
    return f'<dl class="tiles">{"".join(items)}</dl>'


def plot(drawing: str, caption: str, kind: str = "") -> str:
    """An ``<svg>`` or ``<img>`` with its caption."""
    opening = f'<figure class="{kind}">' if kind else "<figure>"
    return f"{opening}<div>{drawing}</div><figcaption>{escaped(caption)}</figcaption></figure>"


def beside(*plots: str) -> str:
    """Plots side by side if the window is wide enough."""
    return f'<div class="plots">{"".join(plots)}</div>' if any(plots) else ""


def details(title: str, inner: str) -> str:
    """A collapsed section; empty if ``inner`` is."""
    return f"<details><summary>{escaped(title)}</summary>{inner}</details>" if inner else ""


def shares(parts: Sequence[tuple[str, float, str]], colours: Sequence[str]) -> str:
    """A stacked bar and a table as its legend: name, amount, and the amount as text."""
    total = sum(amount for _, amount, _ in parts)
    bars = "".join(
        f'<i style="width:{100 * amount / total:.2f}%;background:var(--{colour})"></i>'
        for (_, amount, _), colour in zip(parts, colours, strict=True)
    )
    rows = [
        (Markup(f'<span class="key" style="background:var(--{colour})"></span>{escaped(name)}'), words, f"{amount / total:.0%}")
        for (name, amount, words), colour in zip(parts, colours, strict=True)
    ]
    return f'<div class="bar" role="presentation">{bars}</div>' + table((), rows, numbers=(1, 2))
