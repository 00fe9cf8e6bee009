"""stdout carries data, stderr speaks to people, neither ever obeys what a model wrote."""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from chatbench.errors import EnvironmentFault

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_LINE_SECONDS = 10.0
# Set in the environment of processes that share a job: they keep to one thread and stay silent.
WORKER = "CHATBENCH_WORKER"

# Unicode 16, Cf and default ignorable: what turns the direction of the text around it, or is there
# and not seen. Joiners and variation selectors 1 to 16 are not listed: emoji and several scripts
# are spelt with them (see chat/display.py for those that join nothing).
_HIDDEN = (
    (0x00AD, 0x00AD), (0x061C, 0x061C), (0x180B, 0x180F), (0x200B, 0x200B), (0x200E, 0x200F),
    (0x202A, 0x202E), (0x2060, 0x206F), (0xFEFF, 0xFEFF), (0xFFF0, 0xFFFB), (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip
_KEPT = frozenset("\n\t")


def visible(text: str) -> str:
    """`text` with every control character drawn instead of obeyed; newline and tab stay.

    C0 becomes its control picture (ESC is shown as ␛); C1, bidirectional controls, line separators
    and characters that nobody sees become `\\x9b`, `\\u202e` or `\\U000e0041`. Safe at any split:
    no state is carried between calls.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible_character(c) for c in text)


def _visible_character(c: str) -> str:
    if c in _KEPT:
        return c
    code = ord(c)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or is_hidden(c):
        return escaped(c)
    return c


def is_hidden(c: str) -> bool:
    """Whether a character turns text around, or is in it without being seen."""
    code = ord(c)
    return code >= 0xAD and any(first <= code <= last for first, last in _HIDDEN)


def escaped(c: str) -> str:
    """A character by its number, as Python spells it."""
    code = ord(c)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


@lru_cache(maxsize=1)
def people() -> Console:
    """The one console on stderr."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, emoji=False, soft_wrap=True)


def width() -> int:
    """Columns of the terminal; 160 where there is none."""
    return people().width if people().is_terminal else 160


def is_animated() -> bool:
    """Whether stderr is a terminal on which lines can be drawn again."""
    there = sys.stderr is not None and sys.stderr.isatty()
    return there and people().is_terminal and not people().is_dumb_terminal


def say(text: str, style: str | None = None) -> None:
    """One status line for people, on stderr, with nothing in it interpreted."""
    from rich.text import Text

    people().print(Text(visible(text), style or ""))  # a style of print would reach a live block


def notice(text: str) -> None:
    """A status line that people should not miss."""
    say(f"note: {text}", style="yellow")


def fail(text: str) -> None:
    """The one line a user's mistake gets."""
    say(f"error: {' '.join(text.split())}", style="bold red")


def table(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table for people, on stderr; the first column is a label, the others are right-aligned."""
    from rich.table import Table

    grid = Table(title=visible(title) or None, title_justify="left", box=None, pad_edge=False)
    for position, header in enumerate(headers):
        grid.add_column(visible(header), justify="left" if position == 0 else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*(visible(cell) for cell in row))
    people().print(grid)


def emit(text: str, end: str = "\n") -> None:
    """Data, on stdout, at once. Raises EnvironmentFault when stdout is closed or full."""
    if sys.stdout is None:
        raise EnvironmentFault("stdout is closed", hint="give it a terminal, a file or a pipe")
    try:
        sys.stdout.write(text + end)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        silence_stdout()
        raise EnvironmentFault(f"cannot write to stdout: {error.strerror}") from error


def stdout_is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def stdin_is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def silence_stdout() -> None:
    """After a broken pipe: keep the interpreter from failing again while it shuts down."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class ProgressLine:
    """A bar on a terminal; elsewhere one plain line every few seconds; gone when done."""

    def __init__(self, label: str, total: float) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._total = total
        self._label = label
        self._last_plain = time.monotonic()
        self._live = people().is_terminal
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=people(),
            disable=not self._live,
            transient=True,
        )
        self._task = self._progress.add_task(label, total=total, detail="")

    def __enter__(self) -> ProgressLine:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, completed: float, detail: str) -> None:
        """Move to `completed` of the total and show `detail` beside it."""
        self._progress.update(self._task, completed=completed, detail=detail)
        now = time.monotonic()
        if not self._live and now - self._last_plain >= PLAIN_LINE_SECONDS:
            self._last_plain = now
            say(f"{self._label} {100 * completed / self._total:3.0f} %  {detail}")


def counted(number: int, one: str, several: str | None = None) -> str:
    """`1 reply is` or `1,234 replies are`: what is counted, in the words for one or for several."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def format_duration(seconds: float) -> str:
    """`95` → `1m35s`."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def format_count(number: float) -> str:
    """`1234567` → `1.23M`."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{suffix}"
    return f"{number:.4g}"
