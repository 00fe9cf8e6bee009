"""Preference pairs as training rows: both replies to a prompt always lie in one row.

They are two documents that cannot see each other, each with the prompt before it, so a batch may be
cut by rows anywhere and no pair is parted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from chatbench.corpus.shards import TokenSplit
from chatbench.train.batches import Ints, Row, collate, pack, permutation
from chatbench.train.objective import Batch, GlobalBatch

Floats = npt.NDArray[np.floating[Any]]
# What is held out where the corpus holds nothing out: of so many prompts one, of fewer than the
# fewest none.
_OF_PROMPTS = 20
_FEWEST_PROMPTS = 4


class Side(NamedTuple):
    """One reply to a prompt: tokens ..head and begin..end of a document, or with `rejected` of the
    ending that it rejects. From token `first` on counts what is learned of it."""

    document: int
    rejected: bool
    head: int
    begin: int
    end: int
    first: int

    @property
    def length(self) -> int:
        """Row places it takes: every token but the first is a target."""
        return self.head + self.end - self.begin - 1


class Pair(NamedTuple):
    chosen: Side
    rejected: Side

    @property
    def length(self) -> int:
        return self.chosen.length + self.rejected.length


class Found(NamedTuple):
    """The pairs of a split, and what is left out of it. `cut`: pairs whose oldest turns are left
    out; `long`: pairs too long even so; `same`: pairs in which nothing differs that is learned;
    `alone`: replies judged bad without a good one to the same prompt; `plain`: conversations and
    texts that are part of no pair."""

    pairs: list[Pair]
    cut: int = 0
    long: int = 0
    same: int = 0
    alone: int = 0
    plain: int = 0


def find_pairs(split: TokenSplit, seq_len: int, user_turn: Sequence[int]) -> Found:
    """Every document with a rejected ending, and replies judged one by one that share a prompt.

    `seq_len`: places that one side may take; `user_turn`: the ids that open a person's turn, where
    what is too long may be cut.
    """
    sides: list[tuple[int, int]] = []  # documents of the chosen and of the rejected reply
    bad: list[int] = []
    plain: list[int] = []
    for document in range(len(split)):
        other = split.rejected(document)
        if other is None:
            plain.append(document)
        elif np.array_equal(split.ids(document), other[0]):
            bad.append(document)  # the same words, of which those of the last reply are unwanted
        else:
            sides.append((document, document))
    matched = list(_matched(split, plain, bad))
    used = {document for pair in matched for document in pair}
    pairs: list[Pair] = []
    left: Counter[str] = Counter()
    for good, unwanted in (*sides, *matched):
        pair = _pair(split, good, unwanted, seq_len, user_turn)
        if isinstance(pair, Pair):
            pairs.append(pair)
            left["cut"] += pair.chosen.begin > pair.chosen.head
        else:
            left[pair] += 1
    alone, others = len(set(bad) - used), len(set(plain) - used)
    return Found(pairs, left["cut"], left["long"], left["same"], alone, others)


def _matched(
    split: TokenSplit, plain: Sequence[int], bad: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Good and bad replies to the same prompt, each at least once."""
    if not bad:
        return
    unwanted: dict[bytes, list[int]] = defaultdict(list)
    wanted: dict[bytes, list[int]] = defaultdict(list)
    for document in bad:
        unwanted[_prompt(*_tokens(split, document, rejected=True))].append(document)
    for document in plain:
        prompt = _prompt(*_tokens(split, document, rejected=False))
        if prompt and prompt in unwanted:
            wanted[prompt].append(document)
    for prompt, good in wanted.items():
        other = unwanted[prompt]
        for number in range(max(len(good), len(other))):
            yield good[number % len(good)], other[number % len(other)]


def _prompt(ids: Ints, learned: npt.NDArray[np.bool_]) -> bytes:
    """What comes before the last reply; of a document without one nothing that a reply has."""
    places = np.flatnonzero(learned)
    return ids[: _reply_begin(learned, int(places[-1]))].tobytes() if len(places) else b""


