"""Markdown while it is written: every character is shown once and never touched again.

What cannot change its meaning any more is shown at once; a beginning that could become something
else (`**`, `[`, a table row) is held until that is decided, by the end of its line at the latest.
So the bytes shown depend on the text alone, not on the pieces in which it came.

Two limits follow from that and are meant: emphasis and links end with their line, and tables need
a bar at the beginning of each row. Without colour the marks themselves stay, as the only style.
"""

from __future__ import annotations

import re

from chatbench.chat.columns import RESET, Line, Run, paint, plain, table
from chatbench.chat.markdown_inline import BOLD, CODE, DIM, Inline

_UNDERLINE = "\x1b[4m"
_RULE_WIDTH = 40
_LONGEST_MARK = 200  # characters of a line that may be a rule or the beginning of a fence
_LONGEST_ROW = 4000

_BLANK = re.compile(r"[ \t]*")
_RULE = re.compile(r"[ \t]*([-*_])(?:[ \t]*\1){2,}[ \t]*")
_MAYBE_RULE = re.compile(r"[ \t]*([-*_])(?:[ \t]*\1)*[ \t]*")
_HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]{1,4}|$)")
# Blanks are counted, so that a mark is the same whether or not all blanks are there yet.
_BULLET = re.compile(r"([ \t]{0,40})[-+*](?:[ \t]{1,4}|$)")
_NUMBER = re.compile(r"([ \t]{0,40})(\d{1,9}[.)])(?:[ \t]{1,4}|$)")
_QUOTE = re.compile(r" {0,3}> ?")
_FENCE = re.compile(r"[ \t]{0,40}(`{3,}(?=[^`]*$)|~{3,})")
_UNDECIDED = re.compile(
    r"[ \t]*(?:#{0,6}|[-+*]|\d{1,9}[.)]?|`{1,2}|~{1,2})[ \t]*| {0,3}>"  # may become a mark
)
_DELIMITERS = re.compile(r"[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*")


