"""Small drawings of an evaluation: intervals, a confusion matrix, a calibration curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from chatbench.corpus.reports.charts import count, cut, escape, width
from chatbench.corpus.reports.page import Html
from chatbench.report.curves import svg
from chatbench.report.scales import Scale

_LETTER = 7.0
_WIDEST_LABEL = 20  # columns
_LEGIBLE = 17.0  # px of a cell from which its number and its label are written
_DARK = 0.55  # share from which a cell's number is written light


class Bin(NamedTuple):
    """Answers of about one confidence (0..1): how many, how sure, how often right."""

    n: int
    confidence: float
    accuracy: float


def interval(value: float, low: float | None, high: float | None, scale: Scale) -> Html:
    """A dot with its whisker for a cell of a table; where the scale crosses zero, zero is drawn."""
    parts = []
    if scale.low < 0 < scale.high:
        zero = 200 * scale.place(0.0)
        parts.append(f'<path class="axis" d="M{zero:.1f} 0V16"/>')
    if low is not None and high is not None:
        begin, end = (200 * scale.place(bound) for bound in (low, high))
        parts.append(f'<path class="whisker" d="M{begin:.1f} 8H{end:.1f}"/>')
    parts.append(f'<circle class="plain" cx="{200 * scale.place(value):.1f}" cy="8" r="4"/>')
    return Html(
        '<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="-5 0 210 16" width="210" '
        f'height="16" aria-hidden="true">{"".join(parts)}</svg>'
    )


def confusion(labels: Sequence[str], counts: Sequence[Sequence[float]], size: int) -> str:
    """A square of cells, true labels down and predicted ones across, each as dark as its share of
    the row; labels and numbers where there is room for them."""
    if not labels:
        return ""
    named = [cut(label, _WIDEST_LABEL) for label in labels]
    left = max(width(name) for name in named) * _LETTER + 12
    cell = min((size - left - 4) / len(labels), 44.0)
    if cell < _LEGIBLE:
        left, cell = 24.0, min((size - 28.0) / len(labels), 44.0)
    top = 26.0 if cell < _LEGIBLE else left * 0.72 + 22
    parts = [_text("predicted →", left, 14, "axis-name")]
    if cell >= _LEGIBLE:
        parts += _names(named, left, top, cell)
    edge = cell * len(labels)
    parts.append(
        f'<path class="grid" d="M{left:.1f} {top:.1f}h{edge:.1f}v{edge:.1f}h-{edge:.1f}Z"/>'
    )
    for down, row in enumerate(counts):
        whole = sum(row) or 1.0
        for across, amount in enumerate(row):
            if amount:
                x, y = left + cell * across, top + cell * down
                words = f"{labels[down]} taken for {labels[across]}: {count(amount)}"
                parts.append(_cell(x, y, cell, amount, amount / whole, words))
    return svg(size, top + edge + 6, "Confusion matrix: true labels down, predicted across", parts)


def _names(named: Sequence[str], left: float, top: float, cell: float) -> list[str]:
    """True labels at the rows; predicted ones above the columns, turned where they are long."""
    parts = []
    for number, name in enumerate(named):
        middle = cell * (number + 0.5)
        parts.append(_text(name, left - 6, top + middle + 4, "tick", "end"))
        x, y = left + middle, top - 6
        turned = f' transform="rotate(-45 {x:.1f} {y:.1f})"'
        parts.append(_text(name, x, y, "tick", extra=turned))
    return parts


def _cell(x: float, y: float, side: float, amount: float, share: float, words: str) -> str:
    drawn = (
        f'<rect class="cell" x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}" '
        f'fill-opacity="{0.08 + 0.92 * share:.2f}"><title>{escape(cut(words, 120))}</title></rect>'
    )
    number = count(amount)
    if side >= _LEGIBLE and len(number) * _LETTER < side:
        style = "on-dark" if share > _DARK else "on-light"
        drawn += _text(number, x + side / 2, y + side / 2 + 4, style, "middle")
    return drawn


def calibration(bins: Sequence[Bin], size: int) -> str:
    """How often answers of a confidence are right, beside the diagonal of who is neither too sure
    nor too modest; the area of a dot is the number of answers."""
    bins = [each for each in bins if each.n]
    if not bins:
        return ""
    side = min(size - 60.0, 320.0)
    left, top = 44.0, 26.0
    largest = max(each.n for each in bins)
    parts = [_text("right", 0, 14, "strong")]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = top + side * (1 - tick)
        parts.append(f'<path class="grid" d="M{left:.1f} {y:.1f}h{side:.1f}"/>')
        parts.append(_text(f"{100 * tick:.0f}%", left - 6, y + 4, "tick", "end"))
        if tick not in (0.25, 0.75):
            x = left + side * tick
            parts.append(_text(f"{100 * tick:.0f}%", x, top + side + 18, "tick", "middle"))
    parts.append(f'<path class="limit" d="M{left:.1f} {top + side:.1f}l{side:.1f} -{side:.1f}"/>')
    for each in bins:
        x, y = left + side * each.confidence, top + side * (1 - each.accuracy)
        radius = 2.5 + 9.5 * (each.n / largest) ** 0.5
        words = f"{count(each.n)} answers: {each.confidence:.0%} sure, {each.accuracy:.0%} right"
        parts.append(
            f'<circle class="dot s0" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" '
            f'fill-opacity="0.8"><title>{escape(words)}</title></circle>'
        )
    parts.append(_text("how sure", left + side, top + side + 36, "axis-name", "end"))
    return svg(size, top + side + 42, "Calibration: how sure, and how often right", parts)


def _text(
    words: str, x: float, y: float, style: str, anchor: str = "start", extra: str = ""
) -> str:
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}"{place}{extra}>{escape(words)}</text>'
