"""Byte-pair merges learned in plain Python: what the extension does, in the order it does it."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

Merge = tuple[int, int, int]
Pair = tuple[int, int]


class SlowLearner:
    """Words as lists of ids, counts of their pairs, and a heap of pairs to merge."""

    def __init__(
        self, words: Iterable[tuple[bytes, int]], entries: Sequence[bytes], known: Sequence[Merge]
    ) -> None:
        self._entries = list(entries)
        self._ids: dict[bytes, int] = {}
        for number, content in enumerate(entries):
            self._ids.setdefault(content, number)
        ranks = {(left, right): rank for rank, (left, right, _) in enumerate(known)}
        self._words: list[list[int]] = []
        self._frequencies: list[int] = []
        for word, count in words:
            symbols = [self._ids[bytes([byte])] for byte in word]
            self._words.append(_apply(symbols, ranks, known))
            self._frequencies.append(count)
        self._counts: Counter[Pair] = Counter()
        self._fresh: dict[Pair, list[int]] = {}
        self._heap: list[tuple[int, Pair, int, list[int]]] = []
        self._offers = 0
        for number, symbols in enumerate(self._words):
            for pair in pairwise(symbols):
                self._change(pair, 1, number)
        self._offer()

    def learn(self, wanted: int, unique: bool) -> list[Merge]:
        """At most `wanted` new entries; see `bpe_training.learn_merges`."""
        merges: list[Merge] = []
        end = len(self._entries) + wanted
        while len(self._entries) < end and self._heap:
            negative, pair, order, words = heapq.heappop(self._heap)
            if -negative != self._counts[pair]:
                heapq.heappush(self._heap, (-self._counts[pair], pair, order, words))
                continue
            if negative >= 0:
                break
            content = self._entries[pair[0]] + self._entries[pair[1]]
            is_new = content not in self._ids
            if is_new:
                self._ids[content] = len(self._entries)
                self._entries.append(content)
            elif unique:
                continue
            merges.append((*pair, self._ids[content]))
            for word in words:
                self._merge(pair, self._ids[content], word)
            self._offer()
        return merges

    def _merge(self, pair: Pair, token: int, word: int) -> None:
        symbols, kept, i = self._words[word], [], 0
        while i < len(symbols):
            if tuple(symbols[i : i + 2]) != pair:
                kept.append(symbols[i])
                i += 1
                continue
            if kept:
                self._change((kept[-1], pair[0]), -1, word)
                self._change((kept[-1], token), 1, word)
            i += 2
            if i < len(symbols):
                self._change((pair[1], symbols[i]), -1, word)
                self._change((token, symbols[i]), 1, word)
            kept.append(token)
        self._words[word] = kept

    def _change(self, pair: Pair, sign: int, word: int) -> None:
        self._counts[pair] += sign * self._frequencies[word]
        if sign > 0:
            words = self._fresh.setdefault(pair, [])
            if not words or words[-1] != word:
                words.append(word)

    def _offer(self) -> None:
        for pair, words in self._fresh.items():
            if self._counts[pair] > 0:
                self._offers += 1
                heapq.heappush(self._heap, (-self._counts[pair], pair, self._offers, words))
        self._fresh.clear()


def _apply(symbols: list[int], ranks: dict[Pair, int], known: Sequence[Merge]) -> list[int]:
    """Known merges, lowest rank first, among equals the leftmost."""
    while len(symbols) > 1:
        none = len(known)
        best = min(
            range(len(symbols) - 1), key=lambda i: ranks.get((symbols[i], symbols[i + 1]), none)
        )
        rank = ranks.get((symbols[best], symbols[best + 1]))
        if rank is None:
            break
        symbols[best : best + 2] = [known[rank][2]]
    return symbols
