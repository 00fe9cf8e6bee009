"""Which tokens step s trains on: a pure function of (seed, step), of nothing that happened before.

Texts are joined in a new random order each epoch and cut into full rows, so every token is a target
exactly once per epoch. Conversations are packed whole into rows in which they cannot see each
other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from chatbench.corpus.shards import TokenSplit
from chatbench.errors import DataError
from chatbench.model.attention import Packing
from chatbench.train.objective import Batch, GlobalBatch
from chatbench.train.tagging import Tagging

Ints = npt.NDArray[np.integer[Any]]


class Row(NamedTuple):
    """One training row, all arrays (T,)."""

    ids: Ints
    targets: Ints
    weights: npt.NDArray[np.float32]
    document: Ints
    position: Ints


class Rows(Protocol):
    """Rows of an epoch, by number."""

    isolated: bool

    def count(self) -> int: ...

    def row(self, epoch: int, number: int) -> Row: ...

    def weight(self, epoch: int, number: int) -> float:
        """The sum of a row's weights, without making the row."""


def permutation(seed: int, epoch: int, count: int) -> Ints:
    """The order of an epoch."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)


class StreamRows:
    """Documents end to end; each row continues where the one before stopped."""

    isolated = False

    def __init__(
        self, split: TokenSplit, seq_len: int, end_of_text: int, seed: int, *,
        tag_dropout: float = 0.0,
    ) -> None:  # fmt: skip
        self._split = split
        self._tags = Tagging(split, tag_dropout, seed)
        self._seq_len = seq_len
        self._end_of_text = end_of_text
        self._seed = seed
        self._order = lru_cache(maxsize=2)(self._order_of)

    def count(self) -> int:
        return -(-(self._split.tokens + self._tags.most_growth) // self._seq_len)

    def _order_of(self, epoch: int) -> tuple[Ints, Ints]:
        order = permutation(self._seed, epoch, len(self._split))
        lengths = self._split.lengths
        if self._tags.drops:
            lengths = lengths + self._tags.growth(epoch)
        return order, np.cumsum(lengths[order])

    def _borders(self, epoch: int, number: int) -> tuple[int, int]:
        """Begin and end of a row in the epoch's stream. Where tags are left out the stream is
        shorter than the rows would hold, and shared out evenly."""
        if not self._tags.drops:
            begin = number * self._seq_len
            return begin, min(begin + self._seq_len, self._split.tokens)
        tokens = int(self._order(epoch)[1][-1])
        return number * tokens // self.count(), (number + 1) * tokens // self.count()

    def row(self, epoch: int, number: int) -> Row:
        """Targets are tokens of the epoch's stream, row after row; inputs lie one token earlier."""
        begin, end = self._borders(epoch, number)
        targets = self._stream(epoch, begin, end)
        before = self._stream(epoch, begin - 1, begin) if begin else self._end_of_text
        ids = np.empty_like(targets)
        ids[:1], ids[1:] = before, targets[:-1]
        short = self._seq_len - len(targets)
        weights = np.ones(len(targets), np.float32)
        zeros = np.zeros(self._seq_len, np.int64)
        return Row(
            np.pad(ids, (0, short)),
            np.pad(targets, (0, short)),
            np.pad(weights, (0, short)),
            zeros,
            np.arange(self._seq_len),
        )

    def weight(self, epoch: int, number: int) -> float:
        begin, end = self._borders(epoch, number)
        return float(end - begin)

    def _stream(self, epoch: int, begin: int, end: int) -> Ints:
        order, ends = self._order(epoch)
        first = int(np.searchsorted(ends, begin, side="right"))
        pieces: list[Ints] = []
        for place in range(first, len(order)):
            start = int(ends[place - 1]) if place else 0
            if start >= end:
                break
            ids = self._tags.ids(epoch, int(order[place]))
            pieces.append(ids[max(0, begin - start) : end - start].astype(np.int64))
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)


class Span(NamedTuple):
    """Tokens start..end of one document."""

    document: int
    start: int
    end: int

    @property
    def length(self) -> int:
        """Row places it takes: every token but the first is a target."""
        return self.end - self.start - 1


@dataclass
class Tally:
    """What the rows of a split were made of. `tokens`: targets, of which `learned` weigh something,
    and `of_chats` with `of_replies` are those of conversations alone; `cut` conversations were
    longer than a row and became `pieces`, in which `orphans` replies stand without their question;
    `skipped` texts and pieces hold nothing to learn."""

    tokens: int = 0
    learned: float = 0.0
    of_chats: int = 0
    of_replies: float = 0.0
    replies: int = 0
    cut: int = 0
    pieces: int = 0
    orphans: int = 0
    skipped: int = 0


