"""Beginnings that are computed once: which ids each cache row holds, and what was put aside.

A new row takes the longest beginning that any row of the cache or the store holds: the system
prompt of its neighbours, the same question asked again, or its own conversation so far. Copied keys
and values are those that would be computed, so results are the same with and without.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from chatbench.engine.cache import KVCache, Saved

# Shorter beginnings are not worth a copy, or waiting for.
WORTH = 16
_STORE_BYTES = 1 << 29
_STORE_CONTEXTS = 4


def common(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many leading ids two lists share: slices are compared at C's speed, half by half."""
    low, high = 0, min(len(ours), len(theirs))
    while low < high:
        middle = (low + high + 1) // 2
        if ours[low:middle] == theirs[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class _Aside(NamedTuple):
    ids: list[int]
    saved: Saved


class PrefixStore:
    """Copies of recent beginnings, the latest used last, of at most `limit` tokens together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._entries: list[_Aside] = []

    @property
    def tokens(self) -> int:
        return sum(len(entry.ids) for entry in self._entries)

    def best(self, ids: Sequence[int]) -> tuple[int, Saved | None]:
        """The longest stored beginning of `ids`, which counts as used now."""
        most, found = 0, None
        for entry in self._entries:
            count = common(entry.ids, ids)
            if count > most:
                most, found = count, entry
        if found is None:
            return 0, None
        self._entries = [entry for entry in self._entries if entry is not found] + [found]
        return most, found.saved

    def covers(self, ids: Sequence[int]) -> bool:
        """Whether all of `ids` is stored."""
        return any(common(entry.ids, ids) == len(ids) for entry in self._entries)

    def put(self, ids: list[int], saved: Saved) -> None:
        """Keep one more; what it contains and what is too much go."""
        if len(ids) > self.limit:
            return
        self._entries = [e for e in self._entries if common(e.ids, ids) < len(e.ids)]
        self._entries.append(_Aside(ids, saved))
        while self.tokens > self.limit:
            del self._entries[0]


class Places:
    """The rows of a cache and the ids each holds, finished ones too until they are overwritten.

    What a conversation leaves is put into the store before another takes its place.
    """

    def __init__(self, cache: KVCache, context: int, rows: int) -> None:
        affordable = _STORE_BYTES // cache.token_bytes
        self.cache = cache
        self.store = PrefixStore(min(_STORE_CONTEXTS * context, affordable))
        self._held: list[list[int]] = [[] for _ in range(rows)]
        self._lasting = [False] * rows

    def best(self, ids: Sequence[int]) -> int:
        """How many leading ids of `ids` are at hand in the cache's rows."""
        return max(common(held, ids) for held in self._held)

    def begin(self, place: int, ids: Sequence[int], *, lasting: bool) -> int:
        """Make a row hold as much of the beginning of `ids` as is at hand; how much that is.

        A `lasting` row belongs to a conversation that may go on.
        """
        counts = [common(held, ids) for held in self._held]
        source = max(range(len(counts)), key=lambda row: (counts[row], row == place))
        count, own = counts[source], counts[place]
        # Asked before the row's old contents go there: they share no more than `own`.
        stored, saved = self.store.best(ids)
        if self._lasting[place] and len(self._held[place]) - own >= WORTH:
            self._put_aside(place)
        least = own + (WORTH if own else 1)
        if saved is not None and stored > count and stored >= least:
            self._hold(place, [])
            self.cache.restore(place, saved, stored)
            count = stored
        elif source != place and count >= least:
            self._hold(place, [])
            self.cache.copy(source, place, count)
        else:
            count = own
        self._hold(place, list(ids[:count]))
        self._lasting[place] = lasting
        return count

    def _put_aside(self, place: int) -> None:
        held = self._held[place]
        if not self.store.covers(held):
            self.store.put(held, self.cache.saved(place, len(held)))

    def extend(self, place: int, ids: Sequence[int]) -> None:
        """The row's next ids have been read."""
        self._held[place] += ids
        self.cache.lengths[place] = len(self._held[place])

    def move(self, source: int, target: int) -> None:
        """Copy one row over another."""
        if source == target:
            return
        if self._lasting[target] and len(self._held[target]) >= WORTH:
            self._put_aside(target)
        self._hold(target, [])
        self.cache.copy(source, target, len(self._held[source]))
        self._hold(target, list(self._held[source]))
        self._lasting[target] = self._lasting[source]
        # The copy carries it on; storing both would be twice the same.
        self._lasting[source] = False

    def _hold(self, place: int, ids: list[int]) -> None:
        """Until a copy is complete a row holds nothing, should it be interrupted."""
        self._held[place] = ids
        self.cache.lengths[place] = len(ids)
