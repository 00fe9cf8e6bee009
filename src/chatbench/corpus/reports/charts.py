"""Charts as inline SVG strings: no script, no links, readable in black and white.

Every chart is drawn for one width in CSS pixels; the page shows a wide or a narrow drawing. Colours
come from the classes of the page, so one drawing serves light, dark and print.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from chatbench import console

THIN_SPACE = "\u202f"
_LINE_MARKS = str.maketrans({"\n": "⏎", "\t": "⇥"})
# What XML 1.0 has no place for although Unicode has (section 2.2, Char).
_NONCHARACTERS = re.compile("[\ufffe\uffff]")


def count(number: float) -> str:
    """`1234567` → `1 234 567` with thin spaces that do not break; fractions keep two places."""
    shown = f"{number:,.2f}" if isinstance(number, float) and number % 1 else f"{int(number):,}"
    return shown.replace(",", THIN_SPACE)


def share(part: float, whole: float) -> str:
    """A percentage that says 0 and 100 only when it is none and all."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return f"<0.1{THIN_SPACE}%"
    if 99.9 < percent < 100:
        return f">99.9{THIN_SPACE}%"
    digits = 0 if percent in (0, 100) else 1
    return f"{percent:.{digits}f}{THIN_SPACE}%"


def cut(text: str, cells: int) -> str:
    """`text` on one line with every control drawn, its middle left out beyond `cells` columns."""
    # Only the ends can be seen, so a huge text is not looked at as a whole.
    if len(text) > 4 * cells + 8:
        text = f"{text[: 2 * cells]}…{text[-2 * cells :]}"
    text = one_line(text)
    if width(text) <= cells:
        return text
    head, tail = "", ""
    room = max(cells - 1, 1)
    for c in text:
        if width(head + c) > (room + 1) * 2 // 3:
            break
        head += c
    for c in reversed(text):
        if width(head + c + tail) > room:
            break
        tail = c + tail
    return f"{head}…{tail}"


def one_line(text: str) -> str:
    """`text` with line ends, tabs and every other control character drawn."""
    drawn = console.visible(text).translate(_LINE_MARKS)
    return _NONCHARACTERS.sub(lambda found: f"\\u{ord(found.group()):04x}", drawn)


def width(text: str) -> int:
    """Columns of a terminal that `text` takes; East Asian wide characters take two."""
    from rich.cells import cell_len

    return cell_len(text)


def escape(text: str) -> str:
    """`text` for HTML and XML, on one line, its controls drawn."""
    return html.escape(one_line(text), quote=True)


def bar(part: float, whole: float, kind: str) -> str:
    """A bar that fills `part` of `whole` of its cell; kind names its colour class."""
    length = max(100 * part / whole, 0.6) if whole and part else 0
    return (
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="{kind}" width="{length:.2f}" height="10"/></svg>'
    )


class Stream(NamedTuple):
    """One way that records go. kind: train, val, test, kept, dropped or failed."""

    label: str
    amount: int
    kind: str


class _Band(NamedTuple):
    stream: Stream
    thickness: float
    top: float  # of the band on the right
    slot: float  # height kept free from there on, for its label


_TOP = 30.0  # px, room for the words above
_NODE = 10.0  # px, breadth of a node
_LABEL_HEIGHT = 22.0
_FULL = 220.0  # px of a node that holds everything
_HAIR = 1.5  # px of the thinnest flow, so that one record in a million is still seen
_GAP = 7.0
_BROADEST = 72.0  # px of a column of a histogram