class PackedRows:
    """Whole conversations, best fit, apart from each other."""

    isolated = True

    def __init__(
        self,
        split: TokenSplit,
        seq_len: int,
        turn_start: int | None,
        seed: int,
        *,
        user_turn: Sequence[int] = (),
        train_on: str = "assistant",
        tag_dropout: float = 0.0,
    ) -> None:
        """`turn_start` begins every turn, where there is such a token, and `user_turn` a person's.

        `train_on`: the replies (assistant), the last one of each conversation that counts (last),
        or every token (all). But for `all`, plain texts that are not replayed and pieces
        without a reply are left out. Of a plain text the first token is learned, of a conversation
        never.
        """
        self._split = split
        self._turn_start = turn_start
        opening = user_turn or (() if turn_start is None else (turn_start,))
        self._user_turn = np.asarray(opening, np.int64)
        self._seq_len = seq_len
        self._seed = seed
        self._train_on = train_on
        self._tags = Tagging(split, tag_dropout, seed)
        self.tally = Tally()
        spans = []
        for document in permutation(seed, -1 & 0xFFFFFFFF, len(split)):
            spans += self._counted(int(document))
        # A row has room for what a conversation is with its tags or without, whichever is more.
        self.places = [self._tags.longest(*span, seq_len + 1) - 1 for span in spans]
        self._bins = pack(self.places, seq_len)
        self._spans_kept = spans
        self._order = lru_cache(maxsize=2)(lambda epoch: permutation(seed, epoch, len(self._bins)))

    def _counted(self, document: int) -> list[Span]:
        """What of a document is learned from."""
        tally, spans = self.tally, self._spans(document)
        replies = borders_of(self._split.weights(document))
        is_text = bool(len(replies)) and replies[0][0] == 0
        kept = []
        for span in spans:
            learned = float(self._learned(span).sum(dtype=np.float64))
            if not learned:
                tally.skipped += 1
                continue
            kept.append(span)
            tally.tokens += span.length
            tally.learned += learned
            if not is_text:
                tally.of_chats += span.length
                tally.of_replies += learned
        if not is_text and kept:
            tally.replies += 1 if self._train_on == "last" else len(replies)
            if len(spans) > 1:
                tally.cut += 1
                tally.pieces += len(spans)
                tally.orphans += sum(self._orphans(span) for span in kept if span.start)
        return kept

    def _orphans(self, span: Span) -> int:
        """Replies, or ends of them, before the first question of a piece."""
        ids = self._split.ids(span.document)[span.start : span.end]
        asked = int(_occurrences(ids, self._user_turn).min(initial=len(ids)))
        learned: npt.NDArray[Any] = self._learned(span)
        if self._train_on == "all":
            learned = self._split.weights(span.document)[span.start + 1 : span.end]
        return sum(1 for begin, _ in borders_of(learned) if begin + 1 < asked)

    def _learned(self, span: Span) -> npt.NDArray[np.float32]:
        if self._train_on == "all":
            return np.ones(span.length, np.float32)
        weights = self._split.weights(span.document)
        if weights[:1].any() and not self._split.is_replayed(span.document):
            return np.zeros(span.length, np.float32)
        learned: npt.NDArray[np.float32] = weights[span.start + 1 : span.end].astype(np.float32)
        if self._train_on == "last" and not weights[:1].any():
            last = int(borders_of(weights)[-1][0]) if weights.any() else len(weights)
            learned[: max(0, last - span.start - 1)] = 0
        return learned

    def _piece(self, epoch: int, span: Span) -> tuple[Ints, npt.NDArray[np.float32]]:
        """Ids of a span with the tags that it has in this epoch, and what each is worth as a
        target; the first is none."""
        ids = self._split.ids(span.document)[span.start : span.end]
        learned = np.concatenate([np.zeros(1, np.float32), self._learned(span)])
        splice = self._tags.splice(epoch, *span, self._seq_len + 1)
        if splice is None:
            return ids, learned
        ids, learned = splice.applied(ids, learned, span.start)
        return ids, np.ones_like(learned) if self._train_on == "all" else learned

    def _spans(self, document: int) -> list[Span]:
        """The document whole, or cut where turns begin when it is longer than a row."""
        ids = self._split.ids(document)
        limit = self._seq_len + 1
        if len(ids) <= limit:
            return [Span(document, 0, len(ids))] if len(ids) > 1 else []
        # A reply should keep its question, so the border is a user's turn where one fits.
        questions = _occurrences(ids, self._user_turn)
        turns = questions if self._turn_start is None else np.flatnonzero(ids == self._turn_start)
        spans = []
        start = 0
        while start < len(ids) - 1:
            end = min(start + limit, len(ids))
            borders = _inside(questions, start, end) if end < len(ids) else turns[:0]
            if end < len(ids) and not len(borders):
                borders = _inside(turns, start, end)
            if len(borders):
                end = int(borders[-1])
            spans.append(Span(document, start, end))
            # Inside a turn the last token is read again, so that the next one stays a target.
            start = end if len(borders) else end - 1
        return spans

    def count(self) -> int:
        return len(self._bins)

    def weight(self, epoch: int, number: int) -> float:
        spans = (self._spans_kept[which] for which in self._bins[int(self._order(epoch)[number])])
        return float(sum(self._piece(epoch, span)[1][1:].sum(dtype=np.float64) for span in spans))

    def row(self, epoch: int, number: int) -> Row:
        ids, targets, document, position = (np.zeros(self._seq_len, np.int64) for _ in range(4))
        weights = np.zeros(self._seq_len, np.float32)
        at = 0
        for name, which in enumerate(self._bins[int(self._order(epoch)[number])], 1):
            span = self._spans_kept[which]
            tokens, learned = self._piece(epoch, span)
            length = len(tokens) - 1
            place = slice(at, at + length)
            ids[place], targets[place] = tokens[:-1], tokens[1:]
            weights[place] = learned[1:]
            document[place], position[place] = name, np.arange(length)
            at += length
        return Row(ids, targets, weights, document, position)


