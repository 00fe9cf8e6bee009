"""The report's page: its style sheet, its frame, and the few kinds of HTML it is made of.

Everything that comes from data passes `data` or `cell` and is escaped there, its controls drawn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from chatbench.corpus.reports.charts import bar, count, cut, escape, share

ROWS_IN_VIEW = 12
WIDE, NARROW = 920, 340  # px, the two drawings of a chart
_LONGEST = 240  # columns of a string from the data; 10,000 characters of a file name help nobody

STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf6;--card:#fff;--ink:#20262b;--soft:#5d676f;
--line:#e2dfd6;--train:#1f6f78;--val:#4f9a94;--test:#8a7fb8;--dropped:#b98a2f;--failed:#b4513f;
--bar:#46818a;--wash:#eef1ee}
@media (prefers-color-scheme:dark){:root{--paper:#14181b;--card:#1b2024;--ink:#e4e6e3;
--soft:#9aa5ab;--line:#30383d;--train:#4fa8b0;--val:#7cc0b8;--test:#aea3dc;--dropped:#d3a950;
--failed:#d9806d;--bar:#5b9fa8;--wash:#232a2e}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.6 system-ui,-apple-system,
"Segoe UI",Roboto,"Noto Sans","PingFang SC","Microsoft YaHei","Noto Sans CJK SC",
"Source Han Sans SC","Noto Sans SC",sans-serif;-webkit-text-size-adjust:100%}
main,header,footer{max-width:1000px;margin:0 auto;padding:0 40px}
header{padding-top:56px}
h1{font-size:40px;line-height:1.15;margin:4px 0 12px;font-weight:650;letter-spacing:-.015em;
overflow-wrap:anywhere}
h2{font-size:22px;line-height:1.3;margin:0 0 4px;font-weight:620;letter-spacing:-.005em}
h3{font-size:15px;margin:26px 0 6px;font-weight:620}
p{margin:6px 0 14px;max-width:68ch}
.eyebrow{color:var(--soft);font-size:13px;letter-spacing:.09em;text-transform:uppercase;margin:0}
.lead{font-size:18px;color:var(--soft)}
.soft,figcaption,.note{color:var(--soft)}.note{font-size:14px}
nav{margin:22px 0 0;font-size:14px;line-height:2}
nav a{color:var(--soft);text-decoration:none;margin-right:18px;white-space:nowrap;
border-bottom:1px solid var(--line)}
nav a:hover,nav a:focus{color:var(--ink);border-color:var(--ink)}
.tiles{display:flex;flex-wrap:wrap;gap:1px;margin:26px 0 0;padding:0;overflow:hidden;
border:1px solid var(--line);border-radius:10px;background:var(--line)}
.tiles div{flex:1 1 0;background:var(--card);padding:16px 18px 14px}
.many div{flex-basis:30%}
.tiles dt{color:var(--soft);font-size:13px}
.tiles dd{margin:2px 0 0;font-size:25px;line-height:1.2;font-weight:600;
font-variant-numeric:tabular-nums;letter-spacing:-.01em;white-space:nowrap}
.tiles small{display:block;font-size:13px;font-weight:400;color:var(--soft);margin-top:3px;
letter-spacing:0}
section{margin:52px 0 0;padding-top:26px;border-top:1px solid var(--line)}
figure{margin:18px 0}
figcaption{font-size:14px;margin-top:4px;max-width:80ch}
.chart{display:block;max-width:100%;height:auto;font-size:14px}
.chart text{fill:var(--ink);font-variant-numeric:tabular-nums}
.chart .number,.chart .tick{fill:var(--soft);font-size:13px}
.chart .strong,.chart .limit-name{font-weight:620}
.narrow{display:none}
.ribbon{opacity:.3}.ribbon:hover{opacity:.5}
.read{fill:var(--soft)}.kept,.train{fill:var(--train)}.val{fill:var(--val)}.test{fill:var(--test)}
.dropped{fill:var(--dropped)}.failed{fill:var(--failed)}.plain,.column{fill:var(--bar)}
.axis{stroke:var(--soft);stroke-width:1}.limit{stroke:var(--ink);stroke-width:1.2;
stroke-dasharray:4 4;fill:none}.mark{fill:var(--ink)}
.scroll{overflow-x:auto;margin:10px 0}
table{border-collapse:collapse;width:100%;font-size:15px;font-variant-numeric:tabular-nums}
th{font-weight:500;color:var(--soft);font-size:13px;text-align:left;vertical-align:bottom}
th,td{padding:6px 14px 6px 0;border-bottom:1px solid var(--line)}
td{vertical-align:baseline}
tr>:last-child{padding-right:0}
.n{text-align:right;white-space:nowrap}
th.n{white-space:normal}
td.label{overflow-wrap:anywhere;min-width:110px}
td.drawn{width:34%;min-width:70px;vertical-align:middle}
.bar{display:block;width:100%;height:10px}
.kind{font-size:12px;color:var(--soft);border:1px solid var(--line);border-radius:9px;
padding:1px 8px;white-space:nowrap}
.kind.lost{border-style:dashed;border-color:var(--soft)}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:0 48px}
.two>*{min-width:0}
code,.quote{font:13px/1.55 ui-monospace,SFMono-Regular,Menlo,Consolas,"Noto Sans Mono CJK SC",
"PingFang SC","Microsoft YaHei",monospace;overflow-wrap:anywhere}
.quotes{list-style:none;margin:2px 0 12px;padding:0 0 0 14px;border-left:3px solid var(--line)}
.quotes li{margin:3px 0}
.chips{list-style:none;margin:8px 0;padding:0;display:flex;flex-wrap:wrap;gap:6px}
.chips li{background:var(--wash);border:1px solid var(--line);border-radius:6px;padding:1px 9px;
font-size:14px;overflow-wrap:anywhere}
details{margin:10px 0}
summary{cursor:pointer;color:var(--soft);font-size:14px;padding:3px 0}
summary:hover{color:var(--ink)}
footer{margin-top:56px;padding-top:18px;padding-bottom:56px;font-size:13px;color:var(--soft)}
@media (max-width:700px){main,header,footer{padding-left:20px;padding-right:20px}
header{padding-top:32px}h1{font-size:30px}.lead{font-size:16px}
.tiles div{flex-basis:40%;padding:12px 14px}.tiles dd{font-size:21px}
.wide{display:none}.narrow{display:block}section{margin-top:38px;padding-top:20px}
td.drawn{width:22%;min-width:44px}th,td{padding-right:10px}.two{grid-template-columns:1fr}}
@media print{:root{--paper:#fff;--card:#fff;--ink:#000;--soft:#333;--line:#aaa;--wash:#fff}
nav{display:none}section,figure,tr{break-inside:avoid}body{font-size:12px}
.wide{display:block}.narrow{display:none}.ribbon{stroke:#333;stroke-width:.5}}
"""


