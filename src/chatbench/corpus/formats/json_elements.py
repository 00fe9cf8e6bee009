"""The entries of a long JSON list, one by one, without parsing them and past broken ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

# A string ends at the line end at the latest: JSON allows none inside, and so a quote that was
# never closed spoils one line and not the rest of the file.
_TOKEN = re.compile(rb'"(?:[^"\\\n]++|\\.)*+("?)|[{}\[\]]')
_PLAIN = rb'[^"{}\[\]]*+(?:"(?:[^"\\\n]++|\\.)*+"[^"{}\[\]]*+)*+'
_FIRST_KEY = re.compile(rb'\{\s*("(?:[^"\\\n]|\\.)*")')
_SCALAR_END = re.compile(rb"[,\s\]}]")
_GAP = re.compile(rb"[\s,]*")
_CLOSING, _ESCAPE = ord("]"), ord("\\")
_MAX_RESTARTS = 20
_MAX_DEPTH = 1000  # deeper than a parser goes
_OVERLAP = 4096
_SHOWN_BYTES = 2000


def _nested(depth: int) -> bytes:
    """A pattern of balanced brackets, at most `depth` deep, strings skipped."""
    inner = rb"(?:" + _nested(depth - 1) + _PLAIN + rb")*+" if depth > 1 else b""
    return rb"[{\[]" + _PLAIN + inner + rb"[}\]]"


# One match instead of a token at a time: what nearly all entries are.
_SHALLOW = re.compile(_nested(9))


class Element(NamedTuple):
    """The `number`-th entry; with a `problem`, `data` is the beginning of what is lost."""

    number: int
    data: bytes
    problem: str = ""
    detail: str = ""


def elements(
    start: bytes, blocks: Iterator[bytes], max_bytes: int, closed: bool = True
) -> Iterator[Element]:
    """The entries of a list whose content begins in `start` (behind the bracket) and goes on in
    `blocks`; with `closed` off, values that follow each other without a list around them.

    About one entry is held at a time. An entry that is no JSON is still given, for the caller to
    count; when it has swallowed its neighbours, reading starts again at the next place that looks
    like the first entry.
    """
    yield from _Scanner(start, blocks, max_bytes, closed).run()


class _Scanner:
    """`_data` from `_at` on is what is held and not yet given."""

    def __init__(self, start: bytes, blocks: Iterator[bytes], max_bytes: int, closed: bool) -> None:
        self._data = start
        self._at = 0
        self._blocks = blocks
        self._max_bytes = max_bytes
        self._closed = closed
        self._exhausted = False
        self._number = 0
        self._restarts = 0
        self._has_tail = False
        self._opening: re.Pattern[bytes] | None = None

    def run(self) -> Iterator[Element]:
        while self._skip_gap():
            if self._closed and self._data[self._at] == _CLOSING:
                if self._find_opening():
                    continue
                if self._has_tail:
                    yield self._broken(b"", "more follows the end of the list")
                return
            yield from self._entry()
        if self._closed:
            yield self._broken(b"", "the list does not end")

    def _more(self) -> bool:
        """Hold more of the file; at least as much again, so that long entries stay linear."""
        held = len(self._data) - self._at
        pieces, size = [self._data[self._at :]], 0
        while size <= held and not self._exhausted:
            block = next(self._blocks, None)
            if block is None:
                self._exhausted = True
                break
            pieces.append(block)
            size += len(block)
        self._data, self._at = b"".join(pieces), 0
        return size > 0

    def _skip_gap(self) -> bool:
        """Go to where the next entry begins; False at the end."""
        while True:
            found = _GAP.match(self._data, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._data):
                return True
            if not self._more():
                return False

    def _find_opening(self) -> bool:
        """Go to what begins as the first entry did, behind a bracket that closed a broken entry or
        behind one that is too long; False when there is none."""
        self._at = min(self._at + 1, len(self._data))
        while True:
            found = self._opening.search(self._data, self._at) if self._opening else None
            if found:
                self._at = found.start()
                self._has_tail = False
                return True
            self._has_tail = self._has_tail or bool(self._data[self._at :].strip())
            self._at = max(self._at, len(self._data) - _OVERLAP)
            if not self._more():
                break
        self._at = len(self._data)
        return False

    def _entry(self) -> Iterator[Element]:
        end = self._end()
        if self._opening is None:
            self._note_opening()
        if end is not None:
            data = self._data[self._at : end]
            swallowed = self._opening and self._opening.search(data, 1)
            if not swallowed or _is_json(data):
                self._at = end
                self._restarts = 0
                yield Element(self._next(), data)
                return
        yield from self._restart(end)

    def _restart(self, end: int | None) -> Iterator[Element]:
        """Lose one entry: up to the next one that begins as the first did."""
        self._restarts += 1
        start = self._at
        found = self._opening.search(self._data, start + 1) if self._opening else None
        if found and self._restarts <= _MAX_RESTARTS:
            self._at = found.start()
            lost = self._data[start : self._at]
            yield self._broken(lost, "the entry does not end where the next one begins")
            return
        self._restarts = 0
        lost = self._data[start:end]
        self._at = len(self._data) if end is None else end
        if end is None and not self._exhausted:
            detail = f"more than {self._max_bytes} bytes or {_MAX_DEPTH} levels"
            yield self._broken(lost, detail, "record too long")
            self._closed = self._find_opening() and self._closed
            return
        yield self._broken(lost, "the entry does not end")
        if self._at == len(self._data):
            self._closed = False  # the missing end is counted already

    def _end(self) -> int | None:
        """The end of the value that begins here; None when there is none within bounds."""
        if self._data[self._at : self._at + 1] not in (b"{", b"[", b'"'):
            return self._scalar_end()
        whole = _SHALLOW.match(self._data, self._at)
        if whole and whole.end() - self._at <= self._max_bytes:
            return whole.end()
        return self._deep_end()

    def _deep_end(self) -> int | None:
        """The same, token by token: for deep, broken and cut entries."""
        place, depth = self._at, 0
        while True:
            found = _TOKEN.search(self._data, place)
            if found is None or self._is_cut(found):
                behind = (found.start() if found else len(self._data)) - self._at
                if len(self._data) - self._at > self._max_bytes or not self._more():
                    return None
                place = self._at + behind
                continue
            place = found.end()
            token = found[0][:1]
            depth += (token in b"{[") - (token in b"}]")
            if place - self._at > self._max_bytes or depth > _MAX_DEPTH:
                return None
            if depth <= 0:
                return place

    def _is_cut(self, found: re.Match[bytes]) -> bool:
        """Whether a string goes on in what is not read yet."""
        if found[1] or found[0][:1] != b'"':
            return False
        end = found.end()
        return end == len(self._data) or (end == len(self._data) - 1 and self._data[end] == _ESCAPE)

    def _scalar_end(self) -> int:
        """The end of a number or word that stands where an object should; stray brackets are
        entries of their own."""
        while True:
            found = _SCALAR_END.search(self._data, self._at)
            if found:
                return max(found.start(), self._at + 1)
            if len(self._data) - self._at > self._max_bytes or not self._more():
                return len(self._data)

    def _note_opening(self) -> None:
        found = _FIRST_KEY.match(self._data, self._at)
        if found:
            self._opening = re.compile(rb"\{\s*" + re.escape(found[1]) + rb"\s*:")

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _broken(self, data: bytes, detail: str, problem: str = "bad JSON") -> Element:
        return Element(self._next(), data[:_SHOWN_BYTES], problem, detail)


def _is_json(data: bytes) -> bool:
    try:
        msgspec.json.decode(data, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
