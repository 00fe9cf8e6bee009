"""Words and word n-grams of a batch of texts as 64-bit hashes, without a Python loop over words.

A word is a run of letters, digits and marks, lower-cased; every Chinese, Japanese or Korean
character is a word of its own. Punctuation and white space only separate, and the Unicode
composition of characters does not matter. Equal word sequences have equal hashes in every process
and on every machine.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Offsets = npt.NDArray[np.int64]
_BASE = np.uint64(0x9E3779B97F4A7C15)
_SEPARATOR, _LETTER, _SINGLE = 0, 1, 2
_SINGLE_RANGES = (
    (0x2E80, 0x2FE0), (0x3040, 0x3100), (0x31F0, 0x3200), (0x3400, 0x4DC0), (0x4E00, 0xA000),
    (0xAC00, 0xD7B0), (0xF900, 0xFB00), (0x20000, 0x32000),
)  # fmt: skip
# They choose how the character before them is drawn, so a heart in colour is no word.
_VARIATION_SELECTORS = slice(0xFE00, 0xFE10)
# Characters hashed at once: the temporaries stay in cache, however long a text is.
_BLOCK = 1 << 15
_FILTER_BITS = 20


class Grams(NamedTuple):
    """`hashes` of all documents one after the other; document d owns starts[d] .. starts[d+1]."""

    hashes: Hashes
    starts: Offsets

    def of(self, document: int) -> Hashes:
        return self.hashes[self.starts[document] : self.starts[document + 1]]

    def owner(self) -> Offsets:
        """The document of each hash."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


class GramSet:
    """A set of hashes that many others are looked up in. `hashes` are sorted, each once."""

    def __init__(self, hashes: Hashes) -> None:
        self.hashes = np.unique(hashes)
        self._shift = np.uint64(64 - _FILTER_BITS)
        # Most hashes that are looked up are absent; their highest bits alone tell nearly always.
        self._possible = np.zeros(1 << _FILTER_BITS, bool)
        self._possible[self.hashes >> self._shift] = True

    def __len__(self) -> int:
        return len(self.hashes)

    def find(self, hashes: Hashes) -> tuple[Offsets, Offsets]:
        """Which of `hashes` (any number, any order) are in the set, and where in it: two arrays
        of equal length, positions in `hashes`, ascending, and positions in `self.hashes`."""
        places = np.flatnonzero(self._possible[hashes >> self._shift])
        found = np.searchsorted(self.hashes, hashes[places])
        hit = self.hashes[np.minimum(found, len(self.hashes) - 1)] == hashes[places]
        return places[hit], found[hit]


def words(texts: Sequence[str]) -> Grams:
    """The word hashes of each text. Lone surrogates count as separators."""
    folded = [_folded(text) for text in texts]
    # A separator after each text keeps words from growing over the border.
    joined = "\n".join(folded) + "\n"
    points = np.frombuffer(joined.encode("utf-32-le", errors="surrogatepass"), np.uint32)
    kind = _kinds()[points]
    begins = np.empty(len(points), bool)
    begins[0] = True
    begins[1:] = (kind[1:] != kind[:-1]) | (kind[1:] == _SINGLE)
    places, hashes = [], []
    for start, end in _blocks(begins):
        change = np.flatnonzero(begins[start:end])
        is_word = kind[start:end][change] != _SEPARATOR
        first = change[is_word]
        hashes.append(_hash(points[start:end], first, np.append(change[1:], end - start)[is_word]))
        places.append(first + start)
    lengths = np.fromiter((len(text) + 1 for text in folded), np.int64, len(folded))
    borders = np.concatenate([[0], np.cumsum(lengths)])
    starts = np.searchsorted(np.concatenate(places), borders)
    return Grams(np.concatenate(hashes), starts.astype(np.int64))


def spell(text: str, first: int = 0, count: int | None = None) -> list[str]:
    """The words of one text as people write them (in lower case), in step with `words`; all, or
    `count` of them from number `first` on."""
    folded = _folded(text)
    if not folded:
        return []
    points = np.frombuffer(folded.encode("utf-32-le", errors="surrogatepass"), np.uint32)
    kind = _kinds()[points]
    change = np.flatnonzero((kind[1:] != kind[:-1]) | (kind[1:] == _SINGLE)) + 1
    edges = np.concatenate([[0], change, [len(folded)]])
    wanted = slice(first, None if count is None else first + count)
    found = np.flatnonzero(kind[edges[:-1]] != _SEPARATOR)[wanted]
    ends = edges[found + 1].tolist()
    return [folded[start:end] for start, end in zip(edges[found].tolist(), ends, strict=True)]