def flow(
    read: int, kept: Stream, splits: Sequence[Stream], left_out: Sequence[Stream], size: int
) -> str:
    """Where `read` records went, as bands whose height is their number, `size` pixels wide.

    Wide drawings have three columns (read, kept or left out, splits); narrow ones lead straight
    to the splits. Every band is named beside its end.
    """
    two_steps = size >= 600 and bool(splits)
    middle, right = (300 if size >= 600 else 56), 640
    parts: list[str] = []
    if two_steps:
        kept_height = max(_FULL * kept.amount / read if read else 0.0, _HAIR * len(splits))
        ends = _stacked(splits, kept.amount, kept_height, _TOP)
        # What is left out begins below the splits, so that no ribbon crosses its labels.
        below = max(_bottom(ends), _TOP + _LABEL_HEIGHT)
        first = _Band(kept, kept_height, _TOP, below - _TOP)
        bands = [first, *_stacked(left_out, read, _FULL, below + _GAP)]
        parts += _fan(ends, middle + _NODE, _TOP, kept_height, right)
        parts += [_labelled(band, right, size, read) for band in ends]
    else:
        bands = _stacked([*(splits or [kept]), *left_out], read, _FULL, _TOP)
    tall = sum(band.thickness for band in bands)
    parts += [_rectangle("read", 0, _TOP, _NODE, tall), *_fan(bands, _NODE, _TOP, tall, middle)]
    end = right if two_steps else size
    parts += [_labelled(band, middle, end - 20 * two_steps, read) for band in bands]
    parts.append(_words(f"{count(read)} read", 0, 16, "strong"))
    height = max(_bottom(bands), _TOP + tall)
    return _svg(size, height + 6, f"Where {count(read)} records went", parts)


def _fan(bands: Sequence[_Band], x0: float, top: float, height: float, x1: float) -> list[str]:
    """Ribbons that leave the node at x0 side by side and end in a node of each band at x1."""
    whole = sum(band.thickness for band in bands) or 1
    parts = []
    for band in bands:
        if not band.thickness:
            continue
        leaving = band.thickness * height / whole
        parts.append(_ribbon(band, x0, top, leaving, x1))
        parts.append(_rectangle(band.stream.kind, x1, band.top, _NODE, band.thickness))
        top += leaving
    return parts


def _bottom(bands: Sequence[_Band]) -> float:
    return bands[-1].top + bands[-1].slot if bands else 0.0


def _stacked(streams: Sequence[Stream], whole: int, full: float, top: float) -> list[_Band]:
    """Bands below one another, each with room for one line of label."""
    bands = []
    for stream in streams:
        thickness = max(full * stream.amount / whole, _HAIR) if whole and stream.amount else 0.0
        slot = max(thickness, _LABEL_HEIGHT)
        # A thin band lies in the middle of its slot, beside its label.
        lead = (slot - thickness) / 2
        bands.append(_Band(stream, thickness, top + lead, slot - lead))
        top += slot + _GAP
    return bands


def _ribbon(band: _Band, x0: float, low: float, leaving: float, x1: float) -> str:
    bend = (x0 + x1) / 2
    high, near, far = low + leaving, band.top, band.top + band.thickness
    return (
        f'<path class="ribbon {band.stream.kind}" d="M{x0:.1f} {low:.1f}'
        f"C{bend:.1f} {low:.1f} {bend:.1f} {near:.1f} {x1:.1f} {near:.1f}"
        f'V{far:.1f}C{bend:.1f} {far:.1f} {bend:.1f} {high:.1f} {x0:.1f} {high:.1f}Z">'
        f"<title>{escape(cut(band.stream.label, 300))}: {count(band.stream.amount)}</title></path>"
    )


def _rectangle(kind: str, x: float, y: float, w: float, h: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}"/>'


def _labelled(band: _Band, node: float, end: float, whole: int) -> str:
    """The name of a band and its number, beside its node, in the room up to `end`."""
    number = f"{count(band.stream.amount)} · {share(band.stream.amount, whole)}"
    # About 7 px for a column at 14 px; the number keeps its place, the name gives way.
    room = int((end - node - _NODE - 8) / 7) - len(number) - 1
    name = escape(cut(band.stream.label, max(room, 6)))
    y = band.top + band.thickness / 2 + 5
    return (
        f'<text x="{node + _NODE + 8:.1f}" y="{y:.1f}"><tspan class="name">{name}</tspan>'
        f'<tspan class="number" dx="8">{escape(number)}</tspan></text>'
    )


def _words(text: str, x: float, y: float, style: str, *, anchor: str = "start",
           limit: int = 60) -> str:  # fmt: skip
    return (
        f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{escape(cut(text, limit))}</text>"
    )


