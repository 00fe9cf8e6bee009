"""What a conversation shows on a terminal: safe, append-only, by display width."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from typing import NamedTuple

from chatbench import console
from chatbench.chat.columns import BAR, Line, Run, line_width, paint, side_by_side, wrap
from chatbench.chat.markdown import Markdown

NARROW = 60  # columns below which two texts stand one below the other
_JOINERS = frozenset("\u200c\u200d")
_SELECTORS = frozenset(map(chr, range(0xFE00, 0xFE10)))


class Span(NamedTuple):
    """A run of text. `style` is a name from STYLES (see `bucket`); `note` is a short figure that
    stands for the style, such as "87%", and is shown where there is no colour."""

    text: str
    style: str = ""
    note: str = ""


class Shown(NamedTuple):
    """Columns of spans under titles: one column is running text, two stand side by side."""

    columns: list[list[Span]]
    titles: list[str]


# Names a Span's style may have; from certain to unlikely they are the buckets of a probability.
STYLES: dict[str, str] = {
    "": "",
    "certain": "\x1b[32m",
    "likely": "\x1b[36m",
    "unsure": "\x1b[33m",
    "doubtful": "\x1b[35m",
    "unlikely": "\x1b[31m",
    "title": "\x1b[1m",
    "dim": "\x1b[2m",
}
_BUCKETS = ((0.9, "certain"), (0.5, "likely"), (0.2, "unsure"), (0.05, "doubtful"))


def bucket(probability: float) -> str:
    """The style for a token of this probability (0..1)."""
    return next((name for least, name in _BUCKETS if probability >= least), "unlikely")


class Screen(NamedTuple):
    """What the terminal can do. `markdown`: whether structure may be drawn at all."""

    width: int
    colour: bool
    markdown: bool


def screen() -> Screen:
    """The terminal that stdout is, if it is one."""
    terminal = console.stdout_is_terminal() and os.environ.get("TERM", "dumb") not in _DUMB
    return Screen(
        width=shutil.get_terminal_size().columns,
        colour=terminal and not os.environ.get("NO_COLOR"),
        markdown=terminal and _can_draw(),
    )


_DUMB = ("dumb", "unknown", "")


def _can_draw() -> bool:
    """Whether the encoding of stdout has the lines of tables."""
    try:
        "─│┼•".encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


class Reply:
    """A reply while it is written: what goes through `feed` can be read, and steers nothing.

    Whatever the pieces are in which a text comes, the same characters go to `write`.
    """

    def __init__(self, write: Callable[[str], None], on: Screen) -> None:
        self._write = write
        self._markdown = Markdown(on.width, colour=on.colour) if on.markdown else None
        self._before = ""
        self._last = "\n"

    def feed(self, text: str) -> None:
        """Show more of the reply, as far as its meaning is certain."""
        if not text:
            return
        safe = console.visible(joined(text, self._before))
        self._before = text[-1]
        self._show(self._markdown.feed(safe) if self._markdown else safe)

    def finish(self, mark: str = "") -> None:
        """Show what was held, then `mark`, and end the line. The colours are the terminal's."""
        self._show(self._markdown.finish() if self._markdown else "")
        if mark:
            self._show(mark if self._last == "\n" else f" {mark}")
        if self._last != "\n" or not self._before:
            self._show("\n")

    def _show(self, text: str) -> None:
        if text:
            self._last = text[-1]
            self._write(text)


def joined(text: str, before: str) -> str:
    """`text` with the joiners and variation selectors that join nothing made visible: those that
    do not follow a character spelt with them. `before` is the character before the text."""
    if text.isascii():
        return text
    shown = []
    for c in text:
        stray = (c in _JOINERS and not _takes_joiner(before)) or (
            c in _SELECTORS and not _takes_selector(before)
        )
        shown.append(console.escaped(c) if stray else c)
        before = c
    return "".join(shown)


def _takes_joiner(c: str) -> bool:
    """Emoji, also with a selector, and letters of cursive or conjunct scripts; not Han or kana."""
    if c.isascii() or not c.isprintable() or c.isspace():
        return False
    return not (c.isalpha() and (ord(c) >= 0x2E80 or ord(c) < 0x0590))


def _takes_selector(c: str) -> bool:
    if not c or not c.isprintable() or c.isspace() or c in _SELECTORS:
        return False
    return not c.isascii() or c in "0123456789#*"


def lay_out(shown: Shown, on: Screen) -> str:
    """The columns as lines that end in a line end: side by side where there is room for two,
    else one below the other; figures beside the text instead of colour where there is none."""
    columns = [_runs(spans, on) for spans in shown.columns]
    titles = [console.visible(" ".join(title.split())) for title in shown.titles]
    titles += [""] * (len(columns) - len(titles))
    width = max(1, on.width)
    heads = [[(title, STYLES["title"] if on.colour else "")] for title in titles]
    lines: list[Line] = []
    if len(columns) > 1 and width >= NARROW:
        each = (width - len(BAR) * (len(columns) - 1)) // len(columns)
        widths = [each] * len(columns)
        parts = [
            [
                *wrap(head, each),
                [("─" * each if on.markdown else "-" * each, "")],
                *wrap(runs, each),
            ]
            for head, runs in zip(heads, columns, strict=True)
        ]
        lines = side_by_side(parts, widths, ["left"] * len(columns))
    else:
        for number, (head, runs) in enumerate(zip(heads, columns, strict=True)):
            lines += [[]] if number else []
            lines += wrap(head, width) if line_width(head) else []
            lines += wrap(runs, width)
    return "".join(f"{paint(line)}\n" for line in lines)


def _runs(spans: list[Span], on: Screen) -> list[Run]:
    runs = []
    before = ""
    for text, style, note in spans:
        safe = console.visible(joined(text, before))
        before = text[-1:] or before
        if note and not on.colour:
            body = safe.rstrip()
            safe = f"{body}[{console.visible(note)}]{safe[len(body) :]}"
        runs.append((safe, STYLES.get(style, "") if on.colour else ""))
    return runs