def ngrams(grams: Grams, n: int) -> Grams:
    """Hashes of the n consecutive words of each document; none for a document shorter than n."""
    count = np.maximum(np.diff(grams.starts) - (n - 1), 0)
    starts = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    total = max(len(grams.hashes) - n + 1, 0)
    rolled = np.zeros(total, np.uint64)
    for place in range(n):
        rolled += grams.hashes[place : place + total] * np.uint64(_odd(place))
    inside = np.repeat(grams.starts[:-1] - starts[:-1], count) + np.arange(starts[-1])
    return Grams(mix(rolled[inside]), starts)


def shingles(grams: Grams, n: int) -> Grams:
    """As `ngrams`, but a document with fewer than n words has one gram, of all its words."""
    long = ngrams(grams, n)
    count = np.diff(grams.starts)
    short = np.flatnonzero((count > 0) & (count < n))
    if not len(short):
        return long
    whole = np.zeros(len(short), np.uint64)
    for place in range(n - 1):
        reaches = count[short] > place
        hashes = grams.hashes[grams.starts[short[reaches]] + place]
        whole[reaches] += hashes * np.uint64(_odd(place))
    more = np.zeros(len(count), np.int64)
    more[short] = 1
    starts = long.starts + np.concatenate([[0], np.cumsum(more)])
    return Grams(np.insert(long.hashes, long.starts[short], mix(whole)), starts)


def mix(values: Hashes) -> Hashes:
    """MurmurHash3's 64-bit finaliser (Appleby): every input bit reaches every output bit."""
    values = values ^ (values >> np.uint64(33))
    values *= np.uint64(0xFF51AFD7ED558CCD)
    values ^= values >> np.uint64(33)
    values *= np.uint64(0xC4CEB9FE1A85EC53)
    values ^= values >> np.uint64(33)
    return values


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).lower()


def _blocks(begins: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of about _BLOCK characters; longer where no word ends for so long."""
    start, total = 0, len(begins)
    while start < total:
        end = min(start + _BLOCK, total)
        if end < total:
            back = int(begins[start + 1 : end + 1][::-1].argmax())
            end -= back
            if not begins[end]:
                ahead = begins[start + 1 :]
                place = int(ahead.argmax())
                end = start + 1 + place if ahead[place] else total
        yield start, end
        start = end


def _hash(points: npt.NDArray[np.uint32], first: Offsets, last: Offsets) -> Hashes:
    """Hashes of the words that reach from `first` to before `last`.

    The sum of a word's mixed characters times a power of the base, by prefix sums, moved to the
    word's own origin by the inverse power; all modulo 2**64.
    """
    powers, inverses = _powers(len(points) + 1)
    sums = np.zeros(len(points) + 1, np.uint64)
    np.cumsum(mix(points.astype(np.uint64) + np.uint64(1)) * powers[:-1], out=sums[1:])
    return mix((sums[last] - sums[first]) * inverses[first])


def _odd(place: int) -> int:
    """A fixed odd multiplier for each place of an n-gram, so that order counts."""
    return int(mix(np.array([place + 1], np.uint64))[0]) | 1


@cache
def _kinds() -> npt.NDArray[np.uint8]:
    table = np.zeros(sys.maxunicode + 1, np.uint8)
    letters = [c for c in range(0x32000) if unicodedata.category(chr(c))[0] in "LNM"]
    table[letters] = _LETTER
    table[_VARIATION_SELECTORS] = _SEPARATOR
    for start, end in _SINGLE_RANGES:
        table[start:end][table[start:end] == _LETTER] = _SINGLE
    return table


_grown: dict[str, Any] = {"size": 0}


def _powers(size: int) -> tuple[Hashes, Hashes]:
    """base**i and its inverse modulo 2**64 for i below `size`, kept between calls."""
    if _grown["size"] < size:
        length = 1 << (size - 1).bit_length()
        inverse = np.uint64(pow(int(_BASE), -1, 1 << 64))
        for name, base in (("powers", _BASE), ("inverses", inverse)):
            values = np.full(length, base, np.uint64)
            values[0] = 1
            _grown[name] = np.multiply.accumulate(values)
        _grown["size"] = length
    return _grown["powers"][:size], _grown["inverses"][:size]