def histogram(
    edges: Sequence[int], counts: Sequence[int], marks: Mapping[str, float],
    limits: Mapping[int, int], size: int,
) -> str:  # fmt: skip
    """Columns over bins of growing width, all drawn equally wide.

    `marks`: name → value, drawn as a triangle below the axis; `limits`: value → how many documents
    lie above it, drawn as a dashed line with their share.
    """
    left, top, tall = 4.0, 46.0, 150.0
    step = min((size - 2 * left) / max(len(counts), 1), _BROADEST)
    highest = max(counts, default=0) or 1
    base = top + tall
    parts = []
    for number, amount in enumerate(counts):
        high = max(tall * amount / highest, 1.5 if amount else 0)
        tip = f"{count(edges[number])} to {count(edges[number + 1] - 1)} tokens: {count(amount)}"
        parts.append(
            f'<rect class="column" x="{left + step * number + 1:.1f}" y="{base - high:.1f}" '
            f'width="{max(step - 2, 0.5):.1f}" height="{high:.1f}"><title>{tip}</title></rect>'
        )
    parts.append(f'<path class="axis" d="M{left:.1f} {base:.1f}H{left + step * len(counts):.1f}"/>')
    parts += _ticks(edges, left, step, base + 18)
    whole = sum(counts)
    for number, (value, above) in enumerate(sorted(limits.items())):
        place = _place(edges, value)
        if place is not None:
            x = left + step * place
            parts.append(f'<path class="limit" d="M{x:.1f} {top - 10:.1f}V{base:.1f}"/>')
            parts += _limit_label(number, value, share(above, whole), x, step)
    parts += _marks(edges, marks, left, step, base, size)
    return _svg(size, base + 48, "Documents by number of tokens", parts)


def _ticks(edges: Sequence[int], left: float, step: float, y: float) -> list[str]:
    """The values of the edges, as many as there is room for."""
    if not edges:
        return []
    broadest = max(len(_short(edge)) for edge in edges) * 7.5
    every = max(math.ceil((broadest + 10) / step), 1)
    if every > 1 and every % 2:
        every += 1  # powers of two are every other edge
    powers = [n for n, edge in enumerate(edges) if edge and not edge & (edge - 1)]
    phase = powers[-1] % every if powers else 0
    end = 2 * left + step * (len(edges) - 1)
    parts = []
    for n in range(phase, len(edges), every):
        half = len(_short(edges[n])) * 3.75
        x = min(max(left + step * n, half), end - half)
        parts.append(_words(_short(edges[n]), x, y, "tick", anchor="middle"))
    return parts


def _limit_label(number: int, value: int, above: str, x: float, step: float) -> list[str]:
    """The limit and the share above it; where columns are thin the limit alone, in two rows."""
    # The usual limits lie an octave apart, that is two columns.
    if step * 2 < 54:
        return [_words(_short(value), x, 14 + 15 * (number % 2), "limit-name", anchor="middle")]
    return [
        _words(_short(value), x, 14, "limit-name", anchor="middle"),
        _words(above, x, 30, "tick", anchor="middle"),
    ]


def _marks(edges: Sequence[int], marks: Mapping[str, float], left: float, step: float, base: float,
           size: int) -> list[str]:  # fmt: skip
    """The lower mark is named on its left and the higher on its right, so names never meet."""
    parts = []
    placed = sorted((value, name) for name, value in marks.items())
    for number, (value, name) in enumerate(placed):
        place = _place(edges, value)
        if place is None:
            continue
        x = left + step * place
        parts.append(f'<path class="mark" d="M{x:.1f} {base + 26:.1f}l-5 9h10Z"/>')
        before = (number == 0 and x > 60) or x > size - 60
        parts.append(
            _words(name, x - 9 if before else x + 9, base + 36, "tick",
                   anchor="end" if before else "start")
        )  # fmt: skip
    return parts


def _place(edges: Sequence[int], value: float) -> float | None:
    """Where `value` lies, in columns from the left; None outside."""
    for number in range(len(edges) - 1):
        low, high = edges[number], edges[number + 1]
        if low <= value < high:
            return number + math.log((value + 1) / (low + 1)) / math.log((high + 1) / (low + 1))
    return None


def _short(number: int) -> str:
    """Axis numbers: 2048 stays, 65536 becomes 65.5k."""
    return str(number) if number < 10_000 else console.format_count(number)


def _svg(size: float, height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {height:.0f}" '
        f'width="{size}" height="{height:.0f}" role="img"><title>{escape(title)}</title>'
        f"{''.join(parts)}</svg>"
    )