class Html(str):
    """Markup that is finished; any other string is data and gets escaped."""


class Section(NamedTuple):
    """`body` is finished HTML."""

    anchor: str
    title: str
    body: str


def data(text: str, longest: int = _LONGEST) -> Html:
    """A string from the data: cut, its controls drawn, escaped, and kept from turning the
    direction of what stands around it."""
    return Html(f"<bdi>{escape(cut(text, longest))}</bdi>")


def document(title: str, head: str, sections: Sequence[Section], foot: str, style: str = "") -> str:
    """The whole page; `head` and `foot` are finished HTML, `style` adds to the style sheet."""
    links = "".join(f'<a href="#{s.anchor}">{escape(s.title)}</a>\n' for s in sections)
    bodies = "".join(
        f'<section id="{s.anchor}">\n<h2>{escape(s.title)}</h2>\n{s.body}</section>\n'
        for s in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{escape(cut(title, 120))}</title>\n<style>{STYLE}{style}</style>\n</head>\n"
        "<body>\n"
        f'<header>\n{head}<nav aria-label="Sections">\n{links}</nav>\n</header>\n'
        f"<main>\n{bodies}</main>\n<footer>\n{foot}</footer>\n</body>\n</html>\n"
    )


def paragraph(text: str, style: str = "") -> str:
    """`text` is our own words, or Html."""
    inner = text if isinstance(text, Html) else escape(text)
    return f'<p class="{style}">{inner}</p>\n' if style else f"<p>{inner}</p>\n"


