"""Which character n-grams, words and word pairs stand in a text, hashed into buckets.

Feature hashing (Weinberger et al. 2009) of texts in the form in which a screen compares them.
Texts of a batch do not touch each other: what is found in one is the same in any batch.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

LONGEST_GRAM = 4
_BATCH_CHARACTERS = 1 << 14
_PLACE_BITS = 32

# Unicode's Default_Ignorable_Code_Point, and control characters that are not white space: what a
# reader does not see must not hide a word from the screen.
_UNSEEN = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)
_OVERLAYS = re.compile("[\u0300-\u036f\u0489]+")
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_SPACED_HAN = re.compile(f"(?<=[{_HAN}]) (?=[{_HAN}])")
_SPELLED = re.compile(r"(?<![^\W_])[^\W\d_](?:[ .*_-][^\W\d_]){2,}(?![^\W_])")
_SEPARATORS = str.maketrans("", "", " .*_-")

_HINT = re.compile(r"[ .*_-][^\W\d_][ .*_-][^\W\d_](?![^\W_])")

Indices = npt.NDArray[np.int64]
Places = npt.NDArray[np.int32]


def as_judged(text: str) -> str:
    """The form in which texts are compared: without what a reader does not see (zero-width and
    control characters, strokes laid over letters), full-width and other variants as plain letters
    (NFKC), case-folded, white space as single spaces, none between Chinese characters; letters
    spelled out one by one (`b a d`, `b.a.d`) are joined."""
    plain = text.isascii()
    if not plain:
        text = unicodedata.normalize("NFKC", _UNSEEN.sub("", text))
        text = _OVERLAYS.sub("", text.casefold())
    text = " ".join(text.casefold().split())
    if not text.isprintable():
        text = " ".join(_UNSEEN.sub("", text).split())
    if not plain:
        text = _SPACED_HAN.sub("", text)
    if not _HINT.search(text):  # much faster than the exact pattern
        return text
    return _SPELLED.sub(lambda found: found[0].translate(_SEPARATORS), text)


class Sightings(NamedTuple):
    """Every n-gram of a batch of texts, equal ones next to each other, in order of place.

    Places count characters through the whole batch; `before` is where an equal n-gram last stood,
    in whatever text, -1 for nowhere. `borders`: where each text starts, and the end. `offsets`: of
    each character, how many bytes of UTF-8 come before it in its text.
    """

    bucket: Indices
    place: Places
    before: Places
    borders: Indices
    offsets: Indices

    def fresh(self, since: Places) -> Indices:
        """Which n-grams have no equal one from place `since[their place]` on."""
        return np.flatnonzero(self.before < since.take(self.place))


def sightings(texts: Sequence[str], bits: int) -> Sightings:
    """The n-grams of texts that are `as_judged`, with a space before and after each."""
    padded = [f" {text} " for text in texts]
    borders = np.cumsum([0, *map(len, padded)])
    points = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), "<u4")
    ends = np.repeat(borders[1:], np.diff(borders))
    keys = np.concatenate(_character_keys(points, ends, bits) + _word_keys(points, ends, bits))
    keys.sort()
    halves = keys.astype("<u8").view("<u4").reshape(-1, 2)
    place = halves[:, 0].astype(np.int32)
    bucket = halves[:, 1].astype(np.int64)
    before = np.full(len(place), -1, np.int32)
    np.copyto(before[1:], place[:-1], where=bucket[1:] == bucket[:-1])
    widths = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
    offsets = np.cumsum(widths) - widths
    offsets -= np.repeat(offsets[borders[:-1]], np.diff(borders))
    return Sightings(bucket, place, before, borders, offsets)


def presence(texts: Sequence[str], bits: int) -> tuple[Indices, npt.NDArray[np.int32]]:
    """Which buckets stand in each text: text t owns buckets[starts[t] : starts[t + 1]], sorted."""
    counts: list[Indices] = [np.zeros(1, np.int64)]
    buckets: list[npt.NDArray[np.int32]] = [np.zeros(0, np.int32)]
    for batch in batches([as_judged(text) for text in texts]):
        seen = sightings(batch, bits)
        sizes = np.diff(seen.borders)
        first = seen.fresh(np.repeat(seen.borders[:-1], sizes).astype(np.int32))
        owner = np.repeat(np.arange(len(batch)), sizes)[seen.place[first]]
        buckets.append(seen.bucket[first][np.argsort(owner, kind="stable")].astype(np.int32))
        counts.append(np.bincount(owner, minlength=len(batch)))
    return np.cumsum(np.concatenate(counts)), np.concatenate(buckets)


def batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts in groups whose arrays fit a processor's cache."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text) + 2
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _keys(hashes: npt.NDArray[np.uint32], places: Indices, bits: int) -> npt.NDArray[np.uint64]:
    """Bucket above, place below, so that one sort brings equal buckets together in order."""
    buckets = _mix(hashes) >> np.uint32(32 - bits)
    return (buckets.astype(np.uint64) << np.uint64(_PLACE_BITS)) | places.astype(np.uint64)


def _character_keys(
    points: npt.NDArray[np.uint32], ends: Indices, bits: int
) -> list[npt.NDArray[np.uint64]]:
    """Keys of the 1- to 4-grams that end inside their text, which ends at `ends`. Single ASCII
    characters are left out: nearly all texts hold them."""
    places = np.arange(len(points))
    room = ends - places
    rolled = np.zeros(len(points), np.uint32)
    found = []
    for size in range(1, LONGEST_GRAM + 1):
        rolled = rolled[: len(points) - size + 1] * np.uint32(0x01000193) + points[size - 1 :]
        inside = np.flatnonzero(points > 0x7F if size == 1 else room[: len(rolled)] >= size)
        found.append(
            _keys(rolled[inside] ^ np.uint32(0x9E3779B1 * size & 0xFFFFFFFF), inside, bits)
        )
    return found


def _word_keys(
    points: npt.NDArray[np.uint32], text_ends: Indices, bits: int
) -> list[npt.NDArray[np.uint64]]:
    """Keys of words (runs of letters and digits, Chinese excepted: their n-grams are words
    already) and of pairs of neighbouring words of one text."""
    inside = _letters()[points]
    starts = np.flatnonzero(inside[1:] & ~inside[:-1]) + 1  # each text starts with a space
    if not len(starts):
        return []
    ends = np.flatnonzero(inside[:-1] & ~inside[1:]) + 1
    run = np.cumsum(inside[1:] & ~inside[:-1]) - 1
    begin = starts[np.maximum(run, 0)]
    place = np.maximum(np.arange(1, len(points)) - begin, 0)
    powers = _powers(int((ends - starts).max()) + 1)
    letters = np.where(inside[1:], _mix(points[1:] + np.uint32(1)), np.uint32(0))
    letters *= powers[np.minimum(place, len(powers) - 1)]
    words: npt.NDArray[np.uint32] = _mix(np.add.reduceat(letters, starts - 1, dtype=np.uint32))
    together = np.flatnonzero(starts[1:] < text_ends[starts[:-1]])
    pairs = words[together] * np.uint32(0x85EBCA77) + words[together + 1]
    return [_keys(words, starts, bits), _keys(pairs, starts[together], bits)]


def _powers(size: int) -> npt.NDArray[np.uint32]:
    return np.multiply.accumulate(
        np.concatenate([np.ones(1, np.uint32), np.full(size, 0xCC9E2D51, np.uint32)]),
        dtype=np.uint32,
    )


def _mix(values: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """MurmurHash3's 32-bit finaliser (Appleby)."""
    values = values ^ (values >> np.uint32(16))
    values *= np.uint32(0x85EBCA6B)
    values ^= values >> np.uint32(13)
    values *= np.uint32(0xC2B2AE35)
    values ^= values >> np.uint32(16)
    return values


@cache
def _letters() -> npt.NDArray[np.bool_]:
    """For each code point whether it can stand in a word."""
    table = np.zeros(0x110000, bool)
    table[[c for c in range(0x20000) if unicodedata.category(chr(c))[0] in "LNM"]] = True
    for first, last in ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF)):
        table[first : last + 1] = False
    return table
