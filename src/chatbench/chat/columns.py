"""Lines for a terminal, measured in columns: wrapping, padding, tables, texts side by side.

A run is text with the SGR sequence it is drawn in ("" for none). Widths are display widths: a wide
character takes two columns, a combining mark none.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from itertools import zip_longest

from rich.cells import cell_len

Run = tuple[str, str]
Line = list[Run]

BAR = " │ "
RESET = "\x1b[0m"
# What may not begin a line: closing punctuation, in both scripts.
_NEVER_FIRST = frozenset("，。、；：？！…）》」』】〕〉’”％·～,.;:?!)]}%")
_NEVER_LAST = frozenset("（《「『【〔〈‘“([{")
_LEAST_COLUMN = 6


def clusters(text: str) -> Iterator[str]:
    """Characters as they are drawn: with their marks, and emoji joined into one."""
    held = ""
    for c in text:
        joins = unicodedata.category(c) in ("Mn", "Me") or 0x1F3FB <= ord(c) <= 0x1F3FF
        if held and held != "\n" and (joins or c == "\u200d" or held.endswith("\u200d")):
            held += c
        else:
            if held:
                yield held
            held = c
    if held:
        yield held


def line_width(line: Iterable[Run]) -> int:
    """Columns that a line takes."""
    return sum(cell_len(text) for text, _ in line)


def wrap(runs: Iterable[Run], width: int) -> list[Line]:
    """Lines of at most `width` columns, broken at spaces, between wide characters and at line
    ends; a word longer than a line is broken where the line ends. A character wider than
    `width` gets a line of its own."""
    lines: list[Line] = []
    line: Line = []
    used = 0
    for word in _words(runs):
        if word[0][0] == "\n":
            lines.append(line)
            line, used = [], 0
            continue
        size = line_width(word)
        if used and used + size - _blank_end(word) > width:
            lines.append(line)
            line, used = [], 0
            if word[0][0] == " " and len(word) == 1:
                continue  # a space at which a line was broken
        for cluster in word:
            cells = cell_len(cluster[0])
            if used and used + cells > width:
                if cluster[0] == " ":
                    continue
                lines.append(line)
                line, used = [], 0
            line.append(cluster)
            used += cells
    lines.append(line)
    return [_merge(line) for line in lines]


def _blank_end(word: Line) -> int:
    return 1 if word[-1][0] == " " else 0


def _words(runs: Iterable[Run]) -> Iterator[Line]:
    """Runs cut into clusters and grouped into what stays on one line; a line end stands alone."""
    word: Line = []
    for text, style in runs:
        for cluster in clusters(text.replace("\t", " ")):
            if word and _may_break(word[-1][0], cluster):
                yield word
                word = []
            word.append((cluster, style))
    if word:
        yield word


def _may_break(before: str, after: str) -> bool:
    if "\n" in (before, after) or before == " ":
        return True
    if after == " " or after[0] in _NEVER_FIRST or before[0] in _NEVER_LAST:
        return False
    return cell_len(before) == 2 or cell_len(after) == 2


def _merge(line: Line) -> Line:
    """Without blanks at the end, neighbours of one style joined."""
    while line and line[-1][0] == " ":
        line.pop()
    merged: Line = []
    for text, style in line:
        if merged and merged[-1][1] == style:
            merged[-1] = (merged[-1][0] + text, style)
        else:
            merged.append((text, style))
    return merged


def pad(line: Line, width: int, align: str = "left") -> Line:
    """The line filled with spaces to `width` columns: `align` is left, right or center."""
    room = max(0, width - line_width(line))
    before = {"right": room, "center": room // 2}.get(align, 0)
    return [(" " * before, ""), *line, (" " * (room - before), "")]


def side_by_side(columns: list[list[Line]], widths: list[int], aligns: list[str]) -> list[Line]:
    """Lines of several columns joined, each padded to its width, with a bar between."""
    joined = []
    for parts in zip_longest(*columns, fillvalue=[]):
        line: Line = []
        for n, (part, width) in enumerate(zip(parts, widths, strict=True)):
            line += [(BAR, "")] if n else []
            line += pad(list(part), width, aligns[n])
        joined.append(_trimmed(line))
    return joined


def _trimmed(line: Line) -> Line:
    while line and not line[-1][0].strip(" "):
        line.pop()
    if line:
        line[-1] = (line[-1][0].rstrip(" "), line[-1][1])
    return line


def table(rows: list[list[Line]], aligns: list[str], width: int) -> list[Line]:
    """A table of cells; the first row is its head. Columns that do not fit are narrowed and their
    cells wrapped; where even that leaves no room, every cell gets a line under its row's first."""
    count = len(aligns)
    natural = [max(1, *(line_width(row[n]) for row in rows)) for n in range(count)]
    room = width - len(BAR) * (count - 1)
    if sum(natural) > room and room < _LEAST_COLUMN * count:
        return _one_below_the_other(rows, width)
    widths = _shrink(natural, room)
    lines: list[Line] = []
    for number, row in enumerate(rows):
        cells = [wrap(row[n], widths[n]) for n in range(count)]
        lines += side_by_side(cells, widths, aligns)
        if number == 0:
            lines.append([("─┼─".join("─" * each for each in widths), "")])
    return lines


def _shrink(natural: list[int], room: int) -> list[int]:
    """Widths that fit into `room`: narrow columns keep theirs, the widest give way."""
    widths = list(natural)
    while sum(widths) > room:
        widest = max(widths)
        widths[widths.index(widest)] -= 1
    return widths


def _one_below_the_other(rows: list[list[Line]], width: int) -> list[Line]:
    head, *body = rows
    lines: list[Line] = []
    for row in body or [head]:
        for name, cell in zip(head, row, strict=True):
            label = [*name, (": ", "")] if body else []
            lines += wrap([*label, *cell], width)
        lines.append([])
    return lines[:-1]


def paint(line: Iterable[Run]) -> str:
    """One line with its SGR sequences, each ended where its run ends."""
    return "".join(f"{style}{text}{RESET}" if style and text else text for text, style in line)


def plain(line: Iterable[Run]) -> str:
    """One line without its SGR sequences."""
    return "".join(text for text, _ in line)