class Markdown:
    """Takes text in pieces, hands out what a terminal of `width` columns may show.

    The text has to be free of control characters (see console.visible): the only ones in the
    result are line ends, tabs, and the SGR sequences made here, none of them without `colour`.
    """

    def __init__(self, width: int, *, colour: bool) -> None:
        self._width = max(1, width)
        self._colour = colour
        self._inline = Inline(marks=not colour)
        self._pending = ""
        self._at_start = True
        self._fence = ""  # what opened the code that is being written, "" outside
        self._quoted = False
        self._rows: list[str] = []  # a table, or what may become one
        self._base = ""  # the style of the line
        self._before = ""  # the character before what is pending, "" at the start
        self._drawn = ""  # the SGR sequence in force

    def feed(self, text: str) -> str:
        """Take more text; what may be shown now."""
        self._pending += text
        return self._drain(final=False)

    def finish(self) -> str:
        """Everything that was held, and the terminal's own colour again."""
        return self._drain(final=True) + self._flush_rows() + self._style("")

    def _drain(self, *, final: bool) -> str:
        shown = []
        while self._pending:
            step = self._start(final) if self._at_start else self._rest(final)
            if step is None:
                break
            shown.append(step)
        return "".join(shown)

    # The rest of a line whose kind is known.

    def _rest(self, final: bool) -> str | None:
        line, newline, after = self._pending.partition("\n")
        if self._fence:
            self._pending = after
            shown = self._paint([(line, CODE)])
        else:
            runs, held = self._inline.read(
                line, final=final or bool(newline), style=self._base, before=self._before
            )
            taken = line[: len(line) - len(held)]
            if not taken and not newline:
                return None
            self._before = taken[-1:] or self._before
            self._pending = held + after
            shown = self._paint(runs)
        return shown + self._end_line() if newline else shown

    def _end_line(self) -> str:
        self._at_start, self._quoted = True, False
        self._base = self._before = ""
        return self._style("") + "\n"

    # The beginning of a line, until its kind is known.

    def _start(self, final: bool) -> str | None:
        line, newline, after = self._pending.partition("\n")
        whole = final or bool(newline)
        if self._fence:
            return self._in_fence(line, newline, after, whole)
        if not self._quoted and line.lstrip(" \t").startswith("|") and len(line) <= _LONGEST_ROW:
            if not whole:
                return None
            self._pending = after
            return self._add_row(line)
        if not whole and self._is_undecided(line):
            return None
        return self._flush_rows() + self._block(line, newline, after, whole)

    def _is_undecided(self, line: str) -> bool:
        if _BLANK.fullmatch(line):
            return True
        if len(line) > _LONGEST_MARK:
            return False
        if _UNDECIDED.fullmatch(line) or _MAYBE_RULE.fullmatch(line):
            return True
        return not self._quoted and _FENCE.match(line) is not None

    def _block(self, line: str, newline: str, after: str, whole: bool) -> str:
        """Begin a line that may be shown: its mark, drawn; then what follows is read as text."""
        short = len(line) <= _LONGEST_MARK
        if whole and short and _RULE.fullmatch(line):
            self._pending = after
            rule = self._paint([("─" * min(self._width, _RULE_WIDTH), DIM)])
            return rule + (self._end_line() if newline else "")
        fence = None if self._quoted or not (short and whole) else _FENCE.match(line)
        if fence:
            self._pending = after
            self._fence = fence[1]
            return self._paint([(line, DIM)]) + (self._end_line() if newline else "")
        if quote := _QUOTE.match(line):
            self._quoted = True
            self._take(quote.end())
            return self._paint([("│ ", DIM)])
        self._at_start = False
        if heading := _HEADING.match(line):
            level = len(heading[1])
            self._base = BOLD + (_UNDERLINE if level == 1 else "")
            self._take(heading.end())
            return "" if self._colour else f"{'#' * level} "
        for pattern, mark in ((_BULLET, "•"), (_NUMBER, "")):
            if item := pattern.match(line):
                self._take(item.end())
                return self._paint([(f"{item[1]}{mark or item[2]} ", "")])
        return ""

    def _take(self, count: int) -> None:
        self._before = ""
        self._pending = self._pending[count:]

    def _in_fence(self, line: str, newline: str, after: str, whole: bool) -> str | None:
        """Code goes out as it is; its end is a line with the mark that opened it, or a longer."""
        mark = line.strip(" \t")
        may_end = not mark.strip(self._fence[0]) and len(line) <= _LONGEST_MARK
        if may_end and not whole:
            return None
        if may_end and len(mark) >= len(self._fence):
            self._pending, self._fence = after, ""
            return self._paint([(line, DIM)]) + (self._end_line() if newline else "")
        self._at_start = False
        return ""

    # Tables.

    def _add_row(self, line: str) -> str:
        """Hold a row. One that turns out to be no table's first is shown as text."""
        self._rows.append(line)
        if len(self._rows) != 2 or _is_delimiter(line):
            return ""
        return self._as_text(self._rows.pop(0))

    def _as_text(self, line: str) -> str:
        runs, _ = self._inline.read(line, final=True, style="", before="")
        return self._paint(runs) + self._style("") + "\n"

    def _flush_rows(self) -> str:
        rows, self._rows = self._rows, []
        if len(rows) < 2:
            return "".join(map(self._as_text, rows))
        aligns = [_alignment(cell) for cell in _cells(rows[1])]
        texts = [_cells(row) for row in (rows[0], *rows[2:])]
        count = max(map(len, texts))
        aligns += ["left"] * (count - len(aligns))
        head = BOLD if self._colour else ""
        cells: list[list[Line]] = []
        for number, row in enumerate(texts):
            row += [""] * (count - len(row))
            style = "" if number else head
            cells.append([self._inline.read(text, final=True, style=style)[0] for text in row])
        lines = table(cells, aligns[:count], self._width)
        show = paint if self._colour else plain
        return "".join(f"{show(line)}\n" for line in lines)

    # Colour.

    def _paint(self, runs: list[Run]) -> str:
        return "".join(self._style(style) + text for text, style in runs if text)

    def _style(self, style: str) -> str:
        if not self._colour or style == self._drawn:
            return ""
        change = (RESET if self._drawn else "") + style
        self._drawn = style
        return change


def _is_delimiter(line: str) -> bool:
    return _DELIMITERS.fullmatch(line) is not None


def _alignment(cell: str) -> str:
    if cell.endswith(":"):
        return "center" if cell.startswith(":") else "right"
    return "left"


def _cells(row: str) -> list[str]:
    """The cells of a row: cut at bars that are neither escaped nor inside a code span."""
    row = row.strip(" \t").removeprefix("|")
    cells, cell, ticks, at = [], "", "", 0
    while at < len(row):
        c = row[at]
        if c == "\\" and row[at + 1 : at + 2] == "|":
            cell, at = cell + "|", at + 2
            continue
        if c == "`":
            run = len(row[at:]) - len(row[at:].lstrip("`"))
            mark = "`" * run
            if ticks == mark:
                ticks = ""
            elif not ticks and mark in row[at + run :]:
                ticks = mark
            cell, at = cell + mark, at + run
            continue
        if c == "|" and not ticks:
            cells.append(cell)
            cell = ""
        else:
            cell += c
        at += 1
    if cell.strip() or not cells:
        cells.append(cell)
    return [each.strip(" \t").replace("\t", " ") for each in cells]
