"""Chat exports that are lines of text → messages, in flat memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from chatbench.corpus.document import Failure
from chatbench.corpus.formats.chatlog_dialects import (
    ALL_MARKS,
    APP_MARK,
    ATTACHED,
    DIALECTS,
    EDITED,
    LEVEL,
    PREFACE,
    Dialect,
    Header,
)
from chatbench.corpus.formats.chatlog_times import SECONDS_A_DAY, DateOrder, date_order, day_of
from chatbench.corpus.sources.encodings import Line

_SLACK_BACK = 3600
_ENOUGH = 3
_LINES_A_HEADER = 20


class Said(NamedTuple):
    """A message. `key` tells senders apart, `name` is what people read. `seconds` count from some
    day; `day` is an ISO date or "" where it is not certain."""

    where: str
    key: str
    name: str
    text: str
    seconds: int | None = None
    day: str = ""


def dialect_of(lines: Sequence[str], is_forced: bool = False) -> Dialect | None:
    """The dialect of a file that begins with these lines; None when it is no chat export.

    The file has to begin with a header, or with QQ's preface; three lines are headers, two of them
    somebody's, and none of the senders is a level of a program's log. When the person says that it
    is a chat export, the dialect with the most headers is taken.
    """
    if is_forced:
        counts = [sum(bool(d.header(line)) for line in lines) for d in DIALECTS]
        return DIALECTS[counts.index(max(counts))] if max(counts) else None
    first = next((place for place, line in enumerate(lines) if line.strip()), None)
    if first is None:
        return None
    start = first
    if lines[first].startswith("消息记录"):
        while start < len(lines) and PREFACE.match(lines[start].strip()):
            start += 1
    tried = list(lines[start:])
    for dialect in DIALECTS:
        if tried and dialect.header(tried[0]) and _fits(dialect, tried):
            return dialect
    return None


def _fits(dialect: Dialect, lines: list[str]) -> bool:
    headers = [dialect.header(line) for line in lines]
    count = sum(map(bool, headers))
    names = [header.name for header in headers if header and header.name is not None]
    levels = sum(LEVEL.fullmatch(name) is not None for name in names)
    full = sum(bool(line.strip()) for line in lines)
    return (
        count >= _ENOUGH
        and len(names) > 1
        and 10 * levels <= len(names)
        and _LINES_A_HEADER * count >= full
        and dialect.shown(lines, headers)
    )


def order_of(dialect: Dialect, lines: Iterable[str]) -> DateOrder:
    headers = map(dialect.header, lines)
    return date_order([header.numbers for header in headers if header and header.numbers])


def messages(
    lines: Iterable[Line | Failure], name: str, dialect: Dialect, order: DateOrder, max_chars: int
) -> Iterator[Said | Failure]:
    """What people said, in order; lines of the program and what stands for pictures are left out.

    A message of more than `max_chars` characters is a Failure, of which only the beginning is held.
    """
    reader = _Reader(name, dialect, order, max_chars)
    for line in lines:
        if isinstance(line, Failure):
            yield line
        else:
            yield from reader.take(line)
    yield from reader.flush()


class _Reader:
    """The message that is being read, and where its clock stands."""

    def __init__(self, name: str, dialect: Dialect, order: DateOrder, max_chars: int) -> None:
        self._name, self._dialect, self._max = name, dialect, max_chars
        self._order = order
        self._open: Header | None = None
        self._number = 0
        self._lines: list[str] = []
        self._size = 0
        self._day_start = self._last = 0
        self._outside = False

    def take(self, line: Line) -> Iterator[Said | Failure]:
        header = self._dialect.header(line.text)
        if header is not None:
            yield from self.flush()
            self._open, self._number = header, line.number
            self._lines, self._size = [header.text], len(header.text)
        elif self._open is not None:
            self._size += len(line.text) + 1
            if self._size <= self._max:
                self._lines.append(line.text)
        elif not self._outside and PREFACE.match(line.text.strip()) is None:
            self._outside = True
            where = f"{self._name}:{line.number}"
            yield Failure(where, "text before the first message", "", line.text[:200])

    def flush(self) -> Iterator[Said | Failure]:
        header, self._open = self._open, None
        if header is None:
            return
        seconds, day = self._time(header)
        if header.name is None:
            return
        where = f"{self._name}:{self._number}"
        if self._size > self._max:
            detail = f"{self._size} characters; at most {self._max} are read"
            yield Failure(where, "record too long", detail, self._lines[0][:200])
            return
        text = self._text()
        if text:
            yield Said(where, header.name, header.name, text, seconds, day)

    def _text(self) -> str:
        kept = [line for line in map(self._plain, self._lines) if line is not None]
        return "\n".join(kept).strip().strip(APP_MARK).strip()

    def _plain(self, line: str) -> str | None:
        """A line without what the program added to it; None when nothing else was in it."""
        if self._dialect.has_marks:
            if line.startswith(APP_MARK):
                return None  # on iOS the mark stands before what the program itself says
            if "<" in line:
                line = ATTACHED.sub("", EDITED.sub("", line))
        bare = ALL_MARKS.sub("", line).strip()
        return None if self._dialect.noise.fullmatch(bare) else line

    def _time(self, header: Header) -> tuple[int | None, str]:
        if header.numbers is not None:
            day = day_of(header.numbers, self._order.day_first)
            if day is None:  # what the head left open is decided here
                self._order = DateOrder(not self._order.day_first, True)
                day = day_of(header.numbers, self._order.day_first)
            if day is None:
                return None, ""
            shown = day.isoformat() if self._order.is_certain else ""
            return SECONDS_A_DAY * day.toordinal() + (header.clock or 0), shown
        if header.clock is None:
            return None, ""
        # A clock without dates runs on into the next day; small steps back are corrections.
        if self._day_start + header.clock < self._last - _SLACK_BACK:
            self._day_start += SECONDS_A_DAY
        self._last = self._day_start + header.clock
        return self._last, ""