def _tokens(
    split: TokenSplit, document: int, *, rejected: bool
) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Ids of a side, and which of them are learned."""
    if not rejected:
        return split.ids(document), split.weights(document) > 0
    other = split.rejected(document)
    assert other is not None
    return other[0], other[1] > 0


def _reply_begin(learned: npt.NDArray[np.bool_], place: int) -> int:
    """Where the learned stretch begins that goes on up to `place`, or `place` itself."""
    unlearned = np.flatnonzero(~learned[:place])
    return int(unlearned[-1]) + 1 if len(unlearned) else 0


def _pair(
    split: TokenSplit, good: int, unwanted: int, seq_len: int, user_turn: Sequence[int]
) -> Pair | Literal["long", "same"]:
    """The pair, whole or cut, or why it is none."""
    texts = [_tokens(split, good, rejected=False), _tokens(split, unwanted, rejected=True)]
    shortest = min(len(ids) for ids, _ in texts)
    differ = np.flatnonzero(texts[0][0][:shortest] != texts[1][0][:shortest])
    apart = int(differ[0]) if len(differ) else shortest
    firsts, ends = [], []
    for _, learned in texts:
        # The first token of a text is no target.
        first = max(1, _reply_begin(learned, apart))
        counted = np.flatnonzero(learned[first:])
        if not len(counted):
            return "same"
        firsts.append(first)
        ends.append(first + int(counted[-1]) + 1)
    kept = _cut(texts[0][0][: min(firsts)], max(ends), seq_len + 1, user_turn)
    if kept is None:
        return "long"
    return Pair(
        Side(good, False, *kept, ends[0], firsts[0]),
        Side(unwanted, True, *kept, ends[1], firsts[1]),
    )


def _cut(prompt: Ints, end: int, limit: int, user_turn: Sequence[int]) -> tuple[int, int] | None:
    """head and begin such that tokens ..head and begin..end are at most `limit`: all of them, or
    what precedes a person's first turn and the newest turns from one of theirs on."""
    if end <= limit:
        return 0, 0
    turns = _occurrences(prompt, user_turn)
    fitting = [int(turn) for turn in turns[1:] if int(turns[0]) + end - turn <= limit]
    return (int(turns[0]), fitting[0]) if fitting else None


def _occurrences(ids: Ints, sought: Sequence[int]) -> Ints:
    """Where `sought` begins in `ids`; nowhere when it is empty."""
    if not sought or len(ids) < len(sought):
        return np.zeros(0, np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(sought))
    found: Ints = np.flatnonzero((windows == np.asarray(sought)).all(1))
    return found


class PairRow(NamedTuple):
    """A row and the numbers of its pairs: pair p of them is its documents 2p + 1 (chosen) and
    2p + 2 (rejected), from 0."""

    row: Row
    pairs: list[int]


class PairRows:
    """Pairs in rows of `row_len` places, best fit."""

    def __init__(self, split: TokenSplit, pairs: Sequence[Pair], row_len: int, seed: int) -> None:
        """Every pair fits into a row."""
        self._split = split
        self.pairs = pairs
        self.row_len = row_len
        order = permutation(seed, -1 & 0xFFFFFFFF, len(pairs)).tolist()
        bins = pack([pairs[number].length for number in order], row_len)
        self.bins = [[order[place] for place in each] for each in bins]
        self._order = lru_cache(maxsize=2)(lambda epoch: permutation(seed, epoch, len(self.bins)))

    def count(self) -> int:
        """Rows of an epoch."""
        return len(self.bins)

    def pairs_of(self, epoch: int, number: int) -> list[int]:
        """The pairs of a row."""
        return self.bins[int(self._order(epoch)[number])]

    def row(self, pairs: list[int]) -> PairRow:
        """These pairs in one row."""
        ids, targets, document, position = (np.zeros(self.row_len, np.int64) for _ in range(4))
        weights = np.zeros(self.row_len, np.float32)
        at = 0
        for name, side in enumerate((side for number in pairs for side in self.pairs[number]), 1):
            read, learned = _tokens(self._split, side.document, rejected=side.rejected)
            counts = learned & (np.arange(len(read)) >= side.first)
            read, counts = (
                np.concatenate([each[: side.head], each[side.begin : side.end]])
                for each in (read, counts)
            )
            place = slice(at, at + side.length)
            ids[place], targets[place], weights[place] = read[:-1], read[1:], counts[1:]
            document[place], position[place] = name, np.arange(side.length)
            at += side.length
        return PairRow(Row(ids, targets, weights, document, position), pairs)


