"""Markup with places for contents: cut from a rendered template, filled, and encoded.

A layout is what a template writes around contents. Encoding it keeps a promise: the ids of a
prompt begin the ids of every conversation that continues it, even where the tokenizer would have
merged characters across the border; there, and only there, the text is cut.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from chatbench.errors import IntegrityError

if TYPE_CHECKING:
    from chatbench.text.tokenizer import Tokenizer

# Private-use characters of the last plane: no case, no white space, nothing a template changes.
_DIGITS = [chr(0x10F000 + digit) for digit in range(10)]
_OPEN, _CLOSE = chr(0x10F010), chr(0x10F011)
_RESERVED = re.compile(f"[{_DIGITS[0]}-{_DIGITS[9]}{_OPEN}{_CLOSE}]")
_WIDTH = 6
_MARK = re.compile(f"{_OPEN}([{_DIGITS[0]}-{_DIGITS[9]}]{{{_WIDTH}}}){_CLOSE}")
_KEPT_TAILS = 256
# What a text cut in two may be encoded behind, so that its second half gets no opening blank.
_LEADS = ("\n", "a", "。", "1")

Part = tuple[str, bool]
Span = tuple[int, int]


def mark(message: int) -> str:
    """What stands for the content of this message; all marks are equally long."""
    return _OPEN + "".join(_DIGITS[int(d)] for d in f"{message:0{_WIDTH}}") + _CLOSE


def reserved_in(text: str) -> bool:
    """Whether `text` holds characters that marks are made of."""
    return bool(_RESERVED.search(text))


class Layout(NamedTuple):
    """Markup, and the numbers of the messages whose contents stand between it."""

    pieces: tuple[str | int, ...]

    def messages(self) -> set[int]:
        """Those that occur."""
        return {piece for piece in self.pieces if isinstance(piece, int)}

    def begins(self, longer: Layout) -> bool:
        """Whether `longer` starts with all of this."""
        if not self.pieces:
            return True
        *before, last = self.pieces
        if len(longer.pieces) < len(self.pieces) or list(longer.pieces[: len(before)]) != before:
            return False
        other = longer.pieces[len(before)]
        if isinstance(last, str) and isinstance(other, str):
            return other.startswith(last)
        return last == other

    def until(self, message: int, longer: Layout) -> Layout:
        """This and what `longer`, which it begins, writes before the content of `message`;
        without blanks at the end."""
        if message not in longer.pieces:
            return self
        before = longer.pieces[: longer.pieces.index(message)]
        if before and isinstance(before[-1], str):
            shared = self.pieces[len(before) - 1] if len(self.pieces) == len(before) else ""
            kept = max(before[-1].rstrip(" "), str(shared), key=len)
            before = (*before[:-1], kept) if kept else before[:-1]
        return Layout(before) if len(before) >= len(self.pieces) else self

    def parts(self, contents: Sequence[str]) -> list[Part]:
        """The text, and which of it is markup."""
        return [
            (piece, True) if isinstance(piece, str) else (contents[piece], False)
            for piece in self.pieces
        ]

    def length(self, contents: Sequence[str]) -> int:
        """Characters."""
        return sum(len(text) for text, _ in self.parts(contents))


def cut_at_marks(text: str, messages: int) -> Layout:
    """What a template wrote for messages with marks as contents.

    Raises IntegrityError when it took marks apart or made some up.
    """
    pieces: list[str | int] = []
    for number, piece in enumerate(_MARK.split(text)):
        if number % 2:
            which = int("".join(str(_DIGITS.index(digit)) for digit in piece))
            if which >= messages:
                raise _unusable("makes up contents")
            pieces.append(which)
        elif reserved_in(piece):
            raise _unusable("takes contents apart")
        elif re.search("[\ud800-\udfff]", piece):
            raise _unusable("writes what is no text")
        elif piece:
            pieces.append(piece)
    return Layout(tuple(pieces))


def _unusable(what: str) -> IntegrityError:
    return IntegrityError(
        f"the chat template {what}",
        hint="give another with --template: chatml, llama3, zephyr, mistral, plain or a Jinja file",
    )


class Place(NamedTuple):
    """Where the content of a message stands, in characters."""

    message: int
    start: int
    end: int


class Encoded(NamedTuple):
    """Ids with the characters they stand for; `borders` are numbers of ids, one for each prompt
    asked for; `places` in the order of the text."""

    ids: list[int]
    spans: list[Span]
    borders: list[int]
    places: list[Place]

    def first(self, place: Place) -> int:
        """The first id that is not wholly before this content."""
        return bisect_right(self.spans, place.start, key=itemgetter(1))

    def reply(self, place: Place, stops: frozenset[int]) -> tuple[int, int]:
        """The ids from this content's first to the one that ends the turn."""
        begin = self.first(place)
        next_start = min(
            (other.start for other in self.places if other.start > place.start),
            default=self.spans[-1][1] + 1 if self.spans else 0,
        )
        end = begin
        for number in range(begin, len(self.ids)):
            start, _ = self.spans[number]
            if start >= place.end and self.ids[number] in stops:
                return begin, number + 1
            if start >= next_start:
                break
            if start < place.end:
                end = number + 1
        return begin, end


