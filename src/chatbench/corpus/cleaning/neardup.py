"""Near-duplicates: MinHash signatures of word 5-grams (Broder 1997), and the clusters they form.

Two texts are compared by the Jaccard similarity of their sets of word 5-grams, which a signature
estimates: the share of its values that agree. A text of fewer than five words has one gram, all of
its words; a text without words has no neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from chatbench.corpus.cleaning.grams import Grams, Hashes, Offsets, mix, shingles, words

GRAM_WORDS = 5
PERMUTATIONS = 112
RECALL = 0.95
Signatures = npt.NDArray[np.uint32]
_NOTHING = np.uint32(0xFFFFFFFF)
_BIN_BITS = 11
_BINS = 1 << _BIN_BITS
_FEW_BINS = 128
_TEXTS_AT_ONCE = 1 << 15
_PAIRS_AT_ONCE = 1 << 13
_ROWS_AT_ONCE = 1 << 15
_SMALL_BUCKET = 16
_BUCKET_LEADERS = 16
_CLUSTER_LEADERS = 1000
_BAND_BYTES = 1 << 26
_SORTED_AT_ONCE = 1 << 22


class Rows(Protocol):
    """Signatures that lie elsewhere, (documents, PERMUTATIONS)."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Signatures: ...


class Clusters(NamedTuple):
    """`cluster` int64 (n,): the smallest number among the documents connected with it. `dropped`
    bool (n,): whether it is similar to one that is kept and comes before it in its cluster."""

    cluster: Offsets
    dropped: npt.NDArray[np.bool_]


# ---- signatures


def signatures(texts: Sequence[str]) -> Signatures:
    """MinHash signatures, (len(texts), PERMUTATIONS); a text without words has 2**32 - 1 in all.

    A gram falls in one of 2,048 bins, and the smallest of each bin remains. Value p is that of the
    first bin that holds something, in an order of the bins of its own: a share of them that no
    other value begins with, then the rest. So each value is the smallest gram under an order of
    all grams, a MinHash, and all together cost hardly more than one (one-permutation hashing with
    the densification of Shrivastava 2017; the many bins keep the grams of short texts apart). The
    error is that of PERMUTATIONS independent orders, or smaller.
    """
    parts = [_sign(texts[start : start + _TEXTS_AT_ONCE])
             for start in range(0, len(texts), _TEXTS_AT_ONCE)]  # fmt: skip
    return np.concatenate(parts) if parts else np.zeros((0, PERMUTATIONS), np.uint32)


def similarity(first: Signatures, second: Signatures) -> npt.NDArray[np.float64]:
    """Estimated Jaccard similarity, (m,), of the rows of two (m, PERMUTATIONS) arrays; its
    standard error is at most sqrt(J (1 - J) / PERMUTATIONS). 0 for texts without words."""
    return np.where(_wordless(first), 0, _agreeing(first, second) / PERMUTATIONS)


def _sign(texts: Sequence[str]) -> Signatures:
    owner, full, values = _smallest(shingles(words(texts), GRAM_WORDS))
    counts = np.bincount(owner, minlength=len(texts))
    table = np.full((len(texts), PERMUTATIONS), _NOTHING, np.uint32)
    many = counts >= _FEW_BINS
    _choose_among_few(table, np.flatnonzero((counts > 0) & ~many), counts, full, values)
    rich = many[owner]
    line = np.cumsum(many) - 1
    _choose_among_many(table, np.flatnonzero(many), line[owner[rich]], full[rich], values[rich])
    return table


def _smallest(grams: Grams) -> tuple[Offsets, Offsets, Signatures]:
    """Document, bin and smallest value of each bin that holds something, ascending."""
    keys = (grams.owner().astype(np.uint64) << np.uint64(48)) | (grams.hashes >> np.uint64(16))
    keys.sort()
    places = keys >> np.uint64(48 - _BIN_BITS)
    first = np.concatenate([np.ones(min(1, len(keys)), bool), places[1:] != places[:-1]])
    values = (keys[first] >> np.uint64(48 - _BIN_BITS - 32)).astype(np.uint32)
    found = places[first].astype(np.int64)
    return found >> _BIN_BITS, found & (_BINS - 1), np.minimum(values, _NOTHING - np.uint32(1))