def tiles(entries: Iterable[tuple[str, str, str]]) -> str:
    """Label, value, and a small line below it."""
    entries = list(entries)
    cells = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}"
        + (f"<small>{escape(small)}</small>" if small else "")
        + "</dd></div>\n"
        for label, value, small in entries
    )
    style = "tiles many" if len(entries) > 4 else "tiles"
    return f'<dl class="{style}">\n{cells}</dl>\n'


def figure(draw: Callable[[int], str], caption: str) -> str:
    """A chart drawn for wide pages and for telephones; the page shows one of the two."""
    return (
        f'<figure><div class="wide">{draw(WIDE)}</div>\n<div class="narrow">{draw(NARROW)}</div>\n'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def table(headers: Sequence[str], rows: Iterable[Sequence[str | int | float]]) -> str:
    """Numbers and their headers are right-aligned, strings escaped; Html stays as it is."""
    rows = [list(row) for row in rows]
    numeric = [
        bool(rows) and all(not isinstance(row[n], str) or _is_figure(row[n]) for row in rows)
        for n in range(len(headers))
    ]
    heads = "".join(
        f'<th scope="col" class="n">{escape(h)}</th>' if right
        else f'<th scope="col">{escape(h)}</th>'
        for h, right in zip(headers, numeric, strict=True)
    )  # fmt: skip
    lines = "".join(
        f"<tr>{''.join(_cell(v, right) for v, right in zip(row, numeric, strict=True))}</tr>\n"
        for row in rows
    )
    return (
        f'<div class="scroll"><table>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{lines}</tbody></table></div>\n"
    )


class Figure(str):
    """A number already written out, such as a percentage."""


def _is_figure(value: object) -> bool:
    return isinstance(value, Figure)


def _cell(value: str | float, right: bool) -> str:
    if isinstance(value, Html):
        style = "drawn" if value.startswith("<svg") else "label"
        return f'<td class="{style}">{value}</td>'
    if isinstance(value, Figure):
        return f'<td class="n">{escape(value)}</td>'
    if isinstance(value, str):
        return f'<td class="label">{data(value)}</td>'
    return f'<td class="n">{count(value)}</td>' if right else f"<td>{count(value)}</td>"


def bars(
    label: str, unit: str, amounts: Iterable[tuple[str, int]], whole: int,
    kinds: Iterable[str] = (),
) -> str:  # fmt: skip
    """A table with a bar in each row: name, bar, number, share of `whole`. `kinds` colour the
    bars one by one."""
    entries = list(amounts)
    colours = [*kinds] or ["plain"] * len(entries)
    largest = max((amount for _, amount in entries), default=0)
    rows: list[list[str | int | float]] = [
        [name if isinstance(name, Html) else data(name), Html(bar(amount, largest, kind)), amount,
         Figure(share(amount, whole))]
        for (name, amount), kind in zip(entries, colours, strict=True)
    ]  # fmt: skip
    return table([label, "", unit, "share"], rows)


def long_bars(label: str, unit: str, amounts: list[tuple[str, int]]) -> str:
    """`bars` of all of them, those beyond the first dozen folded."""
    whole = sum(amount for _, amount in amounts)
    body = bars(label, unit, amounts[:ROWS_IN_VIEW], whole)
    if rest := amounts[ROWS_IN_VIEW:]:
        body += folded(f"{count(len(rest))} more", bars(label, unit, rest, whole))
    return body


def ranked(amounts: dict[str, int]) -> list[tuple[str, int]]:
    """Largest first, equal ones by name."""
    return sorted(amounts.items(), key=lambda entry: (-entry[1], entry[0]))


def quotes(lines: Iterable[str]) -> str:
    """Excerpts of the data."""
    return (
        '<ul class="quotes">'
        + "".join(f'<li class="quote">{data(line)}</li>\n' for line in lines)
        + "</ul>\n"
    )


def chips(entries: Iterable[Html], language: str = "") -> str:
    """Short pieces of data in a row; `language` chooses the glyphs of Han characters."""
    tag = f' lang="{language}"' if re.fullmatch("[a-z]{2,3}", language) else ""
    return f'<ul class="chips"{tag}>' + "".join(f"<li>{e}</li>\n" for e in entries) + "</ul>\n"


def folded(title: str, body: str, *, is_open: bool = False) -> str:
    """`body`, behind a line that opens it."""
    mark = " open" if is_open else ""
    return f"<details{mark}><summary>{data(title)}</summary>\n{body}</details>\n"