class LayoutEncoder:
    """Encodes layouts with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        marks = [text for text, n in tokenizer.controls.items() if n in tokenizer.control_ids]
        controls = sorted(marks, key=len, reverse=True)
        self._controls = re.compile("|".join(map(re.escape, controls)) or "(?!)")
        self._tail_ids = lru_cache(maxsize=_KEPT_TAILS)(self._ids_of_tail)
        ends = [text for text, n in tokenizer.controls.items() if n == tokenizer.end_of_text]
        self._anchor = ends[0] if ends else ""

    def encode(self, layout: Layout, contents: Sequence[str], prompts: Sequence[Layout]) -> Encoded:
        """The ids of a layout filled with contents; after the ids of each of `prompts`, with
        which the layout begins, a new id begins. Raises DataError for lone surrogates."""
        return next(self.encode_batch([(layout, contents, prompts)]))

    def encode_batch(
        self, jobs: Sequence[tuple[Layout, Sequence[str], Sequence[Layout]]]
    ) -> Iterator[Encoded]:
        """`encode` of each, in parallel."""
        texts = [layout.parts(contents) for layout, contents, _ in jobs]
        for job, parts, whole in zip(
            jobs, texts, self._tokenizer.encode_marked_batch(texts), strict=True
        ):
            yield self._bordered(*job, parts, whole)

    def _bordered(
        self,
        layout: Layout,
        contents: Sequence[str],
        prompts: Sequence[Layout],
        parts: list[Part],
        whole: tuple[list[int], list[Span]],
    ) -> Encoded:
        """What is encoded as a whole, cut where a prompt needs it."""
        ids, spans = whole
        places: list[Place] = []
        at = 0
        for piece, (text, _) in zip(layout.pieces, parts, strict=True):
            if isinstance(piece, int):
                places.append(Place(piece, at, at + len(text)))
            at += len(text)
        borders = [self._quick_border(p, p.length(contents), ids, spans) for p in prompts]
        if None in borders:
            cuts: list[int] = []
            sizes: list[int] = []
            ends = [prompt.length(contents) for prompt in prompts]
            for end, following in zip(ends, [*ends[1:], at], strict=True):
                before = self._encode(_head(parts, end), cuts)[0]
                after = self._encode(_head(parts, following), cuts)[0]
                if after[: len(before)] != before:
                    cuts.append(end)
                sizes.append(len(before))
            ids, spans = self._encode(parts, cuts)
            return Encoded(ids, spans, sizes, places)
        return Encoded(ids, spans, [border for border in borders if border is not None], places)

    def _quick_border(
        self, prompt: Layout, end: int, ids: list[int], spans: list[Span]
    ) -> int | None:
        """How many of `ids` the prompt has, when its last control token shows that the rest of it
        is encoded alike; what comes before a control token does not depend on what follows."""
        last = prompt.pieces[-1] if prompt.pieces else 0
        if not isinstance(last, str):
            return None
        found = list(self._controls.finditer(last))
        if not found:
            return None
        tail = last[found[-1].start() :]
        expected = self._tail_ids(tail)
        start = end - len(tail)
        number = bisect_left(spans, (start, start))
        while number < len(spans) and spans[number][0] == start and ids[number] != expected[0]:
            number += 1
        size = number + len(expected)
        fits = number < len(spans) and spans[number][0] == start
        return size if fits and ids[number:size] == list(expected) else None

    def _ids_of_tail(self, tail: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode_marked([(tail, True)])[0])

    def _encode(self, parts: list[Part], cuts: Sequence[int]) -> tuple[list[int], list[Span]]:
        ids: list[int] = []
        spans: list[Span] = []
        begin = 0
        total = sum(len(text) for text, _ in parts)
        for end in [*(cut for cut in cuts if cut < total), total]:
            piece = _head(parts, end, begin)
            more, where = self._continued(piece) if begin else self._tokenizer.encode_marked(piece)
            ids += more
            spans += [(begin + a, begin + b) for a, b in where] if begin else where
            begin = end
        return ids, spans

    def _continued(self, parts: list[Part]) -> tuple[list[int], list[Span]]:
        """`parts` as they are encoded in the middle of a text."""
        for lead in _LEADS:
            before = [(self._anchor, True), (lead, False)]
            base, _ = self._tokenizer.encode_marked(before)
            ids, spans = self._tokenizer.encode_marked([*before, *parts])
            if ids[: len(base)] == base:
                gone = len(self._anchor) + len(lead)
                later = [(max(0, a - gone), max(0, b - gone)) for a, b in spans[len(base) :]]
                return ids[len(base) :], later
        return self._tokenizer.encode_marked(parts)


def _head(parts: list[Part], end: int, begin: int = 0) -> list[Part]:
    """The parts between two characters of their text."""
    found: list[Part] = []
    at = 0
    for text, is_markup in parts:
        piece = text[max(0, begin - at) : max(0, end - at)]
        if piece or (not text and begin <= at < end):
            found.append((piece, is_markup))
        at += len(text)
    return found
