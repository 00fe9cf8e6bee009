"""Curves as inline SVG: direct labels, few ticks, no script; colours come from the page's classes.

A line is told from the others by its colour, its dashes and its name beside its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from chatbench.corpus.reports.charts import cut, escape, width
from chatbench.report.scales import Scale, scale_for, thinned, wants_log, written

COLOURS = 8
_TOP, _BASE = 26.0, 34.0  # px above the plot, and below it for the numbers of one axis
_LETTER = 7.2  # px of a column of text at 13 px
_LINE = 16.0  # px between labels
_DOTS = 40  # as many points at most are drawn one by one
_MOST_POINTS, _MOST_NARROW = 1000, 400
_WIDE = 600  # px from which labels stand beside the lines
_LONGEST_LABEL = 24  # columns


class Line(NamedTuple):
    """`points`: (x, y), x ascending; `kind`: a class of the style sheet, such as s0."""

    label: str
    points: Sequence[tuple[float, float]]
    kind: str = "s0"


class Level(NamedTuple):
    """A value to hold the lines against, drawn across the plot."""

    label: str
    value: float


class Below(NamedTuple):
    """A further row of numbers under the axis: what it counts, and x → words."""

    name: str
    written: Callable[[float], str]


class _Plot(NamedTuple):
    left: float
    right: float
    top: float
    base: float
    x: Scale
    y: Scale

    def at(self, x: float, y: float) -> tuple[float, float]:
        return (
            self.left + self.x.place(x) * (self.right - self.left),
            self.base - self.y.place(y) * (self.base - self.top),
        )


def curves(
    title: str, lines: Sequence[Line], size: int, *, x_name: str, levels: Sequence[Level] = (),
    marks: Sequence[tuple[float, str]] = (), below: Sequence[Below] = (), height: int = 240,
    log_ratio: float = 8.0,
) -> str:  # fmt: skip
    """Lines over one x, `size` pixels wide; the y axis is logarithmic where values span more than
    `log_ratio`. `marks`: places on the x axis with their words; empty without points."""
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    values = [y for line in lines for _, y in line.points] + [level.value for level in levels]
    y = scale_for(values, log=wants_log(values, log_ratio), room=0.04)
    x = scale_for([0.0, *(x for line in lines for x, _ in line.points), *(at for at, _ in marks)])
    y_ticks = y.ticks(6)
    left = max([width(written(tick)) for tick in y_ticks], default=1) * _LETTER + 14
    named = [*(line.label for line in lines), *(level.label for level in levels)]
    if named == [title]:
        named = []  # said already
    beside = size >= _WIDE
    longest = max((min(width(name), _LONGEST_LABEL) for name in named), default=0)
    right = size - (longest * 1.1 * _LETTER + 38 if beside and named else 8)
    top = _TOP if beside else _TOP + _LINE * len(named)
    plot = _Plot(left, right, top, top + height, x, y)
    most = _MOST_POINTS if beside else _MOST_NARROW
    parts = [_words(f"{title}{', logarithmic' if y.log else ''}", 0, 14, "strong")]
    parts += _frame(plot, y_ticks, x_name, below)
    parts += [_level(plot, level) for level in levels]
    parts += [_mark(plot, at, words) for at, words in marks]
    parts += [_curve(plot, line, most) for line in lines]
    if named:
        parts += _beside(plot, lines, levels) if beside else _legend(lines, levels)
    tall = plot.base + _BASE + _LINE * len(below) + 4
    return svg(size, tall, f"{title} against {x_name}", parts)


def _frame(plot: _Plot, y_ticks: Sequence[float], x_name: str, below: Sequence[Below]) -> list[str]:
    """Grid, numbers on both axes, the name of the x axis under its numbers."""
    parts = []
    for tick in y_ticks:
        _, at = plot.at(plot.x.low, tick)
        parts.append(f'<path class="grid" d="M{plot.left:.1f} {at:.1f}H{plot.right:.1f}"/>')
        parts.append(_words(written(tick), plot.left - 6, at + 4, "tick", anchor="end"))
    parts.append(f'<path class="axis" d="M{plot.left:.1f} {plot.base:.1f}H{plot.right:.1f}"/>')
    rows = [Below(x_name, written), *below]
    ticks = _fitting(plot, rows)
    for number, row in enumerate(rows):
        y = plot.base + 17 + _LINE * number
        # The name takes the end of its row; numbers that would meet it are left out.
        end = plot.right - width(row.name) * _LETTER - 8
        for tick in ticks:
            at, _ = plot.at(tick, plot.y.low)
            words = row.written(tick)
            half = width(words) * _LETTER / 2
            if at + half < end:
                at = max(at, half)
                parts.append(_words(words, at, y, "tick", anchor="middle"))
        parts.append(_words(row.name, plot.right, y, "axis-name", anchor="end"))
    return parts


def _fitting(plot: _Plot, rows: Sequence[Below]) -> list[float]:
    """As many marks of the x axis as have room beside each other in every row."""
    for most in range(8, 1, -1):
        ticks = plot.x.ticks(most)
        broadest = (
            max((width(row.written(tick)) for row in rows for tick in ticks), default=0) * _LETTER
        )
        if len(ticks) < 2 or (plot.right - plot.left) / len(ticks) >= broadest + 14:
            return ticks
    return plot.x.ticks(1)


def _level(plot: _Plot, level: Level) -> str:
    _, y = plot.at(plot.x.low, level.value)
    return (
        f'<path class="limit" d="M{plot.left:.1f} {y:.1f}H{plot.right:.1f}">'
        f"<title>{escape(cut(level.label, 60))}: {written(level.value, 4)}</title></path>"
    )


def _mark(plot: _Plot, x: float, words: str) -> str:
    at, _ = plot.at(x, plot.y.low)
    return (
        f'<path class="skip" d="M{at:.1f} {plot.base - 9:.1f}v9"><title>{escape(cut(words, 120))}'
        "</title></path>"
    )


def _curve(plot: _Plot, line: Line, most: int) -> str:
    """The line; where there are few points each is a dot that tells its value."""
    points = [plot.at(x, y) for x, y in thinned(line.points, most)]
    title = f"<title>{escape(cut(line.label, 60))}</title>"
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    parts = [f'<path class="line {line.kind}" d="M{path}">{title}</path>'] if points[1:] else []
    if len(line.points) <= _DOTS:
        for (x, y), (at, value) in zip(points, line.points, strict=True):
            words = f"{line.label} at {written(at)}: {written(value, 5)}"
            parts.append(
                f'<circle class="dot {line.kind}" cx="{x:.1f}" cy="{y:.1f}" r="2.4"><title>'
                f"{escape(cut(words, 90))}</title></circle>"
            )
    return "".join(parts)


def _beside(plot: _Plot, lines: Sequence[Line], levels: Sequence[Level]) -> list[str]:
    """Names at the ends of their lines, moved apart where those meet."""
    wanted = [(plot.at(*line.points[-1]), line.label, line.kind) for line in lines]
    wanted += [(plot.at(plot.x.high, level.value), level.label, "") for level in levels]
    wanted.sort(key=lambda entry: entry[0][1])
    places = apart([y for (_, y), _, _ in wanted], _LINE, plot.top, plot.base)
    parts = []
    for ((x, y), label, kind), at in zip(wanted, places, strict=True):
        lead = f"M{x + 3:.1f} {y:.1f}L{plot.right + 6:.1f} {at:.1f}h6"
        parts.append(f'<path class="leader" d="{lead}"/>')
        parts.append(_swatch(plot.right + 12, at, kind))
        parts.append(_words(cut(label, _LONGEST_LABEL), plot.right + 32, at + 4, "name"))
    return parts


def apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending places, each as near to the wanted one as it can be `gap` from its neighbours;
    between `low` and `high` as far as they all fit."""
    places: list[float] = []
    for want in wanted:
        places.append(max(want, places[-1] + gap) if places else max(want, low))
    over = places[-1] - high if places else 0.0
    if over <= 0:
        return places
    last = max(high, low + gap * (len(places) - 1))
    for number in range(len(places) - 1, -1, -1):
        places[number] = last = min(places[number], last)
        last -= gap
    return places


def _legend(lines: Sequence[Line], levels: Sequence[Level]) -> list[str]:
    """On narrow pages the names stand above the plot."""
    entries = [(line.label, line.kind) for line in lines]
    entries += [(level.label, "") for level in levels]
    parts = []
    for number, (label, kind) in enumerate(entries):
        y = _TOP + _LINE * number
        parts += [_swatch(4, y, kind), _words(cut(label, 40), 26, y + 4, "name")]
    return parts


def _swatch(x: float, y: float, kind: str) -> str:
    style = f"line {kind}" if kind else "limit"
    return f'<path class="{style}" d="M{x:.1f} {y:.1f}h16"/>'


def _words(text: str, x: float, y: float, style: str, *, anchor: str = "start") -> str:
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}"{place}>{escape(text)}</text>'


def svg(size: float, height: float, title: str, parts: Sequence[str]) -> str:
    """A drawing of so many pixels."""
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {height:.0f}" '
        f'width="{size}" height="{height:.0f}" role="img"><title>{escape(title)}</title>'
        f"{''.join(parts)}</svg>"
    )