def _choose_among_few(
    table: Signatures, documents: Offsets, counts: Offsets, full: Offsets, values: Signatures
) -> None:
    """Fill the rows of `documents` by the best rank among all their full bins."""
    ranks = _preferences()[0]
    starts = (np.cumsum(counts) - counts)[documents]
    # The fullest first, so that those with a bin number `place` are always a range from 0.
    order = np.argsort(-counts[documents], kind="stable")
    documents, starts = documents[order], starts[order]
    counts = counts[documents]
    # The rank in the high bits, the place among the document's bins in the low ones.
    best = np.full((len(documents), PERMUTATIONS), _NOTHING, np.uint32)
    for place in range(int(counts.max(initial=0))):
        reach = int(np.searchsorted(-counts, -place))
        rank = ranks[full[starts[:reach] + place]]
        rank |= np.uint32(place)
        np.minimum(best[:reach], rank, out=best[:reach])
    table[documents] = values[starts[:, None] + (best & np.uint32(_FEW_BINS - 1))]


def _choose_among_many(
    table: Signatures, documents: Offsets, line: Offsets, full: Offsets, values: Signatures
) -> None:
    """Fill the rows of `documents` by asking bin after bin; `line` is each bin's document."""
    bin_of_rank = _preferences()[1]
    held = np.full(len(documents) * _BINS, _NOTHING, np.uint32)
    held[line * _BINS + full] = values
    chosen = np.full(len(documents) * PERMUTATIONS, _NOTHING, np.uint32)
    empty = np.arange(len(chosen))
    rank = 0
    while len(empty):
        document, position = np.divmod(empty, PERMUTATIONS)
        found = held[document * _BINS + bin_of_rank[rank][position]]
        chosen[empty] = found
        empty = empty[found == _NOTHING]
        rank += 1
    table[documents] = chosen.reshape(-1, PERMUTATIONS)


@cache
def _preferences() -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint16]]:
    """The order in which each position prefers bins: _FEW_BINS × rank at [bin, position], and the
    bin at [rank, position]. Each bin is among the first of exactly one position."""
    chance = mix(np.arange(1, PERMUTATIONS * _BINS + 1, dtype=np.uint64))
    chance = chance.reshape(PERMUTATIONS, _BINS) | np.uint64(1 << 63)
    bins = np.arange(_BINS)
    # Its own bins come first, in a random order as well.
    chance[bins * PERMUTATIONS >> _BIN_BITS, bins] ^= np.uint64(1 << 63)
    order = np.argsort(chance, axis=1, kind="stable")
    ranks = np.argsort(order, axis=1, kind="stable")
    return (
        np.ascontiguousarray(ranks.T.astype(np.uint32)) * np.uint32(_FEW_BINS),
        np.ascontiguousarray(order.T.astype(np.uint16)),
    )


def _wordless(table: Signatures) -> npt.NDArray[np.bool_]:
    # _NOTHING is no value of a gram, so one column tells.
    blank: npt.NDArray[np.bool_] = table[:, 0] == _NOTHING
    return blank


def _agreeing(first: Signatures, second: Signatures) -> npt.NDArray[np.uint8]:
    equal: npt.NDArray[np.bool_] = first == second
    counts: npt.NDArray[np.uint8] = equal.sum(axis=1, dtype=np.uint8)  # PERMUTATIONS < 256
    return counts


# ---- candidates


def bands_for(threshold: float) -> tuple[int, int]:
    """(bands, rows) with bands × rows ≤ PERMUTATIONS for a similarity in (0, 1].

    The most rows with which two texts of exactly this similarity share a band with a probability
    of at least RECALL: 1 - (1 - threshold**rows)**bands. 0.8 gives 16 × 7, 0.5 gives 37 × 3.
    """
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL:
            return bands, rows
    return PERMUTATIONS, 1


