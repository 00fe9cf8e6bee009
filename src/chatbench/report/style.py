"""What the pages of runs and evaluations add to the style sheet and the kinds of HTML of all
reports. Colours of lines stay apart for people who see few of them, in light, dark and print."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from chatbench.corpus.reports.charts import escape
from chatbench.corpus.reports.page import NARROW, Html, data, document, figure
from chatbench.corpus.reports.page import Section as Section

HALF = 440  # px, a drawing of which two stand side by side
MARK = "Made by chatbench"
Row = list[str | int | float]

COLOURS = ("#0068a8", "#c84e00", "#00805c", "#b0468a", "#7a6000", "#2f93c8", "#7b4fc4", "#444b50")
_ON_DARK = ("#5ab4ec", "#ff9a4d", "#3ecf9e", "#eda0cf", "#e3d04c", "#a8d8f4", "#bda2ee", "#c9cfd3")
_DASHES = ("none", "8 3", "3 3", "10 3 2 3", "none", "8 3", "3 3", "10 3 2 3")


def _colours(values: Sequence[str]) -> str:
    return ":root{" + ";".join(f"--s{n}:{value}" for n, value in enumerate(values)) + "}"


STYLE = (
    _colours(COLOURS)
    + "\n@media (prefers-color-scheme:dark){" + _colours(_ON_DARK) + "}\n"
    + "".join(
        f".line.s{n}{{stroke:var(--s{n});stroke-dasharray:{dash}}}.dot.s{n}{{fill:var(--s{n})}}\n"
        for n, dash in enumerate(_DASHES)
    )
    + """.line{fill:none;stroke-width:1.9;stroke-linejoin:round}
.grid{stroke:var(--line);stroke-width:1;fill:none}
.leader{stroke:var(--soft);stroke-width:.7;fill:none;opacity:.55}
.skip{stroke:var(--failed);stroke-width:2}
.chart .axis-name{fill:var(--soft);font-size:13px;font-style:italic}
.chart .name{font-size:13px}
.whisker{stroke:var(--bar);stroke-width:2;fill:none}
.drawn .chart{min-width:80px}
.cell{stroke:var(--paper);stroke-width:1;fill:var(--train)}
.chart .on-dark{fill:var(--paper);font-size:12px}.chart .on-light{fill:var(--ink);font-size:12px}
.film{list-style:none;display:flex;gap:10px;overflow-x:auto;margin:8px 0 22px;padding:0 0 8px}
.film li{flex:0 0 230px;background:var(--card);border:1px solid var(--line);border-radius:8px;
padding:9px 12px}
.film b{display:block;font-size:12px;font-weight:500;color:var(--soft)}
.film .prompt{color:var(--soft)}
.chain{list-style:none;margin:10px 0;padding:0;display:flex;flex-wrap:wrap;gap:10px 26px}
.chain li{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:9px 14px;
position:relative;max-width:300px;overflow-wrap:anywhere}
.chain li+li:before{content:"\\2192";position:absolute;left:-20px;top:9px;color:var(--soft)}
.chain small{display:block;color:var(--soft)}
main a{color:inherit}
.case{border-left:3px solid var(--line);padding:0 0 0 14px;margin:0 0 18px}
.case dl{display:grid;grid-template-columns:6.5em 1fr;gap:3px 10px;margin:0;font-size:15px}
.case dt{color:var(--soft);font-size:13px;padding-top:2px}
.case dd{margin:0;overflow-wrap:anywhere;white-space:pre-line}
.changed{font-weight:620}
@media (max-width:700px){.case dl{grid-template-columns:1fr}.case dd{margin-bottom:6px}
.film li{flex-basis:200px}}
@media print{""" + _colours(COLOURS) + """
.film{flex-wrap:wrap;overflow:visible}details>*{display:block}}
"""
)  # fmt: skip


def page(title: str, head: str, sections: Sequence[Section], source: str) -> str:
    """The whole page; `source` says in our words where its numbers lie."""
    foot = f"<p>{MARK}. {escape(source)}</p>\n"
    return document(title, head, [s for s in sections if s.body], foot, style=STYLE)


def head(kind: str, title: str, lead: str, tiles: str) -> str:
    """The top of a page; `tiles` is finished HTML, the others are plain text."""
    return (
        f'<p class="eyebrow">{escape(kind)}</p>\n<h1>{data(title)}</h1>\n'
        f'<p class="lead">{data(lead, 400)}</p>\n{tiles}'
    )


def drawing(draw: Callable[[int], str], caption: str = "") -> str:
    """A chart over the whole width, or nothing where `draw` has nothing to show."""
    return figure(draw, caption) if draw(NARROW) else ""


def panels(draws: Sequence[Callable[[int], str]]) -> str:
    """Charts two beside each other, those left out that have nothing to show."""
    shown = "".join(
        f'<figure><div class="wide">{draw(HALF)}</div>\n<div class="narrow">{draw(NARROW)}</div>'
        "</figure>\n"
        for draw in draws
        if draw(NARROW)
    )
    return f'<div class="two">\n{shown}</div>\n' if shown else ""


def link(words: str, target: Path, page: Path | None) -> Html:
    """A link from the file `page` to the file `target`, relative, so that both can be moved
    together; plain words where either is missing."""
    if page is None or not target.is_file():
        return data(words)
    path = os.path.relpath(target.absolute(), page.absolute().parent)
    return Html(f'<a href="{escape(quote(Path(path).as_posix()))}">{data(words)}</a>')