def borders_of(weights: npt.NDArray[Any]) -> Ints:
    """Begin and end of every stretch that weighs something, (runs, 2)."""
    weighed = np.zeros(len(weights) + 2, np.int8)
    weighed[1:-1] = weights > 0
    found: Ints = np.flatnonzero(np.diff(weighed)).reshape(-1, 2)
    return found


def _occurrences(ids: Ints, sought: Ints) -> Ints:
    """Where `sought` begins in `ids`; nowhere when it is empty."""
    if not len(sought):
        return np.zeros(0, np.int64)
    places = np.flatnonzero(ids[: max(0, len(ids) - len(sought) + 1)] == sought[0])
    asks = [bool(np.array_equal(ids[p : p + len(sought)], sought)) for p in places]
    found: Ints = places[np.asarray(asks, bool)]
    return found


def _inside(places: Ints, start: int, end: int) -> Ints:
    return places[(places > start) & (places <= end)]


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit bins of items, in the order given: each goes where it leaves the least room."""
    open_bins: list[list[list[int]]] = [[] for _ in range(capacity + 1)]  # by free room
    bins: list[list[int]] = []
    for item, length in enumerate(lengths):
        room = next((r for r in range(length, capacity + 1) if open_bins[r]), None)
        if room is None:
            chosen: list[int] = []
            bins.append(chosen)
            room = capacity
        else:
            chosen = open_bins[room].pop()
        chosen.append(item)
        open_bins[room - length].append(chosen)
    return bins


class Batches:
    """Global batches of `rows_per_step` rows in micro-batches; of several ranks each takes its own
    rows of the same global batch."""

    def __init__(
        self, rows: Rows, rows_per_step: int, micro_batch: int, *, rank: int = 0, ranks: int = 1
    ) -> None:
        if not rows.count():
            raise DataError("the training split holds nothing to learn from")
        self._rows = rows
        self._per_step = rows_per_step
        self._micro = micro_batch
        self._rank, self._ranks = rank, ranks

    def batch(self, step: int) -> GlobalBatch:
        """Rows step·R .. of the endless sequence of epochs; rank r takes r, r + ranks, ….

        `weight` and `tokens` are those of all ranks. All have as many micro-batches: what a rank
        lacks is a row that counts for nothing.
        """
        first = step * self._per_step
        places = [
            divmod(index, self._rows.count()) for index in range(first, first + self._per_step)
        ]
        rows = [self._rows.row(*place) for place in places[self._rank :: self._ranks]]
        wanted = -(-self._per_step // self._ranks)
        if len(rows) < wanted:
            row = rows[0] if rows else self._rows.row(*places[0])
            rows.append(row._replace(weights=np.zeros_like(row.weights)))
        parts = [
            collate(rows[begin : begin + self._micro], self._rows.isolated)
            for begin in range(0, len(rows), self._micro)
        ]
        if self._ranks == 1:
            weight = sum(row.weights.sum(dtype=np.float64) for row in rows)
        else:
            weight = sum(self._rows.weight(*place) for place in places)
        return GlobalBatch(parts, float(weight), self._per_step * len(rows[0].ids))


def collate(rows: Sequence[Row], isolated: bool) -> Batch:
    """Rows → tensors; columns that no row uses are cut off."""
    used = max(int(np.flatnonzero(row.weights).max(initial=-1)) for row in rows) + 1
    ids, targets, weights, document, position = (
        torch.from_numpy(np.stack(column)[:, : max(1, used)]) for column in zip(*rows, strict=True)
    )
    packing = Packing(document, position) if isolated else None
    return Batch(ids, targets, weights, packing)


def held_out(rows: Rows, micro_batch: int, tokens: int) -> list[Batch]:
    """The first rows of a validation split, about `tokens` of them, always the same."""
    if not rows.count():
        return []
    first = rows.row(0, 0)
    count = min(rows.count(), max(1, tokens // len(first.ids)))
    chosen = [rows.row(0, number) for number in range(count)]
    return [
        collate(chosen[b : b + micro_batch], rows.isolated) for b in range(0, count, micro_batch)
    ]