def with_reference(rows: Sequence[PairRow], reference: Floats) -> Batch:
    """A batch that carries what the reference model says of its pairs: of `reference` (N, 2) by
    number of pair, `more["reference"]` (B, P, 2), zero where a row has fewer than P pairs."""
    most = max(1, *(len(row.pairs) for row in rows))
    told = np.zeros((len(rows), most, 2), reference.dtype)
    for line, row in zip(told, rows, strict=True):
        line[: len(row.pairs)] = reference[row.pairs]
    batch = collate([row.row for row in rows], True)
    return batch._replace(more={"reference": torch.from_numpy(told)})


class PairBatches:
    """Global batches of `rows_per_step` rows in micro-batches; their weight is their number of
    pairs. Of several ranks each takes its own rows of the same global batch."""

    def __init__(
        self, rows: PairRows, reference: Floats, rows_per_step: int, micro_batch: int, *,
        rank: int = 0, ranks: int = 1,
    ) -> None:  # fmt: skip
        self._rows, self._reference = rows, reference
        self._per_step, self._micro = rows_per_step, micro_batch
        self._rank, self._ranks = rank, ranks

    def batch(self, step: int) -> GlobalBatch:
        """Rows step·R .. of the endless sequence of epochs; rank r takes r, r + ranks, ….

        All ranks have as many micro-batches: what one lacks is a row in which nothing counts.
        """
        first = step * self._per_step
        every = [
            self._rows.pairs_of(*divmod(index, self._rows.count()))
            for index in range(first, first + self._per_step)
        ]
        rows = [self._rows.row(pairs) for pairs in every[self._rank :: self._ranks]]
        if len(rows) < -(-self._per_step // self._ranks):
            nothing = rows[0] if rows else self._rows.row(every[0])
            weights = np.zeros_like(nothing.row.weights)
            rows.append(nothing._replace(row=nothing.row._replace(weights=weights)))
        parts = [
            with_reference(rows[begin : begin + self._micro], self._reference)
            for begin in range(0, len(rows), self._micro)
        ]
        pairs = sum(map(len, every))
        return GlobalBatch(parts, float(pairs), self._per_step * self._rows.row_len)


def parted(split: TokenSplit, pairs: Sequence[Pair], seed: int) -> tuple[list[Pair], list[Pair]]:
    """To learn from and to hold out: all pairs of a twentieth of the prompts, of at least one; of
    few prompts none."""
    prompts: dict[bytes, list[Pair]] = defaultdict(list)
    for pair in pairs:
        side = pair.chosen
        ids, _ = _tokens(split, side.document, rejected=False)
        prompts[ids[: side.first].tobytes()].append(pair)
    if len(prompts) < _FEWEST_PROMPTS:
        return list(pairs), []
    count = -(-len(prompts) // _OF_PROMPTS)
    chosen = set(permutation(seed, -2 & 0xFFFFFFFF, len(prompts))[:count].tolist())
    kept: list[Pair] = []
    held: list[Pair] = []
    for number, each in enumerate(prompts.values()):
        (held if number in chosen else kept).extend(each)
    return kept, held
