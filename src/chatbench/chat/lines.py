"""JSON Lines in, JSON Lines out: rows join the engine as others end, replies keep their order."""

from __future__ import annotations

import os
import select
from collections import Counter, deque

from chatbench import console
from chatbench.chat.asking import LONGEST_LINE, Asked, Asker, Line, identity, json_line
from chatbench.chat.forms import drawn
from chatbench.chat.interrupt import Interrupt
from chatbench.chat.replies import ReplyFile
from chatbench.engine.engine import Completion, Request
from chatbench.errors import ExitCode

_READ_BYTES = 1 << 16
# Prompts that may wait for an earlier one to end, for each row of the engine.
_WINDOW = 4


class LineReader:
    """Lines of a file descriptor, one by one, as soon as they are there.

    Reads only when it is asked for a line, so that whoever writes waits while we compute; it holds
    64 KiB and one line. Blank lines count but are left out.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: deque[Line] = deque()
        self._begun = bytearray()
        self._size = 0
        self._number = 0
        self._ended = False

    def next(self, *, wait: bool) -> Line | None:
        """The next line; None at the end, or when there is none yet and `wait` is not set."""
        while not self._lines and not self._ended:
            ready, _, _ = select.select([self._descriptor], [], [], None if wait else 0)
            if not ready or (not self._read() and not wait):
                return None
        return self._lines.popleft() if self._lines else None

    def _read(self) -> bool:
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:  # somebody else was quicker
            return False
        *ended, rest = data.split(b"\n")
        for part in ended:
            self._grow(part)
            self._end_line()
        self._grow(rest)
        if not data:
            self._ended = True
            if self._size:
                self._end_line()
        return True

    def _grow(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= LONGEST_LINE:
            self._begun += part
        else:
            self._begun.clear()

    def _end_line(self) -> None:
        self._number += 1
        if self._size > LONGEST_LINE:
            self._lines.append(Line(self._number, None))
        elif self._begun.strip():
            self._lines.append(Line(self._number, bytes(self._begun)))
        self._begun.clear()
        self._size = 0


class _Open:
    """A prompt whose reply is not written yet."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.replies: dict[int, Completion] = {}

    @property
    def complete(self) -> bool:
        return len(self.replies) == len(self.asked.requests)


class JsonLines:
    """Requests in, replies out: order kept, flushed, answered several at once.

    Memory holds a window of requests, and a digest of each id seen: one that comes again is an
    error. With `out`, replies are added to that file instead of stdout, and the k-th line with an
    id is passed over when the file holds k replies to it.
    """

    def __init__(self, asker: Asker, batch_size: int, out: ReplyFile | None = None) -> None:
        self._asker = asker
        self._engine = asker.engine
        self._most = _WINDOW * batch_size
        self._out = out
        self._seen: Counter[bytes] = Counter()
        self._window: deque[_Open] = deque()
        self._waiting: deque[Request] = deque()
        self._samples: dict[int, tuple[_Open, int]] = {}
        self._keys = 0
        self._failed = False
        self.written = 0
        self.passed_over = 0

    def run(self, descriptor: int) -> int:
        """Answer every line of the file descriptor; DATA when any line could not be. At SIGINT
        what is finished is written, and KeyboardInterrupt raised."""
        reader = LineReader(descriptor)
        with Interrupt() as interrupt:
            while True:
                with interrupt.waiting():
                    line = reader.next(wait=True)
                if line is None:
                    return ExitCode.DATA if self._failed else ExitCode.DONE
                self._ask(line)
                self._answer(reader, interrupt)
                interrupt.raise_if_asked()

    def _answer(self, reader: LineReader, interrupt: Interrupt) -> None:
        """Until nothing is left to do, with the lines that arrive meanwhile."""

        def arriving(free: int) -> list[Request]:
            while len(self._waiting) < free and len(self._window) < self._most:
                line = None if interrupt.asked else reader.next(wait=False)
                if line is None:
                    break
                self._ask(line)
            self._write()
            ready = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
            return [drawn(self._engine, request) for request in ready]

        for event in self._engine.run([], lambda: interrupt.asked, arriving):
            if isinstance(event, Completion) and event.finish_reason != "cancelled":
                entry, index = self._samples.pop(event.key)
                entry.replies[index] = event
                self._write()
        if interrupt.asked:
            unfinished = [entry for entry in self._window if not entry.complete]
            for entry in unfinished:
                self._window.remove(entry)
            self._write()

    def _ask(self, line: Line) -> None:
        asked = self._asker.line(line)
        known = identity(asked.id)
        self._seen[known] += 1
        if self._out is not None and self._seen[known] <= self._out.held[known]:
            self.passed_over += 1
            self._failed = self._failed or known in self._out.faults
            return
        if self._seen[known] > 1 and not asked.error:
            why = f"line {line.number}: an earlier line has this id; give each its own"
            asked = Asked(asked.id, [], why)
        entry = _Open(asked)
        self._window.append(entry)
        for index, request in enumerate(asked.requests):
            self._samples[self._keys] = (entry, index)
            self._waiting.append(request._replace(key=self._keys))
            self._keys += 1

    def _write(self) -> None:
        """What has ended and waits for nothing before it."""
        while self._window and self._window[0].complete:
            entry = self._window.popleft()
            lines = "".join(json_line(row) + "\n" for row in self._rows(entry))
            if self._out is None:
                console.emit(lines, end="")
            else:
                self._out.write(lines)
            self.written += 1

    def _rows(self, entry: _Open) -> list[dict[str, object]]:
        asked = entry.asked
        if asked.error:
            self._failed = True
            return [{"id": asked.id, "error": asked.error}]
        count = len(asked.requests)
        return [
            {"id": asked.id}
            | ({"index": index, "n": count} if count > 1 else {})
            | self._asker.told(request, entry.replies[index])
            | ({"dropped_turns": asked.dropped} if asked.dropped else {})
            for index, request in enumerate(asked.requests)
        ]
