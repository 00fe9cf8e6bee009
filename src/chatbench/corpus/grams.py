"""Words and word n-grams of a batch of texts as 64-bit hashes, without a Python loop over words.

A word is a run of letters, digits and marks, lower-cased; every Chinese, Japanese or Korean
character is a word of its own. Punctuation and white space only separate. Equal word sequences
have equal hashes in every process and on every machine.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
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


class Grams(NamedTuple):
    """`hashes` of all documents one after the other; document d owns starts[d] .. starts[d+1]."""

    hashes: Hashes
    starts: Offsets

    def of(self, document: int) -> Hashes:
        return self.hashes[self.starts[document] : self.starts[document + 1]]

    def owner(self) -> Offsets:
        """The document of each hash."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


def words(texts: Sequence[str]) -> Grams:
    """The word hashes of each text. Lone surrogates count as separators."""
    # A separator after each text keeps words from growing over the border.
    joined = "\n".join(text.lower() for text in texts) + "\n"
    points = np.frombuffer(joined.encode("utf-32-le", errors="surrogatepass"), np.uint32)
    kind = _kinds()[points]
    begins = np.empty(len(points), bool)
    begins[0] = True
    begins[1:] = (kind[1:] != kind[:-1]) | (kind[1:] == _SINGLE)
    first = np.flatnonzero(begins & (kind != _SEPARATOR))
    # A word's hash: the sum of its mixed characters times a power of the base, by prefix sums,
    # moved to the word's own origin by the inverse power; all modulo 2**64.
    powers, inverses = _powers(len(points) + 1)
    sums = np.zeros(len(points) + 1, np.uint64)
    np.cumsum(mix(points.astype(np.uint64) + np.uint64(1)) * powers[:-1], out=sums[1:])
    change = np.flatnonzero(begins)
    ends = np.append(change[1:], len(points))
    last = ends[np.searchsorted(change, first)]
    hashes = mix((sums[last] - sums[first]) * inverses[first])
    lengths = np.fromiter((len(t.lower()) + 1 for t in texts), np.int64, len(texts))
    starts = np.searchsorted(first, np.concatenate([[0], np.cumsum(lengths)]))
    return Grams(hashes, starts.astype(np.int64))


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


def mix(values: Hashes) -> Hashes:
    """MurmurHash3's 64-bit finaliser (Appleby): every input bit reaches every output bit."""
    values = values ^ (values >> np.uint64(33))
    values *= np.uint64(0xFF51AFD7ED558CCD)
    values ^= values >> np.uint64(33)
    values *= np.uint64(0xC4CEB9FE1A85EC53)
    values ^= values >> np.uint64(33)
    return values


def _odd(place: int) -> int:
    """A fixed odd multiplier for each place of an n-gram, so that order counts."""
    return int(mix(np.array([place + 1], np.uint64))[0]) | 1


@cache
def _kinds() -> npt.NDArray[np.uint8]:
    table = np.zeros(sys.maxunicode + 1, np.uint8)
    letters = [c for c in range(0x32000) if unicodedata.category(chr(c))[0] in "LNM"]
    table[letters] = _LETTER
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
