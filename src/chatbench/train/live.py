"""Lines that stay at the bottom of a terminal and are drawn again in place."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.control import Control
from rich.file_proxy import FileProxy
from rich.segment import Segment
from rich.text import Text

from chatbench import console

# A line that the terminal finds wider than we do is cut there, not continued on the next row.
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"


class LiveBlock(RenderHook):
    """A block under everything that is said while it is open; gone when it is closed.

    The cursor rests where the last line begins, so that what the terminal echoes (^C) moves
    nothing. rich's own Live loses its place when a terminal becomes narrower.
    """

    def __init__(self, draw: Callable[[int, int], Sequence[Text]]) -> None:
        """`draw(width, height)` gives lines that fit."""
        self._draw = draw
        self._widths: list[int] = []
        self._open = False
        self._stderr: Any = None

    def __enter__(self) -> LiveBlock:
        self._open = True
        people = console.people()
        people.push_render_hook(self)
        self._stderr = sys.stderr
        sys.stderr = FileProxy(people, sys.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        sys.stderr.flush()
        self.redraw()
        sys.stderr = self._stderr
        console.people().pop_render_hook()

    def redraw(self) -> None:
        """Draw the lines as they are now."""
        console.people().print(Control())

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Called by rich: erase the block, let be said what is to be said, draw the block."""
        width, height = console.people().size
        erase = _Erase(_rows(self._widths[:-1], width))
        lines = list(self._draw(width, height))[: max(1, height - 1)] if self._open else []
        self._widths = [min(width, cell_len(line.plain)) for line in lines]
        return [erase, *renderables, _Lines(lines)]


def _rows(widths: Sequence[int], columns: int) -> int:
    """Rows that lines take on a terminal that has `columns` by now and folds what is longer."""
    return sum(max(1, -(-width // columns)) for width in widths)


class _Erase:
    def __init__(self, up: int) -> None:
        self._up = up

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        up = f"\x1b[{self._up}A" if self._up else ""
        yield Segment(f"\r{up}\x1b[J", None, ())


class _Lines:
    def __init__(self, lines: Sequence[Text]) -> None:
        self._lines = lines

    def __rich_console__(self, terminal: Console, options: ConsoleOptions) -> RenderResult:
        if not self._lines:
            return
        yield Segment(_NO_WRAP, None, ())
        for number, line in enumerate(self._lines):
            if number:
                yield Segment.line()
            yield from line.render(terminal)
        yield Segment(f"\r{_WRAP}", None, ())
