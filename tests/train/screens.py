"""A terminal of a few lines of code, for what the live block writes."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from chatbench import console

_PARTS = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])|([^\x1b])", re.DOTALL)


def play(written: str, width: int) -> list[str]:
    """The rows of a terminal that wraps at `width`, after everything was written to it."""
    rows: list[list[str]] = [[]]
    row = column = 0
    wraps = True
    for codes, command, text in _PARTS.findall(written):
        if command == "A":
            row = max(0, row - int(codes))
        elif command == "J":
            del rows[row + 1 :], rows[row][column:]
        elif command in ("h", "l"):
            assert codes == "?7"
            wraps = command == "h"
        elif command:
            assert command == "m", f"CSI {codes}{command} is not expected"
        elif text == "\r":
            column = 0
        elif text == "\n":
            row, column = row + 1, 0
        else:
            size = cell_len(text)
            if column + size > width:
                if not wraps:
                    continue
                row, column = row + 1, 0
            while len(rows) <= row:
                rows.append([])
            line = rows[row]
            line += [" "] * (column - len(line))
            line[column : column + size] = [text, *[""] * (size - 1)] if size else []
            column += size
        while len(rows) <= row:
            rows.append([])
    return ["".join(line).rstrip() for line in rows]


class Screen:
    """stderr as a terminal that can be read back."""

    def __init__(self, width: int, height: int, color: bool = True) -> None:
        self.out = io.StringIO()
        self.console = Console(
            file=self.out, force_terminal=True, width=width, height=height, markup=False,
            highlight=False, emoji=False, soft_wrap=True, no_color=not color, _environ={},
        )  # fmt: skip

    def rows(self) -> list[str]:
        return [row for row in play(self.out.getvalue(), self.console.width) if row]


def use(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Let everything that is said go to this terminal."""
    monkeypatch.setattr(console, "people", lambda: screen.console)
    monkeypatch.setattr(console, "is_animated", lambda: True)
    return screen