def find_clusters(
    table: Signatures | Sequence[Signatures] | Sequence[Rows],
    threshold: float,
    rows: npt.NDArray[np.integer[Any]] | None = None,
    margin: float = 0.0,
) -> Clusters:
    """Connected groups of texts whose estimated similarity is at least `threshold` - `margin`, and
    which of them to drop for one of at least `threshold`.

    `table`: signatures (r, PERMUTATIONS), in memory or mapped, whole or in chunks that follow one
    another. `rows` (n,): the row of each document, documents in the order of their digests; by
    default all rows as they lie. The result depends on that order alone.

    Pairs that share a band are compared by their whole signatures, an estimate; a margin of one
    standard error, 0.04 or more, keeps nearly all pairs of `threshold` in one group. All pairs of
    a band's bucket of up to 16 documents are compared; in a larger one each document with the one
    before it and with up to 16 of the first that are not yet connected. A document is dropped for
    one of the first 1,000 kept ones of its cluster.

    Beyond the signatures it takes 33 bytes a document, up to 64 MiB for bands and about 0.3 GiB
    to sort 4 M documents at a time.
    """
    stack = _Stack(table, rows)
    need = _agreements(threshold - margin)
    parent = np.arange(len(stack))
    bands, width = bands_for(threshold - margin)
    at_once = max(1, _BAND_BYTES // max(1, 8 * len(stack)))
    for start in range(0, bands, at_once):
        group = range(start, min(start + at_once, bands))
        all_hashes, worded = _band_hashes(stack, group, width)
        for hashes in all_hashes:
            for part in _parts(hashes):
                numbers = part[worded[part]]
                _connect_band(stack, parent, need, hashes[numbers], numbers)
            find_roots(parent, np.arange(len(stack)))
    return Clusters(parent, _dropped(stack, parent, _agreements(threshold)))


def _agreements(similarity: float) -> int:
    return math.ceil(similarity * PERMUTATIONS - 1e-9)


class _Stack:
    """Signatures by document number, wherever their rows lie."""

    def __init__(
        self,
        table: Signatures | Sequence[Signatures] | Sequence[Rows],
        rows: npt.NDArray[np.integer[Any]] | None,
    ) -> None:
        self._chunks = [table] if isinstance(table, np.ndarray) else list(table)
        self._starts = np.cumsum([0, *(len(chunk) for chunk in self._chunks)])
        self._rows = np.arange(self._starts[-1]) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, numbers: slice | Offsets) -> Signatures:
        """(len(numbers), PERMUTATIONS)."""
        rows = self._rows[numbers]
        order = np.argsort(rows, kind="stable")
        rows = rows[order]
        borders = np.searchsorted(rows, self._starts)
        taken = np.empty((len(rows), PERMUTATIONS), np.uint32)
        for chunk in np.flatnonzero(np.diff(borders)).tolist():
            here = slice(borders[chunk], borders[chunk + 1])
            taken[order[here]] = self._chunks[chunk][rows[here] - self._starts[chunk]]
        return taken


def _band_hashes(stack: _Stack, bands: range, width: int) -> tuple[Hashes, npt.NDArray[np.bool_]]:
    """One hash for each band and document, (len(bands), n), and which documents have words."""
    hashes = np.empty((len(bands), len(stack)), np.uint64)
    worded = np.empty(len(stack), bool)
    factors = mix(np.arange(1, width + 1, dtype=np.uint64)) | np.uint64(1)
    for start in range(0, len(stack), _ROWS_AT_ONCE):
        place = slice(start, start + _ROWS_AT_ONCE)
        block = np.asarray(stack[place])
        worded[place] = ~_wordless(block)
        for line, band in enumerate(bands):
            values = mix(block[:, band * width : (band + 1) * width].astype(np.uint64))
            hashes[line, place] = mix((values * factors).sum(axis=1, dtype=np.uint64))
    return hashes, worded


def _similar(stack: _Stack, first: Offsets, second: Offsets, need: int) -> npt.NDArray[np.bool_]:
    """Whether at least `need` values agree, for each pair of documents."""
    found = np.zeros(len(first), bool)
    for start in range(0, len(first), _PAIRS_AT_ONCE):
        place = slice(start, start + _PAIRS_AT_ONCE)
        found[place] = _agreeing(stack[first[place]], stack[second[place]]) >= need
    return found


