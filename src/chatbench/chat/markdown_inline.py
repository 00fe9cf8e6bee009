"""Emphasis, code spans and links within one line of Markdown, read from its beginning.

What follows a mark decides what the mark is, but only the next LIMIT characters are asked: so a
long line is shown while it is written, and the answer never depends on how much of it is there.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from chatbench.chat.columns import Line

LIMIT = 400  # characters within which a mark has to be closed
_DEEPEST = 6  # marks within marks

BOLD, DIM, ITALIC, UNDERLINE, STRIKE = "\x1b[1m", "\x1b[2m", "\x1b[3m", "\x1b[4m", "\x1b[9m"
CODE = "\x1b[36m"
_EMPHASIS = {1: ITALIC, 2: BOLD, 3: BOLD + ITALIC}
_SPECIAL = re.compile(r"[*_~`\[!\\]")
_ESCAPABLE = frozenset("*_~`#|!\\")


class _Undecided(Exception):
    """What follows has not been written yet."""


class _Window(NamedTuple):
    """The text from a mark on; `whole` when nothing that follows may be asked."""

    text: str
    whole: bool

    def run(self, at: int) -> int:
        """Length of the run of one character at `at`. Raises _Undecided when it may go on."""
        end = at
        while end < len(self.text) and self.text[end] == self.text[at]:
            end += 1
        if end == len(self.text):
            self.needs_more()
        return end - at

    def needs_more(self) -> None:
        if not self.whole:
            raise _Undecided

    def code_end(self, at: int, length: int) -> int:
        """Where the code span opened by `length` ticks at `at` is closed; -1 nowhere."""
        here = at + length
        while (here := self.text.find("`", here)) >= 0:
            size = self.run(here)
            if size == length:
                return here
            here += size
        self.needs_more()
        return -1

    def emphasis_end(self, length: int) -> int:
        """Where the emphasis that opens the window is closed by as many marks; -1 nowhere."""
        mark, here = self.text[0], length
        while here < len(self.text):
            c = self.text[here]
            if c == "\\":
                here += 2
            elif c == "`":
                ticks = self.run(here)
                end = self.code_end(here, ticks)
                here = end + ticks if end >= 0 else here + ticks
            elif c == mark:
                size = self.run(here)
                if size == length and here > length and not self.text[here - 1].isspace():
                    following = self.text[here + size : here + size + 1]
                    if mark != "_" or not following.isalnum():
                        return here
                here += size
            else:
                here += 1
        self.needs_more()
        return -1

    def closing(self, at: int, opens: str, closes: str) -> int:
        """Where the bracket at `at` is closed; -1 nowhere."""
        depth, here = 0, at
        while here < len(self.text):
            c = self.text[here]
            if c == "\\":
                here += 1
            elif c == opens:
                depth += 1
            elif c == closes:
                depth -= 1
                if depth == 0:
                    return here
            here += 1
        self.needs_more()
        return -1


class Inline:
    """Reads a line's text. With `marks` the marks of emphasis and code are kept."""

    def __init__(self, *, marks: bool) -> None:
        self._marks = marks

    def read(
        self, text: str, *, final: bool, style: str, before: str = "", depth: int = 0
    ) -> tuple[Line, str]:
        """Runs that are certain, and the end of `text` that is not (empty when `final`).

        `before` is the character before `text`, `style` what the line is drawn in.
        """
        runs: Line = []
        at = 0
        while at < len(text):
            mark = _SPECIAL.search(text, at)
            end = mark.start() if mark else len(text)
            if end > at:
                runs.append((text[at:end], style))
                before, at = text[end - 1], end
            if mark is None:
                break
            window = _Window(text[at : at + LIMIT], final or len(text) - at >= LIMIT)
            try:
                found, length = self._mark(window, style, before, depth)
            except _Undecided:
                break
            runs += found
            before, at = text[at + length - 1], at + length
        return runs, text[at:]

    def _mark(self, window: _Window, style: str, before: str, depth: int) -> tuple[Line, int]:
        """Runs for the mark that opens the window, and how many characters they stand for."""
        c = window.text[0]
        if c == "\\":
            return self._escape(window, style)
        if c == "!":
            return self._image(window, style, depth)
        if c == "[":
            return self._link(window, 0, style, depth)
        if c == "`":
            return self._code(window, style)
        return self._emphasis(window, style, before, depth)

    def _escape(self, window: _Window, style: str) -> tuple[Line, int]:
        if len(window.text) == 1:
            window.needs_more()
        taken = window.text[:2]
        # \[ and \( open formulas; their backslash says so and stays.
        drop = not self._marks and taken[1:] in _ESCAPABLE and len(taken) == 2
        if not drop and taken[1:] not in _ESCAPABLE | {"["}:
            taken = "\\"
        return [(taken[1:] if drop else taken, style)], len(taken)

    def _code(self, window: _Window, style: str) -> tuple[Line, int]:
        length = window.run(0)
        end = window.code_end(0, length)
        if end < 0:
            return [(window.text[:length], style)], length
        inner = window.text[length:end]
        if inner.strip() and inner[0] == inner[-1] == " ":
            inner = inner[1:-1]
        ticks = "`" * length if self._marks else ""
        shown = window.text[: end + length] if ticks else inner
        return [(shown, style + CODE)], end + length

    def _emphasis(self, window: _Window, style: str, before: str, depth: int) -> tuple[Line, int]:
        length = window.run(0)
        mark = window.text[:length]
        literal: tuple[Line, int] = [(mark, style)], length
        following = window.text[length : length + 1]
        strikes = mark == "~~"
        if depth >= _DEEPEST or length > 3 or (mark[0] == "~" and not strikes):
            return literal
        if not following or following.isspace() or (mark[0] == "_" and before.isalnum()):
            return literal
        if mark == "*" and before.isascii() and before.isalnum():
            return literal  # 2*3*4 is a product
        end = window.emphasis_end(length)
        if end < 0:
            return literal
        added = STRIKE if strikes else _EMPHASIS[length]
        inner, _ = self.read(
            window.text[length:end],
            final=True, style=style + added, before=mark[0], depth=depth + 1,
        )  # fmt: skip
        if self._marks:
            inner = [(mark, style), *inner, (mark, style)]
        return inner, end + length

    def _image(self, window: _Window, style: str, depth: int) -> tuple[Line, int]:
        if len(window.text) == 1:
            window.needs_more()
        if window.text[1:2] != "[":
            return [("!", style)], 1
        return self._link(window, 1, style, depth)

    def _link(self, window: _Window, at: int, style: str, depth: int) -> tuple[Line, int]:
        """`[text](address)`, shown as text and address: nobody follows what he has not seen."""
        literal: tuple[Line, int] = [(window.text[: at + 1], style)], at + 1
        if depth >= _DEEPEST:
            return literal
        middle = window.closing(at, "[", "]")
        if middle < 0:
            return literal
        if middle + 1 == len(window.text):
            window.needs_more()
        if window.text[middle + 1 : middle + 2] != "(":
            return literal
        end = window.closing(middle + 1, "(", ")")
        if end < 0:
            return literal
        label, address = window.text[at + 1 : middle], window.text[middle + 2 : end].strip()
        if not label or not address:
            return literal
        runs: Line = []
        if label != address:
            runs, _ = self.read(
                label, final=True, style=style + UNDERLINE, before="[", depth=depth + 1
            )
            runs.append((" (", style))
        runs.append((address, style + UNDERLINE if label == address else style + DIM))
        return [*runs, (")", style)] if label != address else runs, end + 1