def _parts(hashes: Hashes) -> Iterator[npt.NDArray[np.intp]]:
    """Positions by ranges of hashes, each range of about _SORTED_AT_ONCE; equal ones together."""
    bits = max(0, math.ceil(math.log2(max(1, len(hashes)) / _SORTED_AT_ONCE)))
    if not bits:
        yield np.arange(len(hashes))
        return
    shift = np.uint64(64 - bits)
    for part in range(1 << bits):
        yield np.flatnonzero(hashes >> shift == part)


def _connect_band(
    stack: _Stack, parent: Offsets, need: int, hashes: Hashes, numbers: Offsets
) -> None:
    """Connect the similar ones among documents (ascending numbers) with equal hashes."""
    order = np.argsort(hashes, kind="stable")
    hashes, numbers = hashes[order], numbers[order]
    same = hashes[1:] == hashes[:-1]
    if not same.any():
        return
    bucket = np.concatenate([[0], np.cumsum(~same)])
    size = np.bincount(bucket)[bucket]
    crowded = np.flatnonzero(size > 1)
    numbers, bucket, small = numbers[crowded], bucket[crowded], size[crowded] <= _SMALL_BUCKET
    for distance in range(1, _SMALL_BUCKET):
        pair = bucket[distance:] == bucket[:-distance]
        if distance > 1:
            pair &= small[distance:]
        if not pair.any():
            break
        _connect(stack, parent, need, numbers[:-distance][pair], numbers[distance:][pair])
    _connect_to_leaders(stack, parent, need, numbers[~small], bucket[~small])


def _connect(stack: _Stack, parent: Offsets, need: int, first: Offsets, second: Offsets) -> None:
    apart = find_roots(parent, first) != find_roots(parent, second)
    first, second = first[apart], second[apart]
    similar = _similar(stack, first, second, need)
    unite(parent, first[similar], second[similar])


def _connect_to_leaders(
    stack: _Stack, parent: Offsets, need: int, numbers: Offsets, bucket: Offsets
) -> None:
    """In each bucket the first document meets all others; those that stay apart go on, with the
    next one as the first."""
    for _ in range(_BUCKET_LEADERS):
        if len(numbers) < 2:
            return
        leader, leads = _leaders(numbers, bucket)
        numbers, bucket, leader = numbers[~leads], bucket[~leads], leader[~leads]
        _connect(stack, parent, need, leader, numbers)
        apart = find_roots(parent, leader) != find_roots(parent, numbers)
        numbers, bucket = numbers[apart], bucket[apart]


def _leaders(numbers: Offsets, group: Offsets) -> tuple[Offsets, npt.NDArray[np.bool_]]:
    """The first document of each one's group, and which are first; groups lie together."""
    leads = np.concatenate([[True], group[1:] != group[:-1]])
    return numbers[leads][np.cumsum(leads) - 1], leads


def _dropped(stack: _Stack, cluster: Offsets, need: int) -> npt.NDArray[np.bool_]:
    """Greedy in the order of numbers: the first that is undecided is kept, and all in its cluster
    that are similar to it are dropped; all clusters at once."""
    dropped = np.zeros(len(cluster), bool)
    members = np.flatnonzero(np.bincount(cluster, minlength=len(cluster))[cluster] > 1)
    members = members[np.argsort(cluster[members], kind="stable")]
    for _ in range(_CLUSTER_LEADERS):
        if not len(members):
            break
        leader, leads = _leaders(members, cluster[members])
        members, leader = members[~leads], leader[~leads]
        similar = _similar(stack, leader, members, need)
        dropped[members[similar]] = True
        members = members[~similar]
    return dropped


# ---- union-find on arrays


def find_roots(parent: Offsets, numbers: Offsets) -> Offsets:
    """The smallest member of each one's component; shortens the paths in `parent` on the way."""
    while True:
        above = parent[numbers]
        top = parent[above]
        if np.array_equal(above, top):
            return above
        parent[numbers] = top


def unite(parent: Offsets, first: Offsets, second: Offsets) -> None:
    """Join the components of each pair in `parent` (n,), where a root is its own parent and no
    parent is greater than its child."""
    first, second = find_roots(parent, first), find_roots(parent, second)
    while (apart := first != second).any():
        low = np.minimum(first, second)[apart]
        high = np.maximum(first, second)[apart]
        np.minimum.at(parent, high, low)
        second, first = find_roots(parent, high), find_roots(parent, low)
